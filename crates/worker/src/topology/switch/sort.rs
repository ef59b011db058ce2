//! The receivers of the frames of a burst.

use burst_trace::DropCause;
use datapath::Transmitted;
use virtio_net::Frames;

use super::addresses::{ADDRESSES_LEN, Verdict};
use super::{Fabric, UPLINK, bits};

/// Copy budget of a burst from one guest, in bytes: it ends with the frame that exceeds it. 64 frames of 64 KiB would keep
/// the worker from the other guests for as long as it takes to copy 4 MiB. Pieces and segments count, too
/// ([`PendingOffloads::note`](super::PendingOffloads::note)): many small ones take longer than their bytes.
const BURST_BYTES_MAX: usize = 256 << 10;

impl Fabric {
    /// Finds the receivers of each frame, and notes it in their shares. Returns the number of frames that are this burst,
    /// and those among them that go nowhere.
    pub(super) fn sort(&mut self, at: usize, frames: Frames<'_, '_>, now: u64) -> Transmitted {
        let mut done = Transmitted::default();
        let (port, queue) = (self.queues[at].port(), self.queues[at].queue());
        self.flooded = 0;
        self.pending.clear();
        let mut last: Option<([u8; ADDRESSES_LEN], usize)> = None;
        let mut cost = 0;
        for (n, frame) in frames.iter().enumerate() {
            if cost >= BURST_BYTES_MAX {
                break;
            }
            done.taken += 1;
            let (addresses, price) = match self.pending.note(n, &frame) {
                Ok(noted) => noted,
                Err(cause) => {
                    done.drops.add(cause);
                    continue;
                }
            };
            cost += price;
            let bit = 1 << n;
            let dropped = done.drops.total();
            done.bytes += wire_len(frame.len());
            // Most bursts have one receiver.
            if let Some((same, to)) = last
                && same == addresses
            {
                self.shares[to] |= bit;
                continue;
            }
            match self.addresses.route(port, addresses, frame.len(), now) {
                Verdict::Port(to) => {
                    let to = self.pair_of(to, queue);
                    self.shares[to] |= bit;
                    self.wanted |= 1 << to;
                    last = Some((addresses, to));
                }
                Verdict::Everyone => {
                    let copies = self.share_with_everyone(port, queue, bit);
                    cost += price * copies.saturating_sub(1);
                    if copies == 0 {
                        done.drops.add(DropCause::TxNoReceiver);
                    }
                }
                Verdict::FloodLimit => done.drops.add(DropCause::TxFloodLimit),
                Verdict::Nowhere => done.drops.add(DropCause::TxNoReceiver),
                Verdict::Spoofed => done.drops.add(DropCause::TxSpoofedSource),
            }
            if done.drops.total() > dropped {
                done.bytes -= wire_len(frame.len());
            }
        }
        done
    }

    /// A frame goes to every port but its own. Returns the number of copies.
    fn share_with_everyone(&mut self, port: u8, queue: usize, bit: u64) -> usize {
        self.flooded |= bit;
        let others = self.everyone_but(port, queue);
        for to in bits(others) {
            self.shares[to] |= bit;
        }
        self.wanted |= others;
        others.count_ones() as usize
    }

    /// The pairs that get frames for everyone from pair number `queue` of `port`: one bit each.
    pub(super) fn everyone_but(&self, port: u8, queue: usize) -> u64 {
        let to_uplink = u64::from(self.has_uplink && port != self.uplink_port);
        let others = (0..self.uplink_port).filter(|other| *other != port);
        let pairs =
            others.map(|other| 1 << self.pair_of(other, queue)).fold(0, |all, one| all | one);
        pairs & self.up | to_uplink << UPLINK
    }

    /// The pair of `port` that gets frames from pair number `queue` of another port: always the same, so that the frames of
    /// one flow stay in order.
    #[inline]
    pub(super) fn pair_of(&self, port: u8, queue: usize) -> usize {
        let Some(pairs) = self.ports.get(usize::from(port)) else { return UPLINK };
        let pair = pairs.start + queue % pairs.len();
        // A guest need not use all of them.
        if self.up & 1 << pair != 0 { pair } else { pairs.start }
    }
}

/// Whether all frames have the same addresses.
#[cold]
pub fn go_one_way(frames: Frames<'_, '_>) -> bool {
    let mut addresses = frames.iter().map(|frame| frame.front::<ADDRESSES_LEN>());
    let first = addresses.next();
    addresses.all(|next| Some(next) == first)
}

#[cold]
pub fn bytes_of(frames: Frames<'_, '_>) -> u32 {
    frames.iter().map(|frame| wire_len(frame.len())).sum()
}

/// A frame's length for the counters.
#[expect(clippy::cast_possible_truncation, reason = "a frame is below 2^17 bytes")]
const fn wire_len(len: usize) -> u32 {
    len as u32
}
