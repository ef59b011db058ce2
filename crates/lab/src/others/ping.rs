//! `ping`, of iputils or busybox, from the talker to the responder.

use std::path::Path;
use std::time::Duration;

use super::{Measured, OthersError, read as read_text, write};
use crate::command::Stop;
use crate::kept::ICMP_PING;
use crate::plan::{Probes, RESPONDER};
use crate::variant::Built;

/// Time between two pings, milliseconds, which is ping's unit. It is no multiple of the kernel's timer.
const INTERVAL_MS: u64 = 11;
/// The agent's probes for each ping: the 1000 of --quick make half a second of pings.
const PROBES_A_PING: u64 = 20;
/// Fewest pings.
const COUNT_MIN: u64 = 20;

/// Sends pings, and keeps what ping prints.
pub(super) fn measure(
    stop: &Stop,
    built: &Built,
    probes: Probes,
    into: &Path,
) -> Result<(), OthersError> {
    let count = (probes.count / PROBES_A_PING).max(COUNT_MIN);
    let limit = Duration::from_millis(count * INTERVAL_MS) + Duration::from_secs(30);
    let printed = built.talker.shell(stop, &line(count, probes.size), limit)?;
    write(&into.join(ICMP_PING), &printed)
}

/// As large as the agent's probes: the headers of ICMP echo and of UDP have the same length. In User Mode Linux, iputils is
/// beside busybox, whose ping comes first there. Status 1: no answer.
fn line(count: u64, size: usize) -> String {
    let interval = INTERVAL_MS as f64 / 1000.0;
    format!(
        "ping=/usr/bin/ping; [ -x $ping ] || ping=ping; $ping -n -c {count} -i {interval} -W 2 -s {size} {RESPONDER} || [ $? = 1 ]"
    )
}

/// The pings that are kept in this directory; `None` if there are none.
pub(super) fn read(directory: &Path) -> Result<Option<Measured>, OthersError> {
    let path = directory.join(ICMP_PING);
    let Some(text) = read_text(&path)? else { return Ok(None) };
    let found = || text.lines().last().unwrap_or_default().into();
    let expected = "the output of ping, with `N packets transmitted`";
    let measured = parse(&text);
    measured.map(Some).ok_or_else(|| OthersError::Format { path, expected, found: found() })
}

/// Reads what ping has printed: `64 bytes from 10.77.0.2: icmp_seq=1 ttl=64 time=0.034 ms` for each reply (busybox: `seq=0`),
/// and `N packets transmitted, ...`. A ping that was answered twice counts once.
fn parse(text: &str) -> Option<Measured> {
    let mut measured = Measured::default();
    let mut sent = None;
    for line in text.lines() {
        if let Some((count, _)) = line.split_once(" packets transmitted") {
            sent = Some(count.trim().parse().ok()?);
        } else if let Some((_, time)) = line.split_once(" time=")
            && !line.contains("DUP!")
        {
            measured.times_ns.push(milliseconds(time.split_once(" ms")?.0)?);
        }
    }
    measured.sent = sent?;
    Some(measured)
}

/// Nanoseconds of `1.25`.
fn milliseconds(text: &str) -> Option<u64> {
    let ms: f64 = text.parse().ok()?;
    (ms.is_finite() && ms >= 0.0).then(|| (ms * 1e6).round() as u64)
}

#[cfg(test)]
mod tests {
    use super::*;

    /// As printed by `ping -n -c 4 -i 0.011 -W 2 -s 64 10.77.0.2` of iputils 20221126; one line was doubled by hand.
    const IPUTILS: &str = "\
PING 10.77.0.2 (10.77.0.2) 64(92) bytes of data.
72 bytes from 10.77.0.2: icmp_seq=1 ttl=64 time=0.034 ms
72 bytes from 10.77.0.2: icmp_seq=2 ttl=64 time=1.25 ms
72 bytes from 10.77.0.2: icmp_seq=2 ttl=64 time=1.30 ms (DUP!)
72 bytes from 10.77.0.2: icmp_seq=4 ttl=64 time=212 ms

--- 10.77.0.2 ping statistics ---
4 packets transmitted, 3 received, +1 duplicates, 25% packet loss, time 33ms
rtt min/avg/max/mdev = 0.034/71.094/212.000/99.641 ms, pipe 2
";

    const BUSYBOX: &str = "\
PING 10.77.0.2 (10.77.0.2): 64 data bytes
72 bytes from 10.77.0.2: seq=0 ttl=64 time=0.188 ms
72 bytes from 10.77.0.2: seq=1 ttl=64 time=0.094 ms

--- 10.77.0.2 ping statistics ---
2 packets transmitted, 2 packets received, 0% packet loss
round-trip min/avg/max = 0.094/0.141/0.188 ms
";

    #[test]
    fn both_pings_are_read() {
        let measured = parse(IPUTILS).unwrap();
        assert_eq!(measured.sent, 4);
        assert_eq!(measured.times_ns, [34_000, 1_250_000, 212_000_000]);
        let measured = parse(BUSYBOX).unwrap();
        assert_eq!((measured.sent, measured.times_ns), (2, vec![188_000, 94_000]));
    }

    #[test]
    fn pings_without_answers_are_lost_and_other_text_is_refused() {
        let none = "--- 10.77.0.2 ping statistics ---\n3 packets transmitted, 0 received, 100% packet loss, time 30ms\n";
        assert_eq!(parse(none).unwrap(), Measured { sent: 3, times_ns: Vec::new() });
        for text in [
            "",
            "x packets transmitted, 0 received",
            "a time=-1 ms\n1 packets transmitted",
            "a time=1 s",
        ] {
            assert_eq!(parse(text), None, "{text}");
        }
        let dir = tempfile::tempdir().unwrap();
        assert_eq!(read(dir.path()).unwrap(), None);
        std::fs::write(dir.path().join(ICMP_PING), "ping: 10.77.0.2: no\n").unwrap();
        let error = read(dir.path()).unwrap_err().to_string();
        assert!(error.contains("ping.txt") && error.contains("10.77.0.2: no"), "{error}");
    }
}
