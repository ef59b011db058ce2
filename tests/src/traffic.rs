//! Traffic between the guest and the outside host, by the agents at both ends.

use std::time::Duration;

use lab::agent::TcpReport;
use lab::outside::Outside;
use lab::process::Process;
use serde::de::DeserializeOwned;
use serde_json::Value;

use crate::daemon::program;
use crate::qemu::{Failure, GUEST, Place, said};

/// How long a bulk transfer may take.
const BULK: Duration = Duration::from_secs(180);

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
    for size in [56, 1472, 1473, 8000, 65000] {
        let line = format!("ping -q -c 3 -i 0.2 -W 5 -s {size}");
        place.outside.exec(&format!("{line} {GUEST}"))?;
        place.guest().check(&format!("{line} {}", Outside::ADDRESS))?;
    }
    Ok(())
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

/// Sends `bytes` over TCP; both ends hash them, and the digests have to be the same.
///
/// # Errors
/// When they are not, or the transfer fails.
pub fn tcp(place: &mut Place, from: From, bytes: u64) -> Result<TcpReport, Failure> {
    // The guest serves in either case: it sends what `tcp-receive` asks for.
    let order = match from {
        From::Outside => "tcp-send",
        From::Guest => "tcp-receive",
    };
    let line = format!("{order} --bytes {bytes} --timeout {}", BULK.as_secs());
    let report: TcpReport = agent(place, From::Outside, &line, 7008)?;
    report.check()?;
    let hashed = report.received.sha256.as_ref().is_some_and(|digest| digest.len() == 64);
    if report.received.bytes != bytes || !hashed {
        return Err(format!("{order} of {bytes} bytes: {report:?}").into());
    }
    Ok(report)
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
    Ok(serde_json::from_str(&text)?)
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
