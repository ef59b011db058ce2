//! Loses frames and returns errors as planted, to see what becomes of them.
//!
//! The frames that are hit depend on the seed only: the same frames in the same order have the same losses, however
//! they come in bursts.

mod held;
mod planted;

use std::io;

use burst_trace::{Direction, DropCause};
use guest_memory::GuestMemory;
use virtio_net::{Frames, GuestRoom};

use self::held::Held;
pub use self::planted::{Hit, Planted};
use crate::{Datapath, Forward, InPlace, Look, Observer, Refusal, Transmitted, Wrapper};

/// A planted fault at work in one direction of one queue.
#[derive(Clone, Debug)]
struct Armed {
    planted: Planted,
    random: fastrand::Rng,
    /// Number of frames that pass before the next one is hit.
    passes: u64,
}

impl Armed {
    fn new(planted: Planted, queue: u64) -> Self {
        let random = fastrand::Rng::with_seed(planted.seed.wrapping_add(queue));
        let mut armed = Self { planted, random, passes: 0 };
        armed.rearm();
        armed
    }

    /// Draws the number of frames that pass before the next one is hit.
    #[expect(
        clippy::cast_possible_truncation,
        clippy::cast_sign_loss,
        reason = "not negative; what is too large for 64 bits is never"
    )]
    fn rearm(&mut self) {
        let Planted { share, every, .. } = self.planted;
        // Number of failures before the first success, in trials that succeed with this probability.
        let misses = if share < 1.0 {
            ((1.0 - self.random.f64()).ln() / (-share).ln_1p()) as u64
        } else {
            0
        };
        self.passes = misses.saturating_add(1).saturating_mul(every.into()) - 1;
    }
}

/// The faults of one direction of one queue.
#[derive(Clone, Debug, Default)]
struct Faults(Vec<Armed>);

impl Faults {
    const fn is_empty(&self) -> bool {
        self.0.is_empty()
    }

    fn new(all: &[Planted], queue: u64, wanted: impl Fn(&Planted) -> bool) -> Self {
        Self(all.iter().filter(|it| wanted(it)).map(|it| Armed::new(*it, queue)).collect())
    }

    /// Number of frames that pass before one is hit, at most `most`.
    fn passing(&self, most: usize) -> usize {
        let next = self.0.iter().map(|armed| armed.passes).min().unwrap_or(u64::MAX);
        usize::try_from(next).unwrap_or(usize::MAX).min(most)
    }

    /// This number of frames passed, none of which was to be hit.
    fn passed(&mut self, frames: usize) {
        for armed in &mut self.0 {
            armed.passes = armed.passes.saturating_sub(frames as u64);
        }
    }

    /// What hits the next frame, if anything does.
    fn strike(&mut self) -> Option<Hit> {
        let at = self.0.iter().position(|armed| armed.passes == 0)?;
        self.0[at].rearm();
        // For the other faults it is a frame that passed. Another fault that was to hit it hits the next frame.
        for (other, armed) in self.0.iter_mut().enumerate() {
            if other != at {
                armed.passes = armed.passes.saturating_sub(1);
            }
        }
        Some(self.0[at].planted.hit)
    }
}

/// A datapath with faults, or without any.
#[derive(Debug)]
pub struct Faulty<D> {
    inner: D,
    queue: u16,
    planted: Vec<Planted>,
    held: Held,
    sending: Faults,
    losses: Faults,
    read_errors: Faults,
}

impl<D> Faulty<D> {
    /// Plants `faults` in queue number `queue` of a device. Each queue has its own random numbers.
    #[must_use]
    pub fn new(inner: D, faults: &[Planted], queue: u16) -> Self {
        let (held, planted) = (Held::default(), Vec::new());
        let (sending, losses, read_errors) = Default::default();
        let mut faulty = Self { inner, queue, planted, held, sending, losses, read_errors };
        faulty.plant(faults);
        faulty
    }

    /// Plants these faults in place of those before. They hit frames that are sent from now on.
    pub fn plant(&mut self, faults: &[Planted]) {
        let queue = self.queue.into();
        let is_drop = |planted: &Planted| planted.hit == Hit::Drop;
        let receives = |planted: &Planted| planted.concerns(Direction::Rx);
        self.planted = faults.to_vec();
        self.sending = Faults::new(faults, queue, |it| it.concerns(Direction::Tx));
        self.losses = Faults::new(faults, queue, |it| receives(it) && is_drop(it));
        self.read_errors = Faults::new(faults, queue, |it| receives(it) && !is_drop(it));
    }

    /// The faults that are planted.
    #[must_use]
    pub fn planted(&self) -> &[Planted] {
        &self.planted
    }

