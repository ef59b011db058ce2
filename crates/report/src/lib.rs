//! Reports: from recorders and recordings to figures, tables, and files for other tools.
//!
//! - [`figures`]: a distribution of times: exact count, mean, min and max, and percentiles.
//! - [`stages`]: every stage of every tier in the order of the tables, measured or not.
//! - [`collect`]: one pass over records, to figures a direction.
//! - [`breakdown`]: where the time went in one window of a recorder.
//! - [`follow`]: the same for a recorder that is still being written, interval by interval.
//! - [`trigger`]: what a burst has to be like to be kept; [`recent`]: records until it is known whether they are.
//! - [`slowest`]: the slowest bursts of some time.
//! - [`round_trip`]: what of a measured round trip is ours, the guest's and the host's.
//! - [`journey`]: probe packets joined end to end, by everyone's stamps.
//! - [`rollup`]: the four spans of the receive way from the wire to the guest.
//! - [`facts`]: what the daemon said of its run.
//! - [`units`]: numbers as a person reads them.
//! - [`when`]: when something was, on the host's clocks.
//! - [`tail`]: what the slowest packets' time consists of; [`advice`]: what to tune when a stage is large.
//! - [`html`]: all of it in one page to look at.
//! - [`table`] and [`json`]: a breakdown in words and as one object; [`csv`], [`hlog`]: every record, and distributions
//!   second by second, for other tools; [`perfetto`]: every record as a slice of time, to look at;
//!   [`pcapng`]: as a packet of a capture.

pub mod advice;
pub mod breakdown;
pub mod collect;
pub mod csv;
pub mod facts;
pub mod figures;
pub mod follow;
pub mod hlog;
pub mod html;
pub mod journey;
pub mod json;
pub mod pcapng;
pub mod perfetto;
pub mod recent;
pub mod rollup;
pub mod round_trip;
pub mod slowest;
pub mod stages;
pub mod table;
pub mod tail;
pub mod trigger;
pub mod units;
pub mod when;

pub use breakdown::{Breakdown, Window};
pub use collect::{Collector, DirectionBreakdown};
pub use facts::{Facts, without_controls};
pub use figures::Figures;
pub use follow::{Follower, Interval, Outlier, QueueInterval};
pub use round_trip::{Initiator, RoundTrip, RoundTripError};
pub use stages::{StageRow, Tier};
