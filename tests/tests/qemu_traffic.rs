//! A Linux guest in QEMU on a tap: ping, UDP, and TCP of 1 GiB both ways, each byte compared.
//!
//! Not every combination has a guest, but every two values of different axes have one together:
//!
//! | guest | offloads | queue pairs | mergeable | polling | rings | other |
//! | --- | --- | --- | --- | --- | --- | --- |
//! | 1 | on | 1 | on | never | packed | |
//! | 2 | on | 2 | off | adaptive | packed | two workers |
//! | 3 | off | 2 | on | always | packed | rings of 1024 |
//! | 4 | off | 1 | off | adaptive | split | |
//! | 5 | on | 1 | off | always | split | no indirect descriptors |
//! | 6 | off | 2 | off | never | split | no EVENT_IDX, no indirect descriptors |
//!
//! (Mergeable and adaptive, or in split rings: the guests of the other stories.)
//!
//! Where software emulates the guest, 1 GiB without offloads takes a minute, which guests 3 and 6 do not
//! have: they move 256 MiB.

use std::time::Instant;

use lab::guest::GuestOptions;
use ringscope_tests::qemu::{Failure, Place};
use ringscope_tests::traffic::{self, Check, From};

const GIB: u64 = 1 << 30;
const MIB: u64 = 1 << 20;

/// One guest of the matrix.
struct Case {
    queue_pairs: u16,
    daemon: &'static [&'static str],
    guest: fn(&mut GuestOptions),
    bytes: u64,
}

fn carry(case: &Case) -> Result<(), Failure> {
    let mut place = Place::new(case.queue_pairs)?;
    place.spawn(case.daemon)?;
    let mut options = place.options()?;
    (case.guest)(&mut options);
    let packed = options.packed;
    place.attach(options)?;
    let begun = Instant::now();
    expect_format(&mut place, packed)?;
    traffic::ping(&mut place)?;
    traffic::udp(&mut place, From::Outside)?;
    traffic::udp(&mut place, From::Guest)?;
    eprintln!("ping and UDP: {:.1} s", begun.elapsed().as_secs_f64());
    for report in bulk(&place, case)? {
        let rate = report.bits_per_second / 1e9;
        eprintln!("{} of {} MiB: {rate:.2} Gbit/s", report.kind, case.bytes / MIB);
    }
    if case.queue_pairs > 1 {
        traffic::flows(&place, 4 * MIB)?;
    }
    expect_all_counted(&place)
}

/// The guest's driver has the rings that this case is about: feature bits are one character each.
fn expect_format(place: &mut Place, packed: bool) -> Result<(), Failure> {
    let features = place.guest().check("cat /sys/class/net/eth0/device/features")?;
    let found = features.trim().chars().nth(34) == Some('1');
    if found == packed { Ok(()) } else { Err(format!("VIRTIO_F_RING_PACKED: {found}").into()) }
}

/// With two virtual CPUs, both ways at once: what the guest does takes the time.
fn bulk(place: &Place, case: &Case) -> Result<Vec<agent::TcpReport>, Failure> {
    if case.queue_pairs > 1 {
        return Ok(traffic::tcp_both_ways(place, case.bytes, Check::Compare)?.into());
    }
    [From::Outside, From::Guest]
        .map(|from| traffic::tcp(place, from, case.bytes))
        .into_iter()
        .collect()
}

/// Every queue carried packets, and none was dropped.
fn expect_all_counted(place: &Place) -> Result<(), Failure> {
    let stats = place.stats(None)?;
    for way in ["tx", "rx"] {
        assert!(stats[way]["packets"].as_u64() > Some(0), "{stats:#}");
        let drops = stats[way]["drops"].as_object().expect("drops by cause");
        assert!(drops.values().all(|count| count == 0), "{stats:#}");
    }
    // The object tells of what the recorder still holds; its counters, of everything.
    assert_eq!(place.drops()?, []);
    let packets = place.packets()?;
    assert!(packets.iter().all(|&count| count > 100), "packets of each virtqueue: {packets:?}");
    eprintln!("packets of each virtqueue: {packets:?}");
    Ok(())
}

#[test]
fn guest_1_one_pair_packed_mergeable_never_polling() -> Result<(), Failure> {
    carry(&Case {
        queue_pairs: 1,
        daemon: &["--poll", "never"],
        guest: |guest| guest.packed = true,
        bytes: GIB,
    })
}

#[test]
fn guest_2_two_pairs_packed_two_workers_polling_adaptively() -> Result<(), Failure> {
    carry(&Case {
        queue_pairs: 2,
        daemon: &["--poll", "adaptive", "--cpus", "0,1"],
        guest: |guest| (guest.packed, guest.mrg_rxbuf) = (true, false),
        bytes: GIB,
    })
}

#[test]
fn guest_3_two_pairs_packed_without_offloads_always_polling() -> Result<(), Failure> {
    carry(&Case {
        queue_pairs: 2,
        daemon: &["--poll", "always"],
        guest: |guest| {
            (guest.packed, guest.offloads) = (true, false);
            (guest.rx_queue_size, guest.tx_queue_size) = (1024, 1024);
        },
        bytes: 256 * MIB,
    })
}

#[test]
fn guest_4_one_pair_without_offloads_and_mergeable_buffers() -> Result<(), Failure> {
    carry(&Case {
        queue_pairs: 1,
        daemon: &["--poll", "adaptive:20"],
        guest: |guest| (guest.offloads, guest.mrg_rxbuf) = (false, false),
        bytes: GIB,
    })
}

#[test]
fn guest_5_one_pair_without_indirect_descriptors_always_polling() -> Result<(), Failure> {
    carry(&Case {
        queue_pairs: 1,
        daemon: &["--poll", "always"],
        guest: |guest| (guest.mrg_rxbuf, guest.indirect) = (false, false),
        bytes: GIB,
    })
}

#[test]
fn guest_6_two_pairs_without_anything_never_polling() -> Result<(), Failure> {
    carry(&Case {
        queue_pairs: 2,
        daemon: &["--poll", "never"],
        guest: |guest| {
            (guest.offloads, guest.mrg_rxbuf) = (false, false);
            (guest.event_idx, guest.indirect) = (false, false);
        },
        bytes: 256 * MIB,
    })
}
