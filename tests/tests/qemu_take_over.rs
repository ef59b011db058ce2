//! A new daemon takes over from a running one under a Linux guest in QEMU, which notices nothing: its link stays up, its
//! connections live on, every byte arrives.

use std::thread::sleep;
use std::time::Duration;

use ringscope_tests::qemu::{Failure, Place};
use ringscope_tests::traffic::{self, Check, From, Transfer};

#[test]
fn the_guests_link_does_not_flap() -> Result<(), Failure> {
    for (queue_pairs, packed) in [(1, false), (2, true)] {
        let mut place = traffic::guest_on_tap(queue_pairs, |options| options.packed = packed)?;
        let changes =
            |place: &mut Place| place.guest().check("cat /sys/class/net/eth0/carrier_changes");
        let before = changes(&mut place)?;

        let start = |place: &Place, from| Transfer::start(place, from, 128 << 20, Check::Hash);
        let mut transfers = [start(&place, From::Outside)?, start(&place, From::Guest)?];
        for round in 0..4 {
            sleep(Duration::from_millis(200));
            place.take_over(&["--poll", ["never", "adaptive"][round % 2]])?;
        }
        for transfer in &mut transfers {
            assert!(transfer.is_running()?, "it ended before the last daemon took over");
        }
        for transfer in &mut transfers {
            transfer.finish()?;
        }
        traffic::everything_a_little(&mut place)?;
        assert_eq!(changes(&mut place)?, before, "the guest's link was down");
        assert_eq!(place.drops()?, []);
        let log = place.daemon().log();
        assert!(!log.contains("the front end is gone"), "{log}");
    }
    Ok(())
}
