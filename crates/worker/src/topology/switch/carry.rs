//! A burst from one guest to all its receivers.

use burst_trace::{DropCause, DropCounts};
use datapath::{FrameReader, Transmitted};
use virtio_net::Frames;

use super::place::{Ending, Placing, deliver_all};
use super::sort::bytes_of;
use super::uplink::Uplink;
use super::wait::{Crowd, Wait};
use super::{Fabric, UPLINK, bits, drop_frames};
use crate::clock::Deadline;
use crate::receiver::Receiver;
use crate::timeline::Sighting;
use crate::view::View;

impl Fabric {
    /// Carries the frames of pair `at` to their receivers.
    pub(super) fn carry<U: FrameReader>(
        &mut self,
        at: usize,
        gathered: Frames<'_, '_>,
        mut sighting: Sighting,
        rx: &mut [Receiver],
        mut uplink: Option<&mut Uplink<U>>,
        view: &mut View<'_>,
    ) -> Transmitted {
        let now = sighting.wake;
        let mut done = self.sort(at, gathered, now);
        let frames = gathered.take(done.taken);
        let begun = self.ends[at].begun.take();
        for to in bits(std::mem::take(&mut self.wanted)) {
            let left = std::mem::take(&mut self.shares[to]);
            if to == UPLINK {
                if let Some(uplink) = &mut uplink {
                    self.send_out(at, left, gathered, now, uplink, &mut done);
                }
                continue;
            }
            let receiver = &mut rx[to];
            let Some(offloads) = receiver.offloads() else {
                self.lose(left, &mut done);
                continue;
            };
            let segments = begun.filter(|wait| wait.receiver == to).map_or(0, |wait| wait.segments);
            let pending = &self.pending;
            let drops = DropCounts::default();
            let mut placing = Placing { frames, pending, offloads, left, segments, drops };
            let delivered = deliver_all(receiver, &mut placing, &mut sighting, view);
            self.unsignalled |= u64::from(delivered.any) << to;
            let Placing { left: rest, segments, drops, .. } = placing;
            view.tracer(receiver.guest()).dropped(receiver.index(), &drops);
            if rest == 0 {
                self.ends[to].full_since = None;
            } else if receiver.is_served() {
                let crowd = Crowd::new(gathered, frames.len());
                let end = &mut self.ends[to];
                let until = if delivered.end == Ending::Cut {
                    // The receiver has room: the rest only waits for the next turn.
                    end.full_since = None;
                    Deadline::after(now, self.stuck)
                } else {
                    end.note_full(now, delivered.placed);
                    end.patience(crowd.is_crowded, self.stuck, self.crowded)
                };
                let wait = Wait { receiver: to, until, segments };
                if self.may_wait(wait, rest, crowd, now) {
                    put_off(rest, frames, &mut done);
                    if delivered.end == Ending::NoRoom {
                        receiver.starve(sighting, sighting.wake);
                    }
                    (self.ends[at].waits, self.ends[at].begun) = (Some(wait), Some(wait));
                } else {
                    receiver.end_starvation();
                    drop_frames(rest.count_ones(), DropCause::RxSwitchFull, receiver, view);
                }
            } else {
                self.lose(rest, &mut done);
            }
        }
        if let Some(before) = begun {
            self.let_go(before.receiver, rx);
        }
        done
    }

    /// Sends the frames `left`, of those that pair `at` gathered, to the uplink.
    fn send_out<U: FrameReader>(
        &mut self,
        at: usize,
        left: u64,
        gathered: Frames<'_, '_>,
        now: u64,
        uplink: &mut Uplink<U>,
        done: &mut Transmitted,
    ) {
        let frames = gathered.take(done.taken);
        let (rest, refused) = uplink.send(frames, left);
        done.drops.add_all(&refused);
        if rest == 0 {
            self.uplink_end.full_since = None;
            return;
        }
        let since = *self.uplink_end.full_since.get_or_insert(now);
        let wait =
            Wait { receiver: UPLINK, until: Deadline::after(since, self.crowded), segments: 0 };
        if self.may_wait(wait, rest, Crowd::new(gathered, frames.len()), now) {
            put_off(rest, frames, done);
            self.ends[at].waits = Some(wait);
        } else {
            (0..rest.count_ones()).for_each(|_| done.drops.add(DropCause::TxUplinkFull));
        }
    }

    /// These frames have no receiver. Those for everyone are not missed.
    #[cold]
    fn lose(&self, frames: u64, done: &mut Transmitted) {
        let lost = frames & !self.flooded;
        (0..lost.count_ones()).for_each(|_| done.drops.add(DropCause::TxLinkDown));
    }
}

/// The frames from the first of `left` on are not taken this time.
#[cold]
fn put_off(left: u64, frames: Frames<'_, '_>, done: &mut Transmitted) {
    done.taken = left.trailing_zeros() as usize;
    done.bytes = bytes_of(frames.take(done.taken));
}
