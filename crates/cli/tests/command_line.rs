//! The tool as its user meets it: what it prints, and what it says when something is not as it should be.

use std::io::{BufRead, BufReader, Read as _};
use std::path::Path;
use std::process::{Command, Output, Stdio};
use std::time::{Duration, Instant};

use burst_trace::stage::STAGES_MAX;
use burst_trace::{BurstRecord, Clock, Reader, Recorder, RecorderOptions};
use report::when::When;
use serde_json::Value;
use tempfile::TempDir;

fn recorder(dir: &Path, name: &str) -> Recorder {
    let clock = Clock::new();
    let options = RecorderOptions {
        path: dir.join(format!("{name}.trace")),
        workers: 1,
        queue_pairs: 1,
        capacity: 64,
        facts: String::new(),
    };
    let recorder = Recorder::create(&options, &clock).unwrap();
    let last = clock.now();
    recorder.writer(0, clock).burst(&BurstRecord {
        first: last - 600,
        last,
        stages: [100; STAGES_MAX],
        bytes: 64,
        packets: 1,
        ring: 1,
        ..BurstRecord::default()
    });
    recorder
}

fn command(dir: &Path, arguments: &[&str]) -> Command {
    let mut command = Command::new(env!("CARGO_BIN_EXE_ringscope"));
    command.args(arguments).arg("--run-dir").arg(dir).stdin(Stdio::null());
    command
}

fn ringscope(dir: &Path, arguments: &[&str]) -> Output {
    command(dir, arguments).output().unwrap()
}

/// The command fails with `code`, says `parts`, and prints nothing else.
fn assert_fails(output: &Output, code: i32, parts: &[&str]) {
    let message = String::from_utf8_lossy(&output.stderr);
    assert_eq!(output.status.code(), Some(code), "{message}");
    assert!(output.stdout.is_empty());
    for part in parts {
        assert!(message.contains(part), "no `{part}` in: {message}");
    }
    if code == 1 {
        assert_eq!(message.lines().count(), 1, "{message}");
    }
}

#[test]
fn the_only_recorder_needs_no_name() {
    let dir = TempDir::new().unwrap();
    let _recorder = recorder(dir.path(), "vm0");
    std::fs::write(dir.path().join("vm0.trace.crashed"), "").unwrap();
    let output = ringscope(dir.path(), &["stats", "--json"]);
    let object: Value = serde_json::from_slice(&output.stdout).unwrap();
    assert_eq!((&object["name"], &object["tx"]["packets"]), (&"vm0".into(), &1.into()));
    let table = ringscope(dir.path(), &["stats", "--last", "60"]);
    assert!(table.status.success());
    assert!(String::from_utf8(table.stdout).unwrap().contains("guest to wire (tx): 1 packets"));
}

#[test]
fn without_a_recorder_it_says_where_it_looked_and_what_to_do() {
    let dir = TempDir::new().unwrap();
    let path = dir.path().to_str().unwrap();
    assert_fails(&ringscope(dir.path(), &["stats"]), 1, &["found none", path, "--run-dir"]);
    assert_fails(&ringscope(dir.path(), &["top"]), 1, &["found none", path]);
    let named = ringscope(dir.path(), &["stats", "--name", "vm7"]);
    assert_fails(&named, 1, &["vm7.trace", "found no recorder"]);
    let missing = dir.path().join("nowhere");
    assert_fails(&ringscope(&missing, &["stats"]), 1, &["nowhere", "No such file", "--run-dir"]);
}

#[test]
fn among_two_recorders_one_is_chosen_by_name() {
    let dir = TempDir::new().unwrap();
    let _recorders = [recorder(dir.path(), "vm1"), recorder(dir.path(), "vm0")];
    let output = ringscope(dir.path(), &["stats"]);
    assert_fails(&output, 1, &["found 2: vm0, vm1", "--name"]);
    assert!(ringscope(dir.path(), &["stats", "--name", "vm1"]).status.success());
    let other = ringscope(dir.path(), &["stats", "--name", "vm7"]);
    assert_fails(&other, 1, &["vm7.trace", "found vm0, vm1"]);
}

