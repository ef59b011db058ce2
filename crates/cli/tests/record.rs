//! `ringscope record` with several guests and with conditions, and the choice of a recorder among daemons that have ended.

use std::fs;
use std::os::unix::fs::FileExt as _;
use std::os::unix::process::ExitStatusExt as _;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Output, Stdio};
use std::time::{Duration, Instant};

use burst_trace::file::word;
use burst_trace::stage::STAGES_MAX;
use burst_trace::{BurstRecord, Clock, Recorder, RecorderOptions, Source, Writer};
use rustix::fs::{CWD, Mode, mkfifoat};
use rustix::process::{Pid, Signal, kill_process};
use tempfile::TempDir;

const SOON: Duration = Duration::from_secs(20);
/// Above Linux's largest process id (`PID_MAX_LIMIT`).
const NO_PROCESS: u64 = 1 << 23;

/// A run directory whose recorders this process writes.
struct Bench {
    directory: TempDir,
    clock: Clock,
    recorders: Vec<(&'static str, Recorder, Writer)>,
}

impl Bench {
    fn new(names: &[&'static str]) -> Self {
        let (directory, clock) = (TempDir::new().unwrap(), Clock::new());
        let recorder = |&name: &&'static str| {
            let options = RecorderOptions {
                path: directory.path().join(format!("{name}.trace")),
                workers: 1,
                queue_pairs: 1,
                capacity: 1 << 12,
                facts: String::new(),
            };
            let recorder = Recorder::create(&options, &clock).unwrap();
            let writer = recorder.writer(0, clock);
            (name, recorder, writer)
        };
        let recorders = names.iter().map(recorder).collect();
        Self { directory, clock, recorders }
    }

    /// A burst of this guest, now, that took so long.
    fn burst(&mut self, guest: usize, took: Duration) {
        let (last, ticks) = (self.clock.now(), self.clock.ticks_in(took));
        let mut stages = [0; STAGES_MAX];
        stages[0] = ticks;
        let record = BurstRecord {
            first: last - ticks,
            last,
            stages,
            packets: 1,
            ring: 1,
            ..BurstRecord::default()
        };
        self.recorders[guest].2.burst(&record);
    }

    /// Makes the recorder that of a process which is no more.
    fn kill(&self, guest: usize) {
        let file = fs::OpenOptions::new().write(true).open(self.recorders[guest].1.path()).unwrap();
        file.write_all_at(&NO_PROCESS.to_ne_bytes(), word::PID as u64 * 8).unwrap();
    }

    fn path(&self, name: &str) -> PathBuf {
        self.directory.path().join(name)
    }

    fn start(&self, arguments: &str) -> Child {
        let mut command = Command::new(env!("CARGO_BIN_EXE_ringscope"));
        command.args(arguments.split(' ')).arg("--run-dir").arg(self.directory.path());
        command.current_dir(self.directory.path()).stdin(Stdio::null());
        command.stdout(Stdio::piped()).stderr(Stdio::piped()).spawn().unwrap()
    }

    fn run(&self, arguments: &str) -> Output {
        self.start(arguments).wait_with_output().unwrap()
    }

