//! Every page that the device writes is marked in the dirty log of a live migration.

use std::collections::BTreeSet;
use std::io::Read as _;
use std::os::fd::AsFd as _;
use std::os::unix::net::UnixStream;
use std::thread::sleep;
use std::time::{Duration, Instant};

use burst_trace::DropCause;
use frontend::driver::Buffer;
use frontend::memory::SharedMemory;
use frontend::raw::{self, request};
use frontend::{DirtyFile, FileRegion, Guest, GuestOptions, Pair, RegionOptions};
use ringscope_tests::daemon::Daemon;
use ringscope_tests::dirty::{PAGE, Snapshot, announce, end_of_memory, log_for, written_by_device};
use ringscope_tests::eventually::{SOON, eventually, when};
use ringscope_tests::frames;
use ringscope_tests::hostile::expect_refused;
use ringscope_tests::lan::{Lan, station};
use ringscope_tests::mirror::{Kind, Mirror};

/// Frames that wait in the transmit ring when logging begins.
const FRAMES: usize = 60;

fn queue_frames(guest: &mut Guest) {
    let pair = guest.pair(0);
    for n in 0..FRAMES {
        assert!(pair.queue(&frames::frame(n, 60 + n * 23)).unwrap(), "no room");
    }
    pair.flush().unwrap();
}

fn stop(guest: &mut Guest) {
    for ring in 0..2 {
        guest.stop_ring(ring).unwrap();
    }
}

/// The pages of `log` as a set.
fn pages(log: &DirtyFile) -> BTreeSet<u64> {
    log.pages().unwrap().into_iter().collect()
}

/// Checks that what was written is marked, and that not everything is.
#[track_caller]
fn expect_marked(written: &BTreeSet<u64>, log: &DirtyFile, what: &str) {
    let marked = pages(log);
    let missing: Vec<_> = written.difference(&marked).collect();
    assert!(missing.is_empty(), "{what}: written and not marked: {missing:x?} of {written:x?}");
    let surplus = marked.difference(written).count();
    // Bytes may be written that were there before, event suppression above all.
    assert!(surplus <= written.len() / 4 + 4, "{what}: {surplus} more than {}", written.len());
}

#[test]
fn every_page_that_is_written_is_marked_on_every_datapath() {
    let directory = tempfile::tempdir().unwrap();
    for kind in Kind::ALL {
        let mirror = Mirror::new(kind);
        let arguments = ["--datapath", mirror.datapath()];
        let daemon = Daemon::start(directory.path(), "log", &arguments).unwrap();
        for event_index in [false, true] {
            // Near the end of a lap, and of the indices. Small buffers: frames fill several, in pages of their own.
            let options = GuestOptions { start_index: 65500, ..GuestOptions::default() };
            let options = GuestOptions { buffer_len: 700, ..options.event_index(event_index) };
            for options in kind.guests(&options) {
                let what = format!("{kind} {:#x}", options.features);
                let mut guest = Guest::connect(daemon.socket(), options).unwrap();
                frames::come_back(&mut guest).unwrap();
                stop(&mut guest);
                queue_frames(&mut guest);
                let log = log_for(&mut guest);
                guest.link().unwrap().set_logging(true).unwrap();
                let written = written_by_device(&mut guest);
                assert!(written.len() > FRAMES / 2, "{what}: {}", written.len());
                expect_marked(&written, &log, &what);
                guest.disconnect();
            }
        }
    }
}

/// A guest that is served by `reflect`, and its daemon.
fn reflected(options: GuestOptions) -> (tempfile::TempDir, Daemon, Guest) {
    let directory = tempfile::tempdir().unwrap();
    let daemon = Daemon::start(directory.path(), "log", &["--datapath", "reflect"]).unwrap();
    let guest = Guest::connect(daemon.socket(), options).unwrap();
    (directory, daemon, guest)
}

/// Guests of both ring formats.
fn both() -> [GuestOptions; 2] {
    [false, true].map(|packed| GuestOptions::default().packed(packed))
}

