//! Frames sent from the guest's memory, some of them lost by a planted fault.

use std::collections::VecDeque;

use burst_trace::DropCause;

use crate::Transmitted;

/// Frames in the order in which they were taken.
#[derive(Debug, Default)]
pub struct Held {
    /// Number of the oldest frames, none of which is lost: all of them while no fault is planted.
    oldest: usize,
    /// The others: `None` for one that the datapath holds, else the cause of its loss.
    rest: VecDeque<Option<DropCause>>,
}

impl Held {
    /// The datapath took `count` more frames.
    #[inline]
    pub fn pass(&mut self, count: usize) {
        if self.rest.is_empty() {
            self.oldest += count;
        } else {
            self.rest.extend(std::iter::repeat_n(None, count));
        }
    }

    /// The next frame was lost.
    pub fn lose(&mut self, cause: DropCause) {
        self.rest.push_back(Some(cause));
    }

    /// Adds lost frames to the outcome of those that the datapath held, in order.
    pub fn settle(&mut self, sent: Transmitted) -> Transmitted {
        let first = sent.taken.min(self.oldest);
        self.oldest -= first;
        let (mut done, mut left) = (sent, sent.taken - first);
        while self.oldest == 0
            && let Some(&next) = self.rest.front()
        {
            match next {
                Some(cause) => {
                    done.drops.add(cause);
                    done.taken += 1;
                }
                None if left > 0 => left -= 1,
                None => break,
            }
            self.rest.pop_front();
        }
        done
    }

    /// Forgets all frames.
    pub fn clear(&mut self) {
        *self = Self::default();
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn lost_frames_come_back_in_their_place() {
        let mut held = Held::default();
        held.pass(2);
        held.lose(DropCause::TxFault);
        held.pass(1);
        let taken = |held: &mut Held, taken| {
            let done = held.settle(Transmitted { taken, ..Transmitted::default() });
            (done.taken, done.drops.total())
        };
        assert_eq!(taken(&mut held, 1), (1, 0));
        assert_eq!(taken(&mut held, 1), (2, 1));
        assert_eq!(taken(&mut held, 1), (1, 0));
        assert_eq!(taken(&mut held, 0), (0, 0));
        held.pass(3);
        assert_eq!(taken(&mut held, 1), (1, 0), "without a fault");
        held.lose(DropCause::TxFault);
        assert_eq!(taken(&mut held, 1), (1, 0), "one before it is on its way");
        held.pass(1);
        assert_eq!(taken(&mut held, 2), (3, 1));
    }
}
