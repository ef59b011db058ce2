//! Probe packets between the host and a Linux guest, joined end to end: for every packet, what everyone stamped of it adds
//! up to the round trip that its sender measured.

use std::fs;
use std::process::Command;
use std::thread::sleep;
use std::time::Duration;

use lab::outside::Outside;
use ringscope_tests::daemon::program;
use ringscope_tests::qemu::{Failure, GUEST, Place, said};
use ringscope_tests::recording::RecordCommand;
use ringscope_tests::traffic::{From, outside_agent};
use serde_json::Value;

const PORT: &str = "7010";
const PROBES: usize = 300;
/// Stamps are in the echo's file when it was quiet for a while.
const WRITTEN: Duration = Duration::from_millis(500);

/// Parts that are measured of every packet, from whichever side.
const ALWAYS: [(&str, &str); 17] = [
    ("rx", "notice"),
    ("rx", "limited"),
    ("rx", "starved"),
    ("rx", "place"),
    ("rx", "publish"),
    ("rx", "signal"),
    ("tx", "notice"),
    ("tx", "queued"),
    ("tx", "limited"),
    ("tx", "gather"),
    ("tx", "egress"),
    ("host", "host-send"),
    ("host", "host-receive"),
    ("guest", "guest-receive"),
    ("guest", "guest-send"),
    ("between", "guest-interrupt"),
    ("between", "guest-kick"),
];

/// Longest time for the guest's programs to be loaded, on a busy machine.
const LOADED: Duration = Duration::from_secs(180);

/// How the guest's kernel receives a probe, with `--guest-stages`. Most probes find its driver and its application asleep.
const RECEPTION: [(&str, &str); 4] = [
    ("guest", "guest-softirq"),
    ("guest", "guest-driver"),
    ("guest", "guest-stack"),
    ("guest", "guest-wakeup"),
];

/// Has probes go there and back, and returns the stamps of both ends: sender, echo. The guest's agent has further `flags`.
fn exchange(place: &mut Place, from: From, flags: &str) -> Result<[String; 2], Failure> {
    let line = format!("--mode closed --count {PROBES} --warmup 20 --size 64");
    let file = |name: &str| format!("/tmp/{name}.csv");
    let dir = place.directory().to_owned();
    let here = |name: &str| dir.join(format!("{name}.csv")).to_string_lossy().into_owned();
    match from {
        From::Outside => {
            let (log, bind) = (file("echo"), format!("0.0.0.0:{PORT}"));
            place.guest().check(&format!(
                "rm -f {log}; ringscope agent udp-echo --bind {bind} --timeout 60 --stamps {log} {flags} >/tmp/echo.log 2>&1 &"
            ))?;
            // Programs are loaded before it is there, which takes an emulated guest seconds.
            place.guest().check_for(&format!("until [ -s {log} ]; do sleep 0.1; done"), LOADED)?;
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
                "ringscope agent udp-ping {target} {line} --stamps {log} {flags} >/dev/null"
            ))?;
            sleep(WRITTEN);
            let ping = place.guest().check(&format!("cat {log}"))?;
            Ok([ping, fs::read_to_string(here("echo"))?])
        }
    }
}

/// What `ringscope stats --probes` makes of it, or `ringscope report --probes` of a recording.
fn joined(
    place: &Place,
    of: &[&str],
    initiator: &str,
    stamps: &[String; 2],
) -> Result<String, Failure> {
    let files = ["sender.csv", "echo.csv"].map(|name| place.directory().join(name));
    for (file, text) in files.iter().zip(stamps) {
        fs::write(file, text.replace('\r', ""))?;
    }
    let mut command = Command::new(program("ringscope")?);
    command.args(of).args(["--initiator", initiator]);
    command.arg("--probes").arg(&files[0]).arg("--echo").arg(&files[1]);
    said(&mut command)
}

/// Parts that one stamp of the daemon and one of the host's agent may bound: at the ends of what the daemon has.
const OF_BOTH: [(&str, &str); 4] =
    [("rx", "wakeup"), ("rx", "notice"), ("rx", "place"), ("tx", "egress")];

