//! The summary in sentences: where the time goes, what the tail consists of, what to try first.

use burst_trace::Interruption;

use crate::advice::advice;
use crate::causes::{self, Blame};
use crate::collect::DirectionBreakdown;
use crate::stages::{StageRow, Tier};
use crate::tail::Composition;
use crate::units::{grouped, time};

/// Smallest share of the whole for which a stage is mentioned.
const WORTH: f64 = 0.1;

/// What kept workers from running in bursts.
#[derive(Debug, Default)]
pub struct Interrupted {
    /// In all bursts.
    pub mean: Blame,
    /// In those of the tail.
    pub tail: Blame,
}

/// One direction, in sentences.
pub fn words(
    way: &DirectionBreakdown,
    tail: Option<&Composition>,
    queue_pairs: usize,
    interrupted: &Interrupted,
) -> Vec<String> {
    let name = match way.direction {
        burst_trace::Direction::Tx => "From the guest to the wire",
        burst_trace::Direction::Rx => "From the wire to the guest",
    };
    let Some(total) = way.total.figures else {
        return vec![format!("{name}: no packets.")];
    };
    let mut words = vec![format!(
        "{name}, {} packets took {} on average in the daemon, half of them no longer than {}, 1 % longer than {}.",
        grouped(way.packets),
        time(total.mean_ns),
        time(total.p50_ns as f64),
        time(total.p99_ns as f64)
    )];
    let stages = way.direction.stages();
    let means: Vec<_> = stages
        .iter()
        .map(|stage| {
            let row = way.stage(stage.name()).and_then(|row| row.figures);
            (stage.name(), row.map_or(0.0, |figures| figures.mean_ns))
        })
        .collect();
    let mean_leads = leads(&means, total.mean_ns);
    words.push(format!("Where the time goes: {}.", list(&mean_leads, total.mean_ns)));
    let tail_leads = tail.map(|tail| {
        let parts: Vec<_> =
            stages.iter().map(|it| it.name()).zip(tail.stages_ns.iter().copied()).collect();
        let leads = leads(&parts, tail.total_ns);
        words.push(format!(
            "The slowest 1 %: {} packets that took {} on average; it is {}.",
            grouped(tail.packets),
            time(tail.total_ns),
            list(&leads, tail.total_ns)
        ));
        leads
    });
    let tail_leads = tail_leads.unwrap_or_default();
    words.extend(first_to_try(&mean_leads, &tail_leads, queue_pairs, interrupted));
    if way.polled_packets * 2 > way.packets {
        words.push(
            "Most were found by polling: notice counts from the last look that found nothing, and is an upper bound.".into(),
        );
    }
    words.extend(in_the_kernel(way));
    let missing: Vec<_> = way
        .stages
        .iter()
        .filter(|row| row.count.is_none())
        .map(|row: &StageRow| row.stage)
        .collect();
    if !missing.is_empty() {
        words.push(format!("Not measured here: {}.", missing.join(", ")));
    }
    words
}

/// Times measured in the host kernel. They lie beside the daemon's stages and are none of them.
fn in_the_kernel(way: &DirectionBreakdown) -> Option<String> {
    let said = |row: &StageRow| {
        let figures = row.figures.filter(|_| row.tier == Tier::K)?;
        let (mean, p99) = (time(figures.mean_ns), time(figures.p99_ns as f64));
        Some(format!("{} {mean} on average, 1 % longer than {p99}", row.stage))
    };
    let said: Vec<_> = way.stages.iter().filter_map(said).collect();
    (!said.is_empty()).then(|| format!("In the host kernel, beside these: {}.", said.join("; ")))
}

/// The largest parts of at least `WORTH`: at most three.
fn leads<'n>(parts: &[(&'n str, f64)], whole: f64) -> Vec<(&'n str, f64)> {
    let mut leads: Vec<_> = parts.iter().copied().filter(|(_, ns)| *ns >= whole * WORTH).collect();
    leads.sort_by(|(_, a), (_, b)| b.total_cmp(a));
    leads.truncate(3);
    leads
}

