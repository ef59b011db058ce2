//! What the daemon may do.

use confine::{Account, Seccomp};

use crate::args::{Args, OnSystemCall, Sandbox};

/// What the daemon may do: its user, and what it gives up.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Confinement {
    /// The user that it becomes.
    pub user: Option<Account>,
    /// The owner of its vhost-user sockets.
    pub socket_user: Option<String>,
    /// The group of its sockets and recorders.
    pub group: Option<String>,
    /// The mode of its sockets.
    pub mode: Option<u32>,
    /// Whether threads give up what they do not need.
    pub sandbox: Sandbox,
    /// What happens when a thread makes a system call that it does not need.
    pub seccomp: Seccomp,
}

impl Confinement {
    /// That of the daemon's own flags.
    pub fn of(args: &Args) -> Self {
        let seccomp = match args.seccomp {
            OnSystemCall::Kill => Seccomp::Kill,
            OnSystemCall::Log => Seccomp::Log,
            OnSystemCall::Off => Seccomp::Off,
        };
        // A group is of no use if it may not connect.
        let mode = args.socket_mode.or(args.socket_group.as_ref().map(|_| 0o660));
        let (user, group) = (args.user.clone(), args.socket_group.clone());
        let socket_user = args.socket_user.clone();
        Self { user, socket_user, group, mode, sandbox: args.sandbox, seccomp }
    }
}

impl Default for Confinement {
    fn default() -> Self {
        Self {
            user: None,
            socket_user: None,
            group: None,
            mode: None,
            sandbox: Sandbox::On,
            seccomp: Seccomp::Kill,
        }
    }
}
