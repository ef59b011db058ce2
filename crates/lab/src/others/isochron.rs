//! `isochron`: one way, from the talker to the responder, over UDP. It runs by `qemu-scripts/isochron`.

use std::fs;
use std::path::Path;
use std::process::Command;
use std::time::Duration;

use super::{Measured, OthersError, read as read_text, write};
use crate::clock_offset::{ClockOffset, Clocks};
use crate::command::{CommandError, Stop, run};
use crate::end::End;
use crate::guest::scripts;
use crate::joined::clocks;
use crate::kept::ISOCHRON;
use crate::plan::{Probes, RESPONDER};
use crate::variant::Built;

/// The agent's probes for each packet.
const PROBES_A_PACKET: u64 = 4;
/// Fewest packets.
const COUNT_MIN: u64 = 50;
/// Headers of Ethernet, IPv4 and UDP: isochron counts a whole frame, the agent its payload.
const HEADERS_BYTES: usize = 14 + 20 + 8;
/// Longest time for a small step.
const STEP_LIMIT: Duration = Duration::from_secs(20);
/// TCP port at which the receiver waits for the sender: 5000, as /proc/net/tcp writes it.
const PORT_HEX: &str = "1388";
/// What the receiver says, while it runs.
const RECEIVER_LOG: &str = "isochron-receiver.log";
/// Lines of it that are shown if there are no figures.
const RECEIVER_LINES: usize = 5;
/// What is printed of each packet: number, scheduled, advance, woken, arrived.
const FORMAT: &str = "--printf-format '%u %u %u %u %u\\n' --printf-args qSAwa";

/// Sends packets, and keeps the times of each.
pub(super) fn measure(
    stop: &Stop,
    built: &Built,
    probes: Probes,
    into: &Path,
) -> Result<(), OthersError> {
    if tai(&clocks(into)).is_none() {
        return Err(OthersError::Impossible(
            "isochron measures one way, and the clocks of both ends cannot be compared: of all guests, only User Mode Linux has a \
             clock that can",
        ));
    }
    run(stop, Command::new(scripts().join("isochron")).arg("--build"), STEP_LIMIT).map_err(
        |error| match error {
            // The script's own sentence says what is missing.
            CommandError::Failed { .. } => OthersError::Impossible(
                "expected the program isochron, found none that runs: run qemu-scripts/setup --lab",
            ),
            other => other.into(),
        },
    )?;
    let (talker, responder) = (&built.talker, &built.responder);
    let receiver = format!("{} rcv --interface eth0 --quiet", responder.script("isochron"));
    let log = into.join(RECEIVER_LOG);
    let receiver = responder.start_into(stop, &receiver, &responder.output_path(&log))?;
    let printed = responder.await_port(stop, PORT_HEX, STEP_LIMIT).and_then(|()| {
        let count = (probes.count / PROBES_A_PACKET).max(COUNT_MIN);
        let limit = Duration::from_micros(count * probes.interval_us) + Duration::from_secs(30);
        let file = talker.output_path(&into.join("isochron.dat"));
        talker.shell(stop, &line(&talker.script("isochron"), count, probes, &file), limit)
    });
    let ran = responder.is_running(stop, receiver)?;
    responder.end_process(stop, receiver)?;
    let said = said(stop, responder, &log)?;
    let printed = printed.map_err(|error| match error {
        CommandError::Interrupted => error.into(),
        source => OthersError::Receiver { source, state: if ran { "ran" } else { "ended" }, said },
    })?;
    write(&into.join(ISOCHRON), &printed)
}

/// The end of what the receiver has said, of which nothing is kept.
fn said(stop: &Stop, responder: &End, log: &Path) -> Result<String, OthersError> {
    responder.fetch(stop, log)?;
    let text = read_text(log)?.unwrap_or_default();
    fs::remove_file(log).map_err(|source| OthersError::Io { path: log.into(), source })?;
    let lines: Vec<_> = text.trim_end().lines().collect();
    Ok(lines[lines.len().saturating_sub(RECEIVER_LINES)..].join("\n"))
}

/// Sends, prints what is in the log, and removes it. What isochron says is shown only if it fails.
fn line(isochron: &str, count: u64, probes: Probes, file: &str) -> String {
    let (seconds, microseconds) = (probes.interval_us / 1_000_000, probes.interval_us % 1_000_000);
    let frame = probes.size + HEADERS_BYTES;
    format!(
        "({isochron} send --interface eth0 --client {RESPONDER} --l4 --ip-destination {RESPONDER} --omit-sync --no-ts --quiet \
         --num-frames {count} --frame-size {frame} --cycle-time {seconds}.{microseconds:06}000 --output-file {file} >{file}.said 2>&1 \
         || (tail -n 5 {file}.said; exit 1)) && {isochron} report --input-file {file} {FORMAT}; s=$?; rm -f {file} {file}.said; [ $s = 0 ]"
    )
}

