//! Splits a measured round trip into our share, the guest's and the host's.
//!
//! In ping-pong (one packet in flight), a round trip that the host began has these parts, by the recorder's own stamps:
//!
//! ```text
//! our RX          wake .. signalled of the request's burst
//! guest's turn    signalled .. wake of the answer's burst, in the same queue pair
//! our TX          wake .. signalled of the answer's burst
//! host's share    what is left of the round trip that the sender measured
//! ```
//!
//! If the guest began it, the roles swap: our TX, the host's turn, our RX, and the rest is the guest's share. A turn
//! can be negative if two bursts overlap (one wake-up served both, or the worker polled). It is summed with its sign,
//! so the parts always add up to the whole.

use std::io;
use std::path::{Path, PathBuf};

use burst_trace::{BurstRecord, Direction, Record, Stage};
use serde::Deserialize;

use crate::figures::TickRate;

/// The side that sends the requests.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Initiator {
    /// Outside the guest: requests arrive by RX.
    Host,
    /// Inside the guest: requests leave by TX.
    Guest,
}

impl Initiator {
    /// `host` or `guest`.
    #[must_use]
    pub const fn name(self) -> &'static str {
        match self {
            Self::Host => "host",
            Self::Guest => "guest",
        }
    }

    /// The side that answers.
    #[must_use]
    pub const fn other(self) -> Self {
        match self {
            Self::Host => Self::Guest,
            Self::Guest => Self::Host,
        }
    }

    const fn request(self) -> Direction {
        match self {
            Self::Host => Direction::Rx,
            Self::Guest => Direction::Tx,
        }
    }
}

/// Why a round-trip file could not be used.
#[derive(Debug, thiserror::Error)]
pub enum RoundTripError {
    /// The file could not be read.
    #[error("cannot read the round trip {path}: {source}; make it with `ringscope agent udp-ping`")]
    Io {
        /// Its path.
        path: PathBuf,
        /// The system's error.
        source: io::Error,
    },
    /// The file has a wrong format.
    #[error(
        "{path} holds no round trip: expected a JSON object with a mean_ns above 0, found {found}; \
         make it with `ringscope agent udp-ping`"
    )]
    Format {
        /// Its path.
        path: PathBuf,
        /// What was found instead.
        found: String,
    },
}

/// A round trip as its sender measured it. Fields that are not needed may be missing in the file.
#[derive(Clone, Copy, Debug, PartialEq, Deserialize)]
pub struct Measured {
    /// The mean.
    pub mean_ns: f64,
    /// Number of answers received.
    pub received: Option<u64>,
    /// The median.
    pub p50_ns: Option<f64>,
    /// The 99th percentile.
    pub p99_ns: Option<f64>,
    /// The longest.
    pub max_ns: Option<f64>,
}

impl Measured {
    /// Reads the file that `ringscope agent udp-ping` made.
    ///
    /// # Errors
    /// If it cannot be read or has a wrong format.
    pub fn read(path: &Path) -> Result<Self, RoundTripError> {
        let text = std::fs::read_to_string(path)
            .map_err(|source| RoundTripError::Io { path: path.into(), source })?;
        let format = |found: String| RoundTripError::Format { path: path.into(), found };
        let measured: Self =
            serde_json::from_str(&text).map_err(|error| format(error.to_string()))?;
        if measured.mean_ns > 0.0 {
            Ok(measured)
        } else {
            Err(format(format!("mean_ns {}", measured.mean_ns)))
        }
    }
}

/// Finds the exchanges in the records: a request and its answer.
#[derive(Debug)]
pub struct Exchanges {
    initiator: Initiator,
    rate: TickRate,
    longest_ticks: u64,
    requests: Vec<Option<BurstRecord>>,
    sums: Sums,
    too_long: u64,
}

#[derive(Clone, Copy, Debug, Default)]
struct Sums {
    count: u64,
    tx: i128,
    rx: i128,
    turn: i128,
    after_egress: i128,
}

impl Exchanges {
    /// For a recorder with this number of queue pairs.
    ///
    /// A pair of bursts that takes longer than the longest measured round trip is no exchange, but a frame and its
    /// unrelated successor.
    #[must_use]
    pub fn new(
        initiator: Initiator,
        queue_pairs: usize,
        rate: TickRate,
        longest_ns: Option<f64>,
    ) -> Self {
        Self {
            initiator,
            rate,
            longest_ticks: longest_ns.map_or(u64::MAX, |ns| rate.ticks(ns / 1e9)),
            requests: vec![None; queue_pairs],
            sums: Sums::default(),
            too_long: 0,
        }
    }

