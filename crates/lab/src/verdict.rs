//! Whether one row is faster than another.
//!
//! The unit of the test is the repeat, not the probe: the probes of one build have much in common, and a variant that is
//! built again can be faster or slower than before (Kalibera and Jones, "Rigorous Benchmarking in Reasonable Time", ISMM
//! 2013). A repeat measures all rows in turn, the next one in the opposite order. So the medians of two rows in the same
//! repeat are a pair, what drifts on the host is in both, and the pairs' differences are tested: [`signed_rank`].
//!
//! [`signed_rank`]: crate::signed_rank

use report::units::{percent, time};
use serde::Serialize;

use crate::case::{Change, has, variant_of};
use crate::compared::{Compared, setting};
use crate::difference::signed_time;
use crate::plan::Load;
use crate::signed_rank::SignedRank;
use crate::talker::Talker;

/// The level of each test: of 100 pairs of rows that are equal, at most 5 are called different.
pub const LEVEL: f64 = 0.05;
/// The fewest pairs of which any result is improbable enough for the level: 2 of 64.
pub const PAIRS_MIN: usize = 6;

/// How two rows compare.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize)]
#[serde(rename_all = "kebab-case")]
pub enum Outcome {
    /// The second one has shorter round trips.
    Faster,
    /// It has longer ones.
    Slower,
    /// The difference can be chance.
    NotToBeToldApart,
    /// Fewer than [`PAIRS_MIN`] repeats have both.
    TooFewRepeats,
}

/// A row against another one, under the same load.
#[derive(Clone, Debug, Serialize)]
pub struct Verdict {
    /// The row that is compared with.
    pub against: String,
    /// The row that the verdict is about.
    pub variant: String,
    /// What ran beside the probes of both.
    pub load: Load,
    /// How the talker of both was scheduled.
    pub talker: Talker,
    /// Repeats that have both.
    pub pairs: usize,
    /// What the test says.
    pub outcome: Outcome,
    /// The estimate of the difference of the median round trips, nanoseconds; below 0: `variant` is faster.
    pub difference_ns: Option<f64>,
    /// The interval of the difference, in which it lies with a confidence of 1 - `level`.
    pub interval_ns: Option<(f64, f64)>,
    /// The probability of such a difference between equal rows.
    pub p: Option<f64>,
    /// The level of the test.
    pub level: f64,
    /// All of it as a sentence.
    pub sentence: String,
}

