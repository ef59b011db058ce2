//! Times in the host kernel, measured for one recording only. The daemon is not involved.

use std::fs;
use std::io::{self, PipeReader, PipeWriter};
use std::os::fd::AsFd as _;
use std::path::Path;
use std::sync::mpsc::{Receiver, Sender, channel};
use std::thread::{Builder, JoinHandle};

use burst_trace::{Clock, Interruption, KernelSpan, Reader, Record};
use kernel_stages::{
    Cost, Counting, Event, FrontEnds, KernelStages, NO_TAP, Scribe, Whose, is_on, tap_of,
};
use serde_json::{Map, Value};

/// Why the kernel's times are not measured.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// The daemon measures them already.
    #[error(
        "the daemon measures the host kernel's times itself (ringscoped --kernel-stages, or ringscope ctl), and they are in \
         every recording: leave --kernel-stages out"
    )]
    MeasuredAlready,
    /// A worker cannot be found among the host's threads.
    #[error(
        "expected thread {thread} of process {process} to be a worker of the daemon, found {found}: run where the \
         daemon's processes have the numbers that it knows itself (its PID namespace), or have it measure \
         (ringscoped --kernel-stages)"
    )]
    Worker {
        /// The daemon's process.
        process: u64,
        /// The thread; 0 if the recorder does not name it.
        thread: u32,
        /// What the thread is instead.
        found: String,
    },
    /// There is no such program at the far end.
    #[error(
        "expected --far-end to name a process of this host that runs, found none with the number {0}: give the number \
         of the program that answers the guest, or sends to it"
    )]
    FarEnd(u32),
    /// The programs cannot be loaded or attached.
    #[error(transparent)]
    Programs(#[from] kernel_stages::Error),
    /// The thread that reads the times cannot run.
    #[error("the thread that reads the kernel's times cannot run: {0}")]
    Thread(#[from] io::Error),
}

/// The programs that measure one daemon's guest, and their times. The programs are detached when this is dropped.
pub struct Kernel {
    /// The state of each stage; `None` if the daemon's own facts have it.
    facts: Option<Value>,
    front_ends: Option<FrontEnds>,
    front_end: Option<u32>,
    records: Receiver<Record>,
    /// The thread ends when this is closed.
    alive: Option<PipeWriter>,
    thread: Option<JoinHandle<Measured>>,
}

/// Totals at the end of the measurement.
#[derive(Clone, Copy, Debug, Default)]
pub struct Measured {
    /// Number of times lost because they came faster than they were read.
    pub lost: u64,
    /// What the programs cost, if the kernel counts that.
    pub cost: Option<Cost>,
}

impl Kernel {
    /// Attaches the programs that can be attached, for the daemon that writes `recorder`, and for programs at the far end.
    pub fn attach(recorder: &Reader, far_ends: &[u32]) -> Result<Self, Error> {
        let facts: Value = serde_json::from_str(&recorder.facts()).unwrap_or_default();
        // Then only the programs at the far end are left to follow.
        let states = facts["kernel_stages"].as_object().into_iter().flatten();
        let is_measured = states.filter_map(|(_, state)| state.as_str()).any(is_on);
        if is_measured && far_ends.is_empty() {
            return Err(Error::MeasuredAlready);
        }
        let threads = if is_measured { Vec::new() } else { threads(recorder)? };
        let process = u32::try_from(recorder.pid()).unwrap_or(0);
        let is_gone = |process: &&u32| !Path::new(&format!("/proc/{process}")).exists();
        if let Some(&gone) = far_ends.iter().find(is_gone) {
            return Err(Error::FarEnd(gone));
        }
        let tap = facts["datapath"].as_str().and_then(tap_of).filter(|_| !is_measured);
        let (stages, attached) = KernelStages::attach(tap.is_some())?;
        for (number, thread) in (0..).zip(threads) {
            stages.add_worker(process, thread, number)?;
        }
        far_ends.iter().try_for_each(|&process| stages.add_far_end(process))?;
        let followed = match tap {
            None => Err(NO_TAP.to_owned()),
            Some(name) => stages.add_tap(name, 0),
        };
        let mut facts: Map<_, _> = kernel_stages::for_guest(&attached, &followed)
            .map(|(stage, result)| (stage.name().into(), kernel_stages::in_words(result).into()))
            .collect();
        for (name, state) in stages.interruptions() {
            facts.insert(name.into(), state.into());
        }
        let front_ends = stages.front_ends().filter(|_| !is_measured);
        let (stop, alive) = io::pipe()?;
        let (sender, records) = channel();
        let name = "kernel-stages".to_owned();
        // The number after the recorder's workers, as the daemon's own writer would have.
        let writer = u8::try_from(recorder.workers()).unwrap_or(u8::MAX);
        let thread =
            Builder::new().name(name).spawn(move || measure(&stages, &stop, writer, &sender))?;
        let mut kernel = Self {
            facts: (!is_measured).then(|| facts.into()),
            front_ends,
            front_end: None,
            records,
            alive: Some(alive),
            thread: Some(thread),
        };
        kernel.see_front_end(recorder);
        Ok(kernel)
    }

    /// The state of each stage, for the recording.
    pub const fn facts(&self) -> Option<&Value> {
        self.facts.as_ref()
    }

    /// Follows a change of the front end.
    pub fn see_front_end(&mut self, recorder: &Reader) {
        let now = recorder.front_end();
        let Some(front_ends) = self.front_ends.as_ref().filter(|_| now != self.front_end) else {
            return;
        };
        if let Some(gone) = self.front_end {
            front_ends.remove(gone);
        }
        self.front_end = now;
        if let Some(error) = now.and_then(|process| front_ends.add(process, 0).err()) {
            eprintln!(
                "ringscope: neither inject nor the front end's interruptions are measured: {error}"
            );
        }
    }

    /// The kernel spans and interruptions since the last call.
    pub fn records(&self) -> impl Iterator<Item = Record> + '_ {
        self.records.try_iter()
    }

    /// Ends the measurement. [`records`](Self::records) then returns the rest.
    pub fn end(&mut self) -> Measured {
        drop(self.alive.take());
        self.thread.take().and_then(|thread| thread.join().ok()).unwrap_or_default()
    }
}

