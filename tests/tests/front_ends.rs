//! Front ends that are not QEMU, in what they do differently: messages longer than needed, positions that are not where
//! a ring is.

use std::io::{ErrorKind, Read as _, Write as _};
use std::os::fd::{AsFd, BorrowedFd};
use std::os::unix::net::UnixStream;
use std::time::{Duration, Instant};

use frontend::raw::request;
use frontend::{Guest, GuestOptions, raw};
use ringscope_tests::daemon::Daemon;
use ringscope_tests::eventually::SOON;
use ringscope_tests::frames;
use rustix::event::{EventfdFlags, eventfd};
use virtio_net::features;

const REFLECT: [&str; 2] = ["--datapath", "reflect"];

fn words(words: &[u64]) -> Vec<u8> {
    words.iter().flat_map(|word| word.to_ne_bytes()).collect()
}

/// Sends a message with `surplus` bytes more than it needs, and returns the payload of the answer.
fn ask(
    guest: &mut Guest,
    request: u32,
    payload: &[u8],
    surplus: usize,
    fds: &[BorrowedFd<'_>],
) -> Vec<u8> {
    let mut stream = guest.link().unwrap().stream();
    raw::send(stream, request, &[payload, &vec![0xa5; surplus]].concat(), fds).unwrap();
    let mut header = [0; 12];
    stream.read_exact(&mut header).unwrap_or_else(|error| panic!("request {request}: {error}"));
    let [code, _, len] =
        [0, 4, 8].map(|at| u32::from_ne_bytes(*header[at..].first_chunk().unwrap()));
    assert_eq!(code, request);
    let mut answer = vec![0; len as usize];
    stream.read_exact(&mut answer).unwrap();
    answer
}

/// All of a guest's messages, each longer than it needs to be, as User Mode Linux sends its memory table.
#[test]
fn messages_longer_than_needed_are_understood() {
    let directory = tempfile::tempdir().unwrap();
    let arguments = [&REFLECT[..], &["--mac", "02:00:00:00:00:01"]].concat();
    let daemon = Daemon::start(directory.path(), "vm0", &arguments).unwrap();
    for surplus in [1, 4, 32, 500] {
        let mut guest = Guest::connect(daemon.socket(), GuestOptions::default()).unwrap();
        frames::come_back(&mut guest).unwrap();
        let (features, protocol) =
            (guest.features().0 | 1 << 30, { guest.link().unwrap().protocol_features().bits() });
        let base = guest.stop_ring(1).unwrap();
        let setup = guest.ring(1).driver().setup();
        let file = guest.memory().file().try_clone().unwrap();
        let regions = guest.memory().regions();
        let (user, len) = (regions[0].userspace_addr, regions[0].memory_size);
        let parts = [setup.descriptor_table, setup.device_area, setup.driver_area];
        let [table, device, driver] = parts.map(|at| guest.memory().user_address(at).unwrap());
        let [call, error] = [0; 2].map(|_| eventfd(0, EventfdFlags::CLOEXEC).unwrap());
        let accepted = words(&[0]);
        let mut get = |request, payload: &[u8]| ask(&mut guest, request, payload, surplus, &[]);
        assert_eq!(get(request::GET_FEATURES, &[]).len(), 8);
        assert_eq!(get(request::GET_PROTOCOL_FEATURES, &[]).len(), 8);
        assert_eq!(get(request::GET_QUEUE_NUM, &[]).len(), 8);
        assert_eq!(get(request::GET_MAX_MEM_SLOTS, &[]).len(), 8);
        let mac = [&[0, 6, 0].map(u32::to_ne_bytes).concat()[..], &[0; 6]].concat();
        assert_eq!(get(request::GET_CONFIG, &mac)[12..], [2, 0, 0, 0, 0, 1]);
        assert_eq!(get(request::GET_VRING_BASE, &words(&[1]))[4..6], base.to_ne_bytes());
        for (request, payload) in [
            (request::SET_FEATURES, words(&[features])),
            (request::SET_PROTOCOL_FEATURES, words(&[protocol])),
            (request::SET_VRING_NUM, words(&[u64::from(setup.size) << 32 | 1])),
            (request::SET_VRING_BASE, words(&[u64::from(base) << 32 | 1])),
        ] {
            assert_eq!(get(request, &payload), accepted, "request {request}");
        }
        let mut set = |request, payload: &[u8], fd: BorrowedFd<'_>| {
            let answer = ask(&mut guest, request, payload, surplus, &[fd]);
            assert_eq!(answer, accepted, "request {request}");
        };
        set(request::SET_MEM_TABLE, &words(&[1, 0, len, user, 0]), file.as_fd());
        set(request::SET_VRING_ERR, &words(&[1]), error.as_fd());
        set(request::SET_VRING_CALL, &words(&[1]), call.as_fd());
        set(request::SET_BACKEND_REQ_FD, &[], std::io::pipe().unwrap().1.as_fd());
        // A second region, which goes again.
        let region = words(&[0, 1 << 40, 0x1000, 1 << 41, 0]);
        set(request::ADD_MEM_REG, &region, file.as_fd());
        let mut get = |request, payload: &[u8]| ask(&mut guest, request, payload, surplus, &[]);
        assert_eq!(get(request::REM_MEM_REG, &region), accepted);
        let address = words(&[1, table, device, driver, 0]);
        assert_eq!(get(request::SET_VRING_ADDR, &address), accepted);
        assert_eq!(get(request::SET_VRING_ENABLE, &words(&[1 << 32 | 1])), accepted);
        // The ring starts where it was, with the kick that its driver writes to.
        guest.start_ring(1).unwrap();
        frames::come_back(&mut guest).unwrap();
        assert!(daemon.log().matches("refused").count() == 0, "{}", daemon.log());
    }
}

