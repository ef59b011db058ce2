//! How the daemon starts and ends: faults of its own, signals, its directory, and interfaces that another one serves.

use std::fs;
use std::os::unix::process::ExitStatusExt as _;
use std::path::Path;
use std::process::{Child, Command, Output, Stdio};
use std::sync::atomic::{AtomicBool, AtomicU32, Ordering};
use std::time::Duration;

use frontend::{Guest, GuestOptions};
use ringscope_tests::cable::{Cable, ip};
use ringscope_tests::daemon::{Daemon, program};
use ringscope_tests::eventually::{self, SetOnDrop, eventually};
use ringscope_tests::frames;
use ringscope_tests::lan::guest_table;
use rustix::process::{Pid, Signal, kill_process};

const SOON: Duration = Duration::from_secs(5);
const REFLECT: [&str; 2] = ["--datapath", "reflect"];
/// The status after a fault of its own.
const FAULT: Option<i32> = Some(70);

/// A process that ends with the test.
struct Running(Child);

impl Drop for Running {
    fn drop(&mut self) {
        // If it has ended already there is nothing more to be done.
        let _ = self.0.kill();
        let _ = self.0.wait();
    }
}

fn command(socket: &Path, run_dir: &Path, arguments: &[&str]) -> Command {
    let mut command = Command::new(program("ringscoped").unwrap());
    command.arg("--socket-path").arg(socket).arg("--run-dir").arg(run_dir).args(arguments);
    command.stdin(Stdio::null());
    command
}

fn said(output: &Output) -> String {
    String::from_utf8_lossy(&output.stderr).into_owned()
}

#[test]
fn a_worker_that_panics_ends_the_daemon_with_a_message_and_a_status() {
    let directory = tempfile::tempdir().unwrap();
    for direction in ["tx", "rx"] {
        let fault = format!("panic:{direction},after=3");
        let arguments = [&REFLECT[..], &["--fault", &fault]].concat();
        let mut daemon = Daemon::start(directory.path(), "vm", &arguments).unwrap();
        let mut guest = Guest::connect(daemon.socket(), GuestOptions::default()).unwrap();
        for n in 0..10 {
            let _ = guest.pair(0).send(&frames::frame(n, 100));
            let _ = guest.pair(0).receive_within(Duration::from_millis(20));
        }
        let status = daemon.wait(SOON).unwrap();
        assert_eq!(status.code(), FAULT, "{}", daemon.log());
        let log = daemon.log();
        assert!(log.contains("planted by --fault panic"), "{log}");
        let last = log.lines().last().unwrap();
        assert!(
            last.starts_with("ringscoped: ") && last.contains("panicked (see the message above)"),
            "{log}"
        );
        assert!(!daemon.socket().exists(), "the socket stays");
        assert!(daemon.reader().unwrap().totals(1).packets >= 2, "the recorder is lost");
    }
}

#[test]
fn a_worker_that_panics_has_the_other_guests_drained_first() {
    let directory = tempfile::tempdir().unwrap();
    let keys = ["datapath = 'reflect'\nfault = ['panic:tx']", "datapath = 'reflect'"];
    let config: String =
        (0..).zip(keys).map(|(n, keys)| guest_table(directory.path(), n, keys)).collect();
    let mut daemon = Daemon::start_with_config(directory.path(), "vm0", &config).unwrap();
    let socket = |n| directory.path().join(format!("vm{n}.sock"));
    let [mut faulty, mut other] =
        [0, 1].map(|n| Guest::connect(socket(n), GuestOptions::default()).unwrap());
    frames::come_back(&mut other).unwrap();
    let _ = faulty.pair(0).send(&frames::frame(0, 100));
    let status = daemon.wait(SOON).unwrap();
    assert_eq!(status.code(), FAULT, "{}", daemon.log());
    assert!(!socket(0).exists() && !socket(1).exists());
    // What the other guest sent has come back, and its rings were let go of in order.
    other.pair(0).reap().unwrap();
    assert!(daemon.log().contains("vm1: the front end is gone"), "{}", daemon.log());
}

#[test]
fn the_run_directory_is_there_before_the_socket_in_it() {
    let directory = tempfile::tempdir().unwrap();
    let run_dir = directory.path().join("new").join("ringscope");
    let socket = run_dir.join("vm0.sock");
    let mut daemon = Running(command(&socket, &run_dir, &REFLECT).spawn().unwrap());
    frames::come_back(&mut connect(&socket)).unwrap();
    terminate(&daemon);
    assert_eq!(daemon.0.wait().unwrap().code(), Some(0));

    let elsewhere = directory.path().join("elsewhere").join("vm0.sock");
    let output = command(&elsewhere, &run_dir, &REFLECT).output().unwrap();
    let said = said(&output);
    assert_eq!(output.status.code(), Some(1), "{said}");
    assert!(said.contains("no directory") && said.contains("make it first"), "{said}");
    assert!(!elsewhere.parent().unwrap().exists());
}

