//! Why a tap cannot be used.

use std::io;
use std::os::fd::RawFd;

/// Why a tap cannot be used.
#[derive(Debug, thiserror::Error)]
pub enum TapError {
    /// There is no such interface.
    #[error(
        "no network interface '{name}'; make it first: ip tuntap add dev {name} mode tap{} vnet_hdr",
        if *.multi_queue { " multi_queue" } else { "" }
    )]
    Missing {
        /// The interface's name.
        name: String,
        /// Whether several queues were asked for.
        multi_queue: bool,
    },
    /// The interface is of another kind.
    #[error("'{name}' is a network interface but no tap; expected one made with: ip tuntap add")]
    NotATap {
        /// The interface's name.
        name: String,
    },
    /// The interface has one queue only.
    #[error(
        "tap '{name}' has one queue, but {queues} queue pairs were asked for; make it with: ip tuntap \
         add dev {name} mode tap multi_queue vnet_hdr, or use --queue-pairs 1"
    )]
    OneQueue {
        /// The interface's name.
        name: String,
        /// How many queues were asked for.
        queues: usize,
    },
    /// Another process has the interface.
    #[error("tap '{name}' is in use by another process; end that one, or choose another tap")]
    Busy {
        /// The interface's name.
        name: String,
    },
    /// Another daemon serves the interface.
    #[error(
        "tap '{name}' is served by process {process} already, and two would share its flows; end that one, or choose \
         another tap"
    )]
    Served {
        /// The interface's name.
        name: String,
        /// The other process; 0 where it cannot be seen from here.
        process: u32,
    },
    /// A queue that another daemon handed over.
    #[error(
        "the daemon that is to be taken over from has a queue that is {found}; start it and this one with the same --datapath"
    )]
    Shared {
        /// What it is.
        found: String,
    },
    /// No permission.
    #[error(
        "no permission to use {what}; run as root or with CAP_NET_ADMIN, or make the tap yours: ip \
         tuntap add dev {name} mode tap user $USER vnet_hdr"
    )]
    Permission {
        /// The interface's name.
        name: String,
        /// What was refused.
        what: String,
    },
    /// The kernel does not know `IFF_NAPI`.
    #[error("this kernel's taps have no napi (Linux 4.15 and newer do); leave out napi=on")]
    NoNapi,
    /// The kernel gives no `io_uring`.
    #[error("this system gives no io_uring ({0}; see kernel.io_uring_disabled); use engine=readv")]
    NoUring(io::Error),
    /// What was handed over is no tap.
    #[error(
        "descriptor {fd} is {found}; expected an open tap, attached to its interface, with IFF_NO_PI and IFF_VNET_HDR"
    )]
    Descriptor {
        /// Its number.
        fd: RawFd,
        /// What it is.
        found: String,
    },
    /// Anything else that the system answered.
    #[error("tap '{name}': {step} failed: {source}")]
    System {
        /// The interface's name.
        name: String,
        /// What was tried.
        step: &'static str,
        /// What the system answered.
        source: io::Error,
    },
}
