//! A new daemon takes every guest over from a running one, under load, and no front end notices: no frame is lost, none
//! comes twice, and all come in order. What goes wrong before the end leaves the running daemon as it was.
//!
//! `RINGSCOPE_TAKE_OVERS` is the number of take-overs of each guest.

use std::fs;
use std::io::Write as _;
use std::os::unix::fs::PermissionsExt as _;
use std::os::unix::net::UnixStream;
use std::os::unix::process::CommandExt as _;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::thread;
use std::time::{Duration, Instant};

use burst_trace::DropCause;
use frontend::{Guest, GuestOptions};
use ringscope_tests::daemon::{Daemon, program};
use ringscope_tests::eventually::{eventually, when};
use ringscope_tests::frames;
use ringscope_tests::lan::guest_table;
use ringscope_tests::take_over::{expect_short, gap, message, read, take_overs};
use rustix::process::geteuid;

const REFLECT: [&str; 2] = ["--datapath", "reflect"];
const SOON: Duration = Duration::from_secs(5);
/// Most frames that are on their way, more than a ring has.
const ON_THE_WAY_MAX: usize = 400;

/// Numbered frames of a guest whose back end sends them back.
struct Stream {
    guest: Guest,
    sent: usize,
    came: usize,
    /// When the last frame came, and the longest time without one since this was last taken.
    last: Instant,
    longest: Duration,
}

impl Stream {
    fn new(guest: Guest) -> Self {
        Self { guest, sent: 0, came: 0, last: Instant::now(), longest: Duration::ZERO }
    }

    fn turn(&mut self) {
        let pair = self.guest.pair(0);
        while self.sent - self.came < ON_THE_WAY_MAX && pair.queue(&frame(self.sent)).unwrap() {
            self.sent += 1;
        }
        pair.flush().unwrap();
        self.receive();
    }

    fn receive(&mut self) {
        while let Some(frame) = self.guest.pair(0).receive().unwrap() {
            let is_next = frame.bytes == self::frame(self.came);
            assert!(is_next, "frame {} is another one, or damaged", self.came);
            self.came += 1;
            self.longest = self.longest.max(self.last.elapsed());
            self.last = Instant::now();
        }
    }

    /// Sends and receives all the time while `what` goes on, and some time more. Returns the longest time without a frame.
    fn during<T: Send>(&mut self, what: impl FnOnce() -> T + Send) -> (T, Duration) {
        (self.last, self.longest) = (Instant::now(), Duration::ZERO);
        let result = thread::scope(|scope| {
            let other = scope.spawn(what);
            while !other.is_finished() {
                self.turn();
            }
            other.join().unwrap()
        });
        let until = Instant::now() + Duration::from_millis(20);
        while Instant::now() < until {
            self.turn();
        }
        (result, self.longest)
    }

    /// Waits for the frames that are on their way.
    fn settle(&mut self) {
        let until = Instant::now() + SOON;
        while self.came < self.sent {
            let lost = self.sent - self.came;
            assert!(Instant::now() < until, "{lost} of {} frames are lost", self.sent);
            self.receive();
        }
    }
}

fn frame(number: usize) -> Vec<u8> {
    frames::frame(number, 64 + number % 1400)
}

