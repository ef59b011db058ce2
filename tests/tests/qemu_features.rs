//! Virtio features and QEMU: what its properties ask for, and daemons that offer less than the one before.

use std::thread::sleep;
use std::time::Duration;

use ringscope_tests::eventually::eventually;
use ringscope_tests::qemu::{Failure, GUEST, Place, SOON};
use ringscope_tests::traffic;
use serde_json::Value;

/// QEMU tries to connect again after this time, milliseconds.
const RECONNECT_MS: u32 = 100;
/// QEMU has tried several times.
const TRIES: Duration = Duration::from_secs(2);

fn negotiated(place: &Place) -> Result<Vec<String>, Failure> {
    let stats = place.stats(None)?;
    let names = stats["features"].as_array().into_iter().flatten().filter_map(Value::as_str);
    Ok(names.map(str::to_owned).collect())
}

#[test]
fn a_guest_gets_its_mtu_and_may_have_an_iommu_platform() -> Result<(), Failure> {
    let mut place = Place::new(1)?;
    place.spawn(&[])?;
    let mut options = place.options()?;
    options.properties = "host_mtu=1400,iommu_platform=on,disable-legacy=on".into();
    place.attach(options)?;
    assert_eq!(place.guest().check("cat /sys/class/net/eth0/mtu")?.trim(), "1400");
    traffic::everything_a_little(&mut place)?;
    let negotiated = negotiated(&place)?;
    let has = |name: &str| negotiated.iter().any(|it| it == name);
    assert!(has("mtu") && has("event_idx"), "{negotiated:?}");
    assert!(!has("access_platform") && !has("ring_reset"), "{negotiated:?}");
    assert!(!place.daemon().log().contains("WARN"), "{}", place.daemon().log());
    Ok(())
}

#[test]
fn a_daemon_without_the_guests_features_says_which_it_lacks() -> Result<(), Failure> {
    let mut place = Place::new(1)?;
    place.spawn(&[])?;
    let mut options = place.options()?;
    options.reconnect_ms = Some(RECONNECT_MS);
    place.attach(options)?;
    traffic::everything_a_little(&mut place)?;
    place.daemon().terminate(SOON)?;
    // With `csum` all that needs it is withheld.
    place.spawn(&["--features=-csum"])?;
    let lacking = "not offered now: csum host_tso4 host_tso6 host_ecn host_ufo; ";
    place.daemon().expect_log(lacking);
    sleep(TRIES);
    let log = place.daemon().log();
    assert_eq!(log.matches("the front end left").count(), 1, "it is logged once: {log}");
    // A daemon that ends without having served a guest knows it as well.
    place.daemon().terminate(SOON)?;
    place.spawn(&["--features=-event_idx"])?;
    place.daemon().expect_log("not offered now: event_idx; ");
    place.daemon().terminate(SOON)?;
    place.spawn(&[])?;
    eventually(SOON, "an answer to a ping", || {
        place.outside.exec(&format!("ping -q -c 1 -W 1 {GUEST}")).map_err(|it| it.to_string())
    });
    traffic::everything_a_little(&mut place)
}