/// Both ends' `CLOCK_TAI`, compared with the host's clock: the talker's first.
fn tai(clocks: &Clocks) -> Option<[ClockOffset; 2]> {
    Some([
        clocks.talker?.with_tai(clocks.talker_tai?),
        clocks.responder?.with_tai(clocks.responder_tai?),
    ])
}

/// The packets that are kept in this directory; `None` if there are none.
pub(super) fn read(directory: &Path) -> Result<Option<Measured>, OthersError> {
    let path = directory.join(ISOCHRON);
    let Some(text) = read_text(&path)? else { return Ok(None) };
    let Some(ends) = tai(&clocks(directory)) else { return Ok(None) };
    let mut measured = Measured::default();
    for line in text.lines() {
        let packet = Packet::parse(line).ok_or_else(|| OthersError::Format {
            path: path.clone(),
            expected: "five numbers: packet, scheduled, advance, woken, arrived",
            found: line.into(),
        })?;
        measured.sent += 1;
        measured.times_ns.extend(packet.time_ns(ends));
    }
    Ok(Some(measured))
}

/// A packet, in nanoseconds of the ends' `CLOCK_TAI`.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
struct Packet {
    /// When its timer was to fire: `advance` before it was scheduled.
    intended: u64,
    /// When the responder's program had it; `None` if it did not come.
    arrived: Option<u64>,
}

impl Packet {
    fn parse(line: &str) -> Option<Self> {
        let fields: Vec<u64> = line.split(' ').map(|it| it.parse().ok()).collect::<Option<_>>()?;
        let [_, scheduled, advance, _, arrived] = fields[..] else { return None };
        let arrived = (arrived > 0).then_some(arrived);
        Some(Self { intended: scheduled.checked_sub(advance)?, arrived })
    }

    /// From the intended time to the responder's program, as the agent counts.
    fn time_ns(self, [talker, responder]: [ClockOffset; 2]) -> Option<u64> {
        let arrived = responder.on_host(self.arrived?)?;
        Some(arrived.saturating_sub(talker.on_host(self.intended)?))
    }
}

#[cfg(test)]
mod tests {
    use agent::TaiClock;

    use super::*;

    /// As isochron 0.9-rc4 has printed it; in the second line, the time of arrival is that of a packet that did not come.
    const REPORT: &str = "\
1 1795918109988159000 5003000 1795918109983264222 1795918109983332780
2 1795918109993162000 5003000 1795918109991548612 0
3 1795918109998165000 5003000 1795918109995504844 1795918109995601404
";

    #[test]
    fn times_are_from_the_timer_to_the_program_on_one_clock() {
        let dir = tempfile::tempdir().unwrap();
        std::fs::write(dir.path().join(ISOCHRON), REPORT).unwrap();
        // Without clocks, one way is not known.
        assert_eq!(read(dir.path()).unwrap(), None);
        let tai = |ahead_ns| Some(TaiClock { ahead_ns, bound_ns: 1 });
        let clocks = Clocks {
            talker: Some(ClockOffset::NONE),
            responder: Some(ClockOffset { ahead_ns: -2_000, bound_ns: 9 }),
            talker_tai: tai(1_795_918_000_000_000_000),
            responder_tai: tai(1_795_918_000_000_005_000),
        };
        let text = serde_json::to_string(&clocks).unwrap();
        std::fs::write(dir.path().join(crate::kept::CLOCKS), text).unwrap();
        let measured = read(dir.path()).unwrap().unwrap();
        assert_eq!(measured, Measured { sent: 3, times_ns: vec![173_780, 2_436_404] });
        std::fs::write(dir.path().join(ISOCHRON), "1 2 3\n").unwrap();
        let error = read(dir.path()).unwrap_err().to_string();
        assert!(error.contains("isochron.txt") && error.contains("1 2 3"), "{error}");
    }

    #[test]
    fn a_line_of_the_shell_has_the_agents_size_and_interval() {
        let probes = Probes { count: 1, interval_us: 5003, size: 64 };
        let line = line("isochron", 50, probes, "/x/isochron.dat");
        assert!(line.contains("--frame-size 106 --cycle-time 0.005003000 "), "{line}");
    }
}
