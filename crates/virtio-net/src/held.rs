//! Chains whose frames are sent from the guest's memory, until the kernel is done with them.

use burst_trace::DropCounts;
use virtqueue::{Chain, Queue};

use crate::BURST_MAX;
use crate::transmit::{TransmitBurst, fault};

/// Most chains held when another burst is taken. A burst adds at most as many again.
const FULL: usize = BURST_MAX;

/// Chains that were taken and not given back yet, in order. They are copies: a guest that writes over the descriptors
/// meanwhile changes nothing.
#[derive(Debug, Default)]
pub struct HeldChains {
    chains: Vec<Chain>,
    header_len: usize,
}

impl HeldChains {
    /// Keeps the chains of the first `taken` frames of `burst`, and the faulty ones before the next frame. The rest is
    /// put back and will be taken again.
    pub fn hold(&mut self, burst: &TransmitBurst<'_, '_>, queue: &mut Queue, taken: usize) {
        let (kept, rest) = burst.split(taken);
        if !rest.is_empty() {
            queue.put_back(rest.iter().map(|chain| chain.slots).sum());
        }
        self.header_len = burst.header_len();
        self.chains.extend_from_slice(kept);
    }

    /// Gives the chains of the `frames` oldest frames back to the guest, with the faulty ones before the next frame, which
    /// are counted in `drops`. Returns the number of ring entries given back.
    pub fn complete(&mut self, queue: &mut Queue, frames: usize, drops: &mut DropCounts) -> u16 {
        let (mut left, mut done) = (frames, 0);
        for chain in &self.chains {
            match fault(chain, self.header_len) {
                Some(cause) => drops.add(cause),
                None if left > 0 => left -= 1,
                None => break,
            }
            done += 1;
        }
        let slots = queue.complete_read(&self.chains[..done]);
        self.chains.drain(..done);
        slots
    }

    /// Number of chains that are frames.
    #[must_use]
    pub fn frames(&self) -> usize {
        self.chains.iter().filter(|chain| fault(chain, self.header_len).is_none()).count()
    }

    /// Number of ring entries that they fill.
    #[must_use]
    pub fn slots(&self) -> u16 {
        self.chains.iter().fold(0, |slots, chain| slots.saturating_add(chain.slots))
    }

    /// Whether there are none.
    #[inline]
    #[must_use]
    pub const fn is_empty(&self) -> bool {
        self.chains.is_empty()
    }

    /// Whether there is room for another burst.
    #[must_use]
    pub const fn has_room(&self) -> bool {
        self.chains.len() <= FULL
    }

    /// Forgets all of them: their ring is gone.
    pub fn clear(&mut self) {
        self.chains.clear();
    }
}