/// A guest of a daemon that may still open its socket.
fn connect(socket: &Path) -> Guest {
    eventually(eventually::SOON, "to be served", || Guest::connect(socket, GuestOptions::default()))
}

fn terminate(daemon: &Running) {
    kill_process(Pid::from_child(&daemon.0), Signal::TERM).unwrap();
}

#[test]
fn signals_that_are_ignored_stay_ignored_but_sigterm() {
    let directory = tempfile::tempdir().unwrap();
    for (ignored, ends) in
        [("HUP", Signal::INT), ("INT", Signal::HUP), ("HUP,INT,TERM", Signal::TERM)]
    {
        let socket = directory.path().join("vm0.sock");
        let plain = command(&socket, directory.path(), &REFLECT);
        // The process that started this test may have ignored signals, and that is inherited.
        let mut env = Command::new("env");
        env.arg("--default-signal").arg(format!("--ignore-signal={ignored}"));
        env.arg(plain.get_program()).args(plain.get_args()).stdin(Stdio::null());
        let mut daemon = Running(env.spawn().unwrap());
        let mut guest = connect(&socket);
        for (name, signal) in [("HUP", Signal::HUP), ("INT", Signal::INT)] {
            if ignored.contains(name) {
                kill_process(Pid::from_child(&daemon.0), signal).unwrap();
            }
        }
        for _ in 0..10 {
            frames::come_back(&mut guest).unwrap();
        }
        assert!(daemon.0.try_wait().unwrap().is_none(), "{ignored}: it has ended");
        kill_process(Pid::from_child(&daemon.0), ends).unwrap();
        let what = format!("a daemon that ignores {ignored} to end");
        let status = eventually(eventually::SOON, &what, || {
            daemon.0.try_wait().unwrap().ok_or("that it runs")
        });
        assert_eq!((status.code(), status.signal()), (Some(0), None), "{ignored}");
    }
}

#[test]
fn sighup_reads_the_file_again_and_follows_what_can_change() {
    let directory = tempfile::tempdir().unwrap();
    let table =
        |n, keys: &str| guest_table(directory.path(), n, &format!("datapath = 'reflect'\n{keys}"));
    let guests = [table(0, ""), table(1, "limit-tx = '1MB'")].concat();
    let mut daemon = Daemon::start_with_config(directory.path(), "vm0", &guests).unwrap();
    let mut guest = Guest::connect(daemon.socket(), GuestOptions::default()).unwrap();
    let file = directory.path().join("config.toml");
    let read_again = |daemon: &Daemon, text: &str, expected: &[&str]| {
        let before = daemon.log().len();
        fs::write(&file, text).unwrap();
        daemon.signal(Signal::HUP).unwrap();
        for part in expected {
            eventually(SOON, part, || {
                let log = daemon.log()[before..].to_owned();
                if log.contains(part) { Ok(()) } else { Err(log) }
            });
        }
        daemon.log()[before..].to_owned()
    };
    // A daemon that starts may not listen for the signal yet.
    frames::come_back(&mut guest).unwrap();
    let guests =
        [table(0, "limit-tx = '200MB'"), table(1, "poll = 'never'"), table(2, "")].concat();
    let said = read_again(
        &daemon,
        &format!("log-level = 'debug'\n{guests}"),
        &[
            "vm0: limit-tx is 200MB,burst=10 now",
            "vm1: limit-tx is off now",
            "vm1: other keys have changed",
            "vm2: a guest that is new",
            "config.toml was read again",
        ],
    );
    assert!(!said.contains("vm0: other keys"), "{said}");
    frames::come_back(&mut guest).unwrap();
    drop(guest);
    daemon.expect_log("DEBUG");
    read_again(
        &daemon,
        &format!("log-level = 'loud'\n{guests}"),
        &["nothing has changed by SIGHUP", "found 'loud'"],
    );
    read_again(&daemon, &guests.replace("200MB", "fast"), &["limit-tx", "found 'fast'"]);
    assert!(daemon.is_alive());
    assert!(daemon.terminate(Duration::from_secs(1)).unwrap().success());
}

