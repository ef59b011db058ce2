//! Frames that AF_XDP sends from the guest's own memory (`umem=guest`), while the guest does not leave them alone.

use std::time::Duration;

use frontend::{FileRegion, Guest, GuestOptions, RegionOptions};
use ringscope_tests::daemon::Daemon;
use ringscope_tests::eventually::{SOON, eventually, when};
use ringscope_tests::frames::{self, formats};
use ringscope_tests::hostile::expect_all_back;
use ringscope_tests::slow_wire::slow_wire;
use ringscope_tests::trace::Trace;

const FRAMES: usize = 32;

fn meet(mut act: impl FnMut(&mut Guest)) {
    // The last of the frames are on their way for some 50 ms.
    let outside = slow_wire("slow", 800);
    for options in formats(&GuestOptions::default().queue_size(64)) {
        let directory = tempfile::tempdir().unwrap();
        let datapath = format!("af-xdp:ifname={},umem=guest", outside.wire());
        let mut daemon =
            Daemon::start(directory.path(), "slow", &["--datapath", &datapath]).unwrap();
        let trace = Trace::open(directory.path(), "slow");
        let mut guest = Guest::connect(daemon.socket(), options).unwrap();
        for n in 0..FRAMES {
            assert!(guest.pair(0).queue(&frames::frame(n, 200)).unwrap());
        }
        guest.pair(0).flush().unwrap();
        std::thread::sleep(Duration::from_millis(10));
        act(&mut guest);
        assert!(daemon.is_alive() && !daemon.log().contains("panicked"), "{}", daemon.log());
        expect_all_back(guest.pair(0));
        assert_eq!(trace.packets(1), FRAMES as u64, "{}", daemon.log());
        assert!(guest.pair(0).send(&frames::frame(1, 300)).unwrap());
        eventually(SOON, "one more frame to be sent", || {
            when(trace.packets(1) == FRAMES as u64 + 1, trace.packets(1))
        });
    }
}

#[test]
fn descriptors_that_are_written_over_while_their_frames_are_on_their_way_change_nothing() {
    meet(|guest| {
        let packed = guest.features().packed();
        let setup = guest.ring(1).driver().setup();
        let memory = std::sync::Arc::clone(guest.memory().guest());
        for slot in 0..64 {
            let at = setup.descriptor_table + 16 * slot;
            // Too short for a frame: address stays, the length is 5.
            memory.write(at + 8, &5_u32.to_le_bytes()).unwrap();
            if !packed {
                memory.write(at, &u64::MAX.to_le_bytes()).unwrap();
            }
        }
        // Something to look at, again and again.
        guest.ring(1).kick_anyway().unwrap();
    });
}

#[test]
fn a_ring_that_is_disabled_and_enabled_has_each_of_its_frames_sent_once() {
    meet(|guest| {
        for _ in 0..3 {
            guest.link().unwrap().enable(1, false).unwrap();
            guest.link().unwrap().enable(1, true).unwrap();
        }
    });
}

#[test]
fn memory_changes_when_the_kernel_has_sent_the_frames_that_are_on_their_way() {
    meet(|guest| {
        let file = rustix::fs::memfd_create("more", rustix::fs::MemfdFlags::CLOEXEC).unwrap();
        let file = std::fs::File::from(file);
        file.set_len(4096).unwrap();
        let region = RegionOptions { address: 1 << 32, len: 4096 };
        let region = FileRegion { region, file: &file, offset: 0 };
        let sent = guest.pair(0).reap().unwrap();
        assert!(sent < FRAMES, "all were sent before");
        guest.link().unwrap().add_region(&region).unwrap();
        assert_eq!(sent + guest.pair(0).reap().unwrap(), FRAMES);
        guest.link().unwrap().remove_region(&region).unwrap();
    });
}
