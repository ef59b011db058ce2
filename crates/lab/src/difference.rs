//! Why the mean round trips of two rows differ: part by part.
//!
//! The mean round trip is the sum of the means of its parts. So the difference of two means is the sum of the parts'
//! differences, exactly. A part that one row lacks counts as 0 there: without a recording of ringscoped, its parts are in
//! what lies between.

use comfy_table::{CellAlignment, Table, presets};
use report::journey::{Part, Side};
use report::units::time;
use serde::Serialize;

use crate::case::{Change, has, variant_of};
use crate::compared::{Compared, setting};
use crate::composition::{Composition, Share};
use crate::plan::Load;
use crate::talker::Talker;

/// Most parts that the paragraph names.
const NAMED_MAX: usize = 4;
/// Where the XDP program of tap-xdp runs: within the daemon's call for frames from the guest, and after the talker's for
/// frames to it.
const XDP_RUNS: [(Side, &str); 2] = [(Side::Tx, "egress"), (Side::Host, "host-send")];

/// The difference of two rows' mean round trips.
#[derive(Clone, Debug, Serialize)]
pub struct Difference {
    /// The row that is compared with.
    pub against: String,
    /// The row that is explained.
    pub variant: String,
    /// What ran beside the probes of both.
    pub load: Load,
    /// How the talker of both was scheduled.
    pub talker: Talker,
    /// Mean round trip of `against`, of its joined probes, nanoseconds.
    pub against_ns: f64,
    /// Mean round trip of `variant`.
    pub variant_ns: f64,
    /// How much longer that of `variant` is: the sum of the parts' differences.
    pub difference_ns: f64,
    /// The largest difference first.
    pub parts: Vec<PartDifference>,
    /// All of it in words.
    pub paragraph: String,
}

/// The difference of a part.
#[derive(Clone, Debug, Serialize)]
pub struct PartDifference {
    /// The part.
    #[serde(flatten)]
    pub part: Part,
    /// Its mean in `against`, nanoseconds; `None` if that row has no such part.
    pub against_ns: Option<f64>,
    /// Its mean in `variant`.
    pub variant_ns: Option<f64>,
    /// How much longer it is in `variant`.
    pub difference_ns: f64,
    /// By how much the means of one row's repeats differ, and for what lies between also by how much it may be wrong.
    /// `None` if a row has one repeat.
    pub noise_ns: Option<f64>,
    /// Whether the difference is not larger than that.
    pub is_noise: Option<bool>,
}