/// Each row against another: a variant with a change against the variant itself, and the others against the first row of
/// the same load.
pub(crate) fn verdicts(rows: &[Compared<'_>]) -> Vec<Verdict> {
    rows.iter().filter_map(|row| Some(Verdict::of(base_of(rows, row)?, row))).collect()
}

/// The row that this one is compared with; `None` for the first one.
fn base_of<'a>(rows: &'a [Compared<'a>], row: &Compared<'_>) -> Option<&'a Compared<'a>> {
    let mut beside = rows.iter().filter(|it| it.is_beside(row));
    let plain = variant_of(row.variant);
    let itself = beside.clone().find(|it| it.variant == plain && plain != row.variant);
    itself.or_else(|| beside.next()).filter(|it| it.variant != row.variant)
}

impl Verdict {
    fn of(against: &Compared<'_>, row: &Compared<'_>) -> Self {
        let (mut differences, mut before) = (Vec::new(), Vec::new());
        for one in against.each {
            let other = row.each.iter().find(|it| it.repeat == one.repeat);
            if let Some((first, second)) = one.p50_ns.zip(other.and_then(|it| it.p50_ns)) {
                differences.push(second as f64 - first as f64);
                before.push(first as f64);
            }
        }
        let test = SignedRank::of(&differences, LEVEL);
        let outcome = match test.and_then(|it| it.interval) {
            None => Outcome::TooFewRepeats,
            Some((_, high)) if high < 0.0 => Outcome::Faster,
            Some((low, _)) if low > 0.0 => Outcome::Slower,
            Some(_) => Outcome::NotToBeToldApart,
        };
        let mut verdict = Self {
            against: against.variant.into(),
            variant: row.variant.into(),
            load: row.load,
            talker: row.talker,
            pairs: differences.len(),
            outcome,
            difference_ns: test.map(|it| it.estimate),
            interval_ns: test.and_then(|it| it.interval),
            p: test.filter(|it| it.interval.is_some()).map(|it| it.p),
            level: LEVEL,
            sentence: String::new(),
        };
        verdict.sentence = verdict.say(before.iter().sum::<f64>() / before.len().max(1) as f64);
        verdict
    }

    /// The sentence; `before_ns` is the round trip that is compared with.
    fn say(&self, before_ns: f64) -> String {
        let Self { variant, against, pairs, .. } = self;
        let setting = setting(self.load, self.talker);
        let start = match cost(variant) {
            Some(of) => format!("{of}, load {setting}"),
            None => format!("Load {setting}"),
        };
        let Some(difference) = self.difference_ns else {
            return format!("{start}: no repeat has figures of both {variant} and {against}.");
        };
        let word = if difference < 0.0 { "faster" } else { "slower" };
        let size = difference.abs();
        let by = format!(
            "{variant} is {word} than {against} by {} ({})",
            time(size),
            percent(size, before_ns)
        );
        let Some(((low, high), p)) = self.interval_ns.zip(self.p) else {
            return format!(
                "{start}: {by}, which may be chance: a verdict needs {PAIRS_MIN} repeats or more, found {pairs}."
            );
        };
        let test = format!("{pairs} pairs, p = {p:.3}");
        match self.outcome {
            Outcome::Faster => {
                format!("{start}: {by}, interval {} to {}; {test}.", time(-high), time(-low))
            }
            Outcome::Slower => {
                format!("{start}: {by}, interval {} to {}; {test}.", time(low), time(high))
            }
            _ => format!(
                "{start}: {variant} and {against} are not to be told apart: the difference is between {} and {}; {test}.",
                signed_time(low),
                signed_time(high)
            ),
        }
    }
}

/// What a change costs, as the sentence about it begins.
fn cost(variant: &str) -> Option<&'static str> {
    if has(variant, Change::Untraced) {
        Some("Cost of tracing")
    } else if has(variant, Change::Printk) {
        Some("Cost of bpf_printk")
    } else {
        None
    }
}

/// What the sentences are based on.
pub(crate) const METHOD: &str = "Each verdict compares the median round trips of two rows, repeat by repeat: Wilcoxon's \
    signed-rank test, exact and two-sided. Of equal rows, it tells apart 5 % or less by mistake. The interval has a \
    confidence of 95 %.";

/// The sentences. Verdicts that need more repeats are one sentence together, unless they are about a change.
pub(crate) fn sentences(verdicts: &[Verdict]) -> Vec<String> {
    let is_said =
        |it: &&Verdict| it.outcome != Outcome::TooFewRepeats || cost(&it.variant).is_some();
    let mut sentences: Vec<_> =
        verdicts.iter().filter(is_said).map(|it| it.sentence.clone()).collect();
    let silent = verdicts.len() - sentences.len();
    if silent > 0 {
        let most = verdicts.iter().map(|it| it.pairs).max().unwrap_or(0);
        sentences.push(format!(
            "No verdict about {silent} row{}: a verdict needs {PAIRS_MIN} repeats or more (--repeats {PAIRS_MIN}), found \
             {most}.",
            if silent == 1 { "" } else { "s" }
        ));
    }
    sentences
}

/// The verdicts, for a person to read.
pub(crate) fn to_text(verdicts: &[Verdict]) -> String {
    match &sentences(verdicts)[..] {
        [] => String::new(),
        sentences => format!("\n{METHOD}\n\n{}\n", sentences.join("\n")),
    }
}

#[cfg(test)]
mod tests {
    use fastrand::Rng;

    use super::*;
    use crate::fixture::{Repeat, results};

