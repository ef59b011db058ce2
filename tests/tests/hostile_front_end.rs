//! A front end that hands over what it should not, says nothing, or uses up what the daemon has.

use std::io::{self, Read as _, Write as _};
use std::net::{TcpListener, TcpStream};
use std::os::fd::{AsFd, OwnedFd};
use std::os::unix::net::{UnixListener, UnixStream};
use std::path::Path;
use std::sync::atomic::{AtomicBool, Ordering};
use std::thread::sleep;
use std::time::{Duration, Instant};

use frontend::raw::{self, Handover};
use frontend::{Error, Guest, GuestOptions};
use ringscope_tests::daemon::Daemon;
use ringscope_tests::eventually::{SetOnDrop, eventually};
use ringscope_tests::frames;
use ringscope_tests::lan::{Lan, frame, station};
use rustix::event::{EventfdFlags, epoll, eventfd};
use rustix::fs::{Mode, OFlags, inotify};
use rustix::io::ioctl_fionbio;
use rustix::process::{Resource, Rlimit, Signal, getrlimit, setrlimit};
use tempfile::TempDir;

const SOON: Duration = Duration::from_secs(5);
/// Time that a front end has for its first message (`FIRST_MESSAGE_TIME` of `vhost-control`).
const FIRST_MESSAGE: Duration = Duration::from_secs(5);
/// A daemon that is asked to end does so in this time, whatever its front end does.
const AT_ONCE: Duration = Duration::from_secs(1);

/// A daemon that reflects, and a guest on it.
struct Scene {
    guest: Guest,
    daemon: Daemon,
    directory: TempDir,
}

impl Scene {
    fn new() -> Self {
        let directory = tempfile::tempdir().unwrap();
        let daemon = Daemon::start(directory.path(), "vm0", &["--datapath", "reflect"]).unwrap();
        let guest = Guest::connect(daemon.socket(), GuestOptions::default()).unwrap();
        let mut scene = Self { guest, daemon, directory };
        frames::come_back(&mut scene.guest).unwrap();
        scene
    }

    fn hand_over(&mut self, what: Handover, ring: u16, descriptor: impl AsFd) -> Result<(), Error> {
        let stream = self.guest.link().unwrap().stream();
        raw::hand_over(stream, what, ring, descriptor.as_fd())
    }

    /// The front end goes, and the next one is served.
    fn expect_next(&mut self) {
        self.guest.disconnect();
        self.guest = Guest::connect(self.daemon.socket(), GuestOptions::default())
            .unwrap_or_else(|error| panic!("{error}: {}", self.daemon.log()));
        frames::come_back(&mut self.guest).unwrap();
    }

    fn expect_end(&mut self) {
        expect_end(&mut self.daemon);
    }
}

fn expect_end(daemon: &mut Daemon) {
    let status = daemon.terminate(AT_ONCE).unwrap();
    assert_eq!(status.code(), Some(0), "{}", daemon.log());
}

/// An eventfd whose counter is full, so that a write to it blocks.
fn full() -> OwnedFd {
    let full = eventfd(0, EventfdFlags::CLOEXEC).unwrap();
    rustix::io::write(&full, &(u64::MAX - 1).to_ne_bytes()).unwrap();
    full
}

/// A TCP socket that waits for its peer when it is closed, and the peer, which takes nothing.
fn lingering() -> (TcpStream, TcpStream) {
    let listener = TcpListener::bind("127.0.0.1:0").unwrap();
    let socket = TcpStream::connect(listener.local_addr().unwrap()).unwrap();
    let (peer, _) = listener.accept().unwrap();
    let long = Some(Duration::from_secs(60));
    rustix::net::sockopt::set_socket_linger(&socket, long).unwrap();
    socket.set_nonblocking(true).unwrap();
    while (&socket).write(&[0; 1 << 16]).is_ok() {}
    (socket, peer)
}

fn fifo(directory: &Path) -> OwnedFd {
    let path = directory.join("fifo");
    rustix::fs::mkfifoat(rustix::fs::CWD, &path, Mode::RWXU).unwrap();
    rustix::fs::open(&path, OFlags::RDWR | OFlags::CLOEXEC, Mode::empty()).unwrap()
}

