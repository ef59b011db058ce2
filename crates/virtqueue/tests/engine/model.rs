//! Both formats against a model, two queues of chains: the driver gets back exactly what it offered, in
//! order, and whoever sleeps is told of what it sleeps for.

use std::collections::VecDeque;
use std::sync::Arc;

use crate::common::{DATA, Ring, Shape, buffer, gather, read, scatter, write};
use proptest::prelude::*;
use virtqueue::driver::{Buffer, Returned};
use virtqueue::{Access, Chains};

/// A step of one side.
#[derive(Clone, Debug)]
enum Step {
    /// The driver offers chains of buffers with these lengths.
    Offer { count: usize, is_indirect: bool, lens: Vec<u32> },
    /// The driver publishes what it offered, and kicks if the device wants it.
    Publish,
    /// The device takes up to `take` chains, uses them, puts the last `put_back` back, and completes the
    /// others; of their buffers it leaves the last `unused` bytes as they are.
    Serve { take: usize, put_back: usize, unused: u32 },
    /// The device publishes what it completed, and signals if the driver wants it.
    Return,
    /// The driver takes back up to `count` chains.
    Reap { count: usize },
    /// The device polls: it wants no kicks.
    Poll,
    /// The device goes to sleep, unless there is news.
    Sleep,
    /// The driver polls: it wants no signals.
    DriverPoll,
    /// The driver goes to sleep, unless there is news.
    DriverSleep,
    /// The device stops, and another one takes over.
    Restart,
}

fn step() -> impl Strategy<Value = Step> {
    let lens = prop::collection::vec(prop_oneof![4 => 1_u32..200, 1 => Just(0)], 1..=5);
    prop_oneof![
        6 => (prop_oneof![1_usize..6, Just(40)], any::<bool>(), lens)
            .prop_map(|(count, is_indirect, lens)| Step::Offer { count, is_indirect, lens }),
        5 => Just(Step::Publish),
        5 => (prop_oneof![0_usize..6, Just(1000)], prop_oneof![0_usize..3, Just(1000)], 0_u32..100)
            .prop_map(|(take, put_back, unused)| Step::Serve { take, put_back, unused }),
        5 => Just(Step::Return),
        4 => prop_oneof![1_usize..6, Just(1000)].prop_map(|count| Step::Reap { count }),
        1 => Just(Step::Poll),
        3 => Just(Step::Sleep),
        1 => Just(Step::DriverPoll),
        3 => Just(Step::DriverSleep),
        1 => Just(Step::Restart),
    ]
}

/// What a side last said of being told.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Wish {
    /// It is awake, and did not say.
    Unknown,
    /// It polls.
    Never,
    /// It sleeps until it is told of news.
    News,
}

/// A chain that the driver offered.
#[derive(Clone, Debug)]
struct Offered {
    id: u16,
    place: u64,
    len: u32,
}

struct Model {
    ring: Ring,
    access: Access,
    shape: Shape,
    /// Offered, not published; published, not completed; completed, not shown; shown, not reaped.
    offered: VecDeque<Offered>,
    published: VecDeque<Offered>,
    completed: VecDeque<Returned>,
    shown: VecDeque<Returned>,
    device: Wish,
    driver: Wish,
    /// Whether the device started and was not asked whether to signal yet.
    starts: bool,
    /// How many chains were offered: each has its own place among the last ones.
    count: u64,
}

/// More places than any ring here has chains, each for a table and a chain's buffers.
const PLACES: u64 = 512;
const PLACE_LEN: u64 = 0x800;

impl Model {
    fn new(shape: Shape, access: Access) -> Self {
        let ring = Ring::new(shape);
        Self {
            ring,
            access,
            shape,
            offered: VecDeque::new(),
            published: VecDeque::new(),
            completed: VecDeque::new(),
            shown: VecDeque::new(),
            device: Wish::Unknown,
            driver: Wish::Unknown,
            starts: true,
            count: 0,
        }
    }

