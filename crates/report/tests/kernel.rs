//! Times in the host kernel, in every file for other tools and on the page.

use std::time::Duration;

use burst_trace::{
    BurstRecord, Clock, Direction, KernelSpan, KernelStage, Reader, Recorder, RecorderOptions,
    Source, Stage,
};
use report::csv::write_csv;
use report::hlog::write_hlog;
use report::html::write_html;
use report::pcapng::write_pcapng;
use report::table::to_table;
use report::{Breakdown, Window};
use serde_json::{Value, json};

/// A burst each way, in microseconds: to the wire from 1000 to 1060, 2 packets, worker woken up at 980; to the guest from
/// 2000 to 2050, 3 packets. Then what the kernel had to do with them.
fn source(directory: &std::path::Path) -> (Source, Recorder) {
    let clock = Clock::new();
    let options = RecorderOptions {
        path: directory.join("vm0.trace"),
        workers: 2,
        queue_pairs: 1,
        capacity: 64,
        facts: "{}".into(),
    };
    let recorder = Recorder::create(&options, &clock).unwrap();
    let zero = clock.now();
    let ticks = |us| clock.ticks_in(Duration::from_micros(us));
    let (mut worker, mut kernel) = (recorder.writer(0, clock), recorder.writer(1, clock));
    for (ring, first, packets) in [(1, 1000, 2), (0, 2000, 3)] {
        let mut stages = [0; burst_trace::stage::STAGES_MAX];
        stages[..Direction::of_ring(ring).stages().len()].fill(ticks(10));
        stages[Direction::of_ring(ring).position(Stage::Limited).unwrap()] = 0;
        let first = zero + ticks(first);
        let last = first + stages.iter().sum::<u64>();
        let bytes = 64 * u32::from(packets);
        worker.burst(&BurstRecord {
            first,
            last,
            stages,
            packets,
            bytes,
            ring,
            ..Default::default()
        });
    }
    for (stage, start, end) in [
        (KernelStage::Wakeup, 980, 999),
        (KernelStage::HostTx, 1032, 1037),
        (KernelStage::HostRx, 1990, 1998),
        (KernelStage::Inject, 2045, 2075),
    ] {
        let (start, end) = (zero + ticks(start), zero + ticks(end));
        let worker = stage.is_of_a_worker().then_some(0);
        kernel.kernel(&KernelSpan { stage, start, end, worker, writer: 0 });
    }
    (Reader::open(recorder.path()).unwrap().into(), recorder)
}

/// Nanoseconds as rounded microseconds.
fn us(ns: &str) -> u64 {
    (ns.parse::<u64>().unwrap() + 500) / 1000
}

#[test]
fn csv_has_a_line_for_each() {
    let directory = tempfile::tempdir().unwrap();
    let (source, _recorder) = source(directory.path());
    let mut out = Vec::new();
    write_csv(&mut out, &source, |_| ()).unwrap();
    let text = String::from_utf8(out).unwrap();
    let lines: Vec<Vec<_>> = text.lines().map(|line| line.split(',').collect()).collect();
    let column = |name| lines[0].iter().position(|it| *it == name).unwrap();
    assert!(lines.iter().all(|line| line.len() == lines[0].len()), "{text}");
    let names = ["direction", "queue", "worker", "cause", "wakeup_ns", "total_ns"].map(column);
    let kernel: Vec<_> = lines.iter().filter(|line| line[0] == "kernel").collect();
    let found: Vec<_> = kernel
        .iter()
        .map(|line| {
            let [direction, queue, worker, cause, wakeup, total] = names.map(|at| line[at]);
            (direction, queue, worker, cause, wakeup, us(total))
        })
        .collect();
    assert_eq!(
        found,
        [
            ("", "", "0", "wakeup", "", 19),
            ("tx", "", "", "host-tx", "", 5),
            ("rx", "", "", "host-rx", "", 8),
            ("rx", "", "", "inject", "", 30),
        ]
    );
    let start = |line: &[&str]| line[column("start_ns")].parse::<u64>().unwrap();
    let (burst, woken) = (start(&lines[1]), start(kernel[0]));
    assert_eq!((burst - woken + 500) / 1000, 20);
}

#[test]
fn the_stages_of_a_line_of_csv_add_up_to_its_total() {
    let directory = tempfile::tempdir().unwrap();
    let (_, recorder) = source(directory.path());
    // Ticks that are no whole nanoseconds on any clock faster than 1 GHz.
    let clock = Clock::new();
    let mut worker = recorder.writer(0, clock);
    for n in 0..50 {
        let stages = [1 + n, 3 + 2 * n, 0, 7, 11, 1, 5 * n];
        let first = clock.now();
        let last = first + stages.iter().sum::<u64>();
        worker.burst(&BurstRecord {
            first,
            last,
            stages,
            packets: 1,
            ring: 1,
            ..Default::default()
        });
    }
    let source = Reader::open(recorder.path()).unwrap().into();
    let mut out = Vec::new();
    write_csv(&mut out, &source, |_| ()).unwrap();
    let text = String::from_utf8(out).unwrap();
    let names: Vec<_> = text.lines().next().unwrap().split(',').collect();
    let from = names.iter().position(|it| *it == "notice_ns").unwrap();
    let bursts = text.lines().filter(|line| line.starts_with("burst,tx"));
    let mut count = 0;
    for line in bursts {
        let times: Vec<u64> = line.split(',').skip(from).filter_map(|it| it.parse().ok()).collect();
        let (total, stages) = times.split_last().unwrap();
        assert_eq!(stages.iter().sum::<u64>(), *total, "{line}");
        count += 1;
    }
    assert!(count >= 50, "{text}");
}

