//! Where the time of every burst of packets goes, and the flight recorder that keeps it.
//!
//! A leaf crate: the daemon writes with [`Recorder`] and [`Writer`], tools read with [`Reader`].
//!
//! - [`stage`]: the closed list of stages, directions and drop causes.
//! - [`clock`]: the CPU counter, plainly read, and its relation to `CLOCK_MONOTONIC`.
//! - [`record`]: the 64 bytes that one burst leaves behind.
//! - [`file`](mod@file): the layout of `NAME.trace` and the words it is made of.
//! - [`header`]: what stands before the records.
//! - [`location`]: where recorders are.
//! - [`writer`]: the daemon's end; [`reader`]: everyone else's.
//! - [`recording`]: what was kept of a recorder over some time; [`source`]: either of the two.
//! - [`wakeups`]: wake-ups that the host kernel stamped, joined to the bursts that they were for.
//! - [`probe`]: packets that carry a number of their own.
//! - [`comment`]: a burst in a line of text; [`pcapng`]: the blocks of the captures that such comments are in.

pub mod clock;
pub mod comment;
pub mod file;
pub mod header;
pub mod location;
pub mod pcapng;
pub mod probe;
pub mod reader;
pub mod record;
pub mod recording;
pub mod source;
pub mod stage;
mod sys;
pub mod wakeups;
pub mod writer;

pub use clock::{Anchor, Clock, ClockKind};
pub use header::{Header, ReadError, Totals};
pub use probe::Probe;
pub use reader::{Cursor, Reader};
pub use record::{BurstRecord, RecordKind};
pub use recording::{Recording, RecordingWriter};
pub use source::Source;
pub use stage::{Direction, DropCause, DropCounts, KernelStage, SocketEvent, Stage};
pub use wakeups::{Wakeup, Wakeups};
pub use writer::{Participants, Recorder, RecorderError, RecorderOptions, Writer};