    /// The datapath inside.
    pub const fn within(&self) -> &D {
        &self.inner
    }

    /// The datapath inside.
    pub const fn within_mut(&mut self) -> &mut D {
        &mut self.inner
    }

    /// What hits the next frame on its way to a guest's receive ring, and in which direction.
    fn strike_forwarded(&mut self) -> Option<(Direction, Hit)> {
        if let Some(hit) = self.sending.strike() {
            return Some((Direction::Tx, hit));
        }
        self.sending.passed(1);
        let hit = self.losses.strike().or_else(|| self.read_errors.strike())?;
        Some((Direction::Rx, hit))
    }
}

/// What becomes of a frame that is hit while it is sent.
fn refusal(hit: Hit) -> Refusal {
    match hit {
        Hit::Drop => Refusal::Lost(DropCause::TxFault),
        Hit::Error(errno) => Refusal::of(&io::Error::from_raw_os_error(errno)),
    }
}

impl<D: Datapath> Wrapper for Faulty<D> {
    type Inner = D;

    fn inner(&self) -> &D {
        &self.inner
    }

    fn inner_mut(&mut self) -> &mut D {
        &mut self.inner
    }
}

impl<D: Datapath> Faulty<D> {
    /// Sends frames, some of which may be hit.
    #[cold]
    fn transmit_some(&mut self, frames: Frames<'_, '_>) -> Transmitted {
        let mut done = Transmitted::default();
        let holds = self.inner.in_place().is_some();
        while done.taken < frames.len() {
            let passing = self.sending.passing(frames.len() - done.taken);
            if passing > 0 {
                let sent = self.inner.transmit(frames.skip(done.taken).take(passing));
                self.sending.passed(sent.taken);
                done.add(&sent);
                if holds {
                    self.held.pass(sent.taken);
                }
                if sent.taken < passing {
                    break;
                }
            } else if let Some(hit) = self.sending.strike() {
                match refusal(hit) {
                    Refusal::Later => break,
                    Refusal::Lost(cause) if holds => self.held.lose(cause),
                    Refusal::Lost(cause) => done.drops.add(cause),
                }
                done.taken += 1;
            }
        }
        done
    }

    /// Receives frames, some of which may be hit.
    #[cold]
    fn receive_some(&mut self, room: &mut GuestRoom<'_, '_>) -> io::Result<Look> {
        if !self.read_errors.is_empty() && self.inner.has_frames() {
            if let Some(Hit::Error(errno)) = self.read_errors.strike() {
                return Err(io::Error::from_raw_os_error(errno));
            }
            self.read_errors.passed(1);
        }
        if !self.losses.is_empty() {
            // Otherwise bursts would decide which frames are merged to one packet, and lost as one.
            room.disable_gro();
        }
        loop {
            let before = room.frames();
            room.lose_after(self.losses.passing(usize::MAX));
            let looked = self.inner.receive(room);
            let lost = room.lose_none();
            self.losses.passed(room.frames() - before - usize::from(lost));
            if lost {
                self.losses.strike();
            }
            let look = looked?;
            if !lost || look == Look::Drained || room.is_full() {
                return Ok(look);
            }
        }
    }
}

impl<D: Datapath> Datapath for Faulty<D> {
    #[inline]
    fn transmit(&mut self, frames: Frames<'_, '_>) -> Transmitted {
        if !self.sending.is_empty() {
            return self.transmit_some(frames);
        }
        let done = self.inner.transmit(frames);
        if self.inner.in_place().is_some() {
            self.held.pass(done.taken);
        }
        done
    }

    #[inline]
    fn receive(&mut self, room: &mut GuestRoom<'_, '_>) -> io::Result<Look> {
        if self.losses.is_empty() && self.read_errors.is_empty() {
            return self.inner.receive(room);
        }
        self.receive_some(room)
    }

    #[inline]
    fn in_place(&mut self) -> Option<&mut impl InPlace> {
        self.inner.in_place().is_some().then_some(self)
    }

    #[inline]
    fn observer(&mut self) -> Option<&mut impl Observer> {
        self.inner.observer()
    }
}

impl<D: Datapath> InPlace for Faulty<D> {
    fn attach(&mut self, memory: &GuestMemory) -> io::Result<()> {
        self.inner.in_place().map_or(Ok(()), |inner| inner.attach(memory))
    }

    fn detach(&mut self) {
        self.held.clear();
        if let Some(inner) = self.inner.in_place() {
            inner.detach();
        }
    }

    fn sent(&mut self) -> Transmitted {
        let sent = self.inner.in_place().map(InPlace::sent).unwrap_or_default();
        self.held.settle(sent)
    }