fn list(leads: &[(&str, f64)], whole: f64) -> String {
    let parts: Vec<_> = leads
        .iter()
        .map(|(name, ns)| format!("{name} {:.0} % ({})", ns / whole * 100.0, time(*ns)))
        .collect();
    if parts.is_empty() { "spread over all stages".into() } else { parts.join(", ") }
}

/// The advice for the tail and, if that is another one, for the mean: by what kept the worker from running, if that took a good
/// part of the time, otherwise by the largest stage.
fn first_to_try(
    mean: &[(&str, f64)],
    tail: &[(&str, f64)],
    queue_pairs: usize,
    interrupted: &Interrupted,
) -> Vec<String> {
    let mut words = Vec::new();
    let mut told = None;
    for (what, lead, blame) in [
        ("For the tail", tail.first(), &interrupted.tail),
        ("For the mean", mean.first(), &interrupted.mean),
    ] {
        let Some((stage, _)) = lead else { continue };
        let (about, advice) = match cause(blame) {
            Some((cause, advice)) => (cause, Some(advice)),
            None => ((*stage).to_owned(), advice(stage, queue_pairs).map(str::to_owned)),
        };
        if told.as_ref() != Some(&about)
            && let Some(advice) = advice
        {
            words.push(format!("{what}, try first ({about}): {advice}."));
        }
        told = Some(about);
    }
    words
}

/// What took a good part of the time of bursts from their workers, in short, and what happened and what to do.
fn cause(blame: &Blame) -> Option<(String, String)> {
    let most = blame.most().filter(|most| blame.share(most) >= WORTH)?;
    let Interruption { subject, cause, culprit, detail, cpu, .. } = &most.longest;
    let (happened, advice) = causes::of_cause(*subject, *cause, culprit, *detail, *cpu);
    Some((causes::in_short(&most.longest), format!("{happened}; {advice}")))
}

#[cfg(test)]
mod tests {
    use burst_trace::fixture::preempted;
    use burst_trace::{BurstRecord, Interruptions};

    use super::*;

    #[test]
    fn only_what_is_large_leads() {
        let parts = [("a", 5.0), ("b", 50.0), ("c", 12.0), ("d", 33.0)];
        assert_eq!(leads(&parts, 100.0), [("b", 50.0), ("d", 33.0), ("c", 12.0)]);
        assert_eq!(list(&[], 100.0), "spread over all stages");
    }

    #[test]
    fn the_same_stage_is_advised_once() {
        let none = Interrupted::default();
        let told = first_to_try(&[("egress", 9.0)], &[("egress", 90.0)], 1, &none);
        assert_eq!(told.len(), 1);
        assert!(told[0].starts_with("For the tail"));
        assert_eq!(first_to_try(&[("egress", 9.0)], &[("signal", 90.0)], 1, &none).len(), 2);
        assert!(first_to_try(&[], &[], 1, &none).is_empty());
    }

    #[test]
    fn a_cause_is_advised_about_before_a_stage() {
        let mut interruptions = Interruptions::default();
        interruptions.add(&preempted(110, 180));
        let burst = |first, last| BurstRecord { first, last, packets: 1, ..Default::default() };
        let mut interrupted = Interrupted::default();
        interrupted.tail.add(&burst(100, 200).times(), 1, &interruptions);
        interrupted.mean.add(&burst(100, 1000).times(), 1, &interruptions);
        let told = first_to_try(&[("egress", 9.0)], &[("egress", 90.0)], 1, &interrupted);
        let start = "For the tail, try first (preempted by hog (fifo 50)): hog (process 123, fifo 50) took CPU 1 from \
                     worker 0; move it to another CPU (taskset -cp 0 123)";
        assert!(told[0].starts_with(start), "{told:?}");
        // 7 % of the mean are not worth it.
        assert!(told[1].starts_with("For the mean, try first (egress): "), "{told:?}");
    }
}
