//! Kernel stages: their times go from the BPF programs to the guests' recorders (`--kernel-stages`).

use std::io::{self, PipeReader, PipeWriter};
use std::os::fd::AsFd as _;
use std::process;
use std::sync::Arc;
use std::thread::{Builder, JoinHandle};

use burst_trace::{Clock, KernelStage, Writer};
use confine::Role;
use kernel_stages::{Attached, Event, FrontEnds, KernelStages, Scribe, Span, ThreadEvent, Whose};
use log_limit::LogLimit;
use serde_json::{Map, Value};
use vhost_control::Witness;

use crate::plan::GuestPlan;
use crate::spec::{DatapathSpec, Port};

/// The recorder of each guest, and what converts to its clock.
type Guests = [Option<(Scribe, Writer)>];

/// Workers' threads, each with the guests that it serves and its number there.
type Threads = [(u32, Vec<(usize, u32)>)];

/// The BPF programs, attached once for all guests, and the writers of what they measure.
pub struct Kernel {
    stages: KernelStages,
    attached: Vec<Attached>,
    /// The writer of each enrolled guest; `None` until its workers run.
    guests: Vec<Option<(Scribe, Writer)>>,
    /// Thread of each worker, with the guests that it serves and its number there. Guests of a switch share one worker.
    threads: Vec<(u32, Vec<(usize, u32)>)>,
}

/// A guest whose kernel stages will be recorded.
pub struct Enrolled {
    number: usize,
    /// For each stage, whether it is measured, or why not; for the recorder's header.
    pub facts: Value,
    /// Makes the guest's front end known to the programs.
    pub witness: Option<FrontEnd>,
}

/// Makes the process of a guest's front end known to the programs.
#[derive(Debug)]
pub struct FrontEnd {
    number: usize,
    log: Arc<LogLimit>,
    front_ends: FrontEnds,
}

impl Witness for FrontEnd {
    fn connected(&self, process: u32) {
        if let Err(error) =
            self.front_ends.add(process, u32::try_from(self.number).unwrap_or(u32::MAX))
        {
            log_limit::warn!(
                self.log,
                "neither inject nor the front end's interruptions are measured: {error}"
            );
        }
    }

    fn gone(&self, process: u32) {
        self.front_ends.remove(process);
    }
}

impl Kernel {
    /// Attaches the programs, if a plan asks for them.
    pub fn attach(plans: &[GuestPlan]) -> Result<Option<Self>, kernel_stages::Error> {
        let mut asking = plans.iter().filter(|plan| plan.kernel_stages).peekable();
        if asking.peek().is_none() {
            return Ok(None);
        }
        let (stages, attached) = KernelStages::attach(asking.any(|plan| tap(plan).is_some()))?;
        Ok(Some(Self { stages, attached, guests: Vec::new(), threads: Vec::new() }))
    }

    /// Prepares to record a guest, if its plan asks for it; its tap must exist. `log` is the guest's.
    pub fn enroll(&mut self, plan: &GuestPlan, log: &Arc<LogLimit>) -> Option<Enrolled> {
        if !plan.kernel_stages {
            return None;
        }
        let number = self.guests.len();
        self.guests.push(None);
        let followed = match tap(plan) {
            None => Err(kernel_stages::NO_TAP.to_owned()),
            Some(name) => self.stages.add_tap(name, u32::try_from(number).unwrap_or(u32::MAX)),
        };
        let mut facts = Map::new();
        for (stage, result) in kernel_stages::for_guest(&self.attached, &followed) {
            if let Some(reason) = result.err().filter(|_| tap(plan).is_some()) {
                log::warn!("{}{} is not measured: {reason}", plan.log_prefix, stage.name());
            }
            facts.insert(stage.name().into(), kernel_stages::in_words(result).into());
        }
        for (name, state) in self.stages.interruptions() {
            facts.insert(name.into(), state.into());
        }
        let front_ends = self.stages.front_ends();
        let witness =
            front_ends.map(|front_ends| FrontEnd { number, log: Arc::clone(log), front_ends });
        Some(Enrolled { number, facts: facts.into(), witness })
    }

    /// From now on `writer` records the guest, with its workers' threads in their order.
    pub fn record(
        &mut self,
        guest: &Enrolled,
        workers: &[u32],
        writer: Writer,
        clock: Clock,
    ) -> Result<(), FollowError> {
        self.guests[guest.number] = Some((Scribe::new(clock), writer));
        for (worker, &tid) in (0..).zip(workers) {
            let whose = (guest.number, worker);
            match self.threads.iter_mut().find(|(other, _)| *other == tid) {
                Some((_, owners)) => owners.push(whose),
                None => {
                    let number = u32::try_from(self.threads.len()).unwrap_or(u32::MAX);
                    self.threads.push((tid, vec![whose]));
                    self.stages.add_worker(process::id(), tid, number)?;
                }
            }
        }
        Ok(())
    }

    /// Starts the thread that records.
    pub fn follow(self) -> Result<Following, FollowError> {
        let (stop, alive) = io::pipe()?;
        let name = "kernel-stages".to_owned();
        let thread = Builder::new().name(name).spawn(move || {
            confine::enter(Role::KernelStages);
            self.run(&stop);
        })?;
        Ok(Following { alive: Some(alive), thread: Some(thread) })
    }

    fn run(mut self, stop: &PipeReader) {
        let (guests, threads) = (&mut self.guests, &self.threads);
        let write = |event: Event| match event {
            Event::Span(span) => write_span(guests, threads, span),
            Event::Thread(event) => write_interruption(guests, threads, &event),
        };
        if let Err(error) = self.stages.drain(stop.as_fd(), write) {
            log::error!("kernel stages are no longer recorded: {error}");
        }
        let lost = self.stages.lost();
        if lost > 0 {
            log::warn!(
                "{lost} times of kernel stages and interruptions were lost, because they came faster than they were read"
            );
        }
    }
}

fn write_span(guests: &mut Guests, threads: &Threads, span: Span) {
    let mut write = |guest: usize, worker| {
        if let Some((scribe, writer)) = guests.get_mut(guest).and_then(Option::as_mut) {
            writer.kernel(&scribe.span(span, worker));
        }
    };
    if matches!(span.stage, KernelStage::HostRx | KernelStage::Inject) {
        // Of no worker: it ends before a worker has the frame, or begins after a worker's signal.
        write(span.about as usize, 0);
    } else if let Some((_, owners)) = threads.get(span.about as usize) {
        owners.iter().for_each(|&(guest, worker)| write(guest, worker));
    }
}

fn write_interruption(guests: &mut Guests, threads: &Threads, event: &ThreadEvent) {
    let mut write = |guest: usize, worker| {
        if let Some((scribe, writer)) = guests.get_mut(guest).and_then(Option::as_mut) {
            writer.interruption(&scribe.interruption(event, worker));
        }
    };
    match event.whose {
        Whose::FrontEnd(guest) => write(guest as usize, 0),
        Whose::Worker(number) => {
            let owners = threads.get(number as usize).into_iter().flat_map(|(_, owners)| owners);
            owners.for_each(|&(guest, worker)| write(guest, worker));
        }
        // Nobody names such a program to the daemon.
        Whose::FarEnd => {}
    }
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
