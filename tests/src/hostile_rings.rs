//! Chains of a hostile guest that are cheap to make and costly to serve, offered repeatedly.

use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::time::Duration;

use frontend::driver::Driver;
use frontend::layout::{DESC_F_INDIRECT, DESC_F_NEXT, DESC_F_WRITE, Descriptor, PackedDescriptor};
use frontend::{Guest, GuestOptions, RegionOptions, Ring};

use crate::hostile::UNMAPPED;
use crate::{lan, packets};

const MIB: u64 = 1 << 20;
/// Guest-physical address of indirect tables: after the rings and honest buffers.
const TABLE: u64 = 16 * MIB;
/// Guest-physical address of buffers.
const DATA: u64 = 20 * MIB;
/// Address of the first of several small regions, which follow each other.
const SMALL: u64 = 24 * MIB;
const SMALL_LEN: u64 = 4096;
/// Number of small regions: one message of the front end names at most 32 regions.
const SMALL_COUNT: u64 = 30;
/// Most descriptors of a chain, if its ring is no larger (virtio 1.2, 2.7.5.3.1; QEMU's own devices accept this
/// number).
const CHAIN_MAX: usize = 1024;
/// Most pieces of a frame that the daemon accepts: one less than a system call takes.
const PIECES_MAX: usize = 1023;

/// What a hostile guest does with a ring. Patterns that receive need another guest that sends.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Pattern {
    /// Sends tables of 65,536 (packed: 32,768) empty descriptors. This breaks the ring, and the guest resets it.
    SendHugeTables,
    /// Sends tables of 1024 empty descriptors.
    SendEmptyTables,
    /// Sends frames of 1011 bytes in pieces of one byte.
    SendBytes,
    /// Sends frames whose pieces lie in one small region after the other.
    SendRegions,
    /// Sends tables in which every descriptor spans all small regions.
    SendAcross,
    /// Sends descriptors of unmapped memory.
    SendUnmapped,
    /// Sends TCP segments of 60,000 bytes, to be cut into segments of 32 bytes.
    SendSegments,
    /// Sends the same in as many pieces as allowed.
    SendSegmentsInPieces,
    /// Receives into tables of 65,536 (packed: 32,768) empty descriptors. This breaks the ring, and the guest resets
    /// it.
    ReceiveHugeTables,
    /// Receives into tables of 1024 empty descriptors.
    ReceiveEmptyTables,
    /// Receives into empty descriptors.
    ReceiveEmpty,
    /// Receives into unmapped memory.
    ReceiveUnmapped,
    /// Receives into buffers of one byte each.
    ReceiveBytes,
    /// Receives into chains of 1023 pieces of one byte.
    ReceivePieces,
    /// Receives into a good buffer after 1023 empty descriptors.
    ReceiveLate,
}

/// The progress of a guest that [keeps](Pattern::keep_busy) its ring busy.
#[derive(Debug, Default)]
pub struct Progress {
    /// Stops the guest when set.
    pub done: AtomicBool,
    /// Number of chains that came back.
    pub came: AtomicU64,
    /// Number of times that the ring broke and was reset.
    pub resets: AtomicU64,
}

impl Progress {
    /// Ends it when dropped.
    #[must_use]
    pub const fn stop_at_the_end(&self) -> StopAtTheEnd<'_> {
        StopAtTheEnd(self)
    }
}

/// Stops a guest's thread however the test ends.
#[derive(Debug)]
pub struct StopAtTheEnd<'p>(&'p Progress);

impl Drop for StopAtTheEnd<'_> {
    fn drop(&mut self) {
        self.0.done.store(true, Ordering::Relaxed);
    }
}

impl Pattern {
    /// All patterns.
    pub const ALL: [Self; 15] = [
        Self::SendHugeTables,
        Self::SendEmptyTables,
        Self::SendBytes,
        Self::SendRegions,
        Self::SendAcross,
        Self::SendUnmapped,
        Self::SendSegments,
        Self::SendSegmentsInPieces,
        Self::ReceiveHugeTables,
        Self::ReceiveEmptyTables,
        Self::ReceiveEmpty,
        Self::ReceiveUnmapped,
        Self::ReceiveBytes,
        Self::ReceivePieces,
        Self::ReceiveLate,
    ];