#[test]
fn only_eventfds_are_taken_for_kick_and_error_and_no_other_file_for_a_call() {
    let mut scene = Scene::new();
    let (socket, peer) = lingering();
    let listener = UnixListener::bind(scene.directory.path().join("other.sock")).unwrap();
    let pair = UnixStream::pair().unwrap();
    let epoll = epoll::create(epoll::CreateFlags::CLOEXEC).unwrap();
    let watch = inotify::init(inotify::CreateFlags::CLOEXEC).unwrap();
    let file = tempfile::tempfile().unwrap();
    let fifo = fifo(scene.directory.path());
    let mut expect_refused = |what, descriptor: &dyn AsFd| {
        for ring in [0, 1] {
            let answer = scene.hand_over(what, ring, descriptor.as_fd());
            assert!(matches!(answer, Err(Error::Refused { .. })), "{what:?}: {answer:?}");
        }
    };
    for what in Handover::ALL {
        let others: [&dyn AsFd; 6] = [&socket, &listener, &epoll, &watch, &file, &fifo];
        others.iter().for_each(|descriptor| expect_refused(what, descriptor));
    }
    let (_reader, writer) = io::pipe().unwrap();
    expect_refused(Handover::Kick, &writer);
    expect_refused(Handover::Error, &writer);
    expect_refused(Handover::Kick, &pair.0);
    expect_refused(Handover::Error, &pair.0);
    // Without its peer, ours need not wait.
    drop((peer, socket));
    // Nothing has changed for the rings, and they go on.
    frames::come_back(&mut scene.guest).unwrap();
    let log = scene.daemon.log();
    assert!(log.contains("was refused: its descriptor is \"socket:["), "{log}");
    scene.expect_next();
    scene.expect_end();
}

#[test]
fn a_front_end_that_hands_over_its_own_connection_hangs_up_all_the_same() {
    for what in Handover::ALL {
        let mut scene = Scene::new();
        let own = scene.guest.link().unwrap().stream().try_clone().unwrap();
        let _ = scene.hand_over(what, 1, &own);
        drop(own);
        scene.expect_next();
        scene.expect_end();
    }
}

#[test]
fn a_socket_whose_close_waits_holds_nobody_up() {
    let mut scene = Scene::new();
    let (socket, peer) = lingering();
    // Closed here before the daemon takes it: the last descriptor of the socket is the daemon's.
    scene.daemon.hold().unwrap();
    let mut stream = scene.guest.link().unwrap().stream();
    let (request, ring) = (13, 1_u64.to_ne_bytes());
    raw::send(stream, request, &ring, &[socket.as_fd()]).unwrap();
    drop(socket);
    scene.daemon.signal(Signal::CONT).unwrap();
    stream.read_exact(&mut [0; 20]).unwrap();
    let call = eventfd(0, EventfdFlags::CLOEXEC).unwrap();
    let began = Instant::now();
    scene.hand_over(Handover::Call, 1, &call).unwrap();
    assert!(began.elapsed() < SOON, "it waited for {:?}", began.elapsed());
    frames::come_back(&mut scene.guest).unwrap();
    scene.expect_next();
    scene.expect_end();
    drop(peer);
}

/// `SET_BACKEND_REQ_FD` with this channel. Returns whether it is accepted.
fn hand_over_channel(scene: &mut Scene, channel: &dyn AsFd) -> bool {
    let mut stream = scene.guest.link().unwrap().stream();
    raw::send(stream, 21, &[], &[channel.as_fd()]).unwrap();
    let mut answer = [0; 20];
    stream.read_exact(&mut answer).unwrap();
    frames::come_back(&mut scene.guest).unwrap();
    answer[12..] == [0; 8]
}

/// The end of a connection is seen, whatever channel its front end handed over.
#[test]
fn a_channel_for_requests_holds_no_connection_open() {
    let mut scene = Scene::new();
    let (tcp, peer) = lingering();
    let own = scene.guest.link().unwrap().stream().try_clone().unwrap();
    let (sender, with_more) = UnixStream::pair().unwrap();
    raw::send(&sender, 1, &[], &[own.as_fd()]).unwrap();
    let listener = UnixListener::bind(scene.directory.path().join("other.sock")).unwrap();
    let others: [&dyn AsFd; 4] = [&tcp, &own, &with_more, &listener];
    for channel in others {
        assert!(!hand_over_channel(&mut scene, channel));
    }
    // Without its peer, ours need not wait.
    drop((peer, tcp, own, with_more, sender, listener));
    let log = scene.daemon.log();
    assert!(log.contains("expected a Unix stream socket"), "{log}");
    scene.expect_next();
    scene.expect_end();
}