/// The differences that a reader asks for: of two rows that are alone, of a message in the XDP program, and of AF_XDP.
pub(crate) fn differences(rows: &[Compared<'_>]) -> Vec<Difference> {
    let mut differences = Vec::new();
    for row in rows {
        let beside: Vec<_> = rows.iter().filter(|it| it.is_beside(row)).collect();
        let named = |name: &str| beside.iter().find(|it| it.variant == name).copied();
        let against = match (&beside[..], row.variant) {
            ([first, second], name) if second.variant == name => Some(*first),
            (_, name) if has(name, Change::Printk) => named(variant_of(name)),
            (_, "af-xdp") => named("tap-bridge"),
            _ => None,
        };
        differences.extend(against.and_then(|it| Difference::of(it, row)));
    }
    differences
}

impl Difference {
    /// `None` if a row has no joined probes.
    fn of(against: &Compared<'_>, row: &Compared<'_>) -> Option<Self> {
        let (before, after) = (against.composition?, row.composition?);
        let mut parts: Vec<Part> = before.shares.iter().map(Share::part).collect();
        let more = after.shares.iter().map(Share::part).filter(|it| before.mean_of(*it).is_none());
        parts.extend(more);
        let bound_ns = before.bound_ns + after.bound_ns;
        let mut parts: Vec<_> = parts
            .into_iter()
            .map(|part| {
                let (against_ns, variant_ns) = (before.mean_of(part), after.mean_of(part));
                let spread = spread(against, part).zip(spread(row, part));
                let noise_ns = spread.map(|(one, other)| {
                    let is_bounded = part.side == Side::Between;
                    one.max(other).max(if is_bounded { bound_ns } else { 0.0 })
                });
                let difference_ns = variant_ns.unwrap_or(0.0) - against_ns.unwrap_or(0.0);
                let is_noise = noise_ns.map(|it| difference_ns.abs() <= it);
                PartDifference { part, against_ns, variant_ns, difference_ns, noise_ns, is_noise }
            })
            .collect();
        parts.sort_by(|one, other| other.difference_ns.abs().total_cmp(&one.difference_ns.abs()));
        let mut difference = Self {
            against: against.variant.into(),
            variant: row.variant.into(),
            load: row.load,
            talker: row.talker,
            against_ns: before.round_trip_ns,
            variant_ns: after.round_trip_ns,
            difference_ns: after.round_trip_ns - before.round_trip_ns,
            parts,
            paragraph: String::new(),
        };
        difference.paragraph = difference.say();
        Some(difference)
    }

    fn say(&self) -> String {
        let Self { against, variant, parts, .. } = self;
        let word = if self.difference_ns < 0.0 { "shorter" } else { "longer" };
        let mut text = format!(
            "Load {}: the mean round trip of {variant} is {} {word} than that of {against} ({} and {}).",
            setting(self.load, self.talker),
            time(self.difference_ns.abs()),
            time(self.variant_ns),
            time(self.against_ns),
        );
        let large: Vec<_> = parts.iter().filter(|it| it.is_noise != Some(true)).collect();
        let named: Vec<_> = large.iter().take(NAMED_MAX).map(|it| it.said()).collect();
        if !named.is_empty() {
            text += &format!(" The largest differences: {}.", named.join(", "));
        }
        let (noise, all) = (parts.iter().filter(|it| it.is_noise == Some(true)), parts.len());
        text += &if parts.iter().all(|it| it.is_noise.is_none()) {
            " One repeat does not show how far repeats differ, so any of them may be noise."
                .to_owned()
        } else {
            let count = noise.clone().count();
            let sum: f64 = noise.map(|it| it.difference_ns).sum();
            format!(
                " {count} of {all} parts differ by less than repeats of one row do (within the noise): {} together.",
                signed_time(sum)
            )
        };
        if has(variant, Change::Printk) {
            text += &self.say_printk();
        }
        text
    }

    fn say_printk(&self) -> String {
        let mut text = " The XDP program, qemu-scripts/variants/tap-xdp.bpf.c, calls bpf_printk for each frame.".to_owned();
        let runs = self.parts.iter().filter(|it| XDP_RUNS.contains(&(it.part.side, it.part.stage)));
        let slower: Vec<_> =
            runs.filter(|it| it.difference_ns > 0.0).map(PartDifference::said).collect();
        text += &match &slower[..] {
            [] => " It runs in tx egress and host-send, neither of which is slower here: the noise is larger.".to_owned(),
            _ => format!(" It runs in tx egress and host-send; slower are {}.", slower.join(" and ")),
        };
        text
    }
}

impl PartDifference {
    /// Its name: ringscoped's stages have the same names in both directions.
    fn name(&self) -> String {
        match self.part.side {
            Side::Rx | Side::Tx => format!("{} {}", self.part.side.name(), self.part.stage),
            Side::Host | Side::Guest | Side::Between => self.part.stage.into(),
        }
    }

    fn said(&self) -> String {
        format!("{} {}", self.name(), signed_time(self.difference_ns))
    }
}

/// How far the means of a part differ between the repeats of a row; `None` with fewer than two.
fn spread(row: &Compared<'_>, part: Part) -> Option<f64> {
    let of = |it: &Composition| it.mean_of(part).unwrap_or(0.0);
    let means: Vec<f64> =
        row.each.iter().filter_map(|it| it.composition.as_ref().map(of)).collect();
    let least = means.iter().copied().reduce(f64::min)?;
    let most = means.iter().copied().reduce(f64::max)?;
    (means.len() > 1).then_some(most - least)
}

/// A time with its sign.
pub(crate) fn signed_time(ns: f64) -> String {
    let sign = if ns < 0.0 { "" } else { "+" };
    format!("{sign}{}", time(ns))
}

/// The differences, for a person to read.
pub(crate) fn to_text(differences: &[Difference]) -> String {
    differences.iter().map(|it| format!("\n{}\n\n{}\n", it.paragraph, table(it))).collect()
}

fn table(difference: &Difference) -> String {
    let mut table = Table::new();
    table.load_preset(presets::NOTHING);
    table.set_header(["part", &difference.against, &difference.variant, "difference", "noise", ""]);
    let or_none = |ns: Option<f64>| ns.map_or_else(|| "-".into(), time);
    let is_there =
        |it: &&PartDifference| [it.against_ns, it.variant_ns].iter().flatten().any(|&ns| ns != 0.0);
    for it in difference.parts.iter().filter(is_there) {
        table.add_row([
            it.name(),
            or_none(it.against_ns),
            or_none(it.variant_ns),
            signed_time(it.difference_ns),
            or_none(it.noise_ns),
            if it.is_noise == Some(true) { "within the noise".into() } else { String::new() },
        ]);
    }
    table.add_row([
        "round trip".into(),
        time(difference.against_ns),
        time(difference.variant_ns),
        signed_time(difference.difference_ns),
        String::new(),
        String::new(),
    ]);
    for column in table.column_iter_mut().skip(1).take(4) {
        column.set_cell_alignment(CellAlignment::Right);
    }
    table.trim_fmt()
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::fixture::{Repeat, results};

    fn row<'a>(name: &'a str, parts: &[(u64, u64)]) -> (&'a str, Vec<Option<Repeat>>) {
        (name, parts.iter().map(|&(turn, between)| Some(Repeat { turn, between })).collect())
    }

    #[test]
    fn parts_add_up_and_the_largest_is_the_first() {
        let results = results(&[
            row("tap-bridge", &[(1000, 20_000), (1200, 21_000)]),
            row("tap-bridge+again", &[(1100, 50_000), (1200, 52_000)]),
        ]);
        let [it] = &results.differences[..] else { panic!("{results:?}") };
        assert_eq!((it.against.as_str(), it.variant.as_str()), ("tap-bridge", "tap-bridge+again"));
        assert_eq!(it.difference_ns, 30_550.0);
        assert_eq!(it.parts.iter().map(|it| it.difference_ns).sum::<f64>(), it.difference_ns);
        let of =
            |n: usize| (it.parts[n].part.stage, it.parts[n].difference_ns, it.parts[n].is_noise);
        assert_eq!(of(0), ("remainder", 30_500.0, Some(false)));
        assert_eq!(of(1), ("guest-turn", 50.0, Some(true)));
        assert!(
            it.paragraph.contains("30.6 µs longer than that of tap-bridge"),
            "{}",
            it.paragraph
        );
        assert!(
            it.paragraph.contains("The largest differences: remainder +30.5 µs."),
            "{}",
            it.paragraph
        );
        let text = to_text(&results.differences);
        assert!(text.contains("within the noise"), "{text}");
    }

    #[test]
    fn one_repeat_does_not_show_the_noise() {
        let results =
            results(&[row("tap-bridge", &[(1000, 20_000)]), row("af-xdp", &[(3000, 20_000)])]);
        let [it] = &results.differences[..] else { panic!("{results:?}") };
        assert_eq!((it.parts[0].part.stage, it.parts[0].is_noise), ("guest-turn", None));
        assert!(it.paragraph.contains("One repeat does not show"), "{}", it.paragraph);
    }

    #[test]
    fn af_xdp_is_explained_beside_tap_bridge_and_a_message_beside_its_variant() {
        let rows = ["host-host", "tap-bridge", "tap-xdp", "tap-xdp+printk", "af-xdp"];
        let results = results(&rows.map(|it| row(it, &[(1000, 20_000); 2])));
        let pairs: Vec<_> = results
            .differences
            .iter()
            .map(|it| (it.against.as_str(), it.variant.as_str()))
            .collect();
        assert_eq!(pairs, [("tap-xdp", "tap-xdp+printk"), ("tap-bridge", "af-xdp")]);
        let said = &results.differences[0].paragraph;
        assert!(said.contains("qemu-scripts/variants/tap-xdp.bpf.c, calls bpf_printk"), "{said}");
    }
}
