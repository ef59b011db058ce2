//! What the journal has of one ring.

/// Bits of a position: an index, or slot and wrap counter.
const POSITION: u64 = 0xffff;
/// In the word of the last group: there was a group before it.
const HAS_BEFORE: u64 = 1 << 48;
/// In the word of the last group: there was one at all.
const HAS_GROUP: u64 = 1 << 49;
/// In the word of the setup.
const PACKED: u64 = 1 << 32;
const IN_ORDER: u64 = 1 << 33;
const EVENT_INDEX: u64 = 1 << 34;
const INDIRECT: u64 = 1 << 35;

/// How the front end set a ring up. A ring with another setup is another ring.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct RingIdentity {
    /// Guest-physical addresses of descriptor table, driver area and device area.
    pub parts: [u64; 3],
    /// Number of descriptors.
    pub size: u16,
    /// The position that the front end said. QEMU says the same one after it lost a daemon.
    pub said: u16,
    /// `VIRTIO_F_RING_PACKED`.
    pub packed: bool,
    /// `VIRTIO_F_IN_ORDER`.
    pub in_order: bool,
    /// `VIRTIO_F_EVENT_IDX`.
    pub event_index: bool,
    /// `VIRTIO_F_INDIRECT_DESC`.
    pub indirect: bool,
}

impl RingIdentity {
    /// Size, position and features as a word.
    pub(crate) const fn setup_word(&self) -> u64 {
        self.size as u64
            | (self.said as u64) << 16
            | if self.packed { PACKED } else { 0 }
            | if self.in_order { IN_ORDER } else { 0 }
            | if self.event_index { EVENT_INDEX } else { 0 }
            | if self.indirect { INDIRECT } else { 0 }
    }

    /// The ring with these words; `None` if the last one has bits that this version does not know.
    pub(crate) const fn from_words(parts: [u64; 3], setup: u64) -> Option<Self> {
        if setup >= INDIRECT << 1 {
            return None;
        }
        Some(Self {
            parts,
            size: position(setup),
            said: position(setup >> 16),
            packed: setup & PACKED != 0,
            in_order: setup & IN_ORDER != 0,
            event_index: setup & EVENT_INDEX != 0,
            indirect: setup & INDIRECT != 0,
        })
    }
}

/// A group of used descriptors of a packed ring, which becomes visible with one store. Positions are slot and wrap counter
/// (bit 15).
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Published {
    /// Where the group before it began, if there was one.
    pub before: Option<u16>,
    /// Where it begins.
    pub from: u16,
    /// Where the next one begins.
    pub to: u16,
}

impl Published {
    pub(crate) const fn to_word(self) -> u64 {
        let before = match self.before {
            Some(before) => HAS_BEFORE | (before as u64) << 32,
            None => 0,
        };
        HAS_GROUP | before | self.from as u64 | (self.to as u64) << 16
    }

    pub(crate) const fn from_word(word: u64) -> Option<Self> {
        if word & HAS_GROUP == 0 {
            return None;
        }
        let before = if word & HAS_BEFORE == 0 { None } else { Some(position(word >> 32)) };
        Some(Self { before, from: position(word), to: position(word >> 16) })
    }
}

/// What the journal has of one ring. Only its form was checked: each position may be any number.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Entry {
    /// The ring.
    pub identity: RingIdentity,
    /// The used position when chains were taken last.
    pub used: u16,
    /// The position after the chains that were taken last.
    pub taken: u16,
    /// The last group of a packed ring.
    pub published: Option<Published>,
    /// The first descriptor of a group, without its address, as it is stored last.
    pub pending: u64,
}

pub(crate) const fn position(word: u64) -> u16 {
    (word & POSITION) as u16
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    proptest! {
        #[test]
        fn what_is_written_is_read(word: u64, parts: [u64; 3]) {
            if let Some(group) = Published::from_word(word) {
                prop_assert_eq!(Published::from_word(group.to_word()), Some(group));
            }
            match RingIdentity::from_words(parts, word) {
                Some(ring) => prop_assert_eq!(ring.setup_word(), word),
                None => prop_assert!(word >= 1 << 36),
            }
        }
    }
}
