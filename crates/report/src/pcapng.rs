//! Every burst as a packet of a capture, for the tools that read captures.
//!
//! A record has no frames, so none are in the file: a burst is one packet (Enhanced Packet Block) of captured length 0,
//! whose original length is the mean of the burst's frames. What is known of the burst is its comment, as `ringscoped
//! --pcap` writes it, with `frames=` in place of `frame=`. The file has one interface, the guest's, and each packet its
//! queue pair and direction, also as there. A drop is a packet of original length 0; its comment says why and how many. So
//! is a time in the host kernel, without a queue: `tx host-tx=3012ns`, and of a wake-up, which has no direction either,
//! `wakeup=912ns worker=0`. A packet's time is `CLOCK_REALTIME` at the first boundary, where `--pcap` has that at which the frame passed the
//! datapath. Packets come as their records were read: of one worker in order, of several not; `reordercap` sorts them.

use std::fmt::Write as _;
use std::io::{self, Write};

use burst_trace::comment::{Frames, describe};
use burst_trace::pcapng::{self, Packet, Way};
use burst_trace::{BurstRecord, KernelStage, RecordKind, Source};

use crate::collect::drop_cause;
use crate::facts::Facts;
use crate::figures::TickRate;
use crate::when::When;

/// Writes all bursts, drops and kernel times of `source`. `name` counts where the daemon's facts give none. `each` is
/// called for every record, for whoever shows how far it is. Returns how many records were lost.
///
/// # Errors
/// What `out` answers.
pub fn write_pcapng(
    out: &mut impl Write,
    source: &Source,
    name: &str,
    mut each: impl FnMut(&BurstRecord),
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
        let is_burst = record.kind == RecordKind::Burst as u8;
        let kernel = record.kernel_stage();
        if is_burst {
            describe(&mut comment, record, Frames::All, |ticks| rate.ns(ticks));
        } else if let Some(cause) = drop_cause(record) {
            let &BurstRecord { ring, packets, .. } = record;
            let (direction, cause) = (record.direction().name(), cause.name());
            // Nothing fails that is written to a string.
            let _ = write!(comment, "{direction} ring={ring} drop={cause} packets={packets}");
        } else if let Some(stage) = kernel {
            let ns = rate.ns(record.last.saturating_sub(record.first));
            let _ = match stage.direction() {
                Some(way) => write!(comment, "{} {}={ns}ns", way.name(), stage.name()),
                None => write!(comment, "{}={ns}ns worker={}", stage.name(), record.bytes),
            };
        } else {
            return;
        }
        if written.is_ok() {
            block.clear();
            let packet = Packet {
                time_ns: when.realtime_ns(record.first),
                queue: kernel.is_none().then_some(record.ring / 2),
                way: kernel.map_or(Some(record.direction()), KernelStage::direction).map(Way::of),
                bytes: &[],
                original_len: if is_burst { mean_len(record) } else { 0 },
                comment: &comment,
            };
            pcapng::packet(&mut block, &packet);
            written = out.write_all(&block);
        }
    });
    written.map(|()| lost)
}

/// The mean length of a burst's frames, bytes, rounded.
fn mean_len(record: &BurstRecord) -> u32 {
    let packets = u32::from(record.packets).max(1);
    record.bytes.saturating_add(packets / 2) / packets
}
