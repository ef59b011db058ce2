//! Why a macvtap cannot be used.

use std::io;
use std::os::fd::RawFd;

use super::Mode;
use crate::tap::TapError;

/// Why a macvtap cannot be used.
#[derive(Debug, thiserror::Error)]
pub enum MacvtapError {
    /// Another daemon serves the interface.
    #[error(
        "macvtap '{name}' is served by process {process} already, and two would share its flows; end that one, or \
         choose another macvtap"
    )]
    Served {
        /// The interface's name.
        name: String,
        /// The other process; 0 if it is in another PID namespace.
        process: u32,
    },
    /// A queue that another daemon handed over.
    #[error(transparent)]
    Shared(TapError),
    /// There is no such interface.
    #[error(
        "no network interface '{name}'; make it first: ip link add link eth0 name {name} type macvtap mode \
         bridge && ip link set {name} up; or have it made: macvtap:ifname={name},over=eth0"
    )]
    Missing {
        /// The interface's name.
        name: String,
    },
    /// The interface is of another kind.
    #[error(
        "'{name}' is a network interface but no macvtap; expected one made with: ip link add link \
             eth0 name {name} type macvtap"
    )]
    NotAMacvtap {
        /// The interface's name.
        name: String,
    },
    /// The interface should be made, but exists already.
    #[error(
        "network interface '{name}' is there already; remove it: ip link del {name}; or leave out over= to \
         use it as it is"
    )]
    Exists {
        /// The interface's name.
        name: String,
    },
    /// The lower interface does not exist.
    #[error("no network interface '{lower}' to put macvtap '{name}' over")]
    NoLower {
        /// The interface's name.
        name: String,
        /// The lower interface's name.
        lower: String,
    },
    /// The lower interface refuses another macvtap.
    #[error(
        "macvtap '{name}' cannot be put over '{lower}' in mode {mode}: '{lower}' is busy; it may be part of a \
         bridge, or have a macvtap in mode passthru, which must be alone"
    )]
    LowerBusy {
        /// The interface's name.
        name: String,
        /// The lower interface's name.
        lower: String,
        /// The mode.
        mode: Mode,
    },
    /// No permission.
    #[error(
        "no permission to {step} macvtap '{name}'; run as root or with CAP_NET_ADMIN and CAP_MKNOD, or have \
             it opened by somebody else: macvtap:fd=N"
    )]
    Permission {
        /// The interface's name.
        name: String,
        /// The step that was refused.
        step: &'static str,
    },
    /// The descriptor handed over is not a macvtap.
    #[error("descriptor {fd} is {found}; expected an open macvtap (/dev/tapN)")]
    Descriptor {
        /// The descriptor's number.
        fd: RawFd,
        /// What was found.
        found: String,
    },
    /// Any other error of the system.
    #[error("macvtap '{name}': {step} failed: {source}")]
    System {
        /// The interface's name.
        name: String,
        /// The step that failed.
        step: &'static str,
        /// The error of the system.
        source: io::Error,
    },
}
