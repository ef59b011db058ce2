//! Tests end the device between any two of its stores, as SIGKILL does.

use std::cell::Cell;
use std::panic::{AssertUnwindSafe, catch_unwind, resume_unwind};

thread_local! {
    /// Number of stores until the end; `None`: it lives.
    static LEFT: Cell<Option<u32>> = const { Cell::new(None) };
}

/// Carried by the unwinding that ends the device.
struct Killed;

/// Before each store.
pub fn step() {
    match LEFT.get() {
        Some(0) => resume_unwind(Box::new(Killed)),
        Some(left) => LEFT.set(Some(left - 1)),
        None => {}
    }
}

/// Runs `device`, which ends after `stores` stores at the latest. Returns whether it lived.
pub fn after(stores: u32, device: impl FnOnce()) -> bool {
    LEFT.set(Some(stores));
    let ended = catch_unwind(AssertUnwindSafe(device));
    LEFT.set(None);
    match ended {
        Ok(()) => true,
        Err(killed) if killed.is::<Killed>() => false,
        Err(other) => resume_unwind(other),
    }
}
