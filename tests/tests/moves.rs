//! The recorders of a guest that moves from one daemon to another: one report shows both, and the time between as a row.

use std::path::Path;
use std::process::{Command, Output};
use std::thread::sleep;
use std::time::{Duration, Instant};

use burst_trace::file::word;
use frontend::{Guest, GuestOptions};
use ringscope_tests::daemon::{Daemon, program};
use ringscope_tests::frames;
use ringscope_tests::recording::{RecordCommand, write_word};
use serde_json::Value;

/// Time that each part of a move takes at least.
const AWAY: Duration = Duration::from_millis(40);

/// A report of these files, or the reason why there is none.
fn output(files: &[&Path], arguments: &[&str]) -> Output {
    let mut command = Command::new(program("ringscope").unwrap());
    command.arg("report").args(files).args(arguments).output().unwrap()
}

fn report(files: &[&Path], format: &str) -> Vec<u8> {
    let output = output(files, &["--format", format]);
    assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
    output.stdout
}

fn json(files: &[&Path]) -> Value {
    serde_json::from_slice(&report(files, "json")).unwrap()
}

fn text(files: &[&Path], format: &str) -> String {
    String::from_utf8(report(files, format)).unwrap()
}

/// Why these files have no report.
fn refusal(files: &[&Path]) -> String {
    let output = output(files, &[]);
    assert!(!output.status.success());
    String::from_utf8(output.stderr).unwrap()
}

fn start(directory: &Path, name: &str) -> Daemon {
    Daemon::start(directory, name, &["--datapath", "reflect"]).unwrap()
}

/// Moves the guest, with its rings stopped by the front end, as in a migration. Returns how long it was away.
fn go(guest: &mut Guest, to: &Daemon) -> Duration {
    let left = Instant::now();
    sleep(AWAY);
    for ring in [1, 0] {
        guest.stop_ring(ring).unwrap();
    }
    sleep(AWAY);
    guest.reconnect(to.socket()).unwrap();
    sleep(AWAY);
    frames::come_back(guest).unwrap();
    left.elapsed()
}

#[test]
fn one_report_of_both_daemons_has_the_move_as_a_row() {
    let directory = tempfile::tempdir().unwrap();
    let daemons = ["old", "new"].map(|name| start(directory.path(), name));
    let mut guest = Guest::connect(daemons[0].socket(), GuestOptions::default()).unwrap();
    // A recording goes as well as a recorder.
    let kept = directory.path().join("old.rec");
    let recorder = RecordCommand::start(directory.path(), &kept, &["--name", "old"]).unwrap();
    frames::come_back(&mut guest).unwrap();
    let away = go(&mut guest, &daemons[1]);
    let [old, new] = daemons.map(|daemon| daemon.recorder().to_owned());
    let packets = |report: &Value| report["tx"]["packets"].as_u64().unwrap();
    let apart = packets(&json(&[&old])) + packets(&json(&[&new]));
    recorder.wait().unwrap();

    for files in [[&*old, &*new], [&*new, &*old], [&*kept, &*new]] {
        let all = json(&files);
        assert_eq!(packets(&all), apart);
        let [row] = all["migrations"].as_array().unwrap().as_slice() else {
            panic!("{}", all["migrations"]);
        };
        let ns = |name: &str| row[name].as_u64().unwrap_or_else(|| panic!("{name}: {row}"));
        let parts = ["rings_stopped_ns", "between_hosts_ns", "first_burst_ns"].map(ns);
        assert_eq!(parts.iter().sum::<u64>(), ns("gap_ns"));
        let least = u64::try_from(AWAY.as_nanos()).unwrap();
        // The guest offers its frames 40 ms after its rings are started.
        assert!(parts[0] >= least && parts[1] >= least && parts[2] >= least, "{row}");
        assert!(u128::from(ns("gap_ns")) < away.as_nanos() + 100_000_000, "{row}, {away:?}");
        assert_eq!(ns("error_ns"), 0, "one host has one clock");
        assert!(row["announced_ns"].is_null(), "nobody asked for it");
        assert!(row["front_end_left_ns"].as_i64().unwrap() > 0, "{row}");
    }
    let files = [&*old, &*new];
    let gap = json(&files)["migrations"][0]["gap_ns"].as_u64().unwrap();
    let table = text(&files, "table");
    let rows = table.lines().filter(|line| line.trim_start().starts_with("migration "));
    assert_eq!(rows.count(), 1, "{table}");
    let csv = text(&files, "csv");
    let line = csv.lines().find(|line| line.starts_with("migration,")).unwrap();
    let columns = |line: &str| line.split(',').count();
    assert!(line.ends_with(&format!(",{gap}")), "{line}");
    assert_eq!(columns(line), columns(csv.lines().next().unwrap()));
    assert!(text(&files, "html").contains(&format!("\"gap_ns\":{gap},")));
    let trace = report(&files, "perfetto");
    for name in ["migration (", "migrations", "between hosts", "front end left"] {
        let found = trace.windows(name.len()).filter(|part| *part == name.as_bytes());
        assert!(found.count() >= 1, "{name}");
    }
    report(&files, "pcapng");
    report(&files, "hlog");
}

