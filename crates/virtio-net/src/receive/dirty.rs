//! Marks the pages that a burst wrote to, while the front end logs for a live migration ([`guest_memory::dirty`]).
//!
//! Whatever way frames took into the guest's buffers, in the end the room knows every chain and the bytes written to it. So
//! they are marked once a burst, when the room is closed. In a packed ring the guest may have got the first frames back
//! before that. It need not be marked by then, only before the worker lets go of the ring.

use super::GuestRoom;

impl GuestRoom<'_, '_> {
    /// Marks what was written to the chains that go back to the guest.
    #[inline]
    pub(super) fn mark_used(&self) {
        if self.queue.is_logging() {
            self.mark_chains();
        }
    }

    #[cold]
    fn mark_chains(&self) {
        let Some(marker) = self.queue.marker() else { return };
        for chain in &self.chains.all()[..self.done] {
            marker.mark_run(self.memory, self.chains.buffers(chain), chain.len as usize);
        }
    }

    /// Marks the first `len` bytes of the window, which were written, and do not go back to the guest as they are.
    #[cold]
    pub(super) fn mark_unused(&self, len: usize) {
        if let Some(marker) = self.queue.marker() {
            marker.mark_run(self.memory, self.window_slices(), len);
        }
    }
}
