//! Pings from a guest in software to the outside host's kernel.

use std::net::Ipv4Addr;
use std::time::{Duration, Instant};

use frontend::Pair;
use lab::outside::Outside;

use crate::frames;
use crate::packets::{Mac, arp_reply, arp_request, echo_reply, echo_request};

const SOON: Duration = Duration::from_secs(5);
/// The guest's link address.
pub const MAC: Mac = [0x52, 0x54, 0, 0, 0, 2];
/// The guest's address.
pub const OWN: Ipv4Addr = Ipv4Addr::new(10, 77, 0, 2);

/// Sends a frame and takes what comes back, without sleeping: no signal is wanted then.
///
/// # Panics
/// When nothing comes.
pub fn exchange(pair: &mut Pair, frame: &[u8]) -> Vec<u8> {
    assert!(pair.send(frame).unwrap());
    let until = Instant::now() + SOON;
    loop {
        if let Some(came) = pair.receive().unwrap() {
            return came.bytes;
        }
        assert!(Instant::now() < until, "the frame does not come back");
        std::hint::spin_loop();
    }
}

/// Pings from the guest to the outside host's kernel, with packets and bytes as the guest counts them.
#[derive(Debug)]
pub struct Pings {
    gateway: Mac,
    sequence: u16,
    /// Packets and bytes that the guest sent.
    pub sent: (u64, u64),
    /// Packets and bytes that came to it.
    pub came: (u64, u64),
}

impl Pings {
    /// Finds the outside host.
    ///
    /// # Panics
    /// When it does not answer.
    pub fn new(pair: &mut Pair) -> Self {
        let mut pings = Self { gateway: [0; 6], sequence: 0, sent: (0, 0), came: (0, 0) };
        let request = arp_request(MAC, OWN, address());
        pings.gateway = pings.ask(pair, &request, arp_reply);
        pings
    }

    /// Sends an echo request with a payload of `len` bytes, and expects it back.
    ///
    /// # Panics
    /// When it does not come, or not as it was.
    pub fn ping(&mut self, pair: &mut Pair, len: usize) {
        self.sequence += 1;
        let (sequence, payload) = (self.sequence, frames::frame(self.sequence.into(), len));
        let request = echo_request((MAC, self.gateway), (OWN, address()), sequence, &payload);
        let replied =
            |frame: &[u8]| echo_reply(frame).filter(|reply| reply.0 == sequence)?.1.to_vec().into();
        let came: Vec<u8> = self.ask(pair, &request, replied);
        assert_eq!(came, payload);
    }

    fn ask<T>(
        &mut self,
        pair: &mut Pair,
        request: &[u8],
        answer: impl Fn(&[u8]) -> Option<T>,
    ) -> T {
        self.sent = (self.sent.0 + 1, self.sent.1 + request.len() as u64);
        let mut frame = exchange(pair, request);
        let until = Instant::now() + SOON;
        loop {
            if !frame.is_empty() {
                self.count(&frame);
                if let Some(answer) = answer(&frame) {
                    return answer;
                }
            }
            assert!(Instant::now() < until, "no answer from the outside host");
            frame = pair.receive().unwrap().map(|frame| frame.bytes).unwrap_or_default();
        }
    }

    /// Counts a frame that came to the guest otherwise.
    pub fn count(&mut self, frame: &[u8]) {
        self.came = (self.came.0 + 1, self.came.1 + frame.len() as u64);
    }
}

fn address() -> Ipv4Addr {
    Outside::ADDRESS.parse().unwrap()
}
