//! One recording after the other, each with a fault or without.

use std::fs;
use std::ops::Range;
use std::path::PathBuf;
use std::thread::sleep;
use std::time::{Duration, Instant};

use fastrand::Rng;
use lab::command::Stop;

use super::answer::Answer;
use super::kind::{Kind, Setting};
use super::others::Others;
use super::scene::{CPUS, GuestKind, Scene, obstacle};
use super::score::{Outcome, Score};
use super::witness::Witness;
use crate::qemu::Failure;

/// When a fault begins, after the beginning of its recording, milliseconds.
const BEGINS_MS: Range<u64> = 40..90;
/// Most recordings of one scene: then guest and traffic are started again.
const SCENE_MAX: usize = 500;
/// Time that traffic has to recover from a fault.
const RECOVERED: Duration = Duration::from_millis(50);
/// A program that has nothing to do with the recording disturbs it if it runs this long.
const OTHERS: Duration = Duration::from_millis(2);
/// Attempts to make a recording that nothing but the fault disturbs.
const ATTEMPTS: u32 = 8;
/// Time after which it is seen that a recording has ended or is disturbed.
const BETWEEN_LOOKS: Duration = Duration::from_millis(5);

/// What is planted.
#[derive(Clone, Debug)]
pub struct Plan {
    /// Number of faults. There will be as many recordings without one.
    pub faults: usize,
    /// Determines the faults' times and order.
    pub seed: u64,
    /// What the guest runs in.
    pub guest: GuestKind,
    /// Kinds of fault; all if there are none.
    pub kinds: Vec<Kind>,
    /// After more disturbed recordings than this, none is made again. After a third of it and none that was undisturbed, the rest
    /// is given up: this machine is too busy.
    pub disturbed_max: u64,
    /// Where recordings with a wrong answer are kept, if they are.
    pub keep: Option<PathBuf>,
}

/// A recording that is to be made.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
struct Trial {
    setting: Setting,
    fault: Option<Kind>,
    begins: Duration,
    lasts: Duration,
}

/// Makes all recordings, and calls `tell` after each with the score so far and the number of recordings in all.
///
/// # Errors
/// If something cannot be started, planted or undone; when `stop` is set.
///
/// # Panics
/// If a program does not get ready in time.
pub fn run(
    plan: &Plan,
    stop: &Stop,
    mut tell: impl FnMut(&Score, usize),
) -> Result<Score, Failure> {
    let mut score = Score::default();
    let mut kinds = Vec::new();
    let is_wanted = |kind: &Kind| plan.kinds.is_empty() || plan.kinds.contains(kind);
    for kind in Kind::all().filter(is_wanted) {
        match obstacle(kind)? {
            None => kinds.push(kind),
            Some(reason) => score.left_out.push((kind, reason)),
        }
    }
    let trials = trials(plan, &kinds);
    let same = trials.chunk_by(|a, b| a.setting == b.setting);
    for same in same.flat_map(|same| same.chunks(SCENE_MAX)) {
        let scene = Scene::start(same[0].setting, plan.guest)?;
        let witness = Witness::start(&CPUS)?;
        for trial in same {
            if score.outcomes.is_empty() && score.disturbed_in_all() > plan.disturbed_max / 3 {
                score.given_up = trials.len() as u64;
                return Ok(score);
            }
            let watched = Watched { scene: &scene, witness: &witness };
            let outcome = watched
                .undisturbed(trial, plan, stop, &mut score)
                .map_err(|error| format!("{trial:?}: {error}"))?;
            let Some(outcome) = outcome else {
                score.given_up += 1;
                continue;
            };
            if let (Some(place), false) = (&plan.keep, outcome.is_right()) {
                let kind = outcome.fault.map_or("no fault", Kind::name).replace(' ', "-");
                let name = format!("{:04}-{kind}.rec", score.outcomes.len());
                fs::copy(scene.file(), place.join(name))?;
            }
            score.outcomes.push(outcome);
            tell(&score, trials.len());
        }
    }
    Ok(score)
}

/// The recordings, those of one setting together, in an order that the seed determines.
fn trials(plan: &Plan, kinds: &[Kind]) -> Vec<Trial> {
    let mut random = Rng::with_seed(plan.seed);
    let mut trials = Vec::new();
    for &kind in kinds.iter().cycle().take(plan.faults) {
        let begins = Duration::from_millis(random.u64(BEGINS_MS));
        let lasts = Duration::from_millis(random.u64(kind.lasts_ms()));
        let fault = Trial { setting: kind.setting(), fault: Some(kind), begins, lasts };
        trials.push(fault);
        trials.push(Trial { fault: None, ..fault });
    }
    random.shuffle(&mut trials);
    trials.sort_by_key(|trial| trial.setting);
    trials
}

/// What a scene is observed by.
struct Watched<'s> {
    scene: &'s Scene,
    witness: &'s Witness,
}