    /// Processes a record. The records of one queue pair must come in their order.
    pub fn add(&mut self, record: &Record) {
        let Record::Burst(record) = record else { return };
        let Some(pending) = self.requests.get_mut(usize::from(record.ring / 2)) else { return };
        if record.packets != 1 {
            *pending = None;
            return;
        }
        if record.direction() == self.initiator.request() {
            *pending = Some(*record);
            return;
        }
        let Some(request) = pending.take() else { return };
        if record.last.saturating_sub(request.first) > self.longest_ticks {
            self.too_long += 1;
            return;
        }
        self.sums.add(&request, record);
    }

    /// Splits the round trip `measured` into its parts.
    #[must_use]
    pub fn explain(&self, measured: Measured) -> RoundTrip {
        let sums = &self.sums;
        let parts = (sums.count > 0).then(|| {
            let mean_ns = |ticks| self.rate.mean_ns(ticks, sums.count);
            Parts {
                tx_ns: mean_ns(sums.tx),
                rx_ns: mean_ns(sums.rx),
                turn_ns: mean_ns(sums.turn),
                rest_ns: measured.mean_ns - mean_ns(sums.tx + sums.rx + sums.turn),
                after_egress_ns: mean_ns(sums.after_egress),
            }
        });
        RoundTrip {
            initiator: self.initiator,
            measured,
            exchanges: sums.count,
            too_long: self.too_long,
            parts,
        }
    }
}

impl Sums {
    fn add(&mut self, request: &BurstRecord, answer: &BurstRecord) {
        let (tx, rx) = match request.direction() {
            Direction::Tx => (request, answer),
            Direction::Rx => (answer, request),
        };
        self.count += 1;
        self.tx += i128::from(tx.total());
        self.rx += i128::from(rx.total());
        self.turn += i128::from(answer.first) - i128::from(request.last);
        for (stage, &ticks) in Direction::Tx.stages().iter().zip(&tx.stages) {
            if matches!(stage, Stage::Complete | Stage::Signal) {
                self.after_egress += i128::from(ticks);
            }
        }
    }
}

/// A round trip, split into its parts.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct RoundTrip {
    /// The side that sent the requests.
    pub initiator: Initiator,
    /// What the sender measured.
    pub measured: Measured,
    /// Number of exchanges in the records.
    pub exchanges: u64,
    /// Pairs of records that took longer than the longest measured round trip. They are not counted as exchanges.
    pub too_long: u64,
    /// The parts, if there was any exchange.
    pub parts: Option<Parts>,
}

impl RoundTrip {
    /// Whether the records hardly show the measured packets: their numbers differ by more than a tenth.
    #[must_use]
    pub fn is_of_other_packets(&self) -> bool {
        self.measured.received.is_some_and(|sent| sent.abs_diff(self.exchanges) * 10 > sent)
    }
}

/// The parts of a round trip, each a mean. Their sum is the mean of the round trip.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Parts {
    /// Our TX, first boundary to last.
    pub tx_ns: f64,
    /// Our RX, first boundary to last.
    pub rx_ns: f64,
    /// The other side's turn: from the request's last boundary to the answer's first one.
    pub turn_ns: f64,
    /// The sender's own share: the rest of the time that it measured.
    pub rest_ns: f64,
    /// The time of our TX after the datapath took the frame. Meanwhile the host works on the frame.
    pub after_egress_ns: f64,
}

#[cfg(test)]
mod tests {
    use super::*;

    const MEASURED: Measured = Measured {
        mean_ns: 50_000.0,
        received: Some(100),
        p50_ns: None,
        p99_ns: None,
        max_ns: Some(90_000.0),
    };

    /// A burst of one packet on `ring`, with one tick a nanosecond.
    fn burst(ring: u16, first: u64, total: u64) -> BurstRecord {
        let stages = [total - 700, 0, 0, 0, 0, 400, 300];
        BurstRecord {
            first,
            last: first + total,
            stages,
            packets: 1,
            bytes: 64,
            ring,
            ..BurstRecord::default()
        }
    }

    fn one(ring: u16, first: u64, total: u64) -> Record {
        Record::Burst(burst(ring, first, total))
    }

