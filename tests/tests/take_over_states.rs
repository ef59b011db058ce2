//! Guests that are taken over while their front end is in the middle of something: a migration's dirty log is on, half a
//! message was sent, a control queue is in use; or whose daemon has a socket that was handed to it, or serves metrics.

use std::io::{Read as _, Write as _};
use std::net::{TcpListener, TcpStream};
use std::os::fd::AsFd as _;
use std::os::unix::net::{UnixListener, UnixStream};
use std::thread::sleep;
use std::time::Duration;

use frontend::raw::{self, request};
use frontend::{Guest, GuestOptions};
use ringscope_tests::daemon::Daemon;
use ringscope_tests::dirty::{log_for, written_by_device};
use ringscope_tests::eventually::{SOON, eventually, when};
use ringscope_tests::frames;
use rustix::event::{EventfdFlags, eventfd};

const REFLECT: [&str; 2] = ["--datapath", "reflect"];
/// Time in which a daemon has read what was sent to it.
const READ: Duration = Duration::from_millis(100);
const OK: u8 = 0;

/// A new daemon takes over, and the old one ends in order.
fn take_over(mut old: Daemon, arguments: &[&str]) -> Daemon {
    let daemon = old.successor(arguments).unwrap();
    assert_eq!(old.wait(SOON).unwrap().code(), Some(0), "{}", old.log());
    daemon
}

fn stop(guest: &mut Guest) {
    (0..2).for_each(|ring| assert!(guest.stop_ring(ring).is_ok()));
}

#[test]
fn a_dirty_log_stays_on() {
    let directory = tempfile::tempdir().unwrap();
    let mut daemon = Daemon::start(directory.path(), "vm", &REFLECT).unwrap();
    for packed in [false, true] {
        let options = GuestOptions::default().packed(packed);
        let mut guest = Guest::connect(daemon.socket(), options).unwrap();
        frames::come_back(&mut guest).unwrap();
        let log = log_for(&mut guest);
        guest.link().unwrap().set_logging(true).unwrap();
        daemon = take_over(daemon, &REFLECT);
        stop(&mut guest);
        log.clear().unwrap();
        for n in 0..60 {
            assert!(guest.pair(0).queue(&frames::frame(n, 60 + n * 23)).unwrap());
        }
        guest.pair(0).flush().unwrap();
        let written = written_by_device(&mut guest);
        let marked = log.pages().unwrap();
        let missing: Vec<_> = written.iter().filter(|page| !marked.contains(page)).collect();
        assert!(missing.is_empty(), "written and not marked: {missing:x?} of {written:x?}");
        // The migration fails, and the guest goes on.
        guest.link().unwrap().set_logging(false).unwrap();
        (0..2).for_each(|ring| guest.start_ring(ring).unwrap());
        for _ in 0..60 {
            assert!(guest.pair(0).receive_within(SOON).unwrap().is_some());
        }
        log.clear().unwrap();
        frames::come_back(&mut guest).unwrap();
        assert_eq!(log.pages().unwrap(), [0_u64; 0]);
        guest.disconnect();
        daemon.expect_log("the front end is gone");
    }
}

#[test]
fn the_new_daemon_reads_the_rest_of_a_message() {
    let directory = tempfile::tempdir().unwrap();
    let mut daemon = Daemon::start(directory.path(), "vm", &REFLECT).unwrap();
    let mut guest = Guest::connect(daemon.socket(), GuestOptions::default()).unwrap();
    frames::come_back(&mut guest).unwrap();
    // In the middle of the header, after it, and in the middle of the payload.
    for cut in [1, 11, 12, 13, 19] {
        let call = eventfd(0, EventfdFlags::CLOEXEC | EventfdFlags::NONBLOCK).unwrap();
        let whole = raw::message(request::SET_VRING_CALL, &1_u64.to_ne_bytes());
        let mut stream = guest.link().unwrap().stream();
        raw::send_bytes(stream, &whole[..cut], &[call.as_fd()]).unwrap();
        sleep(READ);
        daemon = take_over(daemon, &REFLECT);
        stream.write_all(&whole[cut..]).unwrap();
        let mut answer = [0; 20];
        stream.read_exact(&mut answer).unwrap();
        assert_eq!(answer[12..], [0; 8], "cut after {cut} bytes");
        // A ring in service signals a new descriptor at once.
        eventually(SOON, "a signal", || {
            let signalled = rustix::io::read(&call, &mut [0; 8]);
            when(signalled.is_ok(), format!("{signalled:?} after {cut} bytes"))
        });
    }
}

