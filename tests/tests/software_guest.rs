//! The guest in software against a back end that no one here wrote: DPDK's vhost library.

use std::path::Path;
use std::time::Duration;

use frontend::{Guest, GuestOptions, Listener, RegionOptions};
use ringscope_tests::dpdk::Testpmd;
use ringscope_tests::frames;

const SOON: Duration = Duration::from_secs(5);

#[test]
fn dpdk_returns_every_frame_whatever_was_negotiated() {
    let directory = tempfile::tempdir().unwrap();
    let socket = directory.path().join("dpdk");
    let _reflector = Testpmd::reflector(&socket, 1, 1).unwrap();
    // Those with version 1: without it DPDK's packed rings have no header that anybody knows.
    let modern = frames::guests().skip(8).flat_map(|options| frames::formats(&options));
    for options in frames::guests().chain(modern) {
        let mut guest = Guest::connect(&socket, options.clone()).unwrap();
        let features = guest.features();
        assert_eq!(features.event_index(), options.features & 1 << 29 != 0);
        assert_eq!(features.mergeable(), options.features & 1 << 15 != 0);
        frames::come_back(&mut guest).unwrap();
    }
}

#[test]
fn a_guest_stops_reboots_and_reconnects_on_two_queue_pairs() {
    let directory = tempfile::tempdir().unwrap();
    let socket = directory.path().join("dpdk");
    let _reflector = Testpmd::reflector(&socket, 2, 1).unwrap();
    for packed in [false, true] {
        stop_reboot_and_reconnect(&socket, packed);
    }
}

fn stop_reboot_and_reconnect(socket: &Path, packed: bool) {
    let mut options = GuestOptions::default().queue_pairs(2).queue_size(128).packed(packed);
    // Buffers lie across the seam of two regions that are adjacent.
    let mib = 1 << 20;
    options.regions = vec![
        RegionOptions { address: 0, len: 2 * mib },
        RegionOptions { address: 2 * mib, len: 8 * mib },
    ];
    let mut guest = Guest::connect(socket, options).unwrap();
    assert!(guest.link().unwrap().queue_pairs() >= Some(2));
    frames::come_back(&mut guest).unwrap();
    guest.restart().unwrap();
    frames::come_back(&mut guest).unwrap();
    guest.reboot().unwrap();
    frames::come_back(&mut guest).unwrap();
    guest.disconnect();
    assert!(guest.stop_ring(0).is_err(), "nobody is there");
    guest.reconnect(socket).unwrap();
    frames::come_back(&mut guest).unwrap();
}

#[test]
fn a_back_end_that_is_the_client_comes_again() {
    let directory = tempfile::tempdir().unwrap();
    let socket = directory.path().join("guest");
    let listener = Listener::bind(&socket).unwrap();
    let _reflector = Testpmd::connecting_reflector(&socket, 1, 1).unwrap();
    let mut guest = listener.accept(GuestOptions::default()).unwrap();
    frames::come_back(&mut guest).unwrap();
    guest.disconnect();
    guest.reconnect_over(listener.stream(SOON).unwrap()).unwrap();
    frames::come_back(&mut guest).unwrap();
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
