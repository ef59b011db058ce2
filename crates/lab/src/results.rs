//! Figures of what was kept: one row for each variant and load.

use std::collections::BTreeMap;
use std::fs;
use std::path::PathBuf;

use agent::Figures;
use serde::Serialize;

use crate::capacity::figures::{Capacity, CapacityError, read as read_capacities};
use crate::case::Case;
use crate::compared::{Compared, Repeat};
use crate::composition::Composition;
use crate::difference::{Difference, differences};
use crate::joined::{JoinError, Joined, clocks, stamps};
use crate::kept::{Host, Kept, KeptError, Manifest, PRESSURE, SAMPLES, Tried};
use crate::launches::Launches;
use crate::load::Pressure;
use crate::one_way::OneWay;
use crate::others::{self, Agent, Other, OthersError};
use crate::peer::PeerFacts;
use crate::plan::{Load, Probes};
use crate::samples::{Sample, SamplesError, read_samples};
use crate::talker::{Talker, TalkerCpu};
use crate::verdict::{Verdict, verdicts};

/// A probe is late if it was sent this much after its time, nanoseconds.
const LATE_NS: u64 = 100_000;

/// Everything that tables and files are made of.
#[derive(Debug, Serialize)]
pub struct Results {
    /// The version of ringscope that measured.
    pub version: String,
    /// When it began: seconds since 1970, UTC.
    pub began_unix_s: u64,
    /// The host.
    pub host: Host,
    /// The far host that was the talker, and the clocks of both.
    pub peer: Option<PeerFacts>,
    /// What guests ran in.
    pub accelerator: Option<String>,
    /// The probes of one measurement.
    pub probes: Probes,
    /// The CPU of a pinned talker, if there was one.
    pub talker_cpu: Option<TalkerCpu>,
    /// Repeats that were asked for.
    pub repeats: usize,
    /// In the order of the table.
    pub rows: Vec<Row>,
    /// The capacity of each variant, both ways; empty if it was not measured.
    pub capacities: Vec<Capacity>,
    /// Whether a row is faster than another, and by how much.
    pub verdicts: Vec<Verdict>,
    /// Why the means of two rows differ.
    pub differences: Vec<Difference>,
    /// Loads that cannot run in a variant.
    pub obstacles: Vec<Obstacle>,
    /// Variants that failed, and those with fewer repeats.
    pub troubles: Vec<Trouble>,
    /// What was measured in an emulated machine: functional figures.
    pub nested: Option<Box<Self>>,
}

/// A load that cannot run in a variant.
#[derive(Debug, Serialize)]
pub struct Obstacle {
    /// The variant's name.
    pub variant: String,
    /// The load.
    pub load: Load,
    /// Why.
    pub why: String,
}

/// A variant that has failed.
#[derive(Debug, Serialize)]
pub struct Trouble {
    /// Its name.
    pub variant: String,
    /// How the talker was scheduled, if only that failed.
    pub talker: Option<Talker>,
    /// Why.
    pub why: String,
}

/// A variant under a load.
#[derive(Debug, Serialize)]
pub struct Row {
    /// The name of the case: the variant's, and its changes, as in `tap-xdp+printk`.
    pub variant: String,
    /// What it is.
    pub title: String,
    /// The variant's options that make the changes.
    pub options: BTreeMap<String, String>,
    /// What ran beside the probes.
    pub load: Load,
    /// How the talker was scheduled.
    pub talker: Talker,
    /// Measurements in it.
    pub repeats: usize,
    /// Probes sent, without warm-up.
    pub sent: usize,
    /// Probes that left the talker and did not come back.
    pub lost: usize,
    /// Probes that the talker sent more than 100 us after their time.
    pub late: usize,
    /// Probes that did not leave: their launch time was over before the talker's queueing discipline sent them.
    pub missed: usize,
    /// The same, but it was over when the talker's program passed them on.
    pub invalid: usize,
    /// Probes that a queueing discipline of the talker dropped for another reason (ENOBUFS).
    pub no_buffer: usize,
    /// What else launch times did; `None` without them.
    pub launches: Option<Launches>,
    /// Round trips of all repeats together, from the intended time; `None` if nothing came back.
    pub round_trip: Option<Figures>,
    /// From the intended time to the responder; `None` if its clock cannot be compared.
    pub to_responder: Option<Figures>,
    /// From the responder back to the talker; `None` if the clocks cannot be compared.
    pub to_talker: Option<Figures>,
    /// Probes in the figures of one way.
    pub one_way_probes: usize,
    /// By how much the times of one way may be wrong, nanoseconds.
    pub one_way_bound_ns: u64,
    /// The median round trip of each repeat, nanoseconds: how far repeats differ.
    pub repeat_p50_ns: Vec<u64>,
    /// The median time to the responder of each repeat, nanoseconds.
    pub to_responder_repeat_p50_ns: Vec<u64>,
    /// Where the mean round trip went.
    pub composition: Option<Composition>,
    /// Each repeat by itself.
    #[serde(skip)]
    pub(crate) each: Vec<Repeat>,
    /// What busy programs took from each CPU, all repeats together.
    pub pressure: Vec<Pressure>,
    /// The same way, measured by other programs.
    pub others: Vec<Other>,
}

