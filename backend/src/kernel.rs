//! Times in the host kernel, on their way from its programs to a guest's recorder (`--kernel-stages`).

use std::io::{self, PipeReader, PipeWriter};
use std::os::fd::AsFd as _;
use std::thread::{Builder, JoinHandle};
use std::time::Duration;

use burst_trace::{Anchor, BurstRecord, Clock, KernelStage, RecordKind, Writer};
use kernel_stages::{KernelStages, Span};
use serde_json::{Map, Value};

use crate::plan::GuestPlan;
use crate::spec::{DatapathSpec, Port};

/// An anchor is good for so long: the two clocks drift by a few nanoseconds until then.
const ANCHORED: Duration = Duration::from_millis(10);

/// The programs of a guest, before its workers are there.
pub struct Programs {
    stages: KernelStages,
    /// What became of each stage, for the recorder's header.
    pub facts: Value,
}

impl Programs {
    /// Attaches what the plan asks for.
    pub fn attach(plan: &GuestPlan) -> Result<Option<Self>, kernel_stages::Error> {
        if !plan.kernel_stages {
            return Ok(None);
        }
        let taps = match &plan.datapath {
            DatapathSpec::Tap { port: Port::Name(name), .. } => vec![name.as_str()],
            _ => Vec::new(),
        };
        let (stages, attached) = KernelStages::attach(&taps)?;
        let mut facts = Map::new();
        for (stage, result) in attached {
            let fact = match result {
                Ok(()) => "on".to_owned(),
                Err(reason) => {
                    if !taps.is_empty() {
                        log::warn!("{}{} is not measured: {reason}", plan.label, stage.name());
                    }
                    format!("n/a: {reason}")
                }
            };
            facts.insert(stage.name().into(), fact.into());
        }
        let reason = "n/a: KVM's tracepoints are not attached in this version";
        facts.insert(KernelStage::Inject.name().into(), reason.into());
        Ok(Some(Self { stages, facts: facts.into() }))
    }

    /// Has what they measure of the guest's workers, threads in the order of their numbers, written by `writer`.
    pub fn follow(
        self,
        label: &str,
        workers: &[u32],
        writer: Writer,
        clock: Clock,
    ) -> Result<Following, FollowError> {
        for (number, tid) in (0..).zip(workers) {
            self.stages.add_worker(*tid, number)?;
        }
        let (stop, alive) = io::pipe()?;
        let (label, stages) = (label.to_owned(), self.stages);
        let name = "kernel-stages".to_owned();
        let thread = Builder::new().name(name).spawn(move || {
            let mut scribe = Scribe::new(writer, clock);
            follow(&stages, &stop, &label, |span| scribe.write(span));
        })?;
        Ok(Following { alive: Some(alive), thread: Some(thread) })
    }
}

/// Why nobody writes down what the programs measure.
#[derive(Debug, thiserror::Error)]
pub enum FollowError {
    /// A worker.
    #[error(transparent)]
    Worker(#[from] kernel_stages::Error),
    /// The thread.
    #[error("the thread that reads the kernel's times cannot run: {0}")]
    Thread(#[from] io::Error),
}

/// The thread that reads one guest's times. It ends, and its programs go, when this is dropped.
pub struct Following {
    /// The thread notices that this is gone.
    alive: Option<PipeWriter>,
    thread: Option<JoinHandle<()>>,
}

impl Drop for Following {
    fn drop(&mut self) {
        drop(self.alive.take());
        if let Some(thread) = self.thread.take()
            && thread.join().is_err()
        {
            log::error!(
                "the thread that reads the kernel's times ended by a fault of its own; see above"
            );
        }
    }
}

fn follow(stages: &KernelStages, stop: &PipeReader, label: &str, each: impl FnMut(Span)) {
    if let Err(error) = stages.drain(stop.as_fd(), each) {
        log::error!("{label}times in the host kernel are not recorded any more: {error}");
    }
    let lost = stages.lost();
    if lost > 0 {
        log::warn!("{label}{lost} times in the host kernel came faster than they were read");
    }
}

/// Turns spans into records.
struct Scribe {
    writer: Writer,
    clock: Clock,
    anchor: Anchor,
    /// [`ANCHORED`] in ticks.
    anchored: u64,
}

impl Scribe {
    fn new(writer: Writer, clock: Clock) -> Self {
        Self { writer, clock, anchor: clock.anchor(), anchored: clock.ticks_in(ANCHORED) }
    }

    fn write(&mut self, span: Span) {
        if self.clock.now().saturating_sub(self.anchor.ticks) > self.anchored {
            self.anchor = self.clock.anchor();
        }
        let ticks = |ns| self.anchor.ticks_at(ns, &self.clock);
        self.writer.kernel(&BurstRecord {
            first: ticks(span.start_ns),
            last: ticks(span.end_ns),
            bytes: span.worker,
            ring: u16::from(span.stage == KernelStage::HostTx),
            kind: RecordKind::Kernel as u8,
            cause: span.stage as u8,
            ..BurstRecord::default()
        });
    }
}
