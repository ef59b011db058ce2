//! The destinations that a switch chooses for frames.

use arbitrary::Arbitrary;
use virtio_net::MacAddress;
use worker::switch::addresses::{Addresses, FLOOD_BURST, FLOOD_RATE, PORTS_MAX, Verdict};

/// Ticks a second.
const SECOND: u64 = 1_000_000;
const STEPS_MAX: usize = 512;

/// A switch, and the frames sent through it.
#[derive(Arbitrary, Debug)]
pub struct Story {
    /// Number of addresses that each port may learn.
    ports: Vec<u8>,
    /// Ports with the stations given to them, and whether the port may send only from that address.
    given: Vec<(u8, u8, bool)>,
    /// Whether port 0 is the uplink.
    has_uplink: bool,
    steps: Vec<Step>,
}

#[derive(Arbitrary, Debug)]
enum Step {
    Route { port: u8, to: Address, from: Address, len: u16, pause: u16 },
    Long(u16),
    Unplug(u8),
}

#[derive(Arbitrary, Clone, Copy, Debug)]
enum Address {
    Station(u8),
    Any([u8; 6]),
}

impl Address {
    const fn bytes(self) -> [u8; 6] {
        match self {
            Self::Station(number) => [0x52, 0x54, 0, 0, 0, number],
            Self::Any(bytes) => bytes,
        }
    }
}

/// Sends arbitrary frames. Every verdict must name an existing port other than the sender's. No port learns more than
/// its share. An address given to a port stays there and is nowhere else, and a locked port sends from no other
/// address. Floods are limited.
pub fn play(story: &Story) {
    let maxima: Vec<_> = story.ports.iter().take(PORTS_MAX).map(|&max| usize::from(max)).collect();
    if maxima.is_empty() {
        return;
    }
    let ports = maxima.len();
    let mut switch = Addresses::new(&maxima, SECOND);
    if story.has_uplink {
        switch.set_uplink(0);
    }
    let mut given: Vec<(u8, u8, bool)> = Vec::new();
    for &(port, number, is_locked) in story.given.iter().take(ports) {
        let port = port % ports as u8;
        let is_uplink = story.has_uplink && port == 0;
        if !is_uplink && given.iter().all(|it| it.0 != port && it.1 != number) {
            let address = MacAddress(Address::Station(number).bytes());
            if is_locked {
                switch.lock(port, address);
            } else {
                switch.pin(port, address);
            }
            given.push((port, number, is_locked));
        }
    }
    let (mut now, mut floods) = (0_u64, vec![0_u64; ports]);
    for step in story.steps.iter().take(STEPS_MAX) {
        match *step {
            Step::Long(seconds) => now += u64::from(seconds) * SECOND,
            Step::Unplug(port) => {
                let port = port % ports as u8;
                switch.unplug(port, now);
                assert_eq!(switch.addresses(port), 0);
            }
            Step::Route { port, to, from, len, pause } => {
                now += u64::from(pause);
                let port = port % ports as u8;
                let addresses = [to.bytes(), from.bytes()].concat().try_into().unwrap();
                let verdict = switch.route(port, addresses, len.into(), now);
                if let Verdict::Port(to) = verdict {
                    assert!(to != port && usize::from(to) < ports);
                }
                floods[usize::from(port)] += u64::from(verdict == Verdict::Everyone);
                let is = |it: &(u8, u8, bool), address: Address| {
                    Address::Station(it.1).bytes() == address.bytes()
                };
                let lock = given.iter().find(|it| it.0 == port && it.2);
                if lock.is_some_and(|it| !is(it, from)) {
                    assert_eq!(verdict, Verdict::Spoofed, "a locked port");
                }
                if verdict == Verdict::Spoofed {
                    assert!(!story.has_uplink || port != 0, "the uplink is no guest");
                } else if let Some((at, ..)) = given.iter().find(|it| is(it, to)) {
                    let right = if *at == port { Verdict::Nowhere } else { Verdict::Port(*at) };
                    assert_eq!(verdict, right, "an address that was given to port {at}");
                }
            }
        }
    }
    for (port, max) in (0..).zip(&maxima) {
        assert!(switch.addresses(port) <= *max);
        let most = FLOOD_BURST + 2 + now * FLOOD_RATE / SECOND;
        assert!(floods[usize::from(port)] <= most, "floods from port {port}");
    }
}
