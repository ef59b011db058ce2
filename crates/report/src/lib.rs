//! Reports: from recorders and recordings to figures, tables, and files for other tools.
//!
//! ```
//! use burst_trace::{BurstRecord, Clock, Reader, Recorder, RecorderOptions, Source};
//! use report::{Breakdown, Window, json, table};
//!
//! // A recorder with one burst of 32 packets from the guest.
//! let directory = tempfile::tempdir()?;
//! let clock = Clock::new();
//! let options = RecorderOptions {
//!     path: directory.path().join("vm0.trace"),
//!     workers: 1,
//!     queue_pairs: 1,
//!     capacity: 1024,
//!     facts: r#"{"name":"vm0","datapath":"tap:ifname=tap0"}"#.into(),
//! };
//! let recorder = Recorder::create(&options, &clock)?;
//! let (first, stages) = (clock.now(), [300, 0, 0, 450, 2600, 90, 700]);
//! let last = first + stages.iter().sum::<u64>();
//! let burst = BurstRecord { first, last, stages, packets: 32, ring: 1, ..BurstRecord::default() };
//! recorder.writer(0, clock).burst(&burst);
//!
//! // A recorder is reported as a recording is: once read, its figures go to any output.
//! let source = Source::from(Reader::open(recorder.path())?);
//! let breakdown = Breakdown::read(&source, "vm0", Window::Held);
//! let egress = breakdown.tx.stage("egress").and_then(|row| row.figures).expect("measured");
//! assert!(egress.mean_ns < breakdown.tx.total.figures.expect("measured").mean_ns);
//! println!("{}", table::to_table(&breakdown, None));
//! println!("{}", json::to_json(&breakdown));
//!
//! let mut lines = Vec::new();
//! let lost = report::csv::write_csv(&mut lines, &source, |_| {})?;
//! assert!(lost == 0 && lines.starts_with(b"kind,direction,queue"));
//! # Ok::<(), Box<dyn std::error::Error>>(())
//! ```
//!
//! - [`figures`]: a distribution of times: exact count, mean, min and max, and percentiles.
//! - [`stages`]: every stage of every tier in the order of the tables, measured or not.
//! - [`collect`]: one pass over records, to figures a direction.
//! - [`breakdown`]: the figures of one window of a recorder or recording.
//! - [`follow`]: the figures of a live recorder, interval by interval.
//! - [`trigger`]: a condition on bursts; [`recent`]: the latest records, until one fulfils it.
//! - [`slowest`]: the slowest bursts.
//! - [`round_trip`]: the daemon's, the guest's and the host's parts of a measured round trip.
//! - [`journey`]: round trips of probe packets, by the stamps of all that they pass.
//! - [`cyclic`]: layer-2 frames with a counter: their period, lost counters and slowest frames.
//! - [`interruption`]: what kept threads from running, added up; [`not_running`]: how long of each stage.
//! - [`migration`]: moves of the guest between hosts, and what each host knows of the time in which no burst was carried.
//! - [`restart`]: restarts of the daemon, and the parts of the time in which no burst was carried.
//! - [`rollup`]: the four spans of the receive way from the wire to the guest.
//! - [`facts`]: the daemon's facts about its run.
//! - [`units`]: numbers for people.
//! - [`when`]: from ticks to the host's clocks.
//! - [`why`]: the slow bursts and turns of some time, grouped by cause.
//! - [`tail`]: the stages of the slowest packets; [`advice`]: what to tune when a stage is large; [`causes`]: what to change
//!   when a thread did not run.
//! - [`html`]: all of it in one page.
//! - [`table`] and [`json`]: a breakdown in words and as one object; [`csv`], [`hlog`]: every record, and distributions
//!   second by second, for other tools; [`perfetto`]: every record as a slice of time, to look at;
//!   [`pcapng`]: as a packet of a capture.

pub mod advice;
pub mod breakdown;
pub mod causes;
pub mod collect;
pub mod csv;
pub mod cyclic;
pub mod facts;
pub mod figures;
pub mod follow;
pub mod hlog;
pub mod html;
pub mod interruption;
pub mod journey;
pub mod json;
pub mod migration;
pub mod not_running;
pub mod pcapng;
pub mod perfetto;
pub mod recent;
pub mod restart;
pub mod rollup;
pub mod round_trip;
pub mod slowest;
mod stage_table;
pub mod stages;
pub mod table;
pub mod tail;
pub mod trigger;
pub mod units;
pub mod when;
pub mod why;

pub use breakdown::{Breakdown, Window};
pub use collect::{Collector, DirectionBreakdown};
pub use facts::{Facts, without_controls};
pub use figures::Figures;
pub use follow::{Follower, Interrupted, Interval, Outlier, QueueInterval};
pub use round_trip::{Initiator, RoundTrip, RoundTripError};
pub use stages::{StageRow, Tier};
