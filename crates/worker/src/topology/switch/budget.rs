//! How much a turn of the uplink may do.

use super::place::WORK_MAX;

/// Most frames of one turn: as many as of a guest whose datapath takes a system call for each.
const BURST: usize = 32;

/// Limits of a turn, so that the uplink does not keep the worker from the guests.
#[derive(Debug)]
pub struct Budget {
    /// Number of frames that may still be read.
    pub frames: usize,
    /// Ring work that may still be done.
    pub work: u32,
}

impl Budget {
    pub const TURN: Self = Self { frames: BURST, work: WORK_MAX };

    pub const fn is_used_up(&self) -> bool {
        self.frames == 0 || self.work == 0
    }

    pub const fn note_work(&mut self, work: u32) {
        self.work = self.work.saturating_sub(work);
    }
}
