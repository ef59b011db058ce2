//! Long-lived access to the parts of a ring: descriptor table, driver area, device area.
#![allow(unsafe_code, reason = "volatile and atomic access to ring structures")]

use std::ptr::NonNull;
use std::sync::Arc;
use std::sync::atomic::{AtomicU16, AtomicU32, AtomicU64, Ordering};

use crate::memory::GuestMemory;
use crate::prefetch;

/// Why a part of a ring cannot be used.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum AreaError {
    /// Not, or not wholly, in one region of guest memory.
    Unmapped {
        /// First byte, guest-physical.
        address: u64,
        /// Length in bytes.
        len: usize,
    },
    /// Not aligned as virtio 1.2, 2.7 and 2.8 ask for.
    Misaligned {
        /// First byte, guest-physical.
        address: u64,
        /// The alignment asked for, bytes.
        align: usize,
    },
}

impl std::fmt::Display for AreaError {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        match self {
            Self::Unmapped { address, len } => {
                write!(f, "{len} bytes at {address:#x} are not in one region of guest memory")
            }
            Self::Misaligned { address, align } => {
                write!(f, "{address:#x} is not aligned to {align} bytes")
            }
        }
    }
}

impl std::error::Error for AreaError {}

/// Plain numbers that may be copied to and from guest memory as they are.
///
/// # Safety
/// Every bit pattern is a value, there is no padding, and the alignment is at most 16.
pub unsafe trait Plain: Copy + 'static {}

// SAFETY: integers.
unsafe impl Plain for u16 {}
// SAFETY: integers.
unsafe impl Plain for u32 {}
// SAFETY: integers.
unsafe impl Plain for u64 {}
// SAFETY: an array of integers.
unsafe impl Plain for [u64; 2] {}
// SAFETY: an array of integers.
unsafe impl Plain for [u32; 2] {}

/// A part of a ring, checked once for length, alignment and lying in one mapping. Keeps the mapping alive.
#[derive(Debug)]
pub struct Area {
    base: NonNull<u8>,
    len: usize,
    _memory: Arc<GuestMemory>,
}

// SAFETY: the pointer leads into a mapping that `_memory` (Send and Sync) keeps alive.
unsafe impl Send for Area {}

impl Area {
    /// The `len` bytes at guest-physical `address`.
    ///
    /// # Errors
    /// When they are not mapped in one piece, or `address` is not a multiple of `align`.
    pub fn new(
        memory: &Arc<GuestMemory>,
        address: u64,
        len: usize,
        align: usize,
    ) -> Result<Self, AreaError> {
        let unmapped = AreaError::Unmapped { address, len };
        let slice = memory.contiguous(address, len as u64).map_err(|_| unmapped)?;
        let base = guest_base(&slice).ok_or(unmapped)?;
        // The host address matters to the CPU; it and the guest's address agree below page size.
        if !base.as_ptr().addr().is_multiple_of(align) {
            return Err(AreaError::Misaligned { address, align });
        }
        Ok(Self { base, len, _memory: Arc::clone(memory) })
    }

    /// Copies the value at byte `offset` out of guest memory.
    ///
    /// # Panics
    /// When it lies outside the area or is misaligned: offsets are computed from checked sizes.
    #[inline]
    #[must_use]
    pub fn read<T: Plain>(&self, offset: usize) -> T {
        let at = self.at::<T>(offset);
        // SAFETY: in bounds and aligned (`at`); any bit pattern is a `T`.
        unsafe { at.read_volatile() }
    }

    /// Copies `value` into guest memory at byte `offset`.
    ///
    /// # Panics
    /// As [`Area::read`].
    #[inline]
    pub fn write<T: Plain>(&self, offset: usize, value: T) {
        let at = self.at::<T>(offset);
        // SAFETY: in bounds and aligned (`at`).
        unsafe { at.write_volatile(value) }
    }

    /// Reads a little-endian index that the guest writes concurrently.
    ///
    /// # Panics
    /// As [`Area::read`].
    #[inline]
    #[must_use]
    pub fn load(&self, offset: usize, order: Ordering) -> u16 {
        u16::from_le(self.atomic(offset).load(order))
    }

    /// Writes a little-endian index that the guest reads concurrently.
    ///
    /// # Panics
    /// As [`Area::read`].
    #[inline]
    pub fn store(&self, offset: usize, value: u16, order: Ordering) {
        self.atomic(offset).store(value.to_le(), order);
    }

    /// Reads two little-endian fields at once that the guest writes one after the other.
    ///
    /// # Panics
    /// As [`Area::read`].
    #[inline]
    #[must_use]
    pub fn load_u32(&self, offset: usize, order: Ordering) -> u32 {
        // SAFETY: as in `atomic`.
        u32::from_le(unsafe { AtomicU32::from_ptr(self.at::<u32>(offset)) }.load(order))
    }

    /// Reads the little-endian half of a packed descriptor that holds its flags.
    ///
    /// # Panics
    /// As [`Area::read`].
    #[inline]
    #[must_use]
    pub fn load_u64(&self, offset: usize, order: Ordering) -> u64 {
        u64::from_le(self.atomic_u64(offset).load(order))
    }

