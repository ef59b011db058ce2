//! The search for the highest rate at which nothing is lost, in a bounded number of trials.
//!
//! It is a search as RFC 9971 (Multiple Loss Ratio Search) describes them, with one goal: loss ratio 0. The first trial is
//! at the highest rate, and what arrives then says where to look. Steps up and down grow until there is a rate without
//! loss and one with loss; then their interval is halved, by ratio. The search ends when both bounds are no further
//! apart than the width, and each was seen twice: other work on a host can make one trial lose packets.
//!
//! All of it is computed from the trials so far, so a report finds again what the experiment found.

use std::collections::BTreeMap;

use serde::{Deserialize, Serialize};

/// A sender that sends less than this share of what it was asked to is the limit itself.
const REACHED: f64 = 0.98;
/// Trials without loss, at the sender's limit or the highest rate, after which the search ends.
const UNLIMITED_TRIALS: usize = 3;

/// One trial.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct Trial {
    /// The intended load: what the sender was asked for, packets a second.
    pub intended_pps: u64,
    /// Packets sent.
    pub sent: u64,
    /// Packets of these that arrived.
    pub received: u64,
    /// Time of sending, seconds.
    pub seconds: f64,
}

impl Trial {
    /// The rate of sending, packets a second.
    #[must_use]
    pub fn sent_pps(&self) -> u64 {
        (self.sent as f64 / self.seconds.max(1e-9)) as u64
    }

    /// Whether the sender did not reach what it was asked for.
    #[must_use]
    pub fn is_sender_limited(&self) -> bool {
        (self.sent_pps() as f64) < self.intended_pps as f64 * REACHED
    }

    /// The load that this trial stands for, packets a second.
    #[must_use]
    pub fn load_pps(&self) -> u64 {
        if self.is_sender_limited() { self.sent_pps() } else { self.intended_pps }
    }

    /// Whether every packet arrived.
    #[must_use]
    pub const fn is_lossless(&self) -> bool {
        self.sent > 0 && self.received >= self.sent
    }
}

/// What is searched, and how long.
#[derive(Clone, Copy, Debug, PartialEq, Serialize, Deserialize)]
pub struct Limits {
    /// The lowest rate that is tried, packets a second.
    pub lowest_pps: u64,
    /// The highest one, and the first.
    pub highest_pps: u64,
    /// How far apart both bounds may be at the end, as a share of the lower one.
    pub width: f64,
    /// Most trials.
    pub trials: usize,
}

/// What the result of a search is worth.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Outcome {
    /// The bounds are no further apart than the width, and each was seen twice.
    Found,
    /// Nothing was lost at the highest rate that the sender reached: the way may carry more.
    SenderLimit,
    /// Nothing was lost at the highest rate of the search: the way may carry more.
    HighestRate,
    /// Even the lowest rate loses packets.
    AlwaysLoses,
    /// It ended before the bounds were close enough, or seen twice.
    OutOfTrials,
}

/// The result of a search.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Found {
    /// What it is worth.
    pub outcome: Outcome,
    /// The highest rate at or above which two trials lost nothing, below every rate with loss (with
    /// [`Outcome::OutOfTrials`] perhaps one trial); packets a second.
    pub lossless_pps: Option<u64>,
    /// The lowest rate at which packets are lost, packets a second.
    pub lossy_pps: Option<u64>,
}

/// What comes next.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Step {
    /// A trial at this rate, packets a second.
    Try(u64),
    /// Nothing: this is the result.
    End(Found),
}

/// What comes after these trials.
#[must_use]
pub fn step(limits: &Limits, trials: &[Trial]) -> Step {
    let bounds = Bounds::of(trials);
    match bounds.next(limits, trials) {
        Step::Try(_) if trials.len() >= limits.trials => {
            Step::End(bounds.found(Outcome::OutOfTrials))
        }
        // What a sender reached may lie below the lowest rate.
        Step::Try(rate) => Step::Try(rate.clamp(limits.lowest_pps, limits.highest_pps)),
        end @ Step::End(_) => end,
    }
}

/// The result of these trials, also if the search was ended early.
#[must_use]
pub fn found(limits: &Limits, trials: &[Trial]) -> Found {
    match step(limits, trials) {
        Step::End(found) => found,
        Step::Try(_) => Bounds::of(trials).found(Outcome::OutOfTrials),
    }
}

/// What is known after some trials. A rate counts as one with or without loss by the majority of its trials.
#[derive(Debug, Default)]
struct Bounds {
    /// The rates without loss below `lossy`, the highest one first: one for each trial.
    clean: Vec<u64>,
    /// The rates with loss, the lowest one first: one for each trial.
    lossy: Vec<u64>,
    /// The highest rate below all with loss of which half of the trials lost packets.
    undecided: Option<u64>,
}

