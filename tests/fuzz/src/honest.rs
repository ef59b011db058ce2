//! Target `oracle`: a driver that keeps to the specification, compared with a model and a second implementation.
//!
//! The model is a queue of chains with their contents. The second implementation, for split rings, is the
//! `virtio-queue` crate, which pops the same chains from the same ring.

use std::collections::VecDeque;
use std::ops::Range;

use arbitrary::Arbitrary;
use virtio_queue::{Queue as OtherQueue, QueueT};
use virtqueue::driver::{Buffer, Driver, RingOptions};
use virtqueue::{Access, Chain, Chains, Queue};
use vm_memory::Address as _;

use crate::burst::Device;
use crate::memory::{Guest, HONEST_SEAM, RING};

/// Addresses of chains, each at most [`CHAIN_LEN_MAX`] long. They are used in turn, and as many chains as a ring holds
/// fit beside each other.
const CHAINS: Range<u64> = 0x3000..2 * HONEST_SEAM;
const CHAIN_LEN_MAX: u64 = 0xc00;
const BUFFERS_MAX: usize = 10;
const BUFFER_LEN_MAX: u16 = 280;
/// Space before a chain's buffers for its indirect table, if it has one.
const TABLE_LEN: u64 = 16 * BUFFERS_MAX as u64;
const STEPS_MAX: usize = 128;

/// The story of one ring.
#[derive(Arbitrary, Debug)]
pub struct Story {
    packed: bool,
    size: u8,
    in_order: bool,
    event_index: bool,
    device_writes: bool,
    position: u16,
    start: u16,
    steps: Vec<Step>,
}

/// What one side does next.
#[derive(Arbitrary, Debug)]
enum Step {
    Add {
        lens: Vec<u16>,
        indirect: bool,
    },
    /// The driver publishes the added chains, and kicks if the device wants that.
    Publish {
        kick: bool,
    },
    /// The driver takes up to `max` used chains, and disables signals if asked to.
    Used {
        max: u8,
        disarm: bool,
    },
    /// The driver goes to sleep, unless a chain came back.
    DriverSleep,
    /// The device takes up to `max` chains, puts some back and completes some.
    Take {
        max: u8,
    },
    PutBack {
        count: u8,
    },
    Complete {
        count: u8,
        written: u16,
    },
    /// The device publishes the completed chains, and signals if the driver wants that.
    Tell {
        signal: bool,
    },
    /// The device goes to sleep, unless more chains are available than it saw.
    DeviceSleep,
    /// The ring is stopped, and started again where it was.
    Restart,
}

/// A chain on its way through the ring.
#[derive(Debug)]
struct Sent {
    id: u16,
    buffers: Vec<Buffer>,
    /// The first byte of its contents. Each further byte is one more.
    first: u8,
    /// Number of bytes that the device says it wrote.
    written: u32,
}

/// Plays `story`.
pub fn play(story: &Story) {
    let mut ring = Ring::new(story);
    for step in story.steps.iter().take(STEPS_MAX) {
        ring.play(step);
    }
    ring.finish();
}

struct Ring {
    guest: &'static Guest,
    driver: Driver,
    device: Device,
    other: Option<OtherQueue>,
    next_chain: u64,
    count: u8,
    /// Added, but not yet published.
    added: VecDeque<Sent>,
    /// Available to the device, in this order.
    published: VecDeque<Sent>,
    /// Held by the device.
    taken: VecDeque<Sent>,
    /// Completed by the device, but not yet published.
    completed: VecDeque<Sent>,
    /// Used chains that the driver may take, in this order.
    shown: VecDeque<Sent>,
    /// Published since the device was last kicked or found awake.
    unkicked: bool,
    device_sleeps: bool,
    untold: bool,
    driver_sleeps: bool,
}

impl Ring {
    fn new(story: &Story) -> Self {
        let &Story { packed, in_order, event_index, device_writes, .. } = story;
        let guest = Guest::honest();
        let size = if packed { u16::from(story.size % 67) + 1 } else { 1 << (story.size % 7) };
        let options = RingOptions { size, packed, in_order, event_index, indirect: true };
        let slot = (story.position & 0x7fff) % size;
        let position = if packed { slot | story.position & 0x8000 } else { story.position };
        let driver = Driver::new(&guest.memory, RING, options, position);
        let queue = Queue::new(&driver.setup(), &guest.memory).unwrap();
        let access = if device_writes { Access::Write } else { Access::Read };
        let other = (!packed).then(|| other_queue(&driver));
        // Some chains begin just before the seam.
        let near_seam = HONEST_SEAM - u64::from(story.start) % CHAIN_LEN_MAX;
        Self {
            guest,
            driver,
            device: Device::new(queue, guest, access),
            other,
            next_chain: if story.start & 1 == 1 { near_seam } else { CHAINS.start },
            count: 0,
            added: VecDeque::new(),
            published: VecDeque::new(),
            taken: VecDeque::new(),
            completed: VecDeque::new(),
            shown: VecDeque::new(),
            unkicked: false,
            device_sleeps: false,
            untold: false,
            driver_sleeps: false,
        }
    }