#[test]
fn each_line_of_a_json_log_is_an_object() {
    let directory = tempfile::tempdir().unwrap();
    for (form, begins) in [("json", "{"), ("journal", "<6>")] {
        let arguments = [&REFLECT[..], &["--log-format", form]].concat();
        let mut daemon = Daemon::start(directory.path(), form, &arguments).unwrap();
        drop(Guest::connect(daemon.socket(), GuestOptions::default()).unwrap());
        daemon.expect_log("the front end is gone");
        assert!(daemon.terminate(SOON).unwrap().success());
        let log = daemon.log();
        assert!(log.lines().count() > 3, "{log}");
        for line in log.lines() {
            assert!(line.starts_with(begins), "{line}");
            if form == "json" {
                let object: serde_json::Value = serde_json::from_str(line).unwrap();
                let is_text = |key: &str| object[key].as_str().is_some_and(|it| !it.is_empty());
                assert!(["time", "level", "target", "message"].into_iter().all(is_text), "{line}");
            }
        }
    }
}

/// Sends without a pause until `is_over`, or until nobody takes the frames.
fn flood(guest: &mut Guest, is_over: &AtomicBool) {
    let sent = frames::frame(1, 1000);
    while !is_over.load(Ordering::Relaxed) {
        let pair = guest.pair(0);
        while pair.queue(&sent).unwrap_or(false) {}
        let _ = (pair.flush(), pair.reap());
        while pair.receive().is_ok_and(|frame| frame.is_some()) {}
    }
}

#[test]
fn a_daemon_under_load_ends_within_a_second() {
    let (tap, cable) = (Tap::new(), Cable::new());
    let tap = format!("tap:ifname={}", tap.0);
    let af_xdp = format!("af-xdp:ifname={},mode=generic", cable.interface());
    for datapath in [&tap, &af_xdp, "switch:lan", "reflect", "null:rx=1000"] {
        for limit in ["", "limit-tx = '100kB'\n"] {
            let directory = tempfile::tempdir().unwrap();
            let count = if datapath == "switch:lan" { 3 } else { 1 };
            let table =
                |n| guest_table(directory.path(), n, &format!("datapath = '{datapath}'\n{limit}"));
            let config: String = (0..count).map(table).collect();
            let mut daemon = Daemon::start_with_config(directory.path(), "vm0", &config).unwrap();
            let connect = |n| {
                let socket = directory.path().join(format!("vm{n}.sock"));
                Guest::connect(socket, GuestOptions::default()).unwrap()
            };
            let mut guests: Vec<Guest> = (0..count).map(connect).collect();
            let is_over = AtomicBool::new(false);
            std::thread::scope(|scope| {
                for guest in &mut guests {
                    scope.spawn(|| flood(guest, &is_over));
                }
                let _ended = SetOnDrop(&is_over);
                std::thread::sleep(Duration::from_millis(300));
                let status = daemon.terminate(Duration::from_secs(1)).unwrap();
                assert!(status.success(), "{datapath}: {status}: {}", daemon.log());
            });
            assert!(!directory.path().join("vm0.sock").exists());
        }
    }
}

/// A tap for several queues, removed when dropped.
struct Tap(String);

impl Tap {
    fn new() -> Self {
        static NEXT: AtomicU32 = AtomicU32::new(0);
        let number = NEXT.fetch_add(1, Ordering::Relaxed);
        let name = format!("rsq{}n{number}", std::process::id() % 100_000);
        ip(&format!("tuntap add dev {name} mode tap multi_queue vnet_hdr"));
        Self(name)
    }
}

impl Drop for Tap {
    fn drop(&mut self) {
        ip(&format!("link del {}", self.0));
    }
}

#[test]
fn a_second_daemon_on_an_interface_is_refused() {
    let (tap, cable) = (Tap::new(), Cable::new());
    let (macvtap, _) = cable.add_macvtap();
    for datapath in [format!("tap:ifname={}", tap.0), format!("macvtap:ifname={macvtap}")] {
        let (first, second) = (tempfile::tempdir().unwrap(), tempfile::tempdir().unwrap());
        let mut daemon = Daemon::start(first.path(), "vm", &["--datapath", &datapath]).unwrap();
        let socket = second.path().join("vm.sock");
        let refused =
            || command(&socket, second.path(), &["--datapath", &datapath]).output().unwrap();
        let output = refused();
        let said = said(&output);
        assert_eq!(output.status.code(), Some(1), "{said}");
        let expected = format!("is served by process {} already", daemon.pid());
        assert!(said.contains(&expected), "{said}");
        assert!(fs::read_dir(second.path()).unwrap().next().is_none(), "something is left");
        // The interface is free again, however the first one ended.
        daemon.signal(Signal::KILL).unwrap();
        daemon.wait(SOON).unwrap();
        let again = Daemon::start(second.path(), "vm", &["--datapath", &datapath]).unwrap();
        drop(again);
    }
}

