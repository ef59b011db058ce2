//! The kinds of threads.

use std::fmt;

/// The datapath that a worker's thread serves.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Wire {
    /// None, as with `reflect`, `null` and a switch without an uplink.
    Nothing,
    /// A tap or macvtap, by `readv` and `writev`.
    Tap,
    /// A tap, by io_uring.
    Uring,
    /// AF_XDP sockets. The thread of [`Role::Interface`] opens them.
    AfXdp,
    /// AF_XDP sockets that send from guest memory (`umem=guest`). The worker itself opens new ones when the memory changes.
    AfXdpInPlace,
}

impl Wire {
    /// All of them.
    pub const ALL: [Self; 5] =
        [Self::Nothing, Self::Tap, Self::Uring, Self::AfXdp, Self::AfXdpInPlace];
}

/// A kind of thread.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Role {
    /// The first thread. It waits for the others, and removes the daemon's files at the end.
    Main,
    /// Moves a guest's frames.
    Worker(Wire),
    /// Talks to a guest's front end.
    Control,
    /// Closes a front end's descriptors, and waits for helper processes.
    Closer,
    /// Hands all guests to another daemon, or takes them from one.
    TakeOver,
    /// Answers on the control socket (`--control`).
    Operator,
    /// Watches the state of a macvtap; removes one that the daemon made.
    Link {
        /// The daemon made it.
        is_made: bool,
    },
    /// Finds a tap that was removed and made again.
    TapAgain,
    /// Follows an AF_XDP interface, and opens what is new on it.
    Interface,
    /// Waits for clients of the metrics, and answers them.
    Metrics,
    /// Writes a capture.
    Capture,
    /// Records what BPF programs measure.
    KernelStages,
    /// Copies the records of the daemon before to the recorder.
    Records,
    /// Tells the service manager how the daemon is.
    Manager,
    /// Reads `--config` again after SIGHUP.
    Reload,
    /// The process that starts helper processes, and the helpers.
    Helper,
}

impl Role {
    /// All of them.
    #[must_use]
    pub fn all() -> Vec<Self> {
        let workers = Wire::ALL.map(Self::Worker);
        let others = [
            Self::Main,
            Self::Control,
            Self::Closer,
            Self::TakeOver,
            Self::Operator,
            Self::Link { is_made: false },
            Self::Link { is_made: true },
            Self::TapAgain,
            Self::Interface,
            Self::Metrics,
            Self::Capture,
            Self::KernelStages,
            Self::Records,
            Self::Manager,
            Self::Reload,
            Self::Helper,
        ];
        workers.into_iter().chain(others).collect()
    }

    /// Its name in messages.
    #[must_use]
    pub const fn name(self) -> &'static str {
        match self {
            Self::Main => "main",
            Self::Worker(Wire::Nothing) => "worker",
            Self::Worker(Wire::Tap) => "worker of a tap",
            Self::Worker(Wire::Uring) => "worker of a tap with io_uring",
            Self::Worker(Wire::AfXdp) => "worker of AF_XDP sockets",
            Self::Worker(Wire::AfXdpInPlace) => "worker of AF_XDP sockets with umem=guest",
            Self::Control => "control",
            Self::Closer => "closer",
            Self::TakeOver => "take-over",
            Self::Operator => "operator",
            Self::Link { .. } => "link",
            Self::TapAgain => "tap",
            Self::Interface => "interface",
            Self::Metrics => "metrics",
            Self::Capture => "capture",
            Self::KernelStages => "kernel-stages",
            Self::Records => "records",
            Self::Manager => "manager",
            Self::Reload => "reload",
            Self::Helper => "helper",
        }
    }
}

impl fmt::Display for Role {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.name())
    }
}
