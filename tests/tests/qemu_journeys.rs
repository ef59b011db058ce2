//! Probe packets between the host and a Linux guest, joined end to end: for every packet, what everyone stamped of it adds
//! up to the round trip that its sender measured.

use std::fs;
use std::process::Command;
use std::thread::sleep;
use std::time::Duration;

use lab::outside::Outside;
use ringscope_tests::daemon::program;
use ringscope_tests::qemu::{Failure, GUEST, Place, said};
use ringscope_tests::traffic::{From, outside_agent};
use serde_json::Value;

const PORT: &str = "7010";
const PROBES: usize = 300;
/// Stamps are in the echo's file when it was quiet for a while.
const WRITTEN: Duration = Duration::from_millis(500);

/// Parts that are measured of every packet, from whichever side.
const ALWAYS: [(&str, &str); 14] = [
    ("rx", "notice"),
    ("rx", "starved"),
    ("rx", "place"),
    ("rx", "publish"),
    ("rx", "signal"),
    ("tx", "notice"),
    ("tx", "queued"),
    ("tx", "gather"),
    ("tx", "egress"),
    ("host", "host-send"),
    ("host", "host-receive"),
    ("guest", "guest-receive"),
    ("guest", "guest-send"),
    ("between", "remainder"),
];

/// Has probes go there and back, and returns the stamps of both ends: sender, echo.
fn exchange(place: &mut Place, from: From) -> Result<[String; 2], Failure> {
    let line = format!("--mode closed --count {PROBES} --warmup 20 --size 64");
    let file = |name: &str| format!("/tmp/{name}.csv");
    let dir = place.directory().to_owned();
    let here = |name: &str| dir.join(format!("{name}.csv")).to_string_lossy().into_owned();
    match from {
        From::Outside => {
            let (log, bind) = (file("echo"), format!("0.0.0.0:{PORT}"));
            place.guest().check(&format!(
                "ringscope agent udp-echo --bind {bind} --timeout 60 --stamps {log} >/dev/null 2>&1 &"
            ))?;
            sleep(WRITTEN);
            let mut command = place.outside.command(&program("ringscope")?.to_string_lossy());
            command.args([
                "agent",
                "udp-ping",
                &format!("{GUEST}:{PORT}"),
                "--stamps",
                &here("ping"),
            ]);
            said(command.args(line.split(' ')))?;
            sleep(WRITTEN);
            let echo = place.guest().check(&format!("cat {log}"))?;
            Ok([fs::read_to_string(here("ping"))?, echo])
        }
        From::Guest => {
            let bind = format!("0.0.0.0:{PORT}");
            let _echo =
                outside_agent(place, &["udp-echo", "--bind", &bind, "--stamps", &here("echo")])?;
            let (target, log) = (format!("{}:{PORT}", Outside::ADDRESS), file("ping"));
            place.guest().check(&format!(
                "ringscope agent udp-ping {target} {line} --stamps {log} >/dev/null"
            ))?;
            sleep(WRITTEN);
            let ping = place.guest().check(&format!("cat {log}"))?;
            Ok([ping, fs::read_to_string(here("echo"))?])
        }
    }
}

/// What `ringscope stats --probes` makes of it.
fn joined(
    place: &Place,
    initiator: &str,
    stamps: &[String; 2],
    json: bool,
) -> Result<String, Failure> {
    let files = ["sender.csv", "echo.csv"].map(|name| place.directory().join(name));
    for (file, text) in files.iter().zip(stamps) {
        fs::write(file, text.replace('\r', ""))?;
    }
    let mut command = Command::new(program("ringscope")?);
    command.args(["stats", "--name", "vm0", "--initiator", initiator, "--run-dir"]);
    command.arg(place.directory());
    command.arg("--probes").arg(&files[0]).arg("--echo").arg(&files[1]);
    said(command.args(json.then_some("--json")))
}

