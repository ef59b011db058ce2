//! A datapath around another one: the interface is that of the one inside.

use std::io;
use std::os::fd::BorrowedFd;

use virtio_net::Negotiated;

use crate::{Capabilities, Interface, KernelFacts};

/// A datapath with another one inside, whose [`Interface`] it passes on.
pub trait Wrapper: Send + 'static {
    /// The datapath inside.
    type Inner: Interface;

    /// The datapath inside.
    fn inner(&self) -> &Self::Inner;

    /// The datapath inside.
    fn inner_mut(&mut self) -> &mut Self::Inner;
}

impl<W: Wrapper> Interface for W {
    fn capabilities(&self) -> Capabilities {
        self.inner().capabilities()
    }

    fn configure(&mut self, negotiated: Negotiated) -> io::Result<()> {
        self.inner_mut().configure(negotiated)
    }

    fn set_active(&mut self, active: bool) -> io::Result<()> {
        self.inner_mut().set_active(active)
    }

    fn has_frames(&self) -> bool {
        self.inner().has_frames()
    }

    fn part(&mut self) -> Vec<Vec<u8>> {
        self.inner_mut().part()
    }

    #[inline]
    fn readiness(&self) -> Option<BorrowedFd<'_>> {
        self.inner().readiness()
    }

    #[inline]
    fn kernel_facts(&mut self) -> Option<&mut impl KernelFacts> {
        self.inner_mut().kernel_facts()
    }
}