#[test]
fn logging_begins_and_ends_while_rings_run_and_a_log_may_be_replaced() {
    for options in both() {
        let (_directory, _daemon, mut guest) = reflected(options);
        let first = log_for(&mut guest);
        frames::come_back(&mut guest).unwrap();
        assert_eq!(first.pages().unwrap(), [0_u64; 0], "nothing is logged yet");
        guest.link().unwrap().set_logging(true).unwrap();
        frames::come_back(&mut guest).unwrap();
        assert!(!first.pages().unwrap().is_empty());
        // As QEMU does when it enables the log, for each ring.
        let setup = guest.ring(0).driver().setup();
        let memory = guest.memory();
        let parts = [setup.descriptor_table, setup.driver_area, setup.device_area];
        let parts = parts.map(|part| memory.user_address(part).unwrap());
        let link = guest.link().unwrap();
        link.set_logged_addresses(0, parts, Some(setup.device_area)).unwrap();
        frames::come_back(&mut guest).unwrap();

        let second = log_for(&mut guest);
        first.clear().unwrap();
        frames::come_back(&mut guest).unwrap();
        assert_eq!(first.pages().unwrap(), [0_u64; 0], "it was replaced");
        assert!(!second.pages().unwrap().is_empty());

        guest.link().unwrap().set_logging(false).unwrap();
        second.clear().unwrap();
        frames::come_back(&mut guest).unwrap();
        assert_eq!(second.pages().unwrap(), [0_u64; 0], "nothing is logged any more");
    }
}

/// QEMU gives the log last when a device starts during a migration (`vhost_dev_start`, hw/virtio/vhost.c).
#[test]
fn rings_that_are_to_be_logged_wait_for_the_log() {
    for options in both() {
        let options = GuestOptions { log_all: true, ..options };
        let (_directory, _daemon, mut guest) = reflected(options);
        assert!(guest.pair(0).send(&frames::frame(1, 60)).unwrap());
        let before = Snapshot::of(&guest);
        sleep(Duration::from_millis(100));
        assert!(before == Snapshot::of(&guest), "it did not wait");
        let log = log_for(&mut guest);
        let frame = guest.pair(0).receive_within(SOON).unwrap().expect("the frame");
        assert_eq!(frame.bytes, frames::frame(1, 60));
        assert!(!log.pages().unwrap().is_empty());
    }
}

/// HOSTILE 32.
#[test]
fn a_log_that_is_too_short_missing_or_not_in_its_file_is_refused_and_traffic_goes_on() {
    for options in both() {
        let (_directory, daemon, mut guest) = reflected(options);
        let (end, log) = (end_of_memory(&guest), log_for(&mut guest));
        let (other, len) = (DirtyFile::new(end).unwrap(), log.len());
        let link = guest.link().unwrap();
        // Less than a bit for each page; none; more than a file; more than there are addresses; wrapping.
        for (len, offset) in [
            (end / PAGE / 8 - 8, 0),
            (0, 0),
            (len + 1, 0),
            (len, 4096),
            (len, 1),
            (1 << 37, 0),
            (1 << 38, 0),
            (u64::MAX, 0),
            (len, u64::MAX - 4095),
        ] {
            // The crate that sends it wants no such ones.
            if len.checked_add(offset).is_some() && len > 0 {
                expect_refused(link.set_log(other.file(), len, offset), "SET_LOG_BASE");
            }
            let payload = [len, offset].map(u64::to_ne_bytes).concat();
            let files = [other.file().as_fd()];
            raw::send(link.stream(), request::SET_LOG_BASE, &payload, &files).unwrap();
            assert_eq!(answer_of_log(link.stream()), [1, u64::MAX], "{len} {offset}");
        }
        let (socket, _peer) = UnixStream::pair().unwrap();
        let payload = [len, 0].map(u64::to_ne_bytes).concat();
        let files = [socket.as_fd()];
        raw::send(link.stream(), request::SET_LOG_BASE, &payload, &files).unwrap();
        assert_eq!(answer_of_log(link.stream()), [1, u64::MAX], "a socket");
        daemon.expect_log("the log is too short for the");
        // The first log is still there.
        link.set_logging(true).unwrap();
        frames::come_back(&mut guest).unwrap();
        assert!(!log.pages().unwrap().is_empty());
        // A used ring logged beyond its end.
        let setup = guest.ring(1).driver().setup();
        let memory = guest.memory();
        let parts = [setup.descriptor_table, setup.driver_area, setup.device_area];
        let parts = parts.map(|part| memory.user_address(part).unwrap());
        let link = guest.link().unwrap();
        for address in [len * 8 * PAGE, u64::MAX] {
            let set = link.set_logged_addresses(1, parts, Some(address));
            expect_refused(set, "SET_VRING_ADDR");
        }
        frames::come_back(&mut guest).unwrap();
    }
}

