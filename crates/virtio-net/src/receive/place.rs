//! Placing frames of known length: from host memory, or from another ring's guest.

use guest_memory::GuestSlice;

use super::{GuestRoom, Placed};
use crate::BURST_MAX;
use crate::features::HEADER_LEN;
use crate::header::NetHeader;
use crate::offload::SoftwareOffload;
use crate::run::{copy_run, len_of, write_at};
use crate::transmit::Frames;

/// Number of chains completed together: the descriptors in a cache line of a packed ring.
pub(super) const COMPLETED_TOGETHER: usize = 4;

/// Net header of a frame in one buffer, without pending offloads.
const PLAIN_HEADER: [u8; HEADER_LEN] = NetHeader::PLAIN.to_bytes();

impl<'m> GuestRoom<'_, 'm> {
    /// Places one frame from host memory, without pending offloads, after a net header that says so.
    #[inline]
    pub fn place(&mut self, payload: &[u8]) -> Placed {
        self.place_with(&PLAIN_HEADER, payload.len(), |slices, offset| match slices {
            [slice] => _ = slice.write(offset, payload),
            many => write_at(many, offset, payload),
        })
    }

    /// Places one frame, after a copy of `header`. The frame is the run `from` from byte `skip` to its end. It may have
    /// pending offloads, if the guest takes them ([`NetHeader::is_for`]). The copy gets the actual number of buffers.
    #[inline]
    pub fn place_run(
        &mut self,
        header: &NetHeader,
        from: &[GuestSlice<'_>],
        skip: usize,
    ) -> Placed {
        let header = NetHeader { num_buffers: 1, ..*header }.to_bytes();
        let payload_len = len_of(from).saturating_sub(skip);
        self.place_with(&header, payload_len, |slices, offset| {
            copy_run(slices, offset, from, skip);
        })
    }

    /// Places the frames that `offload` makes from the run `from`. When the room runs out, the placed frames are no
    /// longer in the count of `offload`, and the next burst can continue with it. A frame that this guest can never
    /// take is dropped and counted.
    #[inline]
    pub fn place_offloaded(
        &mut self,
        offload: &mut SoftwareOffload,
        from: &[GuestSlice<'_>],
    ) -> Placed {
        while offload.count() > 0 {
            let before = offload.count();
            let placed = self.place_with(&PLAIN_HEADER, offload.next_len(), |slices, offset| {
                offload.write_next(from, slices, offset);
            });
            if placed == Placed::NoRoom {
                return Placed::NoRoom;
            }
            if offload.count() == before {
                offload.skip(from, 1);
            }
        }
        Placed::Done
    }

    /// Places frames that another ring's guest sent, with one copy each. Returns the number of frames taken, dropped
    /// ones included, and the bytes placed. The rest found no room.
    #[inline]
    pub fn forward(&mut self, frames: Frames<'_, '_>) -> (usize, u32) {
        self.expect(frames.len());
        let before = self.bytes;
        let mut taken = 0;
        if self.negotiated.header_len() == HEADER_LEN
            && let Some(plain) = frames.plain(HEADER_LEN)
        {
            taken = self.forward_plain(plain);
        }
        for frame in frames.iter().skip(taken) {
            let placed = self.place_with(&PLAIN_HEADER, frame.len(), |slices, offset| {
                copy_run(slices, offset, frame.slices(), frame.header_len());
            });
            if placed == Placed::NoRoom {
                break;
            }
            taken += 1;
        }
        (taken, self.bytes - before)
    }

    /// Fast path for frames of one buffer each. Places the first ones that fit one buffer each: mostly all of them.
    /// Returns the number placed.
    #[inline]
    fn forward_plain(&mut self, frames: &[GuestSlice<'_>]) -> usize {
        let first = self.done;
        let is_fresh = first == self.chains.len() && self.window == 0 && self.packets == 0;
        if !is_fresh || self.is_watched() || !self.take_more() {
            return 0;
        }
        let Some((chains, buffers)) = self.chains.plain_mut(first) else { return 0 };
        let (mut packets, mut bytes) = (0, 0);
        // A full burst is one of many: the guest is better left undisturbed until all of it is there. A smaller one may
        // be all there is: the guest can work on its first frames while the last ones are copied.
        let together = if frames.len() < BURST_MAX { COMPLETED_TOGETHER } else { BURST_MAX };
        let lines =
            chains.chunks_mut(together).zip(buffers.chunks(together)).zip(frames.chunks(together));
        for ((chains, buffers), frames) in lines {
            let mut fitted = 0;
            for ((chain, to), from) in chains.iter_mut().zip(buffers).zip(frames) {
                if to.len() < from.len() {
                    break;
                }
                to.copy_from(HEADER_LEN, from, HEADER_LEN);
                to.write_differing(&PLAIN_HEADER);
                #[expect(clippy::cast_possible_truncation, reason = "a frame is below 2^17 bytes")]
                {
                    chain.len = from.len() as u32;
                }
                bytes += chain.len;
                fitted += 1;
            }
            self.queue.complete_written(&chains[..fitted]);
            packets += fitted;
            if fitted < together {
                break;
            }
        }
        self.done += packets;
        (self.completed, self.end) = (self.done, self.done);
        #[expect(clippy::cast_possible_truncation, reason = "at most BURST_MAX of them")]
        {
            self.packets = packets as u16;
            self.bytes += bytes - (packets * HEADER_LEN) as u32;
        }
        packets
    }

    /// Makes room for a frame of `payload_len` bytes. `write` then writes it after the header: it gets the buffers and
    /// the offset.
    #[inline]
    fn place_with(
        &mut self,
        header: &[u8; HEADER_LEN],
        payload_len: usize,
        write: impl FnOnce(&[GuestSlice<'_>], usize),
    ) -> Placed {
        if self.is_at_limit() {
            return self.place_at_limit();
        }
        let len = HEADER_LEN + payload_len;
        if let Some(slice) = self.next_buffer()
            && slice.len() >= len
            && self.negotiated.header_len() == HEADER_LEN
        {
            write(&[slice], HEADER_LEN);
            slice.write_differing(header);
            #[expect(clippy::cast_possible_truncation, reason = "at most the buffer's length")]
            self.chains.set_written(self.done, len as u32);
            self.done += 1;
            self.end = self.done;
            if self.done - self.completed >= self.together {
                self.complete();
            }
            self.count_frame(payload_len);
            return Placed::Done;
        }
        self.place_slowly(header, payload_len, write)
    }

    /// The next buffer, if it is the only one of its chain and no window is open.
    #[inline]
    fn next_buffer(&mut self) -> Option<GuestSlice<'m>> {
        if self.window > 0 || (self.end == self.chains.len() && !self.take_more()) {
            return None;
        }
        self.chains.only_buffer(self.done)
    }

    /// Slow path of [`place_with`](Self::place_with): several buffers, a legacy header, or no room.
    #[inline(never)]
    fn place_slowly(
        &mut self,
        header: &[u8; HEADER_LEN],
        payload_len: usize,
        write: impl FnOnce(&[GuestSlice<'_>], usize),
    ) -> Placed {
        let header_len = self.negotiated.header_len();
        let len = header_len + payload_len;
        if !self.open_window(len) {
            self.starved = true;
            return Placed::NoRoom;
        }
        if self.window < len {
            return self.no_room_for(len);
        }
        let slices = self.window_slices();
        write(slices, header_len);
        write_at(slices, 0, &header[..header_len]);
        self.take_chains(len);
        self.count_frame(payload_len);
        Placed::Done
    }
}
