//! The capabilities of a role.

use std::sync::OnceLock;

use caps::errors::CapsError;
use caps::{CapSet, Capability, CapsHashSet};

use crate::role::{Role, Wire};

impl Role {
    /// The capabilities that a thread keeps until its end, each with the reason.
    #[must_use]
    pub const fn keeps(self) -> &'static [(Capability, &'static str)] {
        match self {
            // An interface that was removed and made again gets the XDP program and sockets as the first one did, and what was
            // changed on an interface is put back at the end.
            Self::Interface => &[
                (
                    Capability::CAP_BPF,
                    "to load the XDP program again when the interface comes back",
                ),
                (Capability::CAP_PERFMON, "because the program needs it to pass the verifier"),
                (
                    Capability::CAP_NET_ADMIN,
                    "to attach that program, and to put settings of the interface back at the end",
                ),
                (Capability::CAP_NET_RAW, "to open sockets for new queues of the interface"),
                (Capability::CAP_IPC_LOCK, "to pin the memory of those sockets"),
            ],
            Self::Worker(Wire::AfXdpInPlace) => &[
                (Capability::CAP_NET_RAW, "to open a socket when the guest's memory changes"),
                (Capability::CAP_IPC_LOCK, "to pin that memory"),
            ],
            Self::Link { is_made: true } => {
                &[(Capability::CAP_NET_ADMIN, "to remove the macvtap that the daemon made")]
            }
            Self::Helper => &[(
                Capability::CAP_SYS_PTRACE,
                "to see how a front end of another user, or with capabilities, maps its guest's memory",
            )],
            _ => &[],
        }
    }
}

/// The capabilities that this kernel knows, as they were found at the first call.
pub fn supported() -> &'static CapsHashSet {
    static FOUND: OnceLock<CapsHashSet> = OnceLock::new();
    FOUND.get_or_init(|| caps::runtime::procfs_all_supported(None).unwrap_or_else(|_| caps::all()))
}

/// Leaves the calling thread with what `role` keeps, as far as it has it, and with nothing else. Nothing that it executes can
/// get more.
pub fn drop_all_but(role: Role) -> Result<(), CapsError> {
    let kept: CapsHashSet = role.keeps().iter().map(|(capability, _)| *capability).collect();
    let has = caps::read(None, CapSet::Permitted)?;
    if has.contains(&Capability::CAP_SETPCAP) {
        // Otherwise a program that is executed could get them. A helper is executed, and gets what is kept.
        for capability in supported().difference(&kept).copied() {
            caps::drop(None, CapSet::Bounding, capability)?;
        }
    }
    caps::clear(None, CapSet::Ambient)?;
    let left: CapsHashSet = kept.intersection(&has).copied().collect();
    // In this order: a set is always part of the next.
    caps::clear(None, CapSet::Inheritable)?;
    caps::set(None, CapSet::Effective, &left)?;
    caps::set(None, CapSet::Permitted, &left)
}
