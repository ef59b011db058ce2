//! Linux guests in QEMU on AF_XDP: ping, UDP, and TCP of 1 GiB both ways with its SHA-256 compared, over a wire
//! whose other end leaves checksums to whoever puts frames on a real one.
//!
//! | guest | offloads | queue pairs | XDP | polling | rings | MTU |
//! | --- | --- | --- | --- | --- | --- | --- |
//! | 1 | on | 1 | native | adaptive | packed | 1500 |
//! | 2 | off | 1 | generic | never | split | 1500 |

use ringscope_tests::qemu::{Failure, Place};
use ringscope_tests::traffic::{self, From};

const GIB: u64 = 1 << 30;
const MIB: u64 = 1 << 20;

#[test]
fn guest_1_in_native_mode_with_its_offloads() -> Result<(), Failure> {
    let mut place = Place::on_wire(1, "")?;
    place.spawn(&["--poll", "adaptive"])?;
    let mut options = place.options()?;
    options.packed = true;
    place.attach(options)?;
    carry(&mut place, GIB)
}

#[test]
fn guest_2_in_generic_mode_without_offloads() -> Result<(), Failure> {
    let mut place = Place::on_wire(1, ",mode=generic")?;
    place.spawn(&["--poll", "never"])?;
    let mut options = place.options()?;
    options.offloads = false;
    place.attach(options)?;
    carry(&mut place, 256 * MIB)
}

fn carry(place: &mut Place, bytes: u64) -> Result<(), Failure> {
    traffic::ping(place)?;
    traffic::udp(place, From::Outside)?;
    traffic::udp(place, From::Guest)?;
    for from in [From::Outside, From::Guest] {
        let report = traffic::tcp(place, from, bytes)?;
        let rate = report.bits_per_second / 1e9;
        eprintln!("{} of {} MiB: {rate:.2} Gbit/s", report.kind, bytes / MIB);
    }
    assert_eq!(place.drops()?, []);
    Ok(())
}
