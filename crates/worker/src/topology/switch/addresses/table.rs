//! The table of addresses: which port sends from which address.

use std::collections::hash_map::RandomState;
use std::hash::{BuildHasher as _, Hasher as _};

use super::PORTS_MAX;

/// Number of entries in a bucket: 128 bytes, two cache lines. An address can be in one bucket only.
const WAYS: usize = 8;
/// Average number of entries in a bucket when every port has used up its share. Then about one address in 5000 finds no
/// room, and frames to it go to everyone.
const LOAD_MAX: usize = 2;

/// 2^64 divided by the golden ratio.
const SPREAD: u64 = 0x9e37_79b9_7f4a_7c15;

const USED: u64 = 1 << 63;
const PINNED: u64 = 1 << 62;
const PORT_SHIFT: u32 = 48;
const ADDRESS: u64 = (1 << PORT_SHIFT) - 1;

/// An address and the port it is at. Times in ticks.
#[derive(Clone, Copy, Debug, Default)]
pub struct Entry {
    /// [`USED`], perhaps [`PINNED`], the port, and the address in the lower 48 bits; 0 for none.
    key: u64,
    /// When the address was last heard there.
    pub seen: u64,
}

impl Entry {
    pub const fn learned(address: u64, port: u8, seen: u64) -> Self {
        Self { key: USED | (port as u64) << PORT_SHIFT | address, seen }
    }

    pub const fn pinned(address: u64, port: u8) -> Self {
        Self { key: USED | PINNED | (port as u64) << PORT_SHIFT | address, seen: 0 }
    }

    pub const fn is(&self, address: u64) -> bool {
        self.key & (USED | ADDRESS) == USED | address
    }

    pub const fn is_free(&self) -> bool {
        self.key == 0
    }

    #[expect(clippy::cast_possible_truncation, reason = "the lowest byte is the port")]
    pub const fn port(&self) -> u8 {
        (self.key >> PORT_SHIFT) as u8 & (PORTS_MAX as u8 - 1)
    }

    pub const fn address(&self) -> u64 {
        self.key & ADDRESS
    }

    pub const fn is_pinned(&self) -> bool {
        self.key & PINNED != 0
    }

    pub const fn is_learned(&self) -> bool {
        self.key & (USED | PINNED) == USED
    }

    /// Whether the entry is valid: pinned, or learned and not aged.
    pub const fn is_live(&self, now: u64, ageing: u64) -> bool {
        self.is_pinned() || (self.key & USED != 0 && now.abs_diff(self.seen) < ageing)
    }
}

/// The state of a learned address from which more than one port sent. Times in ticks.
#[derive(Clone, Copy, Debug, Default)]
pub struct Dispute {
    /// The port that gets the address back as soon as it sends from it. Mostly this is the port that the address is at.
    pub owner: u8,
    /// Number of times that the owner took the address back lately.
    pub returns: u8,
    /// Number of different seconds in which the uplink lately sent from it to one station.
    pub claims: u8,
    /// When the last of these seconds began.
    pub claimed: u64,
    /// When a port other than the one it is at last sent from it.
    pub tried: u64,
    /// When it came to the port it is at.
    pub moved: u64,
}

/// The position of an entry: its bucket, and its index in the bucket.
#[derive(Clone, Copy, Debug)]
pub struct Slot(usize, usize);

/// The addresses. The table never grows.
#[derive(Debug)]
pub struct Table {
    buckets: Box<[[Entry; WAYS]]>,
    /// One for each entry. They are stored separately because they are hardly ever needed.
    disputes: Box<[[Dispute; WAYS]]>,
    /// A secret odd number. A guest that knew it could choose addresses that all fall into one bucket.
    hash: u64,
}

impl Table {
    /// A table with room for `addresses_max` addresses.
    pub fn new(addresses_max: usize) -> Self {
        let buckets = addresses_max.div_ceil(LOAD_MAX).next_power_of_two().max(2);
        Self {
            buckets: vec![[Entry::default(); WAYS]; buckets].into_boxed_slice(),
            disputes: vec![[Dispute::default(); WAYS]; buckets].into_boxed_slice(),
            hash: RandomState::new().build_hasher().finish() | 1,
        }
    }

    #[inline]
    pub fn find(&self, address: u64) -> Option<&Entry> {
        self.buckets[self.bucket(address)].iter().find(|entry| entry.is(address))
    }

    #[inline]
    pub fn find_mut(&mut self, address: u64) -> Option<&mut Entry> {
        let bucket = self.bucket(address);
        self.buckets[bucket].iter_mut().find(|entry| entry.is(address))
    }

    pub fn slot(&self, address: u64) -> Option<Slot> {
        let bucket = self.bucket(address);
        let way = self.buckets[bucket].iter().position(|entry| entry.is(address))?;
        Some(Slot(bucket, way))
    }

    /// A slot for a new entry for `address`: a free one, or that of an aged entry.
    pub fn room(&self, address: u64, now: u64, ageing: u64) -> Option<Slot> {
        let bucket = self.bucket(address);
        let entries = &self.buckets[bucket];
        let free = entries.iter().position(Entry::is_free);
        let aged = || entries.iter().position(|entry| !entry.is_live(now, ageing));
        free.or_else(aged).map(|way| Slot(bucket, way))
    }

    pub const fn entry(&self, Slot(bucket, way): Slot) -> Entry {
        self.buckets[bucket][way]
    }

    pub const fn set(&mut self, Slot(bucket, way): Slot, entry: Entry) {
        self.buckets[bucket][way] = entry;
    }

    pub const fn dispute(&self, Slot(bucket, way): Slot) -> Dispute {
        self.disputes[bucket][way]
    }

    pub const fn dispute_mut(&mut self, Slot(bucket, way): Slot) -> &mut Dispute {
        &mut self.disputes[bucket][way]
    }

    /// Every slot of the table.
    pub fn slots(&self) -> impl Iterator<Item = Slot> + use<> {
        (0..self.buckets.len()).flat_map(|bucket| (0..WAYS).map(move |way| Slot(bucket, way)))
    }

    /// Multiplicative hashing (Knuth, TAOCP 3, 6.4) in two rounds. The bucket is the upper bits of the product.
    /// Consecutive addresses differ in their last byte, which is the uppermost byte of the number. Without the first
    /// round, one secret in a thousand would put more of them into one bucket than it holds.
    #[inline]
    const fn bucket(&self, address: u64) -> usize {
        let bits = self.buckets.len().trailing_zeros();
        let spread = address.wrapping_mul(SPREAD);
        let spread = spread ^ spread >> 32;
        #[expect(clippy::cast_possible_truncation, reason = "fewer bits than there are buckets")]
        {
            (spread.wrapping_mul(self.hash) >> (u64::BITS - bits)) as usize
        }
    }
}
