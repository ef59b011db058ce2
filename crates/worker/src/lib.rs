//! The loop that joins rings, datapath and trace. Only this crate reads the clock.
//!
//! - [`mailbox`]: how the control plane starts and stops rings, and waits until the worker has done it.
//! - `worker`: the loop: commands, a turn for every queue pair, sleep.
//! - `idle`: what a worker does without work, and where it runs.
//! - `pair`: a queue pair and its datapath; `transmit` and `receive` are its two turns.
//! - `in_place`: frames that are sent from the guest's own memory; `torn`: guests whose memory is missing.
//! - `probes`: packets that carry a number of their own.
//! - [`panic`]: raises an alarm when a worker panics.
//! - `clock`: the time, and deadlines that are safe when it jumps.
//! - `wiring`: how the pairs are joined: each with a wire of its own, or by `fabric`, a switch, with one another;
//!   `forward`: from ring to ring.
//! - [`custody`]: descriptors from front ends; `alarm`: a timer that ends a call that blocks on one.
//! - `ring`: a ring in service; `trace`: the stamps of a burst.
//! - [`fault`]: delays planted in a stage, to prove that they show there, and planted panics.

mod alarm;
mod clock;
pub mod custody;
mod fabric;
pub mod fault;
mod forward;
mod idle;
mod in_place;
pub mod mailbox;
mod pair;
pub mod panic;
mod probes;
mod receive;
mod ring;
mod sys;
#[cfg(test)]
mod tests;
mod torn;
mod trace;
mod transmit;
mod wiring;
mod worker;

pub use custody::{Custody, Foreign, Hung};
pub use fabric::{Member, PAIRS_MAX as SWITCH_PAIRS_MAX};
pub use fault::{Crash, Delay};
pub use idle::{PollPolicy, Scheduling};
pub use mailbox::{Mailbox, RingStart, StartError, WorkerGone};
pub use panic::PanicAlarm;
pub use worker::{GuestOptions, Worker, WorkerOptions};