    /// Whether it uses the receive ring.
    #[must_use]
    pub const fn receives(self) -> bool {
        matches!(
            self,
            Self::ReceiveHugeTables
                | Self::ReceiveEmptyTables
                | Self::ReceiveEmpty
                | Self::ReceiveUnmapped
                | Self::ReceiveBytes
                | Self::ReceivePieces
                | Self::ReceiveLate
        )
    }

    /// Whether the guest breaks its own ring.
    #[must_use]
    pub const fn breaks(self) -> bool {
        matches!(self, Self::SendHugeTables | Self::ReceiveHugeTables)
    }

    /// The options that the guest needs.
    #[must_use]
    pub fn options(self, packed: bool) -> GuestOptions {
        let options = GuestOptions::default().packed(packed);
        // Without mergeable buffers, one buffer that is too small costs nothing.
        let options = match self {
            Self::SendSegments | Self::SendSegmentsInPieces => options.offloads(),
            _ => options,
        };
        let small = (0..SMALL_COUNT)
            .map(|n| RegionOptions { address: SMALL + n * SMALL_LEN, len: SMALL_LEN });
        let regions = std::iter::once(RegionOptions { address: 0, len: SMALL - 4096 });
        GuestOptions { regions: regions.chain(small).collect(), ..options }
    }

    /// Fills a ring. Sent frames go to `to`, from `from`. Continue with [`Busy::step`].
    ///
    /// # Panics
    /// If the back end does not behave as it should.
    pub fn begin(self, guest: &mut Guest, [to, from]: [[u8; 6]; 2]) -> Busy {
        let descriptor = self.prepare(guest, to, from);
        let busy = Busy { descriptor, index: u16::from(!self.receives()) };
        busy.fill(guest);
        busy
    }

    /// Keeps the back end busy until `progress.done` is set. `way`: destination and source of sent frames.
    ///
    /// # Panics
    /// If the back end does not behave as it should.
    pub fn keep_busy(self, guest: &mut Guest, way: [[u8; 6]; 2], progress: &Progress) {
        let busy = self.begin(guest, way);
        while !progress.done.load(Ordering::Relaxed) {
            let count = busy.step(guest);
            progress.came.fetch_add(count, Ordering::Relaxed);
            if count == 0 {
                if busy.has_broken(guest) {
                    guest.reboot().unwrap();
                    progress.resets.fetch_add(1, Ordering::Relaxed);
                    busy.fill(guest);
                }
                std::thread::yield_now();
            }
        }
    }

    /// Writes tables and buffers to guest memory. Returns address, length and flags of the chain's first descriptor.
    fn prepare(self, guest: &Guest, to: [u8; 6], from: [u8; 6]) -> (u64, u32, u16) {
        let memory = guest.memory().guest();
        let packed = guest.features().packed();
        let write = if self.receives() { DESC_F_WRITE } else { 0 };
        let frame = [&[0; 12][..], &lan::frame(to, from, 1, PIECES_MAX - 12)].concat();
        memory.write(DATA, &frame).unwrap();
        let nothing = |count| vec![(DATA, 0); count];
        let table: Vec<(u64, u32)> = match self {
            Self::SendHugeTables | Self::ReceiveHugeTables => {
                nothing(if packed { 1 << 15 } else { 1 << 16 })
            }
            Self::SendEmptyTables | Self::ReceiveEmptyTables => nothing(CHAIN_MAX),
            Self::SendBytes | Self::ReceivePieces => {
                (DATA..).take(PIECES_MAX).map(|at| (at, 1)).collect()
            }
            Self::SendRegions => {
                let places = (0..PIECES_MAX as u64).map(|n| SMALL + n % SMALL_COUNT * SMALL_LEN);
                let places: Vec<_> = places.zip(0..).map(|(at, n)| (at + n / 30, 1)).collect();
                for (&(at, _), byte) in places.iter().zip(&frame) {
                    memory.write(at, &[*byte]).unwrap();
                }
                places
            }
            Self::SendAcross => vec![(SMALL, (SMALL_COUNT * SMALL_LEN) as u32); CHAIN_MAX],
            Self::SendUnmapped => return (UNMAPPED, 100, 0),
            Self::ReceiveUnmapped => return (UNMAPPED, 100, write),
            Self::ReceiveEmpty => return (DATA, 0, write),
            Self::ReceiveBytes => return (DATA, 1, write),
            Self::ReceiveLate => {
                nothing(CHAIN_MAX - 1).into_iter().chain([(DATA + 4096, 2048)]).collect()
            }
            Self::SendSegments | Self::SendSegmentsInPieces => {
                let header = packets::gso_header(32);
                let packet = packets::tcp_unsummed((from, to), &[7; 60_000]);
                let whole = [&header[..], &packet].concat();
                memory.write(DATA, &whole).unwrap();
                let len = whole.len() as u32;
                if self == Self::SendSegments {
                    return (DATA, len, 0);
                }
                let piece = len / PIECES_MAX as u32;
                let pieces = (0..PIECES_MAX as u32).map(|n| (DATA + u64::from(n * piece), piece));
                let last = DATA + u64::from(PIECES_MAX as u32 * piece);
                assert!(last <= DATA + u64::from(len));
                pieces.collect()
            }
        };
        write_table(guest, &table, write);
        (TABLE, 16 * table.len() as u32, DESC_F_INDIRECT)
    }
}

