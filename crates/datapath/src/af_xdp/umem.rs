//! UMEM: the memory for the frames of an AF_XDP socket, divided into chunks.

use std::fs::File;
use std::io;
use std::os::fd::AsFd as _;

use guest_memory::{GuestMemory, GuestSlice, HostMemory};
use rustix::fs::{MemfdFlags, SealFlags, fcntl_add_seals, memfd_create};

use super::ledger::Ledger;

/// Bytes that the kernel leaves free in a chunk before a received frame (`XDP_PACKET_HEADROOM`, `linux/bpf.h`).
pub const HEADROOM: u32 = 256;

/// Position of the frame's offset in an address of unaligned mode. The low 48 bits are the start of the chunk, and the
/// high 16 bits are the offset of the frame from there (`XSK_UNALIGNED_BUF_OFFSET_SHIFT`, `linux/if_xdp.h`).
const OFFSET_SHIFT: u32 = 48;

/// Where the UMEM of a socket is.
#[derive(Clone, Copy, Debug)]
pub enum Place<'g> {
    /// In a file, which another daemon can map.
    File,
    /// In memory of this process alone.
    Own,
    /// In memory of this process alone, with that of a guest after it.
    BeforeGuest(&'g GuestMemory),
}

/// The UMEM of one socket: first the chunks for received frames, then those for frames to send, then the guest's memory
/// if frames are sent from there. A file has the [`Ledger`] after the chunks.
#[derive(Debug)]
pub struct Umem {
    memory: HostMemory,
    /// That of [`Place::File`].
    file: Option<File>,
    chunk: u32,
    receive: u32,
    /// End of the chunks, in bytes from the start of UMEM.
    chunks_end: u64,
    /// Unaligned mode: chunks may begin anywhere, because guest buffers are chunks, too.
    unaligned: bool,
    /// The free chunks for frames to send.
    ledger: Ledger,
}

impl Umem {
    /// Maps `receive` and `transmit` chunks of `chunk` bytes each.
    ///
    /// # Errors
    /// See [`HostMemory::before_guest`]; what the system answers `memfd_create(2)`.
    pub fn new(chunk: u32, receive: u32, transmit: u32, place: Place<'_>) -> io::Result<Self> {
        let offset = |n: u32| u64::from(n) * u64::from(chunk);
        let chunks_end = offset(receive + transmit);
        let len = usize::try_from(chunks_end).map_err(io::Error::other)?;
        let own = |memory, unaligned| {
            let ledger = Ledger::own(transmit);
            Self { memory, file: None, chunk, receive, chunks_end, unaligned, ledger }
        };
        let mut umem = match place {
            Place::File => {
                let file = file_for(chunks_end + Ledger::len(transmit) as u64)?;
                Self::of_file(file, chunk, receive, transmit)?
            }
            Place::Own => own(HostMemory::new(len)?, false),
            Place::BeforeGuest(guest) => own(HostMemory::before_guest(len, guest)?, true),
        };
        for (noted, n) in (receive..receive + transmit).enumerate() {
            umem.ledger.note(noted, offset(n));
        }
        umem.ledger.add(transmit as usize);
        Ok(umem)
    }

    /// The UMEM in the file of another daemon, which was made with the same numbers.
    ///
    /// # Errors
    /// `InvalidData` when the file is too short; what the system answers.
    pub fn go_on(file: File, chunk: u32, receive: u32, transmit: u32) -> io::Result<Self> {
        let chunks = u64::from(receive + transmit) * u64::from(chunk);
        if chunk == 0 || file.metadata()?.len() < chunks + Ledger::len(transmit) as u64 {
            return Err(io::ErrorKind::InvalidData.into());
        }
        Self::of_file(file, chunk, receive, transmit)
    }

    fn of_file(file: File, chunk: u32, receive: u32, transmit: u32) -> io::Result<Self> {
        let chunks_end = u64::from(receive + transmit) * u64::from(chunk);
        let len = usize::try_from(chunks_end).map_err(io::Error::other)?;
        let memory = HostMemory::of_file(&file, len)?;
        let ledger = Ledger::in_file(file.as_fd(), chunks_end, transmit)?;
        Ok(Self { memory, file: Some(file), chunk, receive, chunks_end, unaligned: false, ledger })
    }

    /// The file that it is in, if another daemon can go on with it.
    pub const fn file(&self) -> Option<&File> {
        self.file.as_ref()
    }

    /// Keeps how many segments of the next frames are sent, and are placed, for a daemon that goes on.
    pub fn set_progress(&mut self, sent: usize, placed: usize) {
        self.ledger.set_progress(sent, placed);
    }

    /// How many segments of the next frames are sent, and are placed, as they were kept.
    pub fn progress(&self) -> (usize, usize) {
        self.ledger.progress()
    }

    /// Address of the whole UMEM and its length in bytes, to register it with the kernel.
    pub fn registration(&self) -> (u64, u64) {
        (self.memory.address(), self.memory.len() as u64)
    }

    /// Length of a chunk in bytes.
    #[inline]
    pub const fn chunk(&self) -> u32 {
        self.chunk
    }

    /// Whether chunks may begin anywhere (unaligned mode).
    pub const fn is_unaligned(&self) -> bool {
        self.unaligned
    }

