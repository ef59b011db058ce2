//! What the daemon says of itself at its start: where it listens, what it offers, where frames go, and how to look.

use std::fmt::Write as _;
use std::path::Path;

use burst_trace::Before;
use burst_trace::location::default_run_dir;
use datapath::Capabilities;
use metrics::Address;
use virtio_net::Offloads;
use virtio_net::features::Names;

use crate::plan::{EndpointPlan, GuestPlan};

/// Logs what is served for a guest: in three lines if it is the only one, else in one. The last line ends with the
/// recorder, which is there by then, and with how to look. `metrics`: where those of an only guest are served.
pub fn guest(
    plan: &GuestPlan,
    capabilities: &Capabilities,
    is_alone: bool,
    metrics: Option<&Address>,
) {
    let mut lines = lines(plan, capabilities, is_alone, default_run_dir().as_deref());
    if let Some((address, last)) = metrics.filter(|_| is_alone).zip(lines.last_mut()) {
        let _ = write!(last, ", metrics at {address}");
    }
    for line in lines {
        log::info!("{}: {line}", plan.name);
    }
}

/// Logs where the metrics of several guests are served. For an only guest its last line says that.
pub fn metrics(address: &Address, is_alone: bool) {
    if !is_alone {
        log::info!("metrics at {address}");
    }
}

/// Logs that a guest's recorder has the records of the daemon before, or why it has not.
pub fn recorder(plan: &GuestPlan, before: &Before) {
    let (path, prefix) = (plan.recorder.display(), &plan.log_prefix);
    match before {
        Before::Nothing => {}
        Before::Continued(records) => log::info!(
            "{prefix}the flight recorder {path} has {records} records of the daemon before"
        ),
        Before::OtherFlags => log::info!(
            "{prefix}the flight recorder {path} starts empty, because the previous daemon ran with other flags"
        ),
        Before::Unfit(why) => log::warn!(
            "{prefix}the flight recorder {path} of the daemon before is not continued, because {why}; a new one begins"
        ),
    }
}

fn lines(
    plan: &GuestPlan,
    capabilities: &Capabilities,
    is_alone: bool,
    default_run_dir: Option<&Path>,
) -> Vec<String> {
    let endpoint = match &plan.endpoint {
        EndpointPlan::Listen(path) => format!("listening on {}", path.display()),
        EndpointPlan::Connect(path) => format!("connecting to {}", path.display()),
        EndpointPlan::Descriptor(fd) => format!("serving file descriptor {fd}"),
    };
    let forwarding = format!(
        "forwarding through {}, MTU {}, {} queue pair(s), polling {}",
        plan.datapath, capabilities.mtu, plan.queue_pairs, plan.poll
    );
    let recorder = format!("recording to {}", plan.recorder.display());
    let withheld = match plan.withheld {
        0 => String::new(),
        withheld => format!("; withheld features: {}", Names(withheld)),
    };
    if !is_alone {
        return vec![format!("{endpoint}, {forwarding}, {recorder}{withheld}")];
    }
    let offered = format!(
        "{endpoint}; offering offloads from the guest: {}; to the guest: {}{withheld}",
        names(capabilities.from_guest),
        names(capabilities.to_guest)
    );
    let what = if plan.trace { "" } else { " (counters only, by --trace off)" };
    let run_dir = plan.recorder.parent().filter(|dir| Some(*dir) != default_run_dir);
    let run_dir = run_dir.map_or(String::new(), |dir| format!(" --run-dir {}", dir.display()));
    let look =
        format!("{recorder}{what}; to look: ringscope top{run_dir}, ringscope stats{run_dir}");
    vec![offered, forwarding, look]
}

fn names(offloads: Offloads) -> String {
    let Offloads { checksum, tso4, tso6, ecn, ufo, uso } = offloads;
    let all = [
        (checksum, "checksum"),
        (tso4, "tso4"),
        (tso6, "tso6"),
        (ecn, "ecn"),
        (ufo, "ufo"),
        (uso, "uso"),
    ];
    let on: Vec<_> = all.iter().filter(|(is_on, _)| *is_on).map(|(_, name)| *name).collect();
    if on.is_empty() { "none".into() } else { on.join(" ") }
}

#[cfg(test)]
mod tests {
    use clap::Parser as _;

    use super::*;
    use crate::args::Args;
    use crate::plan::Plan;

    #[test]
    fn one_guest_has_three_lines_and_each_of_several_has_one() {
        let flags = "ringscoped --socket-path /r/vm0.sock --run-dir /r --datapath tap:ifname=tap0";
        let args = Args::parse_from(flags.split(' '));
        let run_dir = args.run_dir.clone();
        let plan = Plan::new(vec![args], run_dir).unwrap().guests.remove(0);
        let from_guest = Offloads { ufo: false, ..Offloads::ALL };
        let capabilities =
            Capabilities { name: "tap", from_guest, to_guest: Offloads::default(), mtu: 1500 };
        let expected = [
            "listening on /r/vm0.sock; offering offloads from the guest: checksum tso4 tso6 ecn uso; to the guest: none",
            "forwarding through tap:ifname=tap0, MTU 1500, 1 queue pair(s), polling adaptive:200",
            "recording to /r/vm0.trace; to look: ringscope top --run-dir /r, ringscope stats --run-dir /r",
        ];
        assert_eq!(lines(&plan, &capabilities, true, None), expected);
        let look = "recording to /r/vm0.trace; to look: ringscope top, ringscope stats";
        assert_eq!(lines(&plan, &capabilities, true, Some(Path::new("/r")))[2], look);
        let withholding = GuestPlan { withheld: 1 << 29 | 1 << 34, ..plan.clone() };
        let offered = &lines(&withholding, &capabilities, true, None)[0];
        assert!(offered.ends_with("guest: none; withheld features: event_idx packed"), "{offered}");
        let one = lines(&plan, &capabilities, false, None);
        assert_eq!(one.len(), 1);
        assert!(one[0].ends_with("polling adaptive:200, recording to /r/vm0.trace"), "{one:?}");
    }
}
