//! Guest memory that is not what it was said to be: shorter, private, too much, gone in the middle of traffic. It
//! costs the guest whose it is its rings or its connection, and nobody else anything.

use std::fs::File;
use std::io::Write as _;
use std::path::PathBuf;
use std::process::Command;
use std::sync::Arc;
use std::time::Duration;

use burst_trace::DropCause::{TxError, TxUnmapped};
use frontend::memory::SharedMemory;
use frontend::{FileRegion, Guest, GuestOptions, RegionOptions};
use ringscope_tests::daemon::Daemon;
use ringscope_tests::eventually::{SOON, eventually, when};
use ringscope_tests::frames;
use ringscope_tests::hostile::{SCRATCH, Scene, expect_refused, readable};
use ringscope_tests::lan::{Lan, frame, station};

const MIB: u64 = 1 << 20;
const MISSING: &str = "a part of the guest's memory is missing";

/// All rings of the guest stop.
#[track_caller]
fn expect_all_stopped(guest: &mut Guest, daemon: &Daemon) {
    let rings = 2 * u16::try_from(guest.pairs().len()).unwrap();
    let mut stopped = vec![false; rings.into()];
    eventually(SOON, "every ring to stop", || {
        for index in 0..rings {
            let ring = guest.ring(index);
            ring.kick_anyway().unwrap();
            stopped[usize::from(index)] |= ring.gave_up(Duration::from_millis(1)).unwrap();
        }
        when(stopped.iter().all(|it| *it), format!("{stopped:?}: {}", daemon.log()))
    });
}

#[test]
fn memory_that_is_truncated_under_traffic_breaks_all_rings_of_its_guest_and_no_other() {
    for mut scene in Scene::all() {
        scene.expect_traffic();
        for n in 0..20 {
            assert!(scene.guest.pair(0).queue(&frames::frame(n, 500)).unwrap());
        }
        scene.guest.pair(0).flush().unwrap();
        scene.guest.memory().file().set_len(0).unwrap();
        expect_all_stopped(&mut scene.guest, &scene.daemon);
        let log = scene.daemon.log();
        assert!(log.contains(MISSING), "{log}");
        scene.expect_neighbour();
        scene.expect_successor();
    }
}

#[test]
fn a_frame_in_memory_that_is_missing_is_dropped_by_the_kernel_or_breaks_its_guest() {
    for mut scene in Scene::all() {
        scene.expect_traffic();
        scene.guest.memory().file().set_len(SCRATCH).unwrap();
        for _ in 0..3 {
            let ring = scene.guest.ring(1);
            assert!(ring.offer_foreign(&[readable(SCRATCH, 500)]));
            ring.publish();
            ring.kick_anyway().unwrap();
        }
        let mut sent = 0;
        eventually(SOON, "3 frames to be sent or dropped, or the ring to stop", || {
            let dropped = scene.drops(1, TxError) == 3;
            let broken = scene.guest.ring(1).gave_up(Duration::from_millis(1)).unwrap();
            // Memory that the kernel has for frames to be sent stays, whatever becomes of its file.
            scene.guest.pair(0).reap().unwrap();
            sent += scene.guest.ring(1).foreign_used().len();
            when(dropped || broken || sent == 3, scene.daemon.log())
        });
        scene.expect_neighbour();
        scene.expect_successor();
    }
}

#[test]
fn on_a_switch_only_the_guest_with_the_missing_memory_stops() {
    for (broken, packed) in [(0, false), (1, false), (0, true), (1, true)] {
        let mut lan = Lan::new(&vec![GuestOptions::default().packed(packed); 3], "");
        lan.introduce();
        // Whether it sends or receives.
        lan.guests[broken].memory().file().set_len(0).unwrap();
        for n in 0..50 {
            let sent = frame(station(1), station(0), n, 200);
            // The guest itself may find its rings full of zeroes.
            let _ = lan.pair(0).send(&sent);
            let _ = lan.pair(0).reap();
        }
        expect_all_stopped(&mut lan.guests[broken], &lan.daemon);
        let other = 1 - broken;
        // A switch floods what is for a port that is gone.
        while lan.pair(2).receive_within(Duration::from_millis(50)).unwrap().is_some() {}
        for seed in 0..10 {
            let sent = frame(station(other), station(2), seed, 300);
            lan.send(2, &sent);
            lan.expect(other, &sent);
            let answer = frame(station(2), station(other), seed, 300);
            lan.send(other, &answer);
            lan.expect(2, &answer);
        }
        lan.guests[broken].disconnect();
        let socket = lan.directory().join(format!("vm{broken}.sock"));
        lan.guests[broken] =
            Guest::connect(socket, GuestOptions::default().packed(packed)).unwrap();
        let sent = frame(station(broken), station(2), 77, 300);
        lan.send(2, &sent);
        lan.expect(broken, &sent);
    }
}

/// A file system of 2 MiB. It is removed in the end.
struct Small(PathBuf);