    /// A row whose repeats have these times between both ends, in microseconds.
    fn row<'a>(name: &'a str, us: &[u64]) -> (&'a str, Vec<Option<Repeat>>) {
        (name, us.iter().map(|us| Some(Repeat { turn: 1000, between: us * 1000 })).collect())
    }

    #[test]
    fn a_change_is_compared_with_its_variant_and_others_with_the_first_row() {
        let us = [100; 6];
        let rows = ["host-host", "tap-xdp", "tap-xdp+printk", "af-xdp"].map(|it| row(it, &us));
        let pairs: Vec<_> =
            results(&rows).verdicts.into_iter().map(|it| (it.variant, it.against)).collect();
        let expected =
            [("tap-xdp", "host-host"), ("tap-xdp+printk", "tap-xdp"), ("af-xdp", "host-host")];
        assert_eq!(pairs, expected.map(|(one, other)| (one.to_owned(), other.to_owned())));
    }

    #[test]
    fn a_verdict_is_a_sentence_with_its_figures() {
        let before = [100, 101, 102, 103, 104, 105];
        for (name, us, outcome, said) in [
            (
                "af-xdp",
                [90, 90, 90, 90, 90, 90],
                Outcome::Faster,
                "af-xdp is faster than tap-bridge by 12.5 µs",
            ),
            ("af-xdp", [200; 6], Outcome::Slower, "af-xdp is slower than tap-bridge by 97.5 µs"),
            (
                "tap-bridge+again",
                [100, 103, 101, 103, 104, 105],
                Outcome::NotToBeToldApart,
                "not to be told apart",
            ),
            (
                "tap-bridge+untraced",
                [90; 6],
                Outcome::Faster,
                "Cost of tracing, load none: tap-bridge+untraced is",
            ),
        ] {
            let results = results(&[row("tap-bridge", &before), row(name, &us)]);
            let [verdict] = &results.verdicts[..] else { panic!("{results:?}") };
            assert_eq!((verdict.outcome, verdict.pairs), (outcome, 6));
            assert!(verdict.sentence.contains(said), "{}", verdict.sentence);
            assert!(to_text(&results.verdicts).contains(&verdict.sentence));
        }
    }

    #[test]
    fn too_few_repeats_have_no_verdict() {
        let mut late = row("tap-bridge", &[200; 6]);
        late.1[3] = None;
        let results =
            results(&[row("host-host", &[100; 6]), late, row("tap-bridge+untraced", &[90; 6])]);
        let [few, cost] = &results.verdicts[..] else { panic!("{results:?}") };
        assert_eq!((few.outcome, few.pairs, few.interval_ns), (Outcome::TooFewRepeats, 5, None));
        assert_eq!((cost.outcome, cost.pairs), (Outcome::TooFewRepeats, 5));
        let text = to_text(&results.verdicts);
        assert!(text.contains("No verdict about 1 row:"), "{text}");
        assert!(text.contains("tap-bridge+untraced is faster than tap-bridge by 110 µs"), "{text}");
        assert!(
            text.contains("may be chance: a verdict needs 6 repeats or more, found 5"),
            "{text}"
        );
    }

    /// Differences as they come: the host drifts, and of ten repeats this many take much longer than the others.
    fn differences(random: &mut Rng, pairs: usize, shift: f64, long: u32) -> Vec<f64> {
        let one = |random: &mut Rng| {
            let more = if random.u32(..10) < long { 500.0 * random.f64() } else { 0.0 };
            20.0 * random.f64() + more
        };
        let mut drift = 0.0;
        let mut pair = |_| {
            drift += 10.0 * (random.f64() - 0.5);
            let first = 300.0 + drift + one(random);
            300.0 + drift + one(random) + shift - first
        };
        (0..pairs).map(&mut pair).collect()
    }

    /// The share of runs in which a difference is found.
    fn found(pairs: usize, shift: f64, long: u32) -> f64 {
        const RUNS: usize = 2000;
        let mut random = Rng::with_seed(pairs as u64);
        let is_found = |_: &usize| {
            let test = SignedRank::of(&differences(&mut random, pairs, shift, long), LEVEL);
            test.and_then(|it| it.interval).is_some_and(|(low, high)| low > 0.0 || high < 0.0)
        };
        (0..RUNS).filter(is_found).count() as f64 / RUNS as f64
    }

    #[test]
    fn equal_rows_are_rarely_told_apart_and_others_nearly_always() {
        for (pairs, long) in [(6, 1), (8, 0), (10, 1), (15, 0)] {
            let share = found(pairs, 0.0, long);
            // Three standard deviations of 2,000 runs.
            assert!(share <= LEVEL + 0.0147, "{share} of runs of {pairs} equal pairs");
        }
        for (shift, long) in [(30.0, 0), (-30.0, 0), (600.0, 1)] {
            let share = found(10, shift, long);
            assert!(share > 0.99, "{share} of runs with a shift of {shift}");
        }
    }
}
