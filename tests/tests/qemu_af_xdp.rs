//! Linux guests in QEMU on AF_XDP: ping, UDP, and TCP of 1 GiB both ways, each byte compared, over a wire
//! whose other end leaves checksums and segments to whoever puts frames on a real one.
//!
//! | guest | offloads | queue pairs | XDP | polling | rings | MTU |
//! | --- | --- | --- | --- | --- | --- | --- |
//! | 1 | on | 1 | native | adaptive | packed | 1500 |
//! | 2 | off | 1 | generic | never | split | 1500 |
//! | 3 | on | 1 | generic | adaptive | split | 1500 |
//! | 4 | on | 1 | native, `umem=guest` | never | packed | 1500 |

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

#[test]
fn guest_3_in_generic_mode_with_its_offloads() -> Result<(), Failure> {
    let mut place = Place::on_wire(1, ",mode=generic")?;
    place.spawn(&["--poll", "adaptive"])?;
    let options = place.options()?;
    place.attach(options)?;
    carry(&mut place, GIB)
}

#[test]
fn guest_4_whose_frames_are_sent_from_its_own_memory() -> Result<(), Failure> {
    let mut place = Place::on_wire(1, ",umem=guest")?;
    place.spawn(&["--poll", "never"])?;
    let mut options = place.options()?;
    options.packed = true;
    place.attach(options)?;
    carry(&mut place, GIB)
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
    expect_few_sent_again(place)
}

/// What is lost and not counted shows where it was sent from.
fn expect_few_sent_again(place: &Place) -> Result<(), Failure> {
    let text = place.outside.exec("grep Tcp: /proc/net/snmp")?;
    let mut lines = text.lines().map(|line| line.split(' '));
    let [names, values] = [lines.next(), lines.next()].map(|line| line.expect("a line of TCP's"));
    let count = |name: &str| -> Option<u64> {
        names.clone().zip(values.clone()).find(|(it, _)| *it == name)?.1.parse().ok()
    };
    let [sent, again] = ["OutSegs", "RetransSegs"].map(|name| count(name).expect("a counter"));
    eprintln!("{again} segments of {sent} were sent again");
    assert!(again * 20 < sent, "{again} segments of {sent} were sent again");
    Ok(())
}
