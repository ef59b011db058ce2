//! Errors with an interface, and what the user can do about them.

use std::io;

use host_links::holder::{Holder, holders};
use host_links::link::{Attached, Link};

use super::device::Device;
use super::socket::SINGLE_BUFFER_MTU;
use super::{Choice, Options, XdpMode};

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
    #[error("'{name}' is in use: {what}")]
    Busy {
        /// The interface's name.
        name: String,
        /// What uses it, and how to end that.
        what: String,
    },
    /// The interface is a bond. The kernel runs the program for frames of its members, but a socket gets frames of the
    /// interface that it is bound to only (`xsk_rcv_check` of `net/xdp/xsk.c`).
    #[error(
        "'{name}' is a bond, and AF_XDP sockets on a bond receive nothing in native mode; take one of its members \
         ({members}) out of it (ip link set dev MEMBER nomaster) and use ifname=MEMBER"
    )]
    Bond {
        /// The interface's name.
        name: String,
        /// The names of its members.
        members: String,
    },
    /// The interface carries something other than Ethernet frames.
    #[error(
        "'{0}' carries no Ethernet frames, which a guest's network card sends and receives; expected an Ethernet interface, \
         such as a card, a veth or a bridge"
    )]
    NotEthernet(String),
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
    /// The kernel or the driver has no frames of several buffers, and the MTU needs them.
    #[error(
        "AF_XDP on '{name}': expected an MTU of at most {max}, found {mtu}: longer frames have several buffers, which needs \
         Linux 6.6 or newer and a driver that supports it; set a smaller MTU with: ip link set dev {name} mtu {max}",
        max = SINGLE_BUFFER_MTU
    )]
    Mtu {
        /// The interface's name.
        name: String,
        /// Its MTU, bytes.
        mtu: u16,
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
            let what = user_of(&name);
            AfXdpError::Busy { name, what }
        }
        Some(libc::EPERM | libc::EACCES) => AfXdpError::Permission { name, step },
        Some(libc::EINVAL) if device.mtu > SINGLE_BUFFER_MTU => {
            AfXdpError::Mtu { name, mtu: device.mtu }
        }
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

/// What makes the kernel refuse the interface `name`, and how to end that.
fn user_of(name: &str) -> String {
    let attached = Link::named(name).ok().flatten().and_then(|link| link.xdp);
    let holders = attached.and_then(|it| it.id).map(holders).unwrap_or_default();
    describe(name, attached, &holders, std::process::id())
}

/// `attached`: the program on the interface. `holders`: the processes that hold it; process `own` among them if the
/// program is ours.
fn describe(name: &str, attached: Option<Attached>, holders: &[Holder], own: u32) -> String {
    let is_ours = holders.iter().any(|holder| holder.process == own);
    let Some(attached) = attached.filter(|_| !is_ours) else {
        return "another AF_XDP socket is bound to one of its queues; end its process, which is shown by: ss --xdp -p"
            .into();
    };
    let number = attached.id.map(|id| format!(" (number {id})")).unwrap_or_default();
    let program = format!("an XDP program{number} is attached");
    match holders {
        [] => format!(
            "{program}, and no process that can be seen here holds it; take it off with: ip link set dev {name} {}; \
             if the kernel refuses that, a file below /sys/fs/bpf holds the program: remove that file",
            attached.mode.off()
        ),
        [Holder { process, name: holder }, ..] => format!(
            "{program} by process {process} ({holder}), and leaves with it; end that process with: kill {process}"
        ),
    }
}

/// Refuses an interface that carries no Ethernet frames, and a bond, unless the program runs in the network stack: there
/// it runs once more for the bond.
///
/// # Errors
/// [`AfXdpError::NotEthernet`], [`AfXdpError::Bond`].
pub(super) fn refuse_unfit(device: &Device, mode: XdpMode) -> Result<(), AfXdpError> {
    if !device.is_ethernet {
        return Err(AfXdpError::NotEthernet(device.name.clone()));
    }
    match &device.bonded {
        Some(members) if mode != XdpMode::Generic => Err(AfXdpError::Bond {
            name: device.name.clone(),
            members: if members.is_empty() { "it has none yet".into() } else { members.join(", ") },
        }),
        _ => Ok(()),
    }
}

#[cfg(test)]
mod tests {
    use host_links::link::XdpAttachment;

    use super::*;

    #[test]
    fn who_uses_the_interface_is_named_with_what_ends_that() {
        let attached = Some(Attached { mode: XdpAttachment::Generic, id: Some(7) });
        let holder = |process| Holder { process, name: "xdp-filter".into() };
        for (attached, holders, expected) in [
            (attached, vec![holder(12)], "by process 12 (xdp-filter), and leaves with it; end"),
            (attached, vec![], "take it off with: ip link set dev eth0 xdpgeneric off; if"),
            (attached, vec![holder(9)], "ss --xdp -p"),
            (None, vec![], "ss --xdp -p"),
        ] {
            let found = describe("eth0", attached, &holders, 9);
            assert!(found.contains(expected), "{found}");
        }
    }

    #[test]
    fn an_mtu_that_the_kernel_refuses_is_named_with_the_largest_that_it_takes() {
        let refused = |mtu| {
            let device = Device { mtu, name: "eth0".into(), ..Device::find("lo").unwrap() };
            let source = io::Error::from_raw_os_error(libc::EINVAL);
            explain(&device, &Options::default(), "opening a socket", source).to_string()
        };
        let large = refused(SINGLE_BUFFER_MTU + 1);
        assert!(large.contains("found 3507") && large.ends_with("dev eth0 mtu 3506"), "{large}");
        let small = refused(SINGLE_BUFFER_MTU);
        assert!(small.contains("opening a socket failed: Invalid argument"), "{small}");
    }

    #[test]
    fn a_bond_is_refused_with_its_members_and_what_is_no_ethernet_too() {
        let device = Device {
            bonded: Some(vec!["eth0".into(), "eth1".into()]),
            ..Device::find("lo").unwrap()
        };
        for mode in [XdpMode::Auto, XdpMode::Native] {
            let error = refuse_unfit(&device, mode).unwrap_err().to_string();
            assert!(error.contains("members (eth0, eth1)"), "{error}");
        }
        assert!(refuse_unfit(&device, XdpMode::Generic).is_ok());
        let tun = Device { is_ethernet: false, ..Device::find("lo").unwrap() };
        assert!(matches!(refuse_unfit(&tun, XdpMode::Auto), Err(AfXdpError::NotEthernet(_))));
        assert!(refuse_unfit(&Device::find("lo").unwrap(), XdpMode::Auto).is_ok());
    }
}
