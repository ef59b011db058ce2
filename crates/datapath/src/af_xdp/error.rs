//! Why an interface cannot be used, and what to do.

use std::io;

use super::device::Device;
use super::{Choice, Options};

/// Why an interface cannot be used.
#[derive(Debug, thiserror::Error)]
pub enum AfXdpError {
    /// There is no such interface.
    #[error("no network interface '{0}'; ip -br link shows those that there are")]
    Missing(String),
    /// More queue pairs than queues.
    #[error(
        "'{name}' has {queues} receive queue(s), but {pairs} queue pairs were asked for; give it more with: ethtool -L \
         {name} combined {pairs}, or use --queue-pairs {queues}"
    )]
    TooFewQueues {
        /// The interface's name.
        name: String,
        /// How many queues it has.
        queues: u32,
        /// How many queue pairs were asked for.
        pairs: usize,
    },
    /// Another program has it.
    #[error(
        "'{name}' is in use: {what}; end that program, or take it off with: ip link set dev {name} xdp off"
    )]
    Busy {
        /// The interface's name.
        name: String,
        /// What is there.
        what: &'static str,
    },
    /// No permission.
    #[error(
        "no permission for {step} on '{name}': AF_XDP needs root, or CAP_NET_ADMIN, CAP_NET_RAW and CAP_BPF"
    )]
    Permission {
        /// The interface's name.
        name: String,
        /// What was tried.
        step: &'static str,
    },
    /// Too little locked memory.
    #[error(
        "the memory of '{name}' could not be locked: expected a limit of at least 16 MiB for each queue, or CAP_IPC_LOCK; raise it \
         with: ulimit -l unlimited"
    )]
    LockedMemory {
        /// The interface's name.
        name: String,
    },
    /// The guest's memory cannot be sent from.
    #[error(
        "frames cannot be sent from the guest's own memory on '{name}': its {mib} MiB could not be made UMEM ({source}); \
         expected memory of files with pages of 4096 bytes, and a limit of locked memory (ulimit -l) that it fits in, or \
         CAP_IPC_LOCK; else use umem=host"
    )]
    GuestMemory {
        /// The interface's name.
        name: String,
        /// How much memory the guest has.
        mib: u64,
        /// What the system answered.
        source: io::Error,
    },
    /// The driver cannot do what was asked for.
    #[error(
        "the driver of '{name}' has no {what}; leave the choice to auto, or see: ringscope doctor --iface {name}"
    )]
    Unsupported {
        /// The interface's name.
        name: String,
        /// What it does not have.
        what: String,
    },
    /// Anything else that the system answered.
    #[error("AF_XDP on '{name}': {step} failed: {source}")]
    System {
        /// The interface's name.
        name: String,
        /// What was tried.
        step: &'static str,
        /// What the system answered.
        source: io::Error,
    },
}

/// Names the reason behind what the system answered to `step`.
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
