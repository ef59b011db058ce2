//! A Linux guest in QEMU on a tap: ping, UDP and TCP both ways.

use lab::guest::GuestOptions;
use ringscope_tests::qemu::{Failure, Place};
use ringscope_tests::traffic::{self, From};

const GIB: u64 = 1 << 30;

/// One guest of the matrix.
struct Case {
    queue_pairs: u16,
    daemon: &'static [&'static str],
    guest: fn(&mut GuestOptions),
    bytes: u64,
}

fn carry(case: &Case) -> Result<(), Failure> {
    let mut place = Place::new(case.queue_pairs)?;
    place.spawn(case.daemon)?;
    let mut options = place.options()?;
    (case.guest)(&mut options);
    place.attach(options)?;
    traffic::ping(&mut place)?;
    for from in [From::Outside, From::Guest] {
        traffic::udp(&mut place, from)?;
        let report = traffic::tcp(&mut place, from, case.bytes)?;
        eprintln!("TCP from {from:?}: {:.2} Gbit/s", report.bits_per_second / 1e9);
    }
    let stats = place.stats(None)?;
    for way in ["tx", "rx"] {
        assert!(stats[way]["packets"].as_u64() > Some(0), "{stats:#}");
    }
    assert_eq!(place.drops()?, []);
    Ok(())
}

#[test]
fn mergeable_with_offloads_never_polling() -> Result<(), Failure> {
    carry(&Case { queue_pairs: 1, daemon: &["--poll", "never"], guest: |_| {}, bytes: GIB })
}
