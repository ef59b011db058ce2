//! Checks that the devices still serve a well-behaved front end, and lose nothing.

use std::fs;
use std::sync::PoisonError;
use std::sync::atomic::Ordering;
use std::time::{Duration, Instant};

use burst_trace::{DropCause, Reader};

use super::front::Front;
use super::world::{PAIRS, PATIENCE, World};

/// Time after which a port of the switch may again send to everyone (`worker::switch`, `FLOOD_BURST` and `FLOOD_RATE`).
const FLOOD_PAUSE: Duration = Duration::from_millis(500);
/// Number of inputs between two checks of descriptors, and between two checks with traffic.
const CHECK_DESCRIPTORS: u64 = 256;
const CHECK_TRAFFIC: u64 = 64;
/// Tolerance for descriptors that come and go: other threads may just be closing some.
const DESCRIPTORS_MORE: usize = 16;

impl World {
    /// Checks that device number `device` serves a well-behaved front end, now and then with traffic, and that the
    /// number of descriptors stays the same.
    pub fn check(&'static self, device: usize) {
        let count = self.checks.fetch_add(1, Ordering::Relaxed);
        if count.is_multiple_of(CHECK_TRAFFIC) {
            self.check_traffic(device);
        } else {
            let mut front = Front::connect(self, device);
            front.sync();
            assert!(front.is_served(), "no front end is served any more");
            front.end();
        }
        if count.is_multiple_of(CHECK_DESCRIPTORS) && count > 0 {
            self.check_descriptors();
        }
    }

    fn check_descriptors(&self) {
        let count = || fs::read_dir("/proc/self/fd").expect("descriptors").count();
        let before = *self.descriptors.get_or_init(count);
        let until = Instant::now() + PATIENCE;
        while count() > before + DESCRIPTORS_MORE {
            assert!(Instant::now() < until, "{before} descriptors have become {}", count());
            std::thread::sleep(Duration::from_millis(10));
        }
    }

    fn check_traffic(&'static self, device: usize) {
        let (stream, conversation) = self.converse(device);
        let options = frontend::GuestOptions::default().queue_size(64);
        let mut guest = frontend::Guest::over(stream, options).expect("a guest is served");
        let to_all = |from: u8| {
            [&[0xff; 6][..], &[0x52, 0x54, 0, 0, 0, from], &[0x88, 0xb5], &[7; 86]].concat()
        };
        let frame = to_all(9);
        let dropped = self.dropped();
        let pair = guest.pair(0);
        assert!(pair.send(&frame).expect("a ring in order"), "no room to send");
        match self.devices[device].log.prefix() {
            "reflect" => expect(pair, &frame),
            "one" => {
                let mut neighbour = self.neighbour.lock().unwrap_or_else(PoisonError::into_inner);
                let neighbour = neighbour.as_mut().expect("a neighbour").pair(0);
                // The guest before may have used up this port's allowance to send to everyone, or the neighbour's
                // buffers.
                if !comes(neighbour, &frame, FLOOD_PAUSE) {
                    assert!(self.dropped() > dropped, "a frame is lost, and no counter says why");
                    assert!(pair.send(&frame).expect("a ring in order"), "no room to send");
                    expect(neighbour, &frame);
                }
                neighbour.reap().expect("a ring in order");
                let answer = to_all(2);
                assert!(neighbour.send(&answer).expect("a ring in order"), "no room to send");
                expect(pair, &answer);
            }
            _ => {}
        }
        guest.check_canaries().expect("no byte beside a buffer is written");
        drop(guest);
        conversation.end();
    }

    /// Number of frames that the devices dropped, for any cause.
    fn dropped(&self) -> u64 {
        let causes = |rings: &Reader, ring| -> u64 {
            DropCause::ALL.iter().map(|&cause| rings.drops(ring, cause)).sum()
        };
        let rings = 2 * usize::from(PAIRS);
        self.counts.iter().flat_map(|it| (0..rings).map(move |ring| causes(it, ring))).sum()
    }
}

/// Waits for `frame`. Other frames may come before it.
fn expect(pair: &mut frontend::Pair, frame: &[u8]) {
    assert!(comes(pair, frame, PATIENCE), "a frame comes to a guest that behaves well");
}

/// Whether `frame` comes within `time`. Other frames may come before it.
fn comes(pair: &mut frontend::Pair, frame: &[u8], time: Duration) -> bool {
    let until = Instant::now() + time;
    loop {
        let left = until.saturating_duration_since(Instant::now());
        let Some(came) = pair.receive_within(left).expect("a ring in order") else { return false };
        pair.refill().expect("a ring in order");
        if came.bytes == frame {
            return true;
        }
    }
}