    fn play(&mut self, step: &Step) {
        match *step {
            Step::Add { ref lens, indirect } => self.add(lens, indirect),
            Step::Publish { kick } => self.publish(kick),
            Step::Used { max, disarm } => {
                self.driver_sleeps = false;
                if disarm {
                    self.driver.disable_notification();
                }
                (0..max).for_each(|_| self.used());
            }
            Step::DriverSleep => {
                self.driver.enable_notification();
                self.driver_sleeps = !self.driver.has_used();
                self.see_early();
                assert_eq!(self.driver_sleeps, self.shown.is_empty(), "what came back is not seen");
                // Whether asleep or not, the driver knows of all chains used until now.
                self.untold = false;
            }
            Step::Take { max } => self.take(max.into()),
            Step::PutBack { count } => self.put_back(count.into()),
            Step::Complete { count, written } => self.complete(count.into(), written),
            Step::Tell { signal } => self.tell(signal),
            Step::DeviceSleep => {
                self.device.queue.enable_notification();
                self.device_sleeps = !self.device.queue.has_grown();
                self.unkicked = false;
            }
            Step::Restart => {
                self.put_back(usize::MAX / 2);
                self.tell(true);
                let mut setup = self.driver.setup();
                setup.next_available = self.device.queue.next_available();
                let queue = Queue::new(&setup, &self.guest.memory).unwrap();
                self.device = Device::new(queue, self.guest, self.device.access);
                (self.device_sleeps, self.unkicked) = (false, false);
                self.device.queue.disable_notification();
                assert!(self.device.queue.needs_notification() || !self.driver_sleeps);
            }
        }
    }

    fn add(&mut self, lens: &[u16], indirect: bool) {
        let lens = &lens[..lens.len().min(BUFFERS_MAX)];
        if lens.is_empty() {
            return;
        }
        if self.next_chain + CHAIN_LEN_MAX > CHAINS.end {
            self.next_chain = CHAINS.start;
        }
        let table = self.next_chain.next_multiple_of(16);
        let mut address = table + TABLE_LEN;
        // A table must lie within one region.
        let indirect = indirect && !(table..address).contains(&HONEST_SEAM);
        let writable = self.device.access == Access::Write;
        let mut buffers = Vec::new();
        for len in lens {
            let len = u32::from(len % BUFFER_LEN_MAX);
            buffers.push(Buffer { address, len, writable });
            address += u64::from(len);
        }
        let id = if indirect {
            self.driver.add_indirect(&buffers, table)
        } else {
            self.driver.add(&buffers)
        };
        let Some(id) = id else { return };
        self.count = self.count.wrapping_add(1);
        let sent = Sent { id, buffers, first: self.count.wrapping_mul(37), written: 0 };
        if !writable {
            self.guest.memory.write(table + TABLE_LEN, &sent.contents(sent.len())).unwrap();
        }
        self.next_chain = address;
        self.added.push_back(sent);
    }

    fn publish(&mut self, kick: bool) {
        self.driver.publish();
        self.unkicked |= !self.added.is_empty();
        self.published.append(&mut self.added);
        if kick {
            let kicks = self.driver.needs_notification();
            assert!(kicks || !(self.device_sleeps && self.unkicked), "a kick is lost");
            self.device_sleeps &= !kicks;
            self.unkicked = false;
        }
    }

    /// On a packed ring, full cache lines may become visible before the rest is published, but never the last chain.
    fn see_early(&mut self) {
        if self.shown.is_empty() && self.completed.len() > 1 && self.driver.has_used() {
            assert!(matches!(self.driver, Driver::Packed(_)), "seen before it is published");
            self.shown.extend(self.completed.pop_front());
        }
    }

    fn used(&mut self) {
        self.see_early();
        let Some(returned) = self.driver.used() else {
            assert!(self.shown.is_empty(), "chains do not come back");
            return;
        };
        let sent = self.shown.pop_front().expect("a chain that was not given back");
        assert_eq!((returned.id, returned.len), (sent.id, sent.written), "not what was given back");
        let mut bytes = vec![0; sent.written as usize];
        self.guest.memory.read(sent.buffers[0].address, &mut bytes).unwrap();
        assert_eq!(bytes, sent.contents(bytes.len()), "not what the device wrote");
    }

    fn take(&mut self, max: usize) {
        if self.device.held() == 0 {
            self.device.queue.disable_notification();
        }
        self.device_sleeps = false;
        let before = if self.device.held() == 0 { 0 } else { self.device.chains.len() };
        let count = self.device.take(max).expect("an honest driver").len();
        let expected = self.published.len().min(max);
        assert_eq!(count, expected, "chains are not seen, or seen too early");
        for n in before..before + count {
            let chain = self.device.chains.all()[n];
            let sent = self.published.pop_front().unwrap();
            self.check(&chain, &sent);
            self.taken.push_back(sent);
        }
    }

