//! Each burst as a slice on its queue's track, for the Perfetto UI and its trace processor.
//!
//! The daemon is a process; each queue is a track of it: `rx 0`, `tx 1` and so on by virtqueue index. A burst is a slice
//! from its first boundary to its last; it contains its stages, except those that took no time. A drop is an instant. Times
//! in the host kernel have tracks of their own: one for the wake-ups of each worker (`kernel 0`), and one for the rest
//! (`kernel`). So have the interruptions of each worker (`CPU of worker 0: who ran`) and of each other thread, as slices named
//! after the culprit and the cause: `hog (preempted)`. Restarts of the daemon have the track `restarts`, and moves of the guest
//! between hosts the track `migrations`, each with its parts. What happened to the front end, such as that it started a ring, is
//! an instant of the track `front end`. Times are `CLOCK_MONOTONIC`, the clock of most other traces of a host.
//!
//! **Lanes.** Slices of one track have to be nested, and bursts of one queue overlap: a burst that had to queue began during
//! the one before. So a queue has as many tracks of the same name as bursts overlap, and the UI shows them as one. A burst
//! takes the lane that has been idle for the shortest time. Bursts come in the order of their ends, so this needs no more
//! lanes than bursts overlap. Only the end of each lane's last slice is kept.

mod pauses;
mod proto;

use std::collections::HashMap;
use std::io::{self, Write};

use burst_trace::{
    BurstRecord, Direction, DropCause, DropRecord, Header, Interruption, KernelSpan, KernelStage,
    Record, Source, Stage, Subject,
};
use prost::Message;

use crate::facts::Facts;
use crate::figures::TickRate;
use crate::interruption::short;
use crate::when::When;
use proto::{
    BUILTIN_CLOCK_MONOTONIC, BUILTIN_CLOCK_REALTIME, ClockReading, ClockSnapshot, DebugAnnotation,
    InternedData, InternedName, ProcessDescriptor, SEQ_INCREMENTAL_STATE_CLEARED,
    SEQ_NEEDS_INCREMENTAL_STATE, TRACE_PACKET_KEY, TYPE_INSTANT, TYPE_SLICE_BEGIN, TYPE_SLICE_END,
    TracePacket, TrackDescriptor, TrackEvent,
};

/// The only sequence of packets.
const SEQUENCE: u32 = 1;
/// The process's track; those of lanes follow.
const PROCESS: u64 = 1;

/// Most lanes of one owner. More bursts of a queue overlap only in a forged file; they then share lanes.
const LANES_MAX: usize = 1 << 10;

/// Categories of events, by their numbers in [`InternedData::event_categories`].
#[derive(Clone, Copy)]
#[repr(u64)]
enum Category {
    Burst = 1,
    Stage,
    Kernel,
    Drop,
    Interruption,
    Restart,
    Migration,
    FrontEnd,
}

const CATEGORIES: [&str; Category::FrontEnd as usize] =
    ["burst", "stage", "kernel", "drop", "interruption", "restart", "migration", "front-end"];

/// Annotations of events, by their numbers in [`InternedData::debug_annotation_names`].
#[derive(Clone, Copy)]
#[repr(u64)]
enum Note {
    Packets = 1,
    Bytes,
    Sequence,
    Polled,
    Wakeup,
    Cpu,
    NotRunning,
    CulpritThread,
}

const NOTES: [&str; Note::CulpritThread as usize] = [
    "packets",
    "bytes",
    "sequence",
    "polled",
    "wakeup_ns",
    "cpu",
    "not_running_ns",
    "culprit_thread",
];

/// Numbers of names: `burst`, then stages, then the kernel's, then drops by cause.
const BURST: u64 = 1;
const STAGES: u64 = BURST + 1;
const KERNEL: u64 = STAGES + Stage::ALL.len() as u64;
const DROPS: u64 = KERNEL + KernelStage::ALL.len() as u64 + 1;