    /// Reads `count` pairs of little-endian words, one pair at a time. The second word of a pair is read first: with
    /// [`Ordering::Acquire`] the first word is at least as new.
    ///
    /// # Panics
    /// As [`Area::read`], for all of the pairs.
    #[inline]
    pub fn load_pairs(
        &self,
        offset: usize,
        count: usize,
        order: Ordering,
    ) -> impl Iterator<Item = [u64; 2]> + '_ {
        const PAIR: usize = size_of::<[u64; 2]>();
        let room = self.len.checked_sub(offset).map_or(0, |room| room / PAIR);
        assert!(count <= room, "offset outside the ring's area");
        debug_assert!((self.base.as_ptr().addr() + offset).is_multiple_of(align_of::<u64>()));
        (0..count).map(move |n| {
            // SAFETY: pair `n` of `count` lies in the area, aligned (above). Its second word is accessed as in
            // `atomic_u64`, the first one as in `read`.
            unsafe {
                let pair = self.base.as_ptr().add(offset + n * PAIR).cast::<u64>();
                let second = AtomicU64::from_ptr(pair.add(1)).load(order);
                [u64::from_le(pair.read_volatile()), u64::from_le(second)]
            }
        })
    }

    /// Writes the little-endian half of a packed descriptor that holds its flags.
    ///
    /// # Panics
    /// As [`Area::read`].
    #[inline]
    pub fn store_u64(&self, offset: usize, value: u64, order: Ordering) {
        self.atomic_u64(offset).store(value.to_le(), order);
    }

    /// Prefetches the cache line of byte `offset`, for reading. Any offset is allowed: it is only a hint.
    #[inline]
    pub fn prefetch_to_read(&self, offset: usize) {
        prefetch::to_read(self.base.as_ptr().wrapping_add(offset));
    }

    /// The same, for writing.
    #[inline]
    pub fn prefetch_to_write(&self, offset: usize) {
        prefetch::to_write(self.base.as_ptr().wrapping_add(offset));
    }

    #[inline]
    fn atomic(&self, offset: usize) -> &AtomicU16 {
        // SAFETY: in bounds and aligned (`at`); the memory lives as long as `self`, and the guest's
        // accesses to indices are atomic by the virtio specification (and by hardware).
        unsafe { AtomicU16::from_ptr(self.at::<u16>(offset)) }
    }

    #[inline]
    fn atomic_u64(&self, offset: usize) -> &AtomicU64 {
        // SAFETY: as in `atomic`. The guest's driver may access the fields in it one by one: on every
        // machine that runs guests, naturally aligned accesses of different sizes are atomic together.
        unsafe { AtomicU64::from_ptr(self.at::<u64>(offset)) }
    }

    #[inline]
    fn at<T: Plain>(&self, offset: usize) -> *mut T {
        let size = size_of::<T>();
        assert!(offset <= self.len && size <= self.len - offset, "offset outside the ring's area");
        debug_assert!((self.base.as_ptr().addr() + offset).is_multiple_of(align_of::<T>()));
        // SAFETY: `offset + size <= len`, inside one mapping.
        unsafe { self.base.as_ptr().add(offset).cast() }
    }
}

fn guest_base(slice: &crate::GuestSlice<'_>) -> Option<NonNull<u8>> {
    let iovec = crate::GuestSlice::as_iovecs(std::slice::from_ref(slice))[0];
    NonNull::new(iovec.iov_base.cast())
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::memory::Mapping;
    use vm_memory::GuestAddress;

    fn memory() -> Arc<GuestMemory> {
        let map = Mapping::from_ranges(&[(GuestAddress(0x1000), 0x1000)]).unwrap();
        Arc::new(GuestMemory::new(Arc::new(map)))
    }

    #[test]
    #[cfg_attr(miri, ignore = "vm-memory's stand-in for a mapping is not aligned there")]
    fn values_come_back() {
        let area = Area::new(&memory(), 0x1010, 64, 16).unwrap();
        area.write(16, [1_u64, 2]);
        area.store(4, 0xabcd, Ordering::Release);
        assert_eq!(area.read::<[u64; 2]>(16), [1, 2]);
        assert_eq!(area.load(4, Ordering::Acquire), 0xabcd);
    }

    #[test]
    #[cfg_attr(miri, ignore = "vm-memory's stand-in for a mapping is not aligned there")]
    fn what_is_not_mapped_or_not_aligned_is_refused() {
        let memory = memory();
        let unmapped = Area::new(&memory, 0x1ff0, 32, 16).unwrap_err();
        assert_eq!(unmapped, AreaError::Unmapped { address: 0x1ff0, len: 32 });
        let misaligned = Area::new(&memory, 0x1008, 32, 16).unwrap_err();
        assert_eq!(misaligned, AreaError::Misaligned { address: 0x1008, align: 16 });
    }

    #[test]
    #[cfg_attr(miri, ignore = "vm-memory's stand-in for a mapping is not aligned there")]
    #[should_panic(expected = "outside the ring's area")]
    fn an_offset_past_the_end_is_our_own_bug() {
        let _ = Area::new(&memory(), 0x1000, 64, 16).unwrap().read::<u32>(62);
    }
}