/// A veth with both ends in this namespace, removed when dropped.
struct Veth([String; 2]);

impl Veth {
    fn new() -> Self {
        let ends = ["p", "q"].map(|end| format!("rsv{}{end}", std::process::id() % 100_000));
        ip(&format!("link add {} type veth peer name {}", ends[0], ends[1]));
        let veth = Self(ends);
        veth.0.iter().for_each(|end| ip(&format!("link set {end} up")));
        veth
    }
}

impl Drop for Veth {
    fn drop(&mut self) {
        ip(&format!("link del {}", self.0[0]));
    }
}

/// Most lines of a start with one guest.
const START_LINES_MAX: usize = 5;

/// What a daemon with the usual log level says at its start.
fn start_log(directory: &Path, arguments: &[&str]) -> String {
    let (socket, log) = (directory.join("vm0.sock"), directory.join("log"));
    let mut command = command(&socket, directory, arguments);
    command.env_remove("RUST_LOG").stderr(fs::File::create(&log).unwrap());
    let mut daemon = Running(command.spawn().unwrap());
    let said = eventually(SOON, "the daemon to record", || {
        let said = fs::read_to_string(&log).unwrap();
        if said.contains("to look: ") { Ok(said) } else { Err(said) }
    });
    terminate(&daemon);
    assert_eq!(daemon.0.wait().unwrap().code(), Some(0));
    said
}

#[test]
fn the_start_takes_five_lines_at_most_on_any_datapath() {
    let (tap, cable, veth) = (Tap::new(), Cable::new(), Veth::new());
    let [tap, wire, near] = [&tap.0, cable.interface(), &veth.0[0]];
    let (macvtap, _) = cable.add_macvtap();
    let mut all = vec![
        "reflect".to_owned(),
        "null:rx=64".into(),
        format!("tap:ifname={tap}"),
        format!("tap:ifname={tap},napi=on"),
        format!("tap:ifname={tap},engine=uring"),
        format!("macvtap:ifname={macvtap}"),
        format!("macvtap:ifname=new{},over={near}", std::process::id() % 100_000),
        "switch:lan".into(),
        format!("switch:lan,uplink=tap:ifname={tap}"),
        // Without XDP in its driver.
        format!("af-xdp:ifname={macvtap}"),
    ];
    // The other end of one is in another namespace.
    for interface in [wire, near] {
        for keys in ["", ",mode=generic", ",busy-poll=on", ",umem=guest", ",mode=generic,gro=off"] {
            all.push(format!("af-xdp:ifname={interface}{keys}"));
        }
        all.push(format!("switch:lan,uplink=af-xdp:ifname={interface},mode=generic"));
    }
    let further = ["--metrics=127.0.0.1:0", "--features=-packed", "--mtu=1400", "--trace-probe=7"];
    for datapath in all {
        for further in [&[][..], &further] {
            let directory = tempfile::tempdir().unwrap();
            let arguments = [&["--datapath", &datapath], further].concat();
            let said = start_log(directory.path(), &arguments);
            let lines = said.lines().count();
            assert!(lines <= START_LINES_MAX, "{datapath}: {lines} lines: {said}");
            for part in ["listening on ", "offering ", "forwarding through ", ", MTU ", "to look"] {
                assert!(said.contains(part), "{datapath}: no {part:?} in {said}");
            }
            let is_af_xdp = datapath.contains("af-xdp");
            assert_eq!(is_af_xdp, said.contains(": XDP in "), "{datapath}: {said}");
            assert_eq!(!further.is_empty(), said.contains("metrics at "), "{datapath}: {said}");
        }
    }
}

#[test]
fn the_start_names_what_a_veth_in_generic_mode_may_lose() {
    let (cable, veth) = (Cable::new(), Veth::new());
    let of = |interface: &str| {
        let directory = tempfile::tempdir().unwrap();
        let datapath = format!("af-xdp:ifname={interface},mode=generic");
        start_log(directory.path(), &["--datapath", &datapath])
    };
    let [near, far] = &veth.0;
    let said = of(near);
    for part in [
        format!("segmentation is off at {far}"),
        format!("ethtool -K {far} tx-vlan-hw-insert off"),
        format!("ethtool -K {far} tx-checksum-ip-generic off"),
    ] {
        assert!(said.contains(&part), "no {part:?} in {said}");
    }
    // It cannot be reached.
    let said = of(cable.interface());
    assert!(!said.contains("segmentation is off"), "{said}");
    for part in ["PEER tso off", "PEER tx-vlan-hw-insert", "PEER tx-checksum-ip-generic"] {
        assert!(said.contains(part), "no {part:?} in {said}");
    }
}
