//! Joins rings, datapaths and the trace. Only this crate reads the clock.
//!
//! - `worker`: a worker's thread: started, spoken to, ended; `options`: what it is started with.
//! - `turn`: its loop: commands, a turn for every queue pair, rest.
//! - [`mailbox`]: how the control plane starts and stops rings, and waits until the worker has done it; `control`: how
//!   the worker does it.
//! - [`operator`]: what the operator asks of a running worker; `standing`: how the worker answers.
//! - `pairs`: the queue pairs of a worker. Each has a `transmitter` and a `receiver`; what both have is in `half`, the ring
//!   itself in `ring`.
//! - `topology`: where frames go to and come from: a wire, the same guest, or a [`switch`].
//! - `timeline`: the boundaries that a burst has crossed; `tracer`: what is recorded; `probes`: packets with a sequence
//!   number, and frames with a counter; `probe_targets`: which.
//! - `view`: what the turns of rings need of their worker.
//! - `idle`: what a worker does without work; `scheduling`: where it runs.
//! - `clock`: the time, and deadlines that are safe when it jumps.
//! - [`custody`]: descriptors from front ends; `alarm`: a timer that ends a call that blocks on one.
//! - [`fault`]: delays planted in a stage, to prove that they show there, and planted panics.
//! - [`heritage`]: what a ring leaves to another daemon that goes on with it.
//! - [`limit`]: how many bytes and packets a guest may move in a second.
//! - [`panic`]: raises an alarm when a worker panics.

mod alarm;
mod clock;
mod control;
pub mod custody;
pub mod fault;
mod half;
pub mod heritage;
mod idle;
pub mod limit;
pub mod mailbox;
pub mod operator;
mod options;
mod pairs;
pub mod panic;
mod probe_targets;
mod probes;
mod receiver;
mod ring;
mod scheduling;
mod standing;
mod sys;
#[cfg(test)]
mod tests;
mod timeline;
mod topology;
mod tracer;
mod transmitter;
mod turn;
mod view;
mod worker;

pub use confine::Wire;
pub use custody::{Custody, Foreign, Hung};
pub use fault::{Crash, Delay};
pub use heritage::{Heritage, UplinkHeritage};
pub use idle::PollPolicy;
pub use limit::{Bucket, Limit};
pub use mailbox::{Announced, Mailbox, Released, RingStart, StartError, WorkerGone};
pub use operator::{RingStanding, Setting, Standing, StartedRing};
pub use options::{GuestOptions, WorkerOptions};
pub use panic::PanicAlarm;
pub use probe_targets::ProbeTargets;
pub use scheduling::Scheduling;
pub use topology::switch;
pub use topology::switch::{Member, PAIRS_MAX as SWITCH_PAIRS_MAX};
pub use transmitter::announce::{ANNOUNCEMENT_EVERY, ANNOUNCEMENTS_AT_ONCE};
pub use worker::Worker;
