//! Every record as a line of comma-separated values.

use std::io::{self, Write};

use burst_trace::{BurstRecord, KernelStage, RecordKind, Source, Stage};

use crate::collect::drop_cause;
use crate::figures::TickRate;
use crate::when::When;

/// The first line. A burst has no `cause`; a drop has no times but `start_ns`, and `packets` are those that went no
/// further. A time in the host kernel has its stage as `cause`, its beginning and `total_ns`, and no queue; a wake-up has the
/// worker whose thread it was, and no direction. `start_ns` is `CLOCK_REALTIME` at the first boundary.
const COLUMNS: &str = "kind,direction,queue,worker,sequence,packets,bytes,start_ns,polled,cause,wakeup_ns,notice_ns,\
                       queued_ns,starved_ns,gather_ns,place_ns,egress_ns,publish_ns,complete_ns,signal_ns,total_ns";

/// The stages in the order of the columns.
const STAGES: [Stage; 9] = [
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

/// Writes all bursts, drops and kernel times of `source`, one after the other as they are read: of one worker in order. `each` is
/// called for every record, for whoever shows how far it is. Returns how many records were lost.
///
/// # Errors
/// What `out` answers.
pub fn write_csv(
    out: &mut impl Write,
    source: &Source,
    mut each: impl FnMut(&BurstRecord),
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

fn write_line(
    out: &mut impl Write,
    record: &BurstRecord,
    rate: TickRate,
    when: When,
) -> io::Result<()> {
    if let Some(stage) = record.kernel_stage() {
        return write_kernel(out, record, stage, rate, when);
    }
    let cause = drop_cause(record);
    let is_burst = record.kind == RecordKind::Burst as u8;
    if !is_burst && cause.is_none() {
        return Ok(());
    }
    let &BurstRecord { ring, worker, packets, sequence, .. } = record;
    let direction = record.direction();
    let (kind, start) = (if is_burst { "burst" } else { "drop" }, when.realtime_ns(record.first));
    write!(out, "{kind},{},{ring},{worker},", direction.name())?;
    if let Some(cause) = cause {
        return writeln!(out, ",{packets},,{start},,{},,,,,,,,,,,", cause.name());
    }
    let polled = u8::from(record.flags & BurstRecord::POLLED != 0);
    write!(out, "{sequence},{packets},{},{start},{polled},,", record.bytes)?;
    if let Some(ticks) = record.wakeup {
        write!(out, "{}", rate.ns(ticks.into()))?;
    }
    for stage in STAGES {
        match direction.stages().iter().position(|it| *it == stage) {
            Some(place) => write!(out, ",{}", rate.ns(record.stages[place]))?,
            None => write!(out, ",")?,
        }
    }
    writeln!(out, ",{}", rate.ns(record.total()))
}

fn write_kernel(
    out: &mut impl Write,
    record: &BurstRecord,
    stage: KernelStage,
    rate: TickRate,
    when: When,
) -> io::Result<()> {
    let (name, start) = (stage.name(), when.realtime_ns(record.first));
    let total = rate.ns(record.last.saturating_sub(record.first));
    write!(out, "kernel,")?;
    match stage.direction() {
        Some(direction) => write!(out, "{},,", direction.name())?,
        None => write!(out, ",,{}", record.bytes)?,
    }
    writeln!(out, ",,,,{start},,{name},,,,,,,,,,,{total}")
}
