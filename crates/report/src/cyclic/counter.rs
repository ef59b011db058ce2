//! The counter of a stream of cyclic frames: which frames are missing, came twice, or came late.

/// Most frames that a late one may be behind the newest one, in steps of the counter. A short counter has room for fewer.
const WINDOW: u64 = 1024;
/// Most frames lost at once. A counter that moves further belongs to a talker that was started again, or to another stream.
const LOST_MAX: u64 = 1 << 20;
/// Frames in a row that repeat old counters one after the other: the talker began again.
const REPEATED: u64 = 16;
/// The position of a stream's first frame: frames before it have positions too.
const BEGIN: u64 = WINDOW;

/// What a frame's counter says about it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Verdict {
    /// The first frame of the stream.
    First,
    /// The frame after the newest one.
    Next,
    /// Frames are missing before this one.
    Gap {
        /// Number of frames.
        lost: u64,
    },
    /// A frame with this counter came before.
    Duplicate,
    /// It comes after a newer frame.
    Late {
        /// Whether it was counted as lost.
        was_lost: bool,
    },
    /// The counter moved in a way that no lost or late frames explain: counting begins again.
    Jump {
        /// Frames before this one that seemed to be duplicates.
        duplicates: u64,
        /// Frames before this one that seemed to be late.
        late: u64,
    },
}

/// The counter of one stream. Its memory does not grow.
#[derive(Clone, Debug)]
pub struct Counter {
    /// The largest value.
    mask: u64,
    step: u64,
    /// Most steps that a late frame is behind.
    window: u64,
    newest: Option<u64>,
    /// The first counter since counting began.
    first: u64,
    /// The newest counter without its wraps, modulo 2^64.
    number: u64,
    /// The newest frame's position in the order of the counters.
    position: u64,
    /// Whether the frame at a position, modulo [`WINDOW`], came.
    came: [u64; (WINDOW / 64) as usize],
    repeated: Repeated,
}

/// Frames in a row with old counters, each a step after the one before.
#[derive(Clone, Copy, Debug, Default)]
struct Repeated {
    last: u64,
    duplicates: u64,
    late: u64,
}

impl Counter {
    /// A counter of `len` bytes (1 to 8) that grows by `step`.
    pub fn new(len: u8, step: u64) -> Self {
        let mask = u64::MAX >> (64 - 8 * u32::from(len.clamp(1, 8)));
        let step = step.clamp(1, (mask >> 3) + 1);
        let window = (WINDOW - 1).min(((mask >> 2) + 1) / step);
        let (number, position) = (0, BEGIN);
        let (came, repeated) = ([0; (WINDOW / 64) as usize], Repeated::default());
        Self { mask, step, window, newest: None, first: 0, number, position, came, repeated }
    }

    /// The first counter since counting began.
    pub const fn first(&self) -> u64 {
        self.first
    }

    /// The counter of the newest frame without its wraps: 65537 after 65535, 0, 1 with a counter of two bytes.
    pub const fn number(&self) -> u64 {
        self.number
    }

    /// How far `counter` is ahead of the newest one.
    pub fn ahead(&self, counter: u64) -> Option<u64> {
        self.newest.map(|newest| counter.wrapping_sub(newest) & self.mask)
    }

    /// Takes the next frame's counter into account.
    pub fn add(&mut self, counter: u64) -> Verdict {
        let counter = counter & self.mask;
        let Some(newest) = self.newest else {
            self.begin(counter);
            return Verdict::First;
        };
        let behind = newest.wrapping_sub(counter) & self.mask;
        if behind <= self.window * self.step {
            return self.add_old(counter, behind);
        }
        self.repeated = Repeated::default();
        let ahead = counter.wrapping_sub(newest) & self.mask;
        let steps = ahead / self.step;
        if !ahead.is_multiple_of(self.step) || steps > LOST_MAX + 1 {
            self.begin(counter);
            return Verdict::Jump { duplicates: 0, late: 0 };
        }
        self.newest = Some(counter);
        self.number = self.number.wrapping_add(ahead);
        // More than a window forgets everything.
        (1..=steps.min(WINDOW)).for_each(|n| self.mark(self.position + n, false));
        self.position += steps;
        self.mark(self.position, true);
        if steps == 1 { Verdict::Next } else { Verdict::Gap { lost: steps - 1 } }
    }

    fn add_old(&mut self, counter: u64, behind: u64) -> Verdict {
        let steps = behind / self.step;
        if !behind.is_multiple_of(self.step) {
            self.begin(counter);
            return Verdict::Jump { duplicates: 0, late: 0 };
        }
        // At most a window, and positions begin at one.
        let position = self.position - steps;
        let has_come = self.came[place(position).0] & place(position).1 != 0;
        let was_lost = !has_come && position > BEGIN;
        if was_lost || counter != self.repeated.last.wrapping_add(self.step) & self.mask {
            self.repeated = Repeated::default();
        }
        self.repeated.last = counter;
        if self.repeated.duplicates + self.repeated.late + 1 == REPEATED {
            let Repeated { duplicates, late, .. } = self.repeated;
            self.begin(counter);
            return Verdict::Jump { duplicates, late };
        }
        self.mark(position, true);
        if has_come {
            self.repeated.duplicates += 1;
            Verdict::Duplicate
        } else {
            self.repeated.late += u64::from(!was_lost);
            Verdict::Late { was_lost }
        }
    }

