//! The recorder of a guest whose daemon is killed or ends: one report shows what passed before and after.

use std::fs;
use std::path::Path;
use std::process::Command;
use std::thread::sleep;
use std::time::{Duration, Instant};

use burst_trace::Reader;
use burst_trace::file::word;
use frontend::{Guest, GuestOptions};
use ringscope_tests::daemon::{Daemon, program};
use ringscope_tests::eventually::eventually;
use ringscope_tests::frames;
use ringscope_tests::recording::{RecordCommand, beside, write_word};
use rustix::process::Signal;
use serde_json::Value;

const REFLECT: [&str; 2] = ["--datapath", "reflect"];
const SOON: Duration = Duration::from_secs(10);
/// Length that each part of a restart has at least.
const AWAY: Duration = Duration::from_millis(60);
/// Longest time between what the test sees of a burst and its record.
const SLACK: Duration = Duration::from_millis(100);

fn start(directory: &Path) -> Daemon {
    Daemon::start(directory, "vm", &REFLECT).unwrap()
}

/// A guest whose front end says of its rings where they began, as QEMU does after it lost a daemon.
fn connect(daemon: &Daemon) -> Guest {
    let options = GuestOptions { forgetful: true, ..GuestOptions::default() };
    Guest::connect(daemon.socket(), options).unwrap()
}

/// Ends the daemon with this signal.
fn end(mut daemon: Daemon, signal: Signal) {
    daemon.signal(signal).unwrap();
    daemon.wait(SOON).unwrap();
}

fn report_bytes(file: &Path, format: &str) -> Vec<u8> {
    let mut command = Command::new(program("ringscope").unwrap());
    let output = command.arg("report").arg(file).args(["--format", format]).output().unwrap();
    assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
    output.stdout
}

fn report(file: &Path, format: &str) -> String {
    String::from_utf8(report_bytes(file, format)).unwrap()
}

fn json(file: &Path) -> Value {
    serde_json::from_str(&report(file, "json")).unwrap()
}

fn packets(report: &Value) -> u64 {
    report["tx"]["packets"].as_u64().unwrap()
}

#[test]
fn one_report_shows_what_passed_before_and_after() {
    for signal in [Signal::KILL, Signal::TERM] {
        let directory = tempfile::tempdir().unwrap();
        let daemon = start(directory.path());
        let file = daemon.recorder().to_owned();
        let mut guest = connect(&daemon);
        frames::come_back(&mut guest).unwrap();
        end(daemon, signal);
        let before = packets(&json(&file));
        assert!(before > 0);

        let daemon = start(directory.path());
        daemon.expect_log("records of the daemon before");
        guest.reconnect(daemon.socket()).unwrap();
        frames::come_back(&mut guest).unwrap();
        guest.stop_ring(1).unwrap();
        guest.stop_ring(0).unwrap();
        let all = json(&file);
        let own = all["tx"]["counted"]["packets"].as_u64().unwrap();
        assert!(own > 0, "the counters are those of the daemon");
        assert_eq!(packets(&all), before + own);
        // Every format reads both parts.
        assert!(report(&file, "table").contains(&format!("(tx): {} packets", before + own)));
        let csv = report(&file, "csv");
        let bursts = csv.lines().filter(|line| line.starts_with("burst,tx,")).count();
        assert_eq!(bursts as u64, all["tx"]["bursts"].as_u64().unwrap());
        assert_eq!(beside(&file, "crashed").exists(), signal == Signal::KILL);
    }
}

/// The only restart in a report.
fn restart(report: &Value) -> &Value {
    let [restart] = report["restarts"].as_array().unwrap().as_slice() else {
        panic!("{}", report["restarts"]);
    };
    restart
}

