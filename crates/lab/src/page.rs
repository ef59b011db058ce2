//! The comparison as one HTML page that needs nothing from a network: the table, where each mean round trip went, percentile
//! curves, and the slowest probes. Each recording has a page of its own beside it, that of `ringscope report --probes`.
//!
//! The page is `page.html`: its script draws the data that is inserted into it as JSON.

use std::cmp::Reverse;
use std::collections::HashSet;
use std::fs;
use std::io::{self, Write};
use std::path::PathBuf;

use burst_trace::Source;
use report::html::{SLOWEST_PROBES, fill, write_titled_html};
use report::journey::stamps::ProbeId;
use report::journey::{Journeys, Part};
use serde::Serialize;

use crate::capacity;
use crate::joined::{JoinError, Joined, Probe, is_recorded, journeys, recording};
use crate::kept::{DOCTOR, Kept, Manifest, SAMPLES};
use crate::plan::Load;
use crate::results::{Results, ResultsError, Row};
use crate::samples::read_samples;
use crate::table::{GROUPS, NESTED_HEAD, group, head, name};
use crate::talker::Talker;
use crate::verdict::{METHOD, sentences};

const PAGE: &str = include_str!("page/page.html");
/// Number of the slowest probes of each variant and load in the page.
const SLOWEST: usize = 10;
/// Points of a percentile curve while the rest becomes ten times rarer.
const POINTS_A_DECADE: u32 = 12;

#[derive(Serialize)]
struct Page<'a> {
    results: &'a Results,
    head: [String; 2],
    /// What stands before the table of the emulated machine, if there is one.
    nested_head: Option<[String; 3]>,
    /// What `ringscope doctor` said of the host.
    doctor: Option<String>,
    /// With a far host: what the clocks of both hosts follow.
    clocks: Option<String>,
    groups: [&'static str; GROUPS.len()],
    /// About the table of capacities: head, legend, and notes.
    capacity: Vec<String>,
    /// What the verdicts are based on, and their sentences.
    method: &'static str,
    verdicts: Vec<String>,
    /// The directory of the recordings' pages, relative to this one.
    files: Option<&'a str>,
    /// For each of the results' rows.
    details: Vec<Detail>,
}

#[derive(Default, Serialize)]
struct Detail {
    /// Pairs: the logarithm (base 10) of 1/(1-p), and the round trip in ns that the share p of the probes did not exceed.
    curve: Vec<(f64, u64)>,
    /// In the order of time, as in the composition.
    parts: Vec<GroupedPart>,
    /// The slowest one first.
    slowest: Vec<Slow>,
    /// The recordings' pages.
    pages: Vec<Link>,
}

#[derive(Serialize)]
struct GroupedPart {
    #[serde(flatten)]
    part: Part,
    group: &'static str,
}

#[derive(Serialize)]
struct Link {
    /// From 1.
    repeat: usize,
    file: String,
}

/// A slow probe.
#[derive(Serialize)]
struct Slow {
    /// From 1.
    repeat: usize,
    run: u32,
    sequence: u64,
    /// From the intended time.
    total_ns: i64,
    bound_ns: i64,
    parts_ns: Vec<Option<i64>>,
    /// The page of its recording, if there is one that shows it.
    file: Option<String>,
}

/// The page. Links lead to pages in the directory `files`, as [`recordings`] names them; without it there are none.
///
/// # Errors
/// If a file of a measurement is missing or spoilt.
///
/// # Panics
/// Never: all keys are strings.
pub fn to_html(
    kept: &Kept,
    manifest: &Manifest,
    results: &Results,
    files: Option<&str>,
) -> Result<String, ResultsError> {
    let detail = |row| Detail::read(kept, manifest, row, files.is_some());
    let page = Page {
        results,
        head: head(results),
        nested_head: results.nested.as_ref().map(|it| {
            let [measured, host] = head(it);
            [NESTED_HEAD.replace('\n', " "), measured, host]
        }),
        doctor: fs::read_to_string(kept.dir().join(DOCTOR)).ok(),
        clocks: results.peer.as_ref().map(|it| it.to_text().trim().to_owned()),
        groups: GROUPS,
        capacity: capacity::table::texts(&results.capacities),
        method: METHOD,
        verdicts: sentences(&results.verdicts),
        files,
        details: results.rows.iter().map(detail).collect::<Result<_, _>>()?,
    };
    Ok(fill(PAGE, &page).expect("an object with string keys"))
}

