//! What takes the CPU from a worker is named while the daemon runs: by `ringscope top`, and by its cause in the metrics.

use std::io::{BufRead as _, BufReader, Read as _, Write as _};
use std::os::unix::net::UnixStream;
use std::path::Path;
use std::process::{Child, Command, Stdio};
use std::sync::atomic::{AtomicBool, Ordering};
use std::thread;
use std::time::{Duration, Instant};

use frontend::GuestOptions;
use ringscope_tests::control::Controlled;
use ringscope_tests::daemon::program;
use ringscope_tests::eventually::{SetOnDrop, eventually, when};
use ringscope_tests::frames;
use serde_json::Value;

const PATIENCE: Duration = Duration::from_secs(30);
/// Takes the CPU for some milliseconds at a time. It starts nothing that could outlive it, and ends by itself.
const HOG: &str = "n=0; while [ $n -lt 1500 ]; do i=0; while [ $i -lt 4000 ]; do i=$((i+1)); done; sleep 0.02; \
                   n=$((n+1)); done";

/// A process that is killed when this is dropped.
struct Killed(Child);

impl Drop for Killed {
    fn drop(&mut self) {
        let _ = self.0.kill();
        let _ = self.0.wait();
    }
}

/// The metric's value for workers that were preempted.
fn preempted_s(socket: &Path) -> f64 {
    let mut stream = UnixStream::connect(socket).unwrap();
    stream.write_all(b"GET /metrics HTTP/1.1\r\n\r\n").unwrap();
    let mut answer = String::new();
    stream.read_to_string(&mut answer).unwrap();
    let labels = "{guest=\"vm0\",cause=\"preempted\",subject=\"worker\"} ";
    let start = format!("ringscope_interrupted_seconds_total{labels}");
    let value = answer.lines().find_map(|line| line.strip_prefix(&start)).expect("the metric");
    value.parse().unwrap()
}

#[test]
fn a_program_that_takes_the_workers_cpu_is_named_and_its_time_counts() {
    expect_named(&["--kernel-stages"], |_| {});
}

#[test]
fn it_is_named_when_the_operator_begins_to_measure() {
    expect_named(&[], |rig| {
        let states = rig.asked(&["kernel-stages", "on"]);
        assert_eq!(states["kernel-stages"]["interruptions"], "on", "{states}");
    });
}

/// Starts a daemon, and `top`, then calls `begin`, and waits until top and metrics name the program.
fn expect_named(flags: &[&str], begin: impl FnOnce(&Controlled)) {
    let metrics = tempfile::tempdir().unwrap();
    let socket = metrics.path().join("metrics.sock");
    let metrics = format!("unix:{}", socket.display());
    // In a class above all other programs, the worker is preempted by nothing but ours, however busy this host is.
    let arguments = ["--cpus", "0", "--sched", "fifo:10", "--metrics", &metrics];
    let rig = Controlled::new("reflect", &[&arguments[..], flags].concat());
    let mut guest = rig.guest(GuestOptions::default());
    let mut hog = Command::new("taskset");
    let _hog = Killed(hog.args(["-c", "0", "chrt", "-f", "20", "sh", "-c", HOG]).spawn().unwrap());
    let mut top = Command::new(program("ringscope").unwrap());
    top.args(["top", "--json", "--interval", "0.5", "--run-dir"]).arg(rig.directory.path());
    let mut top = Killed(top.stdout(Stdio::piped()).spawn().unwrap());
    let mut lines = BufReader::new(top.0.stdout.take().unwrap()).lines().map(Result::unwrap);
    lines.next().unwrap();
    begin(&rig);
    let is_over = AtomicBool::new(false);
    thread::scope(|scope| {
        let _over = SetOnDrop(&is_over);
        scope.spawn(|| {
            while !is_over.load(Ordering::Relaxed) {
                frames::come_back(&mut guest).unwrap();
            }
        });
        named_by_top(lines);
        eventually(PATIENCE, "the time in the metrics", || {
            let found = preempted_s(&socket);
            when(found > 0.002, found)
        });
    });
}

/// Waits for a burst of which our program took most.
fn named_by_top(lines: impl Iterator<Item = String>) {
    let begun = Instant::now();
    let mut last = Value::Null;
    for line in lines {
        let line: Value = serde_json::from_str(&line).unwrap();
        for burst in line["outliers"].as_array().unwrap() {
            let total = burst["total_ns"].as_u64().unwrap();
            // It may be measured from the next line on.
            let Some(not_running) = burst["not_running_ns"].as_u64() else { continue };
            assert!(not_running <= total, "{burst}");
            let by = &burst["interrupted"];
            let name = by["culprit"]["name"].as_str().unwrap_or_default();
            // Between its loops the shell runs `sleep`, which has the CPU first.
            if ["sh", "sleep"].contains(&name) && not_running * 2 > total {
                assert_eq!((&by["cause"], &by["cpu"]), (&"preempted".into(), &0.into()), "{burst}");
                assert_eq!(by["words"], format!("preempted by {name} (fifo 20)"), "{burst}");
                return;
            }
            last = burst.clone();
        }
        assert!(begun.elapsed() < PATIENCE, "no burst names the program; the last one: {last}");
    }
}
