//! Cyclic frames: layer-2 frames with a counter of their own, which a talker sends once in each period.
//!
//! The daemon records each frame with its counter and with the times of its burst ([`burst_trace::CyclicFrames`]). The
//! figures here are of these records: the period, as it arrived at the daemon; the counters that are missing, came twice or
//! late; the stages from arrival to delivery; and the slowest frames. No stamp of another program is needed.

mod counter;
mod follow;
mod gather;
mod text;

use burst_trace::Direction;
use serde::Serialize;
use serde::ser::{SerializeMap as _, Serializer};

use crate::stages::StageRow;

pub use text::to_text;

/// Most streams that are followed; frames of further ones are counted.
pub const STREAMS_MAX: usize = 256;
/// Slowest frames that are kept of each group.
const SLOWEST_MAX: usize = 5;
/// Events that are kept of each stream, the first ones.
const EVENTS_MAX: usize = 64;
/// Bursts whose times in the host kernel are found, the first ones of the window.
const KERNEL_BURSTS_MAX: usize = 1 << 18;

/// The cyclic frames of a window.
#[derive(Clone, Debug, Default, PartialEq, Serialize)]
pub struct CyclicTraffic {
    /// The frames of each description and direction.
    pub groups: Vec<Group>,
    /// Descriptions that fitted no frame.
    pub unseen: Vec<String>,
    /// Frames of more than [`STREAMS_MAX`] streams.
    pub left_out: u64,
    /// Records that are missing: their counters count as lost.
    pub lost_records: u64,
}

/// The frames of one description that went in one direction.
#[derive(Clone, Debug, PartialEq, Serialize)]
pub struct Group {
    /// The direction.
    #[serde(serialize_with = "direction_name")]
    pub direction: Direction,
    /// The description, as `--trace-probe` takes it.
    pub description: String,
    /// Number of frames.
    pub frames: u64,
    /// Frames whose arrival the host kernel stamped. The others arrived when the worker saw them.
    pub stamped: u64,
    /// Frames that were found by polling: their `notice` is an upper bound.
    pub polled: u64,
    /// Packets of this direction that the daemon dropped, since its start or in the recording. It is not known which of
    /// them were cyclic frames.
    pub drops: u64,
    /// The stages from the arrival on, in the order in which a frame passes them.
    pub stages: Vec<StageRow>,
    /// The sum of the daemon's stages.
    pub total: StageRow,
    /// The streams, by their identifiers.
    pub streams: Vec<Stream>,
    /// The slowest frames, slowest first.
    pub slowest: Vec<SlowFrame>,
}

/// The frames with one identifier.
#[derive(Clone, Debug, PartialEq, Serialize)]
pub struct Stream {
    /// The identifier in hexadecimal digits; empty without stream fields.
    pub stream: String,
    /// Number of frames.
    pub frames: u64,
    /// The first frame's counter since counting began.
    pub first: u64,
    /// The newest frame's counter without its wraps: 65537 after 65535, 0, 1 with a counter of two bytes.
    pub newest: u64,
    /// Counters that are missing.
    pub lost: u64,
    /// Frames whose counter came before.
    pub duplicates: u64,
    /// Frames that came after a newer one.
    pub late: u64,
    /// How often counting began again: the talker was started again, or it is several talkers.
    pub jumps: u64,
    /// The time between the arrivals of frames with consecutive counters; `None` without such frames.
    pub period: Option<Period>,
    /// Mean time from arrival to the last boundary, nanoseconds.
    pub mean_ns: f64,
    /// Longest time from arrival to the last boundary, nanoseconds.
    pub max_ns: u64,
    /// What happened to the counter, in order: the first [`EVENTS_MAX`] events.
    pub events: Vec<Event>,
    /// Number of events after those.
    pub further_events: u64,
    /// The difference of consecutive counters that most frames have, if it is not the step.
    pub usual_step: Option<u64>,
}

/// The time between arrivals.
#[derive(Clone, Copy, Debug, PartialEq, Serialize)]
pub struct Period {
    /// Number of intervals.
    pub count: u64,
    /// Their mean, nanoseconds.
    pub mean_ns: f64,
    /// Their standard deviation, nanoseconds.
    pub jitter_ns: f64,
    /// The shortest, nanoseconds.
    pub min_ns: u64,
    /// The median, nanoseconds.
    pub p50_ns: u64,
    /// The 99th percentile, nanoseconds.
    pub p99_ns: u64,
    /// The longest, nanoseconds.
    pub max_ns: u64,
}

/// What happened to a counter.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize)]
pub struct Event {
    /// What happened.
    pub kind: EventKind,
    /// The frame's counter.
    pub counter: u64,
    /// Frames missing before it.
    pub lost: u64,
    /// When it arrived, nanoseconds since 1970.
    pub at_ns: u64,
}

/// What can happen to a counter.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize)]
#[serde(rename_all = "lowercase")]
pub enum EventKind {
    /// Frames are missing before this one.
    Gap,
    /// The counter came before.
    Duplicate,
    /// The frame came after a newer one.
    Late,
    /// Counting began again.
    Jump,
}

/// One of the slowest frames.
#[derive(Clone, Debug, PartialEq, Serialize)]
pub struct SlowFrame {
    /// Its stream, as in [`Stream::stream`].
    pub stream: String,
    /// Its counter.
    pub counter: u64,
    /// When it arrived, nanoseconds since 1970.
    pub at_ns: u64,
    /// From its arrival to the last boundary, nanoseconds.
    pub total_ns: u64,
    /// The host kernel stamped its arrival. Otherwise it arrived at the end of `notice`.
    pub stamped: bool,
    /// The worker was polling.
    pub polled: bool,
    /// Packets in its burst.
    pub packets: u16,
    /// Its time in each stage, in the order in which it passed them, nanoseconds; without stages that were not measured.
    #[serde(serialize_with = "stage_map")]
    pub stages_ns: Vec<(&'static str, u64)>,
}

#[expect(clippy::trivially_copy_pass_by_ref, reason = "serde calls it with a reference")]
fn direction_name<S: Serializer>(direction: &Direction, to: S) -> Result<S::Ok, S::Error> {
    to.serialize_str(direction.name())
}

fn stage_map<S: Serializer>(stages: &[(&'static str, u64)], to: S) -> Result<S::Ok, S::Error> {
    let mut map = to.serialize_map(Some(stages.len()))?;
    for (stage, ns) in stages {
        map.serialize_entry(stage, ns)?;
    }
    map.end()
}
