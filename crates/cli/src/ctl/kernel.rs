//! The programs that measure in the host kernel, which are loaded here and handed to the daemon: it has given up the privileges for
//! that.

use std::os::fd::BorrowedFd;

use kernel_stages::{Attached, Error, KernelStages, tap_of};
use serde_json::{Value, json};

/// Programs that shall measure for the daemon. Dropping this removes them.
#[derive(Debug)]
pub struct Programs {
    stages: KernelStages,
    attached: Vec<Attached>,
}

impl Programs {
    /// Loads them. `info`: the daemon's answer to that command, for the guest.
    ///
    /// # Errors
    /// When this process may not load them.
    pub fn load(info: &Value) -> Result<Self, Error> {
        let guests = info["guests"].as_array().into_iter().flatten();
        let has_tap = |guest: &Value| guest["datapath"].as_str().and_then(tap_of).is_some();
        let (stages, attached) = KernelStages::attach(guests.into_iter().any(has_tap))?;
        Ok(Self { stages, attached })
    }

    /// Adds to `request` what they are. Returns the descriptors that go along.
    pub fn describe(&self, request: &mut Value) -> Vec<BorrowedFd<'_>> {
        let (handed, descriptors) = self.stages.hand_over(&self.attached);
        request["programs"] = json!(handed);
        descriptors
    }

    /// The daemon has them, and they stay.
    pub fn keep(self) {
        self.stages.leave();
    }
}
