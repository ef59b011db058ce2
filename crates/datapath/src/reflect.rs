//! Every frame goes back to the guest that sent it: the rings' own cost, without a wire.

use std::collections::VecDeque;
use std::io;
use std::os::fd::BorrowedFd;

use virtio_net::features::HEADER_LEN;
use virtio_net::{BURST_MAX, FRAME_LEN_MAX, Frames, GuestRoom, Offloads, Placed};

use crate::{Capabilities, Datapath, Look, Transmitted};

/// How many frames are under way at most; more wait in the guest's ring.
const FRAMES_MAX: usize = 2 * BURST_MAX;

/// One queue that reflects.
#[derive(Debug, Default)]
pub struct Reflect {
    waiting: VecDeque<Vec<u8>>,
    /// Buffers to use again, so that a burst allocates nothing.
    unused: Vec<Vec<u8>>,
}

impl Datapath for Reflect {
    fn capabilities(&self) -> Capabilities {
        // No offloads: what comes back must be whole, whatever the guest takes.
        let none = Offloads::default();
        Capabilities { name: "reflect", from_guest: none, to_guest: none, mtu: u16::MAX }
    }

    fn set_active(&mut self, active: bool) -> io::Result<()> {
        if !active {
            self.unused.extend(self.waiting.drain(..));
        }
        Ok(())
    }

    #[inline]
    fn transmit(&mut self, frames: Frames<'_>) -> Transmitted {
        let mut done = Transmitted::default();
        for frame in frames.iter() {
            if self.waiting.len() == FRAMES_MAX {
                break;
            }
            let mut bytes = self.unused.pop().unwrap_or_default();
            bytes.resize(frame.len().min(FRAME_LEN_MAX), 0);
            frame.copy_to(&mut bytes);
            #[expect(clippy::cast_possible_truncation, reason = "a frame is below 2^17 bytes")]
            {
                done.bytes += bytes.len() as u32;
            }
            self.waiting.push_back(bytes);
            done.taken += 1;
        }
        done
    }

    #[inline]
    fn receive(&mut self, room: &mut GuestRoom<'_, '_>) -> io::Result<Look> {
        while let Some(frame) = self.waiting.front() {
            if room.place(&[0; HEADER_LEN], frame) == Placed::NoRoom {
                return Ok(Look::More);
            }
            self.unused.extend(self.waiting.pop_front());
        }
        Ok(Look::Drained)
    }

    fn has_frames(&self) -> bool {
        !self.waiting.is_empty()
    }

    fn readiness(&self) -> Option<BorrowedFd<'_>> {
        None
    }
}
