//! Kernel stages: their times go from the BPF programs to the guests' recorders.
//!
//! - Here: those of all guests that ask for them, from the start on (`--kernel-stages`).
//! - `on_request`: those of one guest, which the operator begins and ends.
//! - `front_end`: the front end's process, which the programs follow.
//! - `records`: what the programs tell becomes records.

mod front_end;
mod on_request;
mod records;

use std::io::{self, PipeReader, PipeWriter};
use std::os::fd::AsFd as _;
use std::process;
use std::sync::Arc;
use std::thread::{Builder, JoinHandle};

use burst_trace::{Clock, Writer};
use confine::Role;
use kernel_stages::{Attached, KernelStages};
use log_limit::LogLimit;
use serde_json::{Map, Value};

use crate::plan::GuestPlan;
use crate::spec::{DatapathSpec, Port};
use records::Records;

pub use front_end::FrontEnd;
pub use on_request::{Measurable, OnRequest};

/// The BPF programs, attached once for all guests, and the records of what they measure.
pub struct Kernel {
    stages: KernelStages,
    attached: Vec<Attached>,
    records: Records,
    /// Thread of each worker, by its number in the records.
    threads: Vec<u32>,
}

/// A guest whose kernel stages will be recorded.
pub struct Enrolled {
    number: usize,
    /// For each stage, whether it is measured, or why not; for the recorder's header.
    pub facts: Value,
    /// Makes the guest's front end known to the programs.
    pub witness: FrontEnd,
}

impl Kernel {
    /// Attaches the programs, if a plan asks for them.
    pub fn attach(plans: &[GuestPlan]) -> Result<Option<Self>, kernel_stages::Error> {
        let mut asking = plans.iter().filter(|plan| plan.kernel_stages).peekable();
        if asking.peek().is_none() {
            return Ok(None);
        }
        let (stages, attached) = KernelStages::attach(asking.any(|plan| tap(plan).is_some()))?;
        Ok(Some(Self { stages, attached, records: Records::default(), threads: Vec::new() }))
    }

    /// Prepares to record a guest, if its plan asks for it; its tap must exist. `log` is the guest's.
    pub fn enroll(&mut self, plan: &GuestPlan, log: &Arc<LogLimit>) -> Option<Enrolled> {
        if !plan.kernel_stages {
            return None;
        }
        let number = self.records.add_guest();
        let index = u32::try_from(number).unwrap_or(u32::MAX);
        let followed = follow_tap(&self.stages, plan, index);
        let facts = states(&self.stages, &self.attached, &followed);
        for (stage, result) in kernel_stages::for_guest(&self.attached, &followed) {
            if let Some(reason) = result.err().filter(|_| tap(plan).is_some()) {
                log::warn!("{}{} is not measured: {reason}", plan.log_prefix, stage.name());
            }
        }
        let facts = facts.into();
        let witness = FrontEnd::new(index, log);
        witness.follow(self.stages.front_ends());
        Some(Enrolled { number, facts, witness })
    }

    /// From now on `writer` records the guest, with its workers' threads in their order.
    pub fn record(
        &mut self,
        guest: &Enrolled,
        workers: &[u32],
        writer: Writer,
        clock: Clock,
    ) -> Result<(), FollowError> {
        self.records.set_writer(guest.number, writer, clock);
        for (worker, &tid) in (0..).zip(workers) {
            let known = self.threads.iter().position(|other| *other == tid);
            let number = self.records.add_thread(guest.number, worker, known);
            if known.is_none() {
                self.threads.push(tid);
                let number = u32::try_from(number).unwrap_or(u32::MAX);
                self.stages.add_worker(process::id(), tid, number)?;
            }
        }
        Ok(())
    }

    /// Starts the thread that records.
    pub fn follow(mut self) -> Result<Following, FollowError> {
        let (stop, alive) = io::pipe()?;
        let name = "kernel-stages".to_owned();
        let thread = Builder::new().name(name).spawn(move || {
            confine::enter(Role::KernelStages);
            drain(&self.stages, &stop, || {}, &mut self.records);
        })?;
        Ok(Following { alive: Some(alive), thread: Some(thread) })
    }
}

/// Records what the programs tell until `stop` becomes readable. Calls `begun` when nothing is missed any more.
fn drain(stages: &KernelStages, stop: &PipeReader, begun: impl FnOnce(), records: &mut Records) {
    if let Err(error) = stages.drain(stop.as_fd(), begun, |event| records.write(event)) {
        log::error!("kernel stages are no longer recorded: {error}");
    }
    let lost = stages.lost();
    if lost > 0 {
        log::warn!(
            "{lost} times of kernel stages and interruptions were lost, because they came faster than they were read"
        );
    }
}

/// Has frames of a guest's tap followed as those of tap `number`. Returns why they are not.
fn follow_tap(stages: &KernelStages, plan: &GuestPlan, number: u32) -> Result<(), String> {
    match tap(plan) {
        None => Err(kernel_stages::NO_TAP.to_owned()),
        Some(name) => stages.add_tap(name, number),
    }
}

/// What is measured of a guest, or why not, by name; for its recorder's facts.
fn states(
    stages: &KernelStages,
    attached: &[Attached],
    followed: &Result<(), String>,
) -> Map<String, Value> {
    let mut states = Map::new();
    for (stage, result) in kernel_stages::for_guest(attached, followed) {
        states.insert(stage.name().into(), kernel_stages::in_words(result).into());
    }
    for (name, state) in stages.interruptions() {
        states.insert(name.into(), state.into());
    }
    states
}

/// The name of a guest's tap, if it has one. Its frames can be followed by it.
const fn tap(plan: &GuestPlan) -> Option<&String> {
    match &plan.datapath {
        DatapathSpec::Tap { port: Port::Name(name), .. } => Some(name),
        _ => None,
    }
}

/// Why kernel stages cannot be recorded.
#[derive(Debug, thiserror::Error)]
pub enum FollowError {
    /// A worker.
    #[error(transparent)]
    Worker(#[from] kernel_stages::Error),
    /// The thread.
    #[error("the thread that records kernel stages cannot run: {0}")]
    Thread(#[from] io::Error),
}

/// The thread that records kernel stages of all guests. When this is dropped, the thread ends and the programs are detached.
pub struct Following {
    /// The thread ends when this is closed.
    alive: Option<PipeWriter>,
    thread: Option<JoinHandle<()>>,
}

impl Drop for Following {
    fn drop(&mut self) {
        drop(self.alive.take());
        if let Some(thread) = self.thread.take()
            && thread.join().is_err()
        {
            log::error!("the thread that records kernel stages panicked; see the message above");
        }
    }
}
