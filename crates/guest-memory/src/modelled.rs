//! A part of a ring under loom, which runs every order of accesses that the memory model allows.
#![allow(unsafe_code, reason = "plain numbers from their bytes")]

use std::ptr;
use std::sync::Arc;

use loom::sync::atomic::{AtomicU16, AtomicU64, Ordering};

use crate::area::{Area, AreaError, Plain};
use crate::memory::GuestMemory;
use crate::words::Words;

/// As [`Area`], but in loom's memory, which begins as zeros.
#[derive(Debug)]
pub struct ModelledArea {
    words: Arc<Words>,
    _memory: Arc<GuestMemory>,
}

impl ModelledArea {
    /// As [`Area::new`].
    ///
    /// # Errors
    /// As [`Area::new`].
    ///
    /// # Panics
    /// When a thread of the model has panicked.
    pub fn new(
        memory: &Arc<GuestMemory>,
        address: u64,
        len: usize,
        align: usize,
    ) -> Result<Self, AreaError> {
        Area::new(memory, address, len, align)?;
        let mut parts = memory.modelled.lock().expect("a model that goes on");
        let new = || match align {
            16 => Words::Long((0..len / 8).map(|_| AtomicU64::new(0)).collect()),
            _ => Words::Short((0..len / 2).map(|_| AtomicU16::new(0)).collect()),
        };
        let words = Arc::clone(parts.entry(address).or_insert_with(|| Arc::new(new())));
        Ok(Self { words, _memory: Arc::clone(memory) })
    }

    /// As [`Area::read`].
    #[must_use]
    pub fn read<T: Plain>(&self, offset: usize) -> T {
        let mut bytes = Vec::with_capacity(size_of::<T>());
        while bytes.len() < size_of::<T>() {
            let at = offset + bytes.len();
            match &*self.words {
                Words::Long(all) => bytes.extend(all[at / 8].load(Ordering::Relaxed).to_ne_bytes()),
                Words::Short(all) => {
                    bytes.extend(all[at / 2].load(Ordering::Relaxed).to_ne_bytes())
                }
            }
        }
        assert_eq!(bytes.len(), size_of::<T>(), "an access of half a word");
        // SAFETY: as many bytes, and any bit pattern is a `T`.
        unsafe { ptr::read_unaligned(bytes.as_ptr().cast()) }
    }

    /// As [`Area::write`].
    pub fn write<T: Plain>(&self, offset: usize, value: T) {
        let mut bytes = [0_u8; 16];
        assert!(size_of::<T>() <= bytes.len());
        // SAFETY: there is room; a `T` has no padding.
        unsafe { ptr::write_unaligned(bytes.as_mut_ptr().cast(), value) };
        let bytes = &bytes[..size_of::<T>()];
        match &*self.words {
            Words::Long(all) => bytes
                .as_chunks()
                .0
                .iter()
                .zip(&all[offset / 8..])
                .for_each(|(word, to)| to.store(u64::from_ne_bytes(*word), Ordering::Relaxed)),
            Words::Short(all) => bytes
                .as_chunks()
                .0
                .iter()
                .zip(&all[offset / 2..])
                .for_each(|(word, to)| to.store(u16::from_ne_bytes(*word), Ordering::Relaxed)),
        }
    }

    /// As [`Area::load`].
    #[must_use]
    pub fn load(&self, offset: usize, order: Ordering) -> u16 {
        u16::from_le(self.short(offset).load(order))
    }

    /// As [`Area::store`].
    pub fn store(&self, offset: usize, value: u16, order: Ordering) {
        self.short(offset).store(value.to_le(), order);
    }

    /// As [`Area::load_u32`].
    #[must_use]
    pub fn load_u32(&self, offset: usize, order: Ordering) -> u32 {
        u32::from(self.load(offset, order)) | u32::from(self.load(offset + 2, order)) << 16
    }

    /// As [`Area::load_u64`].
    #[must_use]
    pub fn load_u64(&self, offset: usize, order: Ordering) -> u64 {
        u64::from_le(self.long(offset).load(order))
    }

    /// As [`Area::load_pairs`].
    pub fn load_pairs(
        &self,
        offset: usize,
        count: usize,
        order: Ordering,
    ) -> impl Iterator<Item = [u64; 2]> + '_ {
        (0..count).map(move |n| {
            let second = self.load_u64(offset + n * 16 + 8, order);
            [u64::from_le(self.read(offset + n * 16)), second]
        })
    }

    /// As [`Area::store_u64`].
    pub fn store_u64(&self, offset: usize, value: u64, order: Ordering) {
        self.long(offset).store(value.to_le(), order);
    }

    /// As [`Area::prefetch_to_read`]: nothing that the memory model knows.
    pub const fn prefetch_to_read(&self, _offset: usize) {}

    /// As [`Area::prefetch_to_write`].
    pub const fn prefetch_to_write(&self, _offset: usize) {}

    fn short(&self, offset: usize) -> &AtomicU16 {
        match &*self.words {
            Words::Short(all) => &all[offset / 2],
            Words::Long(_) => panic!("an index in a descriptor table"),
        }
    }

    fn long(&self, offset: usize) -> &AtomicU64 {
        match &*self.words {
            Words::Long(all) => &all[offset / 8],
            Words::Short(_) => panic!("half a descriptor outside its table"),
        }
    }
}
