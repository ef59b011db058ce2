//! The daemon as its operator meets it: what it says when something is not as it should be, and what it
//! leaves behind.

use std::fs;
use std::os::fd::OwnedFd;
use std::os::unix::fs::PermissionsExt as _;
use std::os::unix::net::{UnixListener, UnixStream};
use std::path::Path;
use std::process::{Command, Output, Stdio};
use std::sync::atomic::{AtomicBool, Ordering};
use std::thread::{scope, sleep};
use std::time::{Duration, Instant};

use burst_trace::{Reader, location::recorder_path};
use frontend::{Guest, GuestOptions};
use lab::Signal;
use lab::outside::Outside;
use ringscope_tests::daemon::{Daemon, program};
use ringscope_tests::eventually::{SetOnDrop, eventually, when};
use ringscope_tests::frames;
use rustix::process::{Pid, Resource, Rlimit, getrlimit, prlimit};
use serde_json::Value;

const SOON: Duration = Duration::from_secs(5);
const REFLECT: [&str; 2] = ["--datapath", "reflect"];

fn ringscoped(arguments: &[&str]) -> Command {
    let mut command = Command::new(program("ringscoped").unwrap());
    command.args(arguments).stdin(Stdio::null()).env_remove("RUST_LOG");
    command
}

/// A command for a daemon whose socket and recorder are in `directory`, named `name`.
fn in_directory(directory: &Path, name: &str, arguments: &[&str]) -> Command {
    with_run_dir(directory, directory, name, arguments)
}

fn with_run_dir(directory: &Path, run_dir: &Path, name: &str, arguments: &[&str]) -> Command {
    let mut command = ringscoped(arguments);
    command.arg("--socket-path").arg(directory.join(format!("{name}.sock")));
    command.arg("--run-dir").arg(run_dir);
    command
}

/// The command ends by itself, soon, with `code`.
fn ends_with(command: &mut Command, code: i32) -> Output {
    let mut child = command.stdout(Stdio::piped()).stderr(Stdio::piped()).spawn().unwrap();
    eventually(SOON, &format!("{command:?} to end"), || {
        when(child.try_wait().unwrap().is_some(), "that it runs")
    });
    let output = child.wait_with_output().unwrap();
    let said = String::from_utf8_lossy(&output.stderr);
    assert_eq!(output.status.code(), Some(code), "{command:?}: {said}");
    output
}

/// The command fails with exit code 1 and one sentence, which has all of `parts`. Lines of the log may
/// stand before it.
fn fails_saying(command: &mut Command, parts: &[&str]) {
    let output = ends_with(command, 1);
    assert!(output.stdout.is_empty());
    let said = String::from_utf8(output.stderr).unwrap();
    let sentences: Vec<&str> = said.lines().filter(|line| !line.starts_with('[')).collect();
    assert_eq!(sentences.len(), 1, "expected one sentence: {said}");
    assert!(sentences[0].starts_with("ringscoped: "), "{said}");
    for part in parts {
        assert!(sentences[0].contains(part), "no `{part}` in: {said}");
    }
}

fn names_in(directory: &Path) -> Vec<String> {
    let entries = fs::read_dir(directory).unwrap();
    let mut names: Vec<_> =
        entries.map(|entry| entry.unwrap().file_name().into_string().unwrap()).collect();
    names.sort();
    names
}

