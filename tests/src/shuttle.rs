//! A guest that moves to and fro between two back ends, under probes and transfers.
//!
//! ```text
//! outside 10.77.0.1 - bridge - tap, or veth - back end vm0 === QEMU    the guest is in one of them
//!                          \-- tap, or veth - back end vm1 === QEMU
//! ```

use std::fs;
use std::path::PathBuf;
use std::process::Command;
use std::thread::sleep;
use std::time::Duration;

use lab::guest::Attachment;
use lab::outside::Outside;
use lab::process::Process;
use serde_json::Value;

use crate::cable::{ip, quieten};
use crate::daemon::{Daemon, program};
use crate::dpdk::Testpmd;
use crate::migration::{Berth, berth_of};
use crate::qemu::{Failure, GUEST, Place, SOON, said};
use crate::sniffer::{Sight, Sniffer};
use crate::traffic::{self, Check, From, Transfer, report_in};

/// The guest's Ethernet address, as `qemu-scripts/launch` gives it.
const ADDRESS: [u8; 6] = [0x52, 0x54, 0, 0x77, 0, 2];
/// The guest's memory, MiB: what is not in use costs nothing.
const MEMORY_MIB: u32 = 256;
/// Virtual CPUs: more than the machine has would slow each other down.
const CPUS: u16 = 2;
/// Time between two probes, microseconds.
const PROBES_EVERY_US: u32 = 1000;
/// Number of probes of a move, without the warm-up.
const PROBES: u32 = 5000;
/// Time for probes and transfers to get going.
const UNDER_WAY: Duration = Duration::from_millis(500);

/// What is between the bridge and a back end.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Wire {
    /// A tap.
    Tap,
    /// A veth, with AF_XDP at the back end's end.
    AfXdp,
}

/// Whose the back ends are.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum By {
    /// `ringscoped`, one for each back end.
    Ringscoped,
    /// DPDK's testpmd, which forwards between its vhost and its AF_XDP driver: one process and one CPU for both. It is for
    /// one queue pair on [`Wire::AfXdp`], and its AF_XDP driver does no offloads, so the guest has none.
    Dpdk,
    /// QEMU itself, without vhost-user, on [`Wire::Tap`]: what its own part of a move takes.
    Qemu,
}

/// A kind of guest and of its back ends.
#[derive(Clone, Copy, Debug)]
pub struct Kind {
    /// What the back ends are on.
    pub wire: Wire,
    /// Number of queue pairs.
    pub queue_pairs: u16,
    /// Packed rather than split rings.
    pub packed: bool,
    /// Whether the guest leaves checksums and segmentation to its device.
    pub offloads: bool,
    /// Whose the back ends are.
    pub by: By,
    /// Bytes of the transfer each way during a move; 0: none.
    pub transfer: u64,
}

/// What became of a move.
#[derive(Clone, Copy, Debug)]
pub struct Moved {
    /// Longest time without an answer to a probe.
    pub down: Duration,
    /// The time that QEMU states as down time.
    pub stopped: Duration,
    /// Probes that were not answered.
    pub lost: u64,
    /// From the last answer before the first announcement to that announcement, and from there to the next answer. DPDK's guests
    /// announce themselves, at some time.
    pub announced: Option<[Duration; 2]>,
    /// What a report of both daemons' recorders says of it ([`PARTS`]).
    pub parts: Option<[Duration; PARTS.len()]>,
}

/// Parts of a move in a report: three that follow each other, and two that begin when the first ring is started.
pub const PARTS: [&str; 5] = [
    "from the last burst to stopped rings",
    "from there to the first ring that is started",
    "from there to the first burst",
    "from the first ring to the announcement",
    "from the first ring to the first burst that the guest sent",
];

/// The same in the report's JSON.
const KEYS: [&str; PARTS.len()] =
    ["rings_stopped_ns", "between_hosts_ns", "first_burst_ns", "announced_ns", "first_sent_ns"];

/// A veth from the bridge to a back end.
#[derive(Debug)]
struct Cord([String; 2]);

impl Cord {
    fn new(outside: &Outside, number: usize, queues: u16) -> Result<Self, Failure> {
        let names = ["a", "b"].map(|end| format!("rs{}m{number}{end}", std::process::id()));
        let queues = format!("numrxqueues {queues} numtxqueues {queues}");
        let [near, far] = &names;
        ip(&format!("link add {near} {queues} type veth peer name {far} {queues}"));
        let cord = Self(names);
        let [near, far] = &cord.0;
        quieten(far);
        ip(&format!("link set {far} up"));
        outside.join(near)?;
        Ok(cord)
    }
}

impl Drop for Cord {
    fn drop(&mut self) {
        ip(&format!("link del {}", self.0[0]));
    }
}

/// The back ends.
#[derive(Debug)]
enum BackEnds {
    Ringscoped([Daemon; 2]),
    Dpdk(Testpmd),
    Qemu,
}