#[test]
fn a_guest_that_goes_to_and_fro_has_a_row_for_each_move() {
    let directory = tempfile::tempdir().unwrap();
    let daemons = ["old", "new"].map(|name| start(directory.path(), name));
    let mut guest = Guest::connect(daemons[0].socket(), GuestOptions::default()).unwrap();
    frames::come_back(&mut guest).unwrap();
    for n in [1, 0, 1] {
        go(&mut guest, &daemons[n]);
    }
    let files = daemons.each_ref().map(Daemon::recorder);
    assert_eq!(json(&files)["migrations"].as_array().unwrap().len(), 3);
}

#[test]
fn hosts_without_a_common_clock_have_no_gap_and_the_report_says_why() {
    let directory = tempfile::tempdir().unwrap();
    let daemons = ["old", "new"].map(|name| start(directory.path(), name));
    let mut guest = Guest::connect(daemons[0].socket(), GuestOptions::default()).unwrap();
    frames::come_back(&mut guest).unwrap();
    go(&mut guest, &daemons[1]);
    let [old, new] = daemons.map(|daemon| daemon.recorder().to_owned());
    write_word(&old, word::BOOT, 1);
    for file in [&old, &new] {
        write_word(file, word::CLOCK_ERROR, 0);
    }
    let all = json(&[&old, &new]);
    let row = &all["migrations"][0];
    assert!(row["gap_ns"].is_null() && row["between_hosts_ns"].is_null(), "{row}");
    assert!(row["rings_stopped_ns"].as_u64().is_some() && row["first_burst_ns"].as_u64().is_some());
    let table = text(&[&old, &new], "table");
    assert!(table.contains("no gap: the two hosts' clocks cannot be compared"), "{table}");
    let probes = output(&[&old, &new], &["--probes", "none.csv"]);
    assert!(String::from_utf8_lossy(&probes.stderr).contains("these are of several"));

    for file in [&old, &new] {
        write_word(file, word::CLOCK_ERROR, 20_001);
    }
    let error = json(&[&old, &new])["migrations"][0]["error_ns"].as_u64().unwrap();
    assert!(error >= 40_000_000, "{error}");
}

#[test]
fn files_of_two_guests_are_refused_in_one_sentence() {
    let directory = tempfile::tempdir().unwrap();
    let daemons = ["old", "new"].map(|name| start(directory.path(), name));
    let [old, new] = daemons.each_ref().map(Daemon::recorder);
    let connect = |n: usize, options| Guest::connect(daemons[n].socket(), options).unwrap();
    let mut first = connect(0, GuestOptions::default());
    frames::come_back(&mut first).unwrap();
    assert!(refusal(&[old, new]).contains("has no bursts"));
    assert!(refusal(&[old, old]).contains("was given twice"));
    let mut second = connect(1, GuestOptions::default());
    frames::come_back(&mut second).unwrap();
    frames::come_back(&mut first).unwrap();
    frames::come_back(&mut second).unwrap();
    assert!(refusal(&[old, new]).contains("are not of one guest that moved"));
    drop(second);
    let mut other = connect(1, GuestOptions::default().packed(true));
    frames::come_back(&mut other).unwrap();
    assert!(refusal(&[old, new]).contains("negotiated other features"));
}
