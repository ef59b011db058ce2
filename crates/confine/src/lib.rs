//! What the daemon's threads may still do when set-up is over: nothing that they do not need.
//!
//! The guest is hostile, and everything that it writes is read by the daemon. If it ever gets its own code to run here, that
//! code should find no privilege. So each thread gives up what it does not need before it serves anybody:
//!
//! - Each kind of thread is a [`Role`]. Its thread calls [`enter`] when its set-up is done. A thread that is started later
//!   begins with what its parent has left, and enters its own role ([`narrow`]).
//! - `capabilities`: which capabilities a role keeps. Most keep none.
//! - `namespaces`: empty ones, for roles that need nothing of the host by a name.
//! - `files`: which files a role reaches by their names.
//! - `calls`: which system calls a role makes; `filter`: what comes of it; `violation`: what happens at another one; `names`:
//!   their names.
//! - `user`: the user and the groups that the daemon runs as (`--user`).
//! - `policy`: what the operator asked for. Without a policy, as in unit tests, [`enter`] does nothing.
//!
//! The kernel has all of this for each thread, not for each process, and gives it to a thread's children. Nothing here can be
//! taken back.

mod calls;
mod capabilities;
mod files;
mod filter;
mod names;
mod namespaces;
mod policy;
mod role;
#[cfg(test)]
mod tries;
mod user;
mod violation;

pub use caps::Capability;
pub use files::{Places, directory_of};
pub use filter::{FilterError, Seccomp};
pub use namespaces::wait as wait_for_namespaces;
pub use policy::{Error, Policy, enter, narrow, start};
pub use role::{Role, Wire};
pub use user::{Account, AccountError, group, take_group, user};
