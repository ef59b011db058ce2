//! The breakdown of one time window of a recorder: stages, packets and drops.

use std::path::Path;
use std::time::Duration;

use burst_trace::{
    Clock, Direction, GroCounts, Header, Notifications, Reader, Record, SocketEvent, Source, Totals,
};
use virtio_net::features::names;

use crate::collect::{Collector, DirectionBreakdown, drops_since_start};
use crate::cyclic::CyclicTraffic;
use crate::facts::{Facts, without_controls};
use crate::figures::TickRate;
use crate::interruption::InterruptionRow;
use crate::migration::{MigrationRow, Migrations};
use crate::not_running::NotRunning;
use crate::restart::{RestartRow, Restarts};
use crate::when::When;

/// The records to include.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Window {
    /// All records that the recorder still has.
    Held,
    /// The bursts that ended in this time before the window's end. That end is now while the daemon runs, and
    /// the newest record when it has ended.
    Last(Duration),
}

/// Where the window ends.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum WindowEnd {
    /// At the newest record.
    NewestRecord,
    /// At the end of the recording.
    Recording,
    /// At the end of the newest of several recordings.
    Recordings,
    /// At the time when the recorder was read.
    Now,
}

/// The breakdown of one window.
#[derive(Clone, Debug)]
pub struct Breakdown {
    /// The daemon's name.
    pub name: String,
    /// The clock: `tsc`, `cntvct` or `monotonic`.
    pub clock: &'static str,
    /// The clock's rate.
    pub ticks_per_second: u64,
    /// What the daemon reported about its run.
    pub facts: Facts,
    /// The features that the guest negotiated last, by name.
    pub features: Vec<String>,
    /// The requested window.
    pub window: Window,
    /// The window's length in seconds: from the oldest record to the newest one, or the requested time. If
    /// [`Breakdown::is_cut`], it is shorter than requested.
    pub window_s: f64,
    /// Where the window ends.
    pub window_end: WindowEnd,
    /// Whether the requested time begins before the oldest record that the recorder still has.
    pub is_cut: bool,
    /// Number of records overwritten while they were read.
    pub lost_records: u64,
    /// Number of records of a kind that this version does not know.
    pub malformed_records: u64,
    /// Kicks and calls of each virtqueue that had any: since the daemon started, or during the recording.
    pub notifications: Vec<(u16, Notifications)>,
    /// Guest to wire.
    pub tx: DirectionBreakdown,
    /// Wire to guest.
    pub rx: DirectionBreakdown,
    /// Layer-2 frames with a counter.
    pub cyclic: CyclicTraffic,
    /// What kept workers (in a burst) and other threads from running: the largest time first, at most ten of workers, of the
    /// front end, and of the far end. `None` where that was not measured.
    pub interruptions: Option<Vec<InterruptionRow>>,
    /// The latest moves of the guest between hosts, in the order of time.
    pub migrations: Vec<MigrationRow>,
    /// The latest restarts of the daemon, in the order of time.
    pub restarts: Vec<RestartRow>,
    /// How often the guest's rings went on in another daemon, as far as the recorder goes back, or during the recording.
    pub restarted: u64,
    /// Most frames that were sent twice because of that.
    pub sent_twice_max: u64,
}

impl Breakdown {
    /// Reads the recorder or recording once. `name` is used if the daemon's facts contain no name.
    #[must_use]
    pub fn read(source: &Source, name: &str, window: Window) -> Self {
        Self::read_with(source, name, window, |_| {})
    }

