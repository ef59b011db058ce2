//! A guest moves from one QEMU and daemon to another, with its traffic.

use ringscope_tests::eventually::{eventually, when};
use ringscope_tests::migration::{Target, port_of};
use ringscope_tests::qemu::{Failure, GUEST, Place, SOON};
use ringscope_tests::traffic::{self, Check, From, Transfer};

/// The guest's Ethernet address, as `qemu-scripts/launch` gives it.
const ADDRESS: &str = "52:54:00:77:00:02";

#[test]
fn a_guest_with_split_rings_moves_under_load() -> Result<(), Failure> {
    moves_under_load(1, false)
}

#[test]
fn a_guest_with_packed_rings_moves_under_load() -> Result<(), Failure> {
    moves_under_load(1, true)
}

#[test]
fn a_guest_with_two_queue_pairs_moves_under_load() -> Result<(), Failure> {
    moves_under_load(2, true)
}

fn moves_under_load(queue_pairs: u16, packed: bool) -> Result<(), Failure> {
    let mut place = Place::new(queue_pairs)?;
    place.spawn(&[])?;
    let mut options = place.options()?;
    options.packed = packed;
    place.attach(options)?;
    traffic::everything_a_little(&mut place)?;
    assert_eq!(port_of(&place, ADDRESS)?, place.tap());

    let mut target = Target::start(&mut place, queue_pairs)?;
    let start = |from| Transfer::start(&place, from, 96 << 20, Check::Hash);
    let mut transfers = [start(From::Outside)?, start(From::Guest)?];
    let state = target.receive(&place)?;
    for transfer in &mut transfers {
        assert!(transfer.is_running()?, "it ended before the guest had moved: {state}");
    }
    place.daemon().expect_log("logs which pages of its guest's memory are written");
    // The network learns where the guest is, although its own kernel announces nothing.
    target.daemon.expect_log(&format!("the guest has moved here: {ADDRESS} was announced"));
    eventually(SOON, "the guest behind the other tap", || {
        let port = port_of(&place, ADDRESS).map_err(|error| error.to_string())?;
        when(port == target.tap, port)
    });
    place.guest().kill()?;
    place.daemon = None;
    // Every byte arrives, and only once.
    transfers.iter_mut().try_for_each(|transfer| transfer.finish().map(drop))?;
    traffic::everything_a_little(&mut place)?;
    place.outside.exec(&format!("ping -q -c 100 -i 0.005 -W 5 {GUEST}"))?;
    // The guest's kernel has found nothing wrong with its rings, about which it would complain.
    assert_eq!(std::fs::read_to_string(target.directory().join("serial.log"))?.trim(), "");
    assert!(target.is_running()?, "QEMU has ended");
    assert!(target.daemon.is_alive(), "{}", target.daemon.log());
    Ok(())
}
