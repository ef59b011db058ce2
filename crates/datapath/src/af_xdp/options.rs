//! What may be chosen of an AF_XDP socket.

use std::fmt;

/// How the XDP program runs.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum XdpMode {
    /// In the driver where that can, else in the stack.
    #[default]
    Auto,
    /// In the driver, before there is a packet buffer.
    Native,
    /// In the network stack: works with every driver.
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

/// Something to have, not to have, or as it fits.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Choice {
    /// As it fits.
    #[default]
    Auto,
    /// Have it, or fail.
    On,
    /// Do without.
    Off,
}

impl Choice {
    /// What comes of it, where `fits` is what fits.
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

/// Whose memory frames are sent from.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum UmemOwner {
    /// Ours: frames are copied there from the guest's memory.
    #[default]
    Host,
    /// The guest's, all of which the kernel pins. Frames that are received are in ours.
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

/// Whether TCP segments of one flow that came together are merged into one packet for the guest.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Merging {
    /// Where the guest takes it.
    #[default]
    On,
    /// Every frame reaches the guest by itself.
    Off,
}

impl fmt::Display for Merging {
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
    /// Whether the driver works on UMEM itself.
    pub zero_copy: Choice,
    /// Whether the kernel says when it must be called. It pays on network cards; on virtual devices, which
    /// send within the call, it costs.
    pub need_wakeup: Choice,
    /// Whether the worker's looks drive the driver, in place of interrupts. Not unless it is asked for.
    pub busy_poll: Choice,
    /// Whose memory frames are sent from.
    pub umem: UmemOwner,
    /// Whether TCP segments for the guest are merged.
    pub merge: Merging,
    /// Whether the XDP program notes when each frame came.
    pub stamps: bool,
}
