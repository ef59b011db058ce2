//! A guest, as the control socket reaches it.

use std::collections::BTreeMap;
use std::sync::Arc;

use burst_trace::{Clock, Reader};
use datapath::CaptureThread;
use worker::{Mailbox, Setting, Standing, WorkerGone};

use crate::kernel::OnRequest;
use crate::plan::GuestPlan;

/// The ways to the guests, by their names.
pub type Ways = BTreeMap<String, Way>;

/// The way to a guest.
#[derive(Clone, Debug, Default)]
pub struct Way {
    /// To each of its workers.
    pub workers: Vec<Arc<Mailbox>>,
    /// Writes its captures; `None` if it can have none.
    pub captures: Option<CaptureThread>,
    /// Measures its kernel stages when the operator asks for them; `None` if they are measured from the start on.
    pub kernel: Option<Arc<OnRequest>>,
}

/// A guest, as the control socket reaches it.
#[derive(Debug)]
pub struct Subject {
    /// Its plan.
    pub plan: GuestPlan,
    /// The way to it.
    pub way: Way,
    /// The clock of its workers.
    pub clock: Clock,
    /// Its recorder, if it could be opened.
    pub reader: Option<Reader>,
}

impl Subject {
    /// A guest that is reached this way. Its recorder exists already.
    pub fn new(plan: &GuestPlan, way: Way, clock: Clock) -> Self {
        Self { plan: plan.clone(), way, clock, reader: Reader::open(&plan.recorder).ok() }
    }

    /// How each of its workers stands with it.
    ///
    /// # Errors
    /// When one does not answer.
    pub fn standings(&self) -> Result<Vec<Standing>, String> {
        self.each(Mailbox::look)
    }

    /// Changes a setting in each of its workers.
    ///
    /// # Errors
    /// When one does not answer.
    pub fn set(&self, setting: impl Fn() -> Setting) -> Result<(), String> {
        self.each(|mailbox| mailbox.set(setting()))?;
        Ok(())
    }

    fn each<T>(&self, ask: impl Fn(&Mailbox) -> Result<T, WorkerGone>) -> Result<Vec<T>, String> {
        // One that does not answer does not keep the others from being asked.
        let answers: Vec<_> = self.way.workers.iter().map(|mailbox| ask(mailbox)).collect();
        let answers: Result<Vec<T>, _> = answers.into_iter().collect();
        answers.map_err(|gone| format!("guest '{}': {gone}", self.plan.name))
    }
}
