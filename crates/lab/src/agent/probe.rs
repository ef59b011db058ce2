//! The probe packet's payload and the statistics of its round trips.

use serde::Serialize;

/// Length of the payload that a probe needs; longer packets are padded with zeros.
pub const PROBE_BYTES: usize = 32;

/// "RSCP": tells a probe from other packets on the same port.
const MAGIC: u32 = 0x5253_4350;

/// What a probe packet carries, big endian in this order: magic, run, sequence, intended send
/// time, actual send time.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Probe {
    /// Tells one run's packets from stragglers of the run before.
    pub run: u32,
    /// Counts from 0, warm-up included.
    pub sequence: u64,
    /// When the timetable wanted it sent, in nanoseconds of the sender's CLOCK_MONOTONIC.
    pub intended_ns: u64,
    /// When it was sent, on the same clock.
    pub sent_ns: u64,
}

impl Probe {
    /// Writes the probe to the start of a packet of at least [`PROBE_BYTES`].
    pub fn write(&self, packet: &mut [u8]) {
        packet[0..4].copy_from_slice(&MAGIC.to_be_bytes());
        packet[4..8].copy_from_slice(&self.run.to_be_bytes());
        packet[8..16].copy_from_slice(&self.sequence.to_be_bytes());
        packet[16..24].copy_from_slice(&self.intended_ns.to_be_bytes());
        packet[24..32].copy_from_slice(&self.sent_ns.to_be_bytes());
    }

    /// Reads a probe; `None` when the packet is too short or is something else.
    pub fn read(packet: &[u8]) -> Option<Self> {
        let word = |at: usize| {
            let bytes = packet.get(at..at + 8)?;
            Some(u64::from_be_bytes(bytes.try_into().ok()?))
        };
        let head = word(0)?;
        if (head >> 32) as u32 != MAGIC {
            return None;
        }
        Some(Self {
            run: head as u32,
            sequence: word(8)?,
            intended_ns: word(16)?,
            sent_ns: word(24)?,
        })
    }
}

/// The figures of a set of round trips. Percentiles are exact: every sample is kept.
#[derive(Debug, Clone, Copy, PartialEq, Serialize)]
pub(super) struct Figures {
    pub(super) min_ns: u64,
    pub(super) mean_ns: f64,
    pub(super) p50_ns: u64,
    pub(super) p90_ns: u64,
    pub(super) p99_ns: u64,
    pub(super) p999_ns: u64,
    pub(super) p9999_ns: u64,
    pub(super) max_ns: u64,
    pub(super) stddev_ns: f64,
}

impl Figures {
    /// `None` without samples. Nothing is trimmed.
    pub(super) fn of(mut samples: Vec<u64>) -> Option<Self> {
        samples.sort_unstable();
        let (&min_ns, &max_ns) = (samples.first()?, samples.last()?);
        let count = samples.len() as f64;
        let mean_ns = samples.iter().map(|&sample| sample as f64).sum::<f64>() / count;
        let squares: f64 = samples.iter().map(|&sample| (sample as f64 - mean_ns).powi(2)).sum();
        // Nearest rank: the smallest sample that at least this share of samples does not exceed.
        let rank =
            |share: f64| samples[((share * count).ceil() as usize).clamp(1, samples.len()) - 1];
        Some(Self {
            min_ns,
            mean_ns,
            p50_ns: rank(0.5),
            p90_ns: rank(0.9),
            p99_ns: rank(0.99),
            p999_ns: rank(0.999),
            p9999_ns: rank(0.9999),
            max_ns,
            stddev_ns: (squares / count).sqrt(),
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_probe_survives_the_wire() {
        let probe = Probe { run: 7, sequence: 1 << 40, intended_ns: 3, sent_ns: u64::MAX };
        let mut packet = [0; 64];
        probe.write(&mut packet);
        assert_eq!(Probe::read(&packet), Some(probe));
        assert_eq!(Probe::read(&packet[..31]), None);
        packet[0] ^= 1;
        assert_eq!(Probe::read(&packet), None);
    }

    #[test]
    fn figures_are_nearest_rank() {
        let figures = Figures::of((1..=1000).rev().collect()).unwrap();
        assert_eq!((figures.min_ns, figures.max_ns), (1, 1000));
        assert_eq!((figures.p50_ns, figures.p90_ns, figures.p99_ns), (500, 900, 990));
        assert_eq!((figures.p999_ns, figures.p9999_ns), (999, 1000));
        assert!((figures.mean_ns - 500.5).abs() < 1e-9);
        assert!((figures.stddev_ns - 288.675).abs() < 1e-3);
        assert_eq!(Figures::of(Vec::new()), None);
    }
}
