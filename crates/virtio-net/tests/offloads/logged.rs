//! What was written of a packet that is refused in the end is marked in a dirty log.

use std::os::unix::fs::FileExt as _;

use virtio_net::features::BASE;
use virtio_net::{Link, Offloads};

use crate::packets::{Shape, tcp4};
use crate::place::Ring;
use crate::runs::Run;

const PACKED: u64 = 1 << 34;
const CARD: Link = Link { mtu: 1500, leaves_offloads: false };

#[test]
#[cfg_attr(miri, ignore = "files cannot be mapped there")]
fn a_packet_that_is_refused_after_it_was_written_is_marked() {
    let mut frames = Shape { flags: 0x10, ..tcp4() }.segments(&[7; 3000], 1000);
    // Its checksum is found to be wrong while it is copied.
    *frames[1].last_mut().unwrap() ^= 1;
    let runs: Vec<_> = frames.iter().map(|frame| Run::of(frame, &[100_000])).collect();
    for features in [BASE, BASE & !PACKED] {
        let mut ring = Ring::new(features | Offloads::ALL.to_guest());
        (0..20).for_each(|_| ring.offer(&[&[300]]));
        let (log, before) = (ring.log(), ring.pages());
        let slices = runs.iter().map(|run| run.slices()[0]);
        let (count, received) = ring.with_room(|room| room.place_gro(CARD, slices));
        assert_eq!((count, received.packets), (0, 0), "it is not refused");
        let after = ring.pages();
        let changed: Vec<_> = (0..after.len()).filter(|&n| before[n] != after[n]).collect();
        assert!(!changed.is_empty(), "nothing was written");
        let mut bits = vec![0; after.len() / 8];
        log.read_exact_at(&mut bits, 0).unwrap();
        for page in changed {
            assert!(bits[page / 8] & 1 << (page % 8) != 0, "page {page} is not marked");
        }
    }
}