    fn transmit_copies(&mut self, frames: Frames<'_, '_>) -> Transmitted {
        // Faults are planted in the guest's frames.
        self.inner.in_place().map(|inner| inner.transmit_copies(frames)).unwrap_or_default()
    }
}

impl<F: Forward> Faulty<F> {
    /// Carries frames, some of which may be hit.
    #[cold]
    fn forward_some(
        &mut self,
        frames: Frames<'_, '_>,
        room: &mut GuestRoom<'_, '_>,
    ) -> Transmitted {
        let mut done = Transmitted::default();
        while done.taken < frames.len() && !room.is_full() {
            let faults = [&self.sending, &self.losses, &self.read_errors];
            let left = frames.len() - done.taken;
            let passing = faults.iter().map(|faults| faults.passing(left)).min().unwrap_or(left);
            if passing > 0 {
                let sent = self.inner.forward(frames.skip(done.taken).take(passing), room);
                for faults in [&mut self.sending, &mut self.losses, &mut self.read_errors] {
                    faults.passed(sent.taken);
                }
                done.add(&sent);
                if sent.taken < passing {
                    break;
                }
            } else if let Some((direction, hit)) = self.strike_forwarded() {
                match (direction, refusal(hit)) {
                    (_, Refusal::Later) => break,
                    (Direction::Tx, Refusal::Lost(cause)) => done.drops.add(cause),
                    // It was sent, and its receiver does not get it.
                    (Direction::Rx, Refusal::Lost(_)) => {
                        let frame = frames.skip(done.taken).take(1).iter().next();
                        let len = frame.map_or(0, |frame| u32::try_from(frame.len()).unwrap_or(0));
                        done.bytes = done.bytes.saturating_add(len);
                        let is_drop = hit == Hit::Drop;
                        room.lose(if is_drop { DropCause::RxFault } else { DropCause::RxError });
                    }
                }
                done.taken += 1;
            }
        }
        done
    }
}

impl<F: Forward> Forward for Faulty<F> {
    #[inline]
    fn forward(&mut self, frames: Frames<'_, '_>, room: &mut GuestRoom<'_, '_>) -> Transmitted {
        if self.planted.is_empty() {
            return self.inner.forward(frames, room);
        }
        self.forward_some(frames, room)
    }

    #[inline]
    fn observer(&mut self) -> Option<&mut impl Observer> {
        self.inner.observer()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Which of so many frames are hit.
    fn hits(text: &str, queue: u64, frames: usize) -> Vec<usize> {
        let mut faults = Faults::new(&[text.parse().unwrap()], queue, |_| true);
        let (mut at, mut hits) = (0, Vec::new());
        while at < frames {
            let passing = faults.passing(7.min(frames - at));
            faults.passed(passing);
            at += passing;
            if passing == 0 && faults.strike().is_some() {
                hits.push(at);
                at += 1;
            }
        }
        hits
    }

    #[test]
    fn the_same_seed_hits_the_same_frames_and_as_many_as_was_said() {
        let hit = hits("drop=0.1,seed=3", 0, 100_000);
        assert_eq!(hit, hits("drop=0.1,seed=3", 0, 100_000));
        assert!((9_500..10_500).contains(&hit.len()), "{}", hit.len());
        assert_ne!(hit, hits("drop=0.1,seed=4", 0, 100_000));
        assert_ne!(hit, hits("drop=0.1,seed=3", 1, 100_000), "each queue has its own");
        let far_apart: Vec<_> = hits("drop=0.000001", 0, 100_000);
        assert!(far_apart.len() < 3, "{far_apart:?}");
        assert_eq!(hits("drop,every=5", 0, 20), [4, 9, 14, 19]);
        assert_eq!(hits("drop", 0, 3), [0, 1, 2]);
        assert!(hits("drop=1e-300", 0, 1000).is_empty());
    }

    #[test]
    fn two_faults_hit_one_after_the_other() {
        let planted = ["drop,every=2", "error:EIO,every=3"].map(|text| text.parse().unwrap());
        let mut faults = Faults::new(&planted, 0, |_| true);
        let mut hits = Vec::new();
        for _ in 0..7 {
            hits.push(if faults.passing(1) == 0 { faults.strike() } else { None });
            if hits.last() == Some(&None) {
                faults.passed(1);
            }
        }
        let (drop, error) = (Some(Hit::Drop), Some(Hit::Error(libc::EIO)));
        // Both mean the sixth: the first that was named has it, the other one the next.
        assert_eq!(hits, [None, drop, error, drop, None, drop, error]);
    }
}
