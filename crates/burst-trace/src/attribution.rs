//! Which times in the host kernel belong to which burst.
//!
//! Another writer than the worker stores kernel spans, so they come before or after their bursts, and no span names its
//! burst. This module alone decides, by time:
//!
//! - `wakeup` belongs to the first bursts that began after it on the woken worker: all that share that first boundary. A
//!   burst found by polling has none, and one whose record has a wake-up keeps that one.
//! - `host-rx` belongs to the burst that was placed first after the frame reached the datapath.
//! - `host-tx` belongs to the burst during whose `egress` the kernel took the frame.
//! - `inject` belongs to the burst during whose `signal` the front end was woken up.
//!
//! An interruption belongs to a stage as far as it lies between its boundaries, on the burst's worker.
//!
//! All but `wakeup` are known for a guest, not for a queue. With several queue pairs they belong to no burst.
//!
//! [`Wakeups`] finds the wake-ups of all bursts as they come; [`Chosen`] finds all spans of a few bursts, in bounded memory;
//! [`Interruptions`] tells what fell into a time.

mod chosen;
mod interruptions;
mod wakeups;

use crate::record::{BurstTimes, KernelSpan};
use crate::stage::{Direction, KernelStage, Stage};

pub use chosen::{BurstSpan, Chosen};
pub use interruptions::Interruptions;
pub use wakeups::{Wakeup, Wakeups};

/// Whether the burst's wake-up has to be found among the kernel spans.
const fn lacks_wakeup(burst: &BurstTimes) -> bool {
    !burst.is_polled && burst.wakeup.is_none()
}

/// Whether the latest wake-up of a worker before a burst, at `woken`, is for that burst. `before` is the first boundary of
/// the worker's burst before it: if that came after the wake-up, the wake-up was for that one.
const fn is_for(woken: u64, before: Option<u64>) -> bool {
    match before {
        Some(before) => before < woken,
        None => true,
    }
}

/// The instant that decides to which burst a span belongs: a received frame has reached the datapath, a sent one was taken
/// by the kernel, a worker or front end was woken up.
const fn moment(span: &KernelSpan) -> u64 {
    match span.stage {
        KernelStage::HostRx => span.end,
        KernelStage::Wakeup | KernelStage::HostTx | KernelStage::Inject => span.start,
    }
}

/// When a span's [moment] has to be for it to belong to `burst`, both ends included. For `host-rx` it also has to be after
/// the ring's burst before was [in place](in_place).
fn window(stage: KernelStage, burst: &BurstTimes) -> (u64, u64) {
    match stage {
        KernelStage::HostTx => burst.during(Stage::Egress),
        KernelStage::Inject => burst.during(Stage::Signal),
        KernelStage::HostRx => (0, in_place(burst)),
        KernelStage::Wakeup => (0, burst.first),
    }
}

/// When the burst's frames were in guest memory, or taken by the datapath.
fn in_place(burst: &BurstTimes) -> u64 {
    match burst.direction() {
        Direction::Rx => burst.during(Stage::Place).1,
        Direction::Tx => burst.during(Stage::Egress).1,
    }
}
