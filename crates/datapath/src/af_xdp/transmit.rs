//! Sending: from guest memory into the transmit ring.

use arrayvec::ArrayVec;
use burst_trace::DropCause;
use guest_memory::GuestSlice;
use rustix::io::Errno;
use rustix::net::xdp::{XdpDesc, XdpDescOptions};
use virtio_net::{Frame, NetHeader, SoftwareOffload};

use super::channel::Channel;
use super::rings::Producer;
use super::socket::{PARTS_MAX, Socket};
use super::umem::Umem;
use crate::Transmitted;

/// Most pieces of a packet in the kernel (default of `CONFIG_MAX_SKB_FRAGS`).
const FRAGMENTS_MAX: usize = 17;

/// Shortest link header, bytes: drivers read the addresses in it (`ETH_HLEN`, `linux/if_ether.h`).
const LINK_HEADER_MIN: usize = 14;

/// Longest link header, bytes: with two VLAN tags.
const LINK_HEADER_MAX: usize = 14 + 8;

/// The outcome for a frame.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Queued {
    /// It is in the ring, or refused and counted.
    Done,
    /// There is no room for it, or for the rest of its segments. The frame comes again.
    Full,
}

impl Channel {
    /// Puts a frame with this net header into the transmit ring.
    #[inline]
    pub fn queue(
        &mut self,
        header: &NetHeader,
        frame: &Frame<'_, '_>,
        done: &mut Transmitted,
    ) -> Queued {
        if frame.len() < LINK_HEADER_MIN {
            done.drops.add(DropCause::TxTooShort);
            return Queued::Done;
        }
        if header.is_plain() {
            if self.socket.umem.is_unaligned() && self.queue_in_place(frame, done) {
                return Queued::Done;
            }
            self.queue_plain(frame, done)
        } else {
            self.queue_offloaded(header, frame, done)
        }
    }

    #[inline]
    fn queue_plain(&mut self, frame: &Frame<'_, '_>, done: &mut Transmitted) -> Queued {
        let len = frame.len();
        if len > self.socket.umem.chunk() as usize || len > self.frame_len_max() {
            return self.queue_offloaded(&NetHeader::PLAIN, frame, done);
        }
        if self.socket.transmit.room(1) == 0 {
            return Queued::Full;
        }
        let Some(offset) = self.socket.umem.take() else { return Queued::Full };
        #[expect(clippy::cast_possible_truncation, reason = "at most a chunk")]
        let len = len as u32;
        if let Some(to) = self.socket.umem.slice(offset, len) {
            frame.copy_to_run(&[to]);
        }
        self.push(offset, len, false);
        done.bytes += len;
        Queued::Done
    }

    /// Puts a frame into the transmit ring without a copy, in the guest's memory. Returns false if the frame lies in too
    /// many pieces, or in too large ones.
    #[inline]
    fn queue_in_place(&mut self, frame: &Frame<'_, '_>, done: &mut Transmitted) -> bool {
        let mut parts = ArrayVec::<(u64, u32), FRAGMENTS_MAX>::new();
        let mut skip = frame.header_len();
        for slice in frame.slices() {
            let part = slice.part(skip.min(slice.len()), slice.len());
            skip = skip.saturating_sub(slice.len());
            let len = u32::try_from(part.len()).unwrap_or(u32::MAX);
            if len == 0 {
                continue;
            }
            let Some(offset) =
                self.socket.umem.offset_of(&part).filter(|_| len <= self.socket.umem.chunk())
            else {
                return false;
            };
            if parts.try_push((offset, len)).is_err() {
                return false;
            }
        }
        #[expect(clippy::cast_possible_truncation, reason = "at most 17")]
        let count = parts.len() as u32;
        if self.socket.transmit.room(count) < count || frame.len() > self.frame_len_max() {
            return false;
        }
        for (n, &(offset, len)) in parts.iter().enumerate() {
            self.push(offset, len, n + 1 < parts.len());
        }
        #[expect(clippy::cast_possible_truncation, reason = "a frame is below 2^17 bytes")]
        {
            done.bytes += frame.len() as u32;
        }
        true
    }

    #[inline]
    fn push(&mut self, addr: u64, len: u32, goes_on: bool) {
        push(&mut self.socket.transmit, &mut self.socket.submitted, addr, len, goes_on);
    }

