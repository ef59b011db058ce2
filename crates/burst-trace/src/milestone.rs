//! What happened to a guest's connection: its front end came and left, its rings started and stopped, it was announced.

/// A record's length in words. Not that of [`record`](crate::record), which uses this module.
const WORDS: usize = 8;

/// What happened.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Step {
    /// A front end connected.
    FrontEndCame,
    /// The front end is gone.
    FrontEndLeft,
    /// The front end started this virtqueue.
    RingStarted(u16),
    /// The front end stopped this virtqueue.
    RingStopped(u16),
    /// A frame was sent that says that this Ethernet address is here. It is also recorded as a burst, which ended at this time.
    Announced([u8; 6]),
}

/// A step, and when the worker learned of it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Milestone {
    /// When, ticks.
    pub at: u64,
    /// What happened.
    pub step: Step,
    /// The number of the writer that stored it.
    pub writer: u8,
}

impl Milestone {
    /// The number of its kind in the file.
    pub(crate) const KIND: u8 = 9;

    /// Words 0 and 1: when. Word 6: the address, or the virtqueue from bit 48 on. Word 7, bits 16 to 23: the step.
    pub(crate) fn to_words(self) -> [u64; WORDS] {
        let ring = |ring: u16| u64::from(ring) << 48;
        let (step, about) = match self.step {
            Step::FrontEndCame => (0, 0),
            Step::FrontEndLeft => (1, 0),
            Step::RingStarted(number) => (2, ring(number)),
            Step::RingStopped(number) => (3, ring(number)),
            Step::Announced([a, b, c, d, e, f]) => {
                (4, u64::from_be_bytes([0, 0, a, b, c, d, e, f]))
            }
        };
        let kind = u64::from(Self::KIND) | step << 16 | u64::from(self.writer) << 24;
        [self.at, self.at, 0, 0, 0, 0, about, kind]
    }

    /// The milestone that `words` hold; `None` when this version does not know its step.
    #[expect(clippy::cast_possible_truncation, reason = "fields are cut out of packed words")]
    pub(crate) const fn from_words(words: &[u64; WORDS]) -> Option<Self> {
        let ring = (words[6] >> 48) as u16;
        let [_, _, a, b, c, d, e, f] = words[6].to_be_bytes();
        let step = match (words[7] >> 16) as u8 {
            0 => Step::FrontEndCame,
            1 => Step::FrontEndLeft,
            2 => Step::RingStarted(ring),
            3 => Step::RingStopped(ring),
            4 => Step::Announced([a, b, c, d, e, f]),
            _ => return None,
        };
        Some(Self { at: words[0], step, writer: (words[7] >> 24) as u8 })
    }
}
