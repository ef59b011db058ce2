//! The summary in sentences: where the time goes, what the tail consists of, what to try first.

use crate::advice::advice;
use crate::collect::DirectionBreakdown;
use crate::stages::{StageRow, Tier};
use crate::tail::Composition;
use crate::units::{grouped, time};

/// Smallest share of the whole for which a stage is mentioned.
const WORTH: f64 = 0.1;

/// One direction, in sentences.
pub fn words(
    way: &DirectionBreakdown,
    tail: Option<&Composition>,
    queue_pairs: usize,
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
    words.extend(first_to_try(&mean_leads, &tail_leads, queue_pairs));
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

/// The advice for the largest stage of the tail and, if that is another one, of the mean.
fn first_to_try(mean: &[(&str, f64)], tail: &[(&str, f64)], queue_pairs: usize) -> Vec<String> {
    let mut words = Vec::new();
    let mut told = None;
    for (what, lead) in [("For the tail", tail.first()), ("For the mean", mean.first())] {
        let Some((stage, _)) = lead else { continue };
        if told != Some(*stage)
            && let Some(advice) = advice(stage, queue_pairs)
        {
            words.push(format!("{what}, try first ({stage}): {advice}."));
        }
        told = Some(*stage);
    }
    words
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_what_is_large_leads() {
        let parts = [("a", 5.0), ("b", 50.0), ("c", 12.0), ("d", 33.0)];
        assert_eq!(leads(&parts, 100.0), [("b", 50.0), ("d", 33.0), ("c", 12.0)]);
        assert_eq!(list(&[], 100.0), "spread over all stages");
    }

    #[test]
    fn the_same_stage_is_advised_once() {
        let told = first_to_try(&[("egress", 9.0)], &[("egress", 90.0)], 1);
        assert_eq!(told.len(), 1);
        assert!(told[0].starts_with("For the tail"));
        assert_eq!(first_to_try(&[("egress", 9.0)], &[("signal", 90.0)], 1).len(), 2);
        assert!(first_to_try(&[], &[], 1).is_empty());
    }
}
