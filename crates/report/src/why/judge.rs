//! The cause of one slow burst, frame or turn.
//!
//! First the interruptions of those who had to act in that time: if one of them took a good part of what is slow, it is the
//! cause. But if a much longer one has just ended, then that one is: what waited meanwhile is served late, and all at once.
//! Then the stage that took longest.

use std::collections::HashMap;

use burst_trace::{
    BurstTimes, Culprit, Direction, Interruption, InterruptionCause, KernelStage, Stage, Subject,
};

use super::Cause;
use super::units::{Kind, Slow, Units};
use crate::facts::Measured;

/// The part of the time above the median from which on an interruption is the cause: one in this many.
const GOOD_PART: u64 = 3;

/// Most bursts that are looked at for which a turn may have waited.
const BUSY_MAX: usize = 1000;

/// Finds causes.
pub struct Judge<'u> {
    units: &'u Units,
    /// On a virtual machine: when interruptions were seen, so that what is left is the hypervisor's.
    seen: Option<&'u Measured>,
}

/// Why a unit was slow.
#[derive(Clone, Copy, Debug)]
pub struct Verdict {
    pub cause: Cause,
    pub culprit: Option<Culprit>,
    pub detail: u32,
    /// What tells it from others of its cause ([`Interruption::which`]).
    pub which: u32,
    pub cpu: u16,
    /// Its time above the median of its kind, ticks.
    pub excess: u64,
    /// How much of that the cause took, ticks.
    pub lost: u64,
    /// The stage in which most of it fell; empty for turns and frames.
    pub stage: &'static str,
}

/// Interruptions of one kind, and how long they took together.
struct Sum {
    longest: Interruption,
    lost: u64,
}

impl Sum {
    const fn rank(&self) -> (u64, u64) {
        (self.lost, self.longest.start)
    }
}

impl<'u> Judge<'u> {
    pub const fn new(units: &'u Units, seen: Option<&'u Measured>) -> Self {
        Self { units, seen }
    }

    /// The cause; `None` for a frame in the host that is slow because its worker was interrupted, which its burst shows.
    pub fn of(&self, unit: &Slow) -> Option<Verdict> {
        let excess = unit.total().saturating_sub(self.units.median(unit));
        let within = self.interruption_within(unit, excess);
        let before = self.interruption_before(unit, excess);
        // What a long interruption held up comes all at once, and keeps the next one busy.
        let is_longer = |it: &Sum| within.as_ref().is_none_or(|within| it.lost / 2 > within.lost);
        let by = before.filter(is_longer).or(within);
        if let Some(Sum { longest, lost }) = by {
            let is_frame = matches!(unit.kind, Kind::Frame(_));
            return (!is_frame).then(|| Verdict {
                cause: Cause::Interrupted(longest.cause, longest.subject),
                culprit: named(&longest),
                detail: longest.detail,
                which: longest.which(),
                cpu: longest.cpu,
                excess,
                lost: lost.min(excess),
                stage: self.stage_of(unit, &longest),
            });
        }
        let (cause, stage) = self.without_interruption(unit, excess);
        Some(Verdict {
            cause,
            culprit: None,
            detail: 0,
            which: 0,
            cpu: 0,
            excess,
            lost: excess,
            stage,
        })
    }

    /// Who had to act in the unit's time.
    fn actors(unit: &Slow) -> impl Iterator<Item = Subject> {
        let other = match unit.kind {
            Kind::GuestTurn => Some(Subject::FrontEnd),
            Kind::FarEndTurn => Some(Subject::FarEnd),
            Kind::Burst | Kind::Frame(_) => None,
        };
        let worker = match unit.kind {
            // It arrives before a worker has to do with it.
            Kind::Frame(KernelStage::HostRx) => None,
            _ => Some(unit.worker),
        };
        other.into_iter().chain(worker)
    }

