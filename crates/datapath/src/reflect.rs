//! Every frame goes back to the guest that sent it: the rings' own cost, without a wire.

use virtio_net::{Frames, GuestRoom, Offloads};

use crate::{Capabilities, Forward, Transmitted};

/// One queue that reflects: from the guest's transmit buffers to its receive buffers.
#[derive(Debug, Default)]
pub struct Reflect;

impl Reflect {
    /// What it can do.
    #[must_use]
    pub fn capabilities() -> Capabilities {
        // No offloads: a frame that comes back must be whole, whatever the guest takes.
        let none = Offloads::default();
        Capabilities { name: "reflect", from_guest: none, to_guest: none, mtu: u16::MAX }
    }
}

impl Forward for Reflect {
    #[inline]
    fn forward(&mut self, frames: Frames<'_, '_>, room: &mut GuestRoom<'_, '_>) -> Transmitted {
        let (taken, bytes) = room.forward(frames);
        Transmitted { taken, bytes, ..Transmitted::default() }
    }
}
