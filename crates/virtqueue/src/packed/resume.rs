//! A packed ring continues where a daemon before this one stood.
//!
//! Used descriptors are shown in groups: all stores but the first descriptor's, then a note in the journal, then the first
//! descriptor's store. The daemon may have been killed between any two of them:
//!
//! - The noted group is visible: the ring continues after it.
//! - It is not, but all the rest of it is stored: the first descriptor, which the journal has too, is stored now. The
//!   driver gets what it would have got.
//! - The next group was begun and not noted: the same, with a group as long as what is stored of it. Used descriptors do
//!   not say how many descriptors their chain had; the others of the chain do, as long as the driver has not seen it used.

use std::sync::atomic::Ordering;

use ring_journal::{Entry, Published};

use super::PackedQueue;
use super::position::{OWNER, Position};
use crate::error::Unfit;
use crate::layout::{
    DESC_F_NEXT, DESC_F_USED, DESCRIPTOR_LEN, PACKED_ADDRESS, PACKED_TAIL, PackedDescriptor,
};

/// Where the daemon before stood.
pub(crate) struct Stood {
    /// Number of descriptors that were taken and not given back.
    pub(crate) again: u16,
    /// The position that the driver sees.
    pub(crate) at: u16,
    /// The last group that the driver sees, if it is known.
    pub(crate) shown: Option<Published>,
}

impl PackedQueue {
    /// Moves to where the daemon before stood. A group of which only the first descriptor is missing is published next. On
    /// an error the ring stays where it is.
    pub(crate) fn resume(&mut self, entry: &Entry, said: u16) -> Result<Stood, Unfit> {
        let size = self.ring.size;
        let used = self.position(entry.used)?;
        let taken = self.position(entry.taken)?;
        let held = taken.distance_from(used, size);
        if held > size.into() {
            return Err(Unfit::Outside);
        }
        let (at, last) = match entry.published {
            None => (used, None),
            Some(group) => self.after_group(group, entry.pending)?,
        };
        if said != entry.identity.said && said != at.bits() {
            return Err(Unfit::Said { said });
        }
        if self.owner(at) == at.used() {
            return Err(Unfit::Descriptors);
        }
        let begun = self.end_of_begun(at);
        let end = begun.unwrap_or(at);
        let fits = |last: Position| {
            // Otherwise the group that was begun is there.
            end.distance_from(last, size) > size.into() || self.is_given_back(last)
        };
        if !last.is_none_or(fits) {
            return Err(Unfit::Descriptors);
        }
        if begun.is_some() {
            if PackedDescriptor::new(0, entry.pending).flags & OWNER != at.used() {
                return Err(Unfit::Descriptors);
            }
            self.first_used = Some((at, entry.pending));
        }
        (self.next, self.frontier, self.next_used) = (end, end, end);
        self.last_published = last;
        // A receive ring notes only where it starts.
        let again = if held == 0 { 0 } else { taken.distance_from(end, size) };
        let again = u16::try_from(again).ok().filter(|_| again <= held).unwrap_or(0);
        let shown = last.map(|last| Published { before: None, from: last.bits(), to: at.bits() });
        Ok(Stood { again, at: at.bits(), shown })
    }

    /// The position after the noted group, or that of the group itself if the driver does not see it. Also the last group
    /// that the driver sees.
    fn after_group(
        &self,
        group: Published,
        pending: u64,
    ) -> Result<(Position, Option<Position>), Unfit> {
        let size = self.ring.size;
        let (from, to) = (self.position(group.from)?, self.position(group.to)?);
        let before = group.before.map(|before| self.position(before)).transpose()?;
        if to.distance_from(from, size) > size.into() {
            return Err(Unfit::Outside);
        }
        let is_ours = self.tail(from) == pending && self.owner(from) == from.used();
        let (at, last) = if !is_ours && self.is_available(from) {
            // Not visible. `end_of_begun` looks whether it was stored.
            (from, before)
        } else {
            (to, Some(from))
        };
        if !is_ours && at != Position::FRESH && self.is_reset(last, at) {
            return Err(Unfit::Reset);
        }
        Ok((at, last))
    }

    /// Whether the descriptor was used in this lap: it still is, or the driver made it available for the next lap.
    fn is_given_back(&self, at: Position) -> bool {
        self.owner(at) & DESC_F_USED == at.used() & DESC_F_USED
    }

    /// Whether the driver has just reset the ring. Then no descriptor has the mark of an odd lap. In any other ring some
    /// have, whether the driver has made them available again or not. The one exception: the last group went over the end
    /// of an even lap, and nothing was used at the beginning of the next one.
    fn is_reset(&self, last: Option<Position>, at: Position) -> bool {
        let is_marked = |slot| self.owner(Position::from_bits(slot)) & DESC_F_USED != 0;
        if (0..self.ring.size).any(is_marked) {
            return false;
        }
        last.is_none_or(|last| {
            let address: u64 = self
                .ring
                .descriptors
                .read(usize::from(last.slot) * DESCRIPTOR_LEN + PACKED_ADDRESS);
            last.used() != 0 || at.used() == 0 || address == 0
        })
    }

    /// The end of a group that begins at `first`, of which all is stored but the first descriptor; `None` if no such group
    /// was begun.
    fn end_of_begun(&self, first: Position) -> Option<Position> {
        if !self.is_available(first) {
            return None;
        }
        let size = self.ring.size;
        let mut at = first.after(self.chain_from(first, size)?.0, size);
        let begun = at;
        let mut left =
            size - u16::try_from(at.distance_from(first, size)).ok().filter(|&n| n <= size)?;
        while left > 0 && self.owner(at) == at.used() {
            let slots = self.used_chain(at, left);
            at = at.after(slots, size);
            left -= slots;
        }
        (at != begun).then_some(at)
    }

    /// Number of descriptors of the chain that begins at `first`, of at most `max`, and its id. `None` if it does not end.
    fn chain_from(&self, first: Position, max: u16) -> Option<(u16, u16)> {
        let mut at = first;
        for slots in 1..=max {
            let tail = PackedDescriptor::new(0, self.tail(at));
            if tail.flags & OWNER != at.available() {
                return None;
            }
            if tail.flags & DESC_F_NEXT == 0 {
                return Some((slots, tail.id));
            }
            at = at.after(1, self.ring.size);
        }
        None
    }

    /// Number of descriptors, of at most `max`, of a chain whose first one is stored as used and that the driver does not
    /// see yet. The others are as the driver left them, and the last one has the same id.
    fn used_chain(&self, first: Position, max: u16) -> u16 {
        let id = PackedDescriptor::new(0, self.tail(first)).id;
        match self.chain_from(first.after(1, self.ring.size), max - 1) {
            Some((slots, of)) if of == id => 1 + slots,
            _ => 1,
        }
    }

    fn tail(&self, at: Position) -> u64 {
        let at = usize::from(at.slot) * DESCRIPTOR_LEN + PACKED_TAIL;
        self.ring.descriptors.load_u64(at, Ordering::Acquire)
    }

    fn position(&self, bits: u16) -> Result<Position, Unfit> {
        let position = Position::from_bits(bits);
        if position.slot < self.ring.size { Ok(position) } else { Err(Unfit::Outside) }
    }
    /// Goes on from the last group of `before`, the same ring in an earlier memory table.
    pub(crate) const fn inherit_group(&mut self, before: &Self) {
        self.last_published = before.last_published;
    }
}

#[cfg(test)]
mod tests;