#[test]
fn wrong_flags_say_what_was_expected() {
    for (flags, part) in [
        ("", "--datapath"),
        ("--socket-path /s", "--datapath"),
        ("--datapath reflect", "--socket-path"),
        ("--socket-path /s --fd 3 --datapath reflect", "cannot be used with"),
        ("--client --fd 3 --datapath reflect", "--socket-path"),
        ("--socket-path /s --datapath wire", "expected tap:ifname=NAME, macvtap:ifname=NAME"),
        ("--socket-path /s --datapath tap", "expected ifname=NAME"),
        ("--socket-path /s --datapath switch", "expected switch:NAME[,uplink=SPEC]"),
        ("--socket-path /s --config /f", "cannot be used with"),
        ("--config /f --queue-pairs 1", "cannot be used with"),
        ("--config /rs-none", "/rs-none: No such file or directory"),
        ("--socket-path /s --datapath null:rx=5", "expected null:rx=BYTES from 14"),
        ("--socket-path /s --datapath reflect --poll often", "expected never, adaptive"),
        ("--socket-path /s --datapath reflect --queue-pairs 0", "0 is not in 1..=128"),
        ("--socket-path /s --datapath reflect --queue-size 100", "100 is not a power of two"),
        ("--socket-path /s --datapath reflect --mac 52:54", "52:54"),
        ("--socket-path /s --datapath reflect --cpus 1,x", "expected CPU numbers"),
        ("--socket-path /s --datapath reflect --cpus 0,1", "at most one CPU per queue"),
        ("--socket-path /s --datapath reflect --sched fifo:100", "PRIO from 1 to 99"),
        ("--socket-path /s --datapath reflect --trace maybe", "[possible values: on, off]"),
        ("--socket-path /s --datapath reflect --fault delay:wire=5", "expected one of the stages"),
        ("--socket-path /s --datapath reflect --fault drop=2", "above 0 and at most 1"),
        ("--socket-path /s --datapath reflect --fault error:EWHAT", "expected one of the errors"),
        ("--socket-path /s --datapath reflect --fault lose=1", "expected delay:STAGE=USEC, drop=P"),
        (
            "--socket-path /s --datapath reflect --pcap /f --trace off",
            "--pcap needs the time stamps",
        ),
        (
            "--socket-path /s --datapath tap:fd=5 --queue-pairs 2",
            "--datapath tap:fd=5 has one queue",
        ),
        ("--fd 5 --name a --datapath tap:fd=5", "descriptor 5 is named twice"),
        ("--socket-path /s --datapath reflect --name a/b", "is not a file name"),
        ("--fd 1 --datapath reflect", "1 is not in 3.."),
        ("--fd 3 --datapath reflect", "--name is missing"),
        ("--socket-path /s --datapath reflect --speed 9", "unexpected argument '--speed'"),
    ] {
        let flags: Vec<&str> = flags.split_whitespace().collect();
        let output = ends_with(&mut ringscoped(&flags), 2);
        let said = String::from_utf8(output.stderr).unwrap();
        assert!(said.starts_with("error: ") && said.contains(part), "{flags:?}: {said}");
        assert!(output.stdout.is_empty());
    }
}

#[test]
fn capabilities_are_json_for_management_tools() {
    let output = ends_with(&mut ringscoped(&["--print-capabilities"]), 0);
    let object: Value = serde_json::from_slice(&output.stdout).unwrap();
    assert_eq!(object["type"], "net");
    assert!(object["features"].is_array() && output.stderr.is_empty());
}

#[test]
fn a_tap_that_cannot_be_used_says_why_and_leaves_nothing() {
    let directory = tempfile::tempdir().unwrap();
    let mut outside = Outside::new("taps").unwrap();
    let tap = outside.add_tap(1).unwrap();
    let try_it = |ifname: &str, pairs: &str, parts: &[&str]| {
        let datapath = format!("tap:ifname={ifname}");
        let arguments = ["--datapath", &datapath, "--queue-pairs", pairs];
        fails_saying(&mut in_directory(directory.path(), "vm", &arguments), parts);
        assert!(names_in(directory.path()).is_empty());
    };
    try_it("rs-none", "1", &["no network interface 'rs-none'", "ip tuntap add dev rs-none"]);
    try_it("a-name-that-is-too-long", "1", &["no network interface"]);
    try_it(&tap, "2", &["has one queue, but 2 queue pairs", "multi_queue"]);
    try_it("lo", "1", &["'lo' is a network interface but no tap"]);
    try_it(outside.bridge(), "1", &["no tap"]);
    let other = tempfile::tempdir().unwrap();
    let datapath = format!("tap:ifname={tap}");
    let daemon = Daemon::start(other.path(), "first", &["--datapath", &datapath]).unwrap();
    try_it(&tap, "1", &["in use by another process"]);
    drop(daemon);
    Daemon::start(directory.path(), "vm", &["--datapath", &datapath]).unwrap();
}

