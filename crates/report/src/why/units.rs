//! What can be slow: bursts with their wake-ups, frames in the host, turns of the guest and of the far end.

use std::collections::HashMap;

use burst_trace::{
    BurstRecord, BurstTimes, Direction, Interruptions, KernelSpan, KernelStage, Record, Source,
    Stage, Subject, Wakeups,
};

use super::{Example, Limit};
use crate::figures::{Distribution, TickRate};
use crate::journey::stamps::ProbeId;
use crate::when::When;

/// A wake-up's record comes at most this long after its burst's, seconds.
const LATE_S: f64 = 1.0;
/// What an interruption held up is served within this time after it, seconds.
const WAIT_MAX_S: f64 = 0.2;
/// Of debug messages in quick succession, one in this time is recorded, seconds (`PRINTED_APART`, kernel-stages/bpf).
const PRINTED_APART_S: f64 = 20e-6;
/// A worker that was held up between its last look at its rings and its sleep does not sleep: it sees within this time after it
/// what came meanwhile, seconds. What held it up for less explains nothing.
const SOON_S: f64 = 50e-6;
/// A burst that takes longer is kept for turns that wait for its worker meanwhile, seconds.
const LONG_S: f64 = 100e-6;
/// A turn that takes longer is the number of a probe that was used again, seconds.
const TURN_MAX_S: f64 = 60.0;

/// What is slow.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Kind {
    /// A burst, from its wake-up to its last boundary.
    Burst,
    /// A frame in the host, before or behind the datapath.
    Frame(KernelStage),
    /// From a probe's arrival in the guest's memory until the worker saw its answer.
    GuestTurn,
    /// From the datapath taking a guest's probe until a worker woke up for its answer.
    FarEndTurn,
}

impl Kind {
    pub const fn name(self) -> &'static str {
        match self {
            Self::Burst => "burst",
            Self::Frame(_) => "frame",
            Self::GuestTurn => "guest-turn",
            Self::FarEndTurn => "far-end-turn",
        }
    }
}

/// A burst, frame or turn.
#[derive(Clone, Copy, Debug)]
pub struct Slow {
    pub kind: Kind,
    /// That of the burst or frame; of a turn, the direction of its request.
    pub direction: Direction,
    pub ring: u16,
    pub sequence: u64,
    /// Number of packets that took this time: those of the burst, otherwise one.
    pub packets: u16,
    /// The worker that took part last.
    pub worker: Subject,
    /// When it began and ended, ticks.
    pub from: u64,
    pub to: u64,
    /// The burst's boundaries.
    pub times: Option<BurstTimes>,
}

impl Slow {
    pub const fn total(&self) -> u64 {
        self.to.saturating_sub(self.from)
    }

    /// A time of the unit, taken once for each packet.
    pub fn of_packets(&self, ticks: u64) -> u64 {
        ticks.saturating_mul(self.packets.into())
    }
}

/// The bursts of one direction: their times with wake-ups, and each stage's, the wake-up first.
struct Bursts {
    all: Distribution,
    stages: Vec<Distribution>,
}

impl Bursts {
    fn new(direction: Direction) -> Self {
        let stages = (0..=direction.stages().len()).map(|_| Distribution::new()).collect();
        Self { all: Distribution::new(), stages }
    }
}

/// The bursts that a worker began at the same look.
#[derive(Clone, Copy, Default)]
struct Turn {
    /// When it began, ticks.
    first: u64,
    /// When the latest burst ended, ticks.
    last: u64,
    /// When the last burst of the turn before ended, ticks.
    before: u64,
}

impl Turn {
    /// Adds the worker's next burst.
    const fn add(&mut self, burst: &BurstRecord) {
        if burst.first != self.first {
            (self.first, self.before) = (burst.first, self.last);
        }
        self.last = burst.last;
    }
}

/// The rx and the tx burst of a probe.
type Probe = [Option<BurstTimes>; 2];