/// The recorder's clock is set beside the host's time and again, so the two files do not know alike where one is on the
/// other: what lies between stamps of the daemon and of the host's agent differs by that, what only one stamped does not.
fn expect_the_same(live: &Value, kept: &Value) {
    const CLOSE_NS: i64 = 2_000;
    assert_eq!([&live["lost"], &live["unseen"]], [&kept["lost"], &kept["unseen"]]);
    let stages = live["stages"].as_array().expect("stages");
    let [live, kept] = [live, kept].map(|it| it["journeys"].as_array().expect("journeys"));
    assert_eq!(live.len(), kept.len());
    for (live, kept) in live.iter().zip(kept) {
        for key in ["run", "sequence", "round_trip_ns"] {
            assert_eq!(live[key], kept[key]);
        }
        for (at, stage) in stages.iter().enumerate() {
            let [one, other] = [live, kept].map(|it| it["parts_ns"][at].as_i64());
            assert_eq!(one.is_some(), other.is_some(), "{stage}: {live} and {kept}");
            let off = (one.unwrap_or(0) - other.unwrap_or(0)).abs();
            let is_of_both = stage["side"] == "host"
                || OF_BOTH
                    .iter()
                    .any(|(side, name)| stage["side"] == *side && stage["stage"] == *name);
            // A part is rounded, and so are the boundaries and the offset of the clocks beside it.
            let close = if is_of_both { CLOSE_NS } else { 10 };
            assert!(off <= close, "{stage}: {one:?} and {other:?} of the recording");
        }
    }
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
    for journey in journeys {
        let parts = journey["parts_ns"].as_array().expect("parts");
        for &at in &always {
            assert!(parts[at].is_i64() || parts[at].is_u64(), "no {} in {journey}", stages[at]);
        }
        let sum: i64 = parts.iter().filter_map(Value::as_i64).sum();
        let trip = round_trip(&stamps[0], &journey["run"], &journey["sequence"]);
        assert_eq!((sum, journey["round_trip_ns"].as_i64()), (trip, Some(trip)), "{journey}");
        assert!(journey["bound_ns"].as_i64().expect("a bound") > 0, "{journey}");
        for (part, stage) in parts.iter().zip(stages) {
            assert!(part.as_i64().unwrap_or(0) >= 0, "{stage} in {journey}");
        }
        let [to_guest, from_guest] =
            ["to_guest_ns", "from_guest_ns"].map(|name| journey[name].as_i64().expect("one way"));
        assert!(to_guest > 0 && from_guest > 0, "{journey}");
    }
    let clock = &found["clock"];
    assert!(clock["offset_low_ns"].as_i64() <= clock["offset_high_ns"].as_i64(), "{clock}");
}

/// A worker that does not poll is woken up for packets, but not for one that is there before it has fallen asleep: how many
/// those are depends on what else the machine does. The host's answers come that soon, the guest's seldom do. So it is with
/// the guest's application.
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
    for (poll, flags) in [("never", "--guest-stages"), ("always", "")] {
        let mut place = Place::new(1)?;
        place.spawn(&["--poll", poll, "--trace-probe", PORT, "--kernel-stages"])?;
        let options = place.options()?;
        place.attach(options)?;
        for (from, initiator, turn, woken) in [
            (From::Outside, "host", ("guest", "guest-turn"), [("rx", "wakeup"), ("tx", "wakeup")]),
            (From::Guest, "guest", ("host", "host-turn"), [("tx", "wakeup"), ("tx", "wakeup")]),
        ] {
            let file = place.directory().join("probes.rec");
            let recording = RecordCommand::start(place.directory(), &file, &["--name", "vm0"])?;
            let stamps = exchange(&mut place, from, flags)?;
            recording.interrupt()?;
            let directory = place.directory().display().to_string();
            let live = ["stats", "--name", "vm0", "--run-dir", &directory];
            eprintln!("{}", joined(&place, &live, initiator, &stamps)?);
            let live = [&live[..], &["--json"]].concat();
            let found: Value = serde_json::from_str(&joined(&place, &live, initiator, &stamps)?)?;
            let file = file.to_string_lossy();
            let kept = ["report", &file, "--format", "json"];
            let kept: Value = serde_json::from_str(&joined(&place, &kept, initiator, &stamps)?)?;
            expect_the_same(&found, &kept);
            expect_every_packet_adds_up(&found, &stamps, turn);
            if poll == "never" {
                expect_measured(&found, &woken);
                assert_eq!(found["guest_stages"], "on");
                expect_measured(&found, &RECEPTION);
            } else {
                assert_eq!(found["guest_stages"], Value::Null);
            }
        }
    }
    Ok(())
}
