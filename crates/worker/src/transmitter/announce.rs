//! A frame that says where the guest's address is now, sent as if the guest had sent it.
//!
//! No wait for the kernel: a datapath copies the frame, and is done with it at once. A front end may ask for it over and over,
//! so a [`Pace`] limits how many are sent.

use std::time::{Duration, Instant};

use burst_trace::{BurstRecord, Direction, Stage};
use datapath::Transmitted;
use virtio_net::announcement::Announcement;
use virtio_net::{Frames, MacAddress};

use super::Transmitter;
use crate::timeline::{Timeline, Unsignalled};
use crate::view::View;

/// Most announcements of a guest at once after a quiet time. QEMU sends five within a second of a migration
/// (`announce-rounds`, qapi/migration.json).
pub const ANNOUNCEMENTS_AT_ONCE: u32 = 10;
/// Time after which one more is sent.
pub const ANNOUNCEMENT_EVERY: Duration = Duration::from_millis(100);

const BEFORE: [Stage; 4] = [Stage::Notice, Stage::Queued, Stage::Limited, Stage::Gather];
const AFTER: [Stage; 3] = [Stage::Egress, Stage::Complete, Stage::Signal];

impl Transmitter {
    /// Has `carry` carry the frame by means of `wire`. It is recorded as a burst of one packet; `recorded` gets the record.
    /// Returns whether it was carried.
    #[cold]
    pub fn announce<W>(
        &mut self,
        address: MacAddress,
        wire: &mut W,
        view: &mut View<'_>,
        carry: impl FnOnce(&mut W, Frames<'_, '_>, &mut View<'_>) -> Transmitted,
        recorded: impl FnOnce(&mut W, &BurstRecord),
    ) -> bool {
        let (guest, index) = (self.guest(), self.index());
        let Some(ring) = self.started() else { return false };
        let header_len = ring.negotiated().header_len();
        let tracer = view.tracer(guest);
        let mut timeline = Timeline::begin(Direction::Tx, tracer.stamp());
        BEFORE.into_iter().for_each(|stage| tracer.cross(&mut timeline, stage));
        let done = Announcement::new(address, header_len).with(|frames| carry(wire, frames, view));
        let tracer = view.tracer(guest);
        AFTER.into_iter().for_each(|stage| tracer.cross(&mut timeline, stage));
        tracer.dropped(index, &done.drops);
        #[expect(clippy::cast_possible_truncation, reason = "one frame")]
        let packets = (done.taken as u16).saturating_sub(done.drops.total());
        let burst = Unsignalled { timeline, packets, bytes: done.bytes, polled: false };
        let mut announced = None;
        self.record(&burst, tracer, |record| {
            announced = Some(*record);
            recorded(wire, record);
        });
        if let Some(record) = announced.filter(|_| packets > 0) {
            tracer.announced(&record, address);
        }
        packets > 0
    }
}

/// Limits the announcements of a guest: [`ANNOUNCEMENTS_AT_ONCE`], then one each [`ANNOUNCEMENT_EVERY`].
#[derive(Clone, Copy, Debug, Default)]
pub struct Pace {
    /// When the next one would be due if they came evenly.
    due: Option<Instant>,
}

impl Pace {
    /// Whether one may be sent now, which then counts as sent.
    pub fn pass(&mut self, now: Instant) -> bool {
        let due = self.due.map_or(now, |due| due.max(now));
        let is_in_time = due - now <= ANNOUNCEMENT_EVERY * (ANNOUNCEMENTS_AT_ONCE - 1);
        if is_in_time {
            self.due = Some(due + ANNOUNCEMENT_EVERY);
        }
        is_in_time
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// The number that pass of a hundred at this time.
    fn passed(pace: &mut Pace, now: Instant) -> u32 {
        (0..100).map(|_| u32::from(pace.pass(now))).sum()
    }

    #[test]
    fn some_are_sent_at_once_then_one_each_interval() {
        let (mut pace, begun) = (Pace::default(), Instant::now());
        assert_eq!(passed(&mut pace, begun), ANNOUNCEMENTS_AT_ONCE);
        for n in 1..50 {
            let due = begun + ANNOUNCEMENT_EVERY * n;
            assert_eq!(passed(&mut pace, due - Duration::from_nanos(1)), 0);
            assert_eq!(passed(&mut pace, due), 1);
        }
        // After a quiet time as many as at first.
        let later = begun + Duration::from_secs(3600);
        assert_eq!(passed(&mut pace, later), ANNOUNCEMENTS_AT_ONCE);
    }
}