#[test]
fn a_file_that_is_no_recorder_is_refused() {
    let dir = TempDir::new().unwrap();
    std::fs::write(dir.path().join("a.trace"), vec![b'x'; 8192]).unwrap();
    let output = ringscope(dir.path(), &["stats"]);
    assert_fails(&output, 1, &["a.trace is no flight recorder", "expected", "found", "--name"]);
    std::fs::write(dir.path().join("a.trace"), "").unwrap();
    assert_fails(&ringscope(dir.path(), &["stats"]), 1, &["at least 4096 bytes"]);
}

#[test]
fn a_round_trip_file_is_checked() {
    let dir = TempDir::new().unwrap();
    let _recorder = recorder(dir.path(), "vm0");
    let file = dir.path().join("ping.json");
    let arguments = ["stats", "--round-trip", file.to_str().unwrap()];
    assert_fails(&ringscope(dir.path(), &arguments), 1, &["ping.json", "udp-ping"]);
    std::fs::write(&file, "[]").unwrap();
    assert_fails(&ringscope(dir.path(), &arguments), 1, &["expected a JSON object", "found"]);
    std::fs::write(&file, r#"{"mean_ns": 31000.5, "p50_ns": 30000}"#).unwrap();
    let output = ringscope(dir.path(), &arguments);
    let text = String::from_utf8(output.stdout).unwrap();
    assert!(text.contains("round trip from the host: mean 31.0 µs, p50 30.0 µs"), "{text}");
}

#[test]
fn wrong_flags_are_told_with_code_2() {
    let dir = TempDir::new().unwrap();
    for last in ["0", "-1", "nan", "x", "inf"] {
        let last = format!("--last={last}");
        assert_fails(&ringscope(dir.path(), &["stats", &last]), 2, &["seconds above 0"]);
    }
    assert_fails(&ringscope(dir.path(), &["stats", "--frob"]), 2, &["--frob"]);
}

#[test]
fn without_a_terminal_top_points_to_stats() {
    let dir = TempDir::new().unwrap();
    let _recorder = recorder(dir.path(), "vm0");
    assert_fails(&ringscope(dir.path(), &["top"]), 1, &["expected a terminal", "ringscope stats"]);
}

#[test]
fn top_ends_with_its_terminal() {
    let dir = TempDir::new().unwrap();
    let _recorder = recorder(dir.path(), "vm0");
    // SIGHUP may be ignored, as by nohup.
    for before in ["", "trap '' HUP; "] {
        expect_end_with_terminal(dir.path(), before);
    }
}

fn expect_end_with_terminal(dir: &Path, before: &str) {
    let line =
        format!("{before}exec {} top --run-dir {}", env!("CARGO_BIN_EXE_ringscope"), dir.display());
    let mut script = Command::new("script");
    script.args(["-q", "-f", "-c", &line, "/dev/null"]).env("TERM", "xterm");
    let mut terminal =
        script.stdin(Stdio::piped()).stdout(Stdio::piped()).spawn().expect("util-linux");
    // Its first picture is there.
    let mut picture = [0; 64];
    terminal.stdout.as_mut().unwrap().read_exact(&mut picture).unwrap();
    let id = terminal.id();
    let children = std::fs::read_to_string(format!("/proc/{id}/task/{id}/children")).unwrap();
    let top = children.split_whitespace().next().expect("what runs in the terminal").to_owned();
    terminal.kill().unwrap();
    terminal.wait().unwrap();
    let is_there = || {
        let stat = std::fs::read_to_string(format!("/proc/{top}/stat")).unwrap_or_default();
        // Gone, or only to be reaped.
        stat.rsplit(')').next().is_some_and(|rest| !rest.is_empty() && !rest.starts_with(" Z"))
    };
    let until = Instant::now() + Duration::from_secs(5);
    while is_there() {
        assert!(Instant::now() < until, "it goes on without a terminal");
        std::thread::sleep(Duration::from_millis(10));
    }
}

#[test]
fn the_flags_of_top_are_checked() {
    let dir = TempDir::new().unwrap();
    let _recorders = [recorder(dir.path(), "vm1"), recorder(dir.path(), "vm0")];
    // Several are no error, as the terminal is what it misses.
    assert_fails(&ringscope(dir.path(), &["top"]), 1, &["expected a terminal"]);
    let both = ringscope(dir.path(), &["top", "--all", "--name", "vm0"]);
    assert_fails(&both, 2, &["--all", "--name"]);
    assert_fails(&ringscope(dir.path(), &["top", "--sort", "x"]), 2, &["rx-p99", "drops"]);
}

#[test]
fn top_streams_every_guest_also_those_that_come_later_and_none_that_is_gone() {
    let dir = TempDir::new().unwrap();
    std::fs::write(dir.path().join("broken.trace"), "").unwrap();
    let mut arguments = command(dir.path(), &["top", "--all", "--json", "--interval", "0.1"]);
    let mut top = arguments.stdout(Stdio::piped()).spawn().unwrap();
    let mut lines = BufReader::new(top.stdout.take().unwrap()).lines();
    let mut names = move |number| -> Vec<String> {
        let objects = lines.by_ref().take(number);
        let objects = objects.map(|line| serde_json::from_str::<Value>(&line.unwrap()).unwrap());
        objects.map(|object| object["name"].as_str().unwrap().to_owned()).collect()
    };
    let second = recorder(dir.path(), "vm1");
    assert_eq!(names(2), ["vm1", "vm1"]);
    let _first = recorder(dir.path(), "vm0");
    let mut both = names(20).split_off(16);
    both.sort();
    assert_eq!(both, ["vm0", "vm0", "vm1", "vm1"]);
    drop(second);
    std::fs::remove_file(dir.path().join("vm1.trace")).unwrap();
    assert_eq!(names(20)[16..], ["vm0"; 4]);
    top.kill().unwrap();
    top.wait().unwrap();
}

#[test]
fn a_reader_that_goes_away_is_no_error() {
    let dir = TempDir::new().unwrap();
    let _recorder = recorder(dir.path(), "vm0");
    let report =
        ["table", "json", "csv", "hlog", "html"].map(|format| vec!["report", "--format", format]);
    for arguments in [vec!["stats"]].into_iter().chain(report) {
        let (reader, writer) = std::io::pipe().unwrap();
        drop(reader);
        let output = command(dir.path(), &arguments).stdout(writer).output().unwrap();
        assert!(output.status.success(), "{output:?}");
        assert!(output.stderr.is_empty(), "{output:?}");
    }
}

#[test]
fn a_recorder_that_was_left_is_reported_in_every_format() {
    let dir = TempDir::new().unwrap();
    drop(recorder(dir.path(), "vm0"));
    for (format, part) in [
        ("table", "guest to wire (tx): 1 packets"),
        ("json", "\"packets\": 1,"),
        ("csv", "burst,tx,1,0,0,1,64,"),
        ("hlog", "Tag=tx.total,"),
        ("html", "\"direction\":\"tx\",\"packets\":1,"),
    ] {
        let output = ringscope(dir.path(), &["report", "--format", format]);
        let text = String::from_utf8(output.stdout).unwrap();
        assert!(text.contains(part), "{format}: no {part} in {text}");
        // The same in a file.
        let file = dir.path().join("report");
        let to_file = ["report", "--format", format, "-o", file.to_str().unwrap()];
        assert!(ringscope(dir.path(), &to_file).status.success());
        assert!(std::fs::read_to_string(&file).unwrap().contains(part));
    }
}

#[test]
fn probes_are_joined_alike_by_stats_and_report_where_there_is_a_place_for_them() {
    let dir = TempDir::new().unwrap();
    let recorder = recorder(dir.path(), "vm0");
    let clock = Clock::new();
    let mut writer = recorder.writer(0, clock);
    let now = clock.now();
    for (ring, at) in [(0, now), (1, now + 10_000)] {
        let record = BurstRecord {
            first: at,
            last: at + 500,
            stages: [100, 0, 100, 100, 100, 100, 0],
            packets: 1,
            ring,
            ..BurstRecord::default()
        };
        writer.burst(&record);
        writer.probe(&record, 7, 3);
    }
    let file = dir.path().join("ping.csv");
    let columns = "run,sequence,sent_ns,sent_kernel_ns,received_kernel_ns,received_ns";
    let reader = Reader::open(recorder.path()).unwrap();
    let sent = When::of(&reader).monotonic_ns(now) - 1000;
    let received = sent + 90_000;
    std::fs::write(&file, format!("{columns}\n7,3,{sent},,,{received}\n7,4,{sent},,,\n")).unwrap();
    let probes = ["--probes", file.to_str().unwrap()];
    let said = |arguments: &[&str]| {
        let output = ringscope(dir.path(), &[arguments, &probes].concat());
        assert!(output.status.success(), "{output:?}");
        String::from_utf8(output.stdout).unwrap()
    };
    for (stats, report) in [
        (vec!["stats"], vec!["report"]),
        (vec!["stats", "--json"], vec!["report", "--format", "json"]),
    ] {
        assert_eq!(said(&stats), said(&report));
    }
    assert!(said(&["report"]).contains("1 probes from the host to the guest and back"));
    let line = format!("\n7,3,{sent},90000,");
    assert!(said(&["report", "--format", "csv"]).contains(&line));
    let wrong = ringscope(dir.path(), &[&["report", "--initiator", "guest"], &probes[..]].concat());
    assert_fails(&wrong, 1, &["found 1 of 1 that the host sent", "--initiator host"]);
    assert!(said(&["report", "--format", "html"]).contains("\"trips\":{\"initiator\":\"host\""));
    for format in ["hlog", "perfetto", "pcapng"] {
        let arguments = [&["report", "--format", format], &probes[..]].concat();
        let output = ringscope(dir.path(), &arguments);
        assert_fails(&output, 1, &["--probes is for --format table", format]);
    }
    for (also, value) in [("--last", "1"), ("--round-trip", "x")] {
        let arguments = [&["stats", also, value], &probes[..]].concat();
        assert_fails(&ringscope(dir.path(), &arguments), 2, &["cannot be used with", also]);
    }
    std::fs::write(&file, "x").unwrap();
    let output = ringscope(dir.path(), &[&["report"], &probes[..]].concat());
    assert_fails(&output, 1, &["ping.csv, line 1", "udp-ping --stamps"]);
}

#[test]
fn what_cannot_be_reported_or_recorded_is_said() {
    let dir = TempDir::new().unwrap();
    assert_fails(&ringscope(dir.path(), &["report"]), 1, &["found none", "--run-dir"]);
    let _recorder = recorder(dir.path(), "vm0");
    let plain = |arguments: &[&str]| {
        Command::new(env!("CARGO_BIN_EXE_ringscope")).args(arguments).output().unwrap()
    };
    assert_fails(&plain(&["report", "/nowhere.rec"]), 1, &["cannot read /nowhere.rec"]);
    let other = dir.path().join("other");
    std::fs::write(&other, vec![b'x'; 8192]).unwrap();
    let other = plain(&["report", other.to_str().unwrap()]);
    assert_fails(&other, 1, &["no flight recorder or recording", "RINGSCP1"]);
    let unwritable = ringscope(dir.path(), &["report", "-o", "/nowhere/report"]);
    assert_fails(&unwritable, 1, &["cannot write /nowhere/report", "-o"]);
    let before = dir.path().join("vm0.trace");
    let compared = ringscope(dir.path(), &["report", "--before", before.to_str().unwrap()]);
    assert_fails(&compared, 1, &["--format html"]);
    let unwritable = ringscope(dir.path(), &["record", "-o", "/nowhere/some.rec"]);
    assert_fails(&unwritable, 1, &["cannot write the recording /nowhere/some.rec", "-o"]);
    let condition = ringscope(dir.path(), &["record", "-o", "x", "--when", "total>1us"]);
    assert_fails(&condition, 2, &["rx.total>500us", "found 'total>1us'"]);
}
