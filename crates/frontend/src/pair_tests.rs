//! A queue pair against the device side of the rings, honest and not.

use std::sync::Arc;
use std::time::{Duration, Instant};

use guest_memory::{GuestMemory, GuestSlice};
use virtio_net::Negotiated;
use virtqueue::{Access, Chain, Chains, Queue};

use crate::memory::SharedMemory;
use crate::{Error, Frame, GuestOptions, Pair, RegionOptions, Ring};

/// A pair, and a device for each of its rings.
struct Bench {
    memory: Arc<GuestMemory>,
    pair: Pair,
    receive: Queue,
    transmit: Queue,
}

impl Bench {
    fn new(options: &GuestOptions) -> Self {
        let region = RegionOptions { address: 0, len: 4 << 20 };
        let mut memory = SharedMemory::new(&[region]).unwrap();
        let features = Negotiated(options.features);
        let mut ring = |index| Ring::new(index, &mut memory, options, features).unwrap();
        let (mut receive, mut transmit) = (ring(0), ring(1));
        let device = |ring: &mut Ring| {
            let mut device = Queue::new(&ring.driver().setup(), memory.guest()).unwrap();
            device.enable_notification();
            let _ = device.needs_notification();
            device
        };
        let devices = (device(&mut receive), device(&mut transmit));
        let pieces = options.receive_pieces;
        let mut pair = Pair::new(memory.guest(), features, receive, transmit, pieces);
        pair.refill().unwrap();
        let memory = Arc::clone(memory.guest());
        Self { memory, pair, receive: devices.0, transmit: devices.1 }
    }

    /// The device takes the next receive chain, writes `bytes` into it and says that it wrote `len`.
    fn place(&mut self, bytes: &[u8], len: usize) {
        let (chain, written) = take(&mut self.receive, &self.memory, Access::Write, |slices| {
            slices.iter().fold(0, |at, slice| at + slice.write(0, &bytes[at..]))
        });
        assert_eq!(written, bytes.len());
        complete(&mut self.receive, chain, len as u32);
    }

    /// A header of 12 bytes that says so many buffers, and a frame.
    fn place_frame(&mut self, num_buffers: u16, frame: &[u8]) {
        let mut bytes = vec![0; 10];
        bytes.extend(num_buffers.to_le_bytes());
        bytes.extend(frame);
        self.place(&bytes, bytes.len());
    }
}