#[test]
fn a_restart_is_a_row_with_its_parts() {
    for (signal, word) in [(Signal::KILL, "killed"), (Signal::TERM, "ended")] {
        let directory = tempfile::tempdir().unwrap();
        let daemon = start(directory.path());
        let file = daemon.recorder().to_owned();
        let mut guest = connect(&daemon);
        frames::come_back(&mut guest).unwrap();
        let killed = Instant::now();
        end(daemon, signal);
        sleep(AWAY);
        let daemon = start(directory.path());
        sleep(AWAY);
        let listened = Instant::now();
        guest.reconnect(daemon.socket()).unwrap();
        sleep(AWAY);
        frames::come_back(&mut guest).unwrap();
        let gap = killed.elapsed();
        daemon.expect_log("records of the daemon before");

        let all = json(&file);
        assert_eq!(all["restarted"], 1);
        let row = restart(&all);
        let ns = |name: &str| row[name].as_u64().unwrap();
        let away = u64::try_from(AWAY.as_nanos()).unwrap();
        let limit = u64::try_from((gap + SLACK).as_nanos()).unwrap();
        let parts = ["no_daemon_ns", "front_end_ns", "first_burst_ns"].map(ns);
        assert_eq!(parts.iter().sum::<u64>(), ns("gap_ns"), "{row}");
        assert!(parts.iter().all(|part| *part >= away), "{row}");
        assert!(ns("gap_ns") < limit, "{row}, {gap:?}");
        let first = u64::try_from(listened.elapsed().as_nanos()).unwrap();
        assert!(parts[2] < first, "{row}");
        assert_eq!(
            (&row["killed"], &row["resumed"]),
            (&(signal == Signal::KILL).into(), &true.into())
        );
        let twice = all["sent_twice_max"].as_u64().unwrap();
        assert!(twice <= 64, "at most a burst of the only transmit ring: {twice}");

        let table = report(&file, "table");
        let lines = table.lines().filter(|line| line.trim_start().starts_with("restart "));
        let lines: Vec<_> =
            lines.filter(|line| line.contains(&format!("{word}, rings went on"))).collect();
        assert_eq!(lines.len(), 1, "{table}");
        assert!(table.contains("restarted: 1, rings went on"), "{table}");
        let csv = report(&file, "csv");
        let line = csv.lines().find(|line| line.starts_with("restart,")).unwrap();
        let [no_daemon, front_end, first_burst] = parts;
        let cause = format!(",{word}/resumed/{no_daemon}/{front_end}/{first_burst},");
        assert!(line.contains(&cause) && line.ends_with(&format!(",{}", ns("gap_ns"))), "{line}");
        let columns = |line: &str| line.split(',').count();
        assert_eq!(columns(line), columns(csv.lines().next().unwrap()));
        let page = report(&file, "html");
        assert!(page.contains(&format!("\"gap_ns\":{},", ns("gap_ns"))));
        let trace = report_bytes(&file, "perfetto");
        for name in
            [format!("restart ({word}, rings went on)"), "restarts".into(), "no daemon".into()]
        {
            let found = trace.windows(name.len()).filter(|part| *part == name.as_bytes());
            assert!(found.count() >= 1, "{name}");
        }
    }
}

/// The sequence numbers of the bursts of virtqueue `ring`, each with its packets.
fn bursts(file: &Path, ring: u16) -> Vec<(u64, u64)> {
    let reader = Reader::open(file).unwrap();
    let mut bursts = Vec::new();
    reader.read(&mut reader.oldest(0), |record| {
        let burst = record.as_burst().filter(|burst| burst.ring == ring);
        bursts.extend(burst.map(|burst| (burst.sequence, u64::from(burst.packets))));
    });
    bursts
}

#[test]
fn one_report_shows_what_passed_before_and_after_a_take_over() {
    let directory = tempfile::tempdir().unwrap();
    let mut daemon = start(directory.path());
    let file = daemon.recorder().to_owned();
    let mut guest = connect(&daemon);
    frames::come_back(&mut guest).unwrap();
    let mut processes = vec![daemon.pid()];
    for take_overs in 1..4 {
        let before = packets(&json(&file));
        let next = daemon.successor(&REFLECT).unwrap();
        assert!(daemon.wait(SOON).unwrap().success(), "{}", daemon.log());
        next.expect_log("records of the daemon before");
        sleep(AWAY);
        frames::come_back(&mut guest).unwrap();
        processes.push(next.pid());
        let all = eventually(SOON, "all packets in the recorder", || {
            let all = json(&file);
            let own = all["tx"]["counted"]["packets"].as_u64().unwrap();
            if own > 0 && packets(&all) == before + own { Ok(all) } else { Err(all) }
        });
        let rows = all["restarts"].as_array().unwrap();
        assert_eq!(rows.len(), take_overs);
        let row = &rows[take_overs - 1];
        let ns = |name: &str| row[name].as_u64().unwrap();
        let parts = ["no_daemon_ns", "front_end_ns", "first_burst_ns"].map(ns);
        assert_eq!(parts.iter().sum::<u64>(), ns("gap_ns"), "{row}");
        assert_eq!(parts[1], 0, "the front end has no part: {row}");
        let away = u64::try_from(AWAY.as_nanos()).unwrap();
        assert!(parts[2] >= away, "the guest was quiet: {row}");
        assert_eq!((&row["taken_over"], &row["killed"]), (&true.into(), &false.into()));
        let pids = ["process_before", "process"].map(ns).map(|pid| u32::try_from(pid).unwrap());
        assert_eq!(pids, processes[take_overs - 1..]);
        daemon = next;
    }
    assert_eq!(json(&file)["sent_twice_max"], 0);
    for ring in [0, 1] {
        let bursts = bursts(&file, ring);
        assert!(bursts.windows(2).all(|two| two[0].0 + two[0].1 == two[1].0), "{bursts:?}");
    }
    let table = report(&file, "table");
    let words = format!("taken over, rings went on  {} to {}", processes[2], processes[3]);
    assert!(table.contains(&words), "{table}");
    assert!(report(&file, "csv").contains(",taken-over/resumed/"));
    // Figures of other flags would be of neither.
    let arguments = [&REFLECT[..], &["--poll", "always"]].concat();
    let last = daemon.successor(&arguments).unwrap();
    last.expect_log("ran with other flags");
    frames::come_back(&mut guest).unwrap();
    assert!(json(&file)["restarts"].as_array().unwrap().is_empty());
}

