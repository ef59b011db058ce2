//! A condition on bursts, for `ringscope record --when`: `rx.total>500us`.

use std::str::FromStr;

use burst_trace::{BurstRecord, Direction, KernelSpan, KernelStage, Record, Stage};

use crate::figures::TickRate;

/// A condition on a burst, or on a time in the host kernel: a time of one direction is longer than a limit.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Trigger {
    direction: Direction,
    span: Span,
    /// Whether a time equal to the limit fulfils it.
    is_inclusive: bool,
    limit_ns: u64,
}

/// The time that is compared.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Span {
    Total,
    /// A stage, by its index in the direction.
    Stage(usize),
    /// A stage in the host kernel.
    Kernel(KernelStage),
}

impl Span {
    fn from_name(name: &str, direction: Direction) -> Option<Self> {
        if name == "total" {
            return Some(Self::Total);
        }
        let own = Stage::from_name(name).and_then(|stage| direction.position(stage));
        let kernel = || kernel_stages(direction).find(|stage| stage.name() == name);
        own.map(Self::Stage).or_else(|| kernel().map(Self::Kernel))
    }
}

/// The stages in the host kernel that packets of this direction cross.
fn kernel_stages(direction: Direction) -> impl Iterator<Item = KernelStage> {
    let is_crossed = move |stage: &KernelStage| stage.direction().is_none_or(|it| it == direction);
    KernelStage::ALL.into_iter().filter(is_crossed)
}

impl Trigger {
    /// Whether the record fulfils it: a burst, or a time in the host kernel. A wake-up of a worker counts for both
    /// directions, because the worker then looks both ways.
    #[must_use]
    pub fn is_met_by(&self, record: &Record, rate: TickRate) -> bool {
        let ticks = match record {
            Record::Burst(burst) => self.ticks_of_burst(burst),
            Record::KernelSpan(span) => self.ticks_of_span(span),
            _ => None,
        };
        ticks.is_some_and(|ticks| {
            let ns = rate.ns(ticks);
            ns > self.limit_ns || self.is_inclusive && ns == self.limit_ns
        })
    }

    /// The stage in the host kernel that has to be measured for it, if it is one.
    #[must_use]
    pub const fn kernel_stage(&self) -> Option<KernelStage> {
        match self.span {
            Span::Kernel(stage) => Some(stage),
            Span::Total | Span::Stage(_) => None,
        }
    }

    fn ticks_of_burst(&self, burst: &BurstRecord) -> Option<u64> {
        if burst.direction() != self.direction {
            return None;
        }
        match self.span {
            Span::Total => Some(burst.total()),
            Span::Kernel(KernelStage::Wakeup) => burst.wakeup.map(u64::from),
            Span::Kernel(_) => None,
            Span::Stage(place) => Some(burst.stages[place]),
        }
    }

    fn ticks_of_span(&self, span: &KernelSpan) -> Option<u64> {
        (self.kernel_stage() == Some(span.stage)).then(|| span.end.saturating_sub(span.start))
    }
}

impl FromStr for Trigger {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        let wrong = |what: &str| {
            Err(format!("expected {what}, as in rx.total>500us or tx.egress>=2ms, found '{text}'"))
        };
        let Some(at) = text.find('>') else { return wrong("DIRECTION.TIME>LIMIT") };
        let (left, right) = (text[..at].trim(), &text[at + 1..]);
        let (is_inclusive, limit) = match right.strip_prefix('=') {
            Some(limit) => (true, limit.trim()),
            None => (false, right.trim()),
        };
        let direction = match left.split_once('.') {
            Some(("tx", _)) => Direction::Tx,
            Some(("rx", _)) => Direction::Rx,
            _ => return wrong("tx. or rx. before the time's name"),
        };
        let Some(span) = Span::from_name(&left[3..], direction) else {
            let own = direction.stages().iter().map(|stage| stage.name());
            let kernel = kernel_stages(direction).map(KernelStage::name);
            let names: Vec<_> = own.chain(kernel).collect();
            let direction = direction.name();
            return wrong(&format!("after {direction}. total or one of {}", names.join(", ")));
        };
        match nanoseconds(limit) {
            Some(limit_ns) => Ok(Self { direction, span, is_inclusive, limit_ns }),
            None => wrong("a limit with its unit, ns, us, ms or s"),
        }
    }
}

