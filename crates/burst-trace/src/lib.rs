//! The flight recorder: where the time of every burst of packets went.
//!
//! A leaf crate: the daemon writes with [`Recorder`] and [`Writer`], tools read with [`Reader`].
//!
//! ```
//! use burst_trace::{BurstRecord, Clock, Direction, Reader, Record, Recorder, RecorderOptions};
//!
//! let directory = tempfile::tempdir()?;
//! let clock = Clock::new();
//! let options = RecorderOptions {
//!     path: directory.path().join("vm0.trace"),
//!     workers: 1,
//!     queue_pairs: 1,
//!     capacity: 1024,
//!     facts: r#"{"name":"vm0"}"#.into(),
//! };
//!
//! // The daemon makes the file; each worker stores a record for each burst.
//! let recorder = Recorder::create(&options, &clock)?;
//! let mut writer = recorder.writer(0, clock);
//! let wake = clock.now();
//! // Ticks in each of the stages of a transmit burst, in the order of `Direction::stages`.
//! let stages = [300, 0, 0, 450, 2600, 90, 700];
//! writer.burst(&BurstRecord {
//!     first: wake,
//!     last: wake + stages.iter().sum::<u64>(),
//!     sequence: 0,
//!     stages,
//!     bytes: 32 * 64,
//!     packets: 32,
//!     ring: 1,
//!     worker: 0,
//!     is_polled: false,
//!     wakeup: None,
//! });
//!
//! // A tool maps the same file, and reads while the worker writes.
//! let reader = Reader::open(recorder.path())?;
//! let lost = reader.read(&mut reader.oldest(0), |record| match record {
//!     Record::Burst(burst) => {
//!         assert_eq!((burst.direction(), burst.packets, burst.bytes), (Direction::Tx, 32, 2048));
//!         println!("{} packets of queue {} from {}", burst.packets, burst.ring, burst.sequence);
//!         for (stage, ticks) in burst.direction().stages().iter().zip(burst.stages) {
//!             println!("{:<10} {:?}", stage.name(), clock.duration_of(ticks));
//!         }
//!         println!("{:<10} {:?}", "total", clock.duration_of(burst.total()));
//!         assert_eq!(burst.stages.iter().sum::<u64>(), burst.total());
//!     }
//!     other => println!("{other:?}"),
//! });
//! assert_eq!((lost, reader.totals(1).packets), (0, 32));
//! # Ok::<(), Box<dyn std::error::Error>>(())
//! ```
//!
//! - [`stage`]: the closed lists of directions, stages, drop causes and socket events.
//! - [`clock`]: the CPU's counter, and its relation to `CLOCK_MONOTONIC`.
//! - [`interruption`]: why a thread did not run.
//! - `gro`: frames that were joined on their way, as counted for each virtqueue.
//! - [`notification`]: kicks and calls, as counted for each virtqueue.
//! - [`record`]: the records, and how they are laid out in 64 bytes.
//! - [`file`](mod@file): the layout of `NAME.trace`, and its words.
//! - [`header`]: the part before the records.
//! - [`location`]: where recorders are.
//! - [`before`]: the recorder of the daemon before, whose records a new one takes over.
//! - [`restart`]: the time between the last burst of one daemon and the first of the next; `restarting`: such a time that is
//!   not over yet.
//! - [`milestone`]: what happened to a guest's connection; [`migration`]: the time between the last burst on one host and the
//!   first on the next; [`joined`]: the records of several hosts as those of one guest.
//! - [`recorder`], [`writer`]: the daemon's side; [`reader`]: the tools' side.
//! - [`recording`]: the records of some time in a file; [`source`]: what a report is of; `single`: a recorder or a
//!   recording.
//! - [`attribution`]: which times in the host kernel belong to which burst.
//! - [`probe`]: packets with a number of their own; [`cyclic`]: layer-2 frames with a counter.
//! - `fixture` (feature `fixture`): interruptions for tests.

pub mod attribution;
pub mod before;
pub mod clock;
pub mod cyclic;
pub mod file;
#[cfg(feature = "fixture")]
pub mod fixture;
mod gro;
pub mod header;
pub mod interruption;
pub mod joined;
pub mod location;
pub mod migration;
pub mod milestone;
pub mod notification;
pub mod probe;
pub mod reader;
pub mod record;
pub mod recorder;
pub mod recording;
pub mod restart;
mod restarting;
mod single;
pub mod source;
pub mod stage;
mod sys;
pub mod writer;

pub use attribution::{Interruptions, Wakeup, Wakeups};
pub use before::Before;
pub use clock::{Anchor, Clock, ClockKind};
pub use cyclic::{CyclicFrame, CyclicFrames};
pub use gro::GroCounts;
pub use header::{Header, ReadError, Totals};
pub use interruption::{Culprit, Interruption, InterruptionCause, KvmExit, KvmIsa, Subject};
pub use joined::{Joined, NotOneGuest};
pub use migration::{Clocks, Migration, MigrationParts};
pub use milestone::{Milestone, Step};
pub use notification::{Notification, Notifications};
pub use probe::Probe;
pub use reader::{Cursor, Reader};
pub use record::{
    BurstRecord, BurstTimes, CyclicRecord, DropRecord, Gap, KernelSpan, ProbeRecord, Record,
};
pub use recorder::{Participants, Recorder, RecorderError, RecorderOptions};
pub use recording::{CutOff, Recording, RecordingWriter};
pub use restart::{Ending, Restart, RestartParts};
pub use source::Source;
pub use stage::{Direction, DropCause, DropCounts, KernelStage, SocketEvent, Stage};
pub use writer::Writer;