    /// The interruptions of one kind that took most of the unit's time, if all together took a good part. What the front end
    /// does itself in place of one of its threads is its own work: it has to take a good part alone.
    fn interruption_within(&self, unit: &Slow, excess: u64) -> Option<Sum> {
        let mut sums: HashMap<_, Sum> = HashMap::new();
        let mut times = Vec::new();
        let is_good_part = |time: u64| time.saturating_mul(GOOD_PART) >= excess;
        for subject in Self::actors(unit) {
            for it in self.units.interruptions.during(subject, unit.from, unit.to) {
                let lost = it.within(unit.from, unit.to);
                // As much of it as counts: of stolen time that is not all.
                let start = it.start.max(unit.from);
                let is_own_work = self.is_own_work(it);
                if !is_own_work {
                    times.push((start, start.saturating_add(lost)));
                }
                // Threads of several virtual machines have the same names.
                let key = (it.subject, it.cause, it.culprit.command, it.thread, is_own_work);
                let sum = sums.entry(key).or_insert(Sum { longest: *it, lost: 0 });
                sum.lost = sum.lost.saturating_add(lost);
                if lost > sum.longest.within(unit.from, unit.to) {
                    sum.longest = *it;
                }
            }
        }
        // Many short ones together are as good as a long one: the one that took most stands for them.
        let are_good_part = is_good_part(covered(times));
        let is_cause = |sum: &Sum| match self.is_own_work(&sum.longest) {
            true => is_good_part(sum.lost),
            false => are_good_part,
        };
        let most = sums.into_values().filter(is_cause).max_by_key(Sum::rank)?;
        (most.lost > 0).then_some(most)
    }

    /// Whether another thread of the front end ran in place of one of its threads.
    fn is_own_work(&self, it: &Interruption) -> bool {
        it.subject == Subject::FrontEnd && self.units.front_end == Some(it.culprit.process)
    }

    /// An interruption that ended before the unit began, by no more than its own length: what had to wait is served then.
    fn interruption_before(&self, unit: &Slow, excess: u64) -> Option<Sum> {
        let is_long = |it: &&Interruption| it.total().saturating_mul(GOOD_PART) >= excess;
        let before = unit.from.saturating_sub(self.units.longest_wait());
        let longest = Self::actors(unit)
            .flat_map(|subject| self.units.interruptions.during(subject, before, unit.from))
            .filter(|it| it.end <= unit.from && unit.from - it.end <= it.total())
            .filter(is_long)
            .max_by_key(|it| it.total())?;
        Some(Sum { longest: *longest, lost: longest.total() })
    }

