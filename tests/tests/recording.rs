//! `ringscope record` keeps what passes, or counts what it lost; `ringscope report` reads it.

use std::path::Path;
use std::process::Command;
use std::thread::sleep;
use std::time::{Duration, Instant};

use burst_trace::{BurstRecord, Direction, Record, Source, Stage};
use frontend::{Guest, GuestOptions};
use lab::Signal;
use ringscope_tests::beside::run_in_real_time;
use ringscope_tests::daemon::{Daemon, program};
use ringscope_tests::frames;
use ringscope_tests::recording::{RecordCommand, beside};
use serde_json::Value;

const SOON: Duration = Duration::from_secs(20);
const TX: usize = 1;

/// What `ringscope` prints.
fn ringscope(arguments: &[&str]) -> String {
    let output = Command::new(program("ringscope").unwrap()).args(arguments).output().unwrap();
    assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
    String::from_utf8(output.stdout).unwrap()
}

fn report(file: &Path, format: &str) -> String {
    ringscope(&["report", file.to_str().unwrap(), "--format", format])
}

/// Bursts, their packets, and records that are missing.
fn count(file: &Path) -> (u64, u64, u64) {
    let (mut bursts, mut packets) = (0, 0);
    let lost = Source::open(file).unwrap().read(|record| {
        if let Record::Burst(burst) = record {
            bursts += 1;
            packets += u64::from(burst.packets);
        }
    });
    (bursts, packets, lost)
}

#[test]
fn a_flood_is_kept_whole_or_what_is_missing_is_counted() {
    let directory = tempfile::tempdir().unwrap();
    let arguments = ["--datapath", "null:rx=64", "--poll", "always"];
    let daemon = Daemon::start(directory.path(), "flood", &arguments).unwrap();
    let file = directory.path().join("flood.rec");
    let recorder = RecordCommand::start(directory.path(), &file, &[]).unwrap();
    let mut guest = Guest::connect(daemon.socket(), GuestOptions::default()).unwrap();
    let until = Instant::now() + Duration::from_secs(2);
    while Instant::now() < until {
        guest.pair(0).receive_within(SOON).unwrap().expect("a frame");
    }
    guest.stop_ring(0).unwrap();
    guest.stop_ring(1).unwrap();
    let said = recorder.interrupt().unwrap();
    assert!(said.contains("flood.rec: "), "{said}");
    let (bursts, packets, lost) = count(&file);
    let totals = daemon.reader().unwrap().totals(0);
    assert!(bursts > 1000, "{bursts}");
    assert_eq!(bursts + lost, totals.bursts);
    assert!(packets <= totals.packets && (lost > 0 || packets == totals.packets));
    // The header has the totals of the time, whatever was lost.
    assert_eq!(Source::open(&file).unwrap().totals(0), totals);
    assert!(!beside(&file, "part").exists());
}

#[test]
fn a_slow_burst_is_waited_for_and_kept_with_what_was_around_it() {
    // A frame and a burst each millisecond, whatever else this machine does.
    run_in_real_time();
    let directory = tempfile::tempdir().unwrap();
    let arguments = ["--datapath", "null", "--fault", "delay:tx.egress=3000,every=200"];
    let daemon = Daemon::start(directory.path(), "slow", &arguments).unwrap();
    let mut guest = Guest::connect(daemon.socket(), GuestOptions::default()).unwrap();
    let file = directory.path().join("slow.rec");
    let arguments = ["--when", "tx.egress>=3ms", "--before", "0.1", "--after", "0.05"];
    let recorder = RecordCommand::start(directory.path(), &file, &arguments).unwrap();
    for n in 0..450 {
        assert!(guest.pair(0).send(&frames::frame(n, 100)).unwrap());
        sleep(Duration::from_millis(1));
        guest.pair(0).reap().unwrap();
    }
    let said = recorder.wait().unwrap();
    assert!(said.contains("the burst: tx queue 1"), "{said}");
    let source = Source::open(&file).unwrap();
    let second = source.ticks_per_second();
    let mut bursts: Vec<BurstRecord> = Vec::new();
    assert_eq!(source.read(|record| bursts.extend(record.as_burst())), 0);
    let is_slow = |ticks: u64| ticks >= second * 3 / 1000;
    let egress = Direction::Tx.position(Stage::Egress).unwrap();
    let met = bursts.iter().position(|burst| is_slow(burst.stages[egress])).expect("the slow one");
    let at = bursts[met].last;
    assert!(met > 20 && bursts.len() - met > 10, "{met} of {}", bursts.len());
    assert!(bursts.iter().all(|burst| burst.last + second / 10 >= at), "older than asked for");
    assert!(bursts.iter().all(|burst| burst.last <= at + second / 20), "later than asked for");
}

#[test]
fn the_last_time_before_the_end_is_kept() {
    run_in_real_time();
    let directory = tempfile::tempdir().unwrap();
    let daemon = Daemon::start(directory.path(), "last", &["--datapath", "null"]).unwrap();
    let mut guest = Guest::connect(daemon.socket(), GuestOptions::default()).unwrap();
    let file = directory.path().join("last.rec");
    let recorder = RecordCommand::start(directory.path(), &file, &["--last", "0.2"]).unwrap();
    for n in 0..500 {
        assert!(guest.pair(0).send(&frames::frame(n, 100)).unwrap());
        sleep(Duration::from_millis(1));
        guest.pair(0).reap().unwrap();
    }
    recorder.interrupt().unwrap();
    let source = Source::open(&file).unwrap();
    let mut times = Vec::new();
    source.read(|record| times.push(record.last()));
    let (first, last) = (times[0], times[times.len() - 1]);
    assert!(last - first <= source.ticks_per_second() / 5);
    assert!(times.len() > 50 && times.len() < 250, "{}", times.len());
}