impl Small {
    fn new(directory: &std::path::Path) -> Self {
        let at = directory.join("small");
        std::fs::create_dir(&at).unwrap();
        let mut mount = Command::new("mount");
        mount.args(["-t", "tmpfs", "-o", "size=2m", "small"]).arg(&at);
        assert!(mount.status().unwrap().success());
        Self(at)
    }
}

impl Drop for Small {
    fn drop(&mut self) {
        let _ = Command::new("umount").arg("-l").arg(&self.0).status();
    }
}

#[test]
fn a_page_for_which_a_file_system_has_no_room_breaks_its_guest_only() {
    for packed in [false, true] {
        let directory = tempfile::tempdir().unwrap();
        let small = Small::new(directory.path());
        let mut daemon =
            Daemon::start(directory.path(), "full", &["--datapath", "reflect"]).unwrap();
        let file = Arc::new(
            File::options()
                .read(true)
                .write(true)
                .create(true)
                .truncate(true)
                .open(small.0.join("memory"))
                .unwrap(),
        );
        let options = GuestOptions {
            regions: vec![RegionOptions { address: 0, len: 16 * MIB }],
            file: Some(file),
            ..GuestOptions::default().queue_size(64).packed(packed)
        };
        let mut guest = Guest::connect(daemon.socket(), options).unwrap();
        frames::come_back(&mut guest).unwrap();
        let mut filler = File::create(small.0.join("filler")).unwrap();
        while filler.write_all(&[1; 4096]).is_ok() {}
        let ring = guest.ring(1);
        assert!(ring.offer_foreign(&[readable(SCRATCH, 500)]));
        ring.publish();
        expect_all_stopped(&mut guest, &daemon);
        assert!(daemon.is_alive() && daemon.log().contains(MISSING), "{}", daemon.log());
        guest.disconnect();
        let options = GuestOptions::default().packed(packed);
        frames::come_back(&mut Guest::connect(daemon.socket(), options).unwrap()).unwrap();
    }
}

fn memory(len: u64) -> File {
    let file = rustix::fs::memfd_create("m", rustix::fs::MemfdFlags::CLOEXEC).unwrap();
    let file = File::from(file);
    file.set_len(len).unwrap();
    file
}

const fn region(address: u64, len: u64) -> RegionOptions {
    RegionOptions { address, len }
}

/// A daemon that reflects, and a guest with memory up to 16 MiB.
fn reflection() -> (tempfile::TempDir, Daemon, Guest) {
    let directory = tempfile::tempdir().unwrap();
    let daemon = Daemon::start(directory.path(), "odd", &["--datapath", "reflect"]).unwrap();
    let options = GuestOptions {
        regions: vec![region(0, 16 * MIB)],
        ..GuestOptions::default().queue_size(64)
    };
    let guest = Guest::connect(daemon.socket(), options).unwrap();
    (directory, daemon, guest)
}

#[test]
fn files_that_cannot_be_the_memory_that_they_are_said_to_be_are_refused_and_change_nothing() {
    let (directory, mut daemon, mut guest) = reflection();
    let short = memory(4096);
    let huge = memory(1 << 47);
    let device = File::open("/dev/zero").unwrap();
    let pseudo = File::open("/proc/self/maps").unwrap();
    let folder = File::open(directory.path()).unwrap();
    let far = |len| region(1 << 32, len);
    let all = [
        (
            FileRegion { region: far(8192), file: &short, offset: 0 },
            "4096 bytes; expected at least 8192",
        ),
        (FileRegion { region: far(4096), file: &short, offset: 4096 }, "expected at least 8192"),
        // One byte more than there are.
        (FileRegion { region: far(4097), file: &short, offset: 0 }, "expected at least 4097"),
        (FileRegion { region: far(1 << 47), file: &short, offset: 0 }, "for one guest"),
        (FileRegion { region: far(1 << 47), file: &huge, offset: 0 }, "for one guest"),
        (FileRegion { region: far(4096), file: &device, offset: 0 }, "expected a file of memory"),
        (FileRegion { region: far(4096), file: &pseudo, offset: 0 }, "file system (proc)"),
        (FileRegion { region: far(4096), file: &folder, offset: 0 }, "expected a file of memory"),
        (FileRegion { region: region(MIB, 4096), file: &short, offset: 0 }, "overlap"),
    ];
    for (wrong, why) in all {
        let logged = daemon.log().len();
        let link = guest.link().unwrap();
        expect_refused(link.add_region(&wrong), "ADD_MEM_REG");
        if why != "overlap" {
            expect_refused(link.offer_table(&[wrong]), "SET_MEM_TABLE");
        }
        frames::come_back(&mut guest).unwrap();
        // Messages of the same kind are logged once a second.
        eventually(SOON, &format!("{why:?} in the log"), || {
            expect_refused(guest.link().unwrap().add_region(&wrong), "ADD_MEM_REG");
            let log = daemon.log()[logged..].to_owned();
            when(log.contains(why), log)
        });
    }
    assert!(daemon.is_alive());
    guest
        .link()
        .unwrap()
        .add_region(&FileRegion { region: far(4096), file: &short, offset: 0 })
        .unwrap();
    frames::come_back(&mut guest).unwrap();
}

