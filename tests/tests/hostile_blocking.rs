//! Files on which calls never return: a pipe whose lock another process holds, a file of a file system that answers
//! neither `read` nor `statfs`. The daemon makes no such call itself: it goes on, and it ends when it is asked to.

use std::fs::File;
use std::io::{self, PipeReader};
use std::os::fd::{AsFd as _, BorrowedFd, OwnedFd};
use std::os::unix::net::UnixStream;
use std::path::Path;
use std::thread::JoinHandle;
use std::time::{Duration, Instant};

use frontend::raw::request::{GET_FEATURES, SET_VRING_CALL, SET_VRING_KICK};
use frontend::raw::{self, Handover};
use frontend::{Error, FileRegion, Guest, GuestOptions, RegionOptions};
use lab::outside::Outside;
use ringscope_tests::daemon::Daemon;
use ringscope_tests::eventually::{eventually, when};
use ringscope_tests::frames;
use ringscope_tests::fuse::NeverComes;
use ringscope_tests::pings::Pinger;
use ringscope_tests::processes::children;
use rustix::event::{EventfdFlags, eventfd};
use rustix::fs::{Mode, OFlags};
use rustix::process::Signal;
use tempfile::TempDir;

/// The server of [`NeverComes`].
const SERVER: &str = env!("CARGO_BIN_EXE_never-comes");
const SOON: Duration = Duration::from_secs(5);
/// Longest time until a daemon has ended that was asked to.
const ENDED: Duration = Duration::from_secs(2);

/// A pipe whose lock a thread of this process holds: it copies from a file whose contents never come.
struct Held {
    never: Option<NeverComes>,
    holder: Option<JoinHandle<File>>,
    writers: Vec<OwnedFd>,
    reader: Option<PipeReader>,
}

impl Held {
    /// A pipe with this many write ends, each opened by itself. Nobody holds its lock yet.
    fn new(directory: &Path, writers: usize) -> Self {
        let never = NeverComes::new(&directory.join("never"), SERVER).unwrap();
        let (reader, writer) = io::pipe().unwrap();
        let path = format!("/proc/self/fd/{}", std::os::fd::AsRawFd::as_raw_fd(&writer));
        let open = || rustix::fs::open(&path, OFlags::WRONLY | OFlags::CLOEXEC, Mode::empty());
        let mut ends: Vec<_> = (0..writers).map(|_| open().unwrap()).collect();
        ends.push(writer.into());
        Self { never: Some(never), holder: None, writers: ends, reader: Some(reader) }
    }

    /// From now on every `open`, `write` and last `close` of the pipe waits.
    fn hold(&mut self) {
        let never = self.never.as_mut().unwrap();
        let source = never.open().unwrap();
        let pipe = self.writers.pop().unwrap();
        self.holder = Some(std::thread::spawn(move || {
            let _ = rustix::fs::sendfile(&pipe, &source, None, 4096);
            source
        }));
        never.expect_read();
    }

    /// Sends write ends whose only other copies are then closed, so that the daemon would close them last.
    fn give(&mut self, daemon: &Daemon, link: &UnixStream, request: u32, count: usize) {
        daemon.hold().unwrap();
        self.send(link, request, count);
        daemon.signal(Signal::CONT).unwrap();
    }

    fn send(&mut self, link: &UnixStream, request: u32, count: usize) {
        let ends = self.writers.split_off(self.writers.len() - count);
        let borrowed: Vec<BorrowedFd<'_>> = ends.iter().map(|end| end.as_fd()).collect();
        let result = raw::send(link, request, &0_u64.to_ne_bytes(), &borrowed);
        if result.is_err() {
            // Otherwise closing the ends would wait for ever.
            self.release();
        }
        result.unwrap();
    }

    fn release(&mut self) {
        drop(self.never.take());
        let _ = self.holder.take().map(JoinHandle::join);
    }
}

impl Drop for Held {
    fn drop(&mut self) {
        // Closing the ends waits until then.
        self.release();
        self.writers.clear();
        drop(self.reader.take());
    }
}

/// The helper processes of a daemon.
fn helpers(daemon: &Daemon) -> Vec<u32> {
    let starters = children(daemon.pid()).unwrap();
    let starter = starters.into_iter().next().expect("the process that starts them");
    assert_eq!(name_of(starter).as_deref(), Some("ringscoped-fork"));
    children(starter).unwrap()
}

fn name_of(pid: u32) -> Option<String> {
    Some(std::fs::read_to_string(format!("/proc/{pid}/comm")).ok()?.trim().to_owned())
}

fn expect_helpers(daemon: &Daemon, expected: std::ops::RangeInclusive<usize>) -> Vec<u32> {
    eventually(SOON, &format!("{expected:?} helpers"), || {
        let found = helpers(daemon);
        let is_named = found.iter().all(|pid| name_of(*pid).as_deref() == Some("ringscoped-file"));
        when(is_named && expected.contains(&found.len()), format!("{found:?}")).map(|()| found)
    })
}

