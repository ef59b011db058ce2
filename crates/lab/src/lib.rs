//! Guests, the outside host and the agent: what an experiment is built from.
//!
//! - [`agent`]: the end point that runs inside guests and on the far host.
//! - [`console`]: the host's end of a guest's shell.
//! - [`guest`]: a QEMU guest with a shell on its serial line.
//! - [`outside`]: a network namespace that plays the outside host, joined by a bridge.
//! - [`process`]: a child process with a log file, ended when its handle goes.

pub mod agent;
pub mod console;
pub mod guest;
pub mod outside;
pub mod process;

mod sys;

pub use rustix::process::Signal;
