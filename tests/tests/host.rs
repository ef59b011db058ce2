//! What the host may do to the daemon while a guest is attached.

use std::fs;
use std::io::{self, Read as _};
use std::os::unix::net::UnixStream;
use std::process::Command;
use std::thread::sleep;
use std::time::Duration;

use burst_trace::{DropCause, Reader, location::recorder_path};
use frontend::{Frame, Guest, GuestOptions};
use lab::Signal;
use lab::outside::Outside;
use ringscope_tests::daemon::Daemon;
use ringscope_tests::eventually::{SOON, eventually, when};
use ringscope_tests::frames;

#[test]
fn an_interface_that_is_removed_costs_frames_with_a_cause_and_no_cpu() {
    let directory = tempfile::tempdir().unwrap();
    let mut outside = Outside::new("removed").unwrap();
    for poll in ["never", "adaptive"] {
        let tap = outside.add_tap(1).unwrap();
        let arguments = ["--datapath", &format!("tap:ifname={tap}"), "--poll", poll];
        let mut daemon = Daemon::start(directory.path(), poll, &arguments).unwrap();
        let mut guest = Guest::connect(daemon.socket(), GuestOptions::default()).unwrap();
        assert!(guest.pair(0).send(&frames::frame(1, 100)).unwrap());
        assert!(Command::new("ip").args(["link", "del", &tap]).status().unwrap().success());
        sleep(Duration::from_millis(100));
        assert!(guest.pair(0).send(&frames::frame(2, 100)).unwrap());
        sleep(Duration::from_millis(100));
        let before = daemon.cpu_time();
        sleep(Duration::from_secs(1));
        assert!(daemon.cpu_time() - before <= Duration::from_millis(20), "--poll {poll}: it spins");
        let reader = Reader::open(&recorder_path(directory.path(), poll)).unwrap();
        assert!((1..1000).contains(&reader.drops(0, DropCause::RxError)), "--poll {poll}");
        assert_eq!(reader.drops(1, DropCause::TxLinkDown), 1, "--poll {poll}");
        guest.stop_ring(0).unwrap();
        daemon.signal(Signal::TERM).unwrap();
        let ended = daemon.wait(Duration::from_secs(1)).unwrap();
        assert!(ended.success(), "{}", daemon.log());
    }
}

#[test]
fn at_rest_with_a_guest_it_uses_no_cpu() {
    let directory = tempfile::tempdir().unwrap();
    for poll in ["never", "adaptive"] {
        let arguments = ["--datapath", "reflect", "--poll", poll];
        let daemon = Daemon::start(directory.path(), poll, &arguments).unwrap();
        let mut guest = Guest::connect(daemon.socket(), GuestOptions::default()).unwrap();
        frames::come_back(&mut guest).unwrap();
        sleep(Duration::from_millis(50));
        let (time, switches) = (daemon.cpu_time(), wake_ups(&daemon));
        sleep(Duration::from_secs(1));
        assert_eq!(daemon.cpu_time(), time, "--poll {poll}");
        assert_eq!(wake_ups(&daemon), switches, "--poll {poll}");
    }
}

/// How often its threads have gone to sleep.
fn wake_ups(daemon: &Daemon) -> u64 {
    let tasks = fs::read_dir(format!("/proc/{}/task", daemon.pid())).unwrap();
    let of = |task: fs::DirEntry| {
        let status = fs::read_to_string(task.path().join("status")).unwrap();
        let line = status.lines().find_map(|line| line.strip_prefix("voluntary_ctxt_switches:"));
        line.unwrap().trim().parse::<u64>().unwrap()
    };
    tasks.map(|task| of(task.unwrap())).sum()
}

#[test]
fn frames_larger_than_every_buffer_do_not_keep_the_daemon() {
    let directory = tempfile::tempdir().unwrap();
    let daemon = Daemon::start(directory.path(), "big", &["--datapath", "null:rx=9000"]).unwrap();
    let options = GuestOptions::default().mergeable(false);
    let mut guest = Guest::connect(daemon.socket(), options).unwrap();
    let reader = Reader::open(&recorder_path(directory.path(), "big")).unwrap();
    eventually(SOON, "a frame dropped as too large", || {
        when(reader.drops(0, DropCause::RxTooBig) > 0, "none")
    });
    guest.stop_ring(0).unwrap();
    assert_eq!(reader.totals(0).packets, 0);
}

/// QEMU takes the used index for a ring's position the moment the connection closes: a frame that came
/// later would be written into buffers that the next back end uses again.
#[test]
fn no_ring_is_touched_once_the_connection_is_closed() {
    let directory = tempfile::tempdir().unwrap();
    for packed in [false, true] {
        let arguments = ["--datapath", "null:rx=64", "--poll", "always"];
        let mut daemon = Daemon::start(directory.path(), "ends", &arguments).unwrap();
        let mut connection = UnixStream::connect(daemon.socket()).unwrap();
        let options = GuestOptions::default().packed(packed);
        let size = options.queue_size;
        let mut guest = Guest::over(connection.try_clone().unwrap(), options).unwrap();
        connection.set_nonblocking(true).unwrap();
        daemon.signal(Signal::TERM).unwrap();

        let mut frame = Frame::default();
        let mut is_open = || {
            let read = connection.read(&mut [0]);
            read.is_err_and(|error| error.kind() == io::ErrorKind::WouldBlock)
        };
        while is_open() {
            guest.pair(0).receive_into(&mut frame).unwrap();
        }
        // What is there now came before; what is offered now stays the guest's.
        let mut receive = || guest.pair(0).receive_into(&mut frame).unwrap();
        let before = (0..=size).take_while(|_| receive()).count();
        assert!(before <= usize::from(size), "packed: {packed}");
        guest.pair(0).refill().unwrap();
        let ended = daemon.wait(Duration::from_secs(1)).unwrap();
        assert!(ended.success(), "{}", daemon.log());
        assert!(!guest.pair(0).receive_into(&mut frame).unwrap(), "packed: {packed}");
    }
}
