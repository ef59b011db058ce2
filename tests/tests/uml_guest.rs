//! User Mode Linux as the guest: a real Linux driver and a front end that is not QEMU's, without an emulator. It is for
//! function, not for latency: its user space is slow to wake.

use ringscope_tests::qemu::{Failure, Place};
use ringscope_tests::traffic::{self, Check, From};

/// Bytes of each TCP transfer.
const BULK: u64 = 16 << 20;

#[test]
fn ping_udp_and_tcp_both_ways_and_nothing_is_dropped() -> Result<(), Failure> {
    let mut place = Place::new(1)?;
    place.spawn(&[])?;
    place.attach(place.uml_options()?)?;
    assert_eq!(place.guest().accelerator(), "uml");
    traffic::ping(&mut place)?;
    traffic::udp(&mut place, From::Outside)?;
    traffic::udp(&mut place, From::Guest)?;
    for from in [From::Outside, From::Guest] {
        traffic::tcp(&place, from, BULK)?;
    }
    traffic::tcp_both_ways(&place, BULK, Check::Hash)?;
    let [rx, tx] = place.packets()?[..] else { return Err("expected two rings".into()) };
    assert!(rx > 1000 && tx > 1000, "{rx} packets to the guest, {tx} from it");
    assert_eq!(place.drops()?, []);
    // A guest that is killed leaves no process, and the next one is served.
    let guest = place.guest().pid();
    place.guest().kill()?;
    place.attach(place.uml_options()?)?;
    assert_ne!(place.guest().pid(), guest);
    traffic::everything_a_little(&mut place)
}