/// The round trip of a probe by its sender's own stamps.
fn round_trip(stamps: &str, run: &Value, sequence: &Value) -> i64 {
    let head = format!("{run},{sequence},");
    let line = stamps.lines().find(|line| line.starts_with(&head)).expect("a line of the probe");
    let fields: Vec<_> = line.split(',').collect();
    let number = |at: usize| fields[at].trim_end().parse::<i64>().expect("a time");
    number(5) - number(2)
}

fn expect_every_packet_adds_up(found: &Value, stamps: &[String; 2], turn: (&str, &str)) {
    let stages = found["stages"].as_array().expect("stages");
    let journeys = found["journeys"].as_array().expect("journeys");
    assert!(journeys.len() >= PROBES, "{} journeys of {PROBES} probes", journeys.len());
    let column = |(side, stage)| {
        let is_it = |it: &Value| it["side"] == side && it["stage"] == stage;
        stages.iter().position(is_it).unwrap_or_else(|| panic!("no {side} {stage} in {stages:#?}"))
    };
    let always: Vec<_> = ALWAYS.into_iter().chain([turn]).map(column).collect();
    let (remainder, sent) = (column(("between", "remainder")), column(("host", "host-send")));
    let came = column(("host", "host-receive"));
    let mut below = Vec::new();
    for journey in journeys {
        let parts = journey["parts_ns"].as_array().expect("parts");
        for &at in &always {
            assert!(parts[at].is_i64() || parts[at].is_u64(), "no {} in {journey}", stages[at]);
        }
        let sum: i64 = parts.iter().filter_map(Value::as_i64).sum();
        let trip = round_trip(&stamps[0], &journey["run"], &journey["sequence"]);
        assert_eq!((sum, journey["round_trip_ns"].as_i64()), (trip, Some(trip)), "{journey}");
        let bound = journey["bound_ns"].as_i64().expect("a bound");
        // Only what lies between two clocks, and what begins while the one before it still goes on, can be below 0.
        for (at, part) in parts.iter().enumerate() {
            let ns = part.as_i64().unwrap_or(0);
            if at == remainder {
                if ns < -bound {
                    below.push(journey.clone());
                }
            } else if at != sent && at != came {
                assert!(ns >= 0, "{} in {journey}", stages[at]);
            }
        }
    }
    assert!(below.is_empty(), "remainders below their bounds: {below:#?}");
}

/// A worker that does not poll is woken up for packets, but not for one that is there before it has fallen asleep: how many
/// those are depends on what else the machine does. The host's answers come that soon, the guest's seldom do.
fn expect_measured(found: &Value, of: &[(&str, &str)]) {
    for &(side, stage) in of {
        let stages = found["stages"].as_array().expect("stages");
        let row = stages.iter().find(|it| it["side"] == side && it["stage"] == stage);
        let row = row.expect("a row");
        assert!(row["count"].as_u64() >= Some(PROBES as u64 / 10), "{row}");
    }
}

#[test]
fn every_probe_is_followed_from_application_to_application() -> Result<(), Failure> {
    for poll in ["never", "always"] {
        let mut place = Place::new(1)?;
        place.spawn(&["--poll", poll, "--trace-probe", PORT, "--kernel-stages"])?;
        let options = place.options()?;
        place.attach(options)?;
        for (from, initiator, turn, woken) in [
            (From::Outside, "host", ("guest", "guest-turn"), [("rx", "wakeup"), ("tx", "wakeup")]),
            (From::Guest, "guest", ("host", "host-turn"), [("tx", "wakeup"), ("tx", "wakeup")]),
        ] {
            let stamps = exchange(&mut place, from)?;
            eprintln!("{}", joined(&place, initiator, &stamps, false)?);
            let found: Value = serde_json::from_str(&joined(&place, initiator, &stamps, true)?)?;
            expect_every_packet_adds_up(&found, &stamps, turn);
            if poll == "never" {
                expect_measured(&found, &woken);
            }
        }
    }
    Ok(())
}
