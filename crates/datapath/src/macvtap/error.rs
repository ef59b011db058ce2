//! Why a macvtap cannot be used.

use std::io;
use std::os::fd::RawFd;

use super::Mode;

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
        /// The other process; 0 where it cannot be seen from here.
        process: i32,
    },
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
    /// It should be made and is there.
    #[error(
        "network interface '{name}' is there already; remove it: ip link del {name}; or leave out over= to \
         use it as it is"
    )]
    Exists {
        /// The interface's name.
        name: String,
    },
    /// What it should be made over is not there.
    #[error("no network interface '{lower}' to put macvtap '{name}' over")]
    NoLower {
        /// The interface's name.
        name: String,
        /// The one below.
        lower: String,
    },
    /// What it should be made over does not go along with it.
    #[error(
        "macvtap '{name}' cannot be put over '{lower}' in mode {mode}: '{lower}' is busy; it may be part of a \
         bridge, or have a macvtap in mode passthru, which must be alone"
    )]
    LowerBusy {
        /// The interface's name.
        name: String,
        /// The one below.
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
        /// What was refused.
        step: &'static str,
    },
    /// What was handed over is no macvtap.
    #[error("descriptor {fd} is {found}; expected an open macvtap (/dev/tapN)")]
    Descriptor {
        /// Its number.
        fd: RawFd,
        /// What it is.
        found: String,
    },
    /// Anything else that the system answered.
    #[error("macvtap '{name}': {step} failed: {source}")]
    System {
        /// The interface's name.
        name: String,
        /// What was tried.
        step: &'static str,
        /// What the system answered.
        source: io::Error,
    },
}
