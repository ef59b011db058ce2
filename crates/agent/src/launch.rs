//! Launch times (`SO_TXTIME`): the program passes a packet on early, and the kernel sends it at its time. The qdisc that
//! does so is `etf` (`tc-etf(8)`); packets that it does not send are reported to the socket.

use std::io;
use std::net::UdpSocket;

use libc::{SOF_TXTIME_REPORT_ERRORS, sock_extended_err, sock_txtime};
use nix::sys::socket::{setsockopt, sockopt};
use rustix::time::DynamicClockId;
use serde::Serialize;

use crate::Error;
use crate::clock::ahead_ns;
use crate::figures::Figures;
use crate::gate::Gate;

/// Origin and codes of the reports (`include/uapi/linux/errqueue.h`).
const ORIGIN_TXTIME: u8 = 6;
const CODE_INVALID_PARAM: u8 = 1;
const CODE_MISSED: u8 = 2;

/// Time by which the gate must stay open after a launch time: the frame has to leave, too.
const GUARD_NS: u64 = 50_000;

#[derive(Debug, Clone, Default, clap::Args)]
pub struct LaunchArgs {
    /// Give each packet a launch time (SO_TXTIME, CLOCK_TAI), this long after the program passes it on;
    /// times count from there, and packets that the qdisc does not send are counted apart.
    #[arg(long, value_name = "LEAD_US", value_parser = clap::value_parser!(u64).range(..=10_000_000))]
    txtime: Option<u64>,
    /// The delta of the qdisc etf, which sends a packet up to this long before its launch time: launch times
    /// are later by it, and times count from when the qdisc should send the packet [default: 0].
    #[arg(long, value_name = "US", requires = "txtime", value_parser = clap::value_parser!(u64).range(..=10_000_000))]
    delta_us: Option<u64>,
    /// The gate of the packets' class in the qdisc taprio: CYCLE:OPENS-CLOSES in us, and @BASE in ns of
    /// CLOCK_TAI. A launch time outside it is put off until the gate opens; this is counted apart.
    #[arg(long, value_name = "GATE", requires = "txtime")]
    gate: Option<Gate>,
    /// Priority of the packets (SO_PRIORITY), by which qdiscs choose a traffic class.
    #[arg(long, value_name = "N", value_parser = clap::value_parser!(u8).range(..=15))]
    priority: Option<u8>,
}

/// What became of a packet at the sender.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub enum Fate {
    /// Sent, as far as is known.
    #[default]
    Sent,
    /// A qdisc dropped it when the program passed it on (ENOBUFS), and gave no other reason.
    NoBuffer,
    /// Its launch time was over when the program passed it on, or no launch time of this qdisc's.
    Invalid,
    /// Its launch time was over before the qdisc sent it.
    Missed,
}

/// The launch time and the fate that the kernel reports of a packet that it did not send.
pub fn unsent(error: &sock_extended_err) -> Option<(u64, Fate)> {
    let fate = match (error.ee_origin, error.ee_code) {
        (ORIGIN_TXTIME, CODE_INVALID_PARAM) => Fate::Invalid,
        (ORIGIN_TXTIME, CODE_MISSED) => Fate::Missed,
        _ => return None,
    };
    Some((u64::from(error.ee_data) << 32 | u64::from(error.ee_info), fate))
}

/// The times of one packet, nanoseconds.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Launch {
    /// When it should be sent, by `CLOCK_MONOTONIC`. Times count from here.
    pub due_ns: u64,
    /// When the qdisc should send it: later than `due_ns` if the gate is closed then.
    pub release_ns: u64,
    /// What the kernel is given, by `CLOCK_TAI`.
    pub txtime_ns: u64,
}

/// Gives packets their launch times.
#[derive(Debug, Clone, Copy)]
pub struct Launcher {
    /// How far `CLOCK_TAI` is ahead of `CLOCK_MONOTONIC`.
    tai_ahead_ns: i64,
    lead_ns: u64,
    delta_ns: u64,
    gate: Option<Gate>,
    /// The last one. Several packets may wait for one opening of the gate; their times differ, so that the kernel's reports
    /// can be told apart.
    release_ns: u64,
}

