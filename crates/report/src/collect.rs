//! Computes the figures of each direction in one pass over the records. Memory does not grow with their number.

use std::borrow::Cow;

use burst_trace::{
    BurstRecord, Direction, DropCause, GroCounts, Header, KernelSpan, KernelStage, Record,
    SocketEvent, Totals, Wakeup, Wakeups,
};

use crate::figures::{Distribution, TickRate};
use crate::stages::{Place, StageRow, Tier, places};

/// Longest delay of the record of a wake-up after its burst, seconds.
pub(crate) const WAITING_S: f64 = 1.0;

/// The figures of one direction in a window.
#[derive(Clone, Debug, PartialEq)]
pub struct DirectionBreakdown {
    /// The direction.
    pub direction: Direction,
    /// Packets carried.
    pub packets: u64,
    /// Their bytes, without net headers.
    pub bytes: u64,
    /// Number of bursts they came in.
    pub bursts: u64,
    /// The daemon's own counters since its start, or during the recording: also what records no longer hold. `None` in a
    /// recording that was cut off.
    pub counted: Option<Totals>,
    /// Packets whose burst was found by polling: their `notice` is an upper bound.
    pub polled_packets: u64,
    /// Dropped packets: every cause of this direction with its count.
    pub drops: Vec<(DropCause, u64)>,
    /// What the kernel has counted for AF_XDP sockets: every event of this direction, if known. This and what follows was counted
    /// since the daemon started, or during the recording.
    pub events: Vec<(SocketEvent, u64)>,
    /// Number of addresses moved between the guest's port of a switch and another one. Counted on transmit rings.
    pub moves: u64,
    /// Packets made of several frames of the guest, if known. Counted on transmit rings.
    pub gro: Option<GroCounts>,
    /// All stages of all tiers, in the order in which a packet passes them.
    pub stages: Vec<StageRow>,
    /// Last boundary minus first: exactly the sum of the daemon's stages.
    pub total: StageRow,
}

impl DirectionBreakdown {
    /// Mean number of packets in a burst, if there were any.
    #[must_use]
    pub fn mean_burst(&self) -> Option<f64> {
        (self.bursts > 0).then(|| self.packets as f64 / self.bursts as f64)
    }

    /// The row of the stage `name`.
    #[must_use]
    pub fn stage(&self, name: &str) -> Option<&StageRow> {
        self.stages.iter().find(|row| row.stage == name)
    }

    /// Number of packets dropped, for all causes.
    #[must_use]
    pub fn dropped(&self) -> u64 {
        self.drops.iter().fold(0, |sum, (_, count)| sum.saturating_add(*count))
    }
}

/// Adds up records. For a live recorder, it is cleared after each interval.
#[derive(Clone, Debug)]
pub struct Collector {
    rate: TickRate,
    directions: [DirectionCollector; 2],
    wakeups: Wakeups,
    malformed: u64,
}

#[derive(Clone, Debug)]
struct DirectionCollector {
    direction: Direction,
    packets: u64,
    bytes: u64,
    bursts: u64,
    polled_packets: u64,
    drops: Vec<u64>,
    stages: Vec<Distribution>,
    /// Time in the host kernel from a frame's arrival to the worker's first boundary.
    wakeup: Distribution,
    /// Time in the host kernel between the datapath and a device.
    host: Distribution,
    /// Time from the signal to the guest until its front end's thread runs.
    inject: Distribution,
    total: Distribution,
}

impl Collector {
    /// An empty collector for records stamped by a clock of this rate.
    #[must_use]
    pub fn new(rate: TickRate) -> Self {
        let directions =
            [DirectionCollector::new(Direction::Tx), DirectionCollector::new(Direction::Rx)];
        Self { rate, directions, wakeups: Wakeups::default(), malformed: 0 }
    }

