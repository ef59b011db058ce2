//! What an experiment is built from: guests, the outside host, and processes with a log.
//!
//! - [`guest`]: a guest in QEMU or User Mode Linux, with a shell on its console.
//! - [`outside`]: a network namespace that plays the outside host, joined to guests by a bridge or a wire.
//! - [`process`]: a child process with a log file, killed when its handle is dropped.

pub mod guest;
pub mod outside;
pub mod process;

pub use rustix::process::Signal;
