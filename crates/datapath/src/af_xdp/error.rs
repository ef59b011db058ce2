//! Errors with an interface, and what the user can do about them.

use std::io;

use super::device::Device;
use super::{Choice, Options};

/// Why AF_XDP cannot use an interface.
#[derive(Debug, thiserror::Error)]
pub enum AfXdpError {
    /// There is no such interface.
    #[error("no network interface '{0}'; ip -br link shows those that there are")]
    Missing(String),
    /// The interface has fewer queues than the queue pairs asked for.
    #[error(
        "'{name}' has {queues} receive queue(s), but {pairs} queue pairs were asked for; give it more with: ethtool -L \
         {name} combined {pairs}, or use --queue-pairs {queues}"
    )]
    TooFewQueues {
        /// The interface's name.
        name: String,
        /// Number of its receive queues.
        queues: u32,
        /// Number of queue pairs asked for.
        pairs: usize,
    },
    /// Another program uses the interface.
    #[error(
        "'{name}' is in use: {what}; end that program, or take it off with: ip link set dev {name} xdp off"
    )]
    Busy {
        /// The interface's name.
        name: String,
        /// What uses it.
        what: &'static str,
    },
    /// The process lacks a permission.
    #[error(
        "no permission for {step} on '{name}': AF_XDP needs root, or CAP_NET_ADMIN, CAP_NET_RAW and CAP_BPF"
    )]
    Permission {
        /// The interface's name.
        name: String,
        /// The step that failed.
        step: &'static str,
    },
    /// The limit of locked memory is too low.
    #[error(
        "the memory of '{name}' could not be locked: expected a limit of at least 16 MiB for each queue, or CAP_IPC_LOCK; raise it \
         with: ulimit -l unlimited"
    )]
    LockedMemory {
        /// The interface's name.
        name: String,
    },
    /// Frames cannot be sent from the guest's memory: it could not be made UMEM.
    #[error(
        "frames cannot be sent from the guest's own memory on '{name}': its {mib} MiB could not be made UMEM ({source}); \
         expected memory of files with pages of 4096 bytes, and a limit of locked memory (ulimit -l) that it fits in, or \
         CAP_IPC_LOCK; else use umem=host"
    )]
    GuestMemory {
        /// The interface's name.
        name: String,
        /// Size of the guest's memory in MiB.
        mib: u64,
        /// The system's error.
        source: io::Error,
    },
    /// The driver does not support what was asked for.
    #[error(
        "the driver of '{name}' has no {what}; leave the choice to auto, or see: ringscope doctor --iface {name}"
    )]
    Unsupported {
        /// The interface's name.
        name: String,
        /// The missing feature.
        what: String,
    },
    /// Any other error of the system.
    #[error("AF_XDP on '{name}': {step} failed: {source}")]
    System {
        /// The interface's name.
        name: String,
        /// The step that failed.
        step: &'static str,
        /// The system's error.
        source: io::Error,
    },
}

/// Turns the system's error for `step` into one that gives its reason.
pub(super) fn explain(
    device: &Device,
    options: &Options,
    step: &'static str,
    source: io::Error,
) -> AfXdpError {
    let name = device.name.clone();
    match source.raw_os_error() {
        Some(libc::EBUSY | libc::EEXIST) => {
            let what = "another XDP program or AF_XDP socket is on it";
            AfXdpError::Busy { name, what }
        }
        Some(libc::EPERM | libc::EACCES) => AfXdpError::Permission { name, step },
        Some(libc::ENOBUFS | libc::ENOMEM) => AfXdpError::LockedMemory { name },
        Some(libc::EOPNOTSUPP) => {
            let what = if options.zero_copy == Choice::On {
                "zero copy for AF_XDP".to_owned()
            } else {
                format!("{} XDP", options.mode)
            };
            AfXdpError::Unsupported { name, what }
        }
        _ if source.kind() == io::ErrorKind::PermissionDenied => {
            AfXdpError::Permission { name, step }
        }
        _ => AfXdpError::System { name, step, source },
    }
}