#[test]
fn a_guest_has_as_many_regions_as_are_advertised_and_looking_at_them_costs_little() {
    let (_directory, daemon, mut guest) = reflection();
    let file = memory(4096);
    let before = daemon.cpu_time();
    let link = guest.link().unwrap();
    for n in 1..509 {
        let region = region((1 << 32) + 8192 * n, 4096);
        link.add_region(&FileRegion { region, file: &file, offset: 0 }).unwrap();
    }
    let one_more = FileRegion { region: region(1 << 40, 4096), file: &file, offset: 0 };
    expect_refused(link.add_region(&one_more), "ADD_MEM_REG");
    let took = daemon.cpu_time() - before;
    assert!(took < Duration::from_secs(5), "{took:?} of CPU");
    frames::come_back(&mut guest).unwrap();
}

#[test]
fn a_guest_whose_memory_is_private_is_refused_and_the_next_one_is_served() {
    let directory = tempfile::tempdir().unwrap();
    let mut daemon =
        Daemon::start(directory.path(), "private", &["--datapath", "reflect"]).unwrap();
    for _ in 0..2 {
        let options = GuestOptions { private: true, ..GuestOptions::default() };
        let refused = Guest::connect(daemon.socket(), options);
        assert!(refused.is_err(), "it is not refused");
        daemon.expect_log("share=on");
        let mut guest = Guest::connect(daemon.socket(), GuestOptions::default()).unwrap();
        frames::come_back(&mut guest).unwrap();
    }
    assert!(daemon.is_alive());
}

/// Memory that is plugged in while the rings run, as QEMU does without `share=on`.
#[test]
fn private_memory_that_comes_to_a_guest_is_refused_by_name_and_the_guest_goes_on() {
    let (_directory, mut daemon, mut guest) = reflection();
    frames::come_back(&mut guest).unwrap();
    let file = Arc::new(memory(2 * MIB));
    let plugged = region(1 << 32, 2 * MIB);
    let _private = SharedMemory::in_file(&[plugged], Arc::clone(&file), true).unwrap();
    let dimm = FileRegion { region: plugged, file: &file, offset: 0 };
    expect_refused(guest.link().unwrap().add_region(&dimm), "ADD_MEM_REG");
    daemon.expect_log("region 1, 2 MiB at 0x100000000, is private to process");
    daemon.expect_log("share=on");
    frames::come_back(&mut guest).unwrap();
    // In a table, it leaves the one that was.
    expect_refused(guest.link().unwrap().offer_table(&[dimm]), "SET_MEM_TABLE");
    frames::come_back(&mut guest).unwrap();
    // QEMU offers it again before it adds the next one.
    guest.link().unwrap().add_region(&dimm).unwrap();
    let shared = memory(2 * MIB);
    let next = FileRegion { region: region(1 << 33, 2 * MIB), file: &shared, offset: 0 };
    guest.link().unwrap().add_region(&next).unwrap();
    for (address, unmapped) in [(1 << 32, 1), (1 << 33, 1), (1 << 34, 2)] {
        let ring = guest.ring(1);
        assert!(ring.offer_foreign(&[readable(address, 500)]));
        ring.publish();
        ring.kick_anyway().unwrap();
        eventually(SOON, "the buffer to come back", || {
            guest.pair(0).reap().unwrap();
            when(guest.ring(1).foreign_used().len() == 1, daemon.log())
        });
        let came = guest.pair(0).receive_within(Duration::from_millis(100)).unwrap().is_some();
        assert_eq!(came, address == 1 << 33);
        let reader = daemon.reader().unwrap();
        assert_eq!(reader.drops(1, TxUnmapped), unmapped, "{address:#x}");
    }
    daemon.expect_log("if memory was plugged in, it must be shared too");
    let link = guest.link().unwrap();
    link.remove_region(&dimm).unwrap();
    link.remove_region(&next).unwrap();
    expect_refused(link.remove_region(&next), "REM_MEM_REG");
    frames::come_back(&mut guest).unwrap();
    assert!(daemon.is_alive());
}

#[test]
fn guest_memory_is_left_out_of_core_files() {
    let (_directory, daemon, mut guest) = reflection();
    frames::come_back(&mut guest).unwrap();
    let maps = std::fs::read_to_string(format!("/proc/{}/smaps", daemon.pid())).unwrap();
    let mut of_guest = maps.split("\n").skip_while(|line| !line.contains("memfd:ringscope-guest"));
    let flags = of_guest.find(|line| line.starts_with("VmFlags:")).expect("its flags");
    assert!(flags.split(' ').any(|flag| flag == "dd"), "{flags}");
}