/// A tap of one user. One that is nobody's is everybody's.
struct OwnedTap(String);

impl OwnedTap {
    fn new(user: &str) -> Self {
        let tap = Self(format!("rso{}", std::process::id()));
        tap.ip("add", &["mode", "tap", "user", user, "vnet_hdr"]);
        tap
    }

    fn ip(&self, verb: &str, rest: &[&str]) {
        let mut command = Command::new("ip");
        command.args(["tuntap", verb, "dev", &self.0]).args(rest);
        assert!(command.status().unwrap().success(), "{command:?}");
    }
}

impl Drop for OwnedTap {
    fn drop(&mut self) {
        self.ip("del", &["mode", "tap"]);
    }
}

/// As another user, with a copy of the program, because directories above it may be root's alone.
#[test]
fn without_permission_it_says_what_is_needed_and_leaves_nothing() {
    let directory = tempfile::tempdir().unwrap();
    let open = |path: &Path, mode| fs::set_permissions(path, fs::Permissions::from_mode(mode));
    open(directory.path(), 0o755).unwrap();
    let copy = directory.path().join("ringscoped");
    fs::copy(program("ringscoped").unwrap(), &copy).unwrap();
    let [private, public] = ["private", "public"].map(|name| directory.path().join(name));
    fs::create_dir(&private).unwrap();
    fs::create_dir(&public).unwrap();
    open(&private, 0o700).unwrap();
    open(&public, 0o777).unwrap();
    let owned = OwnedTap::new("1");
    let tap = format!("tap:ifname={}", owned.0);
    let try_it = |socket: &Path, run_dir: &Path, more: &[&str], parts: &[&str]| {
        let mut command = Command::new("setpriv");
        command.args(["--reuid", "65534", "--regid", "65534", "--clear-groups", "--"]);
        command.arg(&copy).arg("--socket-path").arg(socket.join("vm.sock"));
        command.arg("--run-dir").arg(run_dir).args(more).stdin(Stdio::null());
        fails_saying(&mut command, parts);
        assert!(names_in(&public).is_empty() && names_in(&private).is_empty());
    };
    try_it(&public, &public, &["--datapath", &tap], &["no permission to use tap", "CAP_NET_ADMIN"]);
    try_it(&private, &public, &REFLECT, &["cannot listen on", "Permission denied"]);
    try_it(&public, &private, &REFLECT, &["the flight recorder", "--run-dir"]);
    let real_time = ["--datapath", "reflect", "--sched", "fifo:5"];
    try_it(&public, &public, &real_time, &["--sched", "CAP_SYS_NICE"]);
}

#[test]
fn sockets_in_the_way_are_replaced_or_refused() {
    let directory = tempfile::tempdir().unwrap();
    let start = || Daemon::start(directory.path(), "vm", &REFLECT).unwrap();
    let mut daemon = start();
    assert!(!daemon.log().contains("left behind"));
    let other = tempfile::tempdir().unwrap();
    let second = &mut with_run_dir(directory.path(), other.path(), "vm", &REFLECT);
    fails_saying(second, &["is in use: another process listens on it"]);
    assert!(names_in(other.path()).is_empty());
    frames::come_back(&mut Guest::connect(daemon.socket(), GuestOptions::default()).unwrap())
        .unwrap();
    daemon.signal(Signal::KILL).unwrap();
    daemon.wait(SOON).unwrap();
    assert!(daemon.socket().exists());
    let mut daemon = start();
    let log = daemon.log();
    let replaced =
        log.lines().filter(|line| line.contains("left by a daemon that did not end in order"));
    assert_eq!(replaced.count(), 1, "{log}");
    frames::come_back(&mut Guest::connect(daemon.socket(), GuestOptions::default()).unwrap())
        .unwrap();
    daemon.signal(Signal::TERM).unwrap();
    assert_eq!(daemon.wait(SOON).unwrap().code(), Some(0));
    assert_eq!(names_in(directory.path()), ["vm.log", "vm.rings", "vm.trace", "vm.trace.crashed"]);

    fs::write(daemon.socket(), "mine").unwrap();
    let again = &mut in_directory(directory.path(), "vm", &REFLECT);
    fails_saying(again, &["exists and is not a socket"]);
    assert_eq!(fs::read_to_string(daemon.socket()).unwrap(), "mine");
    let none = directory.path().join("none");
    let nowhere = &mut with_run_dir(&none, directory.path(), "vm", &REFLECT);
    fails_saying(nowhere, &["cannot listen on", "there is no directory", "make it first"]);
    assert!(!none.exists());
}

