//! Each record as a line of comma-separated values.

use std::io::{self, Write};

use burst_trace::{BurstRecord, Direction, DropRecord, KernelSpan, Record, Source, Stage};

use crate::figures::TickRate;
use crate::when::When;

/// The first line. A burst has no `cause`. A drop has no times but `start_ns`; `packets` is the number dropped. A time in
/// the host kernel has its stage as `cause`, its start and `total_ns`, and no queue; a wake-up has its worker and no
/// direction. `start_ns` is `CLOCK_REALTIME` at the first boundary.
const COLUMNS: &str = "kind,direction,queue,worker,sequence,packets,bytes,start_ns,polled,cause,wakeup_ns,notice_ns,\
                       queued_ns,starved_ns,gather_ns,place_ns,egress_ns,publish_ns,complete_ns,signal_ns,total_ns";

/// The stages in the order of the columns.
const STAGES: [Stage; Stage::ALL.len()] = [
    Stage::Notice,
    Stage::Queued,
    Stage::Starved,
    Stage::Gather,
    Stage::Place,
    Stage::Egress,
    Stage::Publish,
    Stage::Complete,
    Stage::Signal,
];

/// Writes all bursts, drops and kernel spans of `source` as they are read: those of one worker in order. `each` is called
/// for every record, to show progress. Returns the number of lost records.
///
/// # Errors
/// What `out` answers.
pub fn write_csv(
    out: &mut impl Write,
    source: &Source,
    mut each: impl FnMut(&Record),
) -> io::Result<u64> {
    let (rate, when) = (TickRate::new(source.ticks_per_second()), When::of(source));
    writeln!(out, "{COLUMNS}")?;
    let mut written = Ok(());
    let lost = source.read(|record| {
        each(record);
        if written.is_ok() {
            written = write_line(out, record, rate, when);
        }
    });
    written.map(|()| lost)
}

fn write_line(out: &mut impl Write, record: &Record, rate: TickRate, when: When) -> io::Result<()> {
    match record {
        Record::Burst(burst) => write_burst(out, burst, rate, when),
        Record::Drop(drop) => write_drop(out, drop, when),
        Record::KernelSpan(span) => write_span(out, span, rate, when),
        Record::Probe(_) | Record::Gap(_) | Record::Unknown(_) => Ok(()),
    }
}

fn write_burst(
    out: &mut impl Write,
    burst: &BurstRecord,
    rate: TickRate,
    when: When,
) -> io::Result<()> {
    let &BurstRecord { ring, worker, packets, sequence, bytes, .. } = burst;
    let (direction, start) = (burst.direction(), when.realtime_ns(burst.first));
    let polled = u8::from(burst.is_polled);
    write!(out, "burst,{},{ring},{worker},", direction.name())?;
    write!(out, "{sequence},{packets},{bytes},{start},{polled},,")?;
    if let Some(ticks) = burst.wakeup {
        write!(out, "{}", rate.ns(ticks.into()))?;
    }
    // Boundaries are rounded, not stages, so the stages add up to the total.
    let mut boundaries = [0; Stage::ALL.len() + 1];
    let mut ticks = 0_u64;
    for (boundary, stage) in boundaries[1..].iter_mut().zip(burst.stages) {
        ticks = ticks.saturating_add(stage);
        *boundary = rate.ns(ticks);
    }
    for stage in STAGES {
        match direction.position(stage) {
            Some(at) => write!(out, ",{}", boundaries[at + 1] - boundaries[at])?,
            None => write!(out, ",")?,
        }
    }
    writeln!(out, ",{}", rate.ns(burst.total()))
}

fn write_drop(out: &mut impl Write, drop: &DropRecord, when: When) -> io::Result<()> {
    let &DropRecord { at, cause, packets, ring, worker } = drop;
    let (direction, start) = (Direction::of_ring(ring).name(), when.realtime_ns(at));
    let cause = cause.name();
    writeln!(out, "drop,{direction},{ring},{worker},,{packets},,{start},,{cause},,,,,,,,,,,")
}

fn write_span(
    out: &mut impl Write,
    span: &KernelSpan,
    rate: TickRate,
    when: When,
) -> io::Result<()> {
    let (name, start) = (span.stage.name(), when.realtime_ns(span.start));
    let total = rate.ns(span.total());
    write!(out, "kernel,")?;
    match (span.stage.direction(), span.worker) {
        (Some(direction), _) => write!(out, "{},,", direction.name())?,
        (None, Some(worker)) => write!(out, ",,{worker}")?,
        (None, None) => write!(out, ",,")?,
    }
    writeln!(out, ",,,,{start},,{name},,,,,,,,,,,{total}")
}
