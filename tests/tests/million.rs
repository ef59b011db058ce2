//! Front ends carry a million datagrams both ways, on both ring formats, over a tap and over AF_XDP. The outside host
//! makes each datagram's bytes and compares those that come back. `tests/long` runs these tests: they take
//! minutes. User Mode Linux does the same in `uml_guest.rs`.
//!
//! ```text
//! outside 10.77.0.1: udp-ping - bridge and tap, or veth - ringscoped === front end: 10.77.0.2 gives each datagram back
//! ```

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::thread;
use std::time::Duration;

use frontend::{Guest, GuestOptions};
use ringscope_tests::af_xdp::NEIGHBOUR;
use ringscope_tests::daemon::program;
use ringscope_tests::dpdk::{GuestShape, Testpmd};
use ringscope_tests::qemu::{Failure, GUEST, Place, said};
use serde_json::Value;

const MILLION: u64 = 1_000_000;
/// More are sent, because some may find a full ring while an emulated guest does not run.
const SENT: u64 = MILLION + MILLION / 50;
/// Payload of a datagram, bytes.
const SIZE: usize = 256;
/// What an echo swaps in a frame: two offsets and a length, bytes; Ethernet addresses, IPv4 addresses, ports.
const SWAPPED: [(usize, usize, usize); 3] = [(0, 6, 6), (26, 30, 4), (34, 36, 2)];

/// Where the frames go.
#[derive(Clone, Copy, Debug)]
enum Way {
    Tap,
    AfXdp,
}

impl Way {
    fn place(self) -> Result<Place, Failure> {
        match self {
            Self::Tap => Place::new(1),
            Self::AfXdp => Place::on_wire(1, ""),
        }
    }
}

/// Has `front_end` attach on each way and ring format, and compares the datagrams, one in each `interval`. What it returns is
/// kept for so long.
fn carry<T>(
    interval: Duration,
    front_end: impl Fn(&mut Place, bool) -> Result<T, Failure>,
) -> Result<(), Failure> {
    for way in [Way::Tap, Way::AfXdp] {
        for packed in [false, true] {
            let mut place = way.place()?;
            place.spawn(&[])?;
            let attached = front_end(&mut place, packed)?;
            let mut ping = place.outside.command(&program("ringscope")?.to_string_lossy());
            ping.args(["agent", "udp-ping", &format!("{GUEST}:7007")]);
            ping.args(["--count", &SENT.to_string(), "--size", &SIZE.to_string()]);
            ping.args(["--interval-us", &interval.as_micros().to_string()]);
            let report: Value = serde_json::from_str(&said(&mut ping)?)?;
            let count = |name: &str| report[name].as_u64().unwrap_or(0);
            println!("{way:?}, packed {packed}: {} of {SENT} came back", count("received"));
            let came = count("received");
            assert!(came >= MILLION, "{way:?}, packed {packed}: {report}");
            assert_eq!((count("changed"), count("duplicates")), (0, 0), "{way:?}, {packed}");
            let packets = place.packets()?;
            assert!(packets.iter().all(|&ring| ring >= came), "{packets:?} packets, {came} came");
            drop(attached);
        }
    }
    Ok(())
}

#[test]
#[ignore = "takes minutes"]
fn qemu_carries_a_million() -> Result<(), Failure> {
    // An emulated guest answers some 4,000 in a second.
    carry(Duration::from_micros(400), |place, packed| {
        let mut options = place.options()?;
        options.packed = packed;
        place.attach(options)
    })
}

#[test]
#[ignore = "takes minutes"]
fn the_virtio_user_driver_of_dpdk_carries_a_million() -> Result<(), Failure> {
    carry(Duration::from_micros(40), |place, packed| {
        place.outside.exec(NEIGHBOUR)?;
        // On split rings, vectorised.
        let shape =
            GuestShape { packed, vectorized: !packed, mrg_rxbuf: packed, ..GuestShape::default() };
        let mut guest = Testpmd::guest(&place.socket(), &shape)?;
        // Addresses and ports are swapped.
        guest.command("set fwd 5tswap")?;
        guest.start()?;
        Ok(guest)
    })
}

#[test]
#[ignore = "takes minutes"]
fn a_front_end_in_software_carries_a_million() -> Result<(), Failure> {
    carry(Duration::from_micros(40), |place, packed| {
        place.outside.exec(NEIGHBOUR)?;
        let guest = Guest::connect(place.socket(), GuestOptions::default().packed(packed))?;
        Ok(Echo::start(guest))
    })
}

/// Gives every UDP datagram back until it is dropped.
struct Echo {
    stop: Arc<AtomicBool>,
    thread: Option<thread::JoinHandle<()>>,
}

impl Echo {
    fn start(mut guest: Guest) -> Self {
        let stop = Arc::new(AtomicBool::new(false));
        let stopped = Arc::clone(&stop);
        let thread = thread::spawn(move || {
            while !stopped.load(Ordering::Relaxed) {
                let pair = guest.pair(0);
                pair.reap().expect("the transmit ring is used as it should be");
                let came = pair.receive_within(Duration::from_millis(100));
                let Some(mut frame) = came.expect("the receive ring is used as it should be")
                else {
                    continue;
                };
                if frame.bytes.len() > 42 && frame.bytes[23] == 17 {
                    for (a, b, len) in SWAPPED {
                        (0..len).for_each(|n| frame.bytes.swap(a + n, b + n));
                    }
                    pair.send(&frame.bytes).expect("the transmit ring is used as it should be");
                }
            }
        });
        Self { stop, thread: Some(thread) }
    }
}

impl Drop for Echo {
    fn drop(&mut self) {
        self.stop.store(true, Ordering::Relaxed);
        if let Some(thread) = self.thread.take() {
            thread.join().expect("the echo does not panic");
        }
    }
}
