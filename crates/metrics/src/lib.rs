//! Serves counters and stage histograms of a running daemon, for Prometheus and other readers of OpenMetrics.
//!
//! The daemon's workers take no part in this: everything is read from the flight recorders, as any other reader does.
//! Packets, bytes, bursts and drops are the recorder's own counters, which are always exact. The histograms are made
//! from the records. Records that were overwritten before they could be read are counted.
//!
//! - [`address`]: the addresses at which metrics can be served.
//! - `guest`: reads one guest's recorder as it is written.
//! - `interrupted`: the time in which threads did not run, by cause.
//! - `exposition`: the metrics as OpenMetrics text.
//! - `server`: the HTTP server.

mod accept;
mod address;
mod exposition;
mod guest;
mod interrupted;
mod server;

pub use address::Address;
pub use guest::{BUCKETS_S, Guest};
pub use server::{Metrics, MetricsError};
