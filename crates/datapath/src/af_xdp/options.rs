//! Options of the AF_XDP datapath.

use std::fmt;

/// How the XDP program runs.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum XdpMode {
    /// In the driver if it supports XDP, else in the network stack.
    #[default]
    Auto,
    /// In the driver, before a packet buffer is allocated.
    Native,
    /// In the network stack, which works with every driver.
    Generic,
}

impl fmt::Display for XdpMode {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Auto => "auto",
            Self::Native => "native",
            Self::Generic => "generic",
        })
    }
}

/// A feature that is chosen automatically, required, or unused.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Choice {
    /// Use it where it helps.
    #[default]
    Auto,
    /// Require it.
    On,
    /// Do not use it.
    Off,
}

impl Choice {
    /// The decision, with `fits` for [`Choice::Auto`].
    pub(super) const fn or(self, fits: bool) -> bool {
        match self {
            Self::Auto => fits,
            Self::On => true,
            Self::Off => false,
        }
    }
}

impl fmt::Display for Choice {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Auto => "auto",
            Self::On => "on",
            Self::Off => "off",
        })
    }
}

/// Owner of the memory that frames are sent from.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum UmemOwner {
    /// The daemon: frames are copied there from guest memory.
    #[default]
    Host,
    /// The guest: the kernel pins all of its memory. Received frames still arrive in the daemon's memory.
    Guest,
}

impl fmt::Display for UmemOwner {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Host => "host",
            Self::Guest => "guest",
        })
    }
}

/// Whether TCP segments or UDP datagrams of a flow that come together become one packet.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Gro {
    /// If the receiver takes such packets: the guest, or the kernel behind a tap.
    #[default]
    On,
    /// The receiver gets every frame by itself.
    Off,
}

impl fmt::Display for Gro {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::On => "on",
            Self::Off => "off",
        })
    }
}

/// How the sockets are set up.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Options {
    /// How the XDP program runs.
    pub mode: XdpMode,
    /// Whether the driver accesses UMEM directly (zero copy).
    pub zero_copy: Choice,
    /// Whether the kernel reports when it must be called. That saves calls on network cards. Virtual devices send
    /// within the call and need every one.
    pub need_wakeup: Choice,
    /// Whether the worker polls the driver, in place of interrupts; off by default.
    pub busy_poll: Choice,
    /// Owner of the memory that frames are sent from.
    pub umem: UmemOwner,
    /// Whether TCP segments for the guest are joined.
    pub gro: Gro,
    /// Whether the XDP program stamps each frame with its arrival time.
    pub stamps: bool,
}