/// Writes all bursts, drops, kernel spans and interruptions of `source` as they are read. `name` is used if the daemon's facts
/// have none. `each` is called for every record, to show progress. Returns the number of lost records.
///
/// # Errors
/// What `out` answers.
pub fn write_perfetto(
    out: &mut impl Write,
    source: &Source,
    name: &str,
    mut each: impl FnMut(&Record),
) -> io::Result<u64> {
    let mut trace = Trace::new(out, source);
    let mut written = trace.begin(source, name);
    let lost = source.read(|record| {
        each(record);
        if written.is_ok() {
            written = trace.add(record);
        }
    });
    written.map(|()| lost)
}

/// The owner of a track. Rings, workers and threads that only a forged file has are tracks as well.
#[derive(Clone, Copy, PartialEq, Eq, Hash)]
enum Owner {
    Ring(u16),
    Worker(u32),
    Kernel,
    /// A worker, or a thread of another process.
    Interrupted(Subject, Option<u32>),
    Restarts,
    Migrations,
    FrontEnd,
}

/// A track, free from `end_ns` on.
struct Lane {
    uuid: u64,
    end_ns: u64,
}

struct Trace<'o, W> {
    out: &'o mut W,
    packet: Vec<u8>,
    when: When,
    rate: TickRate,
    lanes: HashMap<Owner, Vec<Lane>>,
    tracks: u64,
}

impl<'o, W: Write> Trace<'o, W> {
    fn new(out: &'o mut W, header: &Header) -> Self {
        Self {
            out,
            packet: Vec::new(),
            when: When::of(header),
            rate: TickRate::new(header.ticks_per_second()),
            lanes: HashMap::new(),
            tracks: PROCESS,
        }
    }

    /// Writes the clocks, the names and the process.
    fn begin(&mut self, header: &Header, name: &str) -> io::Result<()> {
        let anchor = header.anchor_latest();
        let reading =
            |clock: u32, ns: u64| ClockReading { clock_id: Some(clock), timestamp: Some(ns) };
        let clocks = ClockSnapshot {
            clocks: vec![
                reading(BUILTIN_CLOCK_MONOTONIC, anchor.monotonic_ns),
                reading(BUILTIN_CLOCK_REALTIME, anchor.realtime_ns),
            ],
            primary_trace_clock: Some(BUILTIN_CLOCK_MONOTONIC),
        };
        self.put(TracePacket { clock_snapshot: Some(clocks), ..TracePacket::default() })?;
        self.put(TracePacket {
            sequence_flags: Some(SEQ_INCREMENTAL_STATE_CLEARED),
            interned_data: Some(names()),
            ..TracePacket::default()
        })?;
        let name = Facts::parse(&header.facts()).name.unwrap_or_else(|| name.to_owned());
        self.put_track(TrackDescriptor {
            uuid: Some(PROCESS),
            process: Some(ProcessDescriptor {
                // Process numbers have at most 22 bits (`PID_MAX_LIMIT`).
                pid: i32::try_from(header.pid()).ok(),
                process_name: Some(format!("ringscoped {name}")),
            }),
            ..TrackDescriptor::default()
        })
    }

    fn add(&mut self, record: &Record) -> io::Result<()> {
        match record {
            Record::Burst(burst) => self.add_burst(burst),
            Record::Drop(drop) => self.add_drop(drop),
            Record::KernelSpan(span) => self.add_span(span),
            Record::Interruption(interruption) => self.add_interruption(interruption),
            Record::Restart(restart) => self.add_restart(restart),
            Record::Migration(migration) => self.add_migration(migration),
            Record::Milestone(milestone) => self.add_milestone(milestone),
            Record::Probe(_) | Record::Cyclic(_) | Record::Gap(_) | Record::Unknown(_) => Ok(()),
        }
    }

    fn add_drop(&mut self, drop: &DropRecord) -> io::Result<()> {
        let at = self.when.monotonic_ns(drop.at);
        let track = self.first_lane(Owner::Ring(drop.ring))?;
        let notes = vec![note(Note::Packets, drop.packets.into())];
        let event = event(TYPE_INSTANT, track, Category::Drop, DROPS + drop.cause as u64, notes);
        self.put_event(at, event)
    }