/// A ring that a [`Pattern`] keeps busy.
#[derive(Clone, Copy, Debug)]
pub struct Busy {
    descriptor: (u64, u32, u16),
    index: u16,
}

impl Busy {
    /// Offers as many chains as there is room for. On the transmit ring that is the whole ring. On the receive ring,
    /// the buffers of an honest guest are still out; each is replaced when it comes back.
    ///
    /// # Panics
    /// If the back end does not behave as it should.
    pub fn fill(&self, guest: &mut Guest) {
        guest.pair(0).reap().unwrap();
        let ring = guest.ring(self.index);
        let free = if self.index == 0 { 0 } else { ring.driver().setup().size };
        (0..free).for_each(|head| offer(ring, head, self.descriptor));
        ring.publish();
        ring.kick().unwrap();
    }

    /// Offers again the chains that came back. Returns their number.
    ///
    /// # Panics
    /// If the system refuses.
    pub fn step(&self, guest: &mut Guest) -> u64 {
        let ring = guest.ring(self.index);
        let mut count = 0;
        while let Some(back) = ring.driver().used() {
            offer(ring, back.id, self.descriptor);
            count += 1;
        }
        if count > 0 {
            ring.publish();
            ring.kick().unwrap();
        }
        count
    }

    /// Whether the back end has given the ring up.
    ///
    /// # Panics
    /// If the system refuses.
    #[must_use]
    pub fn has_broken(&self, guest: &mut Guest) -> bool {
        guest.ring(self.index).gave_up(Duration::ZERO).unwrap()
    }
}

/// Writes an indirect table with these addresses and lengths.
fn write_table(guest: &Guest, table: &[(u64, u32)], write: u16) {
    let packed = guest.features().packed();
    let count = table.len();
    let bytes: Vec<u8> = table
        .iter()
        .zip(1_usize..)
        .flat_map(|(&(address, len), next)| {
            if packed {
                let tail = PackedDescriptor { address, len, id: 0, flags: write }.tail();
                return [address.to_le_bytes(), tail.to_le_bytes()];
            }
            let goes_on = if next < count { DESC_F_NEXT } else { 0 };
            let next = next as u16;
            let descriptor = Descriptor { address, len, flags: write | goes_on, next };
            descriptor.to_words().map(u64::to_ne_bytes)
        })
        .flatten()
        .collect();
    guest.memory().guest().write(TABLE, &bytes).unwrap();
}

/// Offers one descriptor. On a split ring, it is written in the place of `head`.
fn offer(ring: &mut Ring, head: u16, (address, len, flags): (u64, u32, u16)) {
    match ring.driver() {
        Driver::Split(driver) => {
            driver.write_descriptor(head, Descriptor { address, len, flags, next: 0 });
            driver.offer_raw(head);
        }
        Driver::Packed(driver) => {
            driver.offer_raw(PackedDescriptor { address, len, id: head, flags });
        }
    }
}