/// The number of pipes that a daemon has. It may have inherited some.
fn pipes(daemon: &Daemon) -> usize {
    let files = std::fs::read_dir(format!("/proc/{}/fd", daemon.pid())).unwrap();
    let links = files.flatten().filter_map(|file| std::fs::read_link(file.path()).ok());
    links.filter(|link| link.to_string_lossy().starts_with("pipe:")).count()
}

fn expect_gone(helpers: &[u32]) {
    eventually(SOON, "the helpers to end", || {
        let left: Vec<_> =
            helpers.iter().filter(|pid| name_of(**pid).is_some_and(|it| it != "init")).collect();
        when(left.is_empty(), format!("{left:?}"))
    });
}

fn expect_end(daemon: &mut Daemon) {
    let began = Instant::now();
    let status = daemon.terminate(ENDED).unwrap();
    assert_eq!(status.code(), Some(0), "{}", daemon.log());
    assert!(began.elapsed() < ENDED, "{:?}", began.elapsed());
}

fn read_answer(mut link: &UnixStream) {
    io::Read::read_exact(&mut link, &mut [0; 20]).unwrap();
}

fn reflect(directory: &TempDir) -> (Daemon, Guest) {
    let daemon = Daemon::start(directory.path(), "vm0", &["--datapath", "reflect"]).unwrap();
    let mut guest = Guest::connect(daemon.socket(), GuestOptions::default()).unwrap();
    frames::come_back(&mut guest).unwrap();
    (daemon, guest)
}

/// The pipe is held after the daemon has taken it, or before.
#[test]
fn a_pipe_that_another_process_holds_keeps_no_daemon_from_ending_and_no_tap_from_the_next_one() {
    let mut outside = Outside::new("held").unwrap();
    let datapath = format!("tap:ifname={}", outside.add_tap(1).unwrap());
    let arguments = ["--datapath", &datapath];
    let directory = tempfile::tempdir().unwrap();
    for is_held_before in [false, true] {
        let files = tempfile::tempdir().unwrap();
        let mut daemon = Daemon::start(directory.path(), "vm0", &arguments).unwrap();
        let mut guest = Guest::connect(daemon.socket(), GuestOptions::default()).unwrap();
        Pinger::new(guest.pair(0), Pinger::MAC).ping_all(guest.pair(0), 1);
        let mut held = Held::new(files.path(), 2);
        if is_held_before {
            held.hold();
        }
        // As call, and as kick, where a pipe is refused.
        let link = guest.link().unwrap().stream().try_clone().unwrap();
        held.give(&daemon, &link, SET_VRING_CALL, 1);
        if !is_held_before {
            read_answer(&link);
            held.hold();
        }
        held.give(&daemon, &link, SET_VRING_KICK, 1);
        // A signal for the ring with the pipe. Its write waits.
        guest.pair(0).receive_ring().driver().enable_notification();
        guest.pair(0).flush().unwrap();
        let stuck = expect_helpers(&daemon, 2..=2);
        expect_end(&mut daemon);
        let mut next = Daemon::start(directory.path(), "vm0", &arguments).unwrap();
        let mut guest = Guest::connect(next.socket(), GuestOptions::default()).unwrap();
        Pinger::new(guest.pair(0), Pinger::MAC).ping_all(guest.pair(0), 1);
        assert!(stuck.iter().all(|pid| name_of(*pid).is_some()), "the pipe was not held");
        held.release();
        expect_gone(&stuck);
        expect_end(&mut next);
    }
}

#[test]
fn a_killed_daemon_leaves_no_helper_and_no_lock() {
    let directory = tempfile::tempdir().unwrap();
    let files = tempfile::tempdir().unwrap();
    let (mut daemon, mut guest) = reflect(&directory);
    let inherited = pipes(&daemon);
    let mut held = Held::new(files.path(), 2);
    let link = guest.link().unwrap().stream().try_clone().unwrap();
    held.give(&daemon, &link, SET_VRING_CALL, 1);
    read_answer(&link);
    held.hold();
    held.give(&daemon, &link, SET_VRING_KICK, 1);
    let stuck = expect_helpers(&daemon, 2..=2);
    // What it has not given to a helper yet, it closes itself.
    eventually(SOON, "no pipe of the front end in the daemon", || {
        let found = pipes(&daemon);
        when(found == inherited, format!("{found}, {inherited} of them inherited"))
    });
    daemon.signal(Signal::KILL).unwrap();
    daemon.wait(ENDED).unwrap();
    drop(guest);
    let (mut next, _guest) = reflect(&directory);
    held.release();
    expect_gone(&stuck);
    expect_end(&mut next);
}

