//! The guest's clock, related to the host's by all probes of a run.

use serde::Serialize;

use super::known_clock::{KnownClock, Relation};
use super::one_clock::{Bounds, Offset, Unbounded};
use super::rows::quantile;
use super::seen::ProbeBursts;
use super::stamps::{ReceptionStamps, Stamp};
use super::{ANCHOR_NS, DRIFT};

/// Error of a kernel's stamp if its file does not say so, nanoseconds. The agent carries it from `CLOCK_REALTIME` to
/// `CLOCK_MONOTONIC`, by readings of both.
const STAMP_NS: u64 = 100;
/// Error of the recorder's clock as the host's `CLOCK_MONOTONIC` if its file does not say so, nanoseconds: half the duration of the
/// quickest of five readings of both ([`burst_trace::Clock::anchor`]), which is below 100 ns.
const RECORDER_NS: u64 = 50;
/// Largest stamp, nanoseconds: 36 years. Beyond this it is no reading of a clock.
const STAMP_MAX: u64 = 1 << 60;

/// How the guest's `CLOCK_MONOTONIC` relates to the host's, as outputs show it.
#[derive(Clone, Copy, Debug, PartialEq, Serialize)]
pub struct GuestClock {
    /// What is known of it beside the probes: the [`Means`](super::Means) of measured bounds, otherwise the
    /// [`Relation`]: `clock-page`, `ptp-kvm`, `kvm-tsc`, `same`, `constant` or `drifting`.
    pub relation: &'static str,
    /// Lower end of the interval in which the guest's clock minus the host's lies in the middle of the run, nanoseconds.
    pub offset_low_ns: i64,
    /// Its upper end.
    pub offset_high_ns: i64,
    /// Median width of the interval over all probes, nanoseconds.
    pub width_p50_ns: i64,
    /// The 99th percentile.
    pub width_p99_ns: i64,
    /// The guest's clock gains at least this, parts in a million.
    pub drift_ppm_low: f64,
    /// It gains at most this.
    pub drift_ppm_high: f64,
}

/// The result of relating both clocks.
#[derive(Debug, Default)]
pub struct Related {
    /// The offset of the guest's clock, with its relation's name; `None` if the probes do not bound it.
    pub clock: Option<(Offset, &'static str)>,
    /// What did not fit.
    pub note: Option<&'static str>,
    /// The middle of the run by the host's clock, nanoseconds.
    middle: i64,
}

impl Related {
    /// Relates the clocks by the bounds of all probes, and by what is known. What the probes contradict is left out.
    /// `recorder_ns`: by how much the recorder's clock is from the host's, if the recorder says so.
    pub fn by(bounds: &Bounds, known: &KnownClock, recorder_ns: Option<u64>) -> Self {
        let Some([first, last]) = bounds.span() else { return Self::default() };
        let middle = first.saturating_add(last.saturating_sub(first) / 2);
        let mut also = Bounds::default();
        if known.relation == Relation::Same {
            also.at_least(first, -ANCHOR_NS);
            also.at_most(first, ANCHOR_NS);
        }
        let mut measured = Bounds::default();
        if let Some(it) = &known.bounds {
            let error_ns = recorder_ns.unwrap_or(RECORDER_NS);
            it.add_to(&mut also, error_ns);
            it.add_to(&mut measured, error_ns);
        }
        let drift_max = match known.relation {
            Relation::Same | Relation::Constant => 0.0,
            Relation::Drifting => DRIFT,
        };
        let name = |relation: Relation| {
            known.bounds.as_ref().map_or(relation.name(), |it| it.means.name())
        };
        let nothing = Bounds::default();
        let tries = [
            (&also, drift_max, name(known.relation), None),
            (&measured, DRIFT, name(Relation::Drifting), Some(NOT_SO_RELATED)),
            (&nothing, DRIFT, Relation::Drifting.name(), Some(OTHER_BOUNDS)),
        ];
        for (also, drift_max, name, note) in tries {
            match bounds.solve(also, drift_max) {
                Ok(offset) => return Self { clock: Some((offset, name)), note, middle },
                Err(Unbounded::Contradiction) => {}
                Err(Unbounded::OneSided) => return Self::default(),
            }
        }
        Self { clock: None, note: Some(CONTRADICTION), middle }
    }

    /// The offset of the guest's clock.
    pub fn offset(&self) -> Option<&Offset> {
        self.clock.as_ref().map(|(offset, _)| offset)
    }