#[test]
fn the_pipe_of_user_mode_linux_is_signalled_and_never_waited_for() {
    let mut scene = Scene::new();
    let (mut reader, writer) = io::pipe().unwrap();
    scene.hand_over(Handover::Call, 0, &writer).unwrap();
    let mut signal = [0; 8];
    // A new call descriptor is signalled at once.
    reader.read_exact(&mut signal).unwrap();
    assert_eq!(u64::from_ne_bytes(signal), 1);
    // Full, so that a write to it blocks.
    ioctl_fionbio(&writer, true).unwrap();
    while rustix::io::write(&writer, &[0; 4096]).is_ok() {}
    while rustix::io::write(&writer, &[0; 8]).is_ok() {}
    ioctl_fionbio(&writer, false).unwrap();
    for n in 0..100 {
        let sent = frames::frame(n, 100);
        let pair = scene.guest.pair(0);
        assert!(pair.send(&sent).unwrap());
        // The pipe is not read, so there is no signal: the frame is polled for.
        let came = eventually(SOON, "a frame", || {
            pair.receive_ring().driver().enable_notification();
            pair.receive().unwrap().ok_or("none: the worker waits for the pipe")
        });
        assert_eq!(came.bytes, sent);
        pair.reap().unwrap();
    }
    drop((reader, writer));
    scene.expect_next();
    scene.expect_end();
}

/// User Mode Linux gives one of a pair of sockets.
#[test]
fn the_socket_of_user_mode_linux_is_signalled_and_never_waited_for() {
    let mut scene = Scene::new();
    let (mut theirs, call) = UnixStream::pair().unwrap();
    scene.hand_over(Handover::Call, 0, &call).unwrap();
    theirs.set_read_timeout(Some(SOON)).unwrap();
    let mut signal = [0; 8];
    // A new call descriptor is signalled at once, and then for each frame while signals are wanted.
    for n in 0..100 {
        theirs.read_exact(&mut signal).unwrap();
        assert_eq!(u64::from_ne_bytes(signal), 1);
        let pair = scene.guest.pair(0);
        while pair.receive().unwrap().is_some() {}
        pair.receive_ring().driver().enable_notification();
        assert!(pair.send(&frames::frame(n, 100)).unwrap());
    }
    while (&call).write(&[0; 8]).is_ok() {}
    for n in 0..100 {
        let pair = scene.guest.pair(0);
        while pair.receive().unwrap().is_some() {}
        pair.receive_ring().driver().enable_notification();
        assert!(pair.send(&frames::frame(n, 100)).unwrap());
        eventually(SOON, "a frame", || {
            pair.receive().unwrap().ok_or("none: the worker waits for the socket")
        });
        pair.reap().unwrap();
    }
    drop((theirs, call));
    scene.expect_next();
    scene.expect_end();
}

/// The write end of a pair of sockets that is full. Its reader, which takes nothing, stays open.
fn full_socket() -> OwnedFd {
    let (theirs, call) = UnixStream::pair().unwrap();
    call.set_nonblocking(true).unwrap();
    while (&call).write(&[0; 8]).is_ok() {}
    std::mem::forget(theirs);
    call.into()
}

/// The worker's write blocks: the flag is cleared without its knowledge.
fn block(scene: &mut Scene, call: OwnedFd) -> OwnedFd {
    scene.hand_over(Handover::Call, 0, &call).unwrap();
    ioctl_fionbio(&call, false).unwrap();
    let pair = scene.guest.pair(0);
    pair.receive_ring().driver().enable_notification();
    assert!(pair.send(&frames::frame(0, 100)).unwrap());
    call
}

#[test]
fn a_call_that_blocks_ends_its_own_connection_and_nothing_else() {
    let mut scene = Scene::new();
    let _call = block(&mut scene, full());
    // A worker with one guest has no alarm: it blocks, and says nothing, until the control plane asks it for something.
    sleep(Duration::from_millis(50));
    scene.expect_next();
    scene.daemon.expect_log("made a write to the call descriptor block");
    let _call = block(&mut scene, full_socket());
    sleep(Duration::from_millis(50));
    scene.expect_next();
    let _call = block(&mut scene, full_socket());
    sleep(Duration::from_millis(50));
    scene.expect_end();
}

