//! Receiving: from the receive ring into guest memory.

use arrayvec::ArrayVec;
use burst_trace::DropCause;
use guest_memory::GuestSlice;
use rustix::net::xdp::{XdpDesc, XdpDescOptions};
use virtio_net::{
    BURST_MAX, FRAME_LEN_MAX, GuestRoom, Link, NetHeader, Placed, SegmentProgress, SoftwareOffload,
    arrival,
};

use super::channel::Channel;
use super::socket::PARTS_MAX;
use crate::Look;

/// Length of `struct arrival` of `bpf/sockets.bpf.c`, which lies before the first byte of a frame: its arrival time
/// (`CLOCK_MONOTONIC`, ns), and a mark.
const ARRIVAL_LEN: u32 = 16;
const ARRIVAL_MAGIC: u64 = 0x6c61_7669_7272_6172;

impl Channel {
    /// Places received frames into guest buffers, as long as there are frames and room.
    #[inline]
    pub fn receive_into(&mut self, room: &mut GuestRoom<'_, '_>) -> Look {
        let asks =
            self.socket.busy_poll || self.socket.need_wakeup && self.socket.fill.needs_wakeup();
        if asks && !self.socket.receive.has_entries() {
            self.socket.poll_driver();
        }
        // The last frame of the burst may end after the burst.
        let available = self.socket.receive.available();
        #[expect(clippy::cast_possible_truncation, reason = "64")]
        let burst = available.min(BURST_MAX as u32);
        if burst == 0 {
            self.arrived_ns = None;
            return Look::Drained;
        }
        self.arrived_ns = self.arrival_of(self.socket.receive.peek(0).addr);
        room.expect(burst as usize);
        let merges = self.gro && room.takes_gro();
        let mut done = 0;
        while done < burst {
            let mut parts = 0;
            if merges && burst - done > 1 {
                parts = self.place_gro(done, burst, room);
            }
            if parts == 0 {
                let Some(placed) = self.place_frame(done, available, room) else { break };
                parts = placed;
            }
            for part in done..done + parts {
                self.socket
                    .fill
                    .push_reserved(self.socket.umem.chunk_of(self.socket.receive.peek(part).addr));
            }
            done += parts;
        }
        self.socket.receive.skip(done);
        self.socket.receive.release();
        self.socket.fill.publish();
        if done >= burst && self.socket.receive.available() == 0 {
            Look::Drained
        } else {
            Look::More
        }
    }

    /// Places the frame of the entry `at`, of those before `end`, as one packet with those that it can be merged with.
    /// Returns how many they are: none where it cannot. What lies in several chunks is long enough as it is.
    #[inline]
    fn place_gro(&self, at: u32, end: u32, room: &mut GuestRoom<'_, '_>) -> u32 {
        let link = Link { mtu: self.mtu, leaves_offloads: self.leaves_offloads };
        let frames = (at..end).map_while(|entry| {
            let XdpDesc { addr, len, options } = self.socket.receive.peek(entry);
            let is_whole = !options.contains(XdpDescOptions::XDP_PKT_CONTD);
            self.socket.umem.received(addr, len).filter(|_| is_whole)
        });
        #[expect(clippy::cast_possible_truncation, reason = "at most `end`")]
        let merged = room.place_gro(link, frames) as u32;
        merged
    }

    /// Places the frame that begins at the entry `at`, of `available` ones. Returns how many entries it has, or
    /// none when there is no room for it, or its last entries are still to come.
    #[inline]
    fn place_frame(
        &mut self,
        at: u32,
        available: u32,
        room: &mut GuestRoom<'_, '_>,
    ) -> Option<u32> {
        let mut frame = ArrayVec::<_, PARTS_MAX>::new();
        let mut is_too_long = false;
        for entry in at..available {
            let XdpDesc { addr, len, options } = self.socket.receive.peek(entry);
            if let Some(part) = self.socket.umem.received(addr, len) {
                is_too_long |= frame.try_push(part).is_err();
            }
            if options.contains(XdpDescOptions::XDP_PKT_CONTD) {
                continue;
            }
            let placed = if is_too_long {
                // From a virtual device with a raised `gso_max_size`: too long for any guest.
                room.refuse(DropCause::RxTooBig)
            } else if self.leaves_offloads {
                Self::place_with_offloads(&frame, self.mtu, &mut self.receive_progress, room)
            } else {
                room.place_run(&NetHeader::PLAIN, &frame, 0)
            };
            return (placed == Placed::Done).then_some(entry + 1 - at);
        }
        None
    }