    /// What outputs show. `widths`: of the intervals at all probes, nanoseconds.
    pub fn shown(&self, mut widths: Vec<i64>) -> Option<GuestClock> {
        let (offset, relation) = self.clock.as_ref()?;
        widths.sort_unstable();
        let interval = offset.at(self.middle);
        let [drift_ppm_low, drift_ppm_high] = offset.drift().map(|drift| drift * 1e6);
        Some(GuestClock {
            relation,
            offset_low_ns: interval.low,
            offset_high_ns: interval.high,
            width_p50_ns: quantile(&widths, 50)?,
            width_p99_ns: quantile(&widths, 99)?,
            drift_ppm_low,
            drift_ppm_high,
        })
    }
}

const NOT_SO_RELATED: &str =
    "the probes contradict the given --clock-relation; the clocks are taken to drift apart";
const OTHER_BOUNDS: &str = "the probes contradict the bounds of --clock, which are left out: they are of another run or guest, or a clock \
     was set meanwhile";
const CONTRADICTION: &str = "no offset between the clocks with a constant drift fits all stamps: a clock was set, or the stamps are of another \
     run; the remainder is not taken apart";

/// A probe's times in the guest, nanoseconds of one clock.
#[derive(Clone, Copy, Debug)]
pub struct GuestTimes {
    /// The device's interrupt began.
    pub interrupt: Option<i64>,
    /// The network softirq began.
    pub softirq: Option<i64>,
    /// The driver passed it to the stack.
    pub received_kernel: Option<i64>,
    /// The stack woke up the application's thread.
    pub woken: Option<i64>,
    /// That thread ran.
    pub running: Option<i64>,
    /// The application received it.
    pub received: i64,
    /// The application sent it, or sent it back.
    pub sent: i64,
    /// The stack passed it to the driver.
    pub sent_kernel: Option<i64>,
    /// By how much the kernel's stamps may be wrong.
    pub kernel_error: i64,
}

impl GuestTimes {
    /// The stamps of the guest's agent; `None` if it lacks one of the application's, or if one is no reading of a clock.
    /// `kernel_error_ns`: by how much those of the kernel may be wrong.
    pub fn of(stamp: &Stamp, kernel_error_ns: Option<u64>) -> Option<Self> {
        let time = |ns: u64| (ns <= STAMP_MAX).then_some(ns.cast_signed());
        let received_kernel = stamp.received_kernel.and_then(time);
        // Stages before and after the stack's stamp begin or end there.
        let stages = received_kernel.map(|_| stamp.stages).unwrap_or_default();
        let ReceptionStamps { interrupt, softirq, woken, running } = stages;
        Some(Self {
            interrupt: interrupt.and_then(time),
            softirq: softirq.and_then(time),
            received_kernel,
            woken: woken.and_then(time),
            running: running.and_then(time),
            received: time(stamp.received?)?,
            sent: time(stamp.sent)?,
            sent_kernel: stamp.sent_kernel.and_then(time),
            kernel_error: time(kernel_error_ns.unwrap_or(STAMP_NS))?,
        })
    }

    /// The first stamp on the way in. An interrupt or a softirq may have begun before the packet was there: then the driver
    /// polled already.
    pub fn arrived(&self) -> i64 {
        let first = self.interrupt.or(self.softirq).or(self.received_kernel);
        first.unwrap_or(self.received)
    }

    /// The time from the first stamp until the driver has passed it to the stack.
    pub fn polling(&self) -> i64 {
        let passed = self.received_kernel.unwrap_or(self.received);
        passed.saturating_sub(self.arrived()).max(0)
    }

    /// Adds the bounds of the guest's clock minus the host's that follow from this probe: the guest did not have it before
    /// it was published, and the daemon did not see it before it was sent.
    pub fn bound(&self, bursts: &ProbeBursts, bounds: &mut Bounds) {
        let kernel = self.received_kernel.map_or(i64::MAX, |ns| ns + self.kernel_error);
        let published = bursts.rx.visible_from();
        bounds.at_most(published, self.received.min(kernel).saturating_sub(published));
        let kernel = self.sent_kernel.map_or(i64::MIN, |ns| ns - self.kernel_error);
        let seen = bursts.tx.visible_until();
        bounds.at_least(seen, self.sent.max(kernel).saturating_sub(seen));
    }

    /// The same times by the host's clock, with these offsets on the way in and on the way out, nanoseconds.
    pub fn on_host(&self, [into, out]: [i64; 2]) -> Self {
        let arriving = |time: Option<i64>| time.map(|ns| ns.saturating_sub(into));
        Self {
            interrupt: arriving(self.interrupt),
            softirq: arriving(self.softirq),
            received_kernel: arriving(self.received_kernel),
            woken: arriving(self.woken),
            running: arriving(self.running),
            received: self.received.saturating_sub(into),
            sent: self.sent.saturating_sub(out),
            sent_kernel: self.sent_kernel.map(|ns| ns.saturating_sub(out)),
            kernel_error: self.kernel_error,
        }
    }
}
