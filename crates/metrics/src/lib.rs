//! Counters and stage histograms of a running daemon, for Prometheus and whoever else reads OpenMetrics.
//!
//! The daemon's workers know nothing of this: everything is read from the flight recorders, as any other reader does.
//! Packets, bytes, bursts and drops are the recorder's own counters, exact whatever happens. The histograms follow the
//! records; those that were overwritten before they could be read are counted.
//!
//! - [`address`]: where metrics may be asked for.
//! - `guest`: one guest's recorder, followed.
//! - `exposition`: what is known, as OpenMetrics text.
//! - `server`: who asks for it, and how.

mod address;
mod exposition;
mod guest;
mod server;

pub use address::Address;
pub use guest::{BUCKETS_S, Guest};
pub use server::{Metrics, MetricsError};