#[test]
fn no_frame_is_lost_however_often_daemons_take_over() {
    let directory = tempfile::tempdir().unwrap();
    let mut all = Vec::new();
    for (n, format) in ["split", "split, in order", "packed", "packed, in order"].iter().enumerate()
    {
        let name = format!("vm{n}");
        let mut daemon = Daemon::start(directory.path(), &name, &REFLECT).unwrap();
        let options = frames::formats(&GuestOptions::default())[n].clone();
        let mut stream = Stream::new(Guest::connect(daemon.socket(), options).unwrap());
        let (mut gaps, mut pauses) = (Vec::new(), Vec::new());
        for round in 0..take_overs(8) {
            // Not always with the same settings.
            let poll = ["never", "adaptive", "always"][round % 3];
            let arguments = [&REFLECT[..], &["--poll", poll]].concat();
            let (next, pause) = stream.during(|| daemon.successor(&arguments).unwrap());
            assert_eq!(daemon.wait(SOON).unwrap().code(), Some(0), "{}", daemon.log());
            assert!(daemon.log().contains("has taken over"), "{}", daemon.log());
            gaps.push(gap(&next.log()));
            pauses.push(pause);
            daemon = next;
        }
        stream.settle();
        let came = stream.came;
        frames::come_back(&mut stream.guest).unwrap();
        // What is left behind is as if the last daemon were the first one.
        assert!(daemon.recorder().exists() && daemon.reader().unwrap().is_running());
        assert!(daemon.terminate(SOON).unwrap().success(), "{}", daemon.log());
        for left in ["sock", "take-over", "lock", "trace.next"] {
            let path = directory.path().join(format!("{name}.{left}"));
            assert!(!path.exists(), "{} is left", path.display());
        }
        gaps.sort();
        pauses.sort();
        println!(
            "{format}: {} take-overs, {came} frames, 0 lost, 0 twice; no ring was served for p50 {:?}, max {:?}; the guest \
             got no frame for p50 {:?}, max {:?}",
            gaps.len(),
            gaps[gaps.len() / 2],
            gaps.last().unwrap(),
            pauses[pauses.len() / 2],
            pauses.last().unwrap()
        );
        all.extend(gaps);
    }
    expect_short("all", all);
}

#[test]
fn the_next_front_end_connects_to_the_new_daemon() {
    let directory = tempfile::tempdir().unwrap();
    let mut old = Daemon::start(directory.path(), "vm", &REFLECT).unwrap();
    // Nobody is connected when it takes over.
    let daemon = old.successor(&REFLECT).unwrap();
    assert_eq!(old.wait(SOON).unwrap().code(), Some(0), "{}", old.log());
    for packed in [false, true] {
        let options = GuestOptions::default().packed(packed);
        let mut guest = Guest::connect(daemon.socket(), options).unwrap();
        frames::come_back(&mut guest).unwrap();
    }
}

#[test]
fn a_front_end_that_is_taken_over_may_do_everything() {
    let directory = tempfile::tempdir().unwrap();
    let arguments = [&REFLECT[..], &["--queue-pairs", "2"]].concat();
    let old = Daemon::start(directory.path(), "vm", &arguments).unwrap();
    let options = GuestOptions { queue_pairs: 2, ..GuestOptions::default() }.packed(true);
    let mut guest = Guest::connect(old.socket(), options).unwrap();
    frames::come_back(&mut guest).unwrap();
    // One ring is stopped, and one disabled.
    guest.stop_ring(2).unwrap();
    let daemon = old.successor(&arguments).unwrap();
    frames::come_back_on(&mut guest, 0).unwrap();
    guest.start_ring(2).unwrap();
    frames::come_back(&mut guest).unwrap();
    guest.restart().unwrap();
    frames::come_back(&mut guest).unwrap();
    guest.reboot().unwrap();
    frames::come_back(&mut guest).unwrap();
    let last = daemon.successor(&arguments).unwrap();
    frames::come_back(&mut guest).unwrap();
    guest.disconnect();
    last.expect_log("the front end is gone");
    guest.reconnect(last.socket()).unwrap();
    guest.reboot().unwrap();
    frames::come_back(&mut guest).unwrap();
}

#[test]
fn all_guests_of_a_daemon_are_taken_over_together() {
    let directory = tempfile::tempdir().unwrap();
    let keys = ["datapath = 'reflect'", "datapath = 'null:rx=100'", "datapath = 'reflect'"];
    let tables = (0..).zip(keys).map(|(n, keys)| guest_table(directory.path(), n, keys));
    let config: String = tables.collect();
    let mut old = Daemon::start_with_config(directory.path(), "vm0", &config).unwrap();
    let connect = |n| {
        let path = directory.path().join(format!("vm{n}.sock"));
        Guest::connect(path, GuestOptions::default()).unwrap()
    };
    let [mut reflected, mut fed] = [0, 1].map(connect);
    let path = directory.path().join("config.toml");
    let daemon = old.successor(&["--config", path.to_str().unwrap()]).unwrap();
    assert_eq!(old.wait(SOON).unwrap().code(), Some(0), "{}", old.log());
    frames::come_back(&mut reflected).unwrap();
    for _ in 0..1000 {
        assert_eq!(fed.pair(0).receive_within(SOON).unwrap().unwrap().bytes.len(), 100);
    }
    let mut late = connect(2);
    frames::come_back(&mut late).unwrap();
    drop(daemon);
}