/// All of a source.
pub struct Units {
    rate: TickRate,
    when: When,
    limit: Limit,
    pub interruptions: Interruptions,
    /// The front end's process.
    pub front_end: Option<u32>,
    /// Frames in the host that took longer than a wake-up does, by their ends, for turns that end with them.
    pub frames: Vec<KernelSpan>,
    /// Bursts that kept their worker busy for long, by their ends.
    pub long: Vec<Slow>,
    /// From the wake-up to the first boundary, ticks, of bursts by ring and first boundary.
    wakeups: HashMap<(u16, u64), u64>,
    bursts: [Bursts; 2],
    count: u64,
    /// `host-tx` and `host-rx`.
    host: [Distribution; 2],
    /// The guest's and the far end's.
    turns: [Distribution; 2],
    probes: HashMap<ProbeId, Probe>,
    /// The first boundary of all, and the last.
    extent: Option<(u64, u64)>,
}

const fn index(direction: Direction) -> usize {
    match direction {
        Direction::Rx => 0,
        Direction::Tx => 1,
    }
}

impl Units {
    /// Reads a source: first what explains, then the bursts, whose distributions say what is slow.
    pub fn read(source: &Source, limit: Limit, rate: TickRate) -> Self {
        let bursts = [Bursts::new(Direction::Rx), Bursts::new(Direction::Tx)];
        let mut units = Self {
            rate,
            when: When::of(source),
            limit,
            interruptions: Interruptions::read(source),
            front_end: source.front_end(),
            frames: Vec::new(),
            long: Vec::new(),
            wakeups: HashMap::new(),
            bursts,
            count: 0,
            host: [Distribution::new(), Distribution::new()],
            turns: [Distribution::new(), Distribution::new()],
            probes: HashMap::new(),
            extent: None,
        };
        units.read_explanations(source);
        let mut all = units.probes.iter().flat_map(|(id, probe)| turns(*id, probe, rate));
        let mut sums = [Distribution::new(), Distribution::new()];
        all.by_ref().for_each(|turn| {
            let sum = &mut sums[usize::from(turn.kind == Kind::FarEndTurn)];
            sum.add(turn.total(), 1, rate);
        });
        drop(all);
        units.turns = sums;
        let mut turns: HashMap<_, Turn> = HashMap::new();
        source.read(|record| {
            if let Record::Burst(burst) = record {
                let turn = turns.entry(burst.worker).or_default();
                turn.add(burst);
                units.add_held_up(burst, turn.before);
                units.add_burst(burst);
            }
        });
        units.long.sort_unstable_by_key(|burst| burst.to);
        units
    }

    fn read_explanations(&mut self, source: &Source) {
        let rate = self.rate;
        let mut waiting = Wakeups::default();
        source.read(|record| {
            let (start, end) = (record.first(), record.last());
            let (first, last) = self.extent.unwrap_or((start, end));
            self.extent = Some((first.min(start), last.max(end)));
            match record {
                Record::KernelSpan(span) => {
                    waiting.add(span);
                    self.add_frame(span);
                }
                Record::Burst(burst) => waiting.add_burst(&burst.times(), burst.packets),
                Record::Probe(probe) => {
                    let id = ProbeId { run: probe.run, sequence: probe.sequence };
                    let both = self.probes.entry(id).or_default();
                    both[index(probe.times.direction())].get_or_insert(probe.times);
                }
                _ => {}
            }
            for joined in waiting.overflow(rate.ticks(LATE_S)) {
                self.wakeups.insert((joined.ring, joined.first), joined.ticks);
            }
        });
        for joined in waiting.take() {
            self.wakeups.insert((joined.ring, joined.first), joined.ticks);
        }
        self.frames.sort_unstable_by_key(|span| span.end);
    }