#[test]
fn in_the_table_the_shares_are_of_the_daemons_own_stages() {
    let directory = tempfile::tempdir().unwrap();
    let (source, _recorder) = source(directory.path());
    let breakdown = Breakdown::read(&source, "vm0", Window::Held);
    let text = to_table(&breakdown, None);
    for (stage, share) in [("wakeup", "-"), ("host-tx", "-"), ("inject", "-"), ("egress", "%")] {
        let line = text.lines().find(|line| line.trim_start().starts_with(stage)).unwrap();
        assert!(line.trim_end().ends_with(share), "{line}");
    }
}

#[test]
fn an_interval_log_has_a_tag_for_each() {
    let directory = tempfile::tempdir().unwrap();
    let (source, _recorder) = source(directory.path());
    let mut out = Vec::new();
    write_hlog(&mut out, &source, |_| ()).unwrap();
    let text = String::from_utf8(out).unwrap();
    // Tag=tx.wakeup,START,LENGTH,MAX,HISTOGRAM: the longest in ns, to three digits.
    let longest = |tag: &str| {
        let line = text.lines().find(|line| line.starts_with(&format!("Tag={tag},")));
        let line = line.unwrap_or_else(|| panic!("no {tag} in {text}"));
        (line.split(',').nth(3).unwrap().parse::<f64>().unwrap() / 1000.0).round() as u64
    };
    for (tag, us) in [("tx.wakeup", 20), ("tx.host-tx", 5), ("rx.host-rx", 8), ("rx.inject", 30)] {
        assert_eq!(longest(tag), us, "{tag}");
    }
    assert_eq!((longest("tx.total"), longest("rx.total")), (60, 50));
    assert!(!text.contains("rx.wakeup"), "{text}");
}

#[test]
fn a_capture_has_a_comment_for_each() {
    let directory = tempfile::tempdir().unwrap();
    let (source, _recorder) = source(directory.path());
    let mut out = Vec::new();
    write_pcapng(&mut out, &source, "vm0", |_| ()).unwrap();
    let text = String::from_utf8_lossy(&out);
    for (head, tail, expected) in [
        ("wakeup=", "ns worker=0", 19),
        ("tx host-tx=", "ns", 5),
        ("rx host-rx=", "ns", 8),
        ("rx inject=", "ns", 30),
    ] {
        let (_, rest) = text.split_once(head).unwrap_or_else(|| panic!("no {head}"));
        let (ns, _) = rest.split_once(tail).unwrap_or_else(|| panic!("no {tail}"));
        assert_eq!(us(ns), expected, "{head}");
    }
}

#[test]
fn the_page_has_them_in_words_tables_distributions_and_the_bursts_they_belong_to() {
    let directory = tempfile::tempdir().unwrap();
    let (source, _recorder) = source(directory.path());
    let mut page = Vec::new();
    write_html(&mut page, &source, None, None, "vm0", || ()).unwrap();
    let page = String::from_utf8(page).unwrap();
    let (_, data) = page.split_once("type=\"application/json\">").unwrap();
    let data: Value = serde_json::from_str(data.split_once("</script>").unwrap().0).unwrap();
    assert!(data["trips"].is_null());
    let rounded = |time: &Value| {
        let us = |key: &str| (time[key].as_f64().unwrap() / 1000.0).round();
        json!([time["stage"], us("at_ns"), us("ns"), time["count"]])
    };
    for (way, expected, not_measured) in [
        (0, json!([["host-tx", 32.0, 5.0, 1], ["wakeup", -20.0, 20.0, 1]]), "guest-send."),
        (
            1,
            json!([["host-rx", -10.0, 8.0, 1], ["inject", 45.0, 30.0, 1]]),
            "wakeup, guest-receive.",
        ),
    ] {
        let way = &data["ways"][way];
        let found = way["outliers"][0]["kernel"].as_array().unwrap().iter().map(rounded);
        assert_eq!(Value::from_iter(found), expected);
        let words = way["words"].to_string();
        assert!(words.contains(&format!("Not measured here: {not_measured}")), "{words}");
        for stage in expected.as_array().unwrap().iter().map(|time| &time[0]) {
            let said = format!("{} ", stage.as_str().unwrap());
            let (_, said_of_kernel) =
                words.split_once("In the host kernel, beside these: ").unwrap();
            assert!(said_of_kernel.contains(&said), "{words}");
            let rows = way["stages"].as_array().unwrap();
            assert!(rows.iter().any(|row| row["stage"] == *stage && row["count"].is_u64()));
            let spreads = way["spreads"].as_array().unwrap();
            assert!(spreads.iter().any(|spread| spread["name"] == *stage), "{spreads:?}");
        }
    }
}
