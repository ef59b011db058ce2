//! Follows one stream, frame by frame.

use burst_trace::CyclicRecord;

use super::counter::{Counter, Verdict};
use super::{EVENTS_MAX, Event, EventKind, Period, Stream};
use crate::figures::{Distribution, TickRate};
use crate::when::When;

/// A stream that is followed.
pub struct Followed {
    counter: Counter,
    step: u64,
    frames: u64,
    lost: u64,
    duplicates: u64,
    late: u64,
    jumps: u64,
    /// When the newest frame arrived, ticks.
    arrived: u64,
    intervals: Distribution,
    /// Sum of the squared differences from the mean so far (Welford's method), and that mean; nanoseconds.
    squares: f64,
    mean_ns: f64,
    /// Sum and maximum of the times from arrival to the last boundary, ticks.
    sum: u128,
    max: u64,
    events: Vec<Event>,
    further_events: u64,
    usual: Majority,
}

/// The value that more than half of all values have, if one does (Boyer and Moore).
#[derive(Default)]
struct Majority {
    value: u64,
    /// How much more often the value came than others.
    votes: u64,
}

impl Majority {
    const fn add(&mut self, value: u64) {
        if self.votes == 0 {
            self.value = value;
        }
        if self.value == value { self.votes += 1 } else { self.votes -= 1 }
    }
}

impl Followed {
    /// A stream whose counter has `len` bytes and grows by `step`.
    pub fn new(len: u8, step: u64) -> Self {
        Self {
            counter: Counter::new(len, step),
            step,
            frames: 0,
            lost: 0,
            duplicates: 0,
            late: 0,
            jumps: 0,
            arrived: 0,
            intervals: Distribution::new(),
            squares: 0.0,
            mean_ns: 0.0,
            sum: 0,
            max: 0,
            events: Vec::new(),
            further_events: 0,
            usual: Majority::default(),
        }
    }

    /// Takes the next frame into account, which arrived at `arrived`, ticks.
    pub fn add(&mut self, record: &CyclicRecord, arrived: u64, rate: TickRate, when: When) {
        let counter = record.frame.counter;
        if let Some(ahead) = self.counter.ahead(counter) {
            self.usual.add(ahead);
        }
        let verdict = self.counter.add(counter);
        self.frames += 1;
        let time = record.times.last.saturating_sub(arrived);
        self.sum += u128::from(time);
        self.max = self.max.max(time);
        let at_ns = when.realtime_ns(arrived);
        let event = |kind, lost| Event { kind, counter, lost, at_ns };
        match verdict {
            Verdict::First => {}
            Verdict::Next => self.add_interval(arrived.saturating_sub(self.arrived), rate),
            Verdict::Gap { lost } => {
                self.lost = self.lost.saturating_add(lost);
                self.note(event(EventKind::Gap, lost));
            }
            Verdict::Duplicate => {
                self.duplicates += 1;
                self.note(event(EventKind::Duplicate, 0));
            }
            Verdict::Late { was_lost } => {
                self.lost -= u64::from(was_lost);
                self.late += 1;
                self.note(event(EventKind::Late, 0));
            }
            Verdict::Jump { duplicates, late } => {
                self.duplicates -= duplicates;
                self.late -= late;
                self.jumps += 1;
                self.take_back(duplicates + late);
                self.note(event(EventKind::Jump, 0));
            }
        }
        if !matches!(verdict, Verdict::Duplicate | Verdict::Late { .. }) {
            self.arrived = arrived;
        }
    }

    fn add_interval(&mut self, ticks: u64, rate: TickRate) {
        self.intervals.add(ticks, 1, rate);
        let ns = rate.ns(ticks) as f64;
        let from_mean = ns - self.mean_ns;
        self.mean_ns += from_mean / self.intervals.count() as f64;
        self.squares += from_mean * (ns - self.mean_ns);
    }

    fn note(&mut self, event: Event) {
        if self.events.len() < EVENTS_MAX {
            self.events.push(event);
        } else {
            self.further_events += 1;
        }
    }

    /// Removes the last `count` events: they were a part of another one.
    fn take_back(&mut self, count: u64) {
        let further = count.min(self.further_events);
        self.further_events -= further;
        let kept = self.events.len()
            - usize::try_from(count - further).unwrap_or(usize::MAX).min(self.events.len());
        self.events.truncate(kept);
    }

    /// The figures. `stream`: its identifier.
    pub fn finish(self, stream: String, rate: TickRate) -> Stream {
        let count = self.intervals.count();
        let period = self.intervals.figures(rate).map(|figures| Period {
            count,
            mean_ns: figures.mean_ns,
            jitter_ns: (self.squares / count as f64).sqrt(),
            min_ns: figures.min_ns,
            p50_ns: figures.p50_ns,
            p99_ns: figures.p99_ns,
            max_ns: figures.max_ns,
        });
        // More than three quarters of the differences, and enough of them.
        let is_usual = self.usual.votes > self.frames / 2 && self.frames >= 8;
        let usual = Some(self.usual.value).filter(|step| is_usual && *step != self.step);
        Stream {
            stream,
            frames: self.frames,
            first: self.counter.first(),
            newest: self.counter.number(),
            lost: self.lost,
            duplicates: self.duplicates,
            late: self.late,
            jumps: self.jumps,
            period,
            mean_ns: rate
                .mean_ns(i128::try_from(self.sum).unwrap_or(i128::MAX), self.frames.max(1)),
            max_ns: rate.ns(self.max),
            events: self.events,
            further_events: self.further_events,
            usual_step: usual,
        }
    }
}