#[test]
fn messages_shorter_than_needed_end_the_connection_with_both_lengths() {
    let directory = tempfile::tempdir().unwrap();
    let daemon = Daemon::start(directory.path(), "vm0", &REFLECT).unwrap();
    let table = [&words(&[2])[..], &[0; 63]].concat();
    let config = [0, 6, 0].map(u32::to_ne_bytes).concat();
    for (request, payload, said) in [
        (
            request::SET_FEATURES,
            vec![0; 7],
            "SET_FEATURES with 7 bytes of payload; expected at least 8",
        ),
        (
            request::SET_VRING_KICK,
            vec![],
            "SET_VRING_KICK with 0 bytes of payload; expected at least 8",
        ),
        (
            request::SET_VRING_ADDR,
            vec![0; 39],
            "SET_VRING_ADDR with 39 bytes of payload; expected at least 40",
        ),
        (
            request::ADD_MEM_REG,
            vec![0; 39],
            "ADD_MEM_REG with 39 bytes of payload; expected at least 40",
        ),
        (
            request::SET_MEM_TABLE,
            table,
            "SET_MEM_TABLE with 71 bytes of payload; expected at least 72",
        ),
        (request::SET_CONFIG, config, "SET_CONFIG with 12 bytes of payload; expected at least 18"),
    ] {
        let mut guest = Guest::connect(daemon.socket(), GuestOptions::default()).unwrap();
        let mut stream = guest.link().unwrap().stream();
        raw::send(stream, request, &payload, &[]).unwrap();
        assert_eq!(stream.read(&mut [0]).unwrap_or(0), 0, "it is answered");
        daemon.expect_log(said);
    }
    let mut guest = Guest::connect(daemon.socket(), GuestOptions::default()).unwrap();
    frames::come_back(&mut guest).unwrap();
}

