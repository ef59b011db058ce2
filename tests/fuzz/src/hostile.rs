//! Targets `split` and `packed`: a driver that does what it should, and also anything else.

use arbitrary::Arbitrary;
use virtqueue::driver::{Buffer, Driver, RingOptions};
use virtqueue::layout::{DESC_F_INDIRECT, DESC_F_WRITE, Descriptor, PackedDescriptor};
use virtqueue::{Access, Queue, RingError};

use crate::burst::Device;
use crate::memory::{Canaries, DATA, Guest, REGIONS, RING, SEAM};

/// Addresses of indirect tables, within the range of buffers.
const TABLES: u64 = 0x3800;
const TABLES_LEN: u64 = 0x400;
/// The byte that the device writes. No descriptor made of it points into memory.
const WRITTEN: u8 = 0xd5;
/// The byte that fills memory at the start.
const CANARY: u8 = 0xa5;
/// Most steps of a run: more show nothing new.
const STEPS_MAX: usize = 96;

/// The story of one ring.
#[derive(Arbitrary, Debug)]
pub struct Story {
    size: u8,
    in_order: bool,
    event_index: bool,
    indirect: bool,
    device_writes: bool,
    position: u16,
    steps: Vec<Step>,
}

/// The address that a buffer claims to have.
#[derive(Arbitrary, Clone, Copy, Debug)]
struct Place {
    kind: u8,
    offset: u16,
    len: u16,
}

impl Place {
    fn address(self) -> u64 {
        let offset = u64::from(self.offset);
        match self.kind & 0xf {
            0..=7 => DATA + offset % 0x1000,
            8 => SEAM - 64 + offset % 128,
            9 => REGIONS[2].start + offset % 0x2000,
            10 => REGIONS[1].end - 32 + offset % 64,
            11 => RING + offset % DATA,
            12 => TABLES + offset % TABLES_LEN / 16 * 16,
            13 => u64::MAX - offset,
            14 => offset << 48 | offset,
            _ => DATA + offset,
        }
    }

    fn len(self) -> u32 {
        match self.kind >> 4 {
            0..=11 => u32::from(self.len % 256),
            12 => u32::from(self.len % 64) * 16,
            13 => self.len.into(),
            14 => u32::from(self.len) << 16,
            _ => u32::MAX - u32::from(self.len),
        }
    }

    fn buffer(self, writable: bool) -> Buffer {
        Buffer { address: self.address(), len: self.len(), writable }
    }
}

/// What one side does next.
#[derive(Arbitrary, Debug)]
enum Step {
    Add {
        places: Vec<(Place, bool)>,
        indirect: bool,
        table: u8,
    },
    /// An arbitrary descriptor in the table.
    Descriptor {
        slot: u8,
        place: Place,
        flags: u16,
        next: u8,
    },
    /// The same in an indirect table.
    TableEntry {
        entry: u8,
        place: Place,
        flags: u16,
        next: u8,
    },
    /// Offers something that is not a chain.
    Offer {
        place: Place,
        flags: u16,
        head: u16,
    },
    Publish,
    /// Moves a split ring's available index ahead or back by this number.
    Index(i8),
    Poke {
        at: u16,
        value: u16,
    },
    Event {
        index: u16,
        flags: u16,
    },
    Used,
    WantsKick,
    ArmSignal,
    DisarmSignal,
    Take {
        max: u8,
    },
    PutBack {
        count: u8,
    },
    Complete {
        count: u8,
    },
    /// The worker gives back and publishes all chains it holds, and signals.
    Finish,
    WantsSignal,
    ArmKick,
    DisarmKick,
    HasGrown,
    /// Stopped and started, at the same position or another one.
    Restart {
        position: Option<u16>,
    },
}

/// Plays `story` on a ring of one format.
pub fn play(story: &Story, packed: bool) {
    let guest = Guest::hostile();
    guest.fill(CANARY);
    let mut ring = Ring::new(story, guest, packed);
    for step in story.steps.iter().take(STEPS_MAX) {
        ring.canaries.before(guest);
        if ring.drive(step) {
            continue;
        }
        let served = ring.serve(step);
        ring.canaries.after(guest);
        if served.is_err() {
            // The ring stops until the driver resets it, and the chains it holds are forgotten.
            ring.reset();
        }
    }
}

