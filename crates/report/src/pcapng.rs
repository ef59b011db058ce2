//! Each record as a packet of a capture, for tools that read captures.
//!
//! A record has no frames. So a burst is one packet (Enhanced Packet Block) of captured length 0, whose original length is
//! the mean of the burst's frames. Its comment is that of `ringscoped --pcap`, with `frames=` in place of `frame=`. The file
//! has one interface, the guest's; each packet has its queue pair and direction.
//!
//! A drop is a packet of original length 0; its comment has the cause and the number of packets. A time in the host kernel
//! is one too, without a queue: `tx host-tx=3012ns`, or `wakeup=912ns worker=0`, which has no direction either. So is an
//! interruption: `preempted=3000000ns worker=0 cpu=1 thread=812 culprit=4711 (hog, fifo 50)`.
//!
//! A packet's time is `CLOCK_REALTIME` at the first boundary; with `--pcap` it is the time at which the frame passed the
//! datapath. Packets are in the order of the records: sorted for one worker, not for several; `reordercap` sorts them.

use std::fmt::Write as _;
use std::io::{self, Write};

use burst_trace::{
    BurstRecord, Direction, DropRecord, Interruption, KernelSpan, Record, Source, Subject,
};
use pcapng::comment::{Described, describe};
use pcapng::{Packet, PacketDirection};

use crate::facts::Facts;
use crate::figures::TickRate;
use crate::interruption::NamedCulprit;
use crate::migration::MigrationRow;
use crate::restart::RestartRow;
use crate::when::When;

/// Writes all bursts, drops, kernel spans and interruptions of `source`. `name` is used if the daemon's facts have none. `each`
/// is called for every record, to show progress. Returns the number of lost records.
///
/// # Errors
/// What `out` answers.
pub fn write_pcapng(
    out: &mut impl Write,
    source: &Source,
    name: &str,
    mut each: impl FnMut(&Record),
) -> io::Result<u64> {
    let (rate, when) = (TickRate::new(source.ticks_per_second()), When::of(source));
    let facts = Facts::parse(&source.facts());
    let name = facts.name.as_deref().unwrap_or(name);
    let datapath = facts.datapath.as_deref().unwrap_or("a datapath that is not known");
    let description = format!("bursts, without their frames, of the guest on {datapath}");
    let application = concat!("ringscope ", env!("CARGO_PKG_VERSION"));
    let (mut block, mut comment) = (Vec::new(), String::new());
    pcapng::begin(&mut block, application, name, &description);
    let mut written = out.write_all(&block);
    let lost = source.read(|record| {
        each(record);
        comment.clear();
        let Some(packet) = packet(record, rate, when, &mut comment) else { return };
        if written.is_ok() {
            block.clear();
            pcapng::packet(&mut block, &Packet { comment: &comment, ..packet });
            written = out.write_all(&block);
        }
    });
    written.map(|()| lost)
}

/// The packet that stands for a record, if one does. Its comment is appended to `comment`.
fn packet(
    record: &Record,
    rate: TickRate,
    when: When,
    comment: &mut String,
) -> Option<Packet<'static>> {
    let (queue, direction, original_len) = match record {
        Record::Burst(burst) => {
            describe(comment, burst, Described::All, |ticks| rate.ns(ticks));
            (Some(burst.ring / 2), Some(burst.direction()), mean_len(burst))
        }
        &Record::Drop(DropRecord { ring, packets, cause, .. }) => {
            let (direction, cause) = (Direction::of_ring(ring), cause.name());
            let name = direction.name();
            // Writing to a string does not fail.
            let _ = write!(comment, "{name} ring={ring} drop={cause} packets={packets}");
            (Some(ring / 2), Some(direction), 0)
        }
        Record::KernelSpan(span) => {
            describe_span(comment, span, rate);
            (None, span.stage.direction(), 0)
        }
        Record::Interruption(interruption) => {
            describe_interruption(comment, interruption, rate);
            (None, None, 0)
        }
        Record::Restart(restart) => {
            describe_restart(comment, &RestartRow::new(restart, rate, when));
            (None, None, 0)
        }
        Record::Migration(migration) => {
            describe_migration(comment, &MigrationRow::new(migration, rate, when));
            (None, None, 0)
        }
        Record::Probe(_)
        | Record::Cyclic(_)
        | Record::Gap(_)
        | Record::Milestone(_)
        | Record::Unknown(_) => return None,
    };
    let time_ns = when.realtime_ns(record.first());
    let direction = direction.map(PacketDirection::of);
    Some(Packet { time_ns, queue, direction, bytes: &[], original_len, comment: "" })
}

fn describe_span(comment: &mut String, span: &KernelSpan, rate: TickRate) {
    if let Some(direction) = span.stage.direction() {
        let _ = write!(comment, "{} ", direction.name());
    }
    let _ = write!(comment, "{}={}ns", span.stage.name(), rate.ns(span.total()));
    if let Some(worker) = span.worker.filter(|_| span.stage.direction().is_none()) {
        let _ = write!(comment, " worker={worker}");
    }
}

fn describe_restart(comment: &mut String, row: &RestartRow) {
    let &RestartRow { gap_ns, no_daemon_ns, front_end_ns, first_burst_ns, .. } = row;
    let _ = write!(
        comment,
        "restart={gap_ns}ns no-daemon={no_daemon_ns}ns front-end={front_end_ns}ns first-burst={first_burst_ns}ns ({})",
        row.words()
    );
}

fn describe_migration(comment: &mut String, row: &MigrationRow) {
    let parts = [
        ("migration", row.gap_ns),
        ("error", row.error_ns),
        ("rings-stopped", row.rings_stopped_ns),
        ("between-hosts", row.between_hosts_ns),
        ("first-burst", row.first_burst_ns),
    ];
    for (n, (name, ns)) in parts.into_iter().enumerate() {
        let space = if n > 0 { " " } else { "" };
        let _ = match ns {
            Some(ns) => write!(comment, "{space}{name}={ns}ns"),
            None => write!(comment, "{space}{name}=n/a"),
        };
    }
}

fn describe_interruption(comment: &mut String, interruption: &Interruption, rate: TickRate) {
    let &Interruption { subject, thread, cause, culprit, cpu, .. } = interruption;
    let _ = write!(comment, "{}={}ns ", cause.name(), rate.ns(interruption.total()));
    let _ = match subject {
        Subject::Worker(number) => write!(comment, "worker={number}"),
        Subject::FrontEnd | Subject::FarEnd => comment.write_str(subject.name()),
    };
    let _ = write!(comment, " cpu={cpu} thread={thread}");
    let _ = match NamedCulprit::of(&culprit) {
        Some(NamedCulprit { name, class: Some(class) }) => {
            write!(comment, " culprit={} ({name}, {class})", culprit.thread)
        }
        Some(NamedCulprit { name, class: None }) => write!(comment, " culprit={name}"),
        None => Ok(()),
    };
}

/// The mean length of a burst's frames, bytes, rounded.
fn mean_len(record: &BurstRecord) -> u32 {
    let packets = u32::from(record.packets).max(1);
    record.bytes.saturating_add(packets / 2) / packets
}
