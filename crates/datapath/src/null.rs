//! A datapath without a network. It copies each transmitted frame, as a real back end does, and discards it. It can
//! generate received frames, as many as the guest has buffers for.

use std::io;
use std::os::fd::BorrowedFd;

use guest_memory::GuestSlice;
use virtio_net::features::HEADER_LEN;
use virtio_net::{
    BURST_MAX, FRAME_LEN_MAX, Frames, GuestRoom, Negotiated, NetHeader, Offloads, Placed,
};

use crate::{Capabilities, Datapath, FrameReader, Interface, Look, Transmitted};

/// The shortest Ethernet frame, without its checksum.
pub const FRAME_LEN_MIN: usize = 14;

/// One queue that discards and generates frames.
#[derive(Debug)]
pub struct Null {
    /// The frame that the guest receives repeatedly; empty if it receives none.
    frame: Vec<u8>,
    copy: Vec<u8>,
    header_len: usize,
    active: bool,
}

impl Null {
    /// A queue that generates frames of `receive` bytes, or none when that is 0.
    ///
    /// A length that no frame can have is clamped.
    #[must_use]
    pub fn new(receive: usize) -> Self {
        let mut frame = Vec::new();
        if receive > 0 {
            frame = vec![0; receive.clamp(FRAME_LEN_MIN, FRAME_LEN_MAX)];
            frame[..6].fill(0xff);
            frame[6..12].copy_from_slice(&[0x52, 0x54, 0, 0, 0, 1]);
            // Local experimental EtherType (IEEE 802): no network stack uses it.
            frame[12..14].copy_from_slice(&0x88b5_u16.to_be_bytes());
        }
        Self { frame, copy: vec![0; FRAME_LEN_MAX], header_len: HEADER_LEN, active: false }
    }
}

impl Interface for Null {
    fn capabilities(&self) -> Capabilities {
        let none = Offloads::default();
        Capabilities { name: "null", from_guest: none, to_guest: none, mtu: u16::MAX }
    }

    fn configure(&mut self, negotiated: Negotiated) -> io::Result<()> {
        self.header_len = negotiated.header_len();
        Ok(())
    }

    fn set_active(&mut self, active: bool) -> io::Result<()> {
        self.active = active;
        Ok(())
    }

    fn has_frames(&self) -> bool {
        self.active && !self.frame.is_empty()
    }

    fn readiness(&self) -> Option<BorrowedFd<'_>> {
        None
    }
}

impl Datapath for Null {
    #[inline]
    fn transmit(&mut self, frames: Frames<'_, '_>) -> Transmitted {
        let mut done = Transmitted::default();
        for frame in frames.iter() {
            #[expect(clippy::cast_possible_truncation, reason = "a frame is below 2^17 bytes")]
            {
                done.bytes += frame.copy_to(&mut self.copy) as u32;
            }
            done.taken += 1;
        }
        done
    }

    #[inline]
    fn receive(&mut self, room: &mut GuestRoom<'_, '_>) -> io::Result<Look> {
        if self.frame.is_empty() {
            return Ok(Look::Drained);
        }
        room.expect(BURST_MAX);
        while room.place(&self.frame) == Placed::Done {}
        Ok(Look::More)
    }
}

impl FrameReader for Null {
    fn receive_frame(&mut self, to: GuestSlice<'_>) -> io::Result<Option<usize>> {
        if self.frame.is_empty() {
            return Ok(None);
        }
        let header = &NetHeader::PLAIN.to_bytes()[..self.header_len];
        Ok(Some(to.write(0, header) + to.write(header.len(), &self.frame)))
    }
}