/// Memory of a guest with room for buffers of a test at its end.
fn roomy(options: GuestOptions) -> GuestOptions {
    GuestOptions { regions: vec![RegionOptions { address: 0, len: 16 << 20 }], ..options }
}

#[test]
fn what_the_control_queue_writes_is_marked() {
    for options in both() {
        let (_directory, daemon, mut guest) = reflected(roomy(options.control()));
        // `VIRTIO_NET_CTRL_ANNOUNCE`, `_ACK`.
        let command = [3, 0];
        assert_eq!(guest.command(&command).unwrap(), 0);
        stop(&mut guest);
        let log = log_for(&mut guest);
        guest.link().unwrap().set_logging(true).unwrap();
        let at = end_of_memory(&guest) - 4 * PAGE;
        guest.memory().guest().write(at, &[&command[..], &[0xa5]].concat()).unwrap();
        let chain = [(at, 2, false), (at + PAGE, 1, true)].map(|(address, len, writable)| Buffer {
            address,
            len,
            writable,
        });
        let control = guest.control().unwrap();
        let setup = control.driver().setup();
        control.driver().add(&chain).unwrap();
        control.publish();
        control.kick_anyway().unwrap();
        eventually(SOON, "the command to come back", || {
            when(control.driver().used().is_some(), daemon.log())
        });
        let packed = guest.features().packed();
        let used = if packed { setup.descriptor_table } else { setup.device_area };
        let marked = pages(&log);
        for page in [at + PAGE, used].map(|address| address / PAGE) {
            assert!(marked.contains(&page), "{packed}: {page:x} is not in {marked:x?}");
        }
        assert!(!marked.contains(&(at / PAGE)), "the device has only read it");
    }
}

/// QEMU gives the address of the used ring. A front end may want it logged elsewhere, and its own page was written, too.
#[test]
fn a_used_ring_is_marked_where_it_is_and_where_the_front_end_wants_it() {
    for options in both() {
        let (_directory, _daemon, mut guest) = reflected(roomy(options));
        let (log, end) = (log_for(&mut guest), end_of_memory(&guest));
        guest.link().unwrap().set_logging(true).unwrap();
        // The device area of a packed ring has only the event suppression, which the worker changes where it waits for kicks.
        let first = u16::from(guest.features().packed());
        for ring in first..2 {
            let elsewhere = end - 16 * PAGE * (1 + u64::from(ring));
            let setup = guest.ring(ring).driver().setup();
            let parts = [setup.descriptor_table, setup.driver_area, setup.device_area];
            let memory = guest.memory();
            let parts = parts.map(|part| memory.user_address(part).unwrap());
            let link = guest.link().unwrap();
            link.set_logged_addresses(ring, parts, Some(elsewhere)).unwrap();
            log.clear().unwrap();
            frames::come_back(&mut guest).unwrap();
            // Also what the worker writes before it sleeps.
            eventually(SOON, "both places to be marked", || {
                let marked = pages(&log);
                let both = [elsewhere, setup.device_area].map(|at| marked.contains(&(at / PAGE)));
                when(both == [true; 2], format!("ring {ring}: {both:?}"))
            });
            // No more than a used ring of 256 entries.
            let beyond = elsewhere / PAGE + 1..elsewhere / PAGE + 16;
            assert!(pages(&log).range(beyond).next().is_none());
        }
    }
}

