//! A ring continues where a daemon before this one stood.
//!
//! That daemon may have been killed at any moment. What it noted is compared with the ring in guest memory. The guest can
//! make any of it fit: then its ring continues at a wrong place, and nobody else's.

use ring_journal::{Entry, RingIdentity, Slot};

use crate::error::Unfit;
use crate::packed::Stood;
use crate::queue::Queue;
use crate::setup::QueueSetup;

/// A ring that continues where the daemon before stood.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Resumed {
    /// Where it continues.
    pub position: u16,
    /// Number of ring entries that were taken and not given back: their frames may be sent twice.
    pub again: u16,
}

impl Queue {
    /// Continues where a daemon before this one stood, if `journal` has that and it fits the ring, and notes each burst
    /// from now on. To be called before the first burst. `None`: nothing was noted.
    ///
    /// # Errors
    /// Why the note does not fit. The ring then continues as it was set up.
    pub fn resume(&mut self, setup: &QueueSetup, journal: Slot) -> Option<Result<Resumed, Unfit>> {
        let identity = setup.identity();
        let stood = journal.entry().map(|entry| self.stood(&entry, &identity));
        let (at, shown) = match &stood {
            Some(Ok(stood)) => (stood.at, stood.shown),
            _ => (self.next_available(), None),
        };
        journal.begin(&identity, at, shown);
        *self.journal() = Some(journal);
        if let Self::Packed(ring) = self {
            // The group that was begun, if there is one.
            ring.publish();
        }
        let position = self.next_available();
        stood.map(|stood| stood.map(|Stood { again, .. }| Resumed { position, again }))
    }

    fn stood(&mut self, entry: &Entry, identity: &RingIdentity) -> Result<Stood, Unfit> {
        let said = identity.said;
        if (RingIdentity { said, ..entry.identity }) != *identity {
            return Err(Unfit::Setup);
        }
        match self {
            Self::Split(ring) => {
                let again = ring.resume(entry)?;
                Ok(Stood { again, at: ring.next_available(), shown: None })
            }
            Self::Packed(ring) => ring.resume(entry, said),
        }
    }

    /// Notes in the journal of `before`, the same ring in an earlier memory table, from now on.
    pub fn inherit_journal(&mut self, before: &mut Self) {
        *self.journal() = before.journal().take();
        if let (Self::Packed(ring), Self::Packed(before)) = (self, before) {
            ring.inherit_group(before);
        }
    }
}
