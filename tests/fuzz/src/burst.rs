//! The device's side: one burst after the other, as a worker serves them.

use virtqueue::chain::BURST_DESCRIPTORS_MAX;
use virtqueue::{Access, Chain, Chains, Queue, RingError};

use crate::memory::Guest;

/// A ring that the device serves, with the current burst.
pub struct Device {
    /// The engine.
    pub queue: Queue,
    /// The chains taken, in order.
    pub chains: Chains<'static>,
    /// Number of chains given back.
    pub done: usize,
    guest: &'static Guest,
    /// What the device does with buffers.
    pub access: Access,
}

impl Device {
    /// Serves `queue` in `guest`.
    pub fn new(queue: Queue, guest: &'static Guest, access: Access) -> Self {
        Self { queue, chains: Chains::new(), done: 0, guest, access }
    }

    /// Checks for available chains and takes up to `max`. Returns the new ones.
    pub fn take(&mut self, max: usize) -> Result<&[Chain], RingError> {
        self.new_burst();
        let before = self.chains.len();
        let position = self.queue.next_available();
        if self.queue.available_descriptors()? > 0 {
            self.queue.take(&self.guest.memory, self.access, max, &mut self.chains)?;
        }
        let new = &self.chains.all()[before..];
        assert!(new.len() <= max);
        // A chain has at most this number of descriptors, each in one or two regions.
        let limit = 2 * u32::from(self.queue.size().max(1024));
        assert!(
            self.chains.walked() < BURST_DESCRIPTORS_MAX + limit,
            "too much walked for a burst"
        );
        if new.is_empty() {
            assert_eq!(self.queue.next_available(), position, "moved on without a chain");
        }
        for chain in new {
            let buffers = self.chains.buffers(chain);
            let len: usize = buffers.iter().map(|it| it.len()).sum();
            assert_eq!(len, chain.len as usize, "the chain's length");
            assert!(chain.slots >= 1 && chain.slots <= self.queue.size());
            assert!(buffers.iter().all(|it| !it.is_empty()));
            assert!(chain.fault.is_none() || buffers.is_empty(), "a fault with buffers");
        }
        Ok(new)
    }

    /// Number of chains that the device holds.
    pub fn held(&self) -> usize {
        self.chains.len() - self.done
    }

    /// Puts the last `count` chains back.
    pub fn put_back(&mut self, count: usize) -> usize {
        let count = count.min(self.held());
        let slots = self.chains.truncate(self.chains.len() - count);
        self.queue.put_back(slots);
        count
    }

    /// Gives back the first `count` chains that the device holds. `each` handles each chain and returns the number of
    /// bytes it wrote. Returns the number of chains.
    pub fn complete(
        &mut self,
        count: usize,
        mut each: impl FnMut(&Chains<'static>, &Chain) -> u32,
    ) -> usize {
        let end = self.done + count.min(self.held());
        match self.access {
            Access::Read => self.queue.complete_read(&self.chains.all()[self.done..end]),
            Access::Write | Access::ReadThenWrite => {
                for n in self.done..end {
                    let chain = self.chains.all()[n];
                    let written =
                        if chain.fault.is_some() { 0 } else { each(&self.chains, &chain) };
                    self.chains.set_written(n, written);
                }
                self.queue.complete_written(&self.chains.all()[self.done..end])
            }
        };
        end - std::mem::replace(&mut self.done, end)
    }

    fn new_burst(&mut self) {
        if self.held() == 0 {
            (self.chains, self.done) = (Chains::new(), 0);
        }
    }
}
