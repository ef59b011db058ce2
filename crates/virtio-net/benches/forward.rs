//! A frame from one ring's buffer into another's, alone: nanoseconds a packet, one thread, all in cache.
//!
//!     cargo bench -p virtio-net
//!
//! What a turn of `reflect` does between look and signal: a burst is gathered, forwarded with one copy, shown to
//! the receiver and given back to the sender. The drivers' own work is not timed.

use std::sync::Arc;
use std::time::{Duration, Instant};

use criterion::{Criterion, Throughput};
use guest_memory::GuestMemory;
use guest_memory::memory::Mapping;
use virtio_net::features::{BASE, HEADER_LEN};
use virtio_net::{BURST_MAX, GuestRoom, Negotiated, ReceiveState, TransmitBurst};
use virtqueue::driver::{Buffer, Driver, RingOptions};
use virtqueue::{Chains, Queue};
use vm_memory::GuestAddress;

const SIZE: u16 = 256;
/// Bytes from one buffer to the next.
const BUFFER: u32 = 2048;
/// Where the buffers of the two rings begin, receiver first; the rings are where none of them is.
const BUFFERS: [u64; 2] = [0x10_0000, 0x20_0000];
const RINGS: [u64; 2] = [0x1000, 0x1_0000];

/// A receive ring and a transmit ring with their drivers.
struct Bench {
    memory: Arc<GuestMemory>,
    drivers: [Driver; 2],
    negotiated: Negotiated,
    /// Bytes of a frame.
    len: u32,
}

impl Bench {
    fn new(packed: bool, in_order: bool, len: u32) -> Self {
        let range = (GuestAddress(0), 0x40_0000);
        let map = Mapping::from_ranges(&[range]).expect("memory");
        let memory = Arc::new(GuestMemory::new(Arc::new(map)));
        let options = RingOptions { packed, in_order, ..RingOptions::of(SIZE) };
        let start = if packed { 0x8000 } else { 0 };
        let drivers = RINGS.map(|ring| Driver::new(&memory, ring, options, start));
        Self { memory, drivers, negotiated: Negotiated(BASE), len }
    }

    /// Fills both rings.
    fn fill(&mut self) {
        #[expect(clippy::cast_possible_truncation, reason = "12")]
        let lens = [BUFFER, HEADER_LEN as u32 + self.len];
        for (ring, driver) in self.drivers.iter_mut().enumerate() {
            while driver.used().is_some() {}
            for n in 0..u64::from(SIZE) {
                let address = BUFFERS[ring] + n * u64::from(BUFFER);
                let buffer = Buffer { address, len: lens[ring], writable: ring == 0 };
                driver.add(&[buffer]).expect("room in the ring");
            }
            driver.publish();
        }
    }

    /// The time that `packets` need, and more to fill the last ring.
    fn run(&mut self, packets: u64) -> Duration {
        let memory = Arc::clone(&self.memory);
        let new = |driver: &Driver| Queue::new(&driver.setup(), &memory).expect("a good ring");
        let [mut receive, mut transmit] = [new(&self.drivers[0]), new(&self.drivers[1])];
        let mut state = ReceiveState::default();
        let (mut done, mut spent) = (0, Duration::ZERO);
        while done < packets {
            self.fill();
            let start = Instant::now();
            while transmit.available_descriptors().expect("an honest guest") > 0 {
                receive.available_descriptors().expect("an honest guest");
                done += self.burst(&mut receive, &mut transmit, &mut state);
            }
            spent += start.elapsed();
        }
        #[expect(clippy::cast_precision_loss, reason = "a measurement")]
        spent.mul_f64(packets as f64 / done as f64)
    }

    /// One burst, as the worker does it. Returns its packets.
    #[inline]
    fn burst(&self, receive: &mut Queue, transmit: &mut Queue, state: &mut ReceiveState) -> u64 {
        let Self { memory, negotiated, .. } = self;
        let mut sent = Chains::new();
        let burst = TransmitBurst::gather(transmit, memory, *negotiated, &mut sent);
        let burst = burst.expect("an honest guest");
        let mut chains = Chains::new();
        let mut room = GuestRoom::open(receive, memory, &mut chains, state, *negotiated);
        let (taken, _) = room.forward(burst.frames());
        let received = room.close();
        receive.publish();
        burst.complete(transmit, taken, &mut Default::default());
        transmit.publish();
        std::hint::black_box((transmit.needs_notification(), receive.needs_notification()));
        assert!(taken > 0 && taken <= BURST_MAX);
        received.packets.into()
    }
}

fn main() {
    let mut criterion = Criterion::default()
        .warm_up_time(Duration::from_millis(100))
        .measurement_time(Duration::from_millis(500))
        .sample_size(20)
        .configure_from_args();
    let mut group = criterion.benchmark_group("forward");
    group.throughput(Throughput::Elements(1));
    for (packed, in_order) in [(false, false), (true, false), (false, true), (true, true)] {
        for len in [64, 1500] {
            let format = if packed { "packed" } else { "split" };
            let order = if in_order { "-inorder" } else { "" };
            group.bench_function(format!("{format}{order}/{len}B"), |bencher| {
                bencher.iter_custom(|packets| Bench::new(packed, in_order, len).run(packets));
            });
        }
    }
    group.finish();
    criterion.final_summary();
}