#[test]
fn an_error_descriptor_that_blocks_holds_nobody_up() {
    let mut scene = Scene::new();
    let error = full();
    scene.hand_over(Handover::Error, 1, &error).unwrap();
    ioctl_fionbio(&error, false).unwrap();
    // More available than the ring holds.
    let ring = scene.guest.ring(1);
    let size = ring.driver().setup().size;
    let at = ring.driver().setup().driver_area + 2;
    let memory = scene.guest.memory().guest();
    let mut index = [0; 2];
    memory.read(at, &mut index).unwrap();
    let index = u16::from_le_bytes(index).wrapping_add(size + 1);
    memory.write(at, &index.to_le_bytes()).unwrap();
    scene.guest.ring(1).kick_anyway().unwrap();
    scene.daemon.expect_log("queue 1 stops");
    scene.guest.stop_ring(0).unwrap();
    scene.expect_next();
    scene.expect_end();
}

/// One guest of a switch takes the flag off its full call descriptor as fast as it can, and has the worker signal it.
#[test]
fn a_call_that_blocks_does_not_stop_the_neighbours_on_a_switch() {
    let options = vec![GuestOptions::default(); 3];
    let mut lan = Lan::new(&options, "");
    lan.introduce();
    let call = full();
    let link = lan.guests[0].link().unwrap().stream();
    raw::hand_over(link, Handover::Call, 0, call.as_fd()).unwrap();
    ioctl_fionbio(&call, false).unwrap();
    lan.pair(0).receive_ring().driver().enable_notification();
    let stop = AtomicBool::new(false);
    std::thread::scope(|scope| {
        let _ends = SetOnDrop(&stop);
        scope.spawn(|| {
            while !stop.load(Ordering::Relaxed) {
                let _ = ioctl_fionbio(&call, false);
            }
        });
        let mut longest = Duration::ZERO;
        let until = Instant::now() + Duration::from_secs(1);
        let mut seed = 0;
        let mut came = true;
        while came && Instant::now() < until {
            seed += 1;
            // What the culprit hears too, then what it does not.
            let to_it = frame(station(0), station(1), seed, 100);
            let to_other = frame(station(2), station(1), seed, 100);
            lan.pair(1).reap().unwrap();
            lan.send(1, &to_it);
            let began = Instant::now();
            lan.send(1, &to_other);
            // When the culprit is gone, what is for it goes to everyone.
            came = loop {
                match lan.pair(2).receive_within(SOON).unwrap() {
                    Some(other) if other.bytes != to_other => {}
                    found => break found.is_some(),
                }
            };
            longest = longest.max(began.elapsed());
            let pair = lan.pair(0);
            while pair.receive().unwrap().is_some() {}
            pair.receive_ring().driver().enable_notification();
        }
        assert!(came, "a neighbour stands: {}", lan.daemon.log());
        assert!(longest < Duration::from_secs(1), "a frame took {longest:?}");
    });
    expect_end(&mut lan.daemon);
}

#[test]
fn more_descriptors_than_the_framework_takes_end_the_connection() {
    let mut scene = Scene::new();
    let file = tempfile::tempfile().unwrap();
    for count in [33, 64, 250] {
        let stream = scene.guest.link().unwrap().stream();
        let descriptors = vec![file.as_fd(); count];
        // A message of its own in the payload: GET_FEATURES.
        let payload = [1, 1, 0].map(u32::to_ne_bytes).concat();
        raw::send(stream, 37, &payload, &descriptors).unwrap();
        stream.set_read_timeout(Some(SOON)).unwrap();
        let mut stream = stream.try_clone().unwrap();
        let mut answer = Vec::new();
        let _ = stream.read_to_end(&mut answer);
        assert!(answer.is_empty(), "the payload was read as a message");
        let log = scene.daemon.log();
        assert!(log.contains("more than 32 file descriptors"), "{log}");
        scene.expect_next();
    }
}

#[test]
fn descriptors_that_a_message_does_not_take_end_the_connection() {
    let mut scene = Scene::new();
    let (socket, peer) = lingering();
    // SET_LOG_FD, GET_FEATURES, and a request that does not exist.
    for request in [7, 1, 99] {
        let stream = scene.guest.link().unwrap().stream();
        raw::send(stream, request, &[], &[socket.as_fd()]).unwrap();
        scene.daemon.expect_log("with 1 file descriptors; expected none");
        scene.expect_next();
    }
    drop((peer, socket));
    scene.expect_end();
}