    /// As [`Breakdown::read`]. Also passes every record of the window to `each`.
    #[must_use]
    pub fn read_with(
        source: &Source,
        name: &str,
        window: Window,
        mut each: impl FnMut(&Record),
    ) -> Self {
        let rate = TickRate::new(source.ticks_per_second());
        let bounds = Bounds::of(source, window, rate);
        let mut collector = Collector::new(rate);
        let mut extent = Extent::default();
        let mut held = vec![Held::default(); source.workers()];
        let (mut has_cyclic, mut has_interruptions) = Default::default();
        let mut pauses = Pauses::default();
        let lost_records = source.read(|record| {
            if let Some(held) = held.get_mut(usize::from(record.writer())) {
                held.include(record);
            }
            let is_within = (bounds.from..=bounds.to).contains(&record.last());
            has_cyclic |= matches!(record, Record::Cyclic(_));
            has_interruptions |= matches!(record, Record::Interruption(_));
            if is_within && collector.add(record) {
                pauses.add(record);
                extent.include(record);
                each(record);
            }
        });
        let held_from = match source {
            Source::Recorder(reader) => held
                .iter()
                .filter_map(|held| held.from(reader, lost_records))
                .fold(bounds.from, u64::max),
            Source::Recording(_) | Source::Joined(_) => bounds.from,
        };
        let facts = Facts::parse(&source.facts());
        let is_cut = matches!(window, Window::Last(_)) && held_from > bounds.from;
        let window_s = match window {
            Window::Held => rate.seconds(extent.ticks()),
            Window::Last(_) if is_cut => rate.seconds(bounds.to.saturating_sub(held_from)),
            Window::Last(time) => time.as_secs_f64(),
        };
        let not_running = (has_interruptions || facts.has_interruptions())
            .then(|| NotRunning::read(source, bounds.from, bounds.to, &facts.measured));
        let direction = |direction| {
            let mut part = collector.breakdown(direction);
            if let Some(not_running) = &not_running {
                not_running.fill(&mut part);
            }
            complete(&mut part, source, window);
            part
        };
        let cyclic = match has_cyclic || !facts.cyclic.is_empty() {
            true => CyclicTraffic::read(source, bounds.from, bounds.to),
            false => CyclicTraffic::default(),
        };
        Self {
            name: facts.name.clone().unwrap_or_else(|| without_controls(name)),
            clock: source.clock().name(),
            ticks_per_second: source.ticks_per_second(),
            facts,
            features: names(source.features()),
            window,
            window_s,
            window_end: bounds.end,
            is_cut,
            lost_records,
            malformed_records: collector.malformed(),
            notifications: if source.has_totals() { notifications(source) } else { Vec::new() },
            tx: direction(Direction::Tx),
            rx: direction(Direction::Rx),
            cyclic,
            interruptions: not_running.map(|it| it.rows),
            migrations: pauses.migrations.rows(rate, When::of(source)),
            restarts: pauses.restarts.rows(rate, When::of(source)),
            restarted: source.restarts(),
            sent_twice_max: source.sent_twice_max(),
        }
    }

    /// Both directions, TX first.
    #[must_use]
    pub const fn directions(&self) -> [&DirectionBreakdown; 2] {
        [&self.tx, &self.rx]
    }
}

/// Whether the process that writes this recorder still runs.
#[must_use]
pub fn is_alive(reader: &Reader) -> bool {
    reader.is_running() && Path::new(&format!("/proc/{}", reader.pid())).exists()
}

/// The window in ticks. Both ends are part of it.
struct Bounds {
    from: u64,
    to: u64,
    end: WindowEnd,
}

impl Bounds {
    fn of(source: &Source, window: Window, rate: TickRate) -> Self {
        let at_end = match source {
            Source::Recorder(_) => WindowEnd::NewestRecord,
            Source::Recording(_) => WindowEnd::Recording,
            Source::Joined(_) => WindowEnd::Recordings,
        };
        let Window::Last(time) = window else {
            return Self { from: 0, to: u64::MAX, end: at_end };
        };
        let (to, end) = match now(source) {
            Some(now) => (now, WindowEnd::Now),
            None => (newest(source), at_end),
        };
        Self { from: to.saturating_sub(rate.ticks(time.as_secs_f64())), to, end }
    }
}

/// The current time of the recorder's clock, if this process can read that clock. For this the daemon must
/// run on this machine.
fn now(source: &Source) -> Option<u64> {
    let Source::Recorder(reader) = source else { return None };
    let clock = Clock::new();
    (is_alive(reader) && clock.kind() == reader.clock()).then(|| clock.now())
}

fn newest(source: &Source) -> u64 {
    let mut newest = 0;
    source.read(|record| newest = newest.max(record.last()));
    newest
}