    /// Adds a record. Returns `false` if this version cannot read it.
    pub fn add(&mut self, record: &Record) -> bool {
        match record {
            Record::Burst(burst) => {
                let rate = self.rate;
                self.of(burst.direction()).add_burst(burst, rate);
                self.wakeups.add_burst(&burst.times(), burst.packets);
                self.overflow();
            }
            Record::KernelSpan(span) => self.add_span(span),
            Record::Drop(drop) => {
                let sums = self.of(Direction::of_ring(drop.ring));
                sums.drops[drop.cause as usize] += u64::from(drop.packets);
            }
            Record::Interruption(_)
            | Record::Probe(_)
            | Record::Cyclic(_)
            | Record::Gap(_)
            | Record::Restart(_)
            | Record::Milestone(_)
            | Record::Migration(_) => {}
            Record::Unknown(_) => {
                self.malformed += 1;
                return false;
            }
        }
        true
    }

    fn add_span(&mut self, span: &KernelSpan) {
        let Some(direction) = span.stage.direction() else {
            self.wakeups.add(span);
            return self.overflow();
        };
        let sums = &mut self.directions[usize::from(direction == Direction::Rx)];
        let times = match span.stage {
            KernelStage::Inject => &mut sums.inject,
            KernelStage::Wakeup | KernelStage::HostTx | KernelStage::HostRx => &mut sums.host,
        };
        times.add(span.total(), 1, self.rate);
    }

    /// Number of records that this version cannot read.
    #[must_use]
    pub const fn malformed(&self) -> u64 {
        self.malformed
    }

    fn overflow(&mut self) {
        for Wakeup { direction, packets, ticks, .. } in
            self.wakeups.overflow(self.rate.ticks(WAITING_S))
        {
            let rate = self.rate;
            self.of(direction).wakeup.add(ticks, packets, rate);
        }
    }

    const fn of(&mut self, direction: Direction) -> &mut DirectionCollector {
        match direction {
            Direction::Tx => &mut self.directions[0],
            Direction::Rx => &mut self.directions[1],
        }
    }

    /// Clears it, and keeps its memory.
    pub fn clear(&mut self) {
        self.wakeups.clear();
        for sums in &mut self.directions {
            sums.clear();
        }
        self.malformed = 0;
    }

    /// The distributions of `direction`: the daemon's stages in order, the total, the host kernel's stages.
    #[must_use]
    pub fn distributions(
        &self,
        direction: Direction,
    ) -> Vec<(&'static str, Cow<'_, Distribution>)> {
        let sums = &self.directions[usize::from(direction == Direction::Rx)];
        let stages = direction.stages().iter().map(|stage| stage.name()).zip(&sums.stages);
        let stages = stages.chain([("total", &sums.total)]);
        let mut all: Vec<_> = stages.map(|(name, times)| (name, Cow::Borrowed(times))).collect();
        all.push((KernelStage::Wakeup.name(), Cow::Owned(self.wakeup(direction))));
        match direction {
            Direction::Tx => all.push((KernelStage::HostTx.name(), Cow::Borrowed(&sums.host))),
            Direction::Rx => {
                all.push((KernelStage::HostRx.name(), Cow::Borrowed(&sums.host)));
                all.push((KernelStage::Inject.name(), Cow::Borrowed(&sums.inject)));
            }
        }
        all
    }

    /// The figures of `direction`.
    #[must_use]
    pub fn breakdown(&self, direction: Direction) -> DirectionBreakdown {
        let sums = &self.directions[usize::from(direction == Direction::Rx)];
        sums.breakdown(&self.wakeup(direction), self.rate)
    }

    /// The wake-ups of bursts: those in the burst records, and those found among the kernel spans so far.
    fn wakeup(&self, direction: Direction) -> Distribution {
        let sums = &self.directions[usize::from(direction == Direction::Rx)];
        let mut wakeup = sums.wakeup.clone();
        for joined in self.wakeups.joined().iter().filter(|it| it.direction == direction) {
            wakeup.add(joined.ticks, joined.packets, self.rate);
        }
        wakeup
    }
}