    fn begin(&mut self, counter: u64) {
        (self.newest, self.position) = (Some(counter), BEGIN);
        (self.first, self.number) = (counter, counter);
        self.came.fill(0);
        self.mark(BEGIN, true);
        self.repeated = Repeated::default();
    }

    const fn mark(&mut self, position: u64, has_come: bool) {
        let (word, bit) = place(position);
        if has_come {
            self.came[word] |= bit;
        } else {
            self.came[word] &= !bit;
        }
    }
}

/// The word and the bit of a position.
const fn place(position: u64) -> (usize, u64) {
    let at = position % WINDOW;
    ((at / 64) as usize, 1 << (at % 64))
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeSet;

    use proptest::collection::vec;
    use proptest::prelude::*;

    use super::*;

    fn verdicts(counter: &mut Counter, values: &[u64]) -> Vec<Verdict> {
        values.iter().map(|value| counter.add(*value)).collect()
    }

    #[test]
    fn each_kind_of_frame_is_recognised_across_a_wrap() {
        use Verdict::{Duplicate, First, Gap, Late, Next};
        let mut counter = Counter::new(1, 1);
        let found = verdicts(&mut counter, &[254, 255, 0, 3, 3, 2, 2, 4]);
        let lost = Late { was_lost: true };
        assert_eq!(found, [First, Next, Next, Gap { lost: 2 }, Duplicate, lost, Duplicate, Next]);
        assert_eq!(counter.number(), 260);
    }

    #[test]
    fn a_counter_moves_by_its_step() {
        use Verdict::{First, Gap, Jump, Next};
        let mut counter = Counter::new(2, 32);
        let jump = Jump { duplicates: 0, late: 0 };
        assert_eq!(
            verdicts(&mut counter, &[65504, 0, 96, 97, 129, 2]),
            [First, Next, Gap { lost: 2 }, jump, Next, jump]
        );
    }

    #[test]
    fn a_talker_that_begins_again_sends_no_duplicates() {
        let mut counter = Counter::new(4, 1);
        verdicts(&mut counter, &(0..500).collect::<Vec<_>>());
        let again = verdicts(&mut counter, &(0..20).collect::<Vec<_>>());
        assert_eq!(again[..15], [Verdict::Duplicate; 15]);
        assert_eq!(again[15..17], [Verdict::Jump { duplicates: 15, late: 0 }, Verdict::Next]);
        assert_eq!(counter.number(), 19);
        // Far away, that shows at once.
        let jump = Verdict::Jump { duplicates: 0, late: 0 };
        assert_eq!(verdicts(&mut counter, &[1 << 30, 5]), [jump, jump]);
    }

    #[test]
    fn frames_before_the_first_one_were_not_lost() {
        let mut counter = Counter::new(2, 1);
        let late = Verdict::Late { was_lost: false };
        assert_eq!(
            verdicts(&mut counter, &[7, 6, 6, 8]),
            [Verdict::First, late, Verdict::Duplicate, Verdict::Next]
        );
    }

    proptest! {
        /// Against numbers that do not wrap, and a set of all that came.
        #[test]
        fn lost_and_late_frames_are_those_of_an_endless_counter(
            len in 1..9_u8,
            step in 1..5_u64,
            first in any::<u64>(),
            moves in vec((0..4_u8, 1..40_u64), 1..300),
        ) {
            let mut counter = Counter::new(len, step);
            let mask = u64::MAX >> (64 - 8 * u32::from(len));
            let value = |position: u64| first.wrapping_add(position.wrapping_mul(step)) & mask;
            let begin = 1 << 32;
            let (mut newest, mut came) = (begin, BTreeSet::from([begin]));
            assert_eq!(counter.add(value(begin)), Verdict::First);
            // A counter of one byte and four in each step has a window of 16.
            let window = counter.window.min(39);
            let mut lost = 0;
            for (kind, distance) in moves {
                let position = match kind {
                    0 | 1 => newest + 1,
                    2 => newest + distance.min(window),
                    _ => newest - (distance % (window + 1)).min(newest - begin),
                };
                let is_new = came.insert(position);
                match counter.add(value(position)) {
                    Verdict::First | Verdict::Jump { .. } => prop_assert!(false, "{position}"),
                    Verdict::Next => prop_assert_eq!(position, newest + 1),
                    Verdict::Gap { lost: more } => {
                        prop_assert_eq!(position, newest + 1 + more);
                        lost += more;
                    }
                    Verdict::Duplicate => prop_assert!(!is_new),
                    Verdict::Late { was_lost } => {
                        prop_assert!(was_lost && is_new && position < newest);
                        lost -= 1;
                    }
                }
                newest = newest.max(position);
                prop_assert_eq!(value(newest), counter.number() & mask);
                let all = newest - begin + 1;
                prop_assert_eq!(lost, all - came.len() as u64);
            }
        }

        #[test]
        fn any_counters_are_taken(len in 0..20_u8, step: u64, values in vec(any::<u64>(), 0..200)) {
            let mut counter = Counter::new(len, step);
            for value in values {
                counter.add(value);
                // Close to it, as far as that is possible.
                counter.add(value.wrapping_sub(step));
            }
        }
    }
}
