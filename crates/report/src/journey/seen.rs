//! The bursts that carried probes, from the records of the daemon.

use std::collections::HashMap;

use burst_trace::attribution::{BurstSpan, Chosen};
use burst_trace::{BurstTimes, Direction, KernelStage, Record, Source, Stage};

use super::stamps::{ProbeId, Stamp};
use crate::round_trip::Initiator;
use crate::when::When;

/// A burst this far outside its time was stamped by another clock, nanoseconds.
const MISPLACED_NS: i64 = 1_000_000;

/// A probe's two bursts.
#[derive(Clone, Debug)]
pub struct ProbeBursts {
    pub rx: Burst,
    pub tx: Burst,
    /// Time from the last boundary until the front end's thread runs, in nanoseconds, if that thread had to be woken
    /// up.
    pub inject: Option<i64>,
}

impl ProbeBursts {
    /// Whether the answer's burst was over before the request's began. One wake-up may serve both, so they may overlap.
    pub fn is_backwards(&self, initiator: Initiator) -> bool {
        let (request, answer) = match initiator {
            Initiator::Host => (&self.rx, &self.tx),
            Initiator::Guest => (&self.tx, &self.rx),
        };
        answer.times.last < request.times.first
    }

    /// Whether a burst lies outside the time between the stamps of the agent on the host.
    pub fn is_misplaced(
        &self,
        initiator: Initiator,
        sender: &Stamp,
        received: u64,
        echo: Option<&Stamp>,
    ) -> bool {
        let is_before = |early: i64, late: i64| early <= late.saturating_add(MISPLACED_NS);
        match (initiator, echo) {
            (Initiator::Host, _) => {
                !is_before(sender.sent.cast_signed(), self.rx.last())
                    || !is_before(self.tx.first, received.cast_signed())
            }
            (Initiator::Guest, Some(&Stamp { sent, received: Some(received), .. })) => {
                !is_before(self.tx.first, received.cast_signed())
                    || !is_before(sent.cast_signed(), self.rx.last())
            }
            (Initiator::Guest, _) => false,
        }
    }
}

/// A burst that carried a probe, in nanoseconds of the host's clock.
#[derive(Clone, Copy, Debug)]
pub struct Burst {
    times: BurstTimes,
    /// Whether it carried nothing else.
    is_alone: bool,
    /// The first boundary.
    pub first: i64,
    /// When the frame arrived, or when the worker was woken up for it, if known.
    pub arrived: Option<i64>,
    ns_per_tick: f64,
}

impl Burst {
    /// When its time begins: at its frame's arrival if that is known, otherwise at its first boundary.
    pub fn begin(&self) -> i64 {
        self.arrived.unwrap_or(self.first)
    }

    /// The time in a stage. Boundaries are rounded, not stages, so the stages add up.
    pub fn stage(&self, stage: Stage) -> i64 {
        let at = self.position(stage);
        self.boundary(at + 1).saturating_sub(self.boundary(at))
    }

    /// The boundary that ends a stage.
    pub fn end_of(&self, stage: Stage) -> i64 {
        self.boundary(self.position(stage) + 1)
    }

    /// Of a burst to the guest: the guest saw none of its frames before this boundary. A packed ring shows the first frames
    /// of a larger burst while the last ones are placed (`virtqueue`, `write_used`).
    pub fn visible_from(&self) -> i64 {
        self.end_of(if self.is_alone { Stage::Place } else { Stage::Starved })
    }

    /// Of a burst from the guest: all of its frames were available by this boundary. The later frames of a burst, and those
    /// of a backlog, may have become available after the look that saw the first one.
    pub fn visible_until(&self) -> i64 {
        let was_seen_at_once =
            self.is_alone && self.stage(Stage::Queued) == 0 && self.stage(Stage::Limited) == 0;
        self.end_of(if was_seen_at_once { Stage::Notice } else { Stage::Gather })
    }

    fn last(&self) -> i64 {
        self.boundary(self.times.direction().stages().len())
    }

    fn position(&self, stage: Stage) -> usize {
        self.times.direction().position(stage).expect("a stage of the burst's direction")
    }

    /// The boundary before the stage with this index.
    fn boundary(&self, at: usize) -> i64 {
        let ticks = self.times.boundary(at).saturating_sub(self.times.first);
        self.first.saturating_add((ticks as f64 * self.ns_per_tick).round() as i64)
    }
}

/// The probes of a recorder, with their bursts.
pub struct Seen {
    when: When,
    ns_per_tick: f64,
    /// Each probe's burst in each direction, by its index in `bursts`.
    probes: HashMap<(ProbeId, Direction), usize>,
    /// Each with the number of its packets.
    bursts: Vec<(BurstTimes, u16)>,
    /// The host kernel's spans of each burst.
    spans: Vec<Vec<BurstSpan>>,
}

impl Seen {
    /// Reads the records twice: first the bursts that carried probes, then their kernel spans.
    pub fn read(source: &Source) -> Self {
        let (mut probes, mut bursts) = (HashMap::new(), Vec::new());
        // Several probes can be in one burst. The burst is stored once, so that they share its spans.
        let mut known = HashMap::new();
        source.read(|record| {
            let Record::Probe(probe) = record else { return };
            let (id, times) = (ProbeId { run: probe.run, sequence: probe.sequence }, probe.times);
            let burst = *known.entry((times.ring, times.first, times.last)).or_insert_with(|| {
                bursts.push((times, probe.packets));
                bursts.len() - 1
            });
            probes.entry((id, times.direction())).or_insert(burst);
        });
        let times = bursts.iter().map(|&(times, _)| times);
        let mut chosen = Chosen::new(times, source.queue_pairs());
        source.read(|record| chosen.add(record));
        let ns_per_tick = 1e9 / source.ticks_per_second() as f64;
        Self { when: When::of(source), ns_per_tick, probes, bursts, spans: chosen.finish() }
    }

    /// The bursts of a probe, if it was seen both ways.
    pub fn bursts_of(&self, id: ProbeId) -> Option<ProbeBursts> {
        let (rx, spans) = self.burst(id, Direction::Rx)?;
        let (tx, _) = self.burst(id, Direction::Tx)?;
        let ran = spans.iter().find(|span| span.stage == KernelStage::Inject);
        let signalled = self.ns(rx.times.last);
        let inject = ran.map(|span| self.ns(span.end).saturating_sub(signalled).max(0));
        Some(ProbeBursts { rx, tx, inject })
    }

    fn burst(&self, id: ProbeId, direction: Direction) -> Option<(Burst, &[BurstSpan])> {
        let &index = self.probes.get(&(id, direction))?;
        let ((times, packets), spans) = (self.bursts[index], &self.spans[index]);
        let (first, ns_per_tick) = (self.ns(times.first), self.ns_per_tick);
        let woken = spans.iter().find(|span| span.stage == KernelStage::Wakeup);
        let waited = |span: &BurstSpan| ((span.end - span.start) as f64 * ns_per_tick).round();
        let arrived = woken.map(|span| first.saturating_sub(waited(span) as i64));
        Some((Burst { times, is_alone: packets == 1, first, arrived, ns_per_tick }, spans))
    }

    fn ns(&self, ticks: u64) -> i64 {
        self.when.monotonic_ns(ticks).cast_signed()
    }
}