    fn add_frame(&mut self, span: &KernelSpan) {
        let way = match span.stage {
            KernelStage::HostTx => 1,
            KernelStage::HostRx => 0,
            KernelStage::Wakeup | KernelStage::Inject => return,
        };
        self.host[way].add(span.total(), 1, self.rate);
        // What is below 20 us explains nothing that is worth a report.
        if span.total() > self.rate.ticks(20e-6) {
            self.frames.push(*span);
        }
    }

    /// A worker that was interrupted just before it would have slept is never woken up. When the frames came that it sees right
    /// after that is not known: at the earliest when the interruption began, and so their burst counts. `before`: when its last
    /// burst ended.
    fn add_held_up(&mut self, burst: &BurstRecord, before: u64) {
        let times = burst.times();
        if times.is_polled || self.wakeup(&times).is_some() {
            return;
        }
        let worker = Subject::Worker(burst.worker.into());
        let soon = self.rate.ticks(SOON_S);
        let just_before = burst.first.saturating_sub(soon).max(before);
        let held_up = self.interruptions.during(worker, just_before, burst.first);
        let longest = held_up
            .filter(|it| it.start >= before && it.start < burst.first && it.total() >= soon)
            .max_by_key(|it| it.total());
        if let Some(it) = longest {
            self.wakeups.insert((burst.ring, burst.first), burst.first - it.start);
        }
    }

    fn add_burst(&mut self, burst: &BurstRecord) {
        let wakeup = self.wakeup(&burst.times());
        if burst.total() > self.rate.ticks(LONG_S) {
            self.long.push(self.burst(burst));
        }
        self.count += 1;
        let (rate, packets) = (self.rate, burst.packets);
        let of = &mut self.bursts[index(burst.direction())];
        let total = burst.total().saturating_add(wakeup.unwrap_or(0));
        of.all.add(total, packets, rate);
        if let Some(wakeup) = wakeup {
            of.stages[0].add(wakeup, packets, rate);
        }
        for (times, &ticks) in of.stages[1..].iter_mut().zip(&burst.stages) {
            times.add(ticks, packets, rate);
        }
    }

    /// From its wake-up to its first boundary, ticks, if known.
    pub fn wakeup(&self, burst: &BurstTimes) -> Option<u64> {
        let own = burst.wakeup.map(u64::from);
        own.or_else(|| self.wakeups.get(&(burst.ring, burst.first)).copied())
    }

    /// Calls `each` for every slow unit.
    pub fn each_slow(&self, source: &Source, mut each: impl FnMut(&Slow)) {
        let rate = self.rate;
        let mut test = |unit: &Slow| {
            if rate.ns(unit.total()) > self.limit_ns(unit) {
                each(unit);
            }
        };
        source.read(|record| match record {
            Record::Burst(burst) => test(&self.burst(burst)),
            Record::KernelSpan(span) => {
                let Some(direction) = span.stage.direction() else { return };
                if span.stage == KernelStage::Inject {
                    return;
                }
                test(&Slow {
                    kind: Kind::Frame(span.stage),
                    direction,
                    ring: u16::from(direction == Direction::Tx),
                    sequence: 0,
                    packets: 1,
                    worker: Subject::Worker(span.worker.unwrap_or(0)),
                    from: span.start,
                    to: span.end,
                    times: None,
                });
            }
            _ => {}
        });
        for turn in self.probes.iter().flat_map(|(id, probe)| turns(*id, probe, rate)) {
            test(&turn);
        }
    }

    fn burst(&self, burst: &BurstRecord) -> Slow {
        let times = burst.times();
        Slow {
            kind: Kind::Burst,
            direction: burst.direction(),
            ring: burst.ring,
            sequence: burst.sequence,
            packets: burst.packets,
            worker: Subject::Worker(burst.worker.into()),
            from: burst.first.saturating_sub(self.wakeup(&times).unwrap_or(0)),
            to: burst.last,
            times: Some(times),
        }
    }

