//! The guest in software against a back end that no one here wrote: DPDK's vhost library.

use std::path::Path;
use std::time::Duration;

use frontend::{Guest, GuestOptions, Listener, RegionOptions};
use ringscope_tests::dpdk::Testpmd;

const SOON: Duration = Duration::from_secs(5);

fn frame(seed: usize, len: usize) -> Vec<u8> {
    (0..len).map(|at| (seed * 37 + at * 5 + at / 253) as u8).collect()
}

/// Sends frames of many lengths in chains of many shapes. Each must come back as it was.
fn frames_come_back(guest: &mut Guest, longest: usize) {
    for pair in guest.pairs() {
        let header = vec![0; pair.header_len()];
        for (n, len) in [60, 61, 1000, 1514, 64, longest].into_iter().enumerate() {
            let sent = frame(n, len);
            let (head, tail) = sent.split_at(len / 3);
            let (bytes, rest) = header.split_at(1);
            let queued = match n % 3 {
                0 => pair.send(&sent),
                1 => pair.send_chain(&header, &[head, tail]),
                _ => pair.send_chain(bytes, &[rest, &head[..1], &head[1..], tail]),
            };
            assert!(queued.unwrap(), "room for frame {n}");
            let came = pair.receive_within(SOON).unwrap().expect("the frame comes back");
            assert!(came.bytes == sent, "frame {n} of {len} bytes: {} came", came.bytes.len());
            let room = pair.receive_ring().buffers().len() as usize;
            let buffers = (len + header.len()).div_ceil(room);
            assert_eq!(usize::from(came.buffers), buffers);
        }
        // All at once: order holds, nothing is lost.
        for n in 0..100 {
            assert!(pair.queue(&frame(n, 60 + 10 * n)).unwrap());
        }
        pair.flush().unwrap();
        for n in 0..100 {
            let came = pair.receive_within(SOON).unwrap().expect("the frame comes back");
            assert!(came.bytes == frame(n, 60 + 10 * n), "frame {n}");
        }
        assert_eq!(pair.receive_ring().counters().calls_missed, 0);
    }
    guest.check_canaries().unwrap();
}

fn shapes() -> impl Iterator<Item = GuestOptions> {
    (0..16).map(|bits| {
        let has = |bit: u32| bits & 1 << bit != 0;
        GuestOptions::default()
            .event_index(has(0))
            .indirect(has(1))
            .mergeable(has(2))
            .version_1(has(3))
    })
}

#[test]
fn dpdk_returns_every_frame_whatever_was_negotiated() {
    let directory = tempfile::tempdir().unwrap();
    let socket = directory.path().join("dpdk");
    let _reflector = Testpmd::reflector(&socket, 1, 1).unwrap();
    for mut options in shapes() {
        // Close to the wrap of the indices.
        options.start_index = 65500;
        let mut guest = Guest::connect(&socket, options.clone()).unwrap();
        let features = guest.features();
        assert_eq!(features.event_index(), options.features & 1 << 29 != 0);
        assert_eq!(features.mergeable(), options.features & 1 << 15 != 0);
        let longest = if features.mergeable() { 6000 } else { 1900 };
        frames_come_back(&mut guest, longest);
    }
}

#[test]
fn a_guest_stops_reboots_and_reconnects_on_two_queue_pairs() {
    let directory = tempfile::tempdir().unwrap();
    let socket = directory.path().join("dpdk");
    let _reflector = Testpmd::reflector(&socket, 2, 1).unwrap();
    let mut options = GuestOptions::default().queue_pairs(2).queue_size(128);
    // Buffers lie across the seam of two regions that are adjacent.
    let mib = 1 << 20;
    options.regions = vec![
        RegionOptions { address: 0, len: 2 * mib },
        RegionOptions { address: 2 * mib, len: 8 * mib },
    ];
    let mut guest = Guest::connect(&socket, options).unwrap();
    assert!(guest.link().unwrap().queue_pairs() >= Some(2));
    frames_come_back(&mut guest, 6000);
    guest.restart().unwrap();
    frames_come_back(&mut guest, 6000);
    guest.reboot().unwrap();
    frames_come_back(&mut guest, 6000);
    guest.disconnect();
    assert!(guest.stop_ring(0).is_err(), "nobody is there");
    guest.reconnect(&socket).unwrap();
    frames_come_back(&mut guest, 6000);
}

#[test]
fn a_back_end_that_is_the_client_comes_again() {
    let directory = tempfile::tempdir().unwrap();
    let socket = directory.path().join("guest");
    let listener = Listener::bind(&socket).unwrap();
    let _reflector = Testpmd::connecting_reflector(&socket, 1, 1).unwrap();
    let mut guest = listener.accept(GuestOptions::default()).unwrap();
    frames_come_back(&mut guest, 6000);
    guest.disconnect();
    guest.reconnect_over(listener.stream(SOON).unwrap()).unwrap();
    frames_come_back(&mut guest, 6000);
    drop(listener);
    assert!(!socket.exists());
}

#[test]
fn where_nobody_listens_the_guest_says_so() {
    let patience = Duration::from_millis(50);
    let options = GuestOptions { patience, ..GuestOptions::default() };
    let refused = Guest::connect(Path::new("/nonexistent/socket"), options).unwrap_err();
    let text = refused.to_string();
    assert!(text.starts_with("no vhost-user back end at /nonexistent/socket"), "{text}");
    let directory = tempfile::tempdir().unwrap();
    let options = GuestOptions { patience, ..GuestOptions::default() };
    let refused = Guest::listen(directory.path().join("socket"), options).unwrap_err();
    let text = refused.to_string();
    assert!(text.starts_with("no vhost-user back end connected to"), "{text}");
}