/// Adds to the figures of a direction what the daemon has counted since its start, or during the recording.
fn complete(part: &mut DirectionBreakdown, source: &Source, window: Window) {
    if !source.has_totals() {
        return;
    }
    part.counted = Some(totals(source, part.direction));
    if window == Window::Held {
        part.drops = drops_since_start(source, part.direction);
    }
    part.events = events(source, part.direction);
    part.moves = moves(source, part.direction);
    part.gro = Some(gro(source, part.direction));
}

/// What went through since the daemon started, or during the recording.
fn totals(header: &Header, direction: Direction) -> Totals {
    let totals = rings(header, direction).map(|ring| header.totals(ring));
    totals.fold(Totals::default(), Totals::plus)
}

/// The virtqueues of a direction.
fn rings(header: &Header, direction: Direction) -> impl Iterator<Item = usize> {
    let of_way = move |ring: &usize| {
        u16::try_from(*ring).is_ok_and(|ring| Direction::of_ring(ring) == direction)
    };
    (0..header.queue_pairs() * 2).filter(of_way)
}

/// Events that the kernel has counted for AF_XDP sockets, of the same time.
fn events(header: &Header, direction: Direction) -> Vec<(SocketEvent, u64)> {
    let rings = 0..header.queue_pairs() * 2;
    let count =
        |event| rings.clone().map(|ring| header.events(ring, event)).fold(0, u64::saturating_add);
    let of_way = SocketEvent::ALL.into_iter().filter(|event| event.direction() == direction);
    of_way.map(|event| (event, count(event))).collect()
}

/// Number of addresses that moved between ports of a switch, of the same time.
fn moves(header: &Header, direction: Direction) -> u64 {
    let moves = rings(header, direction).map(|ring| header.moves(ring));
    moves.fold(0, u64::saturating_add)
}

/// Packets made of several frames, of the same time.
fn gro(header: &Header, direction: Direction) -> GroCounts {
    let of_rings = rings(header, direction).map(|ring| header.gro(ring));
    of_rings.fold(GroCounts::default(), GroCounts::plus)
}

/// The virtqueues that had notifications. Older daemons did not count any.
fn notifications(header: &Header) -> Vec<(u16, Notifications)> {
    let rings = 0..u16::try_from(header.queue_pairs() * 2).unwrap_or(u16::MAX);
    rings
        .map(|ring| (ring, header.notifications(ring.into())))
        .filter(|(_, counted)| !counted.is_empty())
        .collect()
}

/// The records of one worker that a recorder still has.
#[derive(Clone, Copy, Default)]
struct Held {
    records: u64,
    /// The last boundary of the oldest of these records.
    first: Option<u64>,
}

impl Held {
    fn include(&mut self, record: &Record) {
        self.records += 1;
        self.first.get_or_insert(record.last());
    }

    /// The time from which the recorder has all records of this worker, if older ones were overwritten. Once
    /// a worker has filled its part of the recorder, no record from before the first one is left.
    fn from(&self, reader: &Reader, lost: u64) -> Option<u64> {
        let is_full =
            self.records.saturating_add(lost).saturating_add(1) >= reader.capacity() as u64;
        self.first.filter(|_| is_full)
    }
}

/// The times without bursts.
#[derive(Default)]
struct Pauses {
    restarts: Restarts,
    migrations: Migrations,
}

impl Pauses {
    fn add(&mut self, record: &Record) {
        match record {
            Record::Restart(restart) => self.restarts.add(restart),
            Record::Migration(migration) => self.migrations.add(migration),
            _ => {}
        }
    }
}

/// The time from the first boundary of the oldest record to the last boundary of the newest one.
#[derive(Default)]
struct Extent {
    span: Option<(u64, u64)>,
}

impl Extent {
    fn include(&mut self, record: &Record) {
        // A front end may have come long before any packet did.
        if matches!(record, Record::Milestone(_)) {
            return;
        }
        let (start, end) = (record.first(), record.last());
        let (first, last) = self.span.unwrap_or((start, end));
        self.span = Some((first.min(start), last.max(end)));
    }

    fn ticks(&self) -> u64 {
        self.span.map_or(0, |(first, last)| last.saturating_sub(first))
    }
}