#[test]
fn a_control_queue_goes_on_with_what_was_set() {
    let directory = tempfile::tempdir().unwrap();
    let arguments = [&REFLECT[..], &["--queue-pairs", "2"]].concat();
    let set_pairs = |pairs: u8| [4, 0, pairs, 0];
    let is_reflected = |guest: &mut Guest, patience| {
        assert!(guest.pair(1).send(&frames::frame(7, 200)).unwrap());
        guest.pair(1).receive_within(patience).unwrap().is_some()
    };
    let mut daemon = Daemon::start(directory.path(), "vm", &arguments).unwrap();
    for options in frames::formats(&GuestOptions::default().queue_pairs(2).control()) {
        let mut guest = Guest::connect(daemon.socket(), options).unwrap();
        assert_eq!(guest.command(&set_pairs(2)).unwrap(), OK);
        frames::come_back(&mut guest).unwrap();
        daemon = take_over(daemon, &arguments);
        frames::come_back(&mut guest).unwrap();
        // The queue itself goes on where it stood.
        assert_eq!(guest.command(&set_pairs(1)).unwrap(), OK);
        frames::come_back_on(&mut guest, 0).unwrap();
        daemon = take_over(daemon, &arguments);
        frames::come_back_on(&mut guest, 0).unwrap();
        assert!(!is_reflected(&mut guest, READ), "the second pair is in use");
        assert_eq!(guest.command(&set_pairs(2)).unwrap(), OK);
        assert!(guest.pair(1).receive_within(SOON).unwrap().is_some());
        guest.disconnect();
        daemon.expect_log("the front end is gone");
    }
}

#[test]
fn a_socket_that_was_handed_over_goes_on() {
    let arguments = [&REFLECT[..], &["--fd", "9"]].concat();
    let directory = tempfile::tempdir().unwrap();
    let path = directory.path().join("handed.sock");
    let listener = UnixListener::bind(&path).unwrap();
    let daemon = Daemon::start_on(directory.path(), "vm", &arguments, listener.into()).unwrap();
    let mut guest = Guest::connect(&path, GuestOptions::default().packed(true)).unwrap();
    frames::come_back(&mut guest).unwrap();
    // The new daemon has no descriptor 9 of its own.
    let daemon = take_over(daemon, &arguments);
    frames::come_back(&mut guest).unwrap();
    guest.disconnect();
    daemon.expect_log("the front end is gone");
    let mut next = Guest::connect(&path, GuestOptions::default()).unwrap();
    frames::come_back(&mut next).unwrap();
    let mut last = take_over(daemon, &arguments);
    frames::come_back(&mut next).unwrap();
    assert!(last.terminate(SOON).unwrap().success());
    assert!(path.exists(), "the socket is removed by the process that made it, not by the daemon");

    // A connection, after whose end the daemon has nothing to do.
    let directory = tempfile::tempdir().unwrap();
    let (ours, theirs) = UnixStream::pair().unwrap();
    let daemon = Daemon::start_on(directory.path(), "vm", &arguments, theirs.into()).unwrap();
    let mut guest = Guest::over(ours, GuestOptions::default()).unwrap();
    frames::come_back(&mut guest).unwrap();
    let mut last = take_over(daemon, &arguments);
    frames::come_back(&mut guest).unwrap();
    drop(guest);
    assert!(last.wait(SOON).unwrap().success(), "{}", last.log());
}

/// The answer to a request for metrics, if anybody listens.
fn metrics(at: &str) -> Option<String> {
    let mut stream = TcpStream::connect(at).ok()?;
    stream.set_read_timeout(Some(SOON)).unwrap();
    stream.write_all(b"GET /metrics HTTP/1.1\r\n\r\n").ok()?;
    let mut answer = String::new();
    let _ = stream.read_to_string(&mut answer);
    answer.contains("ringscope_packets_total").then_some(answer)
}

#[test]
fn metrics_are_served_by_the_new_daemon() {
    let directory = tempfile::tempdir().unwrap();
    let free = TcpListener::bind("127.0.0.1:0").unwrap().local_addr().unwrap().to_string();
    let arguments = [&REFLECT[..], &["--metrics", &free]].concat();
    let mut daemon = Daemon::start(directory.path(), "vm", &arguments).unwrap();
    let mut guest = Guest::connect(daemon.socket(), GuestOptions::default()).unwrap();
    frames::come_back(&mut guest).unwrap();
    for _ in 0..2 {
        daemon = take_over(daemon, &arguments);
        frames::come_back(&mut guest).unwrap();
        // The old one has ended.
        eventually(SOON, "its frames in the metrics", || {
            let text = metrics(&free).unwrap_or_default();
            let counted = text.lines().filter(|line| line.starts_with("ringscope_packets_total"));
            when(counted.filter(|line| !line.ends_with(" 0")).count() > 0, text.clone())
        });
    }
}
