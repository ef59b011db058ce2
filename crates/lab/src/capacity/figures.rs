//! The figures of what was kept of a variant's capacity.

use std::fs;
use std::io;
use std::path::{Path, PathBuf};

use serde::Serialize;

use super::search::{Found, Outcome, found};
use super::{Loaded, Measured};
use crate::kept::{Kept, Manifest};
use crate::plan::Way;

/// Bytes of the headers of IPv4 and UDP.
const HEADER_BYTES: u64 = 28;

/// The capacity of a variant, one way.
#[derive(Clone, Debug, Serialize)]
pub struct Capacity {
    /// The variant's name.
    pub variant: String,
    /// Who sent.
    pub way: Way,
    /// Which repeat, from 1.
    pub repeat: usize,
    /// IPv4 packets of this length, bytes.
    pub packet_bytes: u64,
    /// What the rate is worth.
    pub outcome: Outcome,
    /// The rate at which nothing was lost, packets a second; `None` if there is none.
    pub lossless_pps: Option<u64>,
    /// The same in bits of IPv4 packets a second.
    pub lossless_bits_per_s: Option<u64>,
    /// The lowest rate with loss, packets a second; `None` if there was none.
    pub lossy_pps: Option<u64>,
    /// Trials of the search.
    pub trials: usize,
    /// CPU time; `None` if there is no rate without loss.
    pub cpu: Option<CpuAMillion>,
    /// What was measured at shares of the rate without loss.
    pub loaded: Vec<Loaded>,
    /// Why something is missing.
    pub trouble: Option<String>,
}

/// CPU time for a million packets, seconds.
#[derive(Clone, Debug, PartialEq, Serialize)]
pub struct CpuAMillion {
    /// At this share of the rate without loss, percent.
    pub percent: u8,
    /// All threads of the back end; `None` if the variant has none of its own.
    pub back_end_s: Option<f64>,
    /// QEMU or User Mode Linux, with the guest; `None` without a guest.
    pub front_end_s: Option<f64>,
    /// The kernel's threads.
    pub kernel_threads_s: f64,
    /// All CPUs of the host, whatever ran there.
    pub host_s: f64,
}

/// What was kept cannot be used.
#[derive(Debug, thiserror::Error)]
pub enum CapacityError {
    /// It cannot be read.
    #[error("cannot read {path}: {source}")]
    Io {
        /// The file.
        path: PathBuf,
        /// What the system said.
        source: io::Error,
    },
    /// It is something else.
    #[error(
        "expected {path} to be written by `ringscope lab --capacity on`, found otherwise: {source}"
    )]
    Format {
        /// The file.
        path: PathBuf,
        /// What is wrong with it.
        source: serde_json::Error,
    },
}

/// Reads the capacities of all variants.
pub(crate) fn read(kept: &Kept, manifest: &Manifest) -> Result<Vec<Capacity>, CapacityError> {
    let of = |(variant, repeat, path): (String, usize, PathBuf)| {
        Ok(Capacity::of(variant, repeat + 1, read_measured(&path)?))
    };
    kept.capacities(manifest).into_iter().map(of).collect()
}

fn read_measured(path: &Path) -> Result<Measured, CapacityError> {
    let text = fs::read(path).map_err(|source| CapacityError::Io { path: path.into(), source })?;
    serde_json::from_slice(&text)
        .map_err(|source| CapacityError::Format { path: path.into(), source })
}

impl Capacity {
    fn of(variant: String, repeat: usize, measured: Measured) -> Self {
        let Found { outcome, lossless_pps, lossy_pps } = found(&measured.limits, &measured.trials);
        let packet_bytes = measured.payload_bytes as u64 + HEADER_BYTES;
        Self {
            variant,
            way: measured.way,
            repeat,
            packet_bytes,
            outcome,
            lossless_pps,
            lossless_bits_per_s: lossless_pps
                .map(|it| it.saturating_mul(packet_bytes).saturating_mul(8)),
            lossy_pps,
            trials: measured.trials.len(),
            cpu: measured.loaded.iter().find_map(CpuAMillion::of),
            loaded: measured.loaded,
            trouble: measured.trouble,
        }
    }
}

impl CpuAMillion {
    fn of(loaded: &Loaded) -> Option<Self> {
        let cpu = loaded.cpu.as_ref()?;
        let millions = loaded.flow.sent as f64 / loaded.flow.seconds * cpu.seconds / 1e6;
        (millions > 0.0).then(|| Self {
            percent: loaded.percent,
            back_end_s: cpu.back_end_s.map(|it| it / millions),
            front_end_s: cpu.front_end_s.map(|it| it / millions),
            kernel_threads_s: cpu.kernel_threads_s / millions,
            host_s: cpu.host_s / millions,
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::capacity::LIMITS;
    use crate::capacity::cpu::CpuUse;
    use crate::capacity::search::Trial;

    #[test]
    fn figures_are_those_of_the_trials() {
        let trial = |pps: u64, received: u64| Trial {
            intended_pps: pps,
            sent: pps / 2,
            received: received / 2,
            seconds: 0.5,
        };
        let cpu = CpuUse {
            seconds: 2.0,
            back_end_s: Some(0.5),
            front_end_s: None,
            kernel_threads_s: 0.1,
            host_s: 1.5,
        };
        let flow = trial(20_000, 20_000);
        let measured = Measured {
            way: Way::FromResponder,
            payload_bytes: 1472,
            limits: LIMITS,
            trials: vec![
                trial(1_000_000, 40_000),
                trial(40_000, 40_000),
                trial(41_000, 40_000),
                trial(40_000, 40_000),
                trial(41_000, 40_000),
            ],
            loaded: vec![Loaded { percent: 50, flow, probes: None, cpu: Some(cpu) }],
            trouble: None,
        };
        let capacity = Capacity::of("a".into(), 1, measured);
        assert_eq!((capacity.outcome, capacity.lossless_pps), (Outcome::Found, Some(40_000)));
        assert_eq!(capacity.lossless_bits_per_s, Some(480_000_000));
        // 40 000 packets in two seconds.
        let cpu = capacity.cpu.unwrap();
        assert_eq!((cpu.back_end_s, cpu.front_end_s, cpu.host_s), (Some(12.5), None, 37.5));
    }

    #[test]
    fn a_spoilt_file_is_named() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("x.json");
        assert!(read_measured(&path).unwrap_err().to_string().contains("x.json"));
        fs::write(&path, "{").unwrap();
        assert!(read_measured(&path).unwrap_err().to_string().contains("found otherwise"));
    }
}