/// As DPDK's virtio-user is the server of a back end that is started again: it always says 0.
#[test]
fn a_split_ring_goes_on_where_it_is_though_its_front_end_says_0() {
    let directory = tempfile::tempdir().unwrap();
    for (n, start_index) in [0, 1, 255, 30_000, 0x8000, 59_456, 65_500].into_iter().enumerate() {
        let name = format!("vm{n}");
        let start = || Daemon::start(directory.path(), &name, &REFLECT).unwrap();
        let daemon = start();
        let options = GuestOptions { start_index, forgetful: true, ..GuestOptions::default() };
        let mut guest = Guest::connect(daemon.socket(), options).unwrap();
        frames::come_back(&mut guest).unwrap();
        // Killed, with what the guest has sent meanwhile.
        drop(daemon);
        let sent: Vec<_> = (0..100).map(|seed| frames::frame(seed, 200)).collect();
        for frame in &sent {
            assert!(guest.pair(0).send(frame).unwrap());
        }
        let daemon = start();
        guest.reconnect(daemon.socket()).unwrap();
        for frame in &sent {
            let came = guest.pair(0).receive_within(SOON).unwrap();
            assert_eq!(came.unwrap().bytes, *frame);
        }
        frames::come_back(&mut guest).unwrap();
        let log = daemon.log();
        assert!(log.contains("its used index, not at 0 as the front end says"), "{log}");
    }
}

/// As User Mode Linux starts its rings.
#[test]
fn a_new_packed_ring_works_though_its_front_end_says_that_its_wrap_counter_is_0() {
    let directory = tempfile::tempdir().unwrap();
    let daemon = Daemon::start(directory.path(), "vm0", &REFLECT).unwrap();
    let options = GuestOptions::default().packed(true);
    let mut guest = Guest::connect(daemon.socket(), options).unwrap();
    // The transmit ring is new: nothing was sent yet.
    guest.stop_ring(1).unwrap();
    guest.start_ring_at(1, 0).unwrap();
    let said =
        "queue 1: its new packed ring begins with wrap counter 1, not 0 as the front end says";
    daemon.expect_log(said);
    frames::come_back(&mut guest).unwrap();

    // One that has gone on cannot be found again.
    let base = guest.stop_ring(1).unwrap();
    guest.start_ring_at(1, ((base & 0x7fff) - 1) | (base & 0x8000)).unwrap();
    daemon.expect_log("queue 1: nothing can become available at descriptor ");
    daemon.expect_log("withhold packed rings from this guest");
    guest.stop_ring(1).unwrap();
    guest.start_ring_at(1, base).unwrap();
    frames::come_back(&mut guest).unwrap();
    assert_eq!(daemon.log().matches("nothing can become available").count(), 1);
}

/// User Mode Linux gives a pipe or a socket, QEMU a socket. Both report an error when it is closed.
#[test]
fn a_channel_for_requests_is_kept_and_never_written_to() {
    let directory = tempfile::tempdir().unwrap();
    let daemon = Daemon::start(directory.path(), "vm0", &REFLECT).unwrap();
    let mut guest = Guest::connect(daemon.socket(), GuestOptions::default()).unwrap();
    let (mut reader, writer) = std::io::pipe().unwrap();
    let (mut theirs, ours) = UnixStream::pair().unwrap();
    let mut set = |channel: BorrowedFd<'_>| {
        let answer = ask(&mut guest, request::SET_BACKEND_REQ_FD, &[], 0, &[channel]);
        assert_eq!(answer, words(&[0]));
        frames::come_back(&mut guest).unwrap();
    };
    set(ours.as_fd());
    drop(ours);
    assert!(theirs.write(&[0]).is_err(), "something can be sent to it");
    // The next channel closes the one before.
    set(writer.as_fd());
    drop(writer);
    theirs.set_read_timeout(Some(SOON)).unwrap();
    assert_eq!(theirs.read(&mut [0]).unwrap(), 0, "something was written");
    rustix::io::ioctl_fionbio(&reader, true).unwrap();
    assert_eq!(reader.read(&mut [0]).unwrap_err().kind(), ErrorKind::WouldBlock);
    guest.disconnect();
    rustix::io::ioctl_fionbio(&reader, false).unwrap();
    assert_eq!(reader.read(&mut [0]).unwrap(), 0, "something was written");
}