#[test]
fn a_reconnection_to_the_same_daemon_is_no_restart_and_neither_is_another_guest() {
    let directory = tempfile::tempdir().unwrap();
    let daemon = start(directory.path());
    let file = daemon.recorder().to_owned();
    let mut guest = connect(&daemon);
    frames::come_back(&mut guest).unwrap();
    guest.reconnect(daemon.socket()).unwrap();
    frames::come_back(&mut guest).unwrap();
    let report = json(&file);
    assert_eq!(
        (&report["restarted"], report["restarts"].as_array().unwrap().len()),
        (&0.into(), 0)
    );
    drop(guest);
    end(daemon, Signal::TERM);
    // Another guest: its rings start at their beginning.
    let daemon = start(directory.path());
    frames::come_back(&mut connect(&daemon)).unwrap();
    let report = json(&file);
    assert_eq!(report["restarted"], 0);
    assert_eq!(restart(&report)["resumed"], false);
}

#[test]
fn without_records_a_restart_is_counted_all_the_same() {
    let directory = tempfile::tempdir().unwrap();
    let quiet = [REFLECT.as_slice(), &["--trace", "off"]].concat();
    let start = || Daemon::start(directory.path(), "vm", &quiet).unwrap();
    let mut daemon = start();
    let mut guest = connect(&daemon);
    frames::come_back(&mut guest).unwrap();
    for restarts in 1..4 {
        end(daemon, Signal::KILL);
        daemon = start();
        guest.reconnect(daemon.socket()).unwrap();
        frames::come_back(&mut guest).unwrap();
        assert_eq!(json(daemon.recorder())["restarted"], restarts);
    }
}

#[test]
fn who_follows_the_recorder_sees_its_daemon_end() {
    let directory = tempfile::tempdir().unwrap();
    let daemon = start(directory.path());
    let kept = directory.path().join("kept.rec");
    let recorder = RecordCommand::start(directory.path(), &kept, &[]).unwrap();
    let mut guest = connect(&daemon);
    frames::come_back(&mut guest).unwrap();
    let old = daemon.reader().unwrap();
    end(daemon, Signal::KILL);
    let before = packets(&json(&directory.path().join("vm.trace")));
    let daemon = start(directory.path());
    guest.reconnect(daemon.socket()).unwrap();
    frames::come_back(&mut guest).unwrap();
    assert!(recorder.wait().unwrap().contains("the daemon has ended"));
    assert_eq!(
        packets(&json(&kept)),
        before,
        "the recording has its daemon's packets, all of them"
    );
    assert_eq!(old.totals(1).packets, before, "the old file is as it was left");
}

/// Spoils a recorder.
type Spoil = fn(&Path);

#[test]
fn a_recorder_that_does_not_fit_is_refused_in_one_sentence() {
    let more = ["--datapath", "reflect", "--queue-pairs", "2"];
    let spoilt: [(&str, &[&str], Spoil); 5] = [
        ("the host was booted since", &REFLECT, |file| write_word(file, word::BOOT, 1)),
        ("found version 9", &REFLECT, |file| write_word(file, word::VERSION, 9)),
        ("is damaged", &REFLECT, |file| {
            let layout =
                burst_trace::file::Layout { workers: 1, queue_pairs: 1, capacity: 1 << 16 };
            write_word(file, layout.record(0, 0) + 7, 0);
        }),
        ("sizes that fit the file", &REFLECT, |file| {
            fs::File::options().write(true).open(file).unwrap().set_len(100_000).unwrap();
        }),
        ("expected 2 queue pairs, found 1", &more, |_| {}),
    ];
    for (sentence, arguments, spoil) in spoilt {
        let directory = tempfile::tempdir().unwrap();
        let daemon = start(directory.path());
        let file = daemon.recorder().to_owned();
        frames::come_back(&mut connect(&daemon)).unwrap();
        end(daemon, Signal::KILL);
        spoil(&file);
        let daemon = Daemon::start(directory.path(), "vm", arguments).unwrap();
        daemon.expect_log("is not continued");
        let log = daemon.log();
        let said = log.lines().filter(|line| line.contains("is not continued"));
        assert_eq!(said.filter(|line| line.contains(sentence)).count(), 1, "{sentence}: {log}");
        assert_eq!(packets(&json(&file)), 0, "{sentence}: a new recorder");
        frames::come_back(&mut connect(&daemon)).unwrap();
        assert!(packets(&json(&file)) > 0);
        assert!(beside(&file, "crashed").exists(), "{sentence}: the old one is kept");
    }
}
