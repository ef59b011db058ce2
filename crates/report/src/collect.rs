//! One pass over records, to figures a direction. Memory is bounded: it does not grow with the records.

use std::borrow::Cow;

use burst_trace::{
    BurstRecord, Direction, DropCause, KernelStage, RecordKind, SocketEvent, Wakeup, Wakeups,
};

use crate::figures::{Distribution, TickRate};
use crate::stages::{Place, StageRow, Tier, places};

/// Wake-ups of bursts of so many last seconds may still come.
const WAITING_S: f64 = 1.0;

/// What went one way in a window.
#[derive(Clone, Debug, PartialEq)]
pub struct DirectionBreakdown {
    /// Which way.
    pub direction: Direction,
    /// Packets that went through.
    pub packets: u64,
    /// Their bytes, without net headers.
    pub bytes: u64,
    /// The bursts they came in.
    pub bursts: u64,
    /// Packets whose burst was found by polling: their `notice` is an upper bound.
    pub polled_packets: u64,
    /// Packets that went no further: every cause of this direction, and its count.
    pub drops: Vec<(DropCause, u64)>,
    /// What the kernel has counted of AF_XDP sockets since the daemon started: every event of this direction, where that
    /// is known.
    pub events: Vec<(SocketEvent, u64)>,
    /// Number of addresses moved between the guest's port of a switch and another one since the daemon started. Counted on
    /// transmit rings.
    pub moves: u64,
    /// All stages of all tiers, in a packet's order.
    pub stages: Vec<StageRow>,
    /// Last boundary minus first: exactly the sum of the daemon's stages.
    pub total: StageRow,
}

impl DirectionBreakdown {
    /// Packets a burst, when there were any.
    #[must_use]
    pub fn mean_burst(&self) -> Option<f64> {
        (self.bursts > 0).then(|| self.packets as f64 / self.bursts as f64)
    }

    /// The line of the stage called `name`.
    #[must_use]
    pub fn stage(&self, name: &str) -> Option<&StageRow> {
        self.stages.iter().find(|row| row.stage == name)
    }

    /// All packets that went no further.
    #[must_use]
    pub fn dropped(&self) -> u64 {
        self.drops.iter().fold(0, |sum, (_, count)| sum.saturating_add(*count))
    }
}

/// Adds up records; emptied and filled again by who follows a live recorder.
#[derive(Clone, Debug)]
pub struct Collector {
    rate: TickRate,
    ways: [Way; 2],
    wakeups: Wakeups,
    malformed: u64,
}

#[derive(Clone, Debug)]
struct Way {
    direction: Direction,
    packets: u64,
    bytes: u64,
    bursts: u64,
    polled_packets: u64,
    drops: Vec<u64>,
    stages: Vec<Distribution>,
    /// The host kernel's: from a frame's arrival to the worker's first boundary.
    wakeup: Distribution,
    /// The host kernel's: between the datapath and a device.
    host: Distribution,
    /// From the guest being called to its front end's thread.
    inject: Distribution,
    total: Distribution,
}

impl Collector {
    /// An empty one for records stamped by a clock of this rate.
    #[must_use]
    pub fn new(rate: TickRate) -> Self {
        let ways = [Way::new(Direction::Tx), Way::new(Direction::Rx)];
        Self { rate, ways, wakeups: Wakeups::default(), malformed: 0 }
    }

    /// Adds a record. `false` when it says nothing that this version knows.
    pub fn add(&mut self, record: &BurstRecord) -> bool {
        let way = &mut self.ways[usize::from(record.direction() == Direction::Rx)];
        if record.kind == RecordKind::Burst as u8 && record.packets > 0 {
            way.add_burst(record, self.rate);
            self.wakeups.add_burst(record);
            self.overflow();
        } else if let Some(stage) = record.kernel_stage() {
            match stage {
                KernelStage::Wakeup => {
                    self.wakeups.add(record);
                    self.overflow();
                }
                KernelStage::HostTx | KernelStage::HostRx => {
                    way.host.add(record.total(), 1, self.rate);
                }
                KernelStage::Inject => way.inject.add(record.total(), 1, self.rate),
            }
        } else if is_of_others(record) {
            return true;
        } else if let Some(cause) = drop_cause(record) {
            way.drops[cause as usize] += u64::from(record.packets);
        } else {
            self.malformed += 1;
            return false;
        }
        true
    }

