//! `--isolate process`: a process for each guest or switch. What ends one of them is nobody else's business.

use std::fs;
use std::io::{Read as _, Write as _};
use std::os::unix::net::{UnixDatagram, UnixStream};
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Output, Stdio};
use std::thread::sleep;
use std::time::{Duration, Instant};

use burst_trace::Reader;
use burst_trace::location::recorder_path;
use frontend::{Guest, GuestOptions};
use ringscope_tests::daemon::program;
use ringscope_tests::eventually::{SOON, eventually, when};
use ringscope_tests::frames;
use ringscope_tests::lan::{frame, station};
use ringscope_tests::processes::children;
use ringscope_tests::trace::Trace;
use rustix::process::{Pid, Signal, kill_process, test_kill_process};

/// The file of three guests: one by itself, and two on a switch.
fn three(directory: &Path) -> String {
    let guest = |n: usize, keys: &str| {
        let at = directory.display();
        format!("[[guest]]\nname = 'vm{n}'\nsocket-path = '{at}/vm{n}.sock'\n{keys}\n")
    };
    let lan = "datapath = 'switch:lan'";
    [guest(0, "datapath = 'reflect'"), guest(1, lan), guest(2, lan)].concat()
}

/// A supervisor, which ends with the test.
struct Supervisor {
    child: Child,
    directory: PathBuf,
}

impl Supervisor {
    /// Starts it with this file, and waits until its guests are served.
    fn start(directory: &Path, config: &str) -> Self {
        let supervisor = Self::spawn(directory, config, |_| {});
        supervisor.await_log("guests are served, in");
        supervisor
    }

    fn spawn(directory: &Path, config: &str, change: impl FnOnce(&mut Command)) -> Self {
        fs::write(directory.join("config.toml"), config).unwrap();
        let mut command = Command::new(program("ringscoped").unwrap());
        command.arg("--config").arg(directory.join("config.toml"));
        command.arg("--run-dir").arg(directory).args(["--isolate", "process"]);
        let log = fs::File::create(directory.join("log")).unwrap();
        command.stdin(Stdio::null()).stderr(log);
        change(&mut command);
        Self { child: command.spawn().unwrap(), directory: directory.into() }
    }

    fn log(&self) -> String {
        fs::read_to_string(self.directory.join("log")).unwrap()
    }

    fn await_log(&self, text: &str) {
        eventually(SOON, text, || when(self.log().contains(text), self.log()));
    }

    /// The process that serves this guest.
    fn process_of(&self, guest: &str) -> Pid {
        // While one is started again, there is no recorder for a moment.
        eventually(SOON, "a recorder", || {
            let reader = Reader::open(&recorder_path(&self.directory, guest));
            let process = reader.map_err(|error| error.to_string())?.pid();
            Ok::<_, String>(Pid::from_raw(i32::try_from(process).unwrap()).unwrap())
        })
    }

    fn guest(&self, n: usize) -> Guest {
        let socket = self.directory.join(format!("vm{n}.sock"));
        Guest::connect(socket, GuestOptions::default()).unwrap()
    }

    fn end(&mut self) -> Option<i32> {
        kill_process(Pid::from_child(&self.child), Signal::TERM).unwrap();
        let begun = Instant::now();
        let status = self.child.wait().unwrap();
        assert!(begun.elapsed() < Duration::from_secs(2), "{:?}: {}", begun.elapsed(), self.log());
        status.code()
    }

    fn ctl(&self, arguments: &[&str]) -> Output {
        let mut command = Command::new(program("ringscope").unwrap());
        command.args(["ctl", "--run-dir"]).arg(&self.directory).args(arguments).output().unwrap()
    }
}

