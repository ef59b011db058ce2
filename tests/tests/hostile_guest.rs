//! A guest that breaks the rules, on rings of both formats.
//!
//! What it does to one chain costs it that chain: it comes back with length 0, and a counter names why. What
//! it does to a ring costs it that ring until a reset. Nothing is written beside its buffers, and its other
//! queue pair, standing for everybody else, carries frames all the while.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{Duration, Instant};

use burst_trace::DropCause::{
    RxDirection, RxEmptyChain, RxNoBuffers, RxTooBig, RxUnmapped, TxBadNetHeader, TxDirection,
    TxRefused, TxTooShort, TxUnmapped, TxUnsegmentable,
};
use frontend::driver::Driver;
use frontend::layout::{DESC_F_INDIRECT, DESC_F_NEXT, Descriptor, PackedDescriptor};
use frontend::{Error, Guest, GuestOptions, RegionOptions};
use ringscope_tests::daemon::Daemon;
use ringscope_tests::eventually::{SOON, eventually, when};
use ringscope_tests::frames;
use ringscope_tests::hostile::{
    SCRATCH, SIZE, Scene, UNMAPPED, expect_all_back, offer_one, poll_for, readable, writable,
};
use ringscope_tests::mirror::{Kind, Mirror};
use ringscope_tests::trace::Trace;

#[test]
fn chains_that_are_wrong_in_themselves_are_dropped_and_counted() {
    // An address and a length that wrap 64 bits; no memory at all.
    let wraps = u64::MAX - 10;
    for mut scene in Scene::all() {
        scene.expect_drop(1, &[readable(wraps, 100)], TxUnmapped);
        scene.expect_drop(1, &[readable(UNMAPPED, 0)], TxUnmapped);
        scene.expect_drop(1, &[readable(UNMAPPED, 100)], TxUnmapped);
        scene.expect_drop(1, &[readable(SCRATCH, 100), readable(UNMAPPED, 100)], TxUnmapped);
        scene.expect_drop(1, &[writable(SCRATCH, 100)], TxDirection);
        scene.expect_drop(1, &[readable(SCRATCH, 100), writable(SCRATCH, 100)], TxDirection);
        for len in [0, 1, 11, 12] {
            scene.expect_drop(1, &[readable(SCRATCH, len)], TxTooShort);
        }
        scene.expect_drop(0, &[writable(wraps, 100)], RxUnmapped);
        scene.expect_drop(0, &[writable(UNMAPPED, 0)], RxUnmapped);
        scene.expect_drop(0, &[readable(SCRATCH, 2048)], RxDirection);
        scene.expect_drop(0, &[writable(SCRATCH, 0)], RxEmptyChain);
    }
}

#[test]
fn chains_that_loop_or_are_four_gigabytes_long_break_the_ring() {
    for mut scene in Scene::all() {
        for len in [64, 0] {
            scene.expect_break(1, "it loops", |ring| match ring.driver() {
                Driver::Split(driver) => {
                    let next = Descriptor { address: SCRATCH, len, flags: DESC_F_NEXT, next: 5 };
                    driver.write_descriptor(5, next);
                    driver.offer_raw(5);
                    driver.publish();
                }
                Driver::Packed(driver) => {
                    let next =
                        PackedDescriptor { address: SCRATCH, len, id: 0, flags: DESC_F_NEXT };
                    (0..SIZE).for_each(|_| driver.offer_raw(next));
                    driver.publish();
                }
            });
        }
        scene.expect_break(1, "the limit is 2^32", |ring| {
            assert!(ring.offer_foreign(&[readable(0, u32::MAX), readable(0, 1)]));
            ring.publish();
        });
        scene.expect_break(0, "the limit is 2^32", |ring| {
            assert!(ring.offer_foreign(&[writable(0, u32::MAX), writable(0, 1)]));
            ring.publish();
        });
    }
}

#[test]
fn indices_that_the_ring_does_not_have_break_it() {
    for mut scene in Scene::all() {
        if scene.is_packed() {
            // Ids are the guest's own business: it gets back what it said.
            let ring = scene.guest.ring(1);
            let Driver::Packed(driver) = ring.driver() else { panic!("a packed ring") };
            let flags = 0;
            driver.offer_raw(PackedDescriptor { address: SCRATCH, len: 72, id: 0xffff, flags });
            ring.publish();
            ring.kick_anyway().unwrap();
            let pair = scene.guest.pair(0);
            let returned =
                eventually(SOON, "the chain to come back", || pair.reap().err().ok_or("no answer"));
            assert!(matches!(returned, Error::NotOffered { ring: 1, head: 0xffff }));
            scene.expect_recovery();
            continue;
        }
        scene.expect_break(1, "descriptor index 64 in a table of 64", |ring| {
            let Driver::Split(driver) = ring.driver() else { panic!("a split ring") };
            driver.offer_raw(SIZE);
            driver.publish();
        });
        scene.expect_break(1, "descriptor index 65535 in a table of 64", |ring| {
            offer_one(ring, SCRATCH, 100, DESC_F_NEXT, 0xffff);
        });
        for index in [0, 1] {
            scene.expect_break(index, "entries ahead in a ring of 64", |ring| {
                let Driver::Split(driver) = ring.driver() else { panic!("a split ring") };
                driver.write_available_index(driver.position().wrapping_add(SIZE + 1));
            });
        }
    }
}

