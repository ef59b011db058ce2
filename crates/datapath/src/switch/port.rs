//! A guest's end of a switch.

use std::io;
use std::os::fd::BorrowedFd;

use burst_trace::DropCause;
use virtio_net::{Frames, GuestRoom, Offloads};

use crate::{Capabilities, Datapath, Look, Transmitted};

/// A guest's end of the switch, as its queue pairs have it. The worker carries its frames.
#[derive(Debug)]
pub struct Port {
    capabilities: Capabilities,
}

impl Port {
    /// One queue of a port.
    #[must_use]
    pub const fn new(capabilities: Capabilities) -> Self {
        Self { capabilities }
    }
}

/// What the ports of a switch can do, given what its uplink can. What one guest leaves to the device is passed on to
/// the next, or done with the copy; an uplink need not be able to.
#[must_use]
pub fn capabilities(uplink: Option<Capabilities>) -> Capabilities {
    // Fragments of UDP are cut by nobody any more (Linux 4.14).
    let all = Offloads { ufo: false, ..Offloads::ALL };
    Capabilities {
        name: "switch",
        from_guest: uplink.map_or(all, |uplink| uplink.from_guest.and(all)),
        to_guest: all,
        mtu: uplink.map_or(u16::MAX, |uplink| uplink.mtu),
    }
}

impl Datapath for Port {
    const FORWARDS: bool = true;

    fn capabilities(&self) -> Capabilities {
        self.capabilities
    }

    fn set_active(&mut self, _active: bool) -> io::Result<()> {
        Ok(())
    }

    /// Never called: frames go from ring to ring.
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
