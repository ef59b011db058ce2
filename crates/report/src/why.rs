//! Why packets were slow: the slow bursts and turns of some time, grouped by cause.
//!
//! - `units`: what is looked at: bursts with their wake-ups, frames in the host, turns of the guest and of the far end; and
//!   which of them are slow.
//! - `judge`: the cause of one.
//! - `text`: the groups in words and as JSON.
//!
//! A burst is slow by itself. Other waits show only between bursts: a frame that waits in the host behind the tap, a guest that
//! owes an answer, a far end that does. Turns are known for probe packets, which have a number of their own.

mod judge;
mod text;
mod units;

use std::collections::HashMap;

use burst_trace::{Culprit, InterruptionCause, Source, Subject};

use crate::facts::Facts;
use crate::figures::TickRate;
use crate::without_controls;
use judge::{Judge, Verdict};
use units::{Kind, Slow, Units};

pub use text::{to_json, to_text};

/// What is slow.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Limit {
    /// What is above the 99th percentile of its kind.
    P99,
    /// What takes longer than this, nanoseconds.
    Over(u64),
}

/// Why a packet was slow.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Cause {
    /// A thread did not run.
    Interrupted(InterruptionCause, Subject),
    /// The guest posted no receive buffers.
    NoBuffers,
    /// The limit of the guest let nothing pass (`--limit-tx`, `--limit-rx`).
    Limit,
    /// A frame waited in the host, behind the tap: in a queueing discipline, a bridge, a driver.
    BehindDatapath,
    /// The guest took its time.
    Guest,
    /// The far end took its time.
    FarEnd,
    /// The datapath's own work took longer.
    Datapath,
    /// Other packets were served first.
    Queue,
    /// A worker took longer, and nothing on this kernel says why.
    Unknown,
}

impl Cause {
    /// Its name in JSON.
    #[must_use]
    pub const fn name(self) -> &'static str {
        match self {
            Self::Interrupted(cause, _) => cause.name(),
            Self::NoBuffers => "no-buffers",
            Self::Limit => "limit",
            Self::BehindDatapath => "behind-datapath",
            Self::Guest => "guest",
            Self::FarEnd => "far-end",
            Self::Datapath => "datapath",
            Self::Queue => "queue",
            Self::Unknown => "unknown",
        }
    }

    /// Whose it is, in JSON.
    #[must_use]
    pub const fn subject(self) -> &'static str {
        match self {
            Self::Interrupted(_, subject) => subject.name(),
            Self::NoBuffers | Self::Guest => "guest",
            Self::Limit => "limit",
            Self::BehindDatapath => "host",
            Self::FarEnd => "far-end",
            Self::Datapath | Self::Queue | Self::Unknown => "worker",
        }
    }
}

/// One slow burst, frame or turn.
#[derive(Clone, Debug, PartialEq)]
pub struct Example {
    /// `burst`, `frame`, `guest-turn` or `far-end-turn`.
    pub kind: &'static str,
    /// The virtqueue index.
    pub queue: u16,
    /// The packet's number in its ring; of a turn, the probe's number. 0 for a frame in the host.
    pub sequence: u64,
    /// When it began, by the host's clock: nanoseconds since 1970.
    pub at_ns: u64,
    /// How long it took, nanoseconds.
    pub total_ns: u64,
    /// How much of that is due to the cause, nanoseconds.
    pub lost_ns: u64,
}

/// Everything slow that has one cause.
#[derive(Clone, Debug, PartialEq)]
pub struct Group {
    /// The cause.
    pub cause: Cause,
    /// Who or what was responsible, where a thread did not run because of it.
    pub culprit: Option<Culprit>,
    /// As in [`burst_trace::Interruption::detail`], of the example.
    pub detail: u32,
    /// The interrupted thread's CPU, of the example.
    pub cpu: u16,
    /// Number of slow bursts, frames and turns.
    pub count: u64,
    /// Their packets' time above the median of their kind, nanoseconds: a burst's time counts for each of its packets.
    pub time_ns: u64,
    /// The stage in which most of that time fell; empty where it is none.
    pub stage: &'static str,
    /// `tx` or `rx`, or empty for turns.
    pub direction: &'static str,
    /// The slowest.
    pub example: Example,
}

