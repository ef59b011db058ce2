//! The time in which no burst passed because the guest moved to another host.

/// A record's length in words. Not that of [`record`](crate::record), which uses this module.
const WORDS: usize = 8;

/// Ticks in a unit of the times after the first ring started, which have 32 bits in the file: half a microsecond, and half an
/// hour at most.
const UNIT: u32 = 10;

/// How the clocks of the two hosts are related.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Clocks {
    /// It is the same clock: both daemons ran in one boot of one host.
    Same,
    /// By `CLOCK_REALTIME` of both hosts, which differ by at most this many microseconds.
    Within(u32),
    /// By `CLOCK_REALTIME`, but it is not known by how much they differ.
    Unknown,
}

/// The parts of a migration, in order.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct MigrationParts {
    /// From the last burst until the front end had stopped the last ring, ticks. `None` if that is not known; it is then in
    /// `between`.
    pub stopping: Option<u64>,
    /// From then until the new front end had the first ring started.
    pub between: u64,
    /// From then until the end of the first burst. `None` if it is not known when rings started; it is then in `between`.
    pub first_burst: Option<u64>,
}

/// A move to another host, with the times of the bursts before and after it. All times are ticks of one clock; those of one
/// host are exact to each other, however the hosts' clocks are related. What is not known is 0.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Migration {
    /// The end of the last burst on the host before.
    pub before: u64,
    /// When the front end there had stopped the last ring.
    pub stopped: u64,
    /// When the front end there was gone.
    pub left: u64,
    /// When the front end here connected.
    pub connected: u64,
    /// When the first ring was started here.
    pub started: u64,
    /// When the guest was announced here.
    pub announced: u64,
    /// The end of the first burst here.
    pub after: u64,
    /// The end of the first burst that the guest sent here.
    pub sent: u64,
    /// How the hosts' clocks are related.
    pub clocks: Clocks,
    /// The number of the writer that stored it.
    pub writer: u8,
}

impl Migration {
    /// The number of its kind in the file.
    pub(crate) const KIND: u8 = 10;

    /// How long no burst was carried, ticks. It means nothing when the clocks' relation is [`Clocks::Unknown`].
    #[must_use]
    pub const fn total(&self) -> u64 {
        self.after.saturating_sub(self.before)
    }

    /// Its parts. Their sum is the total, whatever a file says.
    #[must_use]
    pub fn parts(&self) -> MigrationParts {
        let after = self.after.max(self.before);
        let within = |at: u64, from: u64| (at != 0).then(|| at.clamp(from, after));
        let stopped = within(self.stopped, self.before);
        let from = stopped.unwrap_or(self.before);
        let started = within(self.started, from);
        MigrationParts {
            stopping: stopped.map(|stopped| stopped - self.before),
            between: started.unwrap_or(after) - from,
            first_burst: started.map(|started| after - started),
        }
    }

    /// Words 0 to 5: before, after, stopped, left, connected, started. Word 6: when it was announced and when the guest first
    /// sent, since rings started, in units, plus 1. Word 7: the clocks, and from bit 32 on their difference.
    pub(crate) fn to_words(self) -> [u64; WORDS] {
        let later = |at: u64| match at {
            0 => 0,
            at => (at.saturating_sub(self.started) >> UNIT).min(u64::from(u32::MAX) - 1) + 1,
        };
        let (clocks, within) = match self.clocks {
            Clocks::Same => (0, 0),
            Clocks::Within(us) => (1, us),
            Clocks::Unknown => (2, 0),
        };
        let kind = u64::from(Self::KIND)
            | clocks << 8
            | u64::from(self.writer) << 24
            | u64::from(within) << 32;
        let sent = later(self.announced) | later(self.sent) << 32;
        [self.before, self.after, self.stopped, self.left, self.connected, self.started, sent, kind]
    }

    /// The migration that `words` hold; `None` when this version does not know how its clocks are related.
    #[expect(clippy::cast_possible_truncation, reason = "fields are cut out of packed words")]
    pub(crate) const fn from_words(words: &[u64; WORDS]) -> Option<Self> {
        let started = words[5];
        let clocks = match (words[7] >> 8) as u16 {
            0 => Clocks::Same,
            1 => Clocks::Within((words[7] >> 32) as u32),
            2 => Clocks::Unknown,
            _ => return None,
        };
        Some(Self {
            before: words[0],
            after: words[1],
            stopped: words[2],
            left: words[3],
            connected: words[4],
            started,
            announced: since(started, words[6] as u32),
            sent: since(started, (words[6] >> 32) as u32),
            clocks,
            writer: (words[7] >> 24) as u8,
        })
    }
}

/// The time that is stored as `later`; 0 if it is not known.
const fn since(started: u64, later: u32) -> u64 {
    match later {
        0 => 0,
        later => started.saturating_add((later as u64 - 1) << UNIT),
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    proptest! {
        #[test]
        fn its_parts_are_in_order_and_their_sum_is_the_total(words: [u64; 6], within: u32) {
            let [before, stopped, left, connected, started, after] = words;
            let migration = Migration {
                before, stopped, left, connected, started, announced: 0, after, sent: 0,
                clocks: Clocks::Within(within), writer: 3,
            };
            let MigrationParts { stopping, between, first_burst } = migration.parts();
            let sum = stopping.unwrap_or(0) + between + first_burst.unwrap_or(0);
            prop_assert_eq!(sum, migration.total());
            prop_assert_eq!(Migration::from_words(&migration.to_words()), Some(migration));
        }

        #[test]
        fn arbitrary_words_are_read_as_they_are_written_or_not_at_all(words: [u64; WORDS]) {
            if let Some(migration) = Migration::from_words(&words) {
                let again = migration.to_words();
                prop_assert_eq!(&again[..6], &words[..6]);
                prop_assert_eq!(Migration::from_words(&again).map(|it| it.after), Some(words[1]));
            }
        }
    }

    #[test]
    fn times_after_the_start_come_back_to_half_a_microsecond() {
        let migration = Migration {
            before: 10,
            stopped: 20,
            left: 0,
            connected: 5,
            started: 1 << 40,
            announced: (1 << 40) + 5_000,
            after: (1 << 40) + 90_000,
            sent: (1 << 40) + 100_000,
            clocks: Clocks::Same,
            writer: 0,
        };
        let read = Migration::from_words(&migration.to_words()).unwrap();
        assert!(migration.announced - read.announced < 1 << UNIT);
        assert!(migration.sent - read.sent < 1 << UNIT);
        assert_eq!(read.left, 0, "what is not known stays so");
    }
}