#[test]
fn a_recorder_that_cannot_be_made_leaves_no_socket() {
    let directory = tempfile::tempdir().unwrap();
    let file = directory.path().join("file");
    fs::write(&file, "").unwrap();
    for run_dir in [&file, &file.join("below"), Path::new("/proc/none")] {
        let command = &mut with_run_dir(directory.path(), run_dir, "vm", &REFLECT);
        fails_saying(command, &["cannot make the flight recorder", "--run-dir"]);
        assert_eq!(names_in(directory.path()), ["file"]);
    }
}

#[test]
fn a_name_is_one_daemons_as_long_as_it_lives() {
    let directory = tempfile::tempdir().unwrap();
    let mut daemon = Daemon::start(directory.path(), "vm", &REFLECT).unwrap();
    let another = || {
        let mut command = in_directory(directory.path(), "another", &REFLECT);
        command.args(["--name", "vm"]);
        command
    };
    let pid = format!("process {}", daemon.pid());
    fails_saying(&mut another(), &["is being written by", &pid, "--name"]);
    assert_eq!(
        names_in(directory.path()),
        ["vm.lock", "vm.log", "vm.rings", "vm.sock", "vm.take-over", "vm.trace"]
    );
    daemon.signal(Signal::KILL).unwrap();
    daemon.wait(SOON).unwrap();
    // The name is free again, whoever has the process's number by now.
    let recorder = recorder_path(directory.path(), "vm");
    pretend_written_by(&recorder, std::process::id());
    let _next = Daemon::start(directory.path(), "vm", &REFLECT).unwrap();
    assert!(directory.path().join("vm.trace.crashed").exists());
}

/// Changes whom the header names (`burst_trace::file::word::PID`).
fn pretend_written_by(recorder: &Path, pid: u32) {
    use std::os::unix::fs::FileExt as _;
    let file = fs::OpenOptions::new().write(true).open(recorder).unwrap();
    let at = 8 * burst_trace::file::word::PID as u64;
    file.write_all_at(&u64::from(pid).to_le_bytes(), at).unwrap();
}

/// Starts a daemon with `fd` as its descriptor 9, by way of a shell.
fn handed_over(fd: impl Into<OwnedFd>, number: &str, directory: &Path) -> Command {
    let mut command = Command::new("/bin/sh");
    command.args(["-c", "exec 9<&0 </dev/null \"$@\"", "sh"]).arg(program("ringscoped").unwrap());
    command.args(["--datapath", "reflect", "--name", "vm", "--fd", number, "--run-dir"]);
    command.arg(directory).stdin(fd.into()).stderr(Stdio::null());
    command
}

#[test]
fn a_socket_can_be_handed_over_listening_or_connected() {
    let directory = tempfile::tempdir().unwrap();
    let path = directory.path().join("listening.sock");
    let listener = UnixListener::bind(&path).unwrap();
    let mut child = handed_over(listener, "9", directory.path()).spawn().unwrap();
    for _ in 0..2 {
        let mut guest = Guest::connect(&path, GuestOptions::default()).unwrap();
        frames::come_back(&mut guest).unwrap();
        guest.stop_ring(0).unwrap();
        drop(guest);
        sleep(Duration::from_millis(50));
    }
    child.kill().unwrap();
    child.wait().unwrap();
    assert!(path.exists(), "whoever made the socket cleans it up");

    let (ours, theirs) = UnixStream::pair().unwrap();
    theirs.set_nonblocking(true).unwrap();
    let mut child = handed_over(theirs, "9", directory.path()).spawn().unwrap();
    let mut guest = Guest::over(ours, GuestOptions::default()).unwrap();
    frames::come_back(&mut guest).unwrap();
    drop(guest);
    let what = "it to end, since its only front end is gone";
    let status = eventually(SOON, what, || child.try_wait().unwrap().ok_or("that it runs"));
    assert_eq!(status.code(), Some(0));
}

