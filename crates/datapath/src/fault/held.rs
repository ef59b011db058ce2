//! Frames sent from the guest's memory, some of them lost by a planted fault.

use std::collections::VecDeque;

use burst_trace::DropCause;

use crate::Transmitted;

/// Frames in the order in which they were taken: `None` for one that the datapath holds, else the cause of its loss.
#[derive(Debug, Default)]
pub struct Held(VecDeque<Option<DropCause>>);

impl Held {
    /// The datapath took `count` more frames.
    pub fn pass(&mut self, count: usize) {
        self.0.extend(std::iter::repeat_n(None, count));
    }

    /// The next frame was lost.
    pub fn lose(&mut self, cause: DropCause) {
        self.0.push_back(Some(cause));
    }

    /// Adds lost frames to the outcome of those that the datapath held, in order.
    pub fn settle(&mut self, sent: Transmitted) -> Transmitted {
        let (mut done, mut left) = (sent, sent.taken);
        while let Some(&oldest) = self.0.front() {
            match oldest {
                Some(cause) => {
                    done.drops.add(cause);
                    done.taken += 1;
                }
                None if left > 0 => left -= 1,
                None => break,
            }
            self.0.pop_front();
        }
        done
    }

    /// Forgets all frames.
    pub fn clear(&mut self) {
        self.0.clear();
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
    }
}
