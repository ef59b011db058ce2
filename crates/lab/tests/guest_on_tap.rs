//! A real guest on QEMU's own tap back end: the lab without our back end. Needs root, QEMU and a
//! guest image, so it runs when asked for: `cargo test -p lab@0.1.0 -- --ignored`.

use lab::guest::{Attachment, Guest, GuestOptions};
use lab::outside::Outside;
use std::time::Duration;

#[test]
#[ignore = "needs root, QEMU and a guest image"]
fn a_guest_answers_and_comes_back_after_a_reboot() {
    let mut outside = Outside::new("lab").unwrap();
    let tap = outside.add_tap(1).unwrap();
    let dir = tempfile::tempdir().unwrap();
    let mut guest = Guest::launch(GuestOptions::new(Attachment::Tap(tap), dir.path())).unwrap();
    assert!(["tcg", "kvm"].contains(&guest.accelerator().as_str()));
    outside.exec("ping -q -c 3 -i 0.2 10.77.0.2").unwrap();
    assert_eq!(guest.run("echo a; false").unwrap().text, "a\n");
    let ended = guest.run_for("sleep 30", Duration::from_secs(1)).unwrap();
    assert_eq!(ended.status, 124);
    guest.reboot().unwrap();
    outside.exec("ping -q -c 3 -i 0.2 10.77.0.2").unwrap();
    guest.check("ping -q -c 2 10.77.0.1").unwrap();
}

#[test]
#[ignore = "needs root, QEMU and a guest image"]
fn two_queue_pairs_are_used_and_offloads_can_be_off() {
    let mut outside = Outside::new("lab").unwrap();
    let tap = outside.add_tap(2).unwrap();
    let dir = tempfile::tempdir().unwrap();
    let mut options = GuestOptions::new(Attachment::Tap(tap), dir.path());
    options.queue_pairs = 2;
    options.offloads = false;
    options.mrg_rxbuf = false;
    options.rx_queue_size = 1024;
    let mut guest = Guest::launch(options).unwrap();
    let channels = guest.check("ringscope agent channels eth0").unwrap();
    assert!(channels.contains(r#""combined":2"#), "{channels}");
    outside.exec("ping -q -c 3 -i 0.2 10.77.0.2").unwrap();
}

#[test]
#[ignore = "needs root, QEMU and a guest image"]
fn nothing_is_left_behind() {
    let (namespace, bridge) = {
        let mut outside = Outside::new("lab").unwrap();
        outside.add_tap(1).unwrap();
        (outside.namespace().to_owned(), outside.bridge().to_owned())
    };
    assert!(!std::path::Path::new(&format!("/run/netns/{namespace}")).exists());
    assert!(!std::path::Path::new(&format!("/sys/class/net/{bridge}")).exists());
}