/// The slow bursts and turns of a recorder or recording.
#[derive(Clone, Debug)]
pub struct Why {
    /// The daemon's name.
    pub name: String,
    /// From the first record to the last, seconds.
    pub window_s: f64,
    /// Number of bursts.
    pub bursts: u64,
    /// Number of turns: answered probes, once for the guest's and once for the far end's.
    pub turns: u64,
    /// What counts as slow.
    pub limit: Limit,
    /// The shortest time that counts as slow among those kinds that have any, nanoseconds.
    pub over_ns: u64,
    /// Number of slow bursts, frames and turns.
    pub slow: u64,
    /// Their packets' time above the median of their kind, nanoseconds.
    pub slow_ns: u64,
    /// Whether interruptions were measured: `on`, or why not; `None` if nobody asked for it.
    pub interruptions: Option<String>,
    /// Whether exits of KVM were measured among them, in the same words.
    pub kvm: Option<String>,
    /// By cause; most time first.
    pub groups: Vec<Group>,
}

impl Why {
    /// Reads a recorder or recording. `name` is used if its facts contain none. `is_virtual`: whether its host is a virtual
    /// machine, if its facts do not say.
    #[must_use]
    pub fn read(source: &Source, name: &str, limit: Limit, is_virtual: bool) -> Self {
        let facts = Facts::parse(&source.facts());
        let rate = TickRate::new(source.ticks_per_second());
        let units = Units::read(source, limit, rate);
        // Only where interruptions are seen is it known that nothing on this kernel ran in a worker's place.
        let are_seen = facts.has_interruptions();
        let is_virtual = are_seen && facts.is_virtual.unwrap_or(is_virtual);
        let judge = Judge::new(&units, is_virtual.then_some(&facts.measured));
        let mut groups: HashMap<Key, Group> = HashMap::new();
        let (mut slow, mut slow_ticks) = (0, 0_u64);
        units.each_slow(source, |unit| {
            let Some(verdict) = judge.of(unit) else { return };
            slow += 1;
            slow_ticks = slow_ticks.saturating_add(unit.of_packets(verdict.excess));
            let lost_ns = rate.ns(verdict.lost);
            let example = units.example(unit, lost_ns);
            let group = groups.entry(Key::of(&verdict)).or_insert_with(|| Group {
                cause: verdict.cause,
                culprit: verdict.culprit,
                detail: verdict.detail,
                cpu: verdict.cpu,
                count: 0,
                time_ns: 0,
                stage: "",
                direction: "",
                example: example.clone(),
            });
            group.add(&verdict, unit, example, rate);
        });
        let mut groups: Vec<_> = groups.into_values().collect();
        groups.sort_by_key(|group| (std::cmp::Reverse(group.time_ns), group.cause.name()));
        Self {
            interruptions: facts.kernel_state("interruptions").map(str::to_owned),
            kvm: facts.kernel_state("kvm").map(str::to_owned),
            name: facts.name.unwrap_or_else(|| without_controls(name)),
            window_s: units.window_s(),
            bursts: units.bursts(),
            turns: units.turns(),
            limit,
            over_ns: units.over_ns(),
            slow,
            slow_ns: rate.ns(slow_ticks),
            groups,
        }
    }
}

impl Group {
    /// Adds a slow unit. The example is the slowest.
    fn add(&mut self, verdict: &Verdict, unit: &Slow, example: Example, rate: TickRate) {
        self.count += 1;
        self.time_ns = self.time_ns.saturating_add(rate.ns(unit.of_packets(verdict.excess)));
        if self.count == 1 || example.total_ns > self.example.total_ns {
            (self.example, self.detail, self.cpu) = (example, verdict.detail, verdict.cpu);
            self.culprit = verdict.culprit;
            self.stage = verdict.stage;
            self.direction = match unit.kind {
                Kind::Burst | Kind::Frame(_) => unit.direction.name(),
                Kind::GuestTurn | Kind::FarEndTurn => "",
            };
        }
    }
}

/// What makes two causes the same.
#[derive(PartialEq, Eq, Hash)]
struct Key {
    cause: Cause,
    /// A program that is started again and again is one culprit.
    command: [u8; 16],
    /// The system call, interrupt or softirq.
    which: u32,
}

impl Key {
    fn of(verdict: &Verdict) -> Self {
        let command = verdict.culprit.map_or([0; 16], |culprit| culprit.command);
        Self { cause: verdict.cause, command, which: verdict.which }
    }
}
