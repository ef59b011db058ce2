//! What a guest leaves to the device, alone: nanoseconds a frame, one thread, all in cache.
//!
//!     cargo bench -p virtio-net --bench offload
//!
//! From one buffer with a net header into frames of 2048 bytes, as many as a frame of 64 KiB needs; the other way only the
//! look at a frame that came.

use std::hint::black_box;
use std::time::Duration;

use criterion::{Criterion, Throughput};
use guest_memory::{GuestSlice, Spare};
use virtio_net::features::HEADER_LEN;
use virtio_net::header::{GSO_TCPV4, NEEDS_CSUM};
use virtio_net::{NetHeader, SoftwareOffload, arrival};

/// Bytes of a chunk.
const CHUNK: usize = 2048;
/// Bytes of Ethernet, IPv4 and TCP headers, without options.
const HEADERS: usize = 54;
const CHECKSUM: NetHeader =
    NetHeader { flags: NEEDS_CSUM, csum_start: 34, csum_offset: 16, ..NetHeader::PLAIN };
const SEGMENTS: NetHeader = NetHeader { gso_type: GSO_TCPV4, gso_size: 1460, ..CHECKSUM };

/// A frame of the guest with its net header.
fn frame(header: NetHeader, len: usize) -> Spare {
    let spare = Spare::new(HEADER_LEN + len);
    spare.slice().write(0, &header.to_bytes());
    let mut front = [0; HEADERS];
    (front[12], front[14], front[23], front[46]) = (8, 0x45, 6, 0x50);
    let ip_len = u16::try_from(len - 14).unwrap_or(u16::MAX);
    front[16..18].copy_from_slice(&ip_len.to_be_bytes());
    spare.slice().write(HEADER_LEN, &front);
    spare
}

/// What a datapath does with a frame: look, plan, write. Returns the bytes for the wire.
#[inline(never)]
fn carry(
    offload: &mut SoftwareOffload,
    from: &[GuestSlice<'_>],
    len: usize,
    chunks: &[GuestSlice<'_>],
) -> usize {
    let header = NetHeader::read(from, HEADER_LEN);
    offload.replan(&header, from, HEADER_LEN, len).expect("an honest guest");
    let mut bytes = 0;
    for chunk in chunks {
        if offload.count() == 0 {
            break;
        }
        bytes += offload.write_next(from, std::slice::from_ref(chunk), 0);
    }
    bytes
}

fn main() {
    let mut criterion = Criterion::default()
        .warm_up_time(Duration::from_millis(100))
        .measurement_time(Duration::from_millis(500))
        .sample_size(20)
        .configure_from_args();
    let mut group = criterion.benchmark_group("offload");
    let mut offload = SoftwareOffload::default();
    let umem = Spare::new(64 * CHUNK);
    let chunks: Vec<_> = (0..64).map(|n| umem.slice().part(n * CHUNK, CHUNK)).collect();
    for (name, header, len) in [
        ("plain/64B", NetHeader::PLAIN, 64),
        ("plain/1500B", NetHeader::PLAIN, 1500),
        ("checksum/64B", CHECKSUM, 64),
        ("checksum/1500B", CHECKSUM, 1500),
        ("segments/1514B", SEGMENTS, 1514),
        ("segments/64KiB", SEGMENTS, 0xffff),
    ] {
        let sent = frame(header, len);
        let from = [sent.slice()];
        group.throughput(Throughput::Bytes(len as u64));
        group.bench_function(name, |bencher| {
            bencher.iter(|| carry(&mut offload, black_box(&from), len, black_box(&chunks)));
        });
    }
    for len in [64, 1500, 8000] {
        let came = frame(NetHeader::PLAIN, len);
        let from = [came.slice().part(HEADER_LEN, len)];
        group.throughput(Throughput::Bytes(len as u64));
        group.bench_function(format!("arrival/{len}B"), |bencher| {
            bencher.iter(|| arrival::header_of(black_box(&from), 0, len, 1500));
        });
    }
    group.finish();
    criterion.final_summary();
}