/// `500us`, `1.5ms`: in nanoseconds. `None` if it is no number with a unit.
#[must_use]
pub fn nanoseconds(text: &str) -> Option<u64> {
    let at = text.find(char::is_alphabetic)?;
    let factor = match &text[at..] {
        "ns" => 1.0,
        // Micro sign, and Greek letter mu.
        "us" | "\u{b5}s" | "\u{3bc}s" => 1e3,
        "ms" => 1e6,
        "s" => 1e9,
        _ => return None,
    };
    let ns = text[..at].trim().parse::<f64>().ok()? * factor;
    (0.0..1e18).contains(&ns).then_some(ns.round() as u64)
}

#[cfg(test)]
mod tests {
    use burst_trace::stage::STAGES_MAX;

    use super::*;

    fn burst(ring: u16, stages: [u64; STAGES_MAX], wakeup: Option<u32>) -> BurstRecord {
        let total: u64 = stages.iter().sum();
        let (first, last) = (1000, 1000 + total);
        BurstRecord { first, last, stages, packets: 1, ring, wakeup, ..BurstRecord::default() }
    }

    fn is_met(text: &str, record: &BurstRecord) -> bool {
        is_met_by(text, &Record::Burst(*record))
    }

    fn is_met_by(text: &str, record: &Record) -> bool {
        text.parse::<Trigger>().unwrap().is_met_by(record, TickRate::new(1_000_000_000))
    }

    #[test]
    fn each_time_of_its_direction_is_compared() {
        let rx = burst(0, [100, 0, 0, 2000, 10, 90, 0], Some(700));
        assert!(is_met("rx.total>2.1us", &rx));
        assert!(!is_met("rx.total > 2200ns", &rx));
        assert!(is_met("rx.total>=2200ns", &rx));
        assert!(is_met("rx.place>1999ns", &rx));
        assert!(!is_met("rx.place>0.002ms", &rx));
        assert!(is_met("rx.wakeup>0.0000006s", &rx));
        assert!(!is_met("tx.total>1ns", &rx));
        assert!(!is_met("rx.wakeup>1ns", &burst(0, [1; STAGES_MAX], None)));
    }

    #[test]
    fn times_in_the_host_kernel_are_compared() {
        let span = |stage| {
            Record::KernelSpan(KernelSpan { stage, start: 100, end: 900, worker: None, writer: 1 })
        };
        assert!(is_met_by("rx.inject>799ns", &span(KernelStage::Inject)));
        assert!(!is_met_by("rx.inject>800ns", &span(KernelStage::Inject)));
        assert!(is_met_by("tx.host-tx>=0.8\u{b5}s", &span(KernelStage::HostTx)));
        assert!(is_met_by("rx.host-rx>=0.8\u{3bc}s", &span(KernelStage::HostRx)));
        assert!(!is_met_by("rx.host-rx>1ns", &span(KernelStage::Inject)));
        for text in ["rx.wakeup>1ns", "tx.wakeup>1ns"] {
            assert!(is_met_by(text, &span(KernelStage::Wakeup)));
        }
        assert!(!is_met_by("rx.total>1ns", &span(KernelStage::Wakeup)));
    }

    #[test]
    fn a_name_that_is_none_gets_the_list() {
        let error = |text: &str| text.parse::<Trigger>().unwrap_err();
        let expected = "total or one of notice, limited, starved, place, publish, signal, wakeup, host-rx, inject";
        assert!(error("rx.nosuch>1us").contains(expected), "{}", error("rx.nosuch>1us"));
        let expected = "total or one of notice, queued, limited, gather, egress, complete, signal, wakeup, host-tx";
        assert!(error("tx.inject>1us").contains(expected), "{}", error("tx.inject>1us"));
    }

    #[test]
    fn what_makes_no_sense_is_refused_with_an_example() {
        for text in [
            "",
            "rx.total",
            "total>1us",
            "rx.egress>1us",
            "tx.total>1",
            "tx.total>xus",
            "tx.total>-1us",
            "tx.total>1\u{b5}",
            "\u{e9}\u{e9}.total>1us",
        ] {
            let error = text.parse::<Trigger>().unwrap_err();
            assert!(error.contains("rx.total>500us"), "{text}: {error}");
        }
    }
}
