//! Times in which a thread did not run, in every report and every file for other tools.

use std::path::Path;
use std::time::Duration;

use burst_trace::fixture::{culprit, preempted};
use burst_trace::{
    BurstRecord, Clock, Direction, Interruption, InterruptionCause, KernelSpan, KernelStage,
    Reader, Recorder, RecorderOptions, Source, Stage, Subject, Writer,
};
use report::csv::write_csv;
use report::html::write_html;
use report::pcapng::write_pcapng;
use report::{Breakdown, DirectionBreakdown, Window, json, table};
use serde_json::Value;

struct Known {
    recorder: Recorder,
    worker: Writer,
    /// That of times in the host kernel.
    kernel: Writer,
    clock: Clock,
    zero: u64,
}

impl Known {
    /// A burst each way, in microseconds: to the wire from 1000 to 5050, of which 1020 to 5020 in `gather`, 2 packets, worker
    /// woken up at 980; to the guest from 10000 to 10050.
    fn new(directory: &Path, facts: &str) -> Self {
        let clock = Clock::new();
        let options = RecorderOptions {
            path: directory.join("vm0.trace"),
            workers: 2,
            queue_pairs: 1,
            capacity: 64,
            facts: facts.into(),
        };
        let recorder = Recorder::create(&options, &clock).unwrap();
        let (worker, kernel) = (recorder.writer(0, clock), recorder.writer(1, clock));
        let mut known = Self { zero: clock.now(), recorder, worker, kernel, clock };
        for (ring, first, gather, packets) in [(1, 1000, 4000, 2), (0, 10_000, 10, 3)] {
            let mut stages = [0; burst_trace::stage::STAGES_MAX];
            stages[..Direction::of_ring(ring).stages().len()].fill(known.ticks(10));
            stages[Direction::of_ring(ring).position(Stage::Limited).unwrap()] = 0;
            // The third stage that takes time: gather, or place.
            let third = if ring == 1 { Stage::Gather } else { Stage::Place };
            stages[Direction::of_ring(ring).position(third).unwrap()] = known.ticks(gather);
            let first = known.at(first);
            let last = first + stages.iter().sum::<u64>();
            known.worker.burst(&BurstRecord {
                first,
                last,
                stages,
                packets,
                ring,
                ..Default::default()
            });
        }
        let (stage, start, end) = (KernelStage::Wakeup, known.at(980), known.at(999));
        let span = KernelSpan { stage, start, end, worker: Some(0), writer: 0 };
        known.kernel.kernel(&span);
        known
    }

    /// With interruptions: two in the first burst, one of them in its wake-up, one between bursts, and one of the front end.
    fn interrupted(directory: &Path, name: &[u8]) -> Self {
        let mut known = Self::new(directory, "{}");
        known.interrupt(InterruptionCause::Preempted, name, 1500, 4500);
        known.interrupt(InterruptionCause::Interrupt, b"eth0-rx-0", 985, 995);
        known.interrupt(InterruptionCause::PageFault, b"", 20_000, 21_000);
        let mut throttled = known.interruption(InterruptionCause::Throttled, b"", 30_000, 30_500);
        throttled.subject = Subject::FrontEnd;
        known.kernel.interruption(&throttled);
        known
    }

    fn interruption(
        &self,
        cause: InterruptionCause,
        name: &[u8],
        start: u64,
        end: u64,
    ) -> Interruption {
        let process = if cause == InterruptionCause::Preempted { 4711 } else { 0 };
        Interruption {
            thread: 812,
            cause,
            culprit: culprit(name, process),
            detail: if cause == InterruptionCause::Interrupt { 24 } else { 0 },
            ..preempted(self.at(start), self.at(end))
        }
    }

    fn interrupt(&mut self, cause: InterruptionCause, name: &[u8], start: u64, end: u64) {
        let interruption = self.interruption(cause, name, start, end);
        self.kernel.interruption(&interruption);
    }

    fn ticks(&self, us: u64) -> u64 {
        self.clock.ticks_in(Duration::from_micros(us))
    }

    fn at(&self, us: u64) -> u64 {
        self.zero + self.ticks(us)
    }

    fn source(&self) -> Source {
        Reader::open(self.recorder.path()).unwrap().into()
    }

    fn breakdown(&self) -> Breakdown {
        Breakdown::read(&self.source(), "vm0", Window::Held)
    }