    fn distribution(&self, unit: &Slow) -> &Distribution {
        match unit.kind {
            Kind::Burst => &self.bursts[index(unit.direction)].all,
            Kind::Frame(stage) => &self.host[usize::from(stage == KernelStage::HostTx)],
            Kind::GuestTurn => &self.turns[0],
            Kind::FarEndTurn => &self.turns[1],
        }
    }

    fn limit_ns(&self, unit: &Slow) -> u64 {
        match self.limit {
            Limit::Over(ns) => ns,
            Limit::P99 => self.distribution(unit).quantile_ns(0.99, self.rate),
        }
    }

    /// The median of the unit's kind, ticks.
    pub fn median(&self, unit: &Slow) -> u64 {
        let ns = self.distribution(unit).quantile_ns(0.5, self.rate);
        self.rate.ticks(ns as f64 * 1e-9)
    }

    /// The median of a burst's stage, ticks; `None` is its wake-up.
    pub fn stage_median(&self, direction: Direction, stage: Option<Stage>) -> u64 {
        let at = stage.and_then(|stage| direction.position(stage)).map_or(0, |at| at + 1);
        let ns = self.bursts[index(direction)].stages[at].quantile_ns(0.5, self.rate);
        self.rate.ticks(ns as f64 * 1e-9)
    }

    /// Time from one debug message that is recorded to the next, ticks.
    pub fn printed_apart(&self) -> u64 {
        self.rate.ticks(PRINTED_APART_S)
    }

    /// How far back an interruption can be of which something still waits, ticks.
    pub fn longest_wait(&self) -> u64 {
        self.rate.ticks(WAIT_MAX_S)
    }

    pub fn example(&self, unit: &Slow, lost_ns: u64) -> Example {
        Example {
            kind: unit.kind.name(),
            queue: unit.ring,
            sequence: unit.sequence,
            at_ns: self.when.realtime_ns(unit.from),
            total_ns: self.rate.ns(unit.total()),
            lost_ns,
        }
    }

    pub fn window_s(&self) -> f64 {
        self.extent.map_or(0.0, |(first, last)| self.rate.seconds(last.saturating_sub(first)))
    }

    pub const fn bursts(&self) -> u64 {
        self.count
    }

    pub fn turns(&self) -> u64 {
        self.turns.iter().map(Distribution::count).sum()
    }

    pub fn over_ns(&self) -> u64 {
        match self.limit {
            Limit::Over(ns) => ns,
            Limit::P99 => {
                let all = self.bursts.iter().map(|of| &of.all).chain(&self.turns);
                let limits =
                    all.filter(|it| it.count() > 0).map(|it| it.quantile_ns(0.99, self.rate));
                limits.min().unwrap_or(0)
            }
        }
    }
}

/// The turns of a probe: the guest's if the guest answered it, the far end's if that did.
fn turns(id: ProbeId, probe: &Probe, rate: TickRate) -> impl Iterator<Item = Slow> {
    let turn = |request: &BurstTimes, answer: &BurstTimes| {
        let (kind, from, to) = match request.direction() {
            Direction::Rx => {
                (Kind::GuestTurn, request.during(Stage::Place).1, answer.during(Stage::Notice).1)
            }
            Direction::Tx => (Kind::FarEndTurn, request.during(Stage::Egress).1, answer.first),
        };
        let turn = Slow {
            kind,
            direction: request.direction(),
            ring: request.ring,
            sequence: id.sequence,
            packets: 1,
            worker: Subject::Worker(answer.worker.into()),
            from,
            to,
            times: None,
        };
        (turn.total() < rate.ticks(TURN_MAX_S)).then_some(turn)
    };
    let found = match probe {
        [Some(rx), Some(tx)] if rx.first <= tx.first => turn(rx, tx),
        [Some(rx), Some(tx)] => turn(tx, rx),
        _ => None,
    };
    found.into_iter()
}
