//! The process of a guest's front end, which the programs follow while it is connected.

use std::sync::{Arc, Mutex, PoisonError};

use kernel_stages::FrontEnds;
use log_limit::LogLimit;
use vhost_control::Witness;

/// Makes the process of a guest's front end known to the programs.
#[derive(Clone, Debug)]
pub struct FrontEnd {
    number: u32,
    log: Arc<LogLimit>,
    known: Arc<Mutex<Known>>,
}

#[derive(Debug, Default)]
struct Known {
    /// The one that is connected.
    process: Option<u32>,
    /// The list of programs that follow it; none while nothing is measured.
    followed: Option<FrontEnds>,
}

impl FrontEnd {
    /// That of the guest `number`. `log` is the guest's.
    pub fn new(number: u32, log: &Arc<LogLimit>) -> Self {
        Self { number, log: Arc::clone(log), known: Arc::default() }
    }

    /// From now on the programs of this list follow it, in place of others.
    pub fn follow(&self, list: Option<FrontEnds>) {
        let mut known = self.known.lock().unwrap_or_else(PoisonError::into_inner);
        known.followed = list;
        if let Some(process) = known.process {
            self.add(&known, process);
        }
    }

    fn add(&self, known: &Known, process: u32) {
        if let Some(error) =
            known.followed.as_ref().and_then(|it| it.add(process, self.number).err())
        {
            log_limit::warn!(
                self.log,
                "neither inject nor the front end's interruptions are measured: {error}"
            );
        }
    }
}

impl Witness for FrontEnd {
    fn connected(&self, process: u32) {
        let mut known = self.known.lock().unwrap_or_else(PoisonError::into_inner);
        known.process = Some(process);
        self.add(&known, process);
    }

    fn gone(&self, process: u32) {
        let mut known = self.known.lock().unwrap_or_else(PoisonError::into_inner);
        known.process = known.process.filter(|it| *it != process);
        if let Some(list) = &known.followed {
            list.remove(process);
        }
    }
}