    /// Records that say nothing this version knows: of an unknown kind or drop cause, or without packets.
    #[must_use]
    pub const fn malformed(&self) -> u64 {
        self.malformed
    }

    fn overflow(&mut self) {
        for Wakeup { direction, packets, ticks } in
            self.wakeups.overflow(self.rate.ticks(WAITING_S))
        {
            let way = &mut self.ways[usize::from(direction == Direction::Rx)];
            way.wakeup.add(ticks, packets, self.rate);
        }
    }

    /// Empties it, and keeps its memory.
    pub fn clear(&mut self) {
        self.wakeups.clear();
        for way in &mut self.ways {
            way.clear();
        }
        self.malformed = 0;
    }

    /// The distributions of `direction`: those of the daemon's stages in order, that of the total, and those of the host
    /// kernel's stages.
    #[must_use]
    pub fn distributions(
        &self,
        direction: Direction,
    ) -> Vec<(&'static str, Cow<'_, Distribution>)> {
        let way = &self.ways[usize::from(direction == Direction::Rx)];
        let stages = direction.stages().iter().map(|stage| stage.name()).zip(&way.stages);
        let stages = stages.chain([("total", &way.total)]);
        let mut all: Vec<_> = stages.map(|(name, times)| (name, Cow::Borrowed(times))).collect();
        all.push((KernelStage::Wakeup.name(), Cow::Owned(self.wakeup(direction))));
        match direction {
            Direction::Tx => all.push((KernelStage::HostTx.name(), Cow::Borrowed(&way.host))),
            Direction::Rx => {
                all.push((KernelStage::HostRx.name(), Cow::Borrowed(&way.host)));
                all.push((KernelStage::Inject.name(), Cow::Borrowed(&way.inject)));
            }
        }
        all
    }

    /// What was collected of `direction`.
    #[must_use]
    pub fn breakdown(&self, direction: Direction) -> DirectionBreakdown {
        let way = &self.ways[usize::from(direction == Direction::Rx)];
        way.breakdown(&self.wakeup(direction), self.rate)
    }

    /// Until workers were awake, by their bursts' own records and by what can be joined now.
    fn wakeup(&self, direction: Direction) -> Distribution {
        let way = &self.ways[usize::from(direction == Direction::Rx)];
        let mut wakeup = way.wakeup.clone();
        for joined in self.wakeups.joined().iter().filter(|it| it.direction == direction) {
            wakeup.add(joined.ticks, joined.packets, self.rate);
        }
        wakeup
    }
}

/// The cause of a drop record that this version knows.
#[must_use]
pub fn drop_cause(record: &BurstRecord) -> Option<DropCause> {
    let is_drop = record.kind == RecordKind::Drop as u8;
    DropCause::ALL.get(usize::from(record.cause)).copied().filter(|_| is_drop)
}

/// Whether a record is for other readers than this one.
fn is_of_others(record: &BurstRecord) -> bool {
    [RecordKind::Probe, RecordKind::Gap].iter().any(|kind| record.kind == *kind as u8)
}

impl Way {
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
        if record.flags & BurstRecord::POLLED != 0 {
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
            polled_packets: self.polled_packets,
            drops: list_drops(self.direction, |cause| self.drops[cause as usize]),
            events: Vec::new(),
            moves: 0,
            stages,
            total: measured("total", Tier::D, &self.total),
        }
    }
}

/// Every cause that this direction can have, by the name's beginning, and any other that was counted.
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