    fn add_span(&mut self, span: &KernelSpan) -> io::Result<()> {
        let start = self.when.monotonic_ns(span.start);
        let end = self.when.monotonic_ns(span.end).max(start);
        let owner = match (span.stage, span.worker) {
            (KernelStage::Wakeup, Some(worker)) => Owner::Worker(worker),
            _ => Owner::Kernel,
        };
        let track = self.lane(owner, start, end)?;
        let name = KERNEL + span.stage as u64;
        let event = event(TYPE_SLICE_BEGIN, track, Category::Kernel, name, vec![]);
        self.put_event(start, event)?;
        self.put_event(end, end_of(track))
    }

    /// A slice, or an instant if it has no length.
    fn add_interruption(&mut self, interruption: &Interruption) -> io::Result<()> {
        let &Interruption { subject, thread, cpu, culprit, .. } = interruption;
        let start = self.when.monotonic_ns(interruption.start);
        let end = self.when.monotonic_ns(interruption.end).max(start);
        let owner = match subject {
            Subject::Worker(_) => Owner::Interrupted(subject, None),
            Subject::FrontEnd | Subject::FarEnd => Owner::Interrupted(subject, Some(thread)),
        };
        let (kind, track) = if end > start {
            (TYPE_SLICE_BEGIN, self.lane(owner, start, end)?)
        } else {
            (TYPE_INSTANT, self.first_lane(owner)?)
        };
        let not_running = self.rate.ns(interruption.total());
        let mut notes = vec![note(Note::Cpu, cpu.into()), note(Note::NotRunning, not_running)];
        if culprit.thread != 0 {
            notes.push(note(Note::CulpritThread, culprit.thread.into()));
        }
        let named = TrackEvent {
            name_iid: None,
            name: Some(short(interruption)),
            ..event(kind, track, Category::Interruption, 0, notes)
        };
        self.put_event(start, named)?;
        if kind == TYPE_SLICE_BEGIN {
            self.put_event(end, end_of(track))?;
        }
        Ok(())
    }

    fn add_burst(&mut self, record: &BurstRecord) -> io::Result<()> {
        let stages = record.direction().stages();
        let times = &record.stages[..stages.len()];
        // Summed here, so that stages lie within their burst whatever the file says.
        let last = times.iter().fold(record.first, |at, ticks| at.saturating_add(*ticks));
        let (start, end) = (self.when.monotonic_ns(record.first), self.when.monotonic_ns(last));
        let track = self.lane(Owner::Ring(record.ring), start, end)?;
        let mut notes = vec![
            note(Note::Packets, record.packets.into()),
            note(Note::Bytes, record.bytes.into()),
            note(Note::Sequence, record.sequence),
            DebugAnnotation {
                name_iid: Some(Note::Polled as u64),
                bool_value: Some(record.is_polled),
                uint_value: None,
            },
        ];
        notes.extend(record.wakeup.map(|ticks| note(Note::Wakeup, self.rate.ns(ticks.into()))));
        self.put_event(start, event(TYPE_SLICE_BEGIN, track, Category::Burst, BURST, notes))?;
        let (mut at, mut from) = (record.first, start);
        for (stage, ticks) in stages.iter().zip(times) {
            at = at.saturating_add(*ticks);
            let to = self.when.monotonic_ns(at);
            if to > from {
                let name = STAGES + *stage as u64;
                self.put_event(
                    from,
                    event(TYPE_SLICE_BEGIN, track, Category::Stage, name, vec![]),
                )?;
                self.put_event(to, end_of(track))?;
            }
            from = to;
        }
        self.put_event(end, end_of(track))
    }

    /// A track of `owner` that is free at `start_ns`, taken until `end_ns`.
    fn lane(&mut self, owner: Owner, start_ns: u64, end_ns: u64) -> io::Result<u64> {
        let lanes = self.lanes.entry(owner).or_default();
        let free = lanes.iter_mut().filter(|lane| lane.end_ns <= start_ns);
        if let Some(lane) = free.max_by_key(|lane| lane.end_ns) {
            lane.end_ns = end_ns;
            return Ok(lane.uuid);
        }
        if lanes.len() >= LANES_MAX
            && let Some(lane) = lanes.iter_mut().min_by_key(|lane| lane.end_ns)
        {
            lane.end_ns = lane.end_ns.max(end_ns);
            return Ok(lane.uuid);
        }
        self.new_lane(owner, end_ns)
    }

