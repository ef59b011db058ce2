//! A guest, as the control socket reaches it.

use std::collections::BTreeMap;
use std::sync::Arc;

use burst_trace::{Clock, Reader};
use worker::{Mailbox, Setting, Standing};

use crate::plan::GuestPlan;

/// The ways to each guest's workers, by its name.
pub type Ways = BTreeMap<String, Vec<Arc<Mailbox>>>;

/// A guest, as the control socket reaches it.
#[derive(Debug)]
pub struct Subject {
    /// Its plan.
    pub plan: GuestPlan,
    /// The way to each of its workers.
    pub mailboxes: Vec<Arc<Mailbox>>,
    /// The clock of its workers.
    pub clock: Clock,
    /// Its recorder, if it could be opened.
    pub reader: Option<Reader>,
}

impl Subject {
    /// A guest with these workers. Its recorder exists already.
    pub fn new(plan: &GuestPlan, mailboxes: Vec<Arc<Mailbox>>, clock: Clock) -> Self {
        Self { plan: plan.clone(), mailboxes, clock, reader: Reader::open(&plan.recorder).ok() }
    }

    /// How each of its workers stands with it.
    ///
    /// # Errors
    /// When one does not answer.
    pub fn standings(&self) -> Result<Vec<Standing>, String> {
        self.each(|mailbox| mailbox.look().map_err(|gone| gone.to_string()))
    }

    /// Changes a setting in each of its workers.
    ///
    /// # Errors
    /// When one does not answer.
    pub fn set(&self, setting: &Setting) -> Result<(), String> {
        self.each(|mailbox| mailbox.set(setting.clone()).map_err(|gone| gone.to_string()))?;
        Ok(())
    }

    fn each<T>(&self, ask: impl Fn(&Mailbox) -> Result<T, String>) -> Result<Vec<T>, String> {
        let asked = |mailbox: &Arc<Mailbox>| ask(mailbox);
        let answers: Result<Vec<T>, String> = self.mailboxes.iter().map(asked).collect();
        answers.map_err(|why| format!("guest '{}': {why}", self.plan.name))
    }
}