#[test]
fn indirect_tables_that_are_wrong_break_the_ring() {
    const TABLE: u64 = SCRATCH;
    for mut scene in Scene::all() {
        for (address, len, flags, why) in [
            (TABLE, 0, 0, "an indirect table of 0 bytes"),
            (TABLE, 24, 0, "an indirect table of 24 bytes"),
            (UNMAPPED, 32, 0, "which is not guest memory"),
            (TABLE, 32, DESC_F_NEXT, "together with NEXT"),
        ] {
            scene.expect_break(1, why, |ring| {
                offer_one(ring, address, len, DESC_F_INDIRECT | flags, 0);
            });
        }
        // A table in a table: flags are in one place of a split descriptor, in another of a packed one.
        let memory = Arc::clone(scene.guest.memory().guest());
        let entry = |flags: u16, next: u16| {
            let rest = [100, u64::from(flags) << 32, u64::from(next) << 48].iter().sum::<u64>();
            [SCRATCH.to_le_bytes(), rest.to_le_bytes()].concat()
        };
        memory.write(TABLE, &entry(DESC_F_INDIRECT, DESC_F_INDIRECT)).unwrap();
        scene.expect_break(1, "an indirect descriptor inside a table", |ring| {
            offer_one(ring, TABLE, 16, DESC_F_INDIRECT, 0);
        });
        // One that goes in circles, where its descriptors have links; and one that is longer than a chain may be.
        memory.write(TABLE, &entry(DESC_F_NEXT, 0)).unwrap();
        if !scene.is_packed() {
            scene.expect_break(1, "it loops", |ring| {
                offer_one(ring, TABLE, 16, DESC_F_INDIRECT, 0);
            });
        }
        scene.expect_break(1, "a descriptor chain of more than 1024 descriptors", |ring| {
            offer_one(ring, TABLE, 16 * 1025, DESC_F_INDIRECT, 0);
        });
    }
    for mut scene in Scene::all_of(&GuestOptions::default().indirect(false)) {
        scene.expect_break(1, "without VIRTIO_F_INDIRECT_DESC negotiated", |ring| {
            offer_one(ring, TABLE, 16, DESC_F_INDIRECT, 0);
        });
    }
}

#[test]
fn descriptors_that_change_while_they_are_read_hurt_only_their_guest() {
    // An indirect table that is nowhere breaks the ring: without them, all that goes wrong is a chain.
    for mut scene in Scene::all_of(&GuestOptions::default().indirect(false)) {
        let memory = Arc::clone(scene.guest.memory().guest());
        let table =
            |ring: u16, guest: &mut Guest| guest.ring(ring).driver().setup().descriptor_table;
        let tables = [0, 1].map(|ring| table(ring, &mut scene.guest));
        let (packed, stop) = (scene.is_packed(), AtomicBool::new(false));
        std::thread::scope(|scope| {
            scope.spawn(|| {
                // Length and flags of a packed descriptor are the device's answer too; addresses are not.
                // A net header lies where every hostile address points to.
                for n in (0_usize..).take_while(|_| !stop.load(Ordering::Relaxed)) {
                    let address = [SCRATCH, UNMAPPED, u64::MAX - 20][n % 3];
                    let slot = table_offset(n / 3);
                    memory.write(tables[n % 2] + slot, &address.to_le_bytes()).unwrap();
                    memory.write(SCRATCH, &n.to_le_bytes()).unwrap();
                    if !packed {
                        let len = [100, u32::MAX, 5, 0][n % 4];
                        memory.write(tables[1] + slot + 8, &len.to_le_bytes()).unwrap();
                    }
                }
            });
            let begun = Instant::now();
            // Longer where a busy machine leaves the two threads no moment together.
            while begun.elapsed() < Duration::from_millis(150)
                || (scene.drops(1, TxUnmapped) == 0 && begun.elapsed() < Duration::from_secs(5))
            {
                scene.guest.pair(0).send(&frames::frame(1, 100)).unwrap();
                while scene.guest.pair(0).receive().unwrap().is_some() {}
            }
            stop.store(true, Ordering::Relaxed);
        });
        let pair = scene.guest.pair(0);
        eventually(SOON, "every chain to come back", || {
            while pair.receive().unwrap().is_some() {}
            pair.reap().unwrap();
            let free = pair.transmit_ring().driver().free();
            when(free == usize::from(SIZE), format!("{free} of {SIZE}"))
        });
        assert!(scene.drops(1, TxUnmapped) > 0, "it never hit");
        scene.guest.check_canaries().unwrap();
        scene.expect_recovery();
    }
}

