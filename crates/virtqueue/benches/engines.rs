//! The ring engines alone: nanoseconds a packet, one thread, everything in cache.
//!
//!     cargo bench -p virtqueue                      all of it
//!     cargo bench -p virtqueue -- 'packed/.*/64'    what matches
//!
//! A packet is a chain of one buffer, or of several. `send`: the engine takes it, copies its bytes out, and gives it
//! back. `receive`: the engine takes it, copies bytes in, and gives it back. A burst begins with the number of available
//! descriptors; it ends with publishing, and with the question whether the driver needs a notification. Only the
//! engine's time counts, not that of the driver, which fills the ring.
//!
//! `N regions`: buffers lie in the regions of guest memory in turn. `last of N`: all lie in the last one, as those of
//! a guest with memory above 4 GiB do.
//!
//! `noted`: the engine notes each burst in a journal, as in a daemon with packed rings that outlive it.
//!
//! For comparison, `virtio-queue` stands for that crate's `Queue`, which does the same through its own interface.

use std::sync::Arc;
use std::time::{Duration, Instant};

use criterion::{Criterion, Throughput};
use guest_memory::memory::Mapping;
use guest_memory::{GuestMemory, GuestSlice};
use ring_journal::Journal;
use virtio_queue::{Queue as Oracle, QueueT as _};
use virtqueue::driver::{Buffer, Driver, RingOptions};
use virtqueue::{Access, Chains, Queue};
use vm_memory::{Bytes as _, GuestAddress};

const SIZE: u16 = 256;
/// Bytes from one region of guest memory to the next; one more region holds the ring.
const STRIDE: u64 = 1 << 24;
const REGION: u64 = 1 << 20;
/// Bytes from one buffer to the next.
const BUFFER: u64 = 2048;

/// What is measured.
#[derive(Clone, Copy)]
struct Case {
    options: RingOptions,
    access: Access,
    /// Bytes of a packet.
    len: u32,
    /// Buffers of a packet; the bytes are divided evenly.
    buffers: u32,
    regions: u64,
    /// Whether all buffers lie in the last region.
    is_last: bool,
    burst: usize,
    /// Whether each burst is noted in a journal.
    noted: bool,
}

impl Case {
    fn name(&self, engine: &str) -> String {
        let Self { options, access, len, buffers, regions, is_last, burst, noted } = self;
        let order = if options.in_order { "-inorder" } else { "" };
        let way = if *access == Access::Read { "send" } else { "receive" };
        let chain = if *buffers == 1 { String::new() } else { format!("chains of {buffers}/") };
        let place =
            if *is_last { format!("last of {regions}") } else { format!("{regions} regions") };
        let noted = if *noted { "/noted" } else { "" };
        format!("{engine}{order}/{way}/{len}B/{chain}{place}/bursts of {burst}{noted}")
    }

    /// Packets that fill the ring.
    fn packets(&self) -> u64 {
        u64::from(SIZE) / u64::from(self.buffers)
    }

    /// The buffers of packet number `n`.
    fn chain(&self, n: u64) -> Vec<Buffer> {
        let region = if self.is_last { self.regions - 1 } else { n % self.regions };
        let address = region * STRIDE + n / self.regions * BUFFER;
        let len = self.len / self.buffers;
        let writable = self.access == Access::Write;
        let buffer = |at: u32| Buffer { address: address + u64::from(at * len), len, writable };
        (0..self.buffers).map(buffer).collect()
    }
}

/// A ring, its driver, and guest memory.
struct Bench {
    map: Arc<Mapping>,
    memory: Arc<GuestMemory>,
    driver: Driver,
    case: Case,
    frame: Vec<u8>,
}

impl Bench {
    fn new(case: Case) -> Self {
        let ranges: Vec<_> = (0..=case.regions)
            .map(|n| (GuestAddress(n * STRIDE), usize::try_from(REGION).expect("64 bits")))
            .collect();
        let map = Arc::new(Mapping::from_ranges(&ranges).expect("memory"));
        let memory = Arc::new(GuestMemory::new(Arc::clone(&map)));
        let ring = case.regions * STRIDE;
        let start = if case.options.packed { 0x8000 } else { 0 };
        let driver = Driver::new(&memory, ring, case.options, start);
        Self { map, memory, driver, case, frame: vec![0; 2048] }
    }

    /// Fills the ring.
    fn fill(&mut self) {
        while self.driver.used().is_some() {}
        for n in 0..self.case.packets() {
            self.driver.add(&self.case.chain(n)).expect("room in the ring");
        }
        self.driver.publish();
    }

    /// The engine's time for `packets`: whole rings are measured, and the result is scaled.
    fn ours(&mut self, packets: u64) -> Duration {
        let memory = Arc::clone(&self.memory);
        let setup = self.driver.setup();
        let mut queue = Queue::new(&setup, &memory).expect("a good ring");
        let directory = tempfile::tempdir().expect("a directory");
        if self.case.noted {
            let path = directory.path().join("bench.rings");
            let (journal, _) = Journal::open(&path, 1).expect("a journal");
            let _ = queue.resume(&setup, journal.slot(0).expect("its first ring"));
        }
        let (mut done, mut spent) = (0, Duration::ZERO);
        while done < packets {
            self.fill();
            let start = Instant::now();
            while queue.available_descriptors().expect("an honest guest") > 0 {
                done += burst(&mut queue, &memory, &self.case, &mut self.frame);
            }
            spent += start.elapsed();
        }
        per(spent, packets, done)
    }

