//! Every burst as a slice on its queue's track, for the Perfetto UI and its trace processor.
//!
//! The daemon is a process; each queue is a track of it, `rx 0`, `tx 1` and so on by virtqueue index. A burst is a slice
//! from its first boundary to its last; within it lie its stages, those that took no time left out. A drop is an instant.
//! What was measured in the host kernel is on tracks of its own: wake-ups on one a worker (`kernel 0`), the rest on one
//! (`kernel`). Times are `CLOCK_MONOTONIC`, the
//! clock of most other traces of a host.
//!
//! **Lanes.** Slices of one track have to lie within one another, and bursts of one queue do not: one that had to queue
//! began while its predecessor was under way. So a queue has as many tracks of the same name as bursts overlap, and the UI
//! shows them as one. A burst goes to the lane that has been idle for the shortest time: since bursts come in the order of
//! their ends, this needs no more lanes than bursts overlap. All that is kept is when each lane was last in use.

mod proto;

use std::collections::HashMap;
use std::io::{self, Write};

use burst_trace::{
    BurstRecord, Direction, DropCause, Header, KernelStage, RecordKind, Source, Stage,
};
use prost::Message;

use crate::collect::drop_cause;
use crate::facts::Facts;
use crate::figures::TickRate;
use crate::when::When;
use proto::{
    BUILTIN_CLOCK_MONOTONIC, BUILTIN_CLOCK_REALTIME, ClockReading, ClockSnapshot, DebugAnnotation,
    InternedData, InternedName, ProcessDescriptor, SEQ_INCREMENTAL_STATE_CLEARED,
    SEQ_NEEDS_INCREMENTAL_STATE, TRACE_PACKET_KEY, TYPE_INSTANT, TYPE_SLICE_BEGIN, TYPE_SLICE_END,
    TracePacket, TrackDescriptor, TrackEvent,
};

/// All packets are of one writer.
const SEQUENCE: u32 = 1;
/// The process; lanes follow.
const PROCESS: u64 = 1;

/// Most lanes of one owner. More bursts of a queue overlap only in a forged file; then they share lanes, and the report
/// takes no longer.
const LANES_MAX: usize = 1 << 10;

/// What an event is, by its number in [`InternedData::event_categories`].
#[derive(Clone, Copy)]
#[repr(u64)]
enum Category {
    Burst = 1,
    Stage,
    Kernel,
    Drop,
}

const CATEGORIES: [&str; 4] = ["burst", "stage", "kernel", "drop"];

/// What is said of an event, by its number in [`InternedData::debug_annotation_names`].
#[derive(Clone, Copy)]
#[repr(u64)]
enum Note {
    Packets = 1,
    Bytes,
    Sequence,
    Polled,
    Wakeup,
}

const NOTES: [&str; 5] = ["packets", "bytes", "sequence", "polled", "wakeup_ns"];

/// Numbers of names: `burst`, then stages, then the kernel's, then drops by cause.
const BURST: u64 = 1;
const STAGES: u64 = BURST + 1;
const KERNEL: u64 = STAGES + Stage::ALL.len() as u64;
const DROPS: u64 = KERNEL + KernelStage::ALL.len() as u64 + 1;

/// Writes all bursts, drops and kernel times of `source`, one after the other as they are read. `name` counts where the
/// daemon's facts give none. `each` is called for every record, for whoever shows how far it is. Returns how many records
/// were lost.
///
/// # Errors
/// What `out` answers.
pub fn write_perfetto(
    out: &mut impl Write,
    source: &Source,
    name: &str,
    mut each: impl FnMut(&BurstRecord),
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

/// Whose track it is. Rings and workers of a file that was tampered with are just more tracks.
#[derive(Clone, Copy, PartialEq, Eq, Hash)]
enum Owner {
    Ring(u16),
    Worker(u32),
    Kernel,
}

/// A track that is free from `end_ns` on.
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

    /// The clocks, the names, the process.
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

    fn add(&mut self, record: &BurstRecord) -> io::Result<()> {
        if record.kind == RecordKind::Burst as u8 {
            return self.add_burst(record);
        }
        if let Some(cause) = drop_cause(record) {
            let at = self.when.monotonic_ns(record.first);
            let track = self.first_lane(Owner::Ring(record.ring))?;
            let notes = vec![note(Note::Packets, record.packets.into())];
            let event = event(TYPE_INSTANT, track, Category::Drop, DROPS + cause as u64, notes);
            return self.put_event(at, event);
        }
        match record.kernel_stage() {
            Some(stage) => self.add_kernel(record, stage),
            None => Ok(()),
        }
    }

    fn add_kernel(&mut self, record: &BurstRecord, stage: KernelStage) -> io::Result<()> {
        let start = self.when.monotonic_ns(record.first);
        let end = self.when.monotonic_ns(record.last).max(start);
        // A wake-up has the number of the worker's thread that was woken up, the others are nobody's.
        let owner = match stage {
            KernelStage::Wakeup => Owner::Worker(record.bytes),
            KernelStage::HostTx | KernelStage::HostRx | KernelStage::Inject => Owner::Kernel,
        };
        let track = self.lane(owner, start, end)?;
        let name = KERNEL + stage as u64;
        let event = event(TYPE_SLICE_BEGIN, track, Category::Kernel, name, vec![]);
        self.put_event(start, event)?;
        self.put_event(end, end_of(track))
    }

    fn add_burst(&mut self, record: &BurstRecord) -> io::Result<()> {
        let stages = record.direction().stages();
        let times = &record.stages[..stages.len()];
        // Added up here, so that stages lie within their burst whatever the file says.
        let last = times.iter().fold(record.first, |at, ticks| at.saturating_add(*ticks));
        let (start, end) = (self.when.monotonic_ns(record.first), self.when.monotonic_ns(last));
        let track = self.lane(Owner::Ring(record.ring), start, end)?;
        let mut notes = vec![
            note(Note::Packets, record.packets.into()),
            note(Note::Bytes, record.bytes.into()),
            note(Note::Sequence, record.sequence),
            DebugAnnotation {
                name_iid: Some(Note::Polled as u64),
                bool_value: Some(record.flags & BurstRecord::POLLED != 0),
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

    /// The track of `owner` that is always there.
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