    /// Checks that the chain taken is the one sent, also by the other crate.
    fn check(&mut self, chain: &Chain, sent: &Sent) {
        assert_eq!((chain.id, chain.fault), (sent.id, None));
        let buffers = self.device.chains.buffers(chain);
        let ours = joined(buffers.iter().map(|slice| self.guest.range(slice)));
        let theirs = sent.buffers.iter().map(|it| it.address..it.address + u64::from(it.len));
        assert_eq!(ours, joined(theirs));
        if self.device.access == Access::Read {
            let mut bytes = vec![0; sent.len()];
            let mut at = 0;
            for slice in buffers {
                at += slice.read(0, &mut bytes[at..]);
            }
            assert_eq!(bytes, sent.contents(sent.len()), "not what the driver wrote");
        }
        let Some(other) = &mut self.other else { return };
        let popped = other.pop_descriptor_chain(&*self.guest.mapping).expect("a chain there, too");
        assert_eq!(popped.head_index(), chain.id);
        let writable = self.device.access == Access::Write;
        let theirs = popped.map(|descriptor| {
            assert_eq!(descriptor.is_write_only(), writable);
            let start = descriptor.addr().raw_value();
            start..start + u64::from(descriptor.len())
        });
        assert_eq!(ours, joined(theirs));
    }

    fn put_back(&mut self, count: usize) {
        let count = self.device.put_back(count);
        for _ in 0..count {
            self.published.push_front(self.taken.pop_back().unwrap());
        }
        if let Some(other) = &mut self.other {
            other.set_next_avail(self.device.queue.next_available());
        }
    }

    fn complete(&mut self, count: usize, written: u16) {
        let mut firsts = self.taken.iter().map(|sent| sent.first);
        let mut lens = Vec::new();
        let count = self.device.complete(count, |chains, chain| {
            let len = chain.len.min(written.into());
            lens.push(len);
            write(chains, chain, &contents(firsts.next().unwrap(), len as usize));
            len
        });
        for n in 0..count {
            let mut sent = self.taken.pop_front().unwrap();
            sent.written = lens.get(n).copied().unwrap_or(0);
            self.completed.push_back(sent);
        }
    }

    fn tell(&mut self, signal: bool) {
        self.device.queue.publish();
        self.untold |= !self.completed.is_empty();
        self.shown.append(&mut self.completed);
        if signal {
            let signals = self.device.queue.needs_notification();
            assert!(signals || !(self.driver_sleeps && self.untold), "a signal is lost");
            self.driver_sleeps &= !signals;
            self.untold = false;
        }
    }

    /// All chains added must come back.
    fn finish(&mut self) {
        self.publish(true);
        while !self.published.is_empty() || !self.taken.is_empty() || !self.completed.is_empty() {
            self.take(usize::MAX);
            self.complete(usize::MAX / 2, u16::MAX);
            self.tell(true);
        }
        while !self.shown.is_empty() {
            self.used();
        }
        assert!(!self.driver.has_used());
        assert_eq!(self.driver.free(), usize::from(self.driver.setup().size));
    }
}

impl Sent {
    fn len(&self) -> usize {
        self.buffers.iter().map(|buffer| buffer.len as usize).sum()
    }

    fn contents(&self, len: usize) -> Vec<u8> {
        contents(self.first, len)
    }
}

fn contents(first: u8, len: usize) -> Vec<u8> {
    (0..len).map(|n| first.wrapping_add(n as u8)).collect()
}

fn write(chains: &Chains<'_>, chain: &Chain, bytes: &[u8]) {
    let mut at = 0;
    for slice in chains.buffers(chain) {
        at += slice.write(0, &bytes[at..]);
    }
    assert_eq!(at, bytes.len());
}

/// Joins adjacent ranges and removes empty ones: how a chain is cut into pieces does not matter.
fn joined(ranges: impl Iterator<Item = Range<u64>>) -> Vec<Range<u64>> {
    let mut all: Vec<Range<u64>> = Vec::new();
    for range in ranges.filter(|range| !range.is_empty()) {
        match all.last_mut() {
            Some(last) if last.end == range.start => last.end = range.end,
            _ => all.push(range),
        }
    }
    all
}

/// The same ring in the other crate, which only reads it.
fn other_queue(driver: &Driver) -> OtherQueue {
    let setup = driver.setup();
    let halves = |address: u64| (Some(address as u32), Some((address >> 32) as u32));
    let mut other = OtherQueue::new(setup.size).unwrap();
    other.set_size(setup.size);
    let (low, high) = halves(setup.descriptor_table);
    other.set_desc_table_address(low, high);
    let (low, high) = halves(setup.driver_area);
    other.set_avail_ring_address(low, high);
    let (low, high) = halves(setup.device_area);
    other.set_used_ring_address(low, high);
    other.set_next_avail(setup.next_available);
    other.set_next_used(setup.next_available);
    other.set_ready(true);
    other
}
