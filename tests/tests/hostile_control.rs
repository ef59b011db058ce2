//! A front end that sets up rings wrongly, and a driver that writes garbage to its event suppression.

use std::time::Duration;

use frontend::GuestOptions;
use frontend::driver::Driver;
use ringscope_tests::eventually::{SOON, eventually};
use ringscope_tests::frames;
use ringscope_tests::hostile::{SIZE, Scene, expect_refused};

#[test]
fn wrong_ring_sizes_are_refused_and_change_nothing() {
    for mut scene in Scene::all() {
        let packed = scene.is_packed();
        let link = scene.guest.link().unwrap();
        for size in [0, SIZE / 2, SIZE + 1, 2048] {
            expect_refused(link.set_size(1, size), "SET_VRING_NUM");
        }
        link.set_size(1, SIZE).unwrap();
        scene.expect_traffic();
        scene.guest.stop_ring(1).unwrap();
        let link = scene.guest.link().unwrap();
        for size in [0, 1025, 2048, u16::MAX] {
            expect_refused(link.set_size(1, size), "SET_VRING_NUM");
        }
        if packed {
            link.set_size(1, SIZE + 1).unwrap();
        } else {
            expect_refused(link.set_size(1, SIZE + 1), "SET_VRING_NUM");
        }
        scene.guest.start_ring(1).unwrap();
        scene.expect_traffic();
        assert!(scene.daemon.log().contains("SET_VRING_NUM of the front end was refused"));
    }
}

#[test]
fn rings_that_are_not_wholly_and_rightly_in_memory_are_refused() {
    for mut scene in Scene::all() {
        let setup = scene.guest.ring(1).driver().setup();
        let memory = scene.guest.memory();
        let user = |address| memory.user_address(address).unwrap();
        let end = user((16 << 20) - 1) + 1;
        let right = [setup.descriptor_table, setup.driver_area, setup.device_area].map(user);
        let wrong = |part: usize, address| {
            let mut parts = right;
            parts[part] = address;
            parts
        };
        // The smallest part, an event structure, has 4 bytes.
        let tables = [right[0] + 8, end - 1024 + 16, end, 16, u64::MAX - 15];
        let events = [right[1] + 1, end - 2, end, 16, u64::MAX - 3];
        let wrong: Vec<[u64; 3]> = tables
            .map(|address| wrong(0, address))
            .into_iter()
            .chain(events.map(|address| wrong(1, address)))
            .chain(events.map(|address| wrong(2, address)))
            .collect();
        let link = scene.guest.link().unwrap();
        for parts in &wrong {
            expect_refused(link.set_addresses(1, *parts), "SET_VRING_ADDR");
        }
        link.set_addresses(1, right).unwrap();
        scene.expect_traffic();
        scene.guest.stop_ring(1).unwrap();
        let link = scene.guest.link().unwrap();
        for parts in &wrong {
            expect_refused(link.set_addresses(1, *parts), "SET_VRING_ADDR");
        }
        scene.guest.start_ring(1).unwrap();
        scene.expect_traffic();
    }
}

#[test]
fn a_ring_that_cannot_start_is_reported_and_starts_when_it_is_right() {
    for mut scene in Scene::all() {
        scene.expect_traffic();
        let base = scene.guest.stop_ring(1).unwrap();
        if scene.is_packed() {
            // A descriptor that the ring does not have. Only the worker finds that out.
            let started = scene.guest.start_ring_at(1, 0x8000 | SIZE);
            expect_refused(started, "SET_VRING_KICK");
            assert!(scene.guest.ring(1).gave_up(Duration::from_secs(2)).unwrap());
            let log = scene.daemon.log();
            assert!(log.contains("a packed ring of 64 cannot go on at descriptor 64"), "{log}");
            scene.expect_others();
            scene.guest.stop_ring(1).unwrap();
            scene.guest.start_ring_at(1, base).unwrap();
            scene.expect_traffic();
        } else {
            // A split ring continues at its used index, wherever the front end says.
            for wrong in [base.wrapping_add(1), base.wrapping_sub(1), base ^ 0x8000] {
                scene.guest.start_ring_at(1, wrong).unwrap();
                scene.expect_traffic();
                let stopped = scene.guest.stop_ring(1).unwrap();
                scene.guest.start_ring_at(1, stopped).unwrap();
            }
            let log = scene.daemon.log();
            assert!(log.contains("its used index, not at "), "{log}");
            // One too far from the driver's index breaks it.
            let setup = scene.guest.ring(1).driver().setup();
            scene.guest.stop_ring(1).unwrap();
            let memory = scene.guest.memory().guest();
            memory.write(setup.device_area + 2, &base.wrapping_add(0x4000).to_le_bytes()).unwrap();
            scene.guest.start_ring_at(1, base).unwrap();
            assert!(scene.guest.ring(1).gave_up(Duration::from_secs(2)).unwrap());
            scene.expect_others();
            scene.expect_recovery();
        }
    }
}

#[test]
fn garbage_in_the_drivers_event_suppression_loses_no_signal_and_causes_no_storm() {
    let garbage = [0, 1, 7, 63, 64, 0x7fff, 0x8000, 0x8001, 0x803f, 0x8040, 0xffff];
    for event_index in [true, false] {
        let options = GuestOptions::default().event_index(event_index);
        for mut scene in Scene::all_of(&options) {
            let (mut sent, mut before) = (0, [0; 2]);
            for ring in [0, 1] {
                before[usize::from(ring)] = scene.guest.ring(ring).drain_calls();
            }
            for (event, flags) in
                garbage.iter().flat_map(|&event| [0, 1, 2, 3, 0xffff].map(|flags| (event, flags)))
            {
                for ring in [0, 1] {
                    write_wish(&mut scene, ring, event, flags);
                }
                let pair = scene.guest.pair(0);
                assert!(pair.send(&frames::frame(sent, 100)).unwrap());
                let came = eventually(SOON, "the frame to come back", || {
                    pair.receive().unwrap().ok_or("none")
                });
                assert_eq!(came.bytes, frames::frame(sent, 100));
                pair.reap().unwrap();
                sent += 1;
            }
            std::thread::sleep(Duration::from_millis(10));
            for ring in [0, 1] {
                let calls = scene.guest.ring(ring).drain_calls() - before[usize::from(ring)];
                assert!(calls <= sent as u64, "{calls} signals for {sent} frames on ring {ring}");
            }
            // As soon as the driver writes a valid wish again, it is signalled.
            scene.expect_traffic();
        }
    }
}

/// Writes the driver's event suppression as given.
fn write_wish(scene: &mut Scene, ring: u16, event: u16, flags: u16) {
    let driver = scene.guest.ring(ring).driver();
    let setup = driver.setup();
    if let Driver::Packed(driver) = driver {
        driver.write_event(event, flags);
        return;
    }
    let memory = scene.guest.memory().guest();
    let used_event = setup.driver_area + 4 + 2 * u64::from(setup.size);
    memory.write(setup.driver_area, &flags.to_le_bytes()).unwrap();
    memory.write(used_event, &event.to_le_bytes()).unwrap();
}