/// A daemon with a guest, of which a take-over must leave everything as it is.
struct Serving {
    directory: tempfile::TempDir,
    daemon: Daemon,
    stream: Stream,
}

impl Serving {
    fn new() -> Self {
        let directory = tempfile::tempdir().unwrap();
        let daemon = Daemon::start(directory.path(), "vm", &REFLECT).unwrap();
        let options = GuestOptions::default().packed(true);
        let stream = Stream::new(Guest::connect(daemon.socket(), options).unwrap());
        Self { directory, daemon, stream }
    }

    fn door(&self) -> PathBuf {
        self.directory.path().join("vm.take-over")
    }

    /// `what` happens under load, and the daemon goes on.
    fn goes_on_after(&mut self, said: &str, what: impl FnOnce(&Path, &Daemon) + Send) {
        let (door, daemon) = (self.door(), &self.daemon);
        let before = daemon.log().matches("did not take over").count();
        self.stream.during(|| what(&door, daemon));
        let log = {
            let until = Instant::now() + SOON;
            loop {
                let log = self.daemon.log();
                if log.matches("did not take over").count() > before || Instant::now() > until {
                    break log;
                }
                self.stream.turn();
            }
        };
        let line = log.lines().rfind(|line| line.contains("did not take over"));
        assert!(line.is_some_and(|line| line.contains(said)), "{said:?}: {log}");
        self.stream.settle();
        assert!(self.daemon.is_alive() && self.daemon.reader().unwrap().is_running());
        assert!(self.daemon.socket().exists() && self.door().exists());
    }
}

fn hello(door: &Path) -> String {
    let socket = door.with_extension("sock");
    format!(
        "{{\"hello\":{{\"program\":\"test\",\"guests\":[{{\"name\":\"vm\",\"datapath\":\"reflect\",\"queue_pairs\":1,\
         \"endpoint\":\"--socket-path {}\"}}]}}}}",
        socket.display()
    )
}

#[test]
fn whatever_goes_wrong_the_running_daemon_goes_on() {
    let mut serving = Serving::new();
    let say = |door: &Path, bytes: &[u8]| {
        let mut stream = UnixStream::connect(door).unwrap();
        stream.write_all(bytes).unwrap();
        stream
    };
    serving.goes_on_after("it is gone", |door, _| drop(say(door, b"")));
    serving.goes_on_after("does not begin as one does", |door, _| drop(say(door, &[7; 4096])));
    serving.goes_on_after("it does not answer", |door, _| {
        let _silent = say(door, b"RING");
        thread::sleep(Duration::from_millis(1500));
    });
    serving.goes_on_after("version 9", |door, _| {
        let mut stream = say(door, &message(9, "{}"));
        let answer = read(&mut stream);
        assert!(answer.contains("version 9") && answer.contains("version 2"), "{answer}");
    });
    serving.goes_on_after("something else than a message", |door, _| {
        drop(say(door, &message(2, "{\"hello\":7}")));
    });
    serving.goes_on_after("it has no guest 'vm'", |door, _| {
        drop(say(door, &message(2, "{\"hello\":{\"program\":\"\",\"guests\":[]}}")));
    });
    // It goes away when it has got all descriptors, and when it should start the rings.
    serving.goes_on_after("it is gone", |door, _| {
        let mut stream = say(door, &message(2, &hello(door)));
        assert!(read(&mut stream).contains("estate"));
    });
    serving.goes_on_after("no memory", |door, _| {
        let mut stream = say(door, &message(2, &hello(door)));
        assert!(read(&mut stream).contains("estate"));
        stream.write_all(&message(2, "{\"failed\":{\"why\":\"no memory\"}}")).unwrap();
    });
    for _ in 0..3 {
        serving.goes_on_after("it ended before it served the guests", |door, _| {
            let mut stream = say(door, &message(2, &hello(door)));
            assert!(read(&mut stream).contains("estate"));
            stream.write_all(&message(2, "\"ready\"")).unwrap();
            assert!(read(&mut stream).contains("start"));
            thread::sleep(Duration::from_millis(5));
        });
    }
    // Nothing of that keeps anybody from taking over.
    let (daemon, _) = serving.stream.during(|| serving.daemon.successor(&REFLECT).unwrap());
    assert_eq!(serving.daemon.wait(SOON).unwrap().code(), Some(0));
    serving.stream.settle();
    drop(daemon);
}