    /// Copies the next frame to `to`, after a net header of `header_len` bytes with its pending offloads. Returns the
    /// length of both; a frame that does not fit is lost.
    pub fn receive_frame(&mut self, header_len: usize, to: GuestSlice<'_>) -> Option<usize> {
        loop {
            let available = self.socket.receive.refresh();
            let is_last = |&entry: &u32| {
                !self.socket.receive.peek(entry).options.contains(XdpDescOptions::XDP_PKT_CONTD)
            };
            let parts = (0..available).find(is_last)? + 1;
            let mut len = header_len;
            for entry in 0..parts {
                let XdpDesc { addr, len: part, .. } = self.socket.receive.peek(entry);
                if let Some(part) = self.socket.umem.slice(addr, part) {
                    if len + part.len() <= to.len() {
                        to.copy_from(len, &part, 0);
                    }
                    len += part.len();
                }
                self.socket.fill.push_reserved(self.socket.umem.chunk_of(addr));
            }
            let fits = len <= to.len();
            if fits {
                let header = if self.leaves_offloads {
                    arrival::header_of(&[to.part(0, len)], header_len, len - header_len, self.mtu)
                } else {
                    NetHeader::PLAIN
                };
                to.write(0, &header.to_bytes()[..header_len]);
            }
            self.socket.receive.skip(parts);
            self.socket.receive.release();
            self.socket.fill.publish();
            if fits {
                return Some(len);
            }
            self.too_long += 1;
        }
    }

    /// Places a frame whose checksum and segmentation may be pending. Offloads that the guest does
    /// not take are done here.
    #[inline]
    fn place_with_offloads(
        frame: &[GuestSlice<'_>],
        mtu: u16,
        progress: &mut SegmentProgress,
        room: &mut GuestRoom<'_, '_>,
    ) -> Placed {
        let len = frame.iter().map(GuestSlice::len).sum();
        if len > FRAME_LEN_MAX {
            return room.refuse(DropCause::RxTooBig);
        }
        let header = arrival::header_of(frame, 0, len, mtu);
        if header.is_for(room.guest_offloads()) {
            return room.place_run(&header, frame, 0);
        }
        let Ok(mut offload) = SoftwareOffload::plan(&header, frame, 0, len) else {
            return room.refuse(DropCause::RxTooBig);
        };
        progress.resume(&mut offload, frame, |offload| room.place_offloaded(offload, frame))
    }

    /// Arrival time of the frame at `addr`, `CLOCK_MONOTONIC` ns, if the XDP program stamped it.
    #[inline]
    fn arrival_of(&self, addr: u64) -> Option<u64> {
        if !self.stamps {
            return None;
        }
        let stamp = self.socket.umem.before_received(addr, ARRIVAL_LEN)?;
        let mut bytes = [0; ARRIVAL_LEN as usize];
        stamp.read(0, &mut bytes);
        let word = |at: usize| u64::from_ne_bytes(std::array::from_fn(|n| bytes[at + n]));
        (word(8) == ARRIVAL_MAGIC).then(|| word(0))
    }

    /// Discards frames that arrived for a guest that is gone, and counts them.
    pub fn discard_received(&mut self) {
        let available = self.socket.receive.refresh();
        for ahead in 0..available {
            let XdpDesc { addr, options, .. } = self.socket.receive.peek(ahead);
            self.socket.fill.push_reserved(self.socket.umem.chunk_of(addr));
            let is_last_part = !options.contains(XdpDescOptions::XDP_PKT_CONTD);
            self.discarded += u64::from(is_last_part);
        }
        self.socket.receive.skip(available);
        self.socket.receive.release();
        self.socket.fill.publish();
        self.transmit_progress.reset();
        self.receive_progress.reset();
    }
}
