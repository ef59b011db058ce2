//! Constants and structures of the specification: virtio 1.2, 2.7 "Split Virtqueues" and 2.8 "Packed Virtqueues".

/// Length of a descriptor in bytes (2.7.5 `struct virtq_desc`).
pub const DESCRIPTOR_LEN: usize = 16;
/// `VIRTQ_DESC_F_NEXT`: the chain continues at `next` (2.7.5).
pub const DESC_F_NEXT: u16 = 1;
/// `VIRTQ_DESC_F_WRITE`: the device may only write the buffer, not read it (2.7.5).
pub const DESC_F_WRITE: u16 = 2;
/// `VIRTQ_DESC_F_INDIRECT`: the buffer is a table of descriptors (2.7.5.3).
pub const DESC_F_INDIRECT: u16 = 4;

/// `VIRTQ_DESC_F_AVAIL`: a packed descriptor is available if this bit equals the driver's wrap counter and
/// [`DESC_F_USED`] does not (2.8.1).
pub const DESC_F_AVAIL: u16 = 1 << 7;
/// `VIRTQ_DESC_F_USED`: a packed descriptor is used if both bits equal the device's wrap counter (2.8.1).
pub const DESC_F_USED: u16 = 1 << 15;

/// `RING_EVENT_FLAGS_ENABLE`: notify always (2.8.10).
pub const EVENT_ENABLE: u16 = 0;
/// `RING_EVENT_FLAGS_DISABLE`: notify never (2.8.10).
pub const EVENT_DISABLE: u16 = 1;
/// `RING_EVENT_FLAGS_DESC`: notify when the descriptor at `off_wrap` is made available, or used (2.8.10). Only with
/// `VIRTIO_F_EVENT_IDX`.
pub const EVENT_DESC: u16 = 2;
/// Length in bytes of an event suppression structure: `off_wrap`, then flags (2.8.14 `struct pvirtq_event_suppress`).
pub const EVENT_LEN: usize = 4;
/// Event suppression structure: offset of `off_wrap`, bytes.
pub const EVENT_OFF_WRAP: usize = 0;
/// Event suppression structure: offset of the flags, bytes.
pub const EVENT_FLAGS: usize = 2;

/// `VIRTQ_AVAIL_F_NO_INTERRUPT`: the driver wants no used buffer notification (2.7.6).
pub const AVAIL_F_NO_INTERRUPT: u16 = 1;
/// `VIRTQ_USED_F_NO_NOTIFY`: the device wants no available buffer notification (2.7.8).
pub const USED_F_NO_NOTIFY: u16 = 1;

/// Driver and device area: offset of `flags`, bytes.
pub const FLAGS: usize = 0;
/// Driver and device area: offset of `idx`, bytes.
pub const INDEX: usize = 2;
/// Driver and device area: offset of the first ring entry, bytes.
pub const ENTRIES: usize = 4;

/// A copy of a split ring's descriptor (2.7.5).
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Descriptor {
    /// Guest-physical address of the buffer.
    pub address: u64,
    /// Length of the buffer in bytes.
    pub len: u32,
    /// `DESC_F_*`.
    pub flags: u16,
    /// Index of the chain's next descriptor, if `DESC_F_NEXT` is set.
    pub next: u16,
}

impl Descriptor {
    /// The descriptor in these two little-endian words.
    #[inline]
    #[must_use]
    #[expect(clippy::cast_possible_truncation, reason = "each field is a part of the word")]
    pub const fn from_words(words: [u64; 2]) -> Self {
        let (address, rest) = (u64::from_le(words[0]), u64::from_le(words[1]));
        Self { address, len: rest as u32, flags: (rest >> 32) as u16, next: (rest >> 48) as u16 }
    }

    /// The descriptor as two little-endian words.
    #[must_use]
    pub const fn to_words(self) -> [u64; 2] {
        let rest = self.len as u64 | (self.flags as u64) << 32 | (self.next as u64) << 48;
        [self.address.to_le(), rest.to_le()]
    }
}

/// A copy of a packed ring's descriptor (2.8.13 `struct pvirtq_desc`).
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct PackedDescriptor {
    /// Guest-physical address of the buffer.
    pub address: u64,
    /// Length of the buffer in bytes. In a used descriptor: number of bytes that the device wrote.
    pub len: u32,
    /// The driver's id of the chain (buffer id). Only in the chain's last descriptor.
    pub id: u16,
    /// `DESC_F_*`.
    pub flags: u16,
}

impl PackedDescriptor {
    /// The descriptor with this address and this [`tail`](Self::tail).
    #[inline]
    #[must_use]
    #[expect(clippy::cast_possible_truncation, reason = "each field is a part of the word")]
    pub const fn new(address: u64, tail: u64) -> Self {
        Self { address, len: tail as u32, id: (tail >> 32) as u16, flags: (tail >> 48) as u16 }
    }

    /// All fields but the address, as one word: it is written and read in one access.
    #[inline]
    #[must_use]
    pub const fn tail(self) -> u64 {
        self.len as u64 | (self.id as u64) << 32 | (self.flags as u64) << 48
    }
}

/// Offset of the address in a packed descriptor, bytes.
pub const PACKED_ADDRESS: usize = 0;
/// Offset of the other fields in a packed descriptor, bytes ([`PackedDescriptor::tail`]).
pub const PACKED_TAIL: usize = 8;

/// Length in bytes of the descriptor table of a ring of `size` entries.
#[must_use]
pub const fn descriptor_table_len(size: u16) -> usize {
    size as usize * DESCRIPTOR_LEN
}

/// Length in bytes of the driver area ("available ring") of a ring of `size` entries, `used_event` included.
#[must_use]
pub const fn driver_area_len(size: u16) -> usize {
    ENTRIES + 2 * size as usize + 2
}

/// Length in bytes of the device area ("used ring") of a ring of `size` entries, `avail_event` included.
#[must_use]
pub const fn device_area_len(size: u16) -> usize {
    ENTRIES + 8 * size as usize + 2
}

/// Length and alignment in bytes of the descriptor table, driver area and device area (2.7, 2.8.10.1).
#[must_use]
pub const fn part_lens(packed: bool, size: u16) -> [(usize, usize); 3] {
    if packed {
        return [(descriptor_table_len(size), 16), (EVENT_LEN, 4), (EVENT_LEN, 4)];
    }
    [(descriptor_table_len(size), 16), (driver_area_len(size), 2), (device_area_len(size), 4)]
}

/// Whether an index that moved from `old` to `new` has passed `event` (2.7.10 `vring_need_event`).
#[inline]
#[must_use]
pub const fn event_passed(event: u16, new: u16, old: u16) -> bool {
    new.wrapping_sub(event).wrapping_sub(1) < new.wrapping_sub(old)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_event_is_passed_exactly_by_the_step_over_it() {
        for event in [0_u16, 1, 7, 0xfffe, 0xffff] {
            // Fewer steps under Miri, which is a thousand times slower.
            for step in (1..100_u16).step_by(if cfg!(miri) { 33 } else { 1 }) {
                for before in 0..200_u16 {
                    let old = event.wrapping_sub(before).wrapping_add(100);
                    let new = old.wrapping_add(step);
                    let passed = (0..step).any(|n| old.wrapping_add(n) == event);
                    assert_eq!(event_passed(event, new, old), passed, "{event} {old} {new}");
                }
            }
        }
    }
}