/// The workers' threads, in the order of the workers' numbers. The writer of times in the host kernel, which comes last, is no
/// worker and has none.
fn threads(recorder: &Reader) -> Result<Vec<u32>, Error> {
    let process = recorder.pid();
    let named = (0..recorder.workers()).map_while(|worker| recorder.thread(worker));
    let checked = |thread| {
        let name = fs::read_to_string(format!("/proc/{process}/task/{thread}/comm"));
        let found = match name {
            Ok(name) if name.starts_with("worker-") => return Ok(thread),
            Ok(name) => format!("'{}'", name.trim_end()),
            Err(error) => error.to_string(),
        };
        Err(Error::Worker { process, thread, found })
    };
    let threads: Vec<_> = named.map(checked).collect::<Result<_, _>>()?;
    match threads.is_empty() {
        true => checked(0).map(|thread| vec![thread]),
        false => Ok(threads),
    }
}

/// Converts what the programs tell to records until `stop` becomes readable.
fn measure(
    stages: &KernelStages,
    stop: &PipeReader,
    writer: u8,
    records: &Sender<Record>,
) -> Measured {
    let counting = Counting::begin();
    let mut scribe = Scribe::new(Clock::new());
    let write = |event: Event| {
        let record = match event {
            Event::Span(span) => {
                Record::KernelSpan(KernelSpan { writer, ..scribe.span(span, span.about) })
            }
            Event::Thread(event) => {
                let worker = match event.whose {
                    Whose::Worker(number) => number,
                    Whose::FrontEnd(_) | Whose::FarEnd => 0,
                };
                let interruption = scribe.interruption(&event, worker);
                Record::Interruption(Interruption { writer, ..interruption })
            }
        };
        // If an error has ended the recording, nobody receives this.
        let _ = records.send(record);
    };
    if let Err(error) = stages.drain(stop.as_fd(), || {}, write) {
        eprintln!("ringscope: times in the host kernel are not recorded any more: {error}");
    }
    Measured { lost: stages.lost(), cost: counting.ok().map(|_| stages.cost()) }
}
