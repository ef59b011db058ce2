//! The time in which no burst passed because the daemon was started again, or another one took over.

/// A record's length in words. Not that of [`record`](crate::record), which uses this module.
const WORDS: usize = 8;

/// In word 7: the daemon before did not end in order.
const KILLED: u64 = 1 << 8;
/// In word 7: a ring went on where the daemon before stood.
const RESUMED: u64 = 1 << 9;
/// In word 7: the daemon took over from the one before.
const TAKEN_OVER: u64 = 1 << 10;

/// How a daemon ended before another one went on.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Ending {
    /// In order.
    Ended,
    /// It was killed, or crashed.
    Killed,
    /// The next daemon took over from it.
    TakenOver,
}

/// The parts of a restart, in order.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct RestartParts {
    /// Until the new daemon's socket was there, ticks.
    pub no_daemon: u64,
    /// From then until the front end had the first ring started.
    pub front_end: u64,
    /// From then until the first burst was carried.
    pub first_burst: u64,
}

/// A restart of the daemon, or a take-over, with the times of the bursts before and after it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Restart {
    /// The end of the last burst that the daemon before recorded, ticks. At a take-over: when it stopped the rings.
    pub before: u64,
    /// When the new daemon's socket was there, ticks. At a take-over: when the first ring was started.
    pub listening: u64,
    /// When the front end had the first ring started, ticks.
    pub started: u64,
    /// The end of the first burst after it, ticks.
    pub after: u64,
    /// How the daemon before ended.
    pub ending: Ending,
    /// A ring continued at the position of the previous daemon. If none did, the guest or its driver had started again.
    pub is_resumed: bool,
    /// The processes of the daemons before and after it; 0 if they are not known.
    pub processes: [u32; 2],
    /// The number of the writer that stored it.
    pub writer: u8,
}

impl Restart {
    /// The number of its kind in the file.
    pub(crate) const KIND: u8 = 8;

    /// How long no burst was carried, ticks.
    #[must_use]
    pub const fn total(&self) -> u64 {
        self.after.saturating_sub(self.before)
    }

    /// Its parts. Their sum is the total, whatever a file says: a socket may have been there before the last burst.
    #[must_use]
    pub fn parts(&self) -> RestartParts {
        let after = self.after.max(self.before);
        let listening = self.listening.clamp(self.before, after);
        let started = self.started.clamp(listening, after);
        RestartParts {
            no_daemon: listening - self.before,
            front_end: started - listening,
            first_burst: after - started,
        }
    }

    pub(crate) fn to_words(self) -> [u64; WORDS] {
        let ending = match self.ending {
            Ending::Ended => 0,
            Ending::Killed => KILLED,
            Ending::TakenOver => TAKEN_OVER,
        };
        let flags = ending | if self.is_resumed { RESUMED } else { 0 };
        let kind = u64::from(Self::KIND) | flags | u64::from(self.writer) << 24;
        let processes = u64::from(self.processes[0]) | u64::from(self.processes[1]) << 32;
        [self.before, self.after, self.listening, self.started, processes, 0, 0, kind]
    }

    /// The restart that `words` hold; `None` when they have flags that this version does not know.
    #[expect(clippy::cast_possible_truncation, reason = "a field is cut out of a packed word")]
    pub(crate) const fn from_words(words: &[u64; WORDS]) -> Option<Self> {
        let known = Self::KIND as u64 | KILLED | RESUMED | TAKEN_OVER | 0xff << 24;
        if words[7] & !known != 0 {
            return None;
        }
        let ending = match words[7] & (KILLED | TAKEN_OVER) {
            0 => Ending::Ended,
            KILLED => Ending::Killed,
            TAKEN_OVER => Ending::TakenOver,
            _ => return None,
        };
        Some(Self {
            before: words[0],
            after: words[1],
            listening: words[2],
            started: words[3],
            ending,
            is_resumed: words[7] & RESUMED != 0,
            processes: [words[4] as u32, (words[4] >> 32) as u32],
            writer: (words[7] >> 24) as u8,
        })
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn endings() -> impl Strategy<Value = Ending> {
        prop_oneof![Just(Ending::Ended), Just(Ending::Killed), Just(Ending::TakenOver)]
    }

    proptest! {
        #[test]
        fn its_parts_are_in_order_and_their_sum_is_the_total(
            before: u64, listening: u64, started: u64, after: u64, ending in endings(), is_resumed: bool,
            processes: [u32; 2]
        ) {
            let restart =
                Restart { before, listening, started, after, ending, is_resumed, processes, writer: 3 };
            let RestartParts { no_daemon, front_end, first_burst } = restart.parts();
            prop_assert_eq!(no_daemon + front_end + first_burst, restart.total());
            prop_assert_eq!(Restart::from_words(&restart.to_words()), Some(restart));
        }

        #[test]
        fn arbitrary_words_are_a_restart_with_these_words_or_none(words: [u64; WORDS]) {
            if let Some(restart) = Restart::from_words(&words) {
                let again = restart.to_words();
                prop_assert_eq!(&again[..5], &words[..5]);
            }
        }
    }
}