/// Where a descriptor is in its table, one after the other.
const fn table_offset(n: usize) -> u64 {
    (n % SIZE as usize) as u64 * 16
}

/// Has guests like these meet a daemon on a wire of each of `kinds`.
fn on_mirrors(
    kinds: &[Kind],
    options: &[GuestOptions],
    mut meet: impl FnMut(Kind, &Daemon, &Trace, GuestOptions),
) {
    for &kind in kinds {
        let directory = tempfile::tempdir().unwrap();
        let mirror = Mirror::new(kind);
        for options in options.iter().flat_map(|options| kind.guests(options)) {
            let arguments = ["--datapath", mirror.datapath(), "--poll", poll_for(&options)];
            let daemon = Daemon::start(directory.path(), "odd", &arguments).unwrap();
            let trace = Trace::open(directory.path(), "odd");
            meet(kind, &daemon, &trace, options);
        }
    }
}

#[test]
fn headers_in_single_bytes_and_buffers_across_regions_are_as_good_as_any() {
    let seam = RegionOptions { address: 1 << 20, len: 1 << 20 };
    let options = GuestOptions {
        regions: vec![
            RegionOptions { address: 0, ..seam },
            seam,
            RegionOptions { address: 2 << 20, ..seam },
            RegionOptions { address: 3 << 20, ..seam },
        ],
        ..GuestOptions::default().queue_size(128)
    };
    on_mirrors(&Kind::ALL, &[options], |_, daemon, _, options| {
        let mut guest = Guest::connect(daemon.socket(), options).unwrap();
        frames::come_back(&mut guest).unwrap();
        let frame = frames::frame(3, 200);
        let mut pieces: Vec<&[u8]> = vec![&[0]; guest.pair(0).header_len() - 1];
        pieces.extend([&frame[..1], &frame[1..]]);
        assert!(guest.pair(0).send_chain(&[0], &pieces).unwrap());
        let came = guest.pair(0).receive_within(Duration::from_secs(2)).unwrap();
        assert_eq!(came.expect("the frame comes back").bytes, frame);
        frames::come_back(&mut guest).unwrap();
    });
}

#[test]
fn net_headers_have_the_length_that_was_negotiated() {
    let base = GuestOptions::default();
    let guests = [(false, false), (false, true), (true, false), (true, true)]
        .map(|(mergeable, version_1)| base.clone().mergeable(mergeable).version_1(version_1));
    // Where the daemon reflects, every guest of `reflect.rs` is one of these.
    on_mirrors(&Kind::ALL[1..], &guests, |_, daemon, _, options| {
        let long = [32, 15].iter().any(|bit| options.features & 1 << bit != 0);
        let mut guest = Guest::connect(daemon.socket(), options).unwrap();
        assert_eq!(guest.pair(0).header_len(), if long { 12 } else { 10 });
        frames::come_back(&mut guest).unwrap();
    });
}

#[test]
fn frames_that_receive_buffers_are_too_small_for_are_dropped_or_spread() {
    let base = GuestOptions {
        buffer_len: 128,
        regions: vec![RegionOptions { address: 0, len: SCRATCH + 4096 }],
        ..GuestOptions::default().queue_size(16)
    };
    let guests = [false, true].map(|mergeable| base.clone().mergeable(mergeable));
    on_mirrors(&Kind::ALL, &guests, |kind, daemon, trace, options| {
        let mut guest = Guest::connect(daemon.socket(), options).unwrap();
        let mergeable = guest.features().mergeable();
        let mut drops = 0;
        // 16 buffers of 128 bytes; one of 116 is a frame's that fits.
        for (len, fits) in [(116, true), (117, mergeable), (1500, mergeable), (2100, false)] {
            let ring = guest.ring(1);
            let room = ring.offer_foreign(&[readable(SCRATCH, len + 12)]);
            assert!(room, "no room for a frame of {len} bytes");
            ring.publish();
            ring.kick_anyway().unwrap();
            drops += u64::from(!fits);
            let (pair, mut frame, mut came) = (guest.pair(0), None, None);
            let cause = if mergeable { RxNoBuffers } else { RxTooBig };
            let what = format!("a frame of {len} bytes to come on {kind:?}, or to be dropped");
            eventually(SOON, &what, || {
                // The guest holds every frame's `num_buffers` against what it finds.
                frame = frame.take().or(pair.receive().unwrap());
                pair.reap().unwrap();
                came = came.or_else(|| pair.transmit_ring().foreign_used().pop());
                let received = if fits { frame.is_some() } else { trace.drops(0, cause) == drops };
                let found = || format!("{came:?} {frame:?} {}", daemon.log());
                if came.is_some() && received { Ok(()) } else { Err(found()) }
            });
            assert_eq!(frame.map(|frame| frame.bytes.len()), fits.then_some(len as usize));
        }
        guest.check_canaries().unwrap();
    });
}

