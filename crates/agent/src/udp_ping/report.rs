//! What `udp-ping` prints.

use std::net::SocketAddr;

use serde::Serialize;

use super::samples::Sample;
use super::{Args, Mode, Strays};
use crate::figures::Figures;
use crate::launch::LaunchReport;

/// What `udp-ping` prints; times are nanoseconds, absent when nothing came back.
#[derive(Debug, Clone, PartialEq, Serialize)]
pub struct PingReport {
    kind: &'static str,
    mode: Mode,
    target: SocketAddr,
    size: usize,
    interval_us: u64,
    warmup: u64,
    /// Packets sent and counted, without warm-up.
    pub sent: u64,
    /// Number of these that came back in time.
    pub received: u64,
    /// Number that did not, without those that the sender's own kernel is known not to have sent.
    pub lost: u64,
    /// Number sent more than `late_us` after their intended time; with launch times, more than that after the
    /// qdisc should have sent them.
    pub late: u64,
    late_us: u64,
    /// Number of replies that came twice.
    pub duplicates: u64,
    /// Number of replies with another length or payload; they count as lost.
    pub changed: u64,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub(super) launch: Option<LaunchReport>,
    #[serde(flatten)]
    pub(super) figures: Option<Figures>,
}

impl PingReport {
    /// Whether packets were sent, and nothing at all came back.
    pub(super) const fn is_without_reply(&self) -> bool {
        self.received == 0 && (self.lost > 0 || self.sent == 0)
    }
}

/// Sums up all packets, and leaves out the warm-up.
pub(super) fn summarise(args: &Args, samples: &[Sample], strays: Strays) -> PingReport {
    let counted = samples.get(args.warmup as usize..).unwrap_or_default();
    let round_trips: Vec<u64> = counted
        .iter()
        .filter(|sample| sample.reply.received_ns != 0)
        // A packet that no qdisc has held may be back before it was due.
        .map(|sample| sample.reply.received_ns.saturating_sub(sample.intended_ns))
        .collect();
    let launch = args.launch.is_wanted().then(|| {
        let of = |it: &Sample| (it.intended_ns, it.sent_ns, it.sent_kernel_ns, it.fate);
        LaunchReport::of(counted.iter().map(of))
    });
    let is_late = |sample: &&Sample| {
        let (due, sent) = match launch {
            None => (sample.intended_ns, sample.sent_ns),
            Some(_) => (sample.sent_ns, sample.sent_kernel_ns),
        };
        sent.saturating_sub(due) > args.late_us.saturating_mul(1000)
    };
    let unsent = launch.as_ref().map_or(0, LaunchReport::unsent);
    PingReport {
        kind: "udp-ping",
        mode: args.mode,
        target: args.target,
        size: args.size,
        interval_us: args.interval_us,
        warmup: args.warmup,
        sent: counted.len() as u64,
        received: round_trips.len() as u64,
        lost: (counted.len() as u64).saturating_sub(round_trips.len() as u64 + unsent),
        late: counted.iter().filter(is_late).count() as u64,
        late_us: args.late_us,
        duplicates: strays.duplicates,
        changed: strays.changed,
        launch,
        figures: Figures::of(round_trips),
    }
}