#[test]
fn a_helper_has_nothing_of_the_daemons_and_goes_with_its_pipe() {
    let directory = tempfile::tempdir().unwrap();
    let (daemon, mut guest) = reflect(&directory);
    let (mut reader, writer) = io::pipe().unwrap();
    let link = guest.link().unwrap().stream().try_clone().unwrap();
    raw::hand_over(&link, Handover::Call, 0, writer.as_fd()).unwrap();
    let helper = expect_helpers(&daemon, 1..=1)[0];
    io::Read::read_exact(&mut reader, &mut [0; 8]).unwrap();
    let mut files: Vec<_> = std::fs::read_dir(format!("/proc/{helper}/fd"))
        .unwrap()
        .map(|file| std::fs::read_link(file.unwrap().path()).unwrap())
        .map(|text| text.to_string_lossy().split(':').next().unwrap_or_default().to_owned())
        .collect();
    files.sort();
    let expected = ["/dev/null", "anon_inode", "pipe", "pipe", "socket", "socket"];
    assert_eq!(files, expected);
    let call = eventfd(0, EventfdFlags::CLOEXEC).unwrap();
    raw::hand_over(&link, Handover::Call, 0, call.as_fd()).unwrap();
    drop(writer);
    // Also no other process has the write end now.
    eventually(SOON, "the helper to end", || when(helpers(&daemon).is_empty(), "it is there"));
    assert_eq!(io::Read::read_to_end(&mut reader, &mut Vec::new()).unwrap() % 8, 0);
}

/// In messages that nobody reads: of a second front end, of one that waits to be accepted, of the one that is served.
#[test]
fn held_pipes_in_messages_that_are_not_read_hold_nobody_up() {
    let directory = tempfile::tempdir().unwrap();
    let files = tempfile::tempdir().unwrap();
    let (mut daemon, mut guest) = reflect(&directory);
    let mut held = Held::new(files.path(), 4);
    held.hold();
    for _ in 0..2 {
        // Held first: it sends the second front end away as soon as it sees it.
        daemon.hold().unwrap();
        let second = UnixStream::connect(daemon.socket()).unwrap();
        held.send(&second, SET_VRING_CALL, 1);
        daemon.signal(Signal::CONT).unwrap();
        // The one that is served stays, and the next one is refused as well.
        frames::come_back(&mut guest).unwrap();
        let mut third = UnixStream::connect(daemon.socket()).unwrap();
        third.set_read_timeout(Some(SOON)).unwrap();
        assert_eq!(io::Read::read(&mut third, &mut [0]).unwrap(), 0, "it is sent away");
    }
    // The request to end comes before the messages.
    daemon.hold().unwrap();
    let waiting = UnixStream::connect(daemon.socket()).unwrap();
    held.send(&waiting, SET_VRING_CALL, 1);
    held.send(guest.link().unwrap().stream(), SET_VRING_CALL, 1);
    daemon.signal(Signal::TERM).unwrap();
    daemon.signal(Signal::CONT).unwrap();
    expect_end(&mut daemon);
}

#[test]
fn more_held_pipes_than_a_message_takes_hold_nobody_up() {
    let directory = tempfile::tempdir().unwrap();
    let files = tempfile::tempdir().unwrap();
    let (mut daemon, guest) = reflect(&directory);
    let mut held = Held::new(files.path(), 290);
    held.hold();
    let mut guest = Some(guest);
    for (count, request) in [(250, SET_VRING_CALL), (20, GET_FEATURES), (20, SET_VRING_KICK)] {
        let mut front = guest.take().unwrap();
        held.give(&daemon, front.link().unwrap().stream(), request, count);
        front.disconnect();
        let mut next = Guest::connect(daemon.socket(), GuestOptions::default())
            .unwrap_or_else(|error| panic!("{error}: {}", daemon.log()));
        frames::come_back(&mut next).unwrap();
        guest = Some(next);
    }
    expect_end(&mut daemon);
}

#[test]
fn memory_of_a_file_system_that_does_not_answer_is_refused_and_holds_nobody_up() {
    for is_detached in [false, true] {
        let directory = tempfile::tempdir().unwrap();
        let files = tempfile::tempdir().unwrap();
        let (mut daemon, mut guest) = reflect(&directory);
        // Closed last: closing it waits for the server.
        let file;
        let mut never = NeverComes::new(&files.path().join("never"), SERVER).unwrap();
        file = never.open().unwrap();
        if is_detached {
            never.detach();
        }
        never.silence();
        let region = RegionOptions { address: 1 << 32, len: 4096 };
        let region = FileRegion { region, file: &file, offset: 0 };
        for _ in 0..2 {
            let link = guest.link().unwrap();
            for refused in [link.add_region(&region), link.offer_table(&[region])] {
                assert!(matches!(refused, Err(Error::Refused { .. })), "{refused:?}");
            }
            frames::come_back(&mut guest).unwrap();
        }
        let kind = if is_detached { "(unknown)" } else { "(fuse)" };
        daemon.expect_log(&format!("is of a file system {kind} whose pages may never come"));
        guest.disconnect();
        let mut next = Guest::connect(daemon.socket(), GuestOptions::default()).unwrap();
        frames::come_back(&mut next).unwrap();
        expect_end(&mut daemon);
    }
}