    fn offer(&mut self, is_indirect: bool, lens: &[u32]) {
        let place = DATA + self.count % PLACES * PLACE_LEN;
        let len: u32 = lens.iter().sum();
        write(&self.ring.memory, place, &pattern(self.count, len));
        let mut at = place;
        let buffers: Vec<Buffer> = lens
            .iter()
            .map(|&len| {
                at += u64::from(len);
                buffer(self.access, at - u64::from(len), len)
            })
            .collect();
        let free = self.ring.driver.free();
        let id = match is_indirect {
            false => self.ring.driver.add(&buffers),
            true => self.ring.driver.add_indirect(&buffers, place + PLACE_LEN - 128),
        };
        let needs = if is_indirect { 1 } else { lens.len() };
        assert_eq!(id.is_some(), free >= needs);
        if let Some(id) = id {
            self.offered.push_back(Offered { id, place, len });
            self.count += 1;
        }
    }

    fn publish(&mut self) {
        let news = !self.offered.is_empty();
        self.published.append(&mut self.offered);
        self.ring.driver.publish();
        let kicked = self.ring.driver.needs_notification();
        match self.device {
            Wish::Never if self.can_say_never() => assert!(!kicked, "a kick that nobody wants"),
            Wish::News if news => {
                assert!(kicked, "the device sleeps on");
                self.device = Wish::Unknown;
            }
            _ => {}
        }
    }

    /// With the event index, a split ring has no word for it.
    fn can_say_never(&self) -> bool {
        self.shape.options.packed || !self.shape.options.event_index
    }

    fn serve(&mut self, take: usize, put_back: usize, unused: u32) {
        let memory = Arc::clone(&self.ring.memory);
        let seen = self.ring.queue.available_descriptors().unwrap();
        assert_eq!(seen > 0, !self.published.is_empty());
        let mut chains = Chains::new();
        self.ring.queue.take(&memory, self.access, take, &mut chains).unwrap();
        assert_eq!(chains.len(), take.min(self.published.len()));
        for (n, offered) in (0..chains.len()).zip(&self.published) {
            let chain = chains.all()[n];
            assert_eq!((chain.id, chain.len, chain.fault), (offered.id, offered.len, None));
            let buffers = chains.buffers(&chain);
            assert_eq!(gather(buffers), read(&memory, offered.place, offered.len as usize));
            if self.access == Access::Write {
                let len = offered.len.saturating_sub(unused);
                scatter(buffers, &pattern(offered.place / PLACE_LEN + 5, len));
                chains.set_written(n, len);
            }
        }
        let done = chains.len().saturating_sub(put_back);
        self.ring.queue.put_back(chains.truncate(done));
        match self.access {
            Access::Read => self.ring.queue.complete_read(chains.all()),
            Access::Write | Access::ReadThenWrite => self.ring.queue.complete_written(chains.all()),
        };
        for (chain, offered) in chains.all().iter().zip(self.published.drain(..done)) {
            let len = if self.access == Access::Write { chain.len } else { 0 };
            assert_eq!(
                read(&memory, offered.place, len as usize),
                if len > 0 { pattern(offered.place / PLACE_LEN + 5, len) } else { Vec::new() }
            );
            self.completed.push_back(Returned { id: offered.id, len });
        }
        self.device = if self.device == Wish::News { Wish::Unknown } else { self.device };
    }

    fn give_back(&mut self) {
        let news = !self.completed.is_empty();
        self.shown.append(&mut self.completed);
        self.ring.queue.publish();
        let signalled = self.ring.queue.needs_notification();
        match self.driver {
            Wish::Never if self.can_say_never() => assert!(!signalled, "a signal nobody wants"),
            // The first answer after a start is yes if the driver did not say never.
            Wish::News if news || self.starts => {
                assert!(signalled, "the driver sleeps on");
                self.driver = Wish::Unknown;
            }
            _ => {}
        }
        self.starts = false;
    }