/// Why there are no figures.
#[derive(Debug, thiserror::Error)]
pub enum ResultsError {
    /// The talker's samples cannot be used.
    #[error(transparent)]
    Samples(#[from] SamplesError),
    /// A capacity cannot be used.
    #[error(transparent)]
    Capacity(#[from] CapacityError),
    /// What is known of the far host cannot be used.
    #[error(transparent)]
    Kept(#[from] KeptError),
    /// Probes cannot be joined.
    #[error(transparent)]
    Joined(#[from] JoinError),
    /// The output of another program cannot be used.
    #[error(transparent)]
    Others(#[from] OthersError),
}

impl Results {
    /// Reads what was kept.
    ///
    /// # Errors
    /// If a file of a measurement is missing or spoilt.
    pub fn read(kept: &Kept, manifest: &Manifest) -> Result<Self, ResultsError> {
        let mut results = Self::read_own(kept, manifest)?;
        if let Some((kept, manifest)) = kept.nested()? {
            results.nested = Some(Box::new(Self::read_own(&kept, &manifest)?));
        }
        Ok(results)
    }

    /// Without those of an emulated machine.
    fn read_own(kept: &Kept, manifest: &Manifest) -> Result<Self, ResultsError> {
        let (mut rows, mut obstacles) = (Vec::new(), Vec::new());
        for Tried { case, .. } in &manifest.variants {
            for (load, talker) in manifest.settings() {
                let measured = kept.measured(manifest, case.name(), load, talker);
                if !measured.is_empty() {
                    rows.push(Row::read(case, load, talker, &measured)?);
                } else if let Some(why) = kept.obstacle(manifest, case.name(), load, talker) {
                    obstacles.push(Obstacle { variant: case.name().into(), load, why });
                }
            }
        }
        let compared: Vec<_> = rows.iter().map(Row::compared).collect();
        let (verdicts, differences) = (verdicts(&compared), differences(&compared));
        let trouble = |it: &Tried| {
            let variant = it.case.name().into();
            Some(Trouble { variant, talker: None, why: it.trouble.clone()? })
        };
        let troubles = manifest.variants.iter().filter_map(trouble);
        let of_talkers = manifest.talker_troubles.iter().map(|it| Trouble {
            variant: it.variant.clone(),
            talker: Some(it.talker),
            why: it.why.clone(),
        });
        Ok(Self {
            version: manifest.version.clone(),
            began_unix_s: manifest.began_unix_s,
            host: manifest.host.clone(),
            peer: PeerFacts::read(kept)?,
            accelerator: manifest.accelerator.clone(),
            probes: manifest.probes,
            talker_cpu: manifest.talker_cpu,
            repeats: manifest.repeats,
            verdicts,
            differences,
            rows,
            capacities: read_capacities(kept, manifest)?,
            obstacles,
            troubles: troubles.chain(of_talkers).collect(),
            nested: None,
        })
    }

    /// Whether anything was measured.
    #[must_use]
    pub fn is_empty(&self) -> bool {
        self.rows.is_empty() && self.nested.as_ref().is_none_or(|it| it.rows.is_empty())
    }

    /// One JSON object.
    ///
    /// # Panics
    /// Never: all keys are strings.
    #[must_use]
    pub fn to_json(&self) -> String {
        serde_json::to_string_pretty(self).expect("an object with string keys") + "\n"
    }
}

impl Row {
    const fn compared(&self) -> Compared<'_> {
        Compared {
            variant: self.variant.as_str(),
            load: self.load,
            talker: self.talker,
            composition: self.composition.as_ref(),
            each: self.each.as_slice(),
        }
    }

    fn read(
        case: &Case,
        load: Load,
        talker: Talker,
        measured: &[(usize, PathBuf)],
    ) -> Result<Self, ResultsError> {
        let mut trips = Vec::new();
        let (mut sent, mut late) = (0, 0);
        let mut each = Vec::new();
        let mut composition = Composition::default();
        let mut ways = OneWay::default();
        let mut launches = Launches::default();
        let mut to_responder_repeat_p50_ns = Vec::new();
        for (repeat, directory) in measured {
            let samples = read_samples(&directory.join(SAMPLES))?;
            sent += samples.len();
            late +=
                samples.iter().filter(|it| it.sent.saturating_sub(it.intended) > LATE_NS).count();
            let of = |it: &Sample| Some(it.received?.saturating_sub(it.intended));
            let these: Vec<_> = samples.iter().filter_map(of).collect();
            let joined = Joined::read(directory, &samples)?.of_talker(talker);
            let mut own = Composition::default();
            own.add(&joined);
            each.push(Repeat {
                repeat: *repeat,
                p50_ns: Figures::of(these.clone()).map(|it| it.p50_ns),
                composition: own.is_measured().then_some(own),
            });
            trips.extend(these);
            composition.add(&joined);
            let (sender, echo) = stamps(directory)?;
            if talker.has_launch_times() {
                launches.add(directory, &samples, &sender);
            }
            if let Some(more) = OneWay::of(&clocks(directory), &samples, &sender, &echo) {
                let p50 = Figures::of(more.to_responder.clone()).map(|it| it.p50_ns);
                to_responder_repeat_p50_ns.extend(p50);
                ways.add(more);
            }
        }
        let launches = talker.has_launch_times().then_some(launches);
        let unsent = launches.as_ref().map(|it| it.unsent).unwrap_or_default();
        let repeat_p50_ns: Vec<_> = each.iter().filter_map(|it| it.p50_ns).collect();
        let directories: Vec<_> = measured.iter().map(|(_, it)| it.clone()).collect();
        let agent = Agent {
            round_trip_p50_ns: &repeat_p50_ns,
            to_responder_p50_ns: &to_responder_repeat_p50_ns,
        };
        Ok(Self {
            pressure: pressure(&directories),
            others: others::figures(&directories, agent)?,
            variant: case.name().into(),
            title: case.title().into(),
            options: case.options().clone(),
            load,
            talker,
            repeats: measured.len(),
            sent,
            lost: sent.saturating_sub(trips.len() + unsent.sum()),
            late: launches.as_ref().map_or(late, |it| it.late(LATE_NS)),
            missed: unsent.missed,
            invalid: unsent.invalid,
            no_buffer: unsent.no_buffer,
            launches,
            round_trip: Figures::of(trips),
            one_way_probes: ways.to_responder.len(),
            to_responder: Figures::of(ways.to_responder),
            to_talker: Figures::of(ways.to_talker),
            one_way_bound_ns: ways.bound_ns,
            repeat_p50_ns,
            to_responder_repeat_p50_ns,
            each,
            composition: composition.is_measured().then_some(composition),
        })
    }
}

/// Without the file, or with a spoilt one, nothing was busy.
fn pressure(directories: &[PathBuf]) -> Vec<Pressure> {
    let mut sums = Vec::<Pressure>::new();
    for directory in directories {
        let text = fs::read_to_string(directory.join(PRESSURE)).unwrap_or_default();
        for more in serde_json::from_str::<Vec<Pressure>>(&text).unwrap_or_default() {
            match sums.iter_mut().find(|it| it.cpu == more.cpu) {
                Some(sum) => {
                    sum.seconds += more.seconds;
                    sum.cpu_seconds += more.cpu_seconds;
                }
                None => sums.push(more),
            }
        }
    }
    sums
}