/// Memory that is plugged in.
const PLUGGED: RegionOptions = RegionOptions { address: 1 << 32, len: 2 << 20 };

#[test]
fn memory_that_is_added_while_pages_are_logged_is_logged_too() {
    for options in both() {
        // One chain of its own, and a descriptor for another.
        let options = GuestOptions { receive_pieces: 3, ..options.queue_size(4) };
        let (_directory, daemon, mut guest) = reflected(options);
        let _short = log_for(&mut guest);
        let link = guest.link().unwrap();
        link.set_logging(true).unwrap();
        let memory = SharedMemory::new(&[PLUGGED]).unwrap();
        let plugged = FileRegion { region: PLUGGED, file: memory.file(), offset: 0 };
        expect_refused(link.add_region(&plugged), "ADD_MEM_REG");
        let log = DirtyFile::new(PLUGGED.address + PLUGGED.len).unwrap();
        link.set_log(log.file(), log.len(), 0).unwrap();
        link.add_region(&plugged).unwrap();

        let at = PLUGGED.address + 5 * PAGE;
        let ring = guest.ring(0);
        assert!(ring.offer_foreign(&[Buffer { address: at, len: 2048, writable: true }]));
        ring.publish();
        ring.kick_anyway().unwrap();
        let (frame, pair) = (frames::frame(1, 60), guest.pair(0));
        eventually(SOON, "the chain to come back", || {
            pair.reap().unwrap();
            pair.send(&frame).unwrap();
            while pair.receive().unwrap().is_some() {}
            when(!pair.receive_ring().foreign_used().is_empty(), daemon.log())
        });
        let mut came = vec![0; frame.len()];
        memory.guest().read(at + pair.header_len() as u64, &mut came).unwrap();
        assert_eq!(came, frame);
        let in_it = pages(&log).split_off(&(PLUGGED.address / PAGE));
        assert_eq!(in_it, BTreeSet::from([at / PAGE]));
    }
}

#[test]
fn pages_are_not_logged_without_a_log() {
    for options in both() {
        let (_directory, daemon, mut guest) = reflected(options);
        frames::come_back(&mut guest).unwrap();
        expect_refused(guest.link().unwrap().set_logging(true), "SET_FEATURES");
        daemon.expect_log("but there is no log; expected SET_LOG_BASE before it");
        frames::come_back(&mut guest).unwrap();
    }
}

#[test]
fn a_log_that_becomes_shorter_stops_its_guest_and_nobody_else() {
    for options in both() {
        let (_directory, mut daemon, mut guest) = reflected(options.clone());
        let log = log_for(&mut guest);
        guest.link().unwrap().set_logging(true).unwrap();
        frames::come_back(&mut guest).unwrap();
        log.file().set_len(0).unwrap();
        let pair = guest.pair(0);
        assert!(pair.send(&frames::frame(1, 60)).unwrap());
        daemon.expect_log("the file of its dirty log became shorter");
        assert!(daemon.is_alive());
        guest.disconnect();
        let mut next = Guest::connect(daemon.socket(), options).unwrap();
        frames::come_back(&mut next).unwrap();
    }
}

/// HOSTILE 33.
#[test]
fn chains_without_bytes_overrun_nothing_while_logging() {
    for options in both() {
        let (_directory, daemon, mut guest) = reflected(options);
        frames::come_back(&mut guest).unwrap();
        stop(&mut guest);
        queue_frames(&mut guest);
        let empty = Buffer { address: 0x8000, len: 0, writable: false };
        let mut offered = 0;
        while offered < 20 && guest.pair(0).transmit_ring().offer_foreign(&[empty]) {
            offered += 1;
        }
        guest.pair(0).flush().unwrap();
        let log = log_for(&mut guest);
        guest.link().unwrap().set_logging(true).unwrap();
        let written = written_by_device(&mut guest);
        expect_marked(&written, &log, "without bytes");
        assert!(offered > 0);
        drop(daemon);
    }
}

/// The next answer, which is one to `SET_LOG_BASE`.
fn answer_of_log(mut stream: &UnixStream) -> [u64; 2] {
    let mut answer = [0; 28];
    stream.read_exact(&mut answer).unwrap();
    [12, 20].map(|at| u64::from_ne_bytes(answer[at..at + 8].try_into().unwrap()))
}

