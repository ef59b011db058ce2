//! UMEM: the memory that an AF_XDP socket's frames are in, cut into chunks.

use std::io;

use guest_memory::{GuestSlice, HostMemory};

/// Bytes that the kernel leaves free before a received frame (`XDP_PACKET_HEADROOM`, `linux/bpf.h`).
pub const HEADROOM: u32 = 256;

/// Chunks for received frames first, then those for frames to send.
#[derive(Debug)]
pub struct Umem {
    memory: HostMemory,
    chunk: u32,
    receive: u32,
    /// Offsets of the chunks that nothing is being sent from.
    free: Vec<u64>,
}

impl Umem {
    /// Maps `receive` and `transmit` chunks of `chunk` bytes.
    ///
    /// # Errors
    /// What the system answers.
    pub fn new(chunk: u32, receive: u32, transmit: u32) -> io::Result<Self> {
        let memory = HostMemory::new(chunk as usize * (receive + transmit) as usize)?;
        let offset = |n: u32| u64::from(n) * u64::from(chunk);
        let free = (receive..receive + transmit).map(offset).collect();
        Ok(Self { memory, chunk, receive, free })
    }

    /// All of it, as the kernel registers it: address, and length in bytes.
    pub fn registration(&self) -> (u64, u64) {
        (self.memory.address(), self.memory.len() as u64)
    }

    /// Length of a chunk in bytes.
    #[inline]
    pub const fn chunk(&self) -> u32 {
        self.chunk
    }

    /// Offsets of all chunks for received frames.
    pub fn receive_chunks(&self) -> impl Iterator<Item = u64> + use<> {
        let chunk = u64::from(self.chunk);
        (0..u64::from(self.receive)).map(move |n| n * chunk)
    }

    /// How many chunks could be taken to send from.
    #[inline]
    pub const fn free(&self) -> usize {
        self.free.len()
    }

    /// Takes a chunk to send from.
    #[inline]
    pub fn take(&mut self) -> Option<u64> {
        self.free.pop()
    }

    /// Gives back a chunk that was sent, or not, from.
    #[inline]
    pub fn give_back(&mut self, offset: u64) {
        // Never more than were taken, so there is room: no allocation.
        debug_assert!(self.free.len() < self.free.capacity());
        self.free.push(offset);
    }

    /// The offset of the chunk that `offset` lies in.
    #[inline]
    pub const fn chunk_of(&self, offset: u64) -> u64 {
        offset - offset % self.chunk as u64
    }

    /// The `len` bytes at `offset`, if it has them.
    #[inline]
    pub fn slice(&self, offset: u64, len: u32) -> Option<GuestSlice<'_>> {
        self.memory.slice(offset, len)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn chunks_are_taken_and_given_back() {
        let mut umem = Umem::new(2048, 4, 2).unwrap();
        assert_eq!(umem.receive_chunks().collect::<Vec<_>>(), [0, 2048, 4096, 6144]);
        let taken = [umem.take().unwrap(), umem.take().unwrap()];
        assert_eq!((umem.take(), taken), (None, [10240, 8192]));
        umem.give_back(taken[0]);
        assert_eq!((umem.free(), umem.take()), (1, Some(10240)));
        assert_eq!(umem.chunk_of(2048 + 256), 2048);
    }

    #[test]
    fn what_lies_outside_is_no_slice() {
        let umem = Umem::new(2048, 1, 1).unwrap();
        assert_eq!(umem.slice(4000, 96).map(|slice| slice.len()), Some(96));
        assert!(umem.slice(4000, 97).is_none() && umem.slice(u64::MAX, 2).is_none());
    }
}