/// The guest, and both back ends.
#[derive(Debug)]
pub struct Shuttle {
    // Field order is drop order: front ends, back ends, links.
    /// The QEMU in which it is; before its first move that of `place`.
    process: Option<Process>,
    back_ends: BackEnds,
    _cords: Vec<Cord>,
    place: Place,
    kind: Kind,
    sockets: [PathBuf; 2],
    berth: Berth,
    moves: usize,
}

impl Shuttle {
    /// Starts the back ends, and the guest at the first of them.
    ///
    /// # Errors
    /// When one of them does not start.
    pub fn new(kind: Kind) -> Result<Self, Failure> {
        let mut place = Place::new(kind.queue_pairs)?;
        let sockets = ["vm0", "vm1"].map(|name| place.directory().join(format!("{name}.sock")));
        let (cords, interfaces) = match kind.wire {
            Wire::Tap => {
                let second = place.outside.add_tap(kind.queue_pairs)?;
                (Vec::new(), [place.tap().to_owned(), second])
            }
            Wire::AfXdp => {
                let cord = |n| Cord::new(&place.outside, n, kind.queue_pairs);
                let cords = vec![cord(0)?, cord(1)?];
                let interfaces = [0, 1].map(|n: usize| cords[n].0[1].clone());
                (cords, interfaces)
            }
        };
        let back_ends = kind.start(&place, &sockets, &interfaces)?;
        let mut options = place.options()?;
        // Where a command line differs from that of the other QEMU.
        let sockets = match kind.by {
            By::Qemu => interfaces.map(PathBuf::from),
            By::Ringscoped | By::Dpdk => sockets,
        };
        if let (By::Qemu, Some(tap)) = (kind.by, sockets[0].to_str()) {
            options.attachment = Attachment::Tap(tap.to_owned());
        }
        (options.packed, options.offloads) = (kind.packed, kind.offloads);
        (options.memory_mib, options.vcpus) = (MEMORY_MIB, Some(CPUS));
        if !kind.offloads {
            place.outside.exec("ethtool -K eth0 tx off")?;
        }
        place.attach(options)?;
        traffic::everything_a_little(&mut place)?;
        let berth = Berth { socket: sockets[0].clone(), ..berth_of(&place) };
        Ok(Self { process: None, back_ends, _cords: cords, place, kind, sockets, berth, moves: 0 })
    }

    /// Moves the guest to the other back end, under load.
    ///
    /// # Errors
    /// When QEMU fails, a byte of a transfer is lost or wrong, or an answer is.
    pub fn go(&mut self) -> Result<Moved, Failure> {
        self.moves += 1;
        let number = self.moves;
        let directory = self.place.directory().join(format!("guest{number}"));
        let berth = Berth { directory, socket: self.sockets[number % 2].clone() };
        let pid = match &self.process {
            Some(process) => process.pid(),
            None => self.place.guest().pid(),
        };
        let process = berth.await_guest(&self.berth, pid, &[])?;
        let sniffer = Sniffer::start(self.place.outside.wire(), ADDRESS)?;
        let mut probes = Probes::start(&self.place, number)?;
        let transfer = |from| Transfer::start(&self.place, from, self.kind.transfer, Check::Hash);
        let ways: &[From] =
            if self.kind.transfer > 0 { &[From::Outside, From::Guest] } else { &[] };
        let mut transfers =
            ways.iter().map(|&from| transfer(from)).collect::<Result<Vec<_>, _>>()?;
        sleep(UNDER_WAY);
        let state = berth.receive(&mut self.berth.monitor()?)?;
        transfers.iter_mut().try_for_each(|transfer| transfer.finish().map(drop))?;
        let (down, lost) = probes.finish()?;
        let seen = sniffer.end()?;
        self.place.guest().kill()?;
        // The QEMU in which it was before ends here.
        self.process = Some(process);
        let serial = fs::read_to_string(berth.directory.join("serial.log"))?;
        if !serial.trim().is_empty() {
            return Err(format!("the guest's kernel complains: {serial}").into());
        }
        self.berth = berth;
        let stopped = Duration::from_millis(state["downtime"].as_u64().ok_or("no down time")?);
        let announced = match self.kind.by {
            By::Ringscoped | By::Qemu => Some(around_announcement(&seen)?),
            By::Dpdk => None,
        };
        Ok(Moved { down, stopped, lost, announced, parts: self.parts()? })
    }

