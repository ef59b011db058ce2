//! The stages of the slowest packets.
//!
//! Percentiles of stages do not add up to percentiles of the total. Means do: so this module takes the packets whose total
//! is above the 99th percentile, and computes the mean of each stage.

use burst_trace::{BurstRecord, Direction};

use crate::figures::TickRate;

/// Adds up the packets of one direction whose total is longer than a limit.
#[derive(Clone, Debug)]
pub struct Tail {
    direction: Direction,
    /// `None`: all packets count.
    over_ns: Option<u64>,
    packets: u64,
    stages: Vec<u128>,
    total: u128,
}

/// The mean of each stage, in order, and of the total, which is exactly their sum.
#[derive(Clone, Debug, PartialEq, serde::Serialize)]
pub struct Composition {
    /// Number of packets.
    pub packets: u64,
    /// Nanoseconds, in the order of [`Direction::stages`].
    pub stages_ns: Vec<f64>,
    /// Nanoseconds.
    pub total_ns: f64,
}

impl Tail {
    /// For the packets of `direction` that took longer than `over_ns`.
    #[must_use]
    pub fn new(direction: Direction, over_ns: u64) -> Self {
        Self { over_ns: Some(over_ns), ..Self::of_all(direction) }
    }

    /// For all packets of `direction`.
    #[must_use]
    pub fn of_all(direction: Direction) -> Self {
        let stages = vec![0; direction.stages().len()];
        Self { direction, over_ns: None, packets: 0, stages, total: 0 }
    }

    /// Adds a burst.
    pub fn add(&mut self, record: &BurstRecord, rate: TickRate) {
        if record.direction() != self.direction
            || self.over_ns.is_some_and(|over_ns| rate.ns(record.total()) <= over_ns)
        {
            return;
        }
        let packets = u128::from(record.packets);
        self.packets += u64::from(record.packets);
        self.total += u128::from(record.total()) * packets;
        for (sum, ticks) in self.stages.iter_mut().zip(record.stages) {
            *sum += u128::from(ticks) * packets;
        }
    }

    /// The composition, if there are any packets.
    #[must_use]
    pub fn composition(&self, rate: TickRate) -> Option<Composition> {
        let mean = |sum: u128| rate.mean_ns(i128::try_from(sum).unwrap_or(i128::MAX), self.packets);
        (self.packets > 0).then(|| Composition {
            packets: self.packets,
            stages_ns: self.stages.iter().copied().map(mean).collect(),
            total_ns: mean(self.total),
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_the_slow_packets_count_and_their_stages_add_up() {
        let rate = TickRate::new(1_000_000_000);
        let mut tail = Tail::new(Direction::Tx, 1000);
        for n in 0..100 {
            let stages = [10, 0, 0, 20, 30 + n * 20, 40, 50];
            let last = stages.iter().sum();
            let (ring, packets) = (1, 2);
            tail.add(&BurstRecord { last, stages, ring, packets, ..BurstRecord::default() }, rate);
        }
        let composition = tail.composition(rate).unwrap();
        // 150 + 20 n > 1000: n from 43 on.
        assert_eq!(composition.packets, 2 * 57);
        let sum: f64 = composition.stages_ns.iter().sum();
        assert!((sum - composition.total_ns).abs() < 1e-6);
        assert!((composition.total_ns - (150.0 + 20.0 * 71.0)).abs() < 1e-6);
        assert_eq!(Tail::new(Direction::Rx, 0).composition(rate), None);
    }
}