    /// The first track of `owner`.
    fn first_lane(&mut self, owner: Owner) -> io::Result<u64> {
        match self.lanes.get(&owner).and_then(|lanes| lanes.first()) {
            Some(lane) => Ok(lane.uuid),
            None => self.new_lane(owner, 0),
        }
    }

    fn new_lane(&mut self, owner: Owner, end_ns: u64) -> io::Result<u64> {
        self.tracks += 1;
        let uuid = self.tracks;
        self.lanes.entry(owner).or_default().push(Lane { uuid, end_ns });
        let name = match owner {
            Owner::Ring(ring) => {
                format!("{} {ring}", Direction::of_ring(ring).name())
            }
            Owner::Worker(worker) => format!("kernel {worker}"),
            Owner::Kernel => "kernel".into(),
            Owner::Restarts => "restarts".into(),
            Owner::Migrations => "migrations".into(),
            Owner::FrontEnd => "front end".into(),
            Owner::Interrupted(Subject::Worker(worker), _) => {
                format!("CPU of worker {worker}: who ran")
            }
            Owner::Interrupted(subject, thread) => {
                format!("CPU of {} thread {}: who ran", subject.name(), thread.unwrap_or(0))
            }
        };
        self.put_track(TrackDescriptor {
            uuid: Some(uuid),
            name: Some(name),
            parent_uuid: Some(PROCESS),
            process: None,
        })?;
        Ok(uuid)
    }

    fn put_track(&mut self, track: TrackDescriptor) -> io::Result<()> {
        self.put(TracePacket { track_descriptor: Some(track), ..TracePacket::default() })
    }

    fn put_event(&mut self, at_ns: u64, event: TrackEvent) -> io::Result<()> {
        self.put(TracePacket {
            timestamp: Some(at_ns),
            timestamp_clock_id: Some(BUILTIN_CLOCK_MONOTONIC),
            sequence_flags: Some(SEQ_NEEDS_INCREMENTAL_STATE),
            track_event: Some(event),
            ..TracePacket::default()
        })
    }

    fn put(&mut self, packet: TracePacket) -> io::Result<()> {
        let packet = TracePacket { trusted_packet_sequence_id: Some(SEQUENCE), ..packet };
        self.packet.clear();
        self.packet.push(TRACE_PACKET_KEY);
        // Only a buffer that does not grow could be too small.
        packet.encode_length_delimited(&mut self.packet).map_err(io::Error::other)?;
        self.out.write_all(&self.packet)
    }
}

fn note(name: Note, value: u64) -> DebugAnnotation {
    DebugAnnotation { name_iid: Some(name as u64), uint_value: Some(value), bool_value: None }
}

fn event(
    kind: i32,
    track: u64,
    category: Category,
    name: u64,
    notes: Vec<DebugAnnotation>,
) -> TrackEvent {
    TrackEvent {
        category_iids: vec![category as u64],
        debug_annotations: notes,
        r#type: Some(kind),
        name_iid: Some(name),
        name: None,
        track_uuid: Some(track),
    }
}

fn end_of(track: u64) -> TrackEvent {
    TrackEvent { r#type: Some(TYPE_SLICE_END), track_uuid: Some(track), ..TrackEvent::default() }
}

/// All names that events use.
fn names() -> InternedData {
    let name = |iid: u64, name: String| InternedName { iid: Some(iid), name: Some(name) };
    let count = |names: &[&str]| {
        (1..).zip(names).map(|(iid, text)| name(iid, (*text).to_owned())).collect()
    };
    let mut event_names = vec![name(BURST, "burst".into())];
    for stage in Stage::ALL {
        event_names.push(name(STAGES + stage as u64, stage.name().into()));
    }
    for stage in KernelStage::ALL {
        event_names.push(name(KERNEL + stage as u64, stage.name().into()));
    }
    for cause in DropCause::ALL {
        event_names.push(name(DROPS + *cause as u64, format!("drop {}", cause.name())));
    }
    InternedData {
        event_categories: count(&CATEGORIES),
        event_names,
        debug_annotation_names: count(&NOTES),
    }
}

#[cfg(test)]
mod tests;