    /// What a report of both recorders says of the last move.
    fn parts(&self) -> Result<Option<[Duration; PARTS.len()]>, Failure> {
        let BackEnds::Ringscoped(daemons) = &self.back_ends else { return Ok(None) };
        let mut command = Command::new(program("ringscope")?);
        command.arg("report").args(daemons.each_ref().map(Daemon::recorder));
        let report: Value = serde_json::from_str(&said(command.args(["--format", "json"]))?)?;
        let row = report["migrations"].as_array().and_then(|all| all.last());
        let row = row.ok_or_else(|| format!("no move in {report}"))?;
        let mut parts = [Duration::ZERO; PARTS.len()];
        for (part, key) in parts.iter_mut().zip(KEYS) {
            let ns = row[key].as_u64().ok_or_else(|| format!("no {key}: {row}"))?;
            *part = Duration::from_nanos(ns);
        }
        Ok(Some(parts))
    }

    /// Whether the guest and the back ends go on, after all moves.
    ///
    /// # Errors
    /// When not.
    pub fn check(&mut self) -> Result<(), Failure> {
        traffic::everything_a_little(&mut self.place)?;
        match &mut self.back_ends {
            BackEnds::Dpdk(testpmd) => Ok(testpmd.statistics().map(drop)?),
            BackEnds::Qemu => Ok(()),
            BackEnds::Ringscoped(daemons) => {
                let ended = daemons.iter_mut().find_map(|it| (!it.is_alive()).then(|| it.log()));
                ended.map_or(Ok(()), |log| Err(format!("a daemon has ended: {log}").into()))
            }
        }
    }
}

impl Kind {
    fn start(
        self,
        place: &Place,
        sockets: &[PathBuf; 2],
        interfaces: &[String; 2],
    ) -> Result<BackEnds, Failure> {
        if self.by == By::Dpdk {
            return Ok(BackEnds::Dpdk(Testpmd::between(sockets, interfaces)?));
        }
        if self.by == By::Qemu {
            return Ok(BackEnds::Qemu);
        }
        let pairs = self.queue_pairs.to_string();
        let start = |n: usize| {
            let datapath = match self.wire {
                Wire::Tap => format!("tap:ifname={}", interfaces[n]),
                Wire::AfXdp => format!("af-xdp:ifname={}", interfaces[n]),
            };
            let arguments = ["--datapath", &datapath, "--queue-pairs", &pairs];
            Daemon::start(place.directory(), &format!("vm{n}"), &arguments)
        };
        Ok(BackEnds::Ringscoped([start(0)?, start(1)?]))
    }
}

/// Probes of the outside host, sent at fixed times.
struct Probes {
    process: Process,
    samples: PathBuf,
}

impl Probes {
    fn start(place: &Place, number: usize) -> Result<Self, Failure> {
        let samples = place.directory().join(format!("probes{number}.csv"));
        let mut command = place.outside.command(&program("ringscope")?.to_string_lossy());
        let target = format!("{GUEST}:7007");
        let (count, every) = (PROBES.to_string(), PROBES_EVERY_US.to_string());
        command.args(["agent", "udp-ping", &target, "--count", &count, "--interval-us", &every]);
        command.arg("--samples").arg(&samples);
        let log = place.directory().join(format!("probes{number}.log"));
        Ok(Self { process: Process::spawn(&mut command, &log)?, samples })
    }

    /// Waits for their end. Returns the longest time between two answers, and how many were lost. None may be wrong.
    fn finish(&mut self) -> Result<(Duration, u64), Failure> {
        let time = Duration::from_micros(u64::from(PROBES) * u64::from(PROBES_EVERY_US));
        let status = self.process.wait(time + SOON)?;
        let text = self.process.log_tail(1 << 16);
        if !status.is_some_and(|status| status.success()) {
            return Err(format!("the probes ended with {status:?}: {text}").into());
        }
        let report: Value = report_in(&text)?;
        if report["changed"] != 0 || report["duplicates"] != 0 {
            return Err(format!("wrong answers: {report}").into());
        }
        let samples = fs::read_to_string(&self.samples)?;
        let received = |line: &str| line.split(',').nth(3)?.parse::<u64>().ok();
        let mut times: Vec<u64> = samples.lines().filter_map(received).collect();
        times.sort_unstable();
        let longest = times.windows(2).map(|two| two[1] - two[0]).max();
        let longest = longest.ok_or("fewer than two answers")?;
        Ok((Duration::from_nanos(longest), report["lost"].as_u64().ok_or("no count")?))
    }
}

/// The time from the last answer before the first announcement to that announcement, and from there to the next answer.
fn around_announcement(seen: &[(Duration, Sight)]) -> Result<[Duration; 2], Failure> {
    let first = seen.iter().position(|(_, sight)| *sight == Sight::Announcement);
    let first = first.ok_or("the guest was not announced")?;
    let at = seen[first].0;
    let (before, after) = seen.split_at(first);
    let answer = |(time, sight): &(Duration, Sight)| (*sight == Sight::Answer).then_some(*time);
    let last = before.iter().rev().find_map(answer).ok_or("no answer before the announcement")?;
    let next = after.iter().find_map(answer).ok_or("no answer after the announcement")?;
    Ok([at.saturating_sub(last), next.saturating_sub(at)])
}