impl Detail {
    fn read(
        kept: &Kept,
        manifest: &Manifest,
        row: &Row,
        has_files: bool,
    ) -> Result<Self, ResultsError> {
        let mut detail = Self::default();
        let (mut parts, mut trips) = (Vec::new(), Vec::new());
        for (repeat, directory) in kept.measured(manifest, &row.variant, row.load, row.talker) {
            let samples = read_samples(&directory.join(SAMPLES))?;
            trips.extend(
                samples.iter().filter_map(|it| Some(it.received?.saturating_sub(it.intended))),
            );
            let joined = Joined::read(&directory, &samples)?.of_talker(row.talker);
            let file = (has_files && is_recorded(&directory))
                .then(|| file_name(&row.variant, row.load, row.talker, repeat));
            if parts.is_empty() {
                parts.clone_from(&joined.parts);
            }
            if parts == joined.parts {
                detail.slowest.extend(slowest(joined.probes, repeat, file.as_deref()));
            }
            detail.pages.extend(file.map(|file| Link { repeat: repeat + 1, file }));
        }
        detail.slowest.sort_by_key(|it| Reverse(it.total_ns));
        detail.slowest.truncate(SLOWEST);
        detail.parts = parts.into_iter().map(GroupedPart::new).collect();
        trips.sort_unstable();
        detail.curve = curve(&trips);
        Ok(detail)
    }
}

impl GroupedPart {
    fn new(part: Part) -> Self {
        Self { part, group: GROUPS[group(part.side, part.tier == "K")] }
    }
}

/// The slowest probes of a measurement.
fn slowest(mut probes: Vec<Probe>, repeat: usize, file: Option<&str>) -> Vec<Slow> {
    // The recording's page counts from the time of sending, which may be late.
    let from_sent = |it: &Probe| {
        it.round_trip_ns.saturating_sub(it.parts_ns.first().copied().flatten().unwrap_or(0))
    };
    probes.sort_by_key(|it| Reverse(from_sent(it)));
    let shown: HashSet<ProbeId> = probes.iter().take(SLOWEST_PROBES).map(|it| it.id).collect();
    probes.sort_by_key(|it| Reverse(it.round_trip_ns));
    probes.truncate(SLOWEST);
    let slow = |it: Probe| Slow {
        repeat: repeat + 1,
        run: it.id.run,
        sequence: it.id.sequence,
        total_ns: it.round_trip_ns,
        bound_ns: it.bound_ns,
        file: file.filter(|_| shown.contains(&it.id)).map(str::to_owned),
        parts_ns: it.parts_ns,
    };
    probes.into_iter().map(slow).collect()
}

/// Points of a percentile curve, by nearest rank; the last one is the longest of all.
fn curve(sorted: &[u64]) -> Vec<(f64, u64)> {
    let Some(&max) = sorted.last() else { return Vec::new() };
    let count = sorted.len() as f64;
    let rarest = count.log10();
    let steps = (0..).map(|n: u32| f64::from(n) / f64::from(POINTS_A_DECADE));
    let at = |rarity: f64| {
        let rank = ((1.0 - 10_f64.powf(-rarity)) * count).ceil() as usize;
        sorted[rank.clamp(1, sorted.len()) - 1]
    };
    let below = steps.take_while(|&rarity| rarity < rarest).map(|rarity| (rarity, at(rarity)));
    below.chain([(rarest, max)]).collect()
}

/// The name of a recording's page. A variant's name comes from a file, and must not lead out of the directory.
fn file_name(variant: &str, load: Load, talker: Talker, repeat: usize) -> String {
    let plain = |it: char| if it.is_ascii_alphanumeric() || it == '-' { it } else { '_' };
    let variant: String = variant.chars().map(plain).collect();
    let talker = match talker {
        Talker::Default => String::new(),
        talker => format!("-{}", talker.name()),
    };
    format!("{variant}-{}{talker}-{}.html", load.name(), repeat + 1)
}

/// A recording that has a page of its own.
#[derive(Debug)]
pub struct Recording {
    source: Source,
    directory: PathBuf,
    title: String,
    /// The name of its page.
    pub file: String,
}

/// Opens all recordings.
///
/// # Errors
/// If one cannot be read.
pub fn recordings(
    kept: &Kept,
    manifest: &Manifest,
    results: &Results,
) -> Result<Vec<Recording>, JoinError> {
    let mut recordings = Vec::new();
    for row in &results.rows {
        for (repeat, directory) in kept.measured(manifest, &row.variant, row.load, row.talker) {
            if !is_recorded(&directory) {
                continue;
            }
            let (name, load) = (name(&row.variant, row.talker), row.load.name());
            recordings.push(Recording {
                source: recording(&directory)?,
                title: format!("{name}, load {load}, repeat {}", repeat + 1),
                file: file_name(&row.variant, row.load, row.talker, repeat),
                directory,
            });
        }
    }
    Ok(recordings)
}

impl Recording {
    /// Most records that it can have, each read [`report::html::PASSES`] times.
    #[must_use]
    pub fn records_max(&self) -> usize {
        self.source.records_max()
    }

    /// Joins its probes.
    ///
    /// # Errors
    /// If stamps are missing, spoilt or of another recording.
    pub fn journeys(&self) -> Result<Journeys, JoinError> {
        journeys(&self.directory, &self.source)
    }

    /// Writes its page; `each` is called for every record in each pass.
    ///
    /// # Errors
    /// What `out` answers.
    pub fn write(
        &self,
        out: &mut impl Write,
        journeys: &Journeys,
        each: impl FnMut(),
    ) -> io::Result<()> {
        write_titled_html(out, &self.source, journeys, &self.title, each)
    }
}

#[cfg(test)]
mod tests;
