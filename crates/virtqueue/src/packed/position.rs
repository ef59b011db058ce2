//! Where in a packed ring something is, and in which lap.

use crate::layout::{DESC_F_AVAIL, DESC_F_USED};

/// The bits that say whose a descriptor is.
pub(super) const OWNER: u16 = DESC_F_AVAIL | DESC_F_USED;

/// A descriptor of a ring, and the lap.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Position {
    pub(super) slot: u16,
    /// The wrap counter of this lap (2.8.1).
    wrap: bool,
}

impl Position {
    /// Where a new ring begins.
    pub(super) const FRESH: Self = Self { slot: 0, wrap: true };
    /// The same descriptor, a lap later.
    pub(super) const FRESH_WITHOUT_WRAP: Self = Self { slot: 0, wrap: false };

    /// From `off_wrap` of the specification (2.8.14): the wrap counter is bit 15.
    pub(super) const fn from_bits(bits: u16) -> Self {
        Self { slot: bits & 0x7fff, wrap: bits & 0x8000 != 0 }
    }

    pub(super) const fn bits(self) -> u16 {
        self.slot | if self.wrap { 0x8000 } else { 0 }
    }

    /// `count` descriptors on, at most a lap.
    #[inline]
    pub(super) const fn after(self, count: u16, size: u16) -> Self {
        let slot = self.slot as u32 + count as u32;
        if slot >= size as u32 {
            #[expect(clippy::cast_possible_truncation, reason = "below `size`")]
            return Self { slot: (slot - size as u32) as u16, wrap: !self.wrap };
        }
        #[expect(clippy::cast_possible_truncation, reason = "below `size`")]
        Self { slot: slot as u16, wrap: self.wrap }
    }

    /// `count` descriptors back, at most a lap.
    #[inline]
    pub(super) const fn before(self, count: u16, size: u16) -> Self {
        if count > self.slot {
            return Self { slot: size - (count - self.slot), wrap: !self.wrap };
        }
        Self { slot: self.slot - count, wrap: self.wrap }
    }

    /// How far it is from `earlier` to here, of two laps.
    #[inline]
    pub(super) const fn distance_from(self, earlier: Self, size: u16) -> u32 {
        let laps = if self.wrap == earlier.wrap { 0 } else { size as u32 };
        (self.slot as u32 + laps + 2 * size as u32 - earlier.slot as u32) % (2 * size as u32)
    }

    /// What [`OWNER`] bits an available descriptor has here.
    #[inline]
    pub(super) const fn available(self) -> u16 {
        if self.wrap { DESC_F_AVAIL } else { DESC_F_USED }
    }

    /// What [`OWNER`] bits a used descriptor has here.
    #[inline]
    pub(super) const fn used(self) -> u16 {
        if self.wrap { OWNER } else { 0 }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const SIZE_MAX: u16 = 1 << 15;

    #[test]
    fn positions_go_round_in_two_laps() {
        for size in [1_u16, 2, 3, 7, 32, 1000, SIZE_MAX] {
            let mut position = Position { slot: 0, wrap: true };
            for step in (0..=size).step_by(usize::from(size / 7).max(1)) {
                let after = position.after(step, size);
                assert!(after.slot < size);
                assert_eq!(after.before(step, size), position);
                assert_eq!(after.distance_from(position, size), u32::from(step));
                assert_eq!(Position::from_bits(after.bits()), after);
                position = after;
            }
        }
    }
}
