//! `ringscope top --json`: a line for each interval, which says what the recorder says.

use std::cmp::Reverse;
use std::collections::{HashMap, HashSet};
use std::io::{BufRead, BufReader};
use std::process::{Child, Command, Stdio};
use std::thread::sleep;
use std::time::{Duration, SystemTime, UNIX_EPOCH};

use burst_trace::{DropCause, Record, Source};
use frontend::{Guest, GuestOptions};
use lab::Signal;
use report::figures::TickRate;
use ringscope_tests::daemon::{Daemon, program};
use ringscope_tests::frames;
use rustix::process::{Pid, kill_process};
use serde_json::Value;

const TX: usize = 1;

/// `ringscope top --json` under way. It is killed when this is dropped.
struct Top(Child);

impl Drop for Top {
    fn drop(&mut self) {
        let _ = self.0.kill();
        let _ = self.0.wait();
    }
}

fn now_ns() -> u64 {
    SystemTime::now().duration_since(UNIX_EPOCH).unwrap().as_nanos().try_into().unwrap()
}

#[test]
fn each_interval_is_a_line_with_its_counts_and_its_slowest_bursts() {
    let directory = tempfile::tempdir().unwrap();
    let faults = ["--fault", "delay:tx.egress=3000,every=200", "--fault", "drop=0.05,seed=1"];
    let arguments = [&["--datapath", "null"], &faults[..]].concat();
    let daemon = Daemon::start(directory.path(), "lines", &arguments).unwrap();
    let mut command = Command::new(program("ringscope").unwrap());
    command.args(["top", "--json", "--interval", "0.25", "--run-dir"]).arg(directory.path());
    let child = command.stdin(Stdio::null()).stdout(Stdio::piped()).spawn().unwrap();
    let mut top = Top(child);
    let begun = now_ns();
    let mut lines = BufReader::new(top.0.stdout.take().unwrap()).lines();
    // From now on it follows.
    let first: Value = serde_json::from_str(&lines.next().unwrap().unwrap()).unwrap();
    assert_eq!((&first["name"], &first["tx"]["packets"]), (&"lines".into(), &0.into()));
    assert_eq!(first["outliers"], Value::Array(Vec::new()));
    assert_eq!(first["tx"]["stages"][0]["count"], Value::Null, "guest-send is not measured");
    let mut guest = Guest::connect(daemon.socket(), GuestOptions::default()).unwrap();
    for n in 0..1000 {
        assert!(guest.pair(0).send(&frames::frame(n, 100)).unwrap());
        sleep(Duration::from_millis(1));
        guest.pair(0).reap().unwrap();
    }
    guest.stop_ring(1).unwrap();
    sleep(Duration::from_millis(700));
    kill_process(Pid::from_child(&top.0), Signal::INT).unwrap();
    let lines: Vec<Value> =
        lines.map(|line| serde_json::from_str(&line.unwrap()).unwrap()).collect();
    assert!(top.0.wait().unwrap().success());
    assert!(lines.len() >= 5, "{} lines in 1.7 s", lines.len());
    let number = |value: &Value| value.as_u64().unwrap();
    let sum = |path: &str| lines.iter().map(|line| number(line.pointer(path).unwrap())).sum();
    let (reader, cause) = (daemon.reader().unwrap(), DropCause::TxFault);
    let (packets, lost): (u64, u64) =
        (sum("/tx/packets"), sum(&format!("/tx/drops/{}", cause.name())));
    assert_eq!(packets, reader.totals(TX).packets);
    assert_eq!((sum("/tx/bytes"), sum("/lost_records")), (reader.totals(TX).bytes, 0_u64));
    assert_eq!(lost, reader.drops(TX, cause));
    assert_eq!(packets + lost, 1000);
    assert_eq!(sum("/tx/total/count"), packets);
    let times: Vec<_> = lines.iter().map(|line| number(&line["time_ns"])).collect();
    assert!(times.is_sorted() && times[0] > begun && *times.last().unwrap() < now_ns());
    check_outliers(&lines, &Source::from(daemon.reader().unwrap()), begun);
}

/// The slowest bursts of every line are the recorder's.
fn check_outliers(lines: &[Value], source: &Source, begun: u64) {
    let number = |value: &Value| value.as_u64().unwrap();
    let rate = TickRate::new(source.ticks_per_second());
    let mut bursts = HashMap::new();
    source.read(|record| {
        if let Record::Burst(burst) = record {
            bursts.insert(burst.sequence, *burst);
        }
    });
    let mut told = HashSet::new();
    for line in lines {
        let slowest = line["outliers"].as_array().unwrap();
        let totals: Vec<_> = slowest.iter().map(|burst| number(&burst["total_ns"])).collect();
        assert!(totals.len() <= 5 && totals.is_sorted_by(|one, next| one >= next), "{totals:?}");
        let max = line["tx"]["total"]["max_ns"].as_u64();
        assert_eq!(totals.first().copied(), max, "the slowest is the maximum");
        for burst in slowest {
            assert_eq!((&burst["direction"], &burst["queue"]), (&"tx".into(), &1.into()));
            let stages = burst["stages_ns"].as_object().unwrap();
            let sum: u64 = stages.values().map(number).sum();
            // Each is rounded by itself.
            assert!(sum.abs_diff(number(&burst["total_ns"])) <= 3, "{burst}");
            assert!(number(&burst["start_ns"]) > begun, "{burst}");
            let record = &bursts[&number(&burst["sequence"])];
            assert_eq!(burst["packets"], record.packets);
            assert_eq!(burst["bytes"], record.bytes);
            // The clock's rate is known better from second to second.
            let total = rate.ns(record.total());
            assert!(total.abs_diff(number(&burst["total_ns"])) <= 3 + total / 1000, "{burst}");
            let unknown = [&burst["not_running_ns"], &burst["interrupted"]];
            assert_eq!(unknown, [&Value::Null; 2], "not measured without --kernel-stages");
            told.insert(record.sequence);
        }
    }
    // Five of each interval are told of, so the five slowest of all are among them; a planted delay is one.
    let mut slowest: Vec<_> = bursts.values().collect();
    slowest.sort_by_key(|record| Reverse(record.total()));
    assert!(slowest[..5].iter().all(|record| told.contains(&record.sequence)), "{told:?}");
    assert!(rate.ns(slowest[0].total()) >= 3_000_000, "{:?}", slowest[0]);
}