impl Drop for Supervisor {
    fn drop(&mut self) {
        // If it has ended already there is nothing more to be done.
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

fn is_gone(process: Pid) -> Result<(), String> {
    when(test_kill_process(process).is_err(), format!("{process:?} runs"))
}

/// Has a frame of the second guest reach the third one.
fn across(guests: &mut [Guest]) {
    let [one, other] = guests else { panic!("two guests") };
    let sent = frame(station(9), station(1), 1, 100);
    assert!(one.pair(0).send(&sent).unwrap());
    let came = other.pair(0).receive_within(SOON).unwrap().expect("the frame");
    assert_eq!(came.bytes, sent);
}

#[test]
fn a_process_that_is_killed_is_started_again_and_others_notice_nothing() {
    let directory = tempfile::tempdir().unwrap();
    let mut supervisor = Supervisor::start(directory.path(), &three(directory.path()));
    supervisor.await_log("3 guests are served, in 2 processes");
    let mut alone = supervisor.guest(0);
    let mut lan = [supervisor.guest(1), supervisor.guest(2)];
    frames::come_back(&mut alone).unwrap();
    across(&mut lan);
    let [own, other] = ["vm0", "vm1"].map(|name| supervisor.process_of(name));
    assert_ne!(own, other);
    assert_eq!(supervisor.process_of("vm2"), other, "a switch has one process");
    let names = children(supervisor.child.id()).unwrap();
    assert_eq!(names.len(), 2);

    for kill in 1..=3 {
        let before = supervisor.process_of("vm0");
        kill_process(before, Signal::KILL).unwrap();
        eventually(SOON, "another process", || {
            let now = supervisor.process_of("vm0");
            when(now != before && test_kill_process(now).is_ok(), supervisor.log())
        });
        // The others' connections stay.
        across(&mut lan);
        alone.reconnect(directory.path().join("vm0.sock")).unwrap();
        frames::come_back(&mut alone).unwrap();
        let said = "the process of 'vm0' was ended by signal 9; it is started again";
        assert_eq!(supervisor.log().matches(said).count(), kill);
    }
    assert_eq!(supervisor.process_of("vm1"), other);
    eventually(SOON, "the record of the restart", || {
        Trace::open(directory.path(), "vm0").last_gap().ok_or("none")
    });
    let all = children(supervisor.child.id()).unwrap();
    assert_eq!(supervisor.end(), Some(0), "{}", supervisor.log());
    for process in all {
        eventually(SOON, "its end", || is_gone(Pid::from_raw(process.cast_signed()).unwrap()));
    }
    for n in 0..3 {
        assert!(!directory.path().join(format!("vm{n}.sock")).exists());
    }
}

#[test]
fn a_fault_in_a_worker_ends_one_process_and_a_guest_that_fails_again_is_started_less_often() {
    let directory = tempfile::tempdir().unwrap();
    let config = three(directory.path()).replace("'reflect'", "'reflect'\nfault = ['panic:tx']");
    let mut supervisor = Supervisor::start(directory.path(), &config);
    let mut lan = [supervisor.guest(1), supervisor.guest(2)];
    let begun = Instant::now();
    for times in 1..=4 {
        // Its first frame ends it.
        let mut alone = supervisor.guest(0);
        let _ = alone.pair(0).send(&frames::frame(1, 100));
        let said = "the process of 'vm0' ended with exit code 70; it is started again";
        eventually(SOON, "the next fault", || {
            when(supervisor.log().matches(said).count() == times, supervisor.log())
        });
        across(&mut lan);
    }
    // 0, 100 and 200 ms before the second, third and fourth process.
    assert!(begun.elapsed() >= Duration::from_millis(300), "{:?}", begun.elapsed());
    assert_eq!(supervisor.end(), Some(0), "{}", supervisor.log());
}

#[test]
fn a_guest_that_cannot_be_set_up_leaves_nothing() {
    let directory = tempfile::tempdir().unwrap();
    let config = three(directory.path()).replace("'reflect'", "'tap:ifname=rs-none'");
    let mut supervisor = Supervisor::spawn(directory.path(), &config, |_| {});
    let status = supervisor.child.wait().unwrap();
    let log = supervisor.log();
    assert_eq!(status.code(), Some(1), "{log}");
    assert!(log.contains("no network interface 'rs-none'"), "{log}");
    let last = log.lines().last().unwrap();
    assert!(last.contains("the process of 'vm0' ended with exit code 1 before it served"), "{log}");
    let mut left: Vec<_> =
        directory.path().read_dir().unwrap().map(|it| it.unwrap().file_name()).collect();
    left.sort();
    assert!(left.iter().all(|name| !name.to_string_lossy().ends_with(".sock")), "{left:?}");
}

#[test]
fn processes_end_with_a_supervisor_that_is_killed() {
    let directory = tempfile::tempdir().unwrap();
    let supervisor = Supervisor::start(directory.path(), &three(directory.path()));
    let processes = ["vm0", "vm1"].map(|name| supervisor.process_of(name));
    drop(supervisor);
    for process in processes {
        eventually(SOON, "its end", || is_gone(process));
    }
    // Another one takes their place.
    let mut supervisor = Supervisor::start(directory.path(), &three(directory.path()));
    frames::come_back(&mut supervisor.guest(0)).unwrap();
    assert_eq!(supervisor.end(), Some(0), "{}", supervisor.log());
}

/// The processes of this run directory.
fn processes_in(directory: &Path) -> Vec<String> {
    let of = |entry: fs::DirEntry| {
        let line = fs::read_to_string(entry.path().join("cmdline")).ok()?;
        line.contains(directory.to_str()?).then_some(line)
    };
    fs::read_dir("/proc").unwrap().flatten().filter_map(of).collect()
}

#[test]
fn a_supervisor_that_is_killed_while_it_starts_leaves_no_process() {
    for n in 0..30 {
        let directory = tempfile::tempdir().unwrap();
        let supervisor = Supervisor::spawn(directory.path(), &three(directory.path()), |_| {});
        sleep(Duration::from_micros(300 * n));
        drop(supervisor);
        eventually(SOON, "the end of all processes", || {
            let left = processes_in(directory.path());
            when(left.is_empty(), format!("after {n}: {left:?}"))
        });
    }
}

#[test]
fn signals_at_any_time_end_no_process_that_starts() {
    let directory = tempfile::tempdir().unwrap();
    let mut supervisor = Supervisor::spawn(directory.path(), &three(directory.path()), |_| {});
    let process = Pid::from_child(&supervisor.child);
    eventually(SOON, "the first process", || {
        let found = children(supervisor.child.id()).unwrap_or_default();
        when(!found.is_empty(), supervisor.log())
    });
    while !supervisor.log().contains("guests are served, in") {
        kill_process(process, Signal::HUP).unwrap();
        assert!(supervisor.child.try_wait().unwrap().is_none(), "{}", supervisor.log());
        sleep(Duration::from_micros(500));
    }
    // One that is asked twice to end leaves nothing behind either.
    kill_process(process, Signal::TERM).unwrap();
    for _ in 0..20 {
        let _ = kill_process(process, Signal::TERM);
        let _ = kill_process(process, Signal::INT);
    }
    assert_eq!(supervisor.child.wait().unwrap().code(), Some(0), "{}", supervisor.log());
    let left = directory.path().read_dir().unwrap().map(|it| it.unwrap().file_name());
    let left: Vec<_> = left.filter(|name| name.to_string_lossy().ends_with(".lock")).collect();
    assert!(left.is_empty(), "{left:?}");
}

#[test]
fn the_end_of_a_process_is_heard_of_also_where_the_parent_ignores_such_ends() {
    let directory = tempfile::tempdir().unwrap();
    fs::write(directory.path().join("config.toml"), three(directory.path())).unwrap();
    let log = fs::File::create(directory.path().join("log")).unwrap();
    let mut command = Command::new("/bin/sh");
    command.args(["-c", "trap '' CHLD; exec \"$@\"", "sh"]).arg(program("ringscoped").unwrap());
    command.arg("--config").arg(directory.path().join("config.toml"));
    command.arg("--run-dir").arg(directory.path()).args(["--isolate", "process"]);
    let child = command.stdin(Stdio::null()).stderr(log).spawn().unwrap();
    let supervisor = Supervisor { child, directory: directory.path().into() };
    supervisor.await_log("guests are served, in");
    kill_process(supervisor.process_of("vm0"), Signal::KILL).unwrap();
    supervisor.await_log("the process of 'vm0' was ended by signal 9; it is started again");
}

/// The next message to the service manager.
fn heard(manager: &UnixDatagram) -> String {
    let mut message = [0; 256];
    let len = manager.recv(&mut message).expect("a message to the service manager");
    String::from_utf8(message[..len].to_vec()).unwrap()
}

#[test]
fn a_process_whose_worker_hangs_is_killed_and_the_service_manager_hears_that_all_is_well() {
    let directory = tempfile::tempdir().unwrap();
    let manager = UnixDatagram::bind(directory.path().join("notify")).unwrap();
    manager.set_read_timeout(Some(SOON)).unwrap();
    // Longer than the watchdog's interval.
    let hangs = "'reflect'\nfault = ['delay:tx.egress=1000000']";
    let config = three(directory.path()).replace("'reflect'", hangs);
    let mut supervisor = Supervisor::spawn(directory.path(), &config, |command| {
        command.env("NOTIFY_SOCKET", directory.path().join("notify"));
        command.env("WATCHDOG_USEC", "400000");
    });
    let first = std::iter::repeat_with(|| heard(&manager)).find(|message| message != "WATCHDOG=1");
    assert_eq!(first.unwrap(), "READY=1\nSTATUS=serves 3 guests");
    let (hung, other) = (supervisor.process_of("vm0"), supervisor.process_of("vm1"));
    let mut alone = supervisor.guest(0);
    alone.pair(0).send(&frames::frame(1, 100)).unwrap();
    eventually(SOON, "the end of the process that hangs", || is_gone(hung));
    supervisor.await_log("does not answer, and is killed");
    assert_eq!(heard(&manager), "WATCHDOG=1");
    assert_eq!(supervisor.process_of("vm1"), other);
    across(&mut [supervisor.guest(1), supervisor.guest(2)]);
    assert_eq!(supervisor.end(), Some(0), "{}", supervisor.log());
    let last = std::iter::repeat_with(|| heard(&manager)).find(|message| message != "WATCHDOG=1");
    assert_eq!(last.unwrap(), "STOPPING=1\nSTATUS=ends");
}

/// What is served at this address.
fn metrics(address: &Path) -> String {
    let mut stream = UnixStream::connect(address).unwrap();
    stream.write_all(b"GET /metrics HTTP/1.1\r\nHost: x\r\nConnection: close\r\n\r\n").unwrap();
    let mut text = String::new();
    stream.read_to_string(&mut text).unwrap();
    text
}

#[test]
fn each_process_has_a_control_socket_and_all_have_their_metrics_at_one_address() {
    let directory = tempfile::tempdir().unwrap();
    let at = directory.path().display();
    let keys =
        format!("metrics = 'unix:{at}/metrics'\ncontrol = '{at}/control'\nisolate = 'process'\n");
    let config = keys + &three(directory.path());
    let mut supervisor = Supervisor::start(directory.path(), &config);
    supervisor.await_log("3 guests are served, in 2 processes");
    let limit = supervisor.ctl(&["vm0", "limit", "tx", "5MB"]);
    assert!(limit.status.success(), "{}", String::from_utf8_lossy(&limit.stderr));
    for name in ["vm1", "vm2"] {
        let status = supervisor.ctl(&[name, "status"]);
        assert!(status.status.success(), "{}", String::from_utf8_lossy(&status.stderr));
    }
    let sockets = ["control-vm0", "control-vm1"].map(|name| directory.path().join(name).exists());
    assert_eq!(sockets, [true, true]);

    let mut alone = supervisor.guest(0);
    frames::come_back(&mut alone).unwrap();
    let packets = || {
        let text = metrics(&directory.path().join("metrics"));
        let begins = "ringscope_packets_total{guest=\"vm0\",direction=\"tx\"";
        let line = text.lines().find(|line| line.starts_with(begins));
        let line = line.unwrap_or_else(|| panic!("{text}"));
        line.rsplit(' ').next().unwrap().parse::<f64>().unwrap()
    };
    let before = packets();
    assert!(before > 0.0);
    // Those of a process that was started again begin at 0.
    let killed = supervisor.process_of("vm0");
    kill_process(killed, Signal::KILL).unwrap();
    eventually(SOON, "another process", || {
        when(supervisor.process_of("vm0") != killed, supervisor.log())
    });
    alone.reconnect(directory.path().join("vm0.sock")).unwrap();
    eventually(SOON, "its figures", || when(packets() < before, packets()));

    // SIGHUP reaches each, and none takes another's guests for its own.
    let limited = config.replace("'reflect'", "'reflect'\nlimit-tx = '7MB'");
    fs::write(directory.path().join("config.toml"), limited).unwrap();
    kill_process(Pid::from_child(&supervisor.child), Signal::HUP).unwrap();
    supervisor.await_log("vm0: limit-tx is 7MB");
    let log = supervisor.log();
    assert!(!log.contains("a guest that is new"), "{log}");
    assert!(!log.contains("no longer in"), "{log}");
    // A process that is asked to end is not started again.
    let stopped = supervisor.process_of("vm0");
    assert!(supervisor.ctl(&["vm0", "drain"]).status.success());
    eventually(SOON, "its end", || is_gone(stopped));
    supervisor.await_log("has ended as it was asked to, and is not started again");
    across(&mut [supervisor.guest(1), supervisor.guest(2)]);
    // Without a guest there is nothing to be measured.
    assert!(supervisor.ctl(&["vm1", "drain"]).status.success());
    assert_eq!(supervisor.child.wait().unwrap().code(), Some(0), "{}", supervisor.log());
}

#[test]
fn what_cannot_be_split_is_refused_in_one_sentence() {
    let directory = tempfile::tempdir().unwrap();
    let handed = three(directory.path()).replace("'reflect'", "'tap:fd=5'");
    let all = three(directory.path());
    let refused = |config: &str, change: fn(&mut Command), code: i32, part: &str| {
        let mut supervisor = Supervisor::spawn(directory.path(), config, change);
        let status = supervisor.child.wait().unwrap();
        let log = supervisor.log();
        assert!(status.code() == Some(code) && log.contains(part), "{status}: {log}");
    };
    refused(&handed, |_| {}, 2, "--isolate process cannot be used with a descriptor");
    let take = |command: &mut Command| {
        command.args(["--take-over", "1"]);
    };
    refused(&all, take, 2, "--isolate process cannot be used with --take-over");
    refused(&format!("isolate = 'guest'\n{all}"), |_| {}, 2, "expected process or none");
}