#[test]
fn a_front_end_that_accepts_nobody_keeps_no_client_from_its_end() {
    let directory = tempfile::tempdir().unwrap();
    let socket = directory.path().join("vm0.sock");
    let listener = UnixListener::bind(&socket).unwrap();
    rustix::net::listen(&listener, 0).unwrap();
    // Its queue is full. A connect that waits would never return.
    let waiting: Vec<_> =
        std::iter::from_fn(|| host_files::socket::connect(&socket).ok()).collect();
    let arguments = ["--datapath", "reflect"];
    let mut daemon = Daemon::start_as_client(directory.path(), "vm0", &arguments).unwrap();
    daemon.expect_log("waiting for a front end to listen");
    assert!(daemon.terminate(AT_ONCE).unwrap().success(), "{}", daemon.log());
    drop(waiting);
}

#[test]
fn a_front_end_that_says_nothing_gives_way_to_another_and_does_not_stay() {
    let directory = tempfile::tempdir().unwrap();
    let daemon = Daemon::start(directory.path(), "vm0", &["--datapath", "reflect"]).unwrap();
    let mut silent = UnixStream::connect(daemon.socket()).unwrap();
    let mut guest = Guest::connect(daemon.socket(), GuestOptions::default()).unwrap();
    frames::come_back(&mut guest).unwrap();
    silent.set_read_timeout(Some(SOON)).unwrap();
    assert_eq!(silent.read(&mut [0]).unwrap(), 0, "it is sent away");
    // The one that is served stays.
    drop(UnixStream::connect(daemon.socket()).unwrap());
    frames::come_back(&mut guest).unwrap();
    guest.disconnect();
    // Alone, silent or with a message that never ends, it is sent away after FIRST_MESSAGE.
    for trickles in [false, true] {
        let mut front = UnixStream::connect(daemon.socket()).unwrap();
        // A byte each time: the 12 bytes of a header take longer than the first message may.
        front.set_read_timeout(Some(Duration::from_millis(500))).unwrap();
        let began = Instant::now();
        eventually(FIRST_MESSAGE + Duration::from_secs(1), "the connection to end", || {
            if trickles {
                let _ = front.write(&[1]);
            }
            match front.read(&mut [0]) {
                Err(error) if error.kind() == io::ErrorKind::WouldBlock => Err(daemon.log()),
                _ => Ok(()),
            }
        });
        assert!(began.elapsed() >= FIRST_MESSAGE, "{:?}: {}", began.elapsed(), daemon.log());
    }
    let mut guest = Guest::connect(daemon.socket(), GuestOptions::default()).unwrap();
    frames::come_back(&mut guest).unwrap();
}

#[test]
fn without_descriptors_left_the_connection_ends_and_nothing_spins() {
    let mut scene = Scene::new();
    let before = scene.daemon.refuse_descriptors();
    // A second front end cannot even be refused.
    let second = UnixStream::connect(scene.daemon.socket()).unwrap();
    let cpu = scene.daemon.cpu_time();
    sleep(Duration::from_millis(500));
    let spent = scene.daemon.cpu_time() - cpu;
    assert!(spent < Duration::from_millis(200), "{spent:?} of CPU in half a second");
    frames::come_back(&mut scene.guest).unwrap();
    drop(second);
    let call = eventfd(0, EventfdFlags::CLOEXEC).unwrap();
    let answer = scene.hand_over(Handover::Call, 0, &call);
    assert!(matches!(answer, Err(Error::System { .. })), "the connection ends: {answer:?}");
    let log = scene.daemon.log();
    assert!(log.contains("because this process has none left"), "{log}");
    scene.daemon.set_descriptor_limit(before);
    scene.expect_next();
    scene.expect_end();
}

#[test]
fn the_limit_of_open_files_is_raised_at_the_start() {
    let limit = getrlimit(Resource::Nofile);
    setrlimit(Resource::Nofile, Rlimit { current: Some(256), ..limit }).unwrap();
    let scene = Scene::new();
    let limits = std::fs::read_to_string(format!("/proc/{}/limits", scene.daemon.pid())).unwrap();
    let line = limits.lines().find(|line| line.starts_with("Max open files")).unwrap();
    let numbers: Vec<_> = line.split_ascii_whitespace().skip(3).take(2).collect();
    assert_eq!(numbers[0], numbers[1], "{line}");
}

#[test]
fn no_directory_for_temporary_files_is_needed() {
    let directory = tempfile::tempdir().unwrap();
    let missing = directory.path().join("missing");
    let arguments = ["--datapath", "reflect"];
    let variable = ("TMPDIR", missing.as_path());
    let daemon = Daemon::start_under(directory.path(), "vm0", &arguments, variable).unwrap();
    let mut guest = Guest::connect(daemon.socket(), GuestOptions::default()).unwrap();
    frames::come_back(&mut guest).unwrap();
}