impl LaunchArgs {
    /// Sets up the socket. `None` without launch times.
    ///
    /// # Errors
    /// If the kernel refuses, or the gate is never open for long enough.
    pub fn set_up(&self, socket: &UdpSocket) -> Result<Option<Launcher>, Error> {
        let refused = |flag, expected: &str, source: io::Error| Error::Usage {
            flag,
            expected: expected.into(),
            found: source.to_string(),
        };
        if let Some(priority) = self.priority {
            setsockopt(socket, sockopt::Priority, &priority.into()).map_err(|error| {
                refused(
                    "--priority",
                    "a priority that this user may use: above 6 only root",
                    error.into(),
                )
            })?;
        }
        let Some(lead_us) = self.txtime else { return Ok(None) };
        let may = "a kernel and a user that may give packets launch times (root, or CAP_NET_ADMIN)";
        let launcher = Launcher {
            tai_ahead_ns: ahead_ns(DynamicClockId::Tai)
                .map_err(|error| refused("--txtime", may, error))?,
            lead_ns: lead_us * 1000,
            delta_ns: self.delta_us.unwrap_or(0) * 1000,
            gate: self.gate,
            release_ns: 0,
        };
        launcher.check()?;
        report_unsent(socket).map_err(|error| refused("--txtime", may, error))?;
        Ok(Some(launcher))
    }

    /// Whether packets get launch times.
    pub const fn is_wanted(&self) -> bool {
        self.txtime.is_some()
    }
}

/// Allows launch times, and has the kernel report what it does not send. Without the second option, it hides ENOBUFS.
fn report_unsent(socket: &UdpSocket) -> io::Result<()> {
    let clock = sock_txtime { clockid: libc::CLOCK_TAI, flags: SOF_TXTIME_REPORT_ERRORS };
    setsockopt(socket, sockopt::TxTime, &clock)?;
    if socket.local_addr()?.is_ipv4() {
        setsockopt(socket, sockopt::Ipv4RecvErr, &true)?;
    } else {
        setsockopt(socket, sockopt::Ipv6RecvErr, &true)?;
    }
    Ok(())
}

impl Launcher {
    fn check(&self) -> Result<(), Error> {
        let open_ns = self.delta_ns + GUARD_NS;
        if self.gate.is_some_and(|gate| gate.wait_ns(0, open_ns).is_none()) {
            return Err(Error::Usage {
                flag: "--gate",
                expected: format!(
                    "a gate that is open for {} us, 50 more than --delta-us",
                    open_ns / 1000
                ),
                found: "a shorter one".into(),
            });
        }
        Ok(())
    }

    /// The times of a packet that the program passes on at `now_ns`.
    pub fn launch(&mut self, now_ns: u64) -> Launch {
        let due_ns = now_ns.saturating_add(self.lead_ns);
        let tai = |ns: u64| ns.saturating_add_signed(self.tai_ahead_ns);
        let wait = self.gate.and_then(|gate| gate.wait_ns(tai(due_ns), self.delta_ns + GUARD_NS));
        let release_ns = due_ns.saturating_add(wait.unwrap_or(0));
        let release_ns = release_ns.max(self.release_ns.saturating_add(1));
        self.release_ns = release_ns;
        Launch { due_ns, release_ns, txtime_ns: tai(release_ns.saturating_add(self.delta_ns)) }
    }
}

/// What launch times did; absent without them.
#[derive(Debug, Clone, PartialEq, Serialize)]
pub struct LaunchReport {
    /// Packets whose launch time was over before the qdisc sent them.
    pub missed: u64,
    /// Packets whose launch time was over when the program passed them on, or was none of the qdisc's.
    pub invalid: u64,
    /// Packets that a qdisc dropped for another reason (ENOBUFS).
    pub no_buffer: u64,
    /// Packets that were passed to the driver before the qdisc should have sent them: no qdisc has held them.
    pub early: u64,
    /// Packets that waited for their gate.
    pub gated: u64,
    /// The mean wait for the gate, over all packets.
    pub gate_mean_ns: f64,
    /// From when the qdisc should have sent a packet until the kernel passed it to the driver; absent if it stamped none.
    pub release: Option<Figures>,
}

/// A packet with a launch time: when it was due, when it should have been sent, when it was (0: not known), its fate.
pub type Launched = (u64, u64, u64, Fate);