    fn csv(&self) -> Vec<Vec<String>> {
        let mut out = Vec::new();
        write_csv(&mut out, &self.source(), |_| ()).unwrap();
        let text = String::from_utf8(out).unwrap();
        text.lines().map(|line| line.split(',').map(str::to_owned).collect()).collect()
    }

    /// The data of the page.
    fn page(&self) -> Value {
        let mut page = Vec::new();
        write_html(&mut page, &self.source(), None, None, "vm0", || ()).unwrap();
        let page = String::from_utf8(page).unwrap();
        let (_, data) = page.split_once("type=\"application/json\">").unwrap();
        serde_json::from_str(data.split_once("</script>").unwrap().0).unwrap()
    }
}

/// Nanoseconds as rounded microseconds.
fn us(ns: f64) -> u64 {
    (ns / 1000.0).round() as u64
}

/// The time in each row in which the worker did not run, µs.
fn not_running(way: &DirectionBreakdown) -> Vec<(&'static str, Option<u64>)> {
    let rows = way.stages.iter().chain([&way.total]);
    rows.map(|row| (row.stage, row.not_running_mean_ns.map(us))).collect()
}

#[test]
fn each_stage_has_the_time_in_which_its_worker_did_not_run() {
    let directory = tempfile::tempdir().unwrap();
    let breakdown = Known::interrupted(directory.path(), b"hog").breakdown();
    let expected = [
        ("guest-send", None),
        ("wakeup", Some(10)),
        ("notice", Some(0)),
        ("queued", Some(0)),
        ("limited", Some(0)),
        ("gather", Some(3000)),
        ("egress", Some(0)),
        ("complete", Some(0)),
        ("signal", Some(0)),
        ("host-tx", None),
        ("total", Some(3000)),
    ];
    assert_eq!(not_running(&breakdown.tx), expected);
    let rx = not_running(&breakdown.rx);
    let own = rx.iter().filter(|(_, us)| *us == Some(0)).count();
    assert_eq!((own, rx.len()), (Direction::Rx.stages().len() + 1, 11), "{rx:?}");
    let rows = breakdown.interruptions.unwrap();
    let rows: Vec<_> = rows
        .iter()
        .map(|row| (row.who(), &*row.words, row.count, us(row.total_ns as f64)))
        .collect();
    let expected = [
        ("worker 0".to_owned(), "preempted by hog (fifo 50)", 1, 3000),
        ("front end".to_owned(), "throttled by its CPU quota", 1, 500),
        ("worker 0".to_owned(), "interrupt 24 (eth0-rx-0)", 1, 10),
    ];
    assert_eq!(rows, expected, "that between two bursts held up no packet");
}

#[test]
fn the_mean_is_that_of_all_packets_and_an_interruption_of_two_bursts_counts_once() {
    let directory = tempfile::tempdir().unwrap();
    let mut known = Known::interrupted(directory.path(), b"hog");
    // A burst of 6 packets that ends while the hog runs: 8 packets in all, none interrupted but in `notice` and `gather`.
    let (first, stages) = (known.at(1400), [known.ticks(600), 0, 0, 0, 0, 0, 0]);
    let last = first + stages[0];
    let (ring, packets) = (1, 6);
    let burst = BurstRecord { first, last, stages, packets, ring, ..Default::default() };
    known.worker.burst(&burst);
    let breakdown = known.breakdown();
    let of = |stage: &str| breakdown.tx.stage(stage).unwrap().not_running_mean_ns.map(us);
    assert_eq!(of("notice"), Some(500 * 6 / 8));
    assert_eq!(of("gather"), Some(3000 * 2 / 8));
    assert_eq!(breakdown.tx.total.not_running_mean_ns.map(us), Some(1125));
    assert_eq!(breakdown.interruptions.unwrap()[0].count, 1);
}

#[test]
fn without_interruptions_no_report_has_a_word_of_them() {
    let directory = tempfile::tempdir().unwrap();
    let breakdown = Known::new(directory.path(), "{}").breakdown();
    assert_eq!(breakdown.interruptions, None);
    assert!(not_running(&breakdown.tx).iter().all(|(_, us)| us.is_none()));
    let text = table::to_table(&breakdown, None);
    assert!(!text.contains("not running"), "{text}");
    let object: Value = serde_json::from_str(&json::to_json(&breakdown)).unwrap();
    assert_eq!(object["interruptions"], Value::Null);
    assert_eq!(object["tx"]["total"]["not_running_mean_ns"], Value::Null);
}

