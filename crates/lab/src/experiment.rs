//! The experiment: every variant is built, measured under each load, and taken down, several times over.

use std::path::PathBuf;
use std::time::{Duration, Instant};

use crate::capacity::Capacity;
use crate::case::Case;
use crate::command::{CommandError, Stop};
use crate::far_host::Peer;
use crate::kept::{Kept, KeptError, Manifest, TalkerTrouble, Tried};
use crate::measure::{MeasureError, Measurement};
use crate::peer::PeerFacts;
use crate::plan::{Load, Way};
use crate::talker::{Home, Talker};
use crate::variant::{Claim, UpOptions, VariantError};

/// What is to be measured, and how.
#[derive(Clone, Debug)]
pub struct Plan {
    /// What is measured, in the order of the table. Their names differ.
    pub cases: Vec<Case>,
    /// How they are built.
    pub up: UpOptions,
    /// Whether this host's kernel has the queueing disciplines of talkers.
    pub has_disciplines: bool,
}

impl Plan {
    /// The program that records and sends probes.
    fn ringscope(&self) -> PathBuf {
        self.up.programs.join("ringscope")
    }
}

/// What the experiment tells while it runs.
#[derive(Debug)]
pub enum Event<'a> {
    /// What an earlier lab had left was taken down.
    Cleaned(&'a [String]),
    /// The far host is tried.
    Trying(&'a Peer),
    /// A variant is being built.
    Building {
        /// Its name.
        variant: &'a str,
        /// How often it was built before.
        repeat: usize,
        /// Estimate of the time until the end, once there is one.
        left: Option<Duration>,
    },
    /// A measurement begins.
    Measuring {
        /// The variant.
        variant: &'a str,
        /// What runs beside the probes.
        load: Load,
        /// How the talker is scheduled.
        talker: Talker,
    },
    /// A variant's talker cannot be scheduled so, and is not tried again.
    TalkerFailed {
        /// The variant.
        variant: &'a str,
        /// How the talker was to be scheduled.
        talker: Talker,
        /// Why.
        why: &'a str,
    },
    /// The measurement of a variant's capacity begins.
    Capacity {
        /// The variant.
        variant: &'a str,
        /// Who sends.
        way: Way,
    },
    /// A line of the lab in the emulated machine.
    Machine(&'a str),
    /// A variant has failed, and is not tried again.
    Failed {
        /// Its name.
        variant: &'a str,
        /// Why.
        why: &'a str,
    },
}

/// Why an experiment has ended early.
#[derive(Debug, thiserror::Error)]
pub enum ExperimentError {
    /// Variants cannot be built on this host.
    #[error(transparent)]
    Variant(#[from] VariantError),
    /// Results cannot be kept.
    #[error(transparent)]
    Kept(#[from] KeptError),
    /// A signal has come.
    #[error("interrupted: everything is taken down; what was measured until then is in the report")]
    Interrupted,
}

/// The order of one repeat: there and back again, so that what drifts on the host meets all variants alike.
fn order(variants: usize, repeat: usize) -> Vec<usize> {
    if repeat.is_multiple_of(2) { (0..variants).collect() } else { (0..variants).rev().collect() }
}

/// Runs the experiment of `manifest`, and keeps it there. A variant that fails is given up, and the others go on.
///
/// # Errors
/// If another lab runs, results cannot be kept, or `stop` is set: then what was measured is kept, too.
pub fn run(
    stop: &Stop,
    plan: &Plan,
    kept: &Kept,
    manifest: &mut Manifest,
    mut tell: impl FnMut(Event<'_>),
) -> Result<(), ExperimentError> {
    let claim = Claim::take()?;
    let cleaned = claim.clean()?;
    if !cleaned.is_empty() {
        tell(Event::Cleaned(&cleaned));
    }
    if let Some(peer) = &plan.up.peer {
        tell(Event::Trying(peer));
        claim.try_peer(stop, peer, &plan.up.programs).map_err(|error| match error {
            VariantError::Command(CommandError::Interrupted) => ExperimentError::Interrupted,
            other => other.into(),
        })?;
    }
    let tried = |case: &Case| Tried { case: case.clone(), trouble: None };
    manifest.variants = plan.cases.iter().map(tried).collect();
    kept.write(manifest)?;
    let building = Building { stop, claim: &claim, plan, kept };
    let began = Instant::now();
    let builds = plan.cases.len() * manifest.repeats;
    let mut done = 0;
    for repeat in 0..manifest.repeats {
        for n in order(plan.cases.len(), repeat) {
            let case = &plan.cases[n];
            let left = (done > 0).then(|| began.elapsed() / done * (builds as u32 - done));
            done += 1;
            if manifest.variants[n].trouble.is_some() {
                continue;
            }
            tell(Event::Building { variant: case.name(), repeat, left });
            match building.measure(manifest, case, repeat, &mut tell) {
                Err(error) if error.is_interruption() => return Err(ExperimentError::Interrupted),
                Err(error) => {
                    let why = error.to_string();
                    tell(Event::Failed { variant: case.name(), why: &why });
                    manifest.variants[n].trouble = Some(why);
                }
                Ok(accelerator) => {
                    manifest.accelerator = accelerator.or(manifest.accelerator.take());
                }
            }
            kept.write(manifest)?;
        }
    }
    Ok(())
}

/// What each build of a variant needs.
#[derive(Clone, Copy)]
struct Building<'a> {
    stop: &'a Stop,
    claim: &'a Claim,
    plan: &'a Plan,
    kept: &'a Kept,
}

impl Building<'_> {
    /// Builds the variant, measures it under each load and with each talker, and takes it down. Returns what its guest ran
    /// in. If only a talker that is not the default one fails, the manifest has that, and the others go on.
    fn measure(
        &self,
        manifest: &mut Manifest,
        case: &Case,
        repeat: usize,
        tell: &mut impl FnMut(Event<'_>),
    ) -> Result<Option<String>, MeasureError> {
        let mut accelerator = None;
        for home in [Home::Variant, Home::Uml] {
            let talkers = self.talkers(manifest, case, home);
            if talkers.is_empty() {
                continue;
            }
            match self.measure_at(home, manifest, case, repeat, tell) {
                Ok(found) => accelerator = accelerator.or(found),
                Err(error) if home == Home::Variant || error.is_interruption() => {
                    return Err(error);
                }
                Err(error) => {
                    for talker in talkers {
                        give_up(manifest, case, talker, &error, tell);
                    }
                }
            }
        }
        Ok(accelerator)
    }

    /// The talkers that run there, without those that were given up.
    fn talkers(&self, manifest: &Manifest, case: &Case, home: Home) -> Vec<Talker> {
        let troubles = &manifest.talker_troubles;
        let is_given_up = |talker: Talker| {
            troubles.iter().any(|it| it.variant == case.name() && it.talker == talker)
        };
        let all = manifest.talkers.iter().copied();
        all.filter(|&it| it.home(self.plan.has_disciplines) == home && !is_given_up(it)).collect()
    }

    /// The same with the talker at one place.
    fn measure_at(
        &self,
        home: Home,
        manifest: &mut Manifest,
        case: &Case,
        repeat: usize,
        tell: &mut impl FnMut(Event<'_>),
    ) -> Result<Option<String>, MeasureError> {
        let Self { stop, claim, plan, kept } = *self;
        let mut logs = kept.build(case.name(), repeat);
        if home == Home::Uml {
            logs.push("talker-uml");
        }
        let up = UpOptions { home, ..plan.up.clone() };
        let built = claim.build(stop, case.variant(), &up, case.options(), &logs)?;
        if let Some(peer) = &plan.up.peer {
            PeerFacts::keep(stop, peer, &built.talker, &built.responder, kept)?;
        }
        let (ringscope, probes) = (plan.ringscope(), manifest.probes);
        let cpu = manifest.talker_cpu.map_or(0, |it| it.cpu);
        // The same interfaces for all talkers of a build.
        let mut talkers = self.talkers(manifest, case, home).into_iter();
        let has_disciplines = home == Home::Uml || talkers.any(Talker::has_launch_times);
        for load in manifest.loads.clone() {
            for scheduling in self.talkers(manifest, case, home) {
                tell(Event::Measuring { variant: case.name(), load, talker: scheduling });
                let into = kept.measurement(case.name(), repeat, load, scheduling);
                let (built, ringscope, into, cpus) = (&built, &ringscope, &into, plan.up.cpus);
                // Other programs have no launch times, and are scheduled as any program.
                let others = if matches!(scheduling, Talker::Default | Talker::Uml) {
                    &manifest.others[..]
                } else {
                    &[]
                };
                let measurement = Measurement {
                    stop,
                    built,
                    ringscope,
                    load,
                    scheduling,
                    has_disciplines,
                    cpu,
                    cpus,
                    probes,
                    others,
                    into,
                };
                match measurement.make() {
                    Ok(()) => {}
                    Err(error) if scheduling == Talker::Default || error.is_interruption() => {
                        return Err(error);
                    }
                    Err(error) => give_up(manifest, case, scheduling, &error, tell),
                }
            }
        }
        if has_disciplines {
            Talker::Default.set_up(stop, &built.talker)?;
        }
        // Once: it takes longer than a repeat of the probes.
        for way in Way::ALL.into_iter().filter(|_| {
            manifest.capacity && !case.is_changed() && repeat == 0 && home == Home::Variant
        }) {
            tell(Event::Capacity { variant: case.name(), way });
            let into = &kept.capacity(case.name(), repeat);
            Capacity { stop, built: &built, probes, into }.make(way)?;
        }
        Ok(built.accelerator())
    }
}

/// Only this talker of the variant has failed.
fn give_up(
    manifest: &mut Manifest,
    case: &Case,
    talker: Talker,
    error: &MeasureError,
    tell: &mut impl FnMut(Event<'_>),
) {
    let why = error.to_string();
    tell(Event::TalkerFailed { variant: case.name(), talker, why: &why });
    manifest.talker_troubles.push(TalkerTrouble { variant: case.name().into(), talker, why });
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_other_repeat_goes_backwards() {
        assert_eq!(order(3, 0), [0, 1, 2]);
        assert_eq!(order(3, 1), [2, 1, 0]);
    }
}