/// QEMU asks before `SET_OWNER`, and counts pairs. It leaves if there are too few, and connects again at once.
#[test]
fn a_front_end_that_counts_pairs_gets_their_number_and_may_try_once_a_second() {
    let directory = tempfile::tempdir().unwrap();
    let daemon = Daemon::start(directory.path(), "vm0", &REFLECT).unwrap();
    let began = Instant::now();
    for _ in 0..3 {
        let mut stream = UnixStream::connect(daemon.socket()).unwrap();
        let mut ask = |request, payload: &[u8]| {
            raw::send(&stream, request, payload, &[]).unwrap();
            let mut answer = [0; 20];
            stream.read_exact(&mut answer).unwrap();
            u64::from_ne_bytes(*answer[12..].first_chunk().unwrap())
        };
        ask(request::GET_FEATURES, &[]);
        let protocol = ask(request::GET_PROTOCOL_FEATURES, &[]);
        ask(request::SET_PROTOCOL_FEATURES, &words(&[protocol]));
        assert_eq!(ask(request::GET_QUEUE_NUM, &[]), 1);
    }
    let took = began.elapsed();
    assert!(took >= Duration::from_secs(2), "three in {took:?}");
    let mut guest = Guest::connect(daemon.socket(), GuestOptions::default()).unwrap();
    // This one counts rings, the control queue among them.
    assert_eq!(guest.link().unwrap().queue_pairs(), Some(3));
    frames::come_back(&mut guest).unwrap();
    let log = daemon.log();
    assert_eq!(log.matches("the number of queue pairs, 1; if QEMU asks").count(), 1, "{log}");
}

/// As generic front ends do, which leave the configuration space to the back end.
#[test]
fn the_configuration_space_is_read_in_any_part_and_never_written() {
    let directory = tempfile::tempdir().unwrap();
    let daemon =
        Daemon::start(directory.path(), "vm0", &["--datapath", "null", "--queue-pairs", "2"])
            .unwrap();
    let mut guest = Guest::connect(daemon.socket(), GuestOptions::default()).unwrap();
    let owned = features::STATUS | features::SPEED_DUPLEX;
    assert_eq!(guest.link().unwrap().offered() & owned, owned);
    let mut part = |request, offset: u32, bytes: &[u8]| {
        let size = u32::try_from(bytes.len()).unwrap();
        let part = [offset, size, 0].map(u32::to_ne_bytes).concat();
        ask(&mut guest, request, &[&part[..], bytes].concat(), 0, &[])
    };
    let mut read = |offset, len| part(request::GET_CONFIG, offset, &vec![0; len])[12..].to_vec();
    // No address; the link is up; two pairs; the MTU; no speed.
    let whole = read(0, 24);
    assert_eq!(whole[..10], [0, 0, 0, 0, 0, 0, 1, 0, 2, 0]);
    assert_eq!(whole[12..], [0xff, 0xff, 0xff, 0xff, 0xff, 0, 0, 0, 0, 0, 0, 0]);
    for (offset, len) in [(0, 1), (6, 2), (8, 2), (10, 2), (15, 5), (23, 1)] {
        assert_eq!(read(offset, len), whole[offset as usize..][..len]);
    }
    assert_eq!(read(100, 64), [0; 64], "beyond its end");
    for (offset, len) in [(0, 0), (0xfff, 2), (u32::MAX, 1)] {
        assert!(read(offset, len).is_empty(), "no such part: an error");
    }
    assert_eq!(part(request::SET_CONFIG, 0, &[2, 0, 0, 0, 0, 1]), words(&[1]), "read-only");
    assert_eq!(part(request::GET_CONFIG, 0, &[0; 24])[12..], whole);
    assert!(guest.pair(0).send(&frames::frame(1, 60)).unwrap());
    daemon.expect_log(
        "SET_CONFIG of the front end was refused: the configuration space is read-only",
    );

    // QEMU asks before `SET_OWNER`. It has its own, and warns about another one.
    drop(guest);
    let stream = UnixStream::connect(daemon.socket()).unwrap();
    let ask = |request| {
        raw::send(&stream, request, &[], &[]).unwrap();
        let mut answer = [0; 20];
        (&stream).read_exact(&mut answer).unwrap();
        u64::from_ne_bytes(*answer[12..].first_chunk().unwrap())
    };
    assert_eq!(ask(request::GET_FEATURES) & features::CONFIG_AND_CONTROL, 0);
    assert_eq!(ask(request::GET_PROTOCOL_FEATURES) & 1 << 9, 0);
}