#[test]
fn a_descriptor_that_is_no_socket_of_a_front_end_is_refused() {
    let directory = tempfile::tempdir().unwrap();
    let null = || fs::File::open("/dev/null").unwrap();
    let refused = |fd: OwnedFd, number: &str, parts: &[&str]| {
        fails_saying(&mut handed_over(fd, number, directory.path()), parts);
        assert!(names_in(directory.path()).is_empty());
    };
    refused(
        null().into(),
        "9",
        &["file descriptor 9 of --fd is not a socket", "unix stream socket"],
    );
    refused(null().into(), "77", &["file descriptor 77 of --fd"]);
    // None of the daemon's own descriptors may be taken for one that was handed over.
    for number in ["3", "4", "5", "6", "7"] {
        let part = format!("file descriptor {number} of --fd");
        refused(null().into(), number, &[&part]);
    }
    let udp = std::net::UdpSocket::bind("127.0.0.1:0").unwrap();
    refused(udp.into(), "9", &["not a unix socket"]);
    let (datagrams, _other) = std::os::unix::net::UnixDatagram::pair().unwrap();
    refused(datagrams.into(), "9", &["expected a unix stream socket"]);
}

#[test]
fn a_front_end_that_there_is_no_room_for_is_refused_and_the_next_one_served() {
    let directory = tempfile::tempdir().unwrap();
    let mut daemon = Daemon::start(directory.path(), "vm", &REFLECT).unwrap();
    let process = Pid::from_raw(daemon.pid().cast_signed());
    // It has opened what serving needs once it has served somebody.
    drop(UnixStream::connect(daemon.socket()).unwrap());
    daemon.expect_log("the front end is gone");
    let open = fs::read_dir(format!("/proc/{}/fd", daemon.pid())).unwrap().count() as u64;
    let free = getrlimit(Resource::Nofile);
    // None to spare, and then one: enough to accept, and not for what else a connection needs.
    for spare in [0, 1] {
        let limit = Rlimit { current: Some(open + spare), maximum: free.maximum };
        prlimit(process, Resource::Nofile, limit).unwrap();
        let before = daemon.log().lines().count();
        let refused = UnixStream::connect(daemon.socket()).unwrap();
        sleep(Duration::from_millis(500));
        let lines = daemon.log().lines().count() - before;
        assert!((1..10).contains(&lines), "{lines} lines:\n{}", daemon.log());
        drop(refused);
    }
    // Each of what a connection needs may be the one that there is none left for.
    for spare in 2..16 {
        let limit = Rlimit { current: Some(open + spare), maximum: free.maximum };
        prlimit(process, Resource::Nofile, limit).unwrap();
        let front = UnixStream::connect(daemon.socket()).unwrap();
        sleep(Duration::from_millis(50));
        assert!(daemon.is_alive(), "{spare} to spare: {}", daemon.log());
        drop(front);
    }
    prlimit(process, Resource::Nofile, free).unwrap();
    let mut guest = Guest::connect(daemon.socket(), GuestOptions::default()).unwrap();
    frames::come_back(&mut guest).unwrap();
    assert!(daemon.is_alive());
}

