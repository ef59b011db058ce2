//! A condition on bursts, for `ringscope record --when`: `rx.total>500us`.

use std::str::FromStr;

use burst_trace::{BurstRecord, Direction, Stage};

use crate::figures::TickRate;

/// A condition on a burst: a time of one direction is longer than a limit.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Trigger {
    direction: Direction,
    span: Span,
    /// Whether a time equal to the limit fulfils it.
    is_inclusive: bool,
    limit_ns: u64,
}

/// The time of a burst that is compared.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Span {
    Total,
    Wakeup,
    /// A stage, by its index in the direction.
    Stage(usize),
}

impl Trigger {
    /// Whether the burst fulfils it.
    #[must_use]
    pub fn is_met_by(&self, record: &BurstRecord, rate: TickRate) -> bool {
        if record.direction() != self.direction {
            return false;
        }
        let ticks = match self.span {
            Span::Total => record.total(),
            Span::Wakeup => match record.wakeup {
                Some(ticks) => ticks.into(),
                None => return false,
            },
            Span::Stage(place) => record.stages[place],
        };
        let ns = rate.ns(ticks);
        ns > self.limit_ns || self.is_inclusive && ns == self.limit_ns
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
        let span = match &left[3..] {
            "total" => Span::Total,
            "wakeup" => Span::Wakeup,
            name => match Stage::from_name(name).and_then(|stage| direction.position(stage)) {
                Some(place) => Span::Stage(place),
                None => return wrong("total, wakeup or a stage of that direction"),
            },
        };
        match nanoseconds(limit) {
            Some(limit_ns) => Ok(Self { direction, span, is_inclusive, limit_ns }),
            None => wrong("a limit in ns, us, ms or s"),
        }
    }
}

/// `500us`, `1.5ms`: in nanoseconds.
fn nanoseconds(text: &str) -> Option<u64> {
    let at = text.find(|c: char| c.is_ascii_alphabetic())?;
    let factor = match &text[at..] {
        "ns" => 1.0,
        "us" => 1e3,
        "ms" => 1e6,
        "s" => 1e9,
        _ => return None,
    };
    let ns = text[..at].trim().parse::<f64>().ok()? * factor;
    (0.0..1e18).contains(&ns).then_some(ns.round() as u64)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn burst(ring: u16, stages: [u64; 6], wakeup: Option<u32>) -> BurstRecord {
        let total: u64 = stages.iter().sum();
        let (first, last) = (1000, 1000 + total);
        BurstRecord { first, last, stages, packets: 1, ring, wakeup, ..BurstRecord::default() }
    }

    fn is_met(text: &str, record: &BurstRecord) -> bool {
        text.parse::<Trigger>().unwrap().is_met_by(record, TickRate::new(1_000_000_000))
    }

    #[test]
    fn each_time_of_its_direction_is_compared() {
        let rx = burst(0, [100, 0, 2000, 10, 90, 0], Some(700));
        assert!(is_met("rx.total>2.1us", &rx));
        assert!(!is_met("rx.total > 2200ns", &rx));
        assert!(is_met("rx.total>=2200ns", &rx));
        assert!(is_met("rx.place>1999ns", &rx));
        assert!(!is_met("rx.place>0.002ms", &rx));
        assert!(is_met("rx.wakeup>0.0000006s", &rx));
        assert!(!is_met("tx.total>1ns", &rx));
        assert!(!is_met("rx.wakeup>1ns", &burst(0, [1; 6], None)));
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
        ] {
            let error = text.parse::<Trigger>().unwrap_err();
            assert!(error.contains("rx.total>500us"), "{text}: {error}");
        }
    }
}