struct Ring {
    guest: &'static Guest,
    options: RingOptions,
    position: u16,
    access: Access,
    driver: Driver,
    device: Device,
    canaries: Canaries,
    /// Number of descriptors offered beyond the driver's own count of free ones.
    offered: usize,
    /// Whether the driver has added chains or raw descriptors that it has not published yet.
    is_adding: bool,
}

impl Ring {
    fn new(story: &Story, guest: &'static Guest, packed: bool) -> Self {
        let size = if packed { u16::from(story.size % 67) + 1 } else { 1 << (story.size % 7) };
        let &Story { in_order, event_index, indirect, .. } = story;
        let options = RingOptions { size, packed, in_order, event_index, indirect };
        let slot = (story.position & 0x7fff) % size;
        let position = if packed { slot | story.position & 0x8000 } else { story.position };
        let access = if story.device_writes { Access::Write } else { Access::Read };
        let driver = Driver::new(&guest.memory, RING, options, position);
        let queue = Queue::new(&driver.setup(), &guest.memory).unwrap();
        let setup = driver.setup();
        let mut canaries = Canaries::default();
        // The device may change the used ring, or a packed ring's descriptors, and its event suppression.
        let end = RING + Driver::bytes(&options);
        canaries.allow(setup.device_area, end - setup.device_area);
        if packed {
            canaries.allow(setup.descriptor_table, u64::from(size) * 16);
        }
        let device = Device::new(queue, guest, access);
        Self {
            guest,
            options,
            position,
            access,
            driver,
            device,
            canaries,
            offered: 0,
            is_adding: false,
        }
    }

    fn reset(&mut self) {
        (self.offered, self.is_adding) = (0, false);
        self.driver = Driver::new(&self.guest.memory, RING, self.options, self.position);
        let queue = Queue::new(&self.driver.setup(), &self.guest.memory).unwrap();
        self.device = Device::new(queue, self.guest, self.access);
    }

    /// Performs a step of the driver. Returns false if it is not one.
    fn drive(&mut self, step: &Step) -> bool {
        match *step {
            Step::Add { ref places, indirect, table } => self.add(places, indirect, table),
            Step::Descriptor { slot, place, flags, next } => {
                let (slot, next) = (u16::from(slot) % self.options.size, next.into());
                // The first descriptor of an unpublished chain gets its length and direction later, and this address is
                // then used with those.
                self.canaries.off |= self.options.packed && self.is_adding;
                let words = self.descriptor(place, flags, next);
                self.write_words(
                    self.driver.setup().descriptor_table + u64::from(slot) * 16,
                    words,
                );
            }
            Step::TableEntry { entry, place, flags, next } => {
                let words = self.descriptor(place, flags, next.into());
                self.write_words(TABLES + u64::from(entry % 64) * 16, words);
            }
            Step::Offer { place, flags, head } => {
                self.allow(place, flags);
                self.offered += 1;
                self.is_adding = true;
                match &mut self.driver {
                    Driver::Split(driver) => driver.offer_raw(head % (self.options.size + 1)),
                    Driver::Packed(driver) => {
                        let (address, len) = (place.address(), place.len());
                        driver.offer_raw(PackedDescriptor { address, len, id: head, flags });
                    }
                }
            }
            Step::Publish => {
                self.driver.publish();
                self.is_adding = false;
            }
            Step::Index(ahead) => {
                if let Driver::Split(driver) = &mut self.driver {
                    let index = self.device.queue.next_available();
                    driver.write_available_index(index.wrapping_add_signed(ahead.into()));
                }
            }
            Step::Poke { at, value } => self.poke(at, value),
            Step::Event { index, flags } => {
                let setup = self.driver.setup();
                let (index_at, flags_at) = match self.options.packed {
                    true => (setup.driver_area, setup.driver_area + 2),
                    false => (setup.driver_area + 4 + 2 * u64::from(setup.size), setup.driver_area),
                };
                self.guest.memory.write(index_at, &index.to_le_bytes()).unwrap();
                self.guest.memory.write(flags_at, &flags.to_le_bytes()).unwrap();
            }
            Step::Used => drop(self.driver.used()),
            Step::WantsKick => drop(self.driver.needs_notification()),
            Step::ArmSignal => self.driver.enable_notification(),
            Step::DisarmSignal => self.driver.disable_notification(),
            _ => return false,
        }
        // A packed descriptor is written in two steps. If it overwrites one that the device has yet to take, the new
        // address is used with the old length and direction.
        self.canaries.off |= self.options.packed && self.offered > self.driver.free();
        true
    }

