//! One recording after the other, each with a fault or without.

use std::thread::sleep;
use std::time::Duration;

use fastrand::Rng;
use lab::command::Stop;

use super::answer::Answer;
use super::kind::{Kind, Setting};
use super::scene::{GuestKind, Scene, obstacle};
use super::score::{Outcome, Score};
use crate::qemu::Failure;

/// When a fault begins, after the beginning of its recording, milliseconds.
const BEGINS_MS: std::ops::Range<u64> = 80..150;
/// Most recordings of one scene: then guest and traffic are started again.
const SCENE_MAX: usize = 500;
/// Time that traffic has to recover from a fault.
const RECOVERED: Duration = Duration::from_millis(50);

/// What is planted.
#[derive(Clone, Copy, Debug)]
pub struct Plan {
    /// Number of faults. There will be as many recordings without one.
    pub faults: usize,
    /// Determines the faults' times and order.
    pub seed: u64,
    /// What the guest runs in.
    pub guest: GuestKind,
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
    for kind in Kind::all() {
        match obstacle(kind)? {
            None => kinds.push(kind),
            Some(reason) => score.left_out.push((kind, reason)),
        }
    }
    let trials = trials(plan, &kinds);
    let same = trials.chunk_by(|a, b| a.setting == b.setting);
    for same in same.flat_map(|same| same.chunks(SCENE_MAX)) {
        let scene = Scene::start(same[0].setting, plan.guest)?;
        for trial in same {
            if stop.is_set() {
                return Err("interrupted".into());
            }
            let outcome = play(&scene, trial);
            score.outcomes.push(outcome.map_err(|error| format!("{trial:?}: {error}"))?);
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

fn play(scene: &Scene, trial: &Trial) -> Result<Outcome, Failure> {
    let recording = scene.record()?;
    if let Some(kind) = trial.fault {
        sleep(trial.begins);
        let planted = scene.plant(kind, trial.lasts)?;
        sleep(trial.lasts);
        planted.now()?;
    }
    let said = recording.wait()?;
    let why = scene.why().map_err(|error| format!("{error}; the recording said: {said}"))?;
    sleep(RECOVERED);
    Ok(Outcome { fault: trial.fault, lasts: trial.lasts, answer: Answer::first(&why)? })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_seed_determines_as_many_recordings_with_a_fault_as_without() {
        let kinds: Vec<_> = Kind::all().collect();
        let plan = |seed| Plan { faults: 60, seed, guest: GuestKind::Uml };
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
