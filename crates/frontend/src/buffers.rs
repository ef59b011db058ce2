//! The buffers of a ring, with canaries between them.

use std::sync::Arc;

use guest_memory::GuestMemory;
use virtqueue::driver::Buffer;

use crate::Error;
use crate::memory::SharedMemory;

const CANARY: u8 = 0xc5;

/// Buffers of one length, each with canary bytes before and after it.
#[derive(Debug)]
pub struct Buffers {
    memory: Arc<GuestMemory>,
    base: u64,
    len: u32,
    canary_len: u64,
    stride: u64,
    count: u32,
    free: Vec<u32>,
}

impl Buffers {
    /// Bytes that `count` buffers need.
    #[must_use]
    pub fn bytes(count: u32, len: u32, canary_len: u32) -> u64 {
        u64::from(canary_len) + u64::from(count) * stride(len, canary_len)
    }

    /// Takes `count` buffers of `len` bytes from guest memory.
    ///
    /// # Errors
    /// When there is not enough.
    pub fn new(
        memory: &mut SharedMemory,
        count: u32,
        len: u32,
        canary_len: u32,
    ) -> Result<Self, Error> {
        let base = memory.allocate_across(Self::bytes(count, len, canary_len))?;
        let buffers = Self {
            memory: Arc::clone(memory.guest()),
            base,
            len,
            canary_len: canary_len.into(),
            stride: stride(len, canary_len),
            count,
            free: (0..count).rev().collect(),
        };
        for (address, len) in buffers.gaps() {
            buffers.memory.write(address, &vec![CANARY; len])?;
        }
        Ok(buffers)
    }

    /// Length of a buffer in bytes.
    #[must_use]
    pub const fn len(&self) -> u32 {
        self.len
    }

    /// Whether all buffers are in use.
    #[must_use]
    pub const fn is_empty(&self) -> bool {
        self.free.is_empty()
    }

    /// Number of free buffers.
    #[must_use]
    pub const fn free(&self) -> usize {
        self.free.len()
    }

    /// Takes a buffer, as a descriptor of `len` bytes.
    pub(crate) fn take(&mut self, len: u32, writable: bool) -> Option<Buffer> {
        debug_assert!(len <= self.len);
        let index = self.free.pop()?;
        let address = self.address(index);
        Some(Buffer { address, len, writable })
    }

    /// Gives a buffer back.
    pub(crate) fn give_back(&mut self, buffer: &Buffer) {
        let index = (buffer.address - self.address(0)) / self.stride;
        #[expect(clippy::cast_possible_truncation, reason = "it came from `take`")]
        self.free.push(index as u32);
    }

    /// Checks every byte between buffers.
    ///
    /// # Errors
    /// [`Error::Canary`] with the first one that changed.
    pub fn check_canaries(&self) -> Result<(), Error> {
        let mut bytes = Vec::new();
        for (address, len) in self.gaps() {
            bytes.resize(len, 0);
            self.memory.read(address, &mut bytes)?;
            if let Some(at) = bytes.iter().position(|&byte| byte != CANARY) {
                return Err(Error::Canary { address: address + at as u64 });
            }
        }
        Ok(())
    }

    fn address(&self, index: u32) -> u64 {
        self.base + self.canary_len + u64::from(index) * self.stride
    }

    /// The gaps before the first buffer and after each.
    fn gaps(&self) -> impl Iterator<Item = (u64, usize)> {
        let first = (self.base, self.canary_len as usize);
        let after = (self.stride - u64::from(self.len)) as usize;
        let after = (0..self.count).map(move |n| (self.address(n) + u64::from(self.len), after));
        std::iter::once(first).chain(after).filter(|(_, len)| *len > 0)
    }
}

/// Distance from one buffer to the next. Buffers start at cache lines.
fn stride(len: u32, canary_len: u32) -> u64 {
    u64::from(len).next_multiple_of(64) + u64::from(canary_len)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::RegionOptions;

    #[test]
    fn a_byte_outside_any_buffer_is_seen() {
        let region = RegionOptions { address: 0, len: 0x4000 };
        for canary_len in [0, 64, 100] {
            let mut memory = SharedMemory::new(&[region]).unwrap();
            let mut buffers = Buffers::new(&mut memory, 4, 200, canary_len).unwrap();
            let all: Vec<Buffer> = std::iter::from_fn(|| buffers.take(200, true)).collect();
            assert_eq!(all.len(), 4);
            for buffer in &all {
                memory.guest().write(buffer.address, &[0xff; 200]).unwrap();
                buffers.check_canaries().unwrap();
            }
            let after = all[1].address + 200;
            memory.guest().write(after, &[0]).unwrap();
            let Err(Error::Canary { address }) = buffers.check_canaries() else { panic!() };
            assert_eq!(address, after);
            all.iter().for_each(|buffer| buffers.give_back(buffer));
            assert_eq!(buffers.free(), 4);
        }
    }
}
