//! All round trips, summarised part by part.

use serde::Serialize;

use super::{Journey, Journeys, Part};

/// Fewest packets for a meaningful tail.
const TAIL_PACKETS_MIN: usize = 100;

/// One part of all round trips, in nanoseconds.
pub struct Row {
    pub part: Part,
    /// Its times in the round trips where it was measured, sorted.
    pub times: Vec<i64>,
    /// Its mean in the round trips of the [`tail`] where it was measured.
    pub tail_ns: Option<f64>,
}

/// All parts, in the order of time.
pub fn rows(joined: &Journeys) -> Vec<Row> {
    let tail = tail(joined);
    let of = |(n, part)| {
        let mut times: Vec<_> =
            joined.journeys.iter().filter_map(|journey| journey.parts[n]).collect();
        times.sort_unstable();
        let slow: Vec<_> = tail.iter().filter_map(|journey| journey.parts[n]).collect();
        Row { part, times, tail_ns: mean(&slow) }
    };
    (0..).zip(joined.parts.iter().copied()).map(of).collect()
}

/// Figures of one time over all round trips; `None` if it was never measured.
#[derive(Clone, Copy, Debug, PartialEq, Serialize)]
pub struct Times {
    pub count: usize,
    pub mean_ns: Option<f64>,
    pub p50_ns: Option<i64>,
    pub p99_ns: Option<i64>,
    pub max_ns: Option<i64>,
}

impl Times {
    pub fn of(sorted: &[i64]) -> Self {
        Self {
            count: sorted.len(),
            mean_ns: mean(sorted),
            p50_ns: quantile(sorted, 50),
            p99_ns: quantile(sorted, 99),
            max_ns: sorted.last().copied(),
        }
    }
}

/// All round trips, sorted, in nanoseconds.
pub fn round_trips(joined: &Journeys) -> Vec<i64> {
    let mut trips: Vec<_> = joined.journeys.iter().map(|it| it.round_trip_ns).collect();
    trips.sort_unstable();
    trips
}

/// The errors of what lies between two clocks, sorted, in nanoseconds.
pub fn bounds(joined: &Journeys) -> Vec<i64> {
    let mut bounds: Vec<_> = joined.journeys.iter().map(|it| it.bound_ns).collect();
    bounds.sort_unstable();
    bounds
}

/// The round trips above the 99th percentile; none if there are fewer than `TAIL_PACKETS_MIN`.
pub fn tail(joined: &Journeys) -> Vec<&Journey> {
    let trips = round_trips(joined);
    let over = quantile(&trips, 99).filter(|_| trips.len() >= TAIL_PACKETS_MIN);
    let is_above = |it: &&Journey| over.is_some_and(|over| it.round_trip_ns > over);
    joined.journeys.iter().filter(is_above).collect()
}

pub fn mean(times: &[i64]) -> Option<f64> {
    (!times.is_empty())
        .then(|| times.iter().map(|&ns| i128::from(ns)).sum::<i128>() as f64 / times.len() as f64)
}

/// By nearest rank.
pub fn quantile(sorted: &[i64], percent: usize) -> Option<i64> {
    let rank = (percent * sorted.len()).div_ceil(100);
    sorted.get(rank.max(1) - 1).copied()
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::Initiator;
    use crate::journey::parts;
    use crate::journey::stamps::{GuestStages, ProbeId};

    fn joined(trips: impl IntoIterator<Item = i64>) -> Journeys {
        let journey = |(n, round_trip_ns)| Journey {
            id: ProbeId { run: 1, sequence: n },
            sent_ns: n,
            round_trip_ns,
            parts: vec![Some(round_trip_ns); parts(Initiator::Host).len()],
            bound_ns: 0,
            one_way: None,
        };
        Journeys {
            initiator: Initiator::Host,
            parts: parts(Initiator::Host),
            journeys: (0..).zip(trips).map(journey).collect(),
            clock: None,
            clock_note: None,
            guest_stages: GuestStages::default(),
            unseen: 0,
            lost: 0,
            has_echo: true,
            backwards: 0,
            misplaced: 0,
        }
    }

    #[test]
    fn the_tail_is_what_took_longer_than_99_of_100() {
        let slow = |joined: &Journeys| -> Vec<_> {
            tail(joined).iter().map(|it| it.round_trip_ns).collect()
        };
        assert_eq!(slow(&joined(1..=99)), [] as [i64; 0], "too few");
        assert_eq!(slow(&joined(1..=100)), [100]);
        assert_eq!(slow(&joined((1..=700).rev())), [700, 699, 698, 697, 696, 695, 694]);
        assert_eq!(slow(&joined([5; 300])), [] as [i64; 0], "none is slower than another");
        assert_eq!(rows(&joined(1..=300))[0].tail_ns, Some(299.0));
    }

    #[test]
    fn a_quantile_is_one_of_the_times() {
        let of = |percent| quantile(&[1, 2, 3, 4], percent);
        assert_eq!([0, 50, 51, 99, 100].map(of), [1, 2, 3, 4, 4].map(Some));
        assert_eq!(quantile(&[], 50), None);
    }
}
