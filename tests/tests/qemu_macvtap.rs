//! A Linux guest in QEMU on a macvtap that the daemon made over a wire: ping, UDP, and TCP of 1 GiB both ways, each
//! byte compared, with offloads, mergeable buffers and two queue pairs.

use ringscope_tests::qemu::{Failure, Place};
use ringscope_tests::traffic::{self, From};

const GIB: u64 = 1 << 30;
/// The guest's address, which a macvtap has to have.
const MAC: &str = "52:54:00:77:00:02";

#[test]
fn a_guest_with_its_offloads() -> Result<(), Failure> {
    let mut place = Place::on_macvtap(2)?;
    place.spawn(&["--mac", MAC])?;
    let mut options = place.options()?;
    options.mac = Some(MAC.into());
    place.attach(options)?;
    traffic::ping(&mut place)?;
    traffic::udp(&mut place, From::Outside)?;
    traffic::udp(&mut place, From::Guest)?;
    for from in [From::Outside, From::Guest] {
        let report = traffic::tcp(&place, from, GIB)?;
        let rate = report.bits_per_second / 1e9;
        eprintln!("{} of 1 GiB: {rate:.2} Gbit/s", report.kind);
    }
    assert_eq!(place.drops()?, []);
    Ok(())
}