    /// Writes short bursts of every guest, and from then on long ones of the last guest, until `record` ends.
    fn traffic_until_the_end(&mut self, mut record: Child) -> Output {
        let (start, guests) = (Instant::now(), self.recorders.len());
        while record.try_wait().unwrap().is_none() {
            if start.elapsed() > SOON {
                record.kill().unwrap();
                panic!("record does not end");
            }
            for guest in 0..guests {
                self.burst(guest, Duration::from_micros(1));
            }
            self.burst(guests - 1, Duration::from_millis(5));
            std::thread::sleep(Duration::from_millis(2));
        }
        record.wait_with_output().unwrap()
    }
}

fn records(path: &Path) -> u64 {
    let (mut records, source) = (0, Source::open(path).unwrap());
    source.read(|_| records += 1);
    records
}

fn said(output: &Output) -> String {
    String::from_utf8_lossy(&output.stderr).into_owned()
}

#[test]
fn a_slow_burst_of_one_guest_ends_the_recordings_of_all() {
    let mut bench = Bench::new(&["quiet", "vm0", "vm1"]);
    let record = bench.start("record --all --when tx.total>2ms --before 1 --after 0.1 -o .");
    let output = bench.traffic_until_the_end(record);
    assert!(output.status.success(), "{}", said(&output));
    for name in ["quiet.rec", "vm0.rec", "vm1.rec"] {
        assert!(records(&bench.path(name)) > 0, "{name}");
        assert!(said(&output).contains(&format!("./{name}: ")), "{}", said(&output));
    }
    assert_eq!(said(&output).matches("the burst: tx queue 1").count(), 1, "{}", said(&output));
    let output = bench.run("record --all --seconds 0.1 -o nowhere");
    assert!(said(&output).contains("expected a directory"), "{}", said(&output));
    bench.recorders.iter().enumerate().for_each(|(guest, _)| bench.kill(guest));
    let output = bench.run("record --all --seconds 0.1 -o .");
    assert_eq!(output.status.code(), Some(1));
    assert!(said(&output).contains("guests of running daemons"), "{}", said(&output));
}

#[test]
fn nothing_after_the_burst_is_waited_for_when_nothing_comes() {
    let mut bench = Bench::new(&["vm0"]);
    // After the burst, the guest is at rest.
    for after in ["0", "0.2"] {
        let record =
            bench.start(&format!("record --when tx.total>=1\u{b5}s --after {after} -o x.rec"));
        std::thread::sleep(Duration::from_millis(500));
        bench.burst(0, Duration::from_millis(5));
        let start = Instant::now();
        let output = record.wait_with_output().unwrap();
        assert!(start.elapsed() < SOON / 2);
        assert!(output.status.success(), "{}", said(&output));
        assert!(said(&output).contains("5.00 ms"), "{}", said(&output));
        assert!(records(&bench.path("x.rec")) > 0);
    }
}

#[test]
fn a_condition_that_nothing_fulfils_has_an_exit_code_of_its_own() {
    let bench = Bench::new(&["vm0"]);
    fs::write(bench.path("x.rec"), "old").unwrap();
    let output = bench.run("record --when tx.total>1s --seconds 0.1 -o x.rec");
    assert_eq!(output.status.code(), Some(3), "{}", said(&output));
    assert!(said(&output).contains("nothing fulfilled the condition"), "{}", said(&output));
    assert_eq!(fs::read(bench.path("x.rec")).unwrap(), b"old");
}

#[test]
fn a_stage_of_the_host_kernel_is_not_waited_for_in_vain() {
    let bench = Bench::new(&["vm0"]);
    let output = bench.run("record --when rx.inject>1us --seconds 0.1 -o x.rec");
    assert_eq!(output.status.code(), Some(1));
    let part = "--when waits for inject, which is not measured";
    assert!(
        said(&output).contains(part) && said(&output).contains("--kernel-stages"),
        "{}",
        said(&output)
    );
}

#[test]
fn a_daemon_that_has_ended_is_not_chosen_while_another_runs() {
    let bench = Bench::new(&["old", "vm0", "vm1"]);
    bench.kill(0);
    let output = bench.run("stats");
    assert!(said(&output).contains("found 2: vm0, vm1"), "{}", said(&output));
    bench.kill(2);
    let output = bench.run("stats --json");
    assert!(output.status.success(), "{}", said(&output));
    assert!(String::from_utf8_lossy(&output.stdout).contains("\"vm0\""));
    assert_eq!(said(&output), "");
    bench.kill(1);
    let output = bench.run("stats");
    assert!(said(&output).contains("found 3: old, vm0, vm1"), "{}", said(&output));
}

#[test]
fn what_a_dead_daemon_left_is_opened_and_called_that() {
    let bench = Bench::new(&["vm0"]);
    bench.kill(0);
    for arguments in ["stats", "report"] {
        let output = bench.run(arguments);
        assert!(output.status.success(), "{}", said(&output));
        assert_eq!(
            said(&output),
            "ringscope: the daemon of vm0 crashed or was killed; this is what it left\n"
        );
    }
    // By the name that it gets at the next start.
    let mut command = Command::new(env!("CARGO_BIN_EXE_ringscope"));
    let output = command.arg("report").arg(bench.path("vm0.trace.crashed")).output().unwrap();
    assert!(output.status.success(), "{}", said(&output));
    assert!(said(&output).contains("crashed or was killed"), "{}", said(&output));
}

/// `timeout` of coreutils sends its signal to its child, and then to its process group: that is one.
#[test]
fn a_later_signal_ends_what_waits_for_a_reader_and_two_at_once_do_not() {
    let mut bench = Bench::new(&["vm0"]);
    mkfifoat(CWD, bench.path("pipe"), Mode::RUSR | Mode::WUSR).unwrap();
    let reader = fs::File::options().read(true).write(true).open(bench.path("pipe")).unwrap();
    let mut record = bench.start("record -o pipe");
    // More than a pipe holds.
    for _ in 0..20 {
        (0..200).for_each(|_| bench.burst(0, Duration::ZERO));
        std::thread::sleep(Duration::from_millis(20));
    }
    for pause in [20, 500, 500] {
        assert!(record.try_wait().unwrap().is_none());
        kill_process(Pid::from_child(&record), Signal::INT).unwrap();
        std::thread::sleep(Duration::from_millis(pause));
    }
    assert_eq!(record.wait().unwrap().signal(), Some(2));
    drop(reader);
}