impl Bounds {
    fn of(trials: &[Trial]) -> Self {
        let mut rates: BTreeMap<u64, (usize, usize)> = BTreeMap::new();
        for trial in trials {
            let (clean, lossy) = rates.entry(trial.load_pps()).or_default();
            *(if trial.is_lossless() { clean } else { lossy }) += 1;
        }
        let mut bounds = Self::default();
        for (&rate, &(clean, lossy)) in &rates {
            if lossy > clean {
                bounds.lossy.extend(std::iter::repeat_n(rate, lossy));
            } else if bounds.lossy.is_empty() && clean > lossy {
                bounds.clean.extend(std::iter::repeat_n(rate, clean));
            } else if bounds.lossy.is_empty() {
                bounds.undecided = Some(rate);
            }
        }
        bounds.clean.reverse();
        bounds
    }

    fn found(&self, outcome: Outcome) -> Found {
        let lossless_pps = self.clean.get(1).or(self.clean.first()).copied();
        Found { outcome, lossless_pps, lossy_pps: self.lossy.first().copied() }
    }

    fn next(&self, limits: &Limits, trials: &[Trial]) -> Step {
        let is_narrow =
            |low: u64, high: u64| high as f64 <= low as f64 * (1.0 + limits.width) + 1.0;
        if let Some(rate) = self.undecided {
            return Step::Try(rate);
        }
        match (&self.clean[..], &self.lossy[..]) {
            ([], []) => Step::Try(limits.highest_pps),
            ([best, rest @ ..], []) => {
                let is_seen_twice = rest.first().is_some_and(|&second| is_narrow(second, *best));
                if !is_seen_twice && self.clean.len() < UNLIMITED_TRIALS {
                    return Step::Try(limits.highest_pps);
                }
                let is_reached = *best >= limits.highest_pps;
                let outcome = if is_reached { Outcome::HighestRate } else { Outcome::SenderLimit };
                Step::End(self.found(outcome))
            }
            ([], [worst, rest @ ..]) if *worst <= limits.lowest_pps => match rest.first() {
                Some(&second) if second <= limits.lowest_pps => {
                    Step::End(self.found(Outcome::AlwaysLoses))
                }
                _ => Step::Try(limits.lowest_pps),
            },
            ([], [worst, ..]) => Step::Try(self.lower(limits, trials, *worst)),
            ([best, ..], [worst, ..]) if !is_narrow(*best, *worst) => {
                Step::Try(self.between(limits, *best, *worst))
            }
            ([best, rest @ ..], [worst, others @ ..]) => {
                if !rest.first().is_some_and(|&second| is_narrow(second, *worst)) {
                    Step::Try(*best)
                } else if !others.first().is_some_and(|&second| is_narrow(*best, second)) {
                    Step::Try(*worst)
                } else {
                    Step::End(self.found(Outcome::Found))
                }
            }
        }
    }

    /// A rate below `worst`, when all rates so far have loss: a little less than what arrived then, and at least a step below
    /// it that grows with each rate. If hardly anything arrived, that says nothing.
    fn lower(&self, limits: &Limits, trials: &[Trial], worst: u64) -> u64 {
        let arrived = trials.iter().rfind(|it| it.load_pps() == worst);
        let arrived = arrived.map_or(0.0, |it| it.received as f64 / it.seconds.max(1e-9));
        let mut rates = self.lossy.clone();
        rates.dedup();
        let doublings = i32::try_from(rates.len() - 1).unwrap_or(i32::MAX).min(30);
        let below = worst as f64 / (1.0 + limits.width * 2_f64.powi(doublings));
        let hinted = arrived * (1.0 - limits.width / 2.0);
        let middle = (limits.lowest_pps as f64 * worst as f64).sqrt();
        let rate = if arrived < limits.lowest_pps as f64 { middle } else { hinted.min(below) };
        (rate as u64).clamp(limits.lowest_pps, worst - 1)
    }

    /// A rate between both bounds: a step above the lower one, which what arrived has hinted at, then a larger one, then the
    /// middle.
    fn between(&self, limits: &Limits, best: u64, worst: u64) -> u64 {
        let mut rates = self.clean.clone();
        rates.dedup();
        let middle = (best as f64 * worst as f64).sqrt();
        let step = match rates.len() {
            1 => 1.0 + limits.width,
            2 => (1.0 + limits.width).powi(4),
            _ => f64::INFINITY,
        };
        (middle.min(best as f64 * step) as u64).clamp(best + 1, worst - 1)
    }
}

#[cfg(test)]
mod tests;