#[test]
fn measured_and_none_is_zero_and_not_measured_has_its_reason() {
    let directory = tempfile::tempdir().unwrap();
    let facts = r#"{"kernel_stages":{"wakeup":"on","interruptions":"on"}}"#;
    let breakdown = Known::new(directory.path(), facts).breakdown();
    assert_eq!(breakdown.interruptions, Some(Vec::new()));
    assert_eq!(breakdown.tx.total.not_running_mean_ns, Some(0.0));
    let text = table::to_table(&breakdown, None);
    assert!(text.contains("not running: nothing kept a worker from running"), "{text}");
    let directory = tempfile::tempdir().unwrap();
    let facts = r#"{"kernel_stages":{"interruptions":"n/a: no BTF"}}"#;
    let text = table::to_table(&Known::new(directory.path(), facts).breakdown(), None);
    assert_eq!(text.matches("not running is not measured: no BTF\n").count(), 1, "{text}");
}

#[test]
fn what_came_while_nobody_measured_has_no_time() {
    let directory = tempfile::tempdir().unwrap();
    let known = Known::new(directory.path(), "{}");
    let found = |windows: &str| {
        let states = r#"{"interruptions":"on until 14:03:07 UTC"}"#;
        let facts = format!(r#"{{"kernel_stages":{states},"kernel_windows":{windows}}}"#);
        known.recorder.participants().set_facts(&facts);
        let source = Source::open(known.recorder.path()).unwrap();
        let Breakdown { tx, rx, .. } = Breakdown::read(&source, "vm0", Window::Held);
        [tx, rx].map(|way| way.total.not_running_mean_ns)
    };
    let first = format!("[[{},{}]]", known.at(0), known.at(9000));
    assert_eq!(found(&first), [Some(0.0), None]);
    assert_eq!(found(&format!("[[{},null]]", known.at(9000))), [None, Some(0.0)]);
    assert_eq!(found("[]"), [None; 2]);
    assert_eq!(found("null"), [Some(0.0); 2]);
}

#[test]
fn without_exits_of_kvm_the_table_and_the_object_say_why() {
    let directory = tempfile::tempdir().unwrap();
    let facts = r#"{"kernel_stages":{"interruptions":"on","kvm":"n/a: this kernel has no KVM"}}"#;
    let breakdown = Known::new(directory.path(), facts).breakdown();
    let text = table::to_table(&breakdown, None);
    assert!(text.contains("\nexits of KVM are not measured: this kernel has no KVM\n"), "{text}");
    let object: Value = serde_json::from_str(&json::to_json(&breakdown)).unwrap();
    assert_eq!(object["kvm"], "n/a: this kernel has no KVM");
    let directory = tempfile::tempdir().unwrap();
    let facts = r#"{"kernel_stages":{"interruptions":"on","kvm":"on"}}"#;
    let breakdown = Known::new(directory.path(), facts).breakdown();
    assert!(!table::to_table(&breakdown, None).contains("KVM"));
}

#[test]
fn the_table_has_a_column_after_the_mean_and_says_who() {
    let directory = tempfile::tempdir().unwrap();
    let text = table::to_table(&Known::interrupted(directory.path(), b"hog").breakdown(), None);
    let line = |begin: &str| {
        let found = text.lines().find(|line| line.trim_start().starts_with(begin));
        found.unwrap_or_else(|| panic!("no line {begin} in\n{text}"))
    };
    let words = |begin: &str| line(begin).split_whitespace().collect::<Vec<_>>().join(" ");
    assert_eq!(words("stage"), "stage tier count mean not running p50 p99 max share");
    assert!(words("gather").starts_with("gather D 2 4.00 ms 3.00 ms 4.00 ms"), "{text}");
    assert!(words("wakeup").starts_with("wakeup K 2 20.0 µs 10.0 µs 20.0 µs"), "{text}");
    assert!(words("egress").starts_with("egress D 2 10.0 µs 0 ns 10.0 µs"), "{text}");
    assert_eq!(words("guest-send").matches("n/a").count(), 6);
    assert_eq!(words("worker 0"), "worker 0 1 3.00 ms 3.00 ms preempted by hog (fifo 50)");
    assert!(words("front end").ends_with("throttled by its CPU quota"), "{text}");
}

#[test]
fn the_object_has_the_same() {
    let directory = tempfile::tempdir().unwrap();
    let text = json::to_json(&Known::interrupted(directory.path(), b"hog").breakdown());
    let object: Value = serde_json::from_str(&text).unwrap();
    let gather = &object["tx"]["stages"][5];
    assert_eq!(
        (&gather["stage"], us(gather["not_running_mean_ns"].as_f64().unwrap())),
        (&"gather".into(), 3000)
    );
    let first = &object["interruptions"][0];
    let keys: Vec<_> = first.as_object().unwrap().keys().cloned().collect();
    assert_eq!(keys.join(" "), "cause count culprit longest_ns subject total_ns words worker");
    assert_eq!(first["culprit"], serde_json::json!({"name": "hog", "class": "fifo 50"}));
    assert_eq!((&first["cause"], &first["worker"]), (&"preempted".into(), &0.into()));
    let second = &object["interruptions"][1];
    assert_eq!((&second["subject"], &second["worker"]), (&"front-end".into(), &Value::Null));
}

#[test]
fn csv_has_a_line_for_each_whatever_the_culprit_is_called() {
    let directory = tempfile::tempdir().unwrap();
    let lines = Known::interrupted(directory.path(), b"a,b\"\n/c").csv();
    let column = |name: &str| lines[0].iter().position(|it| it == name).unwrap();
    assert!(lines.iter().all(|line| line.len() == lines[0].len()), "{lines:?}");
    let names = ["worker", "sequence", "cause", "total_ns"].map(column);
    let found: Vec<_> = lines
        .iter()
        .filter(|line| line[0] == "interruption")
        .map(|line| {
            let [worker, thread, cause, total] = names.map(|at| &*line[at]);
            (worker, thread, cause, us(total.parse().unwrap()))
        })
        .collect();
    let expected = [
        ("0", "812", "preempted/worker/1/0/4711/fifo 50/a?b??/c", 3000),
        ("0", "812", "interrupt/worker/1/24/0//eth0-rx-0", 10),
        ("0", "812", "page-fault/worker/1/0/0//", 1000),
        ("", "812", "throttled/front-end/1/0/0//", 500),
    ];
    assert_eq!(found, expected);
    let start = |line: &[String]| line[column("start_ns")].parse::<u64>().unwrap();
    let interruption = lines.iter().find(|line| line[0] == "interruption").unwrap();
    assert_eq!(us((start(interruption) - start(&lines[1])) as f64), 500);
}

#[test]
fn a_capture_has_a_comment_for_each() {
    let directory = tempfile::tempdir().unwrap();
    let known = Known::interrupted(directory.path(), b"hog");
    let mut out = Vec::new();
    write_pcapng(&mut out, &known.source(), "vm0", |_| ()).unwrap();
    let text = String::from_utf8_lossy(&out);
    for (cause, tail, expected) in [
        ("preempted=", "ns worker=0 cpu=1 thread=812 culprit=4711 (hog, fifo 50)", 3000),
        ("interrupt=", "ns worker=0 cpu=1 thread=812 culprit=eth0-rx-0", 10),
        ("throttled=", "ns front-end cpu=1 thread=812", 500),
    ] {
        let (_, rest) = text.split_once(cause).unwrap_or_else(|| panic!("no {cause}"));
        let (ns, _) = rest.split_once(tail).unwrap_or_else(|| panic!("no {tail}"));
        assert_eq!(us(ns.parse().unwrap()), expected, "{cause}");
    }
}

#[test]
fn the_page_has_those_of_each_slow_burst_at_their_time() {
    let directory = tempfile::tempdir().unwrap();
    let data = Known::interrupted(directory.path(), b"hog").page();
    let times = data["ways"][0]["outliers"][0]["interruptions"].as_array().unwrap();
    let found: Vec<_> = times
        .iter()
        .map(|time| {
            let us = |key: &str| (time[key].as_f64().unwrap() / 1000.0).round();
            (time["words"].as_str().unwrap(), us("at_ns"), us("span_ns"), us("ns"))
        })
        .collect();
    let expected = [
        ("interrupt 24 (eth0-rx-0)", -15.0, 10.0, 10.0),
        ("preempted by hog (fifo 50)", 500.0, 3000.0, 3000.0),
    ];
    assert_eq!(found, expected);
    let none = data["ways"][1]["outliers"][0]["interruptions"].as_array().unwrap();
    assert!(none.is_empty(), "{none:?}");
    assert_eq!(data["interruptions"].as_array().unwrap().len(), 3);
    let directory = tempfile::tempdir().unwrap();
    assert_eq!(Known::new(directory.path(), "{}").page()["interruptions"], Value::Null);
}