impl LaunchReport {
    /// Sums up packets.
    pub fn of(packets: impl Iterator<Item = Launched> + Clone) -> Self {
        let count = |fate| packets.clone().filter(|it| it.3 == fate).count() as u64;
        let stamped = packets.clone().filter(|&(_, _, sent_kernel, _)| sent_kernel != 0);
        let waits = packets.clone().map(|(due, release, ..)| release - due);
        let all = packets.clone().count().max(1) as f64;
        Self {
            missed: count(Fate::Missed),
            invalid: count(Fate::Invalid),
            no_buffer: count(Fate::NoBuffer),
            early: stamped.clone().filter(|(_, release, sent, _)| sent < release).count() as u64,
            gated: waits.clone().filter(|&wait| wait > 0).count() as u64,
            gate_mean_ns: waits.map(|wait| wait as f64).sum::<f64>() / all,
            release: Figures::of(
                stamped.map(|(_, release, sent, _)| sent.saturating_sub(release)).collect(),
            ),
        }
    }

    /// The packets that never left.
    pub const fn unsent(&self) -> u64 {
        self.missed + self.invalid + self.no_buffer
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn launcher(gate: Option<&str>) -> Launcher {
        Launcher {
            tai_ahead_ns: 1_000_000,
            lead_ns: 5000,
            delta_ns: 2000,
            gate: gate.map(|it| it.parse().unwrap()),
            release_ns: 0,
        }
    }

    #[test]
    fn a_launch_time_is_lead_and_delta_later_on_the_clock_of_the_qdisc() {
        let launch = launcher(None).launch(100);
        assert_eq!(launch, Launch { due_ns: 5100, release_ns: 5100, txtime_ns: 1_007_100 });
    }

    #[test]
    fn a_launch_time_outside_the_gate_is_put_off_until_it_opens() {
        // Open from 0.2 to 0.4 ms of each ms.
        let mut gated = launcher(Some("1000:200-400"));
        let launch = gated.launch(100);
        assert_eq!(launch, Launch { due_ns: 5100, release_ns: 200_000, txtime_ns: 1_202_000 });
        // Two packets never have the same launch time.
        let launch = gated.launch(200);
        assert_eq!(launch, Launch { due_ns: 5200, release_ns: 200_001, txtime_ns: 1_202_001 });
        // Not open for long enough: 0.348 ms is the last time.
        assert_eq!(gated.launch(343_000).release_ns, 348_000);
        assert_eq!(gated.launch(343_001).release_ns, 1_200_000);
        let narrow = launcher(Some("1000:200-251")).check().unwrap_err().to_string();
        assert!(narrow.contains("--gate: expected a gate that is open for 52 us"), "{narrow}");
    }

    #[test]
    fn the_reports_of_the_qdisc_are_told_from_others() {
        let error = |ee_origin, ee_code| sock_extended_err {
            ee_errno: 0,
            ee_origin,
            ee_type: 0,
            ee_code,
            ee_pad: 0,
            ee_info: 0x89ab_cdef,
            ee_data: 0x0123_4567,
        };
        let txtime = 0x0123_4567_89ab_cdef;
        assert_eq!(unsent(&error(ORIGIN_TXTIME, CODE_MISSED)), Some((txtime, Fate::Missed)));
        assert_eq!(
            unsent(&error(ORIGIN_TXTIME, CODE_INVALID_PARAM)),
            Some((txtime, Fate::Invalid))
        );
        assert_eq!(unsent(&error(libc::SO_EE_ORIGIN_ICMP, CODE_MISSED)), None);
        assert_eq!(unsent(&error(ORIGIN_TXTIME, 0)), None);
    }

    #[test]
    fn each_packet_is_counted_by_its_fate_and_waits_are_apart() {
        let packets = [
            (10, 10, 13, Fate::Sent),
            (20, 26, 31, Fate::Sent),
            (30, 30, 29, Fate::Sent),
            (40, 40, 0, Fate::Missed),
            (50, 50, 0, Fate::Invalid),
            (60, 60, 0, Fate::NoBuffer),
        ];
        let report = LaunchReport::of(packets.into_iter());
        assert_eq!((report.missed, report.invalid, report.no_buffer), (1, 1, 1));
        assert_eq!((report.unsent(), report.early, report.gated), (3, 1, 1));
        assert_eq!(report.gate_mean_ns, 1.0);
        let release = report.release.unwrap();
        assert_eq!((release.min_ns, release.p50_ns, release.max_ns), (0, 3, 5));
    }
}