    /// The stage of a burst in which most of an interruption falls.
    fn stage_of(&self, unit: &Slow, it: &Interruption) -> &'static str {
        let Some(times) = &unit.times else { return "" };
        let stages = times.direction().stages().iter().map(|&stage| {
            let (from, to) = times.during(stage);
            (stage.name(), it.within(from, to))
        });
        let wakeup = ("wakeup", it.within(unit.from, times.first));
        let most = [wakeup].into_iter().chain(stages).max_by_key(|(_, lost)| *lost);
        most.map_or("", |(name, _)| name)
    }

    /// The cause, by what took longest, where everybody ran.
    fn without_interruption(&self, unit: &Slow, excess: u64) -> (Cause, &'static str) {
        match unit.kind {
            Kind::Frame(stage) => (Cause::BehindDatapath, stage.name()),
            Kind::FarEndTurn if self.waited_in_host(unit, excess) => (Cause::BehindDatapath, ""),
            Kind::GuestTurn => self.busy_worker(unit, excess).unwrap_or((Cause::Guest, "")),
            Kind::FarEndTurn => self.busy_worker(unit, excess).unwrap_or((Cause::FarEnd, "")),
            Kind::Burst => match &unit.times {
                Some(times) => self.by_stage(unit, times),
                None => (self.unaccounted(unit), ""),
            },
        }
    }

    /// Whether a frame of this time waited in the host for a good part of it.
    fn waited_in_host(&self, unit: &Slow, excess: u64) -> bool {
        let frames = &self.units.frames;
        let from = frames.partition_point(|span| span.end < unit.from);
        let overlap = frames[from..]
            .iter()
            .take_while(|span| span.end <= unit.to)
            .map(|span| span.end.saturating_sub(span.start.max(unit.from)))
            .max();
        overlap.unwrap_or(0).saturating_mul(GOOD_PART) >= excess.max(1)
    }

    /// Why other bursts kept the worker of a turn busy, if they did for a good part of it: the answer waited for them.
    fn busy_worker(&self, unit: &Slow, excess: u64) -> Option<(Cause, &'static str)> {
        let bursts = &self.units.long;
        let first = bursts.partition_point(|burst| burst.to < unit.from);
        let mut sums: HashMap<_, u64> = HashMap::new();
        let overlap = bursts[first..].iter().take_while(|burst| burst.from <= unit.to);
        for burst in overlap.take(BUSY_MAX).filter(|burst| burst.worker == unit.worker) {
            let Some(times) = &burst.times else { continue };
            let ticks = burst.to.min(unit.to).saturating_sub(burst.from.max(unit.from));
            let sum = sums.entry(self.by_stage(burst, times)).or_default();
            *sum = sum.saturating_add(ticks);
        }
        let (most, ticks) = sums.into_iter().max_by_key(|(of, ticks)| (*ticks, of.1))?;
        (ticks.saturating_mul(GOOD_PART) >= excess.max(1)).then_some(most)
    }

    fn by_stage(&self, unit: &Slow, times: &BurstTimes) -> (Cause, &'static str) {
        let direction = times.direction();
        let over = |stage: Option<Stage>, ticks: u64| {
            ticks.saturating_sub(self.units.stage_median(direction, stage))
        };
        let wakeup = (None, over(None, times.first.saturating_sub(unit.from)));
        let stages = direction.stages().iter().zip(times.stages);
        let stages = stages.map(|(&stage, ticks)| (Some(stage), over(Some(stage), ticks)));
        let most = [wakeup].into_iter().chain(stages).max_by_key(|(_, over)| *over);
        let Some((Some(stage), _)) = most else { return (self.unaccounted(unit), "wakeup") };
        let cause = match stage {
            Stage::Limited => Cause::Limit,
            Stage::Starved => Cause::NoBuffers,
            Stage::Queued if self.waits_for_buffers(unit) => Cause::NoBuffers,
            Stage::Queued => Cause::Queue,
            _ if self.has_printed(unit) => {
                Cause::Interrupted(InterruptionCause::Printk, unit.worker)
            }
            Stage::Egress | Stage::Complete => Cause::Datapath,
            // The kernel hands frames over in a call of the worker's.
            Stage::Place if direction == Direction::Rx && !self.may_be_stolen(unit) => {
                Cause::Datapath
            }
            _ => self.unaccounted(unit),
        };
        (cause, stage.name())
    }

    /// Whether the guest's receive ring had no buffers for a good part of this time: frames that are reflected or switched wait
    /// for them in the ring of their sender.
    fn waits_for_buffers(&self, unit: &Slow) -> bool {
        let bursts = &self.units.long;
        let first = bursts.partition_point(|burst| burst.to < unit.from);
        bursts[first..].iter().take(BUSY_MAX).filter_map(|burst| burst.times.as_ref()).any(
            |times| {
                let (from, to) = match times.direction() {
                    Direction::Rx => times.during(Stage::Starved),
                    Direction::Tx => return false,
                };
                let ticks = to.min(unit.to).saturating_sub(from.max(unit.from));
                ticks > 0 && ticks.saturating_mul(GOOD_PART) >= unit.total()
            },
        )
    }

    /// Whether a BPF program printed debug messages in this time. Of several in quick succession, one is recorded.
    fn has_printed(&self, unit: &Slow) -> bool {
        let from = unit.from.saturating_sub(self.units.printed_apart());
        let during = self.units.interruptions.during(unit.worker, from, unit.to);
        during.into_iter().any(|it| it.cause == InterruptionCause::Printk)
    }

    fn may_be_stolen(&self, unit: &Slow) -> bool {
        self.seen.is_some_and(|seen| seen.covers(unit.from))
    }

    /// A worker did not get on, and nothing on this kernel ran in its place.
    fn unaccounted(&self, unit: &Slow) -> Cause {
        match self.may_be_stolen(unit) {
            true => Cause::Interrupted(InterruptionCause::Hypervisor, unit.worker),
            false => Cause::Unknown,
        }
    }
}

/// How long at least one of these times lasts. Threads of a front end may all wait at once.
fn covered(mut times: Vec<(u64, u64)>) -> u64 {
    times.sort_unstable();
    let (mut all, mut until) = (0_u64, 0);
    for (start, end) in times {
        all = all.saturating_add(end.saturating_sub(start.max(until)));
        until = until.max(end);
    }
    all
}

/// The culprit, if there is one with a name.
fn named(it: &Interruption) -> Option<Culprit> {
    (it.culprit.command[0] != 0).then_some(it.culprit)
}
