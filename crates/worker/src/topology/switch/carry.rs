//! A burst from one guest to all its receivers.

use burst_trace::{DropCause, DropCounts};
use datapath::{FrameReader, Transmitted};
use virtio_net::{Frames, MacAddress};

use super::place::{Ending, Placing, deliver_all};
use super::sort::bytes_of;
use super::uplink::Uplink;
use super::wait::{Crowd, Share, Wait};
use super::{Fabric, UPLINK, bits, drop_frames};
use crate::pairs::Pairs;
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
        let begun = self.queues[at].take_begun();
        for to in bits(std::mem::take(&mut self.wanted)) {
            let left = std::mem::take(&mut self.shares[to]);
            // Frames that waited are the first of this burst again. The guest may have spoilt the first of them meanwhile:
            // then it is dropped, and the next frame begins with its first segment.
            let continues = |wait: &Wait| wait.receiver == to && left & 1 != 0;
            let progress = begun.filter(continues).map(|wait| wait.progress).unwrap_or_default();
            if to == UPLINK {
                if let Some(uplink) = &mut uplink {
                    let share = Share { left, progress };
                    self.send_out(at, share, gathered, now, uplink, &mut done);
                }
                continue;
            }
            let receiver = &mut rx[to];
            let Some(offloads) = receiver.offloads() else {
                self.lose(left, &mut done);
                continue;
            };
            let mut placing = Placing {
                frames,
                pending: &self.pending,
                offloads,
                left,
                progress,
                drops: DropCounts::default(),
            };
            let delivered = deliver_all(receiver, &mut placing, &mut sighting, view);
            self.unsignalled |= u64::from(delivered.any) << to;
            let Placing { left: rest, progress, drops, .. } = placing;
            view.tracer(receiver.guest()).dropped(receiver.index(), &drops);
            if rest == 0 {
                self.queues[to].note_room();
            } else if receiver.is_served() {
                let crowd = Crowd::new(gathered, frames.len());
                let queue = &mut self.queues[to];
                let until = if delivered.end == Ending::Cut {
                    // The receiver has room: the rest only waits for the next turn.
                    queue.note_room();
                    self.patience.stuck(now)
                } else {
                    queue.note_full(now, delivered.placed);
                    queue.wait_until(crowd.is_crowded, &self.patience)
                };
                let wait = Wait { receiver: to, until, progress };
                if self.may_wait(wait, rest, crowd, now) {
                    put_off(rest, frames, &mut done);
                    if delivered.end == Ending::NoRoom {
                        receiver.starve(sighting, sighting.wake);
                    }
                    self.queues[at].start_waiting(wait);
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

    /// Carries a frame to everyone that says that `address` is at pair `at`. It does not wait: if frames of that pair do, or
    /// there is no room for it, it is not carried.
    #[cold]
    pub(super) fn announce<U: FrameReader>(
        &mut self,
        at: usize,
        address: MacAddress,
        pairs: &mut Pairs,
        uplink: Option<&mut Uplink<U>>,
        view: &mut View<'_>,
    ) -> bool {
        if self.queues[at].is_waiting() {
            return false;
        }
        let (sender, rx) = pairs.transmitter_and_receivers(at);
        let carry = |this: &mut Self, frames: Frames<'_, '_>, view: &mut View<'_>| {
            let now = view.now();
            let sighting = Sighting { wake: now, seen: now, polled: false };
            let transmitted = this.carry(at, frames, sighting, rx, uplink, view);
            this.stop_waiting(at, rx);
            transmitted
        };
        let sent = sender.announce(address, self, view, carry, |_, _| ());
        self.report_news(pairs, view);
        self.signal(pairs.receivers(), view);
        sent
    }

    /// Sends a share of the frames that pair `at` gathered to the uplink.
    fn send_out<U: FrameReader>(
        &mut self,
        at: usize,
        mut share: Share,
        gathered: Frames<'_, '_>,
        now: u64,
        uplink: &mut Uplink<U>,
        done: &mut Transmitted,
    ) {
        let frames = gathered.take(done.taken);
        let refused = uplink.send(frames, &mut share);
        done.drops.add_all(&refused);
        let Share { left: rest, progress } = share;
        if rest == 0 {
            self.uplink_queue.note_room();
            return;
        }
        self.uplink_queue.note_full(now, false);
        let until = self.uplink_queue.wait_until(true, &self.patience);
        let wait = Wait { receiver: UPLINK, until, progress };
        if self.may_wait(wait, rest, Crowd::new(gathered, frames.len()), now) {
            put_off(rest, frames, done);
            self.queues[at].start_waiting(wait);
        } else {
            done.drops.add_many(DropCause::TxUplinkFull, rest.count_ones() as usize);
        }
    }

    /// These frames have no receiver. Those for everyone are not missed.
    #[cold]
    fn lose(&self, frames: u64, done: &mut Transmitted) {
        let lost = frames & !self.flooded;
        done.drops.add_many(DropCause::TxLinkDown, lost.count_ones() as usize);
    }
}

/// The frames from the first of `left` on are not taken this time.
#[cold]
fn put_off(left: u64, frames: Frames<'_, '_>, done: &mut Transmitted) {
    done.taken = left.trailing_zeros() as usize;
    done.bytes = bytes_of(frames.take(done.taken));
}