/// A recording, and what disturbed it.
enum Recording {
    Undisturbed(Outcome),
    /// By whom or what.
    Disturbed(String),
}

impl Watched<'_> {
    /// Makes a recording again and again until the witness has seen no disturbance besides the fault. Counts those that were
    /// disturbed. Gives up after some, or when there were too many in all.
    fn undisturbed(
        &self,
        trial: &Trial,
        plan: &Plan,
        stop: &Stop,
        score: &mut Score,
    ) -> Result<Option<Outcome>, Failure> {
        for _ in 0..ATTEMPTS {
            if stop.is_set() {
                return Err("interrupted".into());
            }
            let by = match self.play(trial)? {
                Recording::Undisturbed(outcome) => return Ok(Some(outcome)),
                Recording::Disturbed(by) => by,
            };
            *score.disturbed.entry(by).or_default() += 1;
            if score.disturbed_in_all() > plan.disturbed_max {
                break;
            }
        }
        Ok(None)
    }

    /// Sees disturbances from now on. Returns the CPU times of all processes but these.
    fn begin_watching(&self, own: &[u32]) -> Others {
        self.witness.forget();
        Others::without(own)
    }

    /// Makes a recording, and finds the cause that is named first.
    fn play(&self, trial: &Trial) -> Result<Recording, Failure> {
        let scene = self.scene;
        scene.await_traffic()?;
        let own = scene.processes()?;
        let mut before = self.begin_watching(&own);
        let mut recording = scene.record()?;
        if scene.records_own_stages() {
            // Its BPF programs were attached just now: then all CPUs wait for each other.
            before = self.begin_watching(&own);
        }
        let (mut when, mut did_nothing) = (None, false);
        if let Some(kind) = trial.fault {
            sleep(trial.begins);
            let begun = Instant::now();
            let pages = scene.pages_read()?;
            let planted = scene.plant(kind, trial.lasts)?;
            sleep(trial.lasts);
            planted.now()?;
            did_nothing = kind == Kind::Eviction && scene.pages_read()? == pages;
            // While such a fault is there, it is what the witness sees.
            when = kind.keeps_a_cpu_busy().then(|| begun..Instant::now());
        }
        // What is disturbed need not go on to its end.
        let has_ended = loop {
            let has_ended = recording.has_ended()?;
            if has_ended || self.saw_hypervisor(when.as_ref()) {
                break has_ended;
            }
            sleep(BETWEEN_LOOKS);
        };
        if self.saw_hypervisor(when.as_ref()) {
            if !has_ended {
                recording.interrupt()?;
            }
            sleep(RECOVERED);
            return Ok(Recording::Disturbed("the hypervisor took a CPU away".to_owned()));
        }
        let said = recording.wait()?;
        let others = Others::without(&own);
        let (used, name) = others.most_since(&before);
        sleep(RECOVERED);
        if used > OTHERS {
            return Ok(Recording::Disturbed(name.to_owned()));
        }
        if did_nothing {
            return Ok(Recording::Disturbed("no page was evicted".to_owned()));
        }
        let why = scene.why().map_err(|error| format!("{error}; the recording said: {said}"))?;
        if !Answer::has_traffic(&why) {
            return Ok(Recording::Disturbed("the guest stood still".to_owned()));
        }
        let answer = Answer::first(&why)?;
        let outcome = Outcome { fault: trial.fault, lasts: trial.lasts, answer };
        Ok(Recording::Undisturbed(outcome))
    }

    /// Whether a CPU did not run, besides in this time.
    fn saw_hypervisor(&self, planted: Option<&Range<Instant>>) -> bool {
        let is_planted = |gap: &Range<Instant>| {
            planted.is_some_and(|it| it.start < gap.end && gap.start < it.end)
        };
        self.witness.gaps().iter().any(|gap| !is_planted(gap))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_seed_determines_as_many_recordings_with_a_fault_as_without() {
        let kinds: Vec<_> = Kind::all().collect();
        let plan = |seed| {
            let (guest, kinds) = (GuestKind::Uml, Vec::new());
            Plan { faults: 60, seed, guest, kinds, disturbed_max: 0, keep: None }
        };
        let first = trials(&plan(1), &kinds);
        assert_eq!(first, trials(&plan(1), &kinds));
        assert_ne!(first, trials(&plan(2), &kinds));
        assert_eq!(first.len(), 120);
        assert_eq!(first.iter().filter(|trial| trial.fault.is_some()).count(), 60);
        assert!(first.is_sorted_by_key(|trial| trial.setting));
        for kind in kinds {
            let lasts = first.iter().filter(|trial| trial.fault == Some(kind));
            let lasts: Vec<_> = lasts.map(|trial| trial.lasts.as_millis() as u64).collect();
            assert!(lasts.len() >= 4, "{kind:?}");
            assert!(lasts.iter().all(|ms| kind.lasts_ms().contains(ms)), "{kind:?}: {lasts:?}");
        }
    }
}