    /// Offsets of all chunks for received frames.
    pub fn receive_chunks(&self) -> impl Iterator<Item = u64> + use<> {
        let chunk = u64::from(self.chunk);
        (0..u64::from(self.receive)).map(move |n| n * chunk)
    }

    /// Number of free chunks for frames to send.
    #[inline]
    pub fn free(&self) -> usize {
        self.ledger.free()
    }

    /// Takes a free chunk for a frame to send. Returns its offset.
    #[inline]
    pub fn take(&mut self) -> Option<u64> {
        self.ledger.take()
    }

    /// Notes that the chunk at `address` is free, after the kernel has sent from it: one more than the `noted` ones. Returns how
    /// many they are now. An address in the guest's memory is ignored.
    #[inline]
    pub fn note_sent(&mut self, noted: usize, address: u64) -> usize {
        if address >= self.chunks_end {
            return noted;
        }
        self.ledger.note(noted, address - address % u64::from(self.chunk));
        noted + 1
    }

    /// Frees the chunks that were noted.
    #[inline]
    pub fn give_back(&mut self, noted: usize) {
        self.ledger.add(noted);
    }

    /// Offset of the chunk of a frame received at `address`, to return it to the fill ring.
    #[inline]
    pub const fn chunk_of(&self, address: u64) -> u64 {
        let address = if self.unaligned { address & ((1 << OFFSET_SHIFT) - 1) } else { address };
        address - address % self.chunk as u64
    }

    /// The `len` bytes of a frame received at `address`. `None` if it does not begin in a chunk, or exceeds UMEM.
    #[inline]
    pub fn received(&self, address: u64, len: u32) -> Option<GuestSlice<'_>> {
        self.slice_of_chunks(self.offset_received(address), len)
    }

    /// The `len` bytes before a frame received at `address`. `None` as for [`received`](Self::received).
    #[inline]
    pub fn before_received(&self, address: u64, len: u32) -> Option<GuestSlice<'_>> {
        let offset = self.offset_received(address).checked_sub(u64::from(len))?;
        self.slice_of_chunks(offset, len)
    }

    #[inline]
    const fn offset_received(&self, address: u64) -> u64 {
        if self.unaligned {
            (address & ((1 << OFFSET_SHIFT) - 1)) + (address >> OFFSET_SHIFT)
        } else {
            address
        }
    }

    #[inline]
    fn slice_of_chunks(&self, offset: u64, len: u32) -> Option<GuestSlice<'_>> {
        if offset < self.chunks_end { self.slice(offset, len) } else { None }
    }

    /// The `len` bytes at `offset`. `None` if they exceed UMEM.
    #[inline]
    pub fn slice(&self, offset: u64, len: u32) -> Option<GuestSlice<'_>> {
        self.memory.slice(offset, len)
    }

    /// Offset of a slice of guest memory in UMEM. `None` if it is not part of UMEM.
    #[inline]
    pub fn offset_of(&self, slice: &GuestSlice<'_>) -> Option<u64> {
        self.memory.offset_of(slice)
    }
}

/// A file of `len` bytes in memory, which nobody can shorten.
fn file_for(len: u64) -> io::Result<File> {
    let flags = MemfdFlags::CLOEXEC | MemfdFlags::ALLOW_SEALING;
    let file = File::from(memfd_create("ringscope-frames", flags)?);
    file.set_len(len)?;
    fcntl_add_seals(&file, SealFlags::SHRINK | SealFlags::GROW | SealFlags::SEAL)?;
    Ok(file)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn chunks_are_taken_and_given_back() {
        let mut umem = Umem::new(2048, 4, 2, Place::File).unwrap();
        assert_eq!(umem.receive_chunks().collect::<Vec<_>>(), [0, 2048, 4096, 6144]);
        let taken = [umem.take().unwrap(), umem.take().unwrap()];
        assert_eq!((umem.take(), taken), (None, [10240, 8192]));
        let noted = umem.note_sent(0, taken[0] + 100);
        let noted = umem.note_sent(noted, 12288);
        assert_eq!((umem.free(), umem.take()), (0, None));
        umem.give_back(noted);
        assert_eq!((umem.free(), umem.take()), (1, Some(10240)));
        assert_eq!(umem.chunk_of(2048 + 256), 2048);
    }

    #[test]
    fn in_unaligned_mode_an_address_has_two_parts() {
        let umem = Umem { unaligned: true, ..Umem::new(2048, 4, 2, Place::File).unwrap() };
        let address = 2048 | 256 << OFFSET_SHIFT;
        assert_eq!(umem.chunk_of(address), 2048);
        umem.slice(2048 + 256, 3).unwrap().write(0, b"abc");
        let mut bytes = [0; 3];
        umem.received(address, 3).unwrap().read(0, &mut bytes);
        assert_eq!(&bytes, b"abc");
    }

    #[test]
    fn what_lies_outside_is_no_slice() {
        let umem = Umem::new(2048, 1, 1, Place::Own).unwrap();
        assert_eq!(umem.slice(4000, 96).map(|slice| slice.len()), Some(96));
        assert!(umem.slice(4000, 97).is_none() && umem.slice(u64::MAX, 2).is_none());
        assert!(umem.received(4096, 1).is_none());
    }
}