    fn theirs(&mut self, packets: u64) -> Duration {
        let setup = self.driver.setup();
        let mut queue = Oracle::new(SIZE).expect("a good size");
        queue.set_size(SIZE);
        queue.try_set_desc_table_address(GuestAddress(setup.descriptor_table)).expect("table");
        queue.try_set_avail_ring_address(GuestAddress(setup.driver_area)).expect("driver area");
        queue.try_set_used_ring_address(GuestAddress(setup.device_area)).expect("device area");
        queue.set_ready(true);
        let (mut done, mut spent) = (0, Duration::ZERO);
        let map = Arc::clone(&self.map);
        while done < packets {
            self.fill();
            let start = Instant::now();
            let mut left = self.case.packets();
            while left > 0 {
                for _ in 0..self.case.burst {
                    let Some(chain) = queue.pop_descriptor_chain(&*map) else { break };
                    let head = chain.head_index();
                    let mut written = 0;
                    for descriptor in chain {
                        let frame = &mut self.frame[..descriptor.len() as usize];
                        if descriptor.is_write_only() {
                            written += descriptor.len();
                            map.write_slice(frame, descriptor.addr()).expect("in memory");
                        } else {
                            map.read_slice(frame, descriptor.addr()).expect("in memory");
                        }
                    }
                    queue.add_used(&*map, head, written).expect("a used entry");
                    left -= 1;
                }
                queue.needs_notification(&*map).expect("the driver's wish");
            }
            spent += start.elapsed();
            done += self.case.packets();
        }
        per(spent, packets, done)
    }
}

/// The share of `packets` in the time of all `done` ones.
#[expect(clippy::cast_precision_loss, reason = "a measurement")]
fn per(spent: Duration, packets: u64, done: u64) -> Duration {
    spent.mul_f64(packets as f64 / done as f64)
}

/// One burst, as the worker does it. Returns the number of packets.
#[inline]
fn burst(queue: &mut Queue, memory: &GuestMemory, case: &Case, frame: &mut [u8]) -> u64 {
    let mut chains = Chains::new();
    queue.take(memory, case.access, case.burst, &mut chains).expect("an honest guest");
    if case.buffers == 1 {
        for n in 0..chains.len() {
            copy(case.access, &chains.only_buffer(n).expect("one buffer"), frame);
        }
    } else {
        let buffers = chains.all().iter().flat_map(|chain| chains.buffers(chain));
        buffers.for_each(|buffer| copy(case.access, buffer, frame));
    }
    match case.access {
        Access::Read => queue.complete_read(chains.all()),
        Access::Write | Access::ReadThenWrite => queue.complete_written(chains.all()),
    };
    queue.publish();
    std::hint::black_box(queue.needs_notification());
    chains.len() as u64
}

#[inline]
fn copy(access: Access, buffer: &GuestSlice<'_>, frame: &mut [u8]) {
    let len = buffer.len();
    match access {
        Access::Read => _ = buffer.read(0, &mut frame[..len]),
        Access::Write | Access::ReadThenWrite => _ = buffer.write(0, &frame[..len]),
    }
}

fn main() {
    let mut criterion = Criterion::default()
        .warm_up_time(Duration::from_millis(100))
        .measurement_time(Duration::from_millis(300))
        .sample_size(20)
        .configure_from_args();
    let mut group = criterion.benchmark_group("engines");
    group.throughput(Throughput::Elements(1));
    for (packed, in_order) in [(false, false), (true, false), (false, true), (true, true)] {
        for access in [Access::Read, Access::Write] {
            for (len, buffers, regions, is_last, burst) in [
                (64, 1, 1, false, 32),
                (64, 1, 1, false, 1),
                (64, 1, 4, false, 32),
                (1500, 1, 1, false, 32),
                (1500, 1, 4, false, 1),
                (64, 2, 1, false, 32),
                (64, 2, 4, true, 32),
                (64, 2, 4, false, 32),
                (64, 2, 4, true, 1),
            ] {
                let options = RingOptions { packed, in_order, ..RingOptions::of(SIZE) };
                let engine = if packed { "packed" } else { "split" };
                let case =
                    |noted| Case { options, access, len, buffers, regions, is_last, burst, noted };
                for case in [case(false), case(true)] {
                    group.bench_function(case.name(engine), |bencher| {
                        bencher.iter_custom(|packets| Bench::new(case).ours(packets));
                    });
                }
                let case = case(false);
                if !packed && !in_order {
                    group.bench_function(case.name("virtio-queue"), |bencher| {
                        bencher.iter_custom(|packets| Bench::new(case).theirs(packets));
                    });
                }
            }
        }
    }
    group.finish();
    criterion.final_summary();
}
