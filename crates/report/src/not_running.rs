//! How long, of each stage, the worker did not run (tier K), and what kept it and the guest's front end from running.
//!
//! Interruptions come from another writer than bursts, so they are read first, all of them, and bursts after them. A burst is
//! asked stage by stage which of its worker's interruptions fell into it.

use std::collections::HashSet;

use burst_trace::{
    BurstRecord, Interruption, InterruptionCause, Interruptions, KernelStage, Record, Source,
    Stage, Subject, Wakeup, Wakeups,
};

use crate::collect::{DirectionBreakdown, WAITING_S};
use crate::facts::Measured;
use crate::figures::TickRate;
use crate::interruption::{InterruptionRow, InterruptionSums};

/// The interruptions of a window.
#[derive(Clone, Debug)]
pub struct NotRunning {
    rate: TickRate,
    /// Transmit and receive queues, in the order of [`Direction`](burst_trace::Direction).
    directions: [Sums; 2],
    /// What took most time: of a worker only what fell into a burst or its wake-up.
    pub rows: Vec<InterruptionRow>,
}

/// Ticks in which the worker did not run, added up over packets.
#[derive(Clone, Debug, Default)]
struct Sums {
    packets: u64,
    stages: [u128; Stage::ALL.len()],
    total: u128,
    /// Packets whose burst has a wake-up.
    woken: u64,
    wakeup: u128,
}

/// What identifies an interruption: whose it was, its beginning and end, and its cause.
type Key = (Subject, u64, u64, InterruptionCause);

struct Reading<'i> {
    interruptions: &'i Interruptions,
    measured: &'i Measured,
    rate: TickRate,
    directions: [Sums; 2],
    wakeups: Wakeups,
    sums: InterruptionSums,
    /// The interruptions of workers that are in `sums`.
    counted: HashSet<Key>,
}

impl NotRunning {
    /// Reads the source twice: its interruptions, and the bursts that ended from `from` to `to`, ticks, while they were `measured`.
    #[must_use]
    pub fn read(source: &Source, from: u64, to: u64, measured: &Measured) -> Self {
        let rate = TickRate::new(source.ticks_per_second());
        let interruptions = Interruptions::read(source);
        let mut reading = Reading {
            interruptions: &interruptions,
            measured,
            rate,
            directions: [Sums::default(), Sums::default()],
            wakeups: Wakeups::default(),
            sums: InterruptionSums::default(),
            counted: HashSet::new(),
        };
        source.read(|record| {
            if (from..=to).contains(&record.last()) {
                reading.add(record);
            }
        });
        let wakeups = reading.wakeups.take();
        reading.add_wakeups(wakeups);
        Self { rate, directions: reading.directions, rows: reading.sums.rows(rate) }
    }

    /// Writes the means into the rows of a direction.
    pub fn fill(&self, way: &mut DirectionBreakdown) {
        let sums = &self.directions[way.direction as usize];
        let mean = |ticks: u128, packets: u64| {
            let ticks = i128::try_from(ticks).unwrap_or(i128::MAX);
            (packets > 0).then(|| self.rate.mean_ns(ticks, packets))
        };
        way.total.not_running_mean_ns = mean(sums.total, sums.packets);
        for row in &mut way.stages {
            let own = Stage::from_name(row.stage).and_then(|stage| way.direction.position(stage));
            row.not_running_mean_ns = match own {
                Some(at) => mean(sums.stages[at], sums.packets),
                None if row.stage == KernelStage::Wakeup.name() => mean(sums.wakeup, sums.woken),
                None => None,
            };
        }
    }
}

impl Reading<'_> {
    fn add(&mut self, record: &Record) {
        match record {
            Record::Burst(burst) => self.add_burst(burst),
            Record::KernelSpan(span) => self.wakeups.add(span),
            Record::Interruption(it) if !matches!(it.subject, Subject::Worker(_)) => {
                self.sums.add(it);
            }
            _ => return,
        }
        let wakeups = self.wakeups.overflow(self.rate.ticks(WAITING_S));
        self.add_wakeups(wakeups);
    }

    fn add_burst(&mut self, burst: &BurstRecord) {
        let (worker, direction, times) = (burst.worker.into(), burst.direction(), burst.times());
        self.wakeups.add_burst(&times, burst.packets);
        // Its wake-up may be known all the same: AF_XDP stamps it.
        if !self.measured.covers(burst.first) {
            return;
        }
        if let Some(ticks) = burst.wakeup {
            let BurstRecord { ring, packets, first, .. } = *burst;
            let ticks = ticks.into();
            self.add_wakeups([Wakeup { direction, ring, packets, worker, first, ticks }]);
        }
        let stages = direction.stages().len();
        let ticks = self.find(worker, times.first, times.boundary(stages));
        let packets = u128::from(burst.packets);
        let sums = &mut self.directions[direction as usize];
        sums.packets += u64::from(burst.packets);
        // Most bursts have no interruption: their stages need not be looked at.
        if ticks == 0 {
            return;
        }
        sums.total += u128::from(ticks) * packets;
        for (at, sum) in sums.stages.iter_mut().enumerate().take(stages) {
            let (from, to) = (times.boundary(at), times.boundary(at + 1));
            let ticks = self.interruptions.not_running(Subject::Worker(worker), from, to);
            *sum += u128::from(ticks) * packets;
        }
    }

    fn add_wakeups(&mut self, wakeups: impl IntoIterator<Item = Wakeup>) {
        for Wakeup { direction, packets, worker, first, ticks, .. } in wakeups {
            let ticks = self.find(worker, first.saturating_sub(ticks), first);
            let sums = &mut self.directions[direction as usize];
            sums.woken += u64::from(packets);
            sums.wakeup += u128::from(ticks) * u128::from(packets);
        }
    }

    /// How long, of this time, the worker did not run, ticks. Its interruptions are added to the sums, each once.
    fn find(&mut self, worker: u32, from: u64, to: u64) -> u64 {
        let subject = Subject::Worker(worker);
        for it in self.interruptions.during(subject, from, to) {
            let Interruption { start, end, cause, .. } = *it;
            if self.counted.insert((subject, start, end, cause)) {
                self.sums.add(it);
            }
        }
        self.interruptions.not_running(subject, from, to)
    }
}