#[test]
fn under_load_it_ends_within_a_second_and_its_socket_is_gone() {
    let directory = tempfile::tempdir().unwrap();
    for poll in ["never", "adaptive", "always"] {
        let arguments = ["--datapath", "reflect", "--poll", poll];
        let mut daemon = Daemon::start(directory.path(), "load", &arguments).unwrap();
        let mut guest = Guest::connect(daemon.socket(), GuestOptions::default()).unwrap();
        let done = AtomicBool::new(false);
        scope(|scope| {
            let _ends = SetOnDrop(&done);
            scope.spawn(|| {
                let pair = guest.pair(0);
                while !done.load(Ordering::Relaxed) {
                    while pair.queue(&[0x55; 200]).unwrap() {}
                    pair.flush().unwrap();
                    while pair.receive().unwrap().is_some() {}
                }
            });
            sleep(Duration::from_millis(300));
            let asked = Instant::now();
            daemon.signal(Signal::TERM).unwrap();
            let status = daemon.wait(SOON).unwrap();
            let took = asked.elapsed();
            assert_eq!(status.code(), Some(0), "{}", daemon.log());
            assert!(took < Duration::from_secs(1), "--poll {poll}: {took:?}");
        });
        assert!(!daemon.socket().exists());
        let reader = Reader::open(&recorder_path(directory.path(), "load")).unwrap();
        assert!(!reader.is_running() && reader.totals(1).packets > 1000);
        guest.check_canaries().unwrap();
    }
}

#[test]
fn statistics_of_a_live_daemon_have_the_documented_form() {
    let directory = tempfile::tempdir().unwrap();
    let daemon = Daemon::start(directory.path(), "vm", &REFLECT).unwrap();
    let mut guest = Guest::connect(daemon.socket(), GuestOptions::default()).unwrap();
    frames::come_back(&mut guest).unwrap();
    let mut command = Command::new(program("ringscope").unwrap());
    command.args(["stats", "--json", "--run-dir"]).arg(directory.path()).stdin(Stdio::null());
    let output = ends_with(&mut command, 0);
    let object: Value = serde_json::from_slice(&output.stdout).unwrap();
    let of_object = "clock cyclic features interruptions kvm migrations name queues restarted restarts rx sent_twice_max tx window_s";
    assert_eq!(keys(&object).join(" "), of_object);
    assert!(object["interruptions"].is_null(), "they are not measured");
    assert_eq!(object["name"], "vm");
    assert!(object["window_s"].as_f64().unwrap() > 0.0);
    for (way, stages) in [
        ("tx", "guest-send wakeup notice queued limited gather egress complete signal host-tx"),
        ("rx", "host-rx wakeup notice limited starved place publish signal inject guest-receive"),
    ] {
        let way = &object[way];
        let of_way = "bursts bytes counted drops gro_frames gro_mean_segments gro_segments packets stages total";
        assert_eq!(keys(way).join(" "), of_way);
        assert_eq!(way["packets"], 106);
        assert!(way["drops"].is_object());
        let all = way["stages"].as_array().unwrap();
        let names: Vec<&str> = all.iter().map(|stage| stage["stage"].as_str().unwrap()).collect();
        assert_eq!(names, stages.split(' ').collect::<Vec<_>>());
        for stage in all {
            check_stage(stage);
        }
        let mean = |of: &Value| of["mean_ns"].as_f64().unwrap_or(0.0);
        let (sum, total) = (all.iter().map(mean).sum::<f64>(), mean(&way["total"]));
        assert!((sum - total).abs() < 1.0, "the stages' means, {sum}, make the total's, {total}");
    }
}

fn check_stage(stage: &Value) {
    let figures = ["min_ns", "p50_ns", "p90_ns", "p99_ns", "p999_ns", "max_ns"];
    if stage["tier"] != "D" {
        assert!(stage["count"].is_null() && stage.get("mean_ns").is_none(), "{stage}");
        return;
    }
    assert_eq!(stage["count"], 106, "{stage}");
    let values: Vec<u64> = figures.iter().map(|name| stage[name].as_u64().unwrap()).collect();
    assert!(values.is_sorted(), "{stage}");
}

fn keys(of: &Value) -> Vec<&str> {
    let mut keys: Vec<_> = of.as_object().unwrap().keys().map(String::as_str).collect();
    keys.sort_unstable();
    keys
}
