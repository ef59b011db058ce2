//! Traffic between the guest and the outside host, by the agents at both ends.

use std::sync::atomic::{AtomicU32, Ordering};
use std::time::Duration;

use agent::TcpReport;
use lab::guest::GuestOptions;
use lab::outside::Outside;
use lab::process::Process;
use serde::de::DeserializeOwned;
use serde_json::Value;

use crate::daemon::program;
use crate::eventually::eventually;
use crate::qemu::{Failure, GUEST, Place, SOON, said};

/// How long a bulk transfer may take.
const BULK: Duration = Duration::from_secs(180);

/// More than a transfer's report.
const LOG_BYTES_MAX: usize = 1 << 16;

/// Who sends first.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum From {
    /// The outside host.
    Outside,
    /// The guest.
    Guest,
}

/// Pings from both ends, with payloads up to the largest that IP carries in fragments.
///
/// # Errors
/// When a ping is not answered.
pub fn ping(place: &mut Place) -> Result<(), Failure> {
    await_answer(place);
    for size in [56, 1472, 1473, 8000, 65000] {
        let line = format!("ping -q -c 3 -i 0.01 -W 5 -s {size}");
        place.outside.exec(&format!("{line} {GUEST}"))?;
        place.guest().check(&format!("{line} {}", Outside::ADDRESS))?;
    }
    Ok(())
}

/// Waits until the guest answers. When a guest or a back end has just come, the guest's link is up a little later: until then
/// its kernel drops what it sends.
fn await_answer(place: &Place) {
    let one = format!("ping -q -c 1 -W 1 {GUEST}");
    eventually(SOON, "an answer from the guest", || place.outside.exec(&one));
}

/// Sends UDP packets of many sizes to an echo at the other end, and expects every one back unchanged.
///
/// # Errors
/// When one does not come back.
pub fn udp(place: &mut Place, from: From) -> Result<(), Failure> {
    let _echo = match from {
        From::Outside => None,
        From::Guest => Some(outside_agent(place, &["udp-echo", "--bind", "0.0.0.0:7007"])?),
    };
    // Around a header's end, the largest without fragments, the first with, and the largest of all.
    for size in [32, 33, 64, 511, 1024, 1471, 1472, 1473, 2961, 9000, 32768, 65507] {
        let line = format!("udp-ping --mode closed --interval-us 1 --count 20 --size {size}");
        let report: Value = agent(place, from, &line, 7007)?;
        let count = |name: &str| report[name].as_u64();
        if (count("received"), count("duplicates")) != (count("sent"), Some(0)) {
            return Err(format!("UDP of {size} bytes, from {from:?}: {report}").into());
        }
    }
    Ok(())
}

/// How a transfer's bytes are checked at its end.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Check {
    /// The receiver makes each byte, too, and compares it.
    Compare,
    /// Both ends hash them with SHA-256. An emulated guest hashes more slowly than it receives.
    Hash,
}

/// A TCP transfer on its way. It is ended when this is dropped.
#[derive(Debug)]
pub struct Transfer {
    process: Process,
    bytes: u64,
    check: Check,
}

/// Sends `bytes` over TCP; the receiver compares each with what was sent.
///
/// # Errors
/// When one differs, or the transfer fails.
pub fn tcp(place: &Place, from: From, bytes: u64) -> Result<TcpReport, Failure> {
    Transfer::start(place, from, bytes, Check::Compare)?.finish()
}

/// The same both ways at once.
///
/// # Errors
/// As [`tcp`].
pub fn tcp_both_ways(place: &Place, bytes: u64, check: Check) -> Result<[TcpReport; 2], Failure> {
    let start = |from| Transfer::start(place, from, bytes, check);
    let [mut one, mut other] = [start(From::Outside)?, start(From::Guest)?];
    Ok([one.finish()?, other.finish()?])
}

/// Many connections at once, half of them each way, so that every queue pair gets some.
///
/// # Errors
/// When a transfer fails.
pub fn flows(place: &Place, bytes: u64) -> Result<(), Failure> {
    let start = |n| {
        let from = if n % 2 == 0 { From::Outside } else { From::Guest };
        Transfer::start(place, from, bytes, Check::Compare)
    };
    let mut all = (0..16).map(start).collect::<Result<Vec<_>, _>>()?;
    all.iter_mut().try_for_each(|transfer| transfer.finish().map(drop))
}

impl Transfer {
    /// Starts to send `bytes`.
    ///
    /// # Errors
    /// When the agent cannot be started.
    pub fn start(place: &Place, from: From, bytes: u64, check: Check) -> Result<Self, Failure> {
        // The guest serves in either case: it sends what `tcp-receive` asks for.
        let order = match from {
            From::Outside => "tcp-send",
            From::Guest => "tcp-receive",
        };
        let mut command = place.outside.command(&program("ringscope")?.to_string_lossy());
        command.args(["agent", order, &format!("{GUEST}:7008"), "--bytes", &bytes.to_string()]);
        command.args(["--timeout", &BULK.as_secs().to_string()]);
        if check == Check::Compare {
            command.arg("--compare");
        }
        static NEXT: AtomicU32 = AtomicU32::new(0);
        let number = NEXT.fetch_add(1, Ordering::Relaxed);
        let log = place.directory().join(format!("{order}-{number}.log"));
        Ok(Self { process: Process::spawn(&mut command, &log)?, bytes, check })
    }

