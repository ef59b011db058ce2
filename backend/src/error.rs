//! Why the daemon cannot run.

use std::io;
use std::path::PathBuf;

use burst_trace::RecorderError;
use confine::AccountError;
use datapath::{AfXdpError, CaptureError, MacvtapError, TapError};
use metrics::MetricsError;
use vhost_control::{ServeError, SocketError};

use crate::control::ControlError;
use crate::kernel::FollowError;
use crate::part::Part;
use crate::takeover::take::TakeOverError;

/// Why the daemon cannot run.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// The tap.
    #[error(transparent)]
    Tap(#[from] TapError),
    /// The macvtap.
    #[error(transparent)]
    Macvtap(#[from] MacvtapError),
    /// The interface of AF_XDP sockets.
    #[error(transparent)]
    AfXdp(#[from] AfXdpError),
    /// The socket.
    #[error(transparent)]
    Socket(#[from] SocketError),
    /// The capture.
    #[error(transparent)]
    Capture(#[from] CaptureError),
    /// The recorder.
    #[error(transparent)]
    Recorder(#[from] RecorderError),
    /// Metrics.
    #[error(transparent)]
    Metrics(#[from] MetricsError),
    /// The control socket.
    #[error(transparent)]
    Control(#[from] ControlError),
    /// The kernel's programs.
    #[error(transparent)]
    Kernel(#[from] kernel_stages::Error),
    /// The thread that records kernel stages.
    #[error(transparent)]
    Follow(#[from] FollowError),
    /// A worker.
    #[error(
        "worker {index} cannot run{}: {source}",
        if source.kind() == io::ErrorKind::PermissionDenied {
            " with --sched (it needs root or CAP_SYS_NICE)"
        } else {
            " (do all CPUs of --cpus exist?)"
        }
    )]
    Worker {
        /// Its number.
        index: usize,
        /// What the system answered.
        source: io::Error,
    },
    /// An error of one of several guests.
    #[error("guest '{name}': {source}")]
    Guest {
        /// Its name.
        name: String,
        /// Its error.
        source: Box<Error>,
    },
    /// A worker, or a thread that serves a guest, panicked.
    #[error(
        "a worker or a guest's thread panicked (see the message above), so the daemon ends; please report this, and \
         start the daemon again"
    )]
    Fault,
    /// A process of a supervisor.
    #[error("the process of '{part}' cannot be started: {source}")]
    Start {
        /// What it is for.
        part: Part,
        /// What the system answered.
        source: io::Error,
    },
    /// One that did not come up.
    #[error(
        "the process of '{part}' {ended} before it served anybody, so no guest is served; see its message above"
    )]
    NotUp {
        /// What it is for.
        part: Part,
        /// How it ended.
        ended: String,
    },
    /// Sockets of the service manager.
    #[error(
        "--isolate process cannot use sockets that the service manager made; let the daemon make them"
    )]
    Activated,
    /// Signals.
    #[error("signals cannot be handled: {0}")]
    Signals(io::Error),
    /// The directory of recorders and sockets.
    #[error("cannot make the directory {path}: {source}; choose another --run-dir")]
    RunDir {
        /// The directory.
        path: PathBuf,
        /// What the system answered.
        source: io::Error,
    },
    /// A larger MTU than the interface's.
    #[error(
        "expected --mtu of at most {found}, the MTU of {datapath}, found {asked}; raise the interface's, or lower --mtu"
    )]
    Mtu {
        /// The datapath.
        datapath: String,
        /// `--mtu`, bytes.
        asked: u16,
        /// The interface's, bytes.
        found: u16,
    },
    /// Helper processes.
    #[error("the process that starts helper processes cannot be started: {0}")]
    Helpers(io::Error),
    /// `--socket-user`.
    #[error("cannot make sockets of --socket-user {user}: {source}")]
    SocketUser {
        /// The user.
        user: String,
        /// Why.
        source: AccountError,
    },
    /// `--socket-group`.
    #[error("cannot make files of --socket-group {group}: {source}")]
    Group {
        /// The group.
        group: String,
        /// Why.
        source: AccountError,
    },
    /// The sandbox.
    #[error("the daemon cannot be confined: {0}; --seccomp off or --sandbox none run without")]
    Confine(confine::Error),
    /// `--user`.
    #[error("cannot run as --user {user}: {source}")]
    User {
        /// The user.
        user: String,
        /// Why.
        source: AccountError,
    },
    /// There is no take-over.
    #[error(transparent)]
    TakeOver(#[from] TakeOverError),
    /// The file of records that move with a guest.
    #[error("cannot use {path} for --device-state: {source}")]
    DeviceState {
        /// The file.
        path: PathBuf,
        /// What the system answered.
        source: io::Error,
    },
    /// This process has no descriptor left.
    #[error("no file descriptors are left: {0}; raise the limit of open files (RLIMIT_NOFILE)")]
    Descriptors(io::Error),
    /// Serving ended.
    #[error(transparent)]
    Serve(#[from] ServeError),
}

impl Error {
    /// Whether it is a fault of the daemon itself.
    pub const fn is_fault(&self) -> bool {
        matches!(self, Self::Fault)
    }
}