#[test]
fn the_recorder_of_a_killed_daemon_and_its_recording_agree() {
    let directory = tempfile::tempdir().unwrap();
    let mut daemon = Daemon::start(directory.path(), "dead", &["--datapath", "reflect"]).unwrap();
    let file = directory.path().join("dead.rec");
    let recorder = RecordCommand::start(directory.path(), &file, &[]).unwrap();
    let mut guest = Guest::connect(daemon.socket(), GuestOptions::default()).unwrap();
    frames::come_back(&mut guest).unwrap();
    daemon.signal(Signal::KILL).unwrap();
    daemon.wait(SOON).unwrap();
    let said = recorder.wait().unwrap();
    assert!(said.contains("the daemon has ended"), "{said}");
    let left = report(daemon.recorder(), "json");
    let kept = report(&file, "json");
    let (left, kept): (Value, Value) =
        (serde_json::from_str(&left).unwrap(), serde_json::from_str(&kept).unwrap());
    assert!(kept["tx"]["packets"].as_u64().unwrap() > 0);
    for direction in ["tx", "rx"] {
        assert_eq!(left[direction], kept[direction]);
    }
    assert!(report(&file, "table").contains("of the recording"));
    // A new daemon sets it aside.
    let _daemon = Daemon::start(directory.path(), "dead", &["--datapath", "reflect"]).unwrap();
    let aside = beside(daemon.recorder(), "crashed");
    let aside: Value = serde_json::from_str(&report(&aside, "json")).unwrap();
    assert_eq!(aside["tx"], kept["tx"]);
}

#[test]
fn each_format_tells_of_the_same_packets() {
    let directory = tempfile::tempdir().unwrap();
    let daemon = Daemon::start(directory.path(), "same", &["--datapath", "reflect"]).unwrap();
    let file = directory.path().join("same.rec");
    let recorder = RecordCommand::start(directory.path(), &file, &[]).unwrap();
    let mut guest = Guest::connect(daemon.socket(), GuestOptions::default()).unwrap();
    for _ in 0..20 {
        frames::come_back(&mut guest).unwrap();
    }
    guest.stop_ring(1).unwrap();
    guest.stop_ring(0).unwrap();
    recorder.interrupt().unwrap();
    let stats = ["stats", "--json", "--run-dir", directory.path().to_str().unwrap()];
    let stats: Value = serde_json::from_str(&ringscope(&stats)).unwrap();
    let json: Value = serde_json::from_str(&report(&file, "json")).unwrap();
    assert_eq!((&json["tx"], &json["rx"]), (&stats["tx"], &stats["rx"]));
    let csv = report(&file, "csv");
    let mut lines = csv.lines();
    let columns: Vec<_> = lines.next().unwrap().split(',').collect();
    let place = |name: &str| columns.iter().position(|column| *column == name).unwrap();
    let (mut packets, mut weighted) = (0, 0.0);
    for line in lines {
        let fields: Vec<_> = line.split(',').collect();
        assert_eq!(fields.len(), columns.len(), "{line}");
        if (fields[0], fields[place("direction")]) == ("burst", "tx") {
            let number = |name: &str| fields[place(name)].parse::<u64>().unwrap();
            let stages = ["notice", "queued", "gather", "egress", "complete", "signal"];
            let sum: u64 = stages.iter().map(|stage| number(&format!("{stage}_ns"))).sum();
            // Each is rounded by itself.
            assert!(sum.abs_diff(number("total_ns")) <= 3, "{line}");
            packets += number("packets");
            weighted += (number("packets") * number("total_ns")) as f64;
        }
    }
    assert_eq!(Some(packets), json["tx"]["packets"].as_u64());
    let mean = json["tx"]["total"]["mean_ns"].as_f64().unwrap();
    assert!((weighted / packets as f64 - mean).abs() < 1.0);
    hlog_has(&report(&file, "hlog"), "tx.total", packets, &json["tx"]["total"]);
    let totals = daemon.reader().unwrap().totals(TX);
    assert_eq!(totals.packets, packets);
}

/// The log's histograms of `tag`, added up, are the figures.
fn hlog_has(log: &str, tag: &str, packets: u64, figures: &Value) {
    use hdrhistogram::Histogram;
    use hdrhistogram::serialization::Deserializer;
    use hdrhistogram::serialization::interval_log::{IntervalLogIterator, LogEntry};
    let mut all = Histogram::<u64>::new(3).unwrap();
    for entry in IntervalLogIterator::new(log.as_bytes()) {
        let LogEntry::Interval(line) = entry.unwrap() else { continue };
        if line.tag().is_some_and(|it| it.as_str() == tag) {
            let bytes = base64::Engine::decode(
                &base64::engine::general_purpose::STANDARD,
                line.encoded_histogram(),
            );
            let part: Histogram<u64> =
                Deserializer::new().deserialize(&mut bytes.unwrap().as_slice()).unwrap();
            all.add(part).unwrap();
        }
    }
    assert_eq!(all.len(), packets);
    let max = figures["max_ns"].as_u64().unwrap();
    assert!(all.max().abs_diff(max) <= max / 500, "{} {max}", all.max());
}
