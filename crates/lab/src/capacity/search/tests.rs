//! The search on devices in software.

use proptest::prelude::*;

use super::*;

const LIMITS: Limits = Limits { lowest_pps: 100, highest_pps: 1_000_000, width: 0.05, trials: 20 };

/// A device, and its sender.
#[derive(Clone, Copy, Debug)]
struct Device {
    /// The highest rate that it carries.
    limit_pps: u64,
    /// Share of its limit that it carries when it is offered more.
    overloaded: f64,
    /// The highest rate of the sender.
    sender_pps: u64,
}

impl Device {
    fn trial(&self, intended_pps: u64, is_disturbed: bool) -> Trial {
        let rate = intended_pps.min(self.sender_pps);
        // Two seconds: so a whole number of packets fits every rate.
        let sent = rate * 2;
        let carried = match rate <= self.limit_pps {
            true => sent,
            false => ((self.limit_pps * 2) as f64 * self.overloaded) as u64,
        };
        let received = carried.min(sent - u64::from(is_disturbed));
        Trial { intended_pps, sent, received, seconds: 2.0 }
    }
}

/// Searches until the end, and returns the result and the trials.
fn search(limits: &Limits, mut trial: impl FnMut(u64) -> Trial) -> (Found, Vec<Trial>) {
    let mut trials = Vec::new();
    loop {
        match step(limits, &trials) {
            Step::End(end) => {
                assert_eq!(found(limits, &trials), end, "the report finds it again");
                return (end, trials);
            }
            Step::Try(rate) => {
                assert!((limits.lowest_pps..=limits.highest_pps).contains(&rate), "{rate}");
                trials.push(trial(rate));
                assert!(trials.len() <= limits.trials, "{trials:?}");
            }
        }
    }
}

fn is_within_width(rate: u64, truth: u64) -> bool {
    rate <= truth && truth as f64 <= rate as f64 * (1.0 + LIMITS.width) + 1.0
}

proptest! {
    #[test]
    fn a_sharp_limit_is_found_within_the_width(limit_pps in 100_u64..1_000_000, overloaded in 0.0_f64..=1.0) {
        let device = Device { limit_pps, overloaded, sender_pps: u64::MAX / 4 };
        let (found, trials) = search(&LIMITS, |rate| device.trial(rate, false));
        prop_assert_eq!(found.outcome, Outcome::Found);
        let rate = found.lossless_pps.unwrap();
        prop_assert!(is_within_width(rate, limit_pps), "{} of {}: {:?}", rate, limit_pps, trials);
        prop_assert!(found.lossy_pps.unwrap() > limit_pps);
    }

    #[test]
    fn a_device_that_carries_its_limit_when_overloaded_takes_few_trials(limit_pps in 120_u64..900_000) {
        let device = Device { limit_pps, overloaded: 1.0, sender_pps: u64::MAX / 4 };
        let (found, trials) = search(&LIMITS, |rate| device.trial(rate, false));
        prop_assert!(is_within_width(found.lossless_pps.unwrap(), limit_pps), "{:?}", trials);
        prop_assert!(trials.len() <= 7, "{:?}", trials);
    }

    #[test]
    fn a_sender_below_the_limit_is_named(limit_pps in 1000_u64..1_000_000, share in 0.01_f64..0.97) {
        let sender_pps = (limit_pps as f64 * share) as u64;
        let device = Device { limit_pps, overloaded: 1.0, sender_pps };
        let (found, trials) = search(&LIMITS, |rate| device.trial(rate, false));
        prop_assert_eq!(found.outcome, Outcome::SenderLimit);
        prop_assert_eq!((found.lossless_pps, found.lossy_pps), (Some(sender_pps), None));
        prop_assert_eq!(trials.len(), 2);
    }

    /// Whatever the trials say: it ends in time, and its result lies below every rate that mostly lost packets.
    #[test]
    fn any_device_has_a_result(
        trials_max in 1_usize..30,
        answers in prop::collection::vec((0.3_f64..1.2, 0.0_f64..=1.0, any::<bool>()), 30),
    ) {
        let limits = Limits { trials: trials_max, ..LIMITS };
        let mut answers = answers.into_iter();
        let (found, trials) = search(&limits, |intended_pps| {
            let (reached, arrived, is_lossless) = answers.next().unwrap();
            let sent = (intended_pps as f64 * f64::min(reached, 1.0)).max(1.0) as u64;
            let received = if is_lossless { sent } else { (sent as f64 * arrived * 0.999) as u64 };
            Trial { intended_pps, sent, received, seconds: 1.0 }
        });
        if let Some(rate) = found.lossless_pps {
            prop_assert!(trials.iter().any(|it| it.is_lossless() && it.load_pps() == rate));
            let below = |it: &&Trial| it.load_pps() == rate;
            let lossy = trials.iter().filter(below).filter(|it| !it.is_lossless()).count();
            let all = trials.iter().filter(below).count();
            prop_assert!(lossy * 2 < all, "{} of {}", lossy, all);
        }
        if let Some((rate, lossy)) = found.lossless_pps.zip(found.lossy_pps) {
            prop_assert!(rate < lossy, "{} {}", rate, lossy);
        }
    }

    /// Each trial below the limit is disturbed with a probability of one in ten.
    #[test]
    fn noise_never_makes_a_rate_too_high(limit_pps in 500_u64..900_000, noise in prop::collection::vec(0_u8..10, 20)) {
        let device = Device { limit_pps, overloaded: 1.0, sender_pps: u64::MAX / 4 };
        let mut noise = noise.into_iter().map(|it| it == 0);
        let (found, trials) = search(&LIMITS, |rate| device.trial(rate, noise.next().unwrap()));
        prop_assert!(found.lossless_pps.is_none_or(|rate| rate <= limit_pps), "{:?}", trials);
    }
}