#[test]
fn a_frame_that_waits_for_buffers_comes_when_there_are_enough() {
    let options = GuestOptions {
        buffer_len: 128,
        regions: vec![RegionOptions { address: 0, len: SCRATCH + 4096 }],
        ..GuestOptions::default().queue_size(16)
    };
    on_mirrors(&[Kind::Tap, Kind::TapUring], &[options], |kind, daemon, _, options| {
        let mut guest = Guest::connect(daemon.socket(), options).unwrap();
        for round in 0..20 {
            // Of 16 buffers, each frame needs 12: the second one waits until the guest has taken the first.
            let ring = guest.ring(1);
            let offer = |_| ring.offer_foreign(&[readable(SCRATCH, 1512)]);
            assert!((0..2).all(offer), "no room for two frames");
            ring.publish();
            ring.kick_anyway().unwrap();
            for frame in ["first", "second"] {
                let what = format!("the {frame} frame of round {round} on {kind:?}");
                eventually(SOON, &what, || {
                    guest.pair(0).reap().unwrap();
                    let came = guest.pair(0).receive().unwrap();
                    when(came.is_some(), daemon.log())
                });
            }
            let mut back = Vec::new();
            eventually(SOON, "the chains of both frames", || {
                guest.pair(0).reap().unwrap();
                back.extend(guest.pair(0).transmit_ring().foreign_used());
                when(back.len() == 2, format!("{back:?}"))
            });
        }
        guest.check_canaries().unwrap();
    });
}

#[test]
fn net_headers_that_lie_are_refused_and_counted() {
    const NEEDS_CHECKSUM: u8 = 1;
    const TCP4: u8 = 1;
    // Flags, type of segmentation; header length, segment size, checksum start and offset.
    let lies = [
        ([NEEDS_CHECKSUM, 0], [0, 0, 0xfff0, 16]),
        ([NEEDS_CHECKSUM, 0], [0, 0, 34, 0xfff0]),
        ([NEEDS_CHECKSUM, TCP4], [54, 0, 34, 16]),
        ([NEEDS_CHECKSUM, 0x7f], [54, 100, 34, 16]),
        ([NEEDS_CHECKSUM, TCP4], [0xffff, 100, 34, 16]),
    ];
    // A daemon that reflects offers no offloads, and reads no header.
    let guests = [GuestOptions::default().offloads()];
    on_mirrors(&Kind::ALL[1..], &guests, |kind, daemon, trace, options| {
        // By the kernel, or by the daemon before it.
        let refused = || {
            [TxRefused, TxBadNetHeader, TxUnsegmentable]
                .map(|it| trace.drops(1, it))
                .iter()
                .sum::<u64>()
        };
        let mut guest = Guest::connect(daemon.socket(), options).unwrap();
        for (count, ([flags, kind_of], numbers)) in (1..).zip(lies) {
            let numbers = numbers.map(u16::to_le_bytes).concat();
            let header = [&[flags, kind_of][..], &numbers, &[0; 2]].concat();
            let packets = trace.packets(1);
            assert!(guest.pair(0).send_chain(&header, &[&frames::frame(1, 100)]).unwrap());
            eventually(SOON, &format!("{header:?} to be refused on {kind:?}"), || {
                when(refused() == count, format!("{} of {count} {}", refused(), daemon.log()))
            });
            assert!(guest.pair(0).send(&frames::frame(1, 100)).unwrap());
            eventually(SOON, &format!("one more frame on {kind:?} after {header:?}"), || {
                when(trace.packets(1) == packets + 1, trace.packets(1))
            });
            expect_all_back(guest.pair(0));
        }
        guest.check_canaries().unwrap();
    });
}
