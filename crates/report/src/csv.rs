//! Each record as a line of comma-separated values. `start_ns` is `CLOCK_REALTIME` at the first boundary. A column that is not
//! named here holds what its name says, or nothing.
//!
//! - `burst`: no `cause`.
//! - `drop`: no times but `start_ns`; `packets` is the number dropped.
//! - `kernel`, a time in the host kernel: its stage as `cause`, its start, and its length as `total_ns`; no queue. A wake-up has
//!   its worker and no direction.
//! - `cyclic`, a layer-2 frame with a counter: its counter as `sequence`, and as `cause` the number of its description and its
//!   stream. Its times are those of its burst, which has a line of its own.
//! - `interruption`, a time in which a thread did not run: its worker (none for a thread of another process), the interrupted
//!   thread as `sequence`, its start, and as `total_ns` how long the thread did not run. `cause` is
//!   `CAUSE/WHOSE/CPU/DETAIL/THREAD/CLASS/NAME`, the last three of the culprit: `preempted/worker/1/0/4711/fifo 50/hog`. A comma or
//!   quotation mark in a name becomes a question mark.
//! - `restart`, a time in which no burst was carried because the daemon was started again: `start_ns` is the end of the last burst
//!   before, `total_ns` the time to the end of the first one after. `cause` is how the daemon before ended (`killed`, `ended`, `taken-over`),
//!   whether rings went on (`resumed`, `new`), and the parts in nanoseconds: until the new daemon's socket was there, until the
//!   front end had the first ring started, until the first burst was carried: `killed/resumed/9200000/310000/52000`.
//! - `migration`, a time in which no burst was carried because the guest moved to another host: `start_ns` is the end of the last
//!   burst before, by the clock of that host, `total_ns` the time to the end of the first one after. `cause` is the error of
//!   `total_ns`, and the parts: until the front end had stopped all rings, until a ring was started on the next host, until the first
//!   burst was carried; then, from the start of that ring, until the announcement and until the guest sent. All are in
//!   nanoseconds, and empty if they are not known: `0/310000/92000000/52000/1200000/4100000`.

use std::io::{self, Write};

use burst_trace::{
    BurstRecord, BurstTimes, CyclicRecord, Direction, DropRecord, Interruption, KernelSpan, Record,
    Source, Stage, Subject,
};

use crate::figures::TickRate;
use crate::interruption::class;
use crate::migration::MigrationRow;
use crate::restart::RestartRow;
use crate::when::When;

/// The first line.
const COLUMNS: &str = "kind,direction,queue,worker,sequence,packets,bytes,start_ns,polled,cause,wakeup_ns,notice_ns,\
                       queued_ns,starved_ns,gather_ns,place_ns,egress_ns,publish_ns,complete_ns,signal_ns,limited_ns,total_ns";

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
    Stage::Limited,
];

/// Writes all bursts, drops, kernel spans and interruptions of `source` as they are read: those of one worker in order. `each`
/// is called for every record, to show progress. Returns the number of lost records.
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
        Record::Cyclic(cyclic) => write_cyclic(out, cyclic, rate, when),
        Record::Interruption(it) => write_interruption(out, it, rate, when),
        Record::Restart(restart) => write_restart(out, &RestartRow::new(restart, rate, when)),
        Record::Migration(it) => write_migration(out, &MigrationRow::new(it, rate, when)),
        Record::Probe(_) | Record::Gap(_) | Record::Milestone(_) | Record::Unknown(_) => Ok(()),
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
    write_times(out, &burst.times(), rate)
}

fn write_cyclic(
    out: &mut impl Write,
    record: &CyclicRecord,
    rate: TickRate,
    when: When,
) -> io::Result<()> {
    let (frame, times) = (record.frame, &record.times);
    let (direction, start) = (times.direction().name(), when.realtime_ns(times.first));
    let polled = u8::from(times.is_polled);
    write!(out, "cyclic,{direction},{},{},", times.ring, times.worker)?;
    write!(
        out,
        "{},,,{start},{polled},{}/0x{:x},",
        frame.counter, frame.description, frame.stream
    )?;
    write_times(out, times, rate)
}

/// The wake-up, the stages and the total of a burst, and the end of the line.
fn write_times(out: &mut impl Write, burst: &BurstTimes, rate: TickRate) -> io::Result<()> {
    let direction = burst.direction();
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
    writeln!(out, ",{}", rate.ns(burst.last.wrapping_sub(burst.first)))
}

fn write_drop(out: &mut impl Write, drop: &DropRecord, when: When) -> io::Result<()> {
    let &DropRecord { at, cause, packets, ring, worker } = drop;
    let (direction, start) = (Direction::of_ring(ring).name(), when.realtime_ns(at));
    let cause = cause.name();
    writeln!(out, "drop,{direction},{ring},{worker},,{packets},,{start},,{cause},,,,,,,,,,,,")
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
    writeln!(out, ",,,,{start},,{name},,,,,,,,,,,,{total}")
}

fn write_restart(out: &mut impl Write, row: &RestartRow) -> io::Result<()> {
    let &RestartRow { start_ns, gap_ns, no_daemon_ns, front_end_ns, first_burst_ns, .. } = row;
    let ended = row.ending().replace(' ', "-");
    let rings = if row.resumed { "resumed" } else { "new" };
    let cause = format!("{ended}/{rings}/{no_daemon_ns}/{front_end_ns}/{first_burst_ns}");
    writeln!(out, "restart,,,,,,,{start_ns},,{cause},,,,,,,,,,,,{gap_ns}")
}

fn write_migration(out: &mut impl Write, row: &MigrationRow) -> io::Result<()> {
    let known = |ns: Option<u64>| ns.map_or_else(String::new, |ns| ns.to_string());
    let announced = row.announced_ns.map_or_else(String::new, |ns| ns.to_string());
    let cause = [
        known(row.error_ns),
        known(row.rings_stopped_ns),
        known(row.between_hosts_ns),
        known(row.first_burst_ns),
        announced,
        known(row.first_sent_ns),
    ];
    let (start, cause, gap) = (row.start_ns, cause.join("/"), known(row.gap_ns));
    writeln!(out, "migration,,,,,,,{start},,{cause},,,,,,,,,,,,{gap}")
}

fn write_interruption(
    out: &mut impl Write,
    interruption: &Interruption,
    rate: TickRate,
    when: When,
) -> io::Result<()> {
    let &Interruption { subject, thread, cause, culprit, detail, cpu, .. } = interruption;
    write!(out, "interruption,,,")?;
    if let Subject::Worker(number) = subject {
        write!(out, "{number}")?;
    }
    let (start, total) = (when.realtime_ns(interruption.start), rate.ns(interruption.total()));
    let (whose, cause) = (subject.name(), cause.name());
    // A thread's name is any text: it must not look like another column.
    let name = culprit.name().replace([',', '"'], "?");
    let class = class(&culprit).unwrap_or_default().replace(',', "");
    write!(out, ",{thread},,,{start},,{cause}/{whose}/{cpu}/{detail}/{}/", culprit.thread)?;
    writeln!(out, "{class}/{name},,,,,,,,,,,,{total}")
}