    /// Whether it goes on.
    ///
    /// # Errors
    /// When the system does not say.
    pub fn is_running(&mut self) -> Result<bool, Failure> {
        Ok(self.process.ended()?.is_none())
    }

    /// Waits for its end; every byte has to have arrived as it was sent.
    ///
    /// # Errors
    /// When it fails.
    pub fn finish(&mut self) -> Result<TcpReport, Failure> {
        let status = self.process.wait(BULK + Duration::from_secs(10))?;
        let text = self.process.log_tail(LOG_BYTES_MAX);
        if !status.is_some_and(|status| status.success()) {
            return Err(format!("TCP transfer ended with {status:?}: {text}").into());
        }
        let report: TcpReport = report_in(&text)?;
        report.check()?;
        let is_checked = match self.check {
            Check::Compare => report.received.equal_bytes == Some(self.bytes),
            Check::Hash => report.received.sha256.as_ref().is_some_and(|digest| digest.len() == 64),
        };
        if report.received.bytes != self.bytes || !is_checked {
            return Err(format!("TCP transfer of {} bytes: {report:?}", self.bytes).into());
        }
        Ok(report)
    }
}

/// A guest whose daemon serves it on a tap, after frames of all kinds went both ways. `change` changes its options.
///
/// # Errors
/// When something does not start, or a frame is lost or damaged.
pub fn guest_on_tap(
    queue_pairs: u16,
    change: impl FnOnce(&mut GuestOptions),
) -> Result<Place, Failure> {
    let mut place = Place::new(queue_pairs)?;
    place.spawn(&[])?;
    let mut options = place.options()?;
    change(&mut options);
    place.attach(options)?;
    everything_a_little(&mut place)?;
    Ok(place)
}

/// A little of everything, both ways: whether the guest is on the network.
///
/// # Errors
/// When something does not come through.
pub fn everything_a_little(place: &mut Place) -> Result<(), Failure> {
    await_answer(place);
    place.outside.exec(&format!("ping -q -c 3 -i 0.01 -W 5 {GUEST}"))?;
    tcp_both_ways(place, 8 << 20, Check::Hash)?;
    let report: Value = agent(place, From::Outside, "udp-ping --mode closed --count 50", 7007)?;
    if report["received"] != report["sent"] {
        return Err(format!("UDP: {report}").into());
    }
    Ok(())
}

/// One packet in flight, `count` times, from the outside host.
///
/// # Errors
/// When one is lost.
pub fn ping_pong(place: &mut Place, count: u32) -> Result<(), Failure> {
    let line = format!("udp-ping --mode closed --interval-us 1006 --count {count}");
    let report: Value = agent(place, From::Outside, &line, 7007)?;
    if report["lost"] == 0 { Ok(()) } else { Err(format!("UDP: {report}").into()) }
}

/// Runs the agent at one end against the other, and reads its report.
fn agent<T: DeserializeOwned>(
    place: &mut Place,
    from: From,
    line: &str,
    port: u16,
) -> Result<T, Failure> {
    let text = match from {
        From::Outside => {
            let program = program("ringscope")?;
            let mut command = place.outside.command(&program.to_string_lossy());
            let (order, rest) = line.split_once(' ').unwrap_or((line, ""));
            command.args(["agent", order, &format!("{GUEST}:{port}")]).args(rest.split(' '));
            said(&mut command)?
        }
        From::Guest => {
            let target = format!("{}:{port}", Outside::ADDRESS);
            let (order, rest) = line.split_once(' ').unwrap_or((line, ""));
            place.guest().check_for(&format!("ringscope agent {order} {target} {rest}"), BULK)?
        }
    };
    report_in(&text)
}

/// The report of an agent's subcommand in its output, which may have sentences of standard error beside it.
///
/// # Errors
/// When there is none.
pub fn report_in<T: DeserializeOwned>(text: &str) -> Result<T, Failure> {
    let line = text.lines().find(|line| line.starts_with('{'));
    Ok(serde_json::from_str(line.ok_or_else(|| format!("expected a report, found {text:?}"))?)?)
}

/// Starts an agent on the outside host that serves until it is dropped.
///
/// # Errors
/// When it cannot be started.
pub fn outside_agent(place: &Place, arguments: &[&str]) -> Result<Process, Failure> {
    let program = program("ringscope")?;
    let mut command = place.outside.command(&program.to_string_lossy());
    command.arg("agent").args(arguments);
    let process = Process::spawn(&mut command, &place.directory().join("outside-agent.log"))?;
    // Its own start is quick; the guest's first packet takes longer.
    std::thread::sleep(Duration::from_millis(100));
    Ok(process)
}