impl DirectionCollector {
    fn new(direction: Direction) -> Self {
        Self {
            direction,
            packets: 0,
            bytes: 0,
            bursts: 0,
            polled_packets: 0,
            drops: vec![0; DropCause::ALL.len()],
            stages: direction.stages().iter().map(|_| Distribution::new()).collect(),
            wakeup: Distribution::new(),
            host: Distribution::new(),
            inject: Distribution::new(),
            total: Distribution::new(),
        }
    }

    fn add_burst(&mut self, record: &BurstRecord, rate: TickRate) {
        self.packets += u64::from(record.packets);
        self.bytes += u64::from(record.bytes);
        self.bursts += 1;
        if record.is_polled {
            self.polled_packets += u64::from(record.packets);
        }
        for (stage, &ticks) in self.stages.iter_mut().zip(&record.stages) {
            stage.add(ticks, record.packets, rate);
        }
        if let Some(ticks) = record.wakeup {
            self.wakeup.add(ticks.into(), record.packets, rate);
        }
        self.total.add(record.total(), record.packets, rate);
    }

    fn clear(&mut self) {
        (self.packets, self.bytes, self.bursts, self.polled_packets) = (0, 0, 0, 0);
        self.drops.fill(0);
        self.stages.iter_mut().for_each(Distribution::clear);
        self.wakeup.clear();
        self.host.clear();
        self.inject.clear();
        self.total.clear();
    }

    fn breakdown(&self, wakeup: &Distribution, rate: TickRate) -> DirectionBreakdown {
        let measured = |stage, tier, times: &Distribution| StageRow {
            stage,
            tier,
            count: Some(times.count()),
            figures: times.figures(rate),
            not_running_mean_ns: None,
        };
        let mut times = self.stages.iter();
        let stages = places(self.direction)
            .iter()
            .map(|place| match *place {
                Place::Outside("wakeup", tier) if wakeup.count() > 0 => {
                    measured("wakeup", tier, wakeup)
                }
                Place::Outside(name @ ("host-tx" | "host-rx"), tier) if self.host.count() > 0 => {
                    measured(name, tier, &self.host)
                }
                Place::Outside(name @ "inject", tier) if self.inject.count() > 0 => {
                    measured(name, tier, &self.inject)
                }
                Place::Outside(name, tier) => StageRow::not_measured(name, tier),
                Place::Daemon(stage) => times.next().map_or_else(
                    || StageRow::not_measured(stage.name(), Tier::D),
                    |times| measured(stage.name(), Tier::D, times),
                ),
            })
            .collect();
        DirectionBreakdown {
            direction: self.direction,
            packets: self.packets,
            bytes: self.bytes,
            bursts: self.bursts,
            counted: None,
            polled_packets: self.polled_packets,
            drops: list_drops(self.direction, |cause| self.drops[cause as usize]),
            events: Vec::new(),
            moves: 0,
            gro: None,
            stages,
            total: measured("total", Tier::D, &self.total),
        }
    }
}

/// Every cause whose name begins with the direction's, and any other cause with a count.
pub(crate) fn list_drops(
    direction: Direction,
    count: impl Fn(DropCause) -> u64,
) -> Vec<(DropCause, u64)> {
    DropCause::ALL
        .iter()
        .map(|&cause| (cause, count(cause)))
        .filter(|(cause, count)| *count > 0 || cause.name().starts_with(direction.name()))
        .collect()
}

/// Drops since the daemon started, or during the recording. The counters include drops that are no longer in the
/// records.
pub(crate) fn drops_since_start(header: &Header, direction: Direction) -> Vec<(DropCause, u64)> {
    let rings =
        |ring: &usize| u16::try_from(*ring).is_ok_and(|ring| Direction::of_ring(ring) == direction);
    list_drops(direction, |cause| {
        let drops =
            (0..header.queue_pairs() * 2).filter(rings).map(|ring| header.drops(ring, cause));
        drops.fold(0, u64::saturating_add)
    })
}