    /// Does a frame's pending offloads and puts the result into the transmit ring: the frame with its checksum, its
    /// segments, or a frame of several chunks.
    #[inline(never)]
    fn queue_offloaded(
        &mut self,
        header: &NetHeader,
        frame: &Frame<'_, '_>,
        done: &mut Transmitted,
    ) -> Queued {
        let from = frame.slices();
        let len_max = self.frame_len_max();
        let Self { offload, transmit_progress, socket, .. } = self;
        let Socket { umem, transmit, submitted, .. } = socket;
        let mut queue_next = |offload: &mut _| queue_next(offload, from, umem, transmit, submitted);
        let planned = offload.replan(header, from, frame.header_len(), frame.len());
        let refused = match planned {
            Err(cause) => Some(cause),
            Ok(()) if offload.next_len() > len_max => Some(DropCause::TxTooLong),
            Ok(()) => None,
        };
        if let Some(cause) = refused {
            transmit_progress.reset();
            done.drops.add(cause);
            return Queued::Done;
        }
        transmit_progress
            .resume(offload, from, |offload| while offload.count() > 0 && queue_next(offload) {});
        if offload.count() > 0 {
            return Queued::Full;
        }
        #[expect(clippy::cast_possible_truncation, reason = "a frame is below 2^17 bytes")]
        {
            done.bytes += frame.len() as u32;
        }
        Queued::Done
    }

    /// Longest frame that the interface sends, bytes. The kernel drops longer ones silently.
    #[inline]
    const fn frame_len_max(&self) -> usize {
        let len = self.mtu as usize + LINK_HEADER_MAX;
        if self.socket.multi_buffer || len < self.socket.umem.chunk() as usize {
            len
        } else {
            self.socket.umem.chunk() as usize
        }
    }
}

impl Socket {
    /// Makes the kernel send the contents of the transmit ring, as far as it takes them now; `unsent` says whether
    /// something is left.
    ///
    /// # Errors
    /// `ENETDOWN` when the interface is down, `ENXIO` when it is gone.
    #[inline]
    pub fn flush(&mut self) -> Result<(), Errno> {
        if self.need_wakeup && !self.transmit.needs_wakeup() {
            self.unsent = false;
            return Ok(());
        }
        let mut left = self.transmit.left();
        let result = loop {
            let kicked = self.kick();
            let now = self.transmit.left();
            let progress = now < left;
            left = now;
            match kicked {
                // One call sends a limited number of frames.
                Ok(()) | Err(Errno::AGAIN | Errno::INTR) if progress && now > 0 => {}
                Ok(()) | Err(Errno::AGAIN | Errno::BUSY | Errno::NOBUFS | Errno::INTR) => {
                    break Ok(());
                }
                Err(error) => break Err(error),
            }
        };
        self.unsent = left > 0;
        result
    }

    /// Makes room in the ring and among the chunks: publishes, sends, and takes back what was sent. Returns whether that
    /// freed a chunk.
    ///
    /// # Errors
    /// As [`flush`](Self::flush).
    #[cold]
    pub fn make_room(&mut self) -> Result<bool, Errno> {
        let before = self.umem.free();
        self.transmit.publish();
        self.flush()?;
        self.reap();
        Ok(self.umem.free() > before)
    }

    /// Takes back the chunks of frames that were sent.
    #[inline]
    pub fn reap(&mut self) {
        let count = self.completion.refresh();
        let mut noted = 0;
        for ahead in 0..count {
            noted = self.umem.note_sent(noted, self.completion.peek(ahead));
        }
        if count > 0 {
            self.completed += u64::from(count);
            self.completion.skip(count);
            self.completion.release();
            // Last: a daemon that is killed just before this loses some chunks. In the other order it would free some twice.
            self.umem.give_back(noted);
        }
    }
}

/// Puts the next frame that `offload` makes of `from` into the ring. Returns whether there was room.
fn queue_next(
    offload: &mut SoftwareOffload,
    from: &[GuestSlice<'_>],
    umem: &mut Umem,
    transmit: &mut Producer<XdpDesc>,
    submitted: &mut u64,
) -> bool {
    #[expect(clippy::cast_possible_truncation, reason = "at most the MTU and a link header")]
    let len = offload.next_len() as u32;
    let chunk = umem.chunk();
    let count = len.div_ceil(chunk);
    if transmit.room(count) < count || umem.free() < count as usize {
        return false;
    }
    let mut parts = ArrayVec::<_, PARTS_MAX>::new();
    for n in 0..count {
        let Some(offset) = umem.take() else { break };
        parts.push((offset, chunk.min(len - n * chunk)));
    }
    let slices: ArrayVec<_, PARTS_MAX> =
        parts.iter().filter_map(|&(offset, len)| umem.slice(offset, len)).collect();
    offload.write_next(from, &slices, 0);
    for (n, &(offset, len)) in parts.iter().enumerate() {
        push(transmit, submitted, offset, len, n + 1 < parts.len());
    }
    true
}

/// Puts the descriptor of a frame, or of a part of one, into the transmit ring. `goes_on`: more parts follow.
#[inline]
fn push(transmit: &mut Producer<XdpDesc>, submitted: &mut u64, addr: u64, len: u32, goes_on: bool) {
    let options = if goes_on { XdpDescOptions::XDP_PKT_CONTD } else { XdpDescOptions::empty() };
    transmit.push(XdpDesc { addr, len, options });
    *submitted += 1;
}