fn take<T>(
    queue: &mut Queue,
    memory: &GuestMemory,
    access: Access,
    look: impl FnOnce(&[GuestSlice<'_>]) -> T,
) -> (Chain, T) {
    queue.available_descriptors().unwrap();
    let mut chains = Chains::new();
    queue.take(memory, access, 1, &mut chains).unwrap();
    let chain = chains.all().first().expect("a chain");
    (*chain, look(chains.buffers(chain)))
}

/// The device gives a chain back and says that it wrote `len` bytes.
fn complete(queue: &mut Queue, mut chain: Chain, len: u32) {
    chain.len = len;
    queue.complete_written(&[chain]);
    queue.publish();
}

/// Guests of both formats.
fn formats() -> [GuestOptions; 2] {
    [small(), small().packed(true)]
}

fn small() -> GuestOptions {
    GuestOptions::default().queue_size(16)
}

#[test]
fn chains_have_the_shape_that_was_asked_for() {
    for options in formats() {
        for indirect in [false, true] {
            let mut bench = Bench::new(&options.clone().indirect(indirect));
            let pieces: [&[u8]; 3] = [b"ab", b"", b"cde"];
            assert!(bench.pair.send_chain(&[0; 12], &pieces).unwrap());
            let free = bench.pair.transmit_ring().driver().free();
            assert_eq!(free, if indirect { 15 } else { 12 });
            let (chain, lens) = take(&mut bench.transmit, &bench.memory, Access::Read, |slices| {
                slices.iter().map(GuestSlice::len).collect::<Vec<_>>()
            });
            assert_eq!(lens, [12, 2, 3]);
            complete(&mut bench.transmit, chain, 0);
            assert_eq!(bench.pair.reap().unwrap(), 1);
            // A frame longer than a buffer takes several, and one longer than the ring none.
            assert!(bench.pair.send(&[1; 5000]).unwrap());
            let (_, lens) = take(&mut bench.transmit, &bench.memory, Access::Read, |slices| {
                slices.iter().map(GuestSlice::len).collect::<Vec<_>>()
            });
            assert_eq!(lens, [2048, 2048, 916]);
            assert!(matches!(bench.pair.send(&[1; 40_000]), Err(Error::ChainTooLong { .. })));
        }
    }
}

#[test]
fn a_full_ring_says_so_and_goes_on_when_buffers_come_back() {
    for options in formats() {
        let mut bench = Bench::new(&options);
        let sent = (0..100).take_while(|_| bench.pair.send(&[0; 60]).unwrap()).count();
        assert_eq!(sent, 16);
        let (chain, ()) = take(&mut bench.transmit, &bench.memory, Access::Read, |_| ());
        complete(&mut bench.transmit, chain, 0);
        assert!(bench.pair.send(&[0; 60]).unwrap());
        assert!(!bench.pair.send(&[0; 60]).unwrap());
    }
}

#[test]
fn kicks_are_sent_when_they_are_wanted_and_counted() {
    for options in formats() {
        for events in [false, true] {
            let mut bench = Bench::new(&options.clone().event_index(events));
            bench.pair.send(&[0; 60]).unwrap();
            let counters = bench.pair.transmit_ring().counters();
            assert_eq!((counters.kicks, counters.kicks_saved), (1, 0));
            bench.transmit.disable_notification();
            for _ in 0..3 {
                bench.pair.send(&[0; 60]).unwrap();
            }
            // Nothing new: nothing to tell.
            bench.pair.transmit_ring().kick().unwrap();
            let counters = bench.pair.transmit_ring().counters();
            assert_eq!((counters.kicks, counters.kicks_saved), (1, 3));
            assert_eq!(bench.pair.transmit_ring().kick.read().unwrap(), 1);
        }
    }
}

#[test]
fn frames_come_in_as_many_buffers_as_their_header_says() {
    for options in formats() {
        let mut bench = Bench::new(&options);
        for n in 0..100_u8 {
            bench.place_frame(1, &[n; 60]);
            bench.place_frame(3, &[n; 2036]);
            bench.place(&[n; 2048], 2048);
            bench.place(&[n; 7], 7);
            let frame = bench.pair.receive().unwrap().unwrap();
            assert_eq!((frame.bytes, frame.buffers), (vec![n; 60], 1));
            let frame = bench.pair.receive().unwrap().unwrap();
            assert_eq!((frame.bytes, frame.buffers), (vec![n; 2036 + 2048 + 7], 3));
            assert_eq!(frame.header[..10], [0; 10]);
            assert_eq!(bench.pair.receive().unwrap(), None);
        }
        bench.pair.check_canaries().unwrap();
    }
}

#[test]
fn a_legacy_header_is_ten_bytes_and_a_chain_may_have_several_buffers() {
    let options = GuestOptions { receive_pieces: 3, buffer_len: 100, ..small() };
    let mut bench = Bench::new(&options.version_1(false).mergeable(false));
    let bytes: Vec<u8> = (0..250).collect();
    bench.place(&bytes, 250);
    let expected = Frame { header: bytes[..10].into(), bytes: bytes[10..].into(), buffers: 1 };
    assert_eq!(expected.num_buffers(), None);
    assert_eq!(bench.pair.receive().unwrap(), Some(expected));
}

#[test]
fn what_comes_back_unwritten_is_counted_and_offered_again() {
    for options in formats() {
        let mut bench = Bench::new(&options);
        for _ in 0..40 {
            bench.place(&[], 0);
            bench.place_frame(1, &[5; 60]);
            assert_eq!(bench.pair.receive().unwrap().unwrap().bytes, [5; 60]);
        }
        assert_eq!(bench.pair.receive_ring().counters().unwritten, 40);
    }
}

#[test]
fn a_back_end_that_lies_is_found_out() {
    for options in formats() {
        let mut bench = Bench::new(&options);
        bench.place_frame(2, &[0; 60]);
        assert!(matches!(bench.pair.receive(), Err(Error::NumBuffers { said: 2, found: 1 })));
        bench.place_frame(0, &[0; 60]);
        assert!(matches!(bench.pair.receive(), Err(Error::NumBuffers { said: 0, found: 1 })));
        bench.place(&[0; 11], 11);
        assert!(matches!(bench.pair.receive(), Err(Error::NoHeader { len: 11, header: 12 })));
        bench.place(&[0; 60], 2049);
        let found = bench.pair.receive();
        assert!(matches!(found, Err(Error::UsedTooLong { ring: 0, len: 2049, room: 2048 })));
        for head in [3, 16, 0xffff] {
            let mut bench = Bench::new(&options);
            assert!(bench.pair.send(&[0; 60]).unwrap());
            let Bench { transmit, memory, .. } = &mut bench;
            let (mut chain, ()) = take(transmit, memory, Access::Read, |_| ());
            chain.id = head;
            complete(transmit, chain, 0);
            let found = bench.pair.reap().unwrap_err();
            assert_eq!(
                found.to_string(),
                format!("ring 1: the back end returned descriptor {head}, which it does not have")
            );
        }
        let end = bench.pair.receive_ring().buffers().len();
        bench.pair.check_canaries().unwrap();
        let after = first_canary(&mut bench, end);
        bench.memory.write(after, &[0]).unwrap();
        let found = bench.pair.check_canaries().unwrap_err();
        assert!(matches!(found, Error::Canary { address } if address == after));
    }
}

/// The first byte behind a receive buffer.
fn first_canary(bench: &mut Bench, len: u32) -> u64 {
    let table = bench.pair.receive_ring().driver().setup().descriptor_table;
    let mut address = [0; 8];
    bench.memory.read(table, &mut address).unwrap();
    u64::from_le_bytes(address) + u64::from(len)
}

#[test]
fn a_wait_ends_with_the_signal_and_a_missing_one_is_counted() {
    for options in formats() {
        for events in [false, true] {
            let mut bench = Bench::new(&options.clone().event_index(events));
            let nothing = bench.pair.receive_within(Duration::from_millis(5)).unwrap();
            assert_eq!(nothing, None);
            for signals in [true, false] {
                let Bench { memory, pair, receive, .. } = &mut bench;
                let call = pair.receive_ring().call.eventfd().try_clone().unwrap();
                let start = Instant::now();
                std::thread::scope(|scope| {
                    scope.spawn(|| {
                        std::thread::sleep(Duration::from_millis(30));
                        let (chain, _) = take(receive, memory, Access::Write, |slices| {
                            slices[0].write(0, &[0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 1, 0, 9])
                        });
                        complete(receive, chain, 13);
                        assert!(receive.needs_notification(), "the guest sleeps");
                        if signals {
                            call.write(1).unwrap();
                        }
                    });
                    let wait = Duration::from_millis(if signals { 10_000 } else { 100 });
                    let frame = pair.receive_within(wait).unwrap().unwrap();
                    assert_eq!(frame.bytes, [9]);
                });
                assert!(start.elapsed() < Duration::from_secs(5));
            }
            let counters = bench.pair.receive_ring().counters();
            assert_eq!((counters.calls, counters.calls_missed), (1, 1));
        }
    }
}