#[test]
fn one_disturbed_trial_does_not_change_the_result() {
    let device = Device { limit_pps: 90_000, overloaded: 1.0, sender_pps: u64::MAX / 4 };
    let (_, quiet) = search(&LIMITS, |rate| device.trial(rate, false));
    // The first trial without loss decides where to look, so one that is disturbed costs more trials only.
    for disturbed in 0..quiet.len() {
        let mut number = 0..;
        let (found, trials) =
            search(&LIMITS, |rate| device.trial(rate, number.next() == Some(disturbed)));
        assert_eq!(found.outcome, Outcome::Found, "{disturbed}: {trials:?}");
        let rate = found.lossless_pps.unwrap();
        assert!((80_000..=90_000).contains(&rate), "{disturbed}: {rate}: {trials:?}");
    }
}

#[test]
fn loss_at_every_rate_is_said() {
    let (found, trials) = search(&LIMITS, |intended_pps| Trial {
        intended_pps,
        sent: intended_pps,
        received: intended_pps - intended_pps / 50,
        seconds: 1.0,
    });
    assert_eq!((found.outcome, found.lossless_pps), (Outcome::AlwaysLoses, None), "{trials:?}");
    assert_eq!(found.lossy_pps, Some(LIMITS.lowest_pps));
}

#[test]
fn a_sender_below_the_lowest_rate_ends_the_search() {
    let (found, trials) = search(&LIMITS, |intended_pps| Trial {
        intended_pps,
        sent: intended_pps * 3 / 10,
        received: 0,
        seconds: 1.0,
    });
    assert_eq!((found.outcome, found.lossless_pps), (Outcome::AlwaysLoses, None), "{trials:?}");
    assert_eq!(found.lossy_pps, Some(30));
}

#[test]
fn nothing_lost_at_the_highest_rate_is_said() {
    let device = Device { limit_pps: 2_000_000, overloaded: 1.0, sender_pps: u64::MAX / 4 };
    let (found, trials) = search(&LIMITS, |rate| device.trial(rate, false));
    assert_eq!(found.outcome, Outcome::HighestRate);
    assert_eq!((found.lossless_pps, trials.len()), (Some(1_000_000), 2));
}

#[test]
fn a_loss_between_two_rates_without_loss_limits_the_result() {
    // A device that loses packets between 30 000 and 40 000 only, and above 80 000.
    let (found, _) = search(&LIMITS, |intended_pps| {
        let is_lossy = (30_000..40_000).contains(&intended_pps) || intended_pps > 80_000;
        Device {
            limit_pps: if is_lossy { 35_000 } else { u64::MAX / 4 },
            overloaded: 1.0,
            sender_pps: u64::MAX / 4,
        }
        .trial(intended_pps, is_lossy && intended_pps < 40_000)
    });
    assert!(found.lossless_pps.unwrap() < 30_000, "{found:?}");
    assert!(found.lossy_pps.unwrap() < 40_000, "{found:?}");
}

#[test]
fn a_search_that_is_ended_early_has_what_it_found_until_then() {
    let trial = |intended_pps, received| Trial { intended_pps, sent: 1000, received, seconds: 1.0 };
    assert_eq!(found(&LIMITS, &[]).outcome, Outcome::OutOfTrials);
    let early = found(&LIMITS, &[trial(1000, 1000), trial(1000, 900), trial(1000, 1000)]);
    assert_eq!(early.lossless_pps, Some(1000));
}