#[test]
fn a_new_daemon_that_does_not_fit_says_why() {
    let mut serving = Serving::new();
    for (arguments, said) in [
        (&["--datapath", "null"][..], "and with --socket-path"),
        (&["--datapath", "reflect", "--queue-pairs", "2"], "--queue-pairs 2 there"),
    ] {
        serving.goes_on_after(said, |_, daemon| {
            let error = daemon.successor(arguments).unwrap_err().to_string();
            assert!(error.contains("cannot take over: ") && error.contains(said), "{error}");
        });
    }
    // With other features than its guest has negotiated.
    let arguments = [&REFLECT[..], &["--features=-packed"]].concat();
    serving.goes_on_after("not offered: packed", |_, daemon| {
        let error = daemon.successor(&arguments).unwrap_err().to_string();
        assert!(error.contains("the running daemon goes on"), "{error}");
    });
    let error = serving.daemon.successor(&[&REFLECT[..], &["--pcap", "/tmp/x"]].concat());
    assert!(error.unwrap_err().to_string().contains("cannot take over with --pcap"));
    let another = Daemon::start(serving.directory.path(), "other", &REFLECT).unwrap();
    let mut command = Command::new(program("ringscoped").unwrap());
    command.args(REFLECT).args(["--take-over", &another.pid().to_string(), "--run-dir"]);
    command.arg(serving.directory.path()).arg("--socket-path").arg(serving.daemon.socket());
    let output = command.output().unwrap();
    let text = String::from_utf8(output.stderr).unwrap();
    assert!(text.contains("not process"), "{text}");
    serving.stream.settle();
}

#[test]
fn a_guest_with_faults_is_taken_over_and_has_those_of_the_new_daemon() {
    let directory = tempfile::tempdir().unwrap();
    let arguments = |every| ["--datapath", "reflect", "--fault", every];
    let old = Daemon::start(directory.path(), "vm", &arguments("drop:tx,every=5")).unwrap();
    let mut guest = Guest::connect(old.socket(), GuestOptions::default()).unwrap();
    let lost = |daemon: &Daemon| daemon.reader().unwrap().drops(1, DropCause::TxFault);
    let mut lose = |daemon: &Daemon, count| {
        let before = lost(daemon);
        for n in 0..10 {
            assert!(guest.pair(0).send(&frames::frame(n, 100)).unwrap());
        }
        eventually(SOON, &format!("{count} losses"), || {
            let found = lost(daemon) - before;
            when(found == count, found)
        });
    };
    lose(&old, 2);
    let new = old.successor(&arguments("drop:tx,every=2")).unwrap();
    eventually(SOON, "the new daemon to serve", || when(new.reader().is_ok(), "no recorder"));
    lose(&new, 5);
}

#[test]
fn a_stranger_is_refused() {
    if !geteuid().is_root() {
        eprintln!("not as root: there is no other user to be");
        return;
    }
    let mut serving = Serving::new();
    let door = serving.door();
    let mode = |path: &Path| fs::metadata(path).unwrap().permissions().mode() & 0o777;
    assert_eq!(mode(&door), 0o600);
    // As if somebody had opened it to all.
    let open =
        |path: &Path, mode| fs::set_permissions(path, fs::Permissions::from_mode(mode)).unwrap();
    open(&door, 0o666);
    open(serving.directory.path(), 0o755);
    for _ in 0..3 {
        serving.goes_on_after(
            "it is of user 65534, and only user 0 or root may do that",
            |door, daemon| {
                let mut command = Command::new(program("ringscoped").unwrap());
                command.args(REFLECT).arg("--take-over").arg(door).arg("--run-dir").arg("/nowhere");
                command.arg("--socket-path").arg(daemon.socket()).uid(65534);
                let output = command.output().unwrap();
                let text = String::from_utf8(output.stderr).unwrap();
                assert!(!output.status.success() && text.contains("cannot take over"), "{text}");
            },
        );
    }
}
