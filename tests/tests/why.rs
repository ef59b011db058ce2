//! `ringscope why`: a program that takes the worker's CPU is named, with its class and what to do.

use std::process::{Child, Command, Stdio};
use std::sync::atomic::{AtomicBool, Ordering};
use std::thread::{self, sleep};
use std::time::{Duration, Instant};

use frontend::{Guest, GuestOptions};
use lab::outside::Outside;
use ringscope_tests::daemon::{Daemon, program};
use ringscope_tests::eventually::SetOnDrop;
use ringscope_tests::pings::Pinger;
use rustix::process::{Pid, Signal, kill_process};
use serde_json::Value;

const PATIENCE: Duration = Duration::from_secs(5);
/// How long the hog runs each time, how long it does not, and how long all of that goes on.
const HELD: Duration = Duration::from_millis(3);
const PAUSE: Duration = Duration::from_millis(50);
const LONG: Duration = Duration::from_secs(2);

/// A program that can have the CPU in real time, is let run at times, and is ended with this.
struct Hog(Child);

impl Hog {
    fn start(cpu: &str) -> Self {
        let mut command = Command::new("chrt");
        command.args(["--fifo", "50"]).arg(program("ringscope").unwrap());
        command.args(["agent", "busy", "--cpu", cpu]).stdin(Stdio::null()).stdout(Stdio::null());
        let hog = Self(command.spawn().unwrap());
        hog.signal(Signal::STOP);
        hog
    }

    fn signal(&self, signal: Signal) {
        kill_process(Pid::from_child(&self.0), signal).unwrap();
    }

    fn run(&self, time: Duration) {
        self.signal(Signal::CONT);
        sleep(time);
        self.signal(Signal::STOP);
    }
}

impl Drop for Hog {
    fn drop(&mut self) {
        let _ = self.0.kill();
        let _ = self.0.wait();
    }
}

#[test]
fn a_program_that_takes_the_workers_cpu_is_named() {
    let directory = tempfile::tempdir().unwrap();
    let mut outside = Outside::new("why").unwrap();
    let tap = outside.add_tap(1).unwrap();
    let datapath = format!("tap:ifname={tap}");
    // In a class above all usual programs, the worker is preempted by nothing but the hog, however busy this host is.
    let arguments = ["--datapath", &datapath, "--poll", "never", "--kernel-stages", "--cpus", "1"];
    let arguments = [&arguments[..], &["--sched", "fifo:10"]].concat();
    let daemon = Daemon::start(directory.path(), "vm0", &arguments).unwrap();
    let mut guest = Guest::connect(daemon.socket(), GuestOptions::default()).unwrap();
    let mut pinger = Pinger::new(guest.pair(0), Pinger::MAC);
    pinger.ping_all(guest.pair(0), 20);
    let hog = Hog::start("1");
    let is_over = AtomicBool::new(false);
    thread::scope(|scope| {
        let _ends = SetOnDrop(&is_over);
        scope.spawn(|| {
            while !is_over.load(Ordering::Relaxed) {
                hog.run(HELD);
                sleep(PAUSE);
            }
        });
        let begun = Instant::now();
        while begun.elapsed() < LONG {
            assert!(pinger.ping(guest.pair(0), 100, PATIENCE), "a ping is lost");
            sleep(Duration::from_micros(200));
        }
    });
    drop(hog);
    // The thread that writes interruptions down reads them some milliseconds later.
    sleep(Duration::from_millis(50));
    let ringscope = |arguments: &[&str]| {
        let mut command = Command::new(program("ringscope").unwrap());
        command.args(arguments).args(["--name", "vm0", "--run-dir"]).arg(directory.path());
        let output = command.output().unwrap();
        assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
        String::from_utf8(output.stdout).unwrap()
    };
    expect_in_statistics(&serde_json::from_str(&ringscope(&["stats", "--json"])).unwrap());
    let text = ringscope(&["why", "--over", "1ms"]);
    let found: Value =
        serde_json::from_str(&ringscope(&["why", "--over", "1ms", "--json"])).unwrap();
    // On a virtual machine its hypervisor may have taken more of the CPU meanwhile than the hog.
    let all = found["culprits"].as_array().unwrap();
    let first = all.iter().find(|it| it["cause"] != "hypervisor").expect(&text);
    assert_eq!(
        (&first["cause"], &first["subject"]),
        (&"preempted".into(), &"worker".into()),
        "{text}"
    );
    assert_eq!(first["cpu"], 1, "{text}");
    assert_eq!(first["culprit"]["class"], "fifo 50", "{text}");
    assert_eq!(first["culprit"]["name"], "ringscope", "{text}");
    assert!(text.contains("took CPU 1 from worker 0") && text.contains("taskset"), "{text}");
}

/// The hog is among what kept the worker from running, and the packets that met it have that time in their stages or wake-up.
fn expect_in_statistics(stats: &Value) {
    let rows = stats["interruptions"].as_array().unwrap();
    let is_hog = |row: &&Value| row["worker"] == 0 && row["culprit"]["class"] == "fifo 50";
    let hog = rows.iter().find(is_hog).unwrap_or_else(|| panic!("no hog in {rows:?}"));
    assert_eq!(
        (&hog["cause"], &hog["culprit"]["name"]),
        (&"preempted".into(), &"ringscope".into())
    );
    assert!(hog["longest_ns"].as_u64().unwrap() > 1_000_000, "{hog}");
    let mut lost_ns = 0.0;
    for way in ["tx", "rx"].map(|way| &stats[way]) {
        let wakeup = way["stages"].as_array().unwrap().iter().find(|row| row["stage"] == "wakeup");
        for row in [&way["total"], wakeup.unwrap()] {
            let of = |key: &str| row[key].as_f64().unwrap_or(0.0);
            assert!(of("not_running_mean_ns") <= of("mean_ns") + 1.0, "{row}");
            lost_ns += of("not_running_mean_ns") * of("count");
        }
    }
    assert!(lost_ns > 1e6, "{lost_ns} ns in {stats}");
}