    /// Performs a step of the device.
    fn serve(&mut self, step: &Step) -> Result<(), RingError> {
        match *step {
            Step::Take { max } => self.take(max.into())?,
            Step::PutBack { count } => drop(self.device.put_back(count.into())),
            Step::Complete { count } => self.complete(count.into()),
            Step::Finish => {
                self.complete(usize::MAX / 2);
                self.device.queue.publish();
                self.device.queue.needs_notification();
            }
            Step::WantsSignal => {
                self.device.queue.publish();
                self.device.queue.needs_notification();
            }
            Step::ArmKick => self.device.queue.enable_notification(),
            Step::DisarmKick => self.device.queue.disable_notification(),
            Step::HasGrown => drop(self.device.queue.has_grown()),
            Step::Restart { position } => {
                self.device.put_back(usize::MAX / 2);
                self.device.queue.publish();
                let mut setup = self.driver.setup();
                // At a wrong position, old descriptors count as new ones.
                self.canaries.off |= position.is_some();
                setup.next_available = position.unwrap_or(self.device.queue.next_available());
                if let Ok(queue) = Queue::new(&setup, &self.guest.memory) {
                    self.device = Device::new(queue, self.guest, self.access);
                } else {
                    assert!(position.is_some(), "a stopped ring starts where it was");
                }
            }
            _ => {}
        }
        Ok(())
    }

    fn add(&mut self, places: &[(Place, bool)], indirect: bool, table: u8) {
        let buffers: Vec<Buffer> = places
            .iter()
            .take(12)
            .map(|(place, wrong)| place.buffer((self.access == Access::Write) != *wrong))
            .collect();
        for buffer in buffers.iter().filter(|buffer| buffer.writable) {
            self.canaries.allow(buffer.address, buffer.len.into());
        }
        self.is_adding = true;
        if indirect && !buffers.is_empty() {
            self.driver.add_indirect(&buffers, TABLES + u64::from(table % 48) * 16);
        } else {
            self.driver.add(&buffers);
        }
    }

    /// A raw descriptor of the ring's format. Its AVAIL and USED bits are arbitrary.
    fn descriptor(&mut self, place: Place, flags: u16, next: u16) -> [u64; 2] {
        self.allow(place, flags);
        let (address, len) = (place.address(), place.len());
        if self.options.packed {
            [address, PackedDescriptor { address, len, id: next, flags }.tail()]
        } else {
            Descriptor { address, len, flags, next }.to_words()
        }
    }

    fn allow(&mut self, place: Place, flags: u16) {
        let (address, len) = (place.address(), u64::from(place.len()));
        if flags & DESC_F_INDIRECT != 0 {
            // If a table is read from elsewhere, its descriptors are unknown.
            let end = address.saturating_add(len);
            self.canaries.off |=
                address < TABLES || end > TABLES + TABLES_LEN || !address.is_multiple_of(16);
        }
        if flags & DESC_F_WRITE != 0 {
            self.canaries.allow(address, len);
        }
    }

    fn write_words(&self, at: u64, words: [u64; 2]) {
        self.guest.memory.write(at, words.map(u64::to_le_bytes).as_flattened()).unwrap();
    }

    /// Writes two bytes anywhere in the ring.
    fn poke(&mut self, at: u16, value: u16) {
        let at = u64::from(at) % (Driver::bytes(&self.options) - 1);
        self.canaries.off |= at < u64::from(self.options.size) * 16;
        self.guest.memory.write(RING + at, &value.to_le_bytes()).unwrap();
    }

    fn take(&mut self, max: usize) -> Result<(), RingError> {
        let before = if self.device.held() == 0 { 0 } else { self.device.chains.len() };
        self.device.take(max)?;
        for chain in &self.device.chains.all()[before..] {
            for slice in self.device.chains.buffers(chain) {
                let range = self.guest.range(slice);
                if self.access == Access::Write {
                    self.canaries.check_offered(&range);
                }
            }
        }
        Ok(())
    }

    fn complete(&mut self, count: usize) {
        let (guest, canaries) = (self.guest, &mut self.canaries);
        self.device.complete(count, |chains, chain| {
            for slice in chains.buffers(chain) {
                let range = guest.range(slice);
                canaries.off |=
                    range.start < DATA || (range.start < TABLES + TABLES_LEN && range.end > TABLES);
                assert_eq!(slice.write(0, &vec![WRITTEN; slice.len()]), slice.len());
            }
            chain.len
        });
    }
}
