//! What of a row is compared with other rows.

use crate::composition::Composition;
use crate::plan::Load;
use crate::talker::Talker;

/// One measurement of a row.
#[derive(Debug)]
pub(crate) struct Repeat {
    /// From 0.
    pub repeat: usize,
    /// The median round trip, nanoseconds; `None` if nothing came back.
    pub p50_ns: Option<u64>,
    /// Where the mean round trip went.
    pub composition: Option<Composition>,
}

/// A row, as it is compared.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Compared<'a> {
    /// The name of the case.
    pub variant: &'a str,
    /// What ran beside the probes.
    pub load: Load,
    /// How the talker was scheduled.
    pub talker: Talker,
    /// Where the mean round trip of all repeats went.
    pub composition: Option<&'a Composition>,
    /// Each repeat by itself.
    pub each: &'a [Repeat],
}

impl Compared<'_> {
    /// Whether only the variants differ.
    pub(crate) fn is_beside(&self, other: &Self) -> bool {
        (self.load, self.talker) == (other.load, other.talker)
    }
}

/// What both rows have in common, after the word load.
pub(crate) fn setting(load: Load, talker: Talker) -> String {
    match talker {
        Talker::Default => load.name().into(),
        talker => format!("{}, talker {}", load.name(), talker.name()),
    }
}
