//! The statistics of round trips.

use serde::Serialize;

/// The figures of a set of round trips. Percentiles are exact: every sample is kept.
#[derive(Debug, Clone, Copy, PartialEq, Serialize)]
pub struct Figures {
    /// The shortest, nanoseconds, as all others.
    pub min_ns: u64,
    /// Arithmetic mean.
    pub mean_ns: f64,
    /// Median.
    pub p50_ns: u64,
    /// 90th percentile.
    pub p90_ns: u64,
    /// 99th percentile.
    pub p99_ns: u64,
    /// 99.9th percentile.
    pub p999_ns: u64,
    /// 99.99th percentile.
    pub p9999_ns: u64,
    /// The longest.
    pub max_ns: u64,
    /// Standard deviation.
    pub stddev_ns: f64,
}

impl Figures {
    /// `None` without samples. Nothing is trimmed.
    #[must_use]
    pub fn of(mut samples: Vec<u64>) -> Option<Self> {
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
