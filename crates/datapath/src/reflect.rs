//! Every frame goes back to the guest that sent it: the rings' own cost, without a wire.

use std::io;
use std::os::fd::BorrowedFd;

use burst_trace::DropCause;
use virtio_net::{Frames, GuestRoom, Offloads};

use crate::{Capabilities, Datapath, Look, Transmitted};

/// One queue that reflects: from the guest's transmit buffers to its receive buffers.
#[derive(Debug, Default)]
pub struct Reflect;

impl Datapath for Reflect {
    const FORWARDS: bool = true;

    fn capabilities(&self) -> Capabilities {
        // No offloads: what comes back must be whole, whatever the guest takes.
        let none = Offloads::default();
        Capabilities { name: "reflect", from_guest: none, to_guest: none, mtu: u16::MAX }
    }

    fn set_active(&mut self, _active: bool) -> io::Result<()> {
        Ok(())
    }

    #[inline]
    fn forward(&mut self, frames: Frames<'_, '_>, room: &mut GuestRoom<'_, '_>) -> Transmitted {
        let (taken, bytes) = room.forward(frames);
        Transmitted { taken, bytes, ..Transmitted::default() }
    }

    /// Frames that nobody receives are lost, as on a wire whose other end is down.
    fn transmit(&mut self, frames: Frames<'_, '_>) -> Transmitted {
        let mut done = Transmitted { taken: frames.len(), ..Transmitted::default() };
        (0..frames.len()).for_each(|_| done.drops.add(DropCause::TxLinkDown));
        done
    }

    fn receive(&mut self, _room: &mut GuestRoom<'_, '_>) -> io::Result<Look> {
        Ok(Look::Drained)
    }

    fn has_frames(&self) -> bool {
        false
    }

    fn readiness(&self) -> Option<BorrowedFd<'_>> {
        None
    }
}
