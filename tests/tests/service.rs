//! The daemon under a service manager: what it tells systemd, whose sockets it uses, and its units.

use std::fs;
use std::os::unix::net::{UnixDatagram, UnixStream};
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::time::{Duration, Instant};

use frontend::{Guest, GuestOptions};
use ringscope_tests::daemon::program;
use ringscope_tests::eventually::{eventually, when};
use ringscope_tests::frames;
use rustix::process::{Pid, Signal, kill_process};

const SOON: Duration = Duration::from_secs(5);
/// The watchdog's interval, and in microseconds.
const INTERVAL: Duration = Duration::from_millis(400);
/// The worker hangs for this long, twice the watchdog's interval and more.
const HANGS: Duration = Duration::from_secs(1);

/// A process that ends with the test.
struct Running(Child);

impl Running {
    fn start(command: &mut Command) -> Self {
        Self(command.stdin(Stdio::null()).spawn().unwrap())
    }

    fn end(&mut self) {
        let process = Pid::from_child(&self.0);
        kill_process(process, Signal::TERM).unwrap();
        let status = self.0.wait().unwrap();
        assert!(status.success(), "{status}");
    }
}

impl Drop for Running {
    fn drop(&mut self) {
        // If it has ended already there is nothing more to be done.
        let _ = self.0.kill();
        let _ = self.0.wait();
    }
}

/// The next message to the service manager.
fn heard(manager: &UnixDatagram) -> String {
    let mut message = [0; 256];
    let length = manager.recv(&mut message).expect("a message to the service manager");
    String::from_utf8(message[..length].to_vec()).unwrap()
}

fn guest_at(socket: &Path) -> Guest {
    eventually(SOON, "the daemon's socket", || {
        Guest::connect(socket, GuestOptions::default()).map_err(|error| error.to_string())
    })
}

#[test]
fn the_service_manager_hears_of_start_and_end_and_nothing_from_a_daemon_whose_worker_hangs() {
    let directory = tempfile::tempdir().unwrap();
    let at = |name: &str| directory.path().join(name);
    let manager = UnixDatagram::bind(at("notify")).unwrap();
    manager.set_read_timeout(Some(SOON)).unwrap();
    let delay = format!("delay:tx.egress={}", HANGS.as_micros());
    let mut command = Command::new(program("ringscoped").unwrap());
    command.arg("--socket-path").arg(at("vm.sock")).arg("--run-dir").arg(directory.path());
    command.args(["--datapath", "reflect", "--fault", &delay]);
    command.env("NOTIFY_SOCKET", at("notify"));
    command.env("WATCHDOG_USEC", INTERVAL.as_micros().to_string());
    let mut daemon = Running::start(&mut command);
    assert_eq!(heard(&manager), "READY=1\nSTATUS=serves 1 guest");

    let begun = Instant::now();
    for _ in 0..3 {
        assert_eq!(heard(&manager), "WATCHDOG=1");
    }
    let took = begun.elapsed();
    assert!(took > INTERVAL, "more often than twice in {INTERVAL:?}: 3 in {took:?}");

    let mut guest = guest_at(&at("vm.sock"));
    guest.pair(0).send(&frames::frame(1, 100)).unwrap();
    let longest = (0..3).map(|_| {
        let before = Instant::now();
        assert_eq!(heard(&manager), "WATCHDOG=1");
        before.elapsed()
    });
    let longest = longest.max().unwrap();
    assert!(longest > HANGS / 2, "{longest:?} at most, though the worker hung for {HANGS:?}");

    daemon.end();
    let rest = std::iter::repeat_with(|| heard(&manager)).find(|message| message != "WATCHDOG=1");
    assert_eq!(rest.unwrap(), "STOPPING=1\nSTATUS=ends");
}

#[test]
fn a_socket_that_systemd_made_is_served_and_stays() {
    let directory = tempfile::tempdir().unwrap();
    let socket = directory.path().join("vm.sock");
    let activate = |path: &Path| {
        let log = fs::File::create(directory.path().join("log")).unwrap();
        let mut command = Command::new("systemd-socket-activate");
        command.arg("-l").arg(&socket).arg(program("ringscoped").unwrap());
        command.arg("--socket-path").arg(path).arg("--run-dir").arg(directory.path());
        command.args(["--datapath", "reflect"]).stderr(log);
        let running = Running::start(&mut command);
        eventually(SOON, "systemd's socket", || when(socket.exists(), "none"));
        running
    };
    let mut daemon = activate(&socket);
    let mut guest = guest_at(&socket);
    guest.pair(0).send(&frames::frame(7, 100)).unwrap();
    assert!(guest.pair(0).receive_within(SOON).unwrap().is_some(), "the frame comes back");
    drop(guest);
    daemon.end();
    assert!(socket.exists(), "the socket's file is systemd's");

    fs::remove_file(&socket).unwrap();
    let other = directory.path().join("other.sock");
    let mut daemon = activate(&other);
    // It starts with the first connection to systemd's socket.
    let _ignored = eventually(SOON, "systemd to listen", || UnixStream::connect(&socket));
    drop(guest_at(&other));
    daemon.end();
    let log = fs::read_to_string(directory.path().join("log")).unwrap();
    assert!(
        log.contains("made the socket") && log.contains("which no guest has as its --socket-path"),
        "{log}"
    );
}

/// The units of the package, as they are installed: a directory that `systemd-analyze` takes for the host.
fn units() -> (tempfile::TempDir, PathBuf) {
    let root = tempfile::tempdir().unwrap();
    let packaging = Path::new(env!("CARGO_MANIFEST_DIR")).join("../backend/packaging");
    let unit = root.path().join("ringscoped@vm0.service");
    fs::copy(packaging.join("ringscoped@.service"), &unit).unwrap();
    (root, unit)
}

#[test]
fn the_unit_exposes_little() {
    let (_root, unit) = units();
    let mut command = Command::new("systemd-analyze");
    // In tenths: 2.0 at most.
    let checked = command.args(["security", "--offline=true", "--threshold=20"]).arg(unit).output();
    let checked = checked.unwrap();
    assert!(checked.status.success(), "{}", String::from_utf8_lossy(&checked.stdout));
}