    fn reap(&mut self, count: usize) {
        for _ in 0..count {
            if self.shown.is_empty() && self.shape.options.packed && self.completed.len() > 1 {
                // Full cache lines may show before the rest is published; never the last chain.
                let early = self.ring.driver.has_used().then(|| self.completed.pop_front());
                self.shown.extend(early.flatten());
            }
            assert_eq!(self.ring.driver.has_used(), !self.shown.is_empty());
            let used = self.ring.driver.used();
            assert_eq!(used, self.shown.pop_front());
            if used.is_none() {
                break;
            }
            self.driver = if self.driver == Wish::News { Wish::Unknown } else { self.driver };
        }
    }

    fn run(&mut self, step: &Step) {
        match *step {
            Step::Offer { count, is_indirect, ref lens } => {
                (0..count).for_each(|_| self.offer(is_indirect, lens));
            }
            Step::Publish => self.publish(),
            Step::Serve { take, put_back, unused } => self.serve(take, put_back, unused),
            Step::Return => self.give_back(),
            Step::Reap { count } => self.reap(count),
            Step::Poll => {
                self.ring.queue.disable_notification();
                self.device = Wish::Never;
            }
            Step::Sleep => {
                self.ring.queue.enable_notification();
                self.device = if self.ring.queue.has_grown() { Wish::Unknown } else { Wish::News };
            }
            Step::DriverPoll => {
                self.ring.driver.disable_notification();
                self.driver = Wish::Never;
            }
            Step::DriverSleep => {
                self.ring.driver.enable_notification();
                self.driver = if self.ring.driver.has_used() { Wish::Unknown } else { Wish::News };
            }
            Step::Restart => {
                self.give_back();
                self.ring.restart();
                self.starts = true;
                // The new one sets its wish itself.
                self.ring.queue.disable_notification();
                self.device = Wish::Never;
            }
        }
    }

    /// All that is under way comes back, and then nothing is missing.
    fn finish(&mut self) {
        self.publish();
        while !self.published.is_empty() {
            self.serve(1000, 0, 0);
        }
        self.give_back();
        self.reap(usize::MAX);
        assert_eq!(self.ring.driver.free(), usize::from(self.shape.options.size));
        assert_eq!(self.ring.queue.next_available(), self.ring.driver.position());
        assert!(!self.ring.queue.has_grown());
    }
}

/// Bytes that say where they belong.
fn pattern(seed: u64, len: u32) -> Vec<u8> {
    (0..u64::from(len)).map(|at| (seed * 31 + at * 7) as u8).collect()
}

fn shape() -> impl Strategy<Value = Shape> {
    let split = (
        prop_oneof![Just(1_u16), Just(2), Just(8), Just(64), Just(256)],
        any::<u16>(),
        any::<bool>(),
    )
        .prop_map(|(size, start, near)| {
            Shape::split(size).starting_at(if near { 65_500 + start % 36 } else { start })
        });
    let packed = (
        prop_oneof![
            Just(1_u16),
            Just(2),
            Just(3),
            Just(7),
            Just(8),
            Just(33),
            Just(100),
            Just(257)
        ],
        any::<u16>(),
    )
        .prop_map(|(size, start)| Shape::packed(size).starting_at((start % size) | start & 0x8000));
    (prop_oneof![split, packed], any::<bool>(), any::<bool>()).prop_map(
        |(mut shape, in_order, event_index)| {
            (shape.options.in_order, shape.options.event_index) = (in_order, event_index);
            shape
        },
    )
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 1000, ..ProptestConfig::default() })]

    #[test]
    fn a_ring_does_what_two_queues_do(
        shape in shape(),
        writes: bool,
        steps in prop::collection::vec(step(), 1..150),
    ) {
        let access = if writes { Access::Write } else { Access::Read };
        let mut model = Model::new(shape, access);
        steps.iter().for_each(|step| model.run(step));
        model.finish();
    }
}
