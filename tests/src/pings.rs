//! Pings from a guest in software to a host outside, and what became of each.

use std::net::Ipv4Addr;
use std::path::Path;
use std::time::{Duration, Instant};

use frontend::{Guest, Pair};
use lab::outside::Outside;

use crate::eventually::eventually;
use crate::frames;
use crate::packets::{Mac, arp_answer, arp_reply, arp_request, echo_reply, echo_request};
use crate::trace::Trace;

/// The guest's address on the network of [`Outside`].
const OWN: Ipv4Addr = Ipv4Addr::new(10, 77, 0, 2);
const PATIENCE: Duration = Duration::from_secs(5);

/// A guest that pings.
#[derive(Debug)]
pub struct Pinger {
    mac: Mac,
    gateway: Mac,
    sequence: u16,
    /// Every frame that was sent.
    pub sent: Vec<Vec<u8>>,
    /// Every frame that came.
    pub came: Vec<Vec<u8>>,
}

impl Pinger {
    /// The address of a guest where none is given.
    pub const MAC: Mac = [0x52, 0x54, 0, 0, 0, 2];

    /// A guest with this address finds out that of the host, asking again where it has to.
    ///
    /// # Panics
    /// When nobody answers.
    #[must_use]
    pub fn new(pair: &mut Pair, mac: Mac) -> Self {
        let (sent, came) = (Vec::new(), Vec::new());
        let mut pinger = Self { mac, gateway: [0; 6], sequence: 0, sent, came };
        pinger.gateway = eventually(PATIENCE, "an answer to ARP requests", || {
            let request = arp_request(mac, OWN, host());
            let answer = pinger.ask(pair, request, Duration::from_millis(200), arp_reply);
            answer.ok_or_else(|| format!("{} other frames", pinger.came.len()))
        });
        pinger
    }

    /// Sends one echo request with `len` bytes of payload. Returns whether the answer came in time; then it has
    /// the same payload.
    ///
    /// # Panics
    /// When it has another one.
    pub fn ping(&mut self, pair: &mut Pair, len: usize, patience: Duration) -> bool {
        self.sequence = self.sequence.wrapping_add(1);
        let (sequence, payload) = (self.sequence, frames::frame(self.sequence.into(), len));
        let request = echo_request((self.mac, self.gateway), (OWN, host()), sequence, &payload);
        let replied = |frame: &[u8]| {
            let (number, bytes) = echo_reply(frame)?;
            (number == sequence).then(|| bytes.to_vec())
        };
        let came = self.ask(pair, request, patience, replied);
        assert!(came.as_ref().is_none_or(|came| *came == payload), "ping {sequence}");
        came.is_some()
    }

    /// Sends `count` pings, each of which must be answered.
    ///
    /// # Panics
    /// When one is not.
    pub fn ping_all(&mut self, pair: &mut Pair, count: usize) {
        for n in 0..count {
            assert!(self.ping(pair, 1 + n * 7 % 1400, PATIENCE), "ping {n} is lost");
        }
    }

    /// Sends `count` pings at once; all are answered, in order.
    ///
    /// # Panics
    /// When they are not.
    pub fn ping_burst(&mut self, pair: &mut Pair, count: u16) {
        let first = self.sequence.wrapping_add(1);
        for n in 0..count {
            let payload = frames::frame(n.into(), 1 + usize::from(n) * 97 % 1400);
            let macs = (self.mac, self.gateway);
            let request = echo_request(macs, (OWN, host()), first.wrapping_add(n), &payload);
            assert!(pair.queue(&request).unwrap(), "no room in the ring");
            self.sent.push(request);
        }
        pair.flush().unwrap();
        let until = Instant::now() + PATIENCE;
        for n in 0..count {
            loop {
                let left = until.saturating_duration_since(Instant::now());
                let frame = pair.receive_within(left).unwrap();
                let frame = frame.unwrap_or_else(|| panic!("no answer to ping {n} of {count}"));
                let reply = echo_reply(&frame.bytes).map(|(number, bytes)| {
                    let payload = frames::frame(n.into(), 1 + usize::from(n) * 97 % 1400);
                    assert!(
                        number == first.wrapping_add(n) && bytes == payload,
                        "{number}, not {n} of {count}"
                    );
                });
                self.answer(pair, &frame.bytes);
                self.came.push(frame.bytes);
                if reply.is_some() {
                    break;
                }
            }
        }
        self.sequence = self.sequence.wrapping_add(count);
    }

    /// The host asks for the guest's address now and then, and forgets it without an answer.
    fn answer(&mut self, pair: &mut Pair, frame: &[u8]) {
        if let Some(answer) = arp_answer(frame, self.mac, OWN) {
            assert!(pair.send(&answer).unwrap(), "no room in the ring");
            self.sent.push(answer);
        }
    }

    fn ask<T>(
        &mut self,
        pair: &mut Pair,
        request: Vec<u8>,
        patience: Duration,
        answer: impl Fn(&[u8]) -> Option<T>,
    ) -> Option<T> {
        assert!(pair.send(&request).unwrap(), "no room in the ring");
        self.sent.push(request);
        let until = Instant::now() + patience;
        loop {
            let left = until.saturating_duration_since(Instant::now());
            let frame = pair.receive_within(left).unwrap()?;
            let found = answer(&frame.bytes);
            self.answer(pair, &frame.bytes);
            self.came.push(frame.bytes);
            if found.is_some() {
                return found;
            }
        }
    }
}

/// Frames of many lengths go both ways, alone and many at once; the records of the daemon `name` have them all. The
/// guest's rings are stopped afterwards.
///
/// # Panics
/// When a frame or a record is missing.
pub fn exchange(guest: &mut Guest, mac: Mac, directory: &Path, name: &str) {
    let mut pinger = Pinger::new(guest.pair(0), mac);
    pinger.ping_all(guest.pair(0), 50);
    for _ in 0..10 {
        pinger.ping_burst(guest.pair(0), 20);
    }
    guest.check_canaries().unwrap();
    guest.stop_ring(1).unwrap();
    guest.stop_ring(0).unwrap();
    while let Some(frame) = guest.pair(0).receive().unwrap() {
        pinger.came.push(frame.bytes);
    }
    let trace = Trace::open(directory, name);
    for (ring, frames) in [(1, &pinger.sent), (0, &pinger.came)] {
        let (found, bytes) =
            (trace.check(ring), frames.iter().map(|frame| frame.len() as u64).sum());
        assert_eq!((found.packets, found.bytes), (frames.len() as u64, bytes), "ring {ring}");
    }
}

fn host() -> Ipv4Addr {
    Outside::ADDRESS.parse().expect("an address")
}