    /// 100 exchanges, 1 ms apart: RX 5 µs, 20 µs, TX 8 µs.
    fn ping_pong(initiator: Initiator) -> Exchanges {
        let rate = TickRate::new(1_000_000_000);
        let mut exchanges = Exchanges::new(initiator, 1, rate, MEASURED.max_ns);
        for n in 1..=100 {
            let start = n * 1_000_000;
            exchanges.add(&one(0, start, 5_000));
            exchanges.add(&one(1, start + 25_000, 8_000));
        }
        exchanges
    }

    #[test]
    fn a_round_trip_from_the_host_is_ours_the_guests_and_the_rest() {
        let trip = ping_pong(Initiator::Host).explain(MEASURED);
        let parts = trip.parts.unwrap();
        assert_eq!((trip.exchanges, trip.too_long), (100, 0));
        assert!((parts.rx_ns - 5_000.0).abs() < 1e-6);
        assert!((parts.tx_ns - 8_000.0).abs() < 1e-6);
        assert!((parts.turn_ns - 20_000.0).abs() < 1e-6);
        assert!((parts.rest_ns - 17_000.0).abs() < 1e-6);
        assert!((parts.after_egress_ns - 700.0).abs() < 1e-6);
        assert!(!trip.is_of_other_packets());
    }

    #[test]
    fn the_pause_between_exchanges_is_nobodys_turn() {
        // Read as if the guest had begun, the "host's turn" would be the sender's pause.
        let trip = ping_pong(Initiator::Guest).explain(MEASURED);
        assert_eq!((trip.exchanges, trip.too_long), (0, 99));
        assert_eq!(trip.parts, None);
        assert!(trip.is_of_other_packets());
    }

    #[test]
    fn a_round_trip_from_the_guest_swaps_the_roles() {
        let rate = TickRate::new(1_000_000_000);
        let mut exchanges = Exchanges::new(Initiator::Guest, 1, rate, None);
        exchanges.add(&one(1, 1_000, 8_000));
        exchanges.add(&one(0, 19_000, 5_000));
        let parts = exchanges.explain(MEASURED).parts.unwrap();
        assert!((parts.turn_ns - 10_000.0).abs() < 1e-6);
        assert!((parts.rest_ns - 27_000.0).abs() < 1e-6);
    }

    #[test]
    fn overlapping_bursts_keep_the_sum() {
        let rate = TickRate::new(1_000_000_000);
        let mut exchanges = Exchanges::new(Initiator::Host, 1, rate, None);
        exchanges.add(&one(0, 1_000, 5_000));
        exchanges.add(&one(1, 4_000, 8_000));
        let parts = exchanges.explain(MEASURED).parts.unwrap();
        assert!((parts.turn_ns + 2_000.0).abs() < 1e-6);
        let sum = parts.rx_ns + parts.turn_ns + parts.tx_ns + parts.rest_ns;
        assert!((sum - MEASURED.mean_ns).abs() < 1e-6);
    }

    #[test]
    fn larger_bursts_and_other_queue_pairs_are_no_exchange() {
        let rate = TickRate::new(1_000_000_000);
        let mut exchanges = Exchanges::new(Initiator::Host, 2, rate, None);
        exchanges.add(&one(0, 1_000, 5_000));
        exchanges.add(&one(3, 10_000, 8_000));
        exchanges.add(&Record::Burst(BurstRecord { packets: 2, ..burst(0, 30_000, 5_000) }));
        exchanges.add(&one(1, 40_000, 8_000));
        exchanges.add(&one(99, 50_000, 8_000));
        assert_eq!(exchanges.explain(MEASURED).exchanges, 0);
    }

    #[test]
    fn a_file_needs_a_mean_and_nothing_else() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("ping.json");
        std::fs::write(&path, r#"{"mean_ns": 5.5, "more": []}"#).unwrap();
        let measured = Measured::read(&path).unwrap();
        assert_eq!((measured.mean_ns, measured.received), (5.5, None));
        for (text, found) in [("{}", "missing field"), (r#"{"mean_ns":0}"#, "mean_ns 0")] {
            std::fs::write(&path, text).unwrap();
            let error = Measured::read(&path).unwrap_err().to_string();
            assert!(error.contains(found), "{error}");
        }
        assert!(matches!(Measured::read(dir.path()), Err(RoundTripError::Io { .. })));
    }
}