fn expect_announcement(pair: &mut Pair, address: [u8; 6]) {
    let came = pair.receive_within(SOON).unwrap().expect("an announcement").bytes;
    assert_eq!((came.len(), &came[..6], &came[6..12]), (60, &[0xff; 6][..], &address[..]));
    assert_eq!(came[12..14], [0x80, 0x35], "RARP");
}

#[test]
fn a_guest_that_moved_here_is_announced_to_its_neighbours() {
    let options = [GuestOptions::default(), GuestOptions::default().packed(true)];
    let mut lan = Lan::new(&options, "");
    for (from, to) in [(0, 1), (1, 0)] {
        assert!(announce(&mut lan.guests[from], station(from)));
        expect_announcement(lan.pair(to), station(from));
        lan.expect_nothing(to);
        lan.expect_nothing(from);
        assert_eq!(lan.trace(from).packets(1), 1, "it is counted");
    }
}

/// When QEMU asks for an announcement, milliseconds after the first time (`qemu_announce_timer_step`, net/announce.c).
const ANNOUNCED_BY_QEMU: [u64; 5] = [0, 50, 200, 450, 800];

/// A front end that asks over and over must not fill the network with frames to everyone.
#[test]
fn the_announcements_of_qemu_are_all_sent_and_a_flood_of_them_is_limited() {
    let mut lan = Lan::new(&both(), "");
    let begun = Instant::now();
    for after in ANNOUNCED_BY_QEMU.map(Duration::from_millis) {
        sleep(after.saturating_sub(begun.elapsed()));
        assert!(announce(&mut lan.guests[0], station(0)), "after {after:?}");
        expect_announcement(lan.pair(1), station(0));
    }
    sleep(Duration::from_secs(1));
    let begun = Instant::now();
    let sent = (0..300).filter(|_| announce(&mut lan.guests[0], station(0))).count();
    // 10 at once, then one in 100 ms.
    let most = 11 + begun.elapsed().as_millis() / 100;
    assert!((10..=most).contains(&(sent as u128)), "{sent} of at most {most}");
    (0..sent).for_each(|_| expect_announcement(lan.pair(1), station(0)));
    lan.expect_nothing(1);
    assert_eq!(lan.trace(0).packets(1), sent as u64 + 5);
    assert_eq!(lan.trace(0).drops(1, DropCause::TxFloodLimit), 300 - sent as u64);
    let log = lan.daemon.log();
    assert_eq!(log.matches("asks for too many announcements").count(), 1, "{log}");
    // Another guest's are not counted with them.
    assert!(announce(&mut lan.guests[1], station(1)));
    expect_announcement(lan.pair(0), station(1));
}

/// The wires give back what is sent there.
#[test]
fn a_guest_that_moved_here_is_announced_on_every_wire() {
    let directory = tempfile::tempdir().unwrap();
    for kind in Kind::ALL {
        let mirror = Mirror::new(kind);
        let arguments = ["--datapath", mirror.datapath()];
        let daemon = Daemon::start(directory.path(), "log", &arguments).unwrap();
        for options in both() {
            let mut guest = Guest::connect(daemon.socket(), options).unwrap();
            frames::come_back(&mut guest).unwrap();
            if kind == Kind::Reflect {
                assert!(!announce(&mut guest, station(7)), "there is nobody");
                daemon.expect_log("could not be announced");
            } else {
                assert!(announce(&mut guest, station(7)), "{kind}: {}", daemon.log());
                expect_announcement(guest.pair(0), station(7));
            }
            frames::come_back(&mut guest).unwrap();
            // QEMU asks for the first one before it starts the rings.
            guest.stop_ring(1).unwrap();
            assert!(announce(&mut guest, station(8)), "{kind}");
            guest.start_ring(1).unwrap();
            if kind != Kind::Reflect {
                expect_announcement(guest.pair(0), station(8));
            }
            frames::come_back(&mut guest).unwrap();
        }
    }
}
