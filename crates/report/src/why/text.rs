//! The groups in words, and as one JSON object.

use std::fmt::Write as _;

use burst_trace::Subject;
use serde_json::{Value, json};

use super::{Cause, Example, Group, Limit, Why};
use crate::advice::advice;
use crate::causes;
use crate::units::{grouped, percent, time, time_of_day};

/// Most groups in words. JSON has all.
const SHOWN_MAX: usize = 10;
/// Number of queue pairs for which a stage's advice is worded.
const QUEUE_PAIRS: usize = 1;

/// The groups in words, to be read from the top.
#[must_use]
pub fn to_text(why: &Why) -> String {
    let mut text = head(why);
    for (number, group) in (1..).zip(&why.groups).take(SHOWN_MAX) {
        let (words, todo) = in_words(group);
        let (count, took) = (grouped(group.count), time(group.time_ns as f64));
        let share = percent(group.time_ns as f64, why.slow_ns as f64);
        let _ =
            writeln!(text, "\n{number}. {}: {took}, {share} of it, {count} times", upper(&words));
        let _ = writeln!(text, "   for example {}", example(group));
        let _ = writeln!(text, "   what to do: {todo}");
    }
    if why.groups.len() > SHOWN_MAX {
        let more = why.groups.len() - SHOWN_MAX;
        let _ = writeln!(text, "\nand {more} causes with less time: --json has all");
    }
    if !why.interruptions.as_ref().is_some_and(|state| state.starts_with("on")) {
        let state = match &why.interruptions {
            None => "not asked for".to_owned(),
            Some(state) => state.clone(),
        };
        let _ = writeln!(
            text,
            "\nwho took a CPU is not known, because interruptions are not measured ({state}): record with --kernel-stages, \
             as root"
        );
    } else if let Some(reason) = why.kvm.as_ref().and_then(|state| state.strip_prefix("n/a: ")) {
        let _ = writeln!(text, "\nexits of KVM are not measured: {reason}");
    }
    text
}

fn head(why: &Why) -> String {
    let mut text = format!("{}, {:.3} s: {} bursts", why.name, why.window_s, grouped(why.bursts));
    if why.turns > 0 {
        let _ = write!(text, " and {} turns of probe packets", grouped(why.turns));
    }
    let over = time(why.over_ns as f64);
    let slow = grouped(why.slow);
    let _ = match why.limit {
        Limit::Over(_) if why.slow == 0 => writeln!(text, "; nothing took longer than {over}"),
        Limit::Over(_) => writeln!(text, "; {slow} took longer than {over}"),
        Limit::P99 if why.slow == 0 => {
            writeln!(text, "; none is above the others' 99th percentile")
        }
        Limit::P99 => writeln!(
            text,
            "; {slow} are above the 99th percentile of their kind (the lowest of them: {over})"
        ),
    };
    if why.slow > 0 {
        let took = time(why.slow_ns as f64);
        let _ = writeln!(text, "their packets took {took} longer than the median of their kind");
    }
    text
}

fn example(group: &Group) -> String {
    let Example { kind, queue, sequence, at_ns, total_ns, lost_ns } = &group.example;
    let what = match *kind {
        "guest-turn" => format!("the guest's answer to probe {sequence}"),
        "far-end-turn" => format!("the far end's answer to probe {sequence}"),
        "frame" => format!("a frame in {}", group.stage),
        _ => format!("{} queue {queue}, packet {sequence}", group.direction),
    };
    let (at, total, lost) = (time_of_day(*at_ns), time(*total_ns as f64), time(*lost_ns as f64));
    let stage = match group.stage {
        "" => String::new(),
        stage => format!(", most of it in {stage}"),
    };
    match *kind {
        "frame" => format!("{what} at {at}: {total}"),
        _ => format!("{what} at {at}: {total}, of which {lost} for this{stage}"),
    }
}

/// What happened, as a clause, and what to do about it.
fn in_words(group: &Group) -> (String, String) {
    let by_stage =
        || advice(group.stage, QUEUE_PAIRS).unwrap_or("look at it in the report").to_owned();
    match group.cause {
        Cause::Interrupted(cause, subject) => {
            let culprit = group.culprit.unwrap_or_default();
            causes::of_cause(subject, cause, &culprit, group.detail, group.cpu)
        }
        Cause::NoBuffers => ("the guest posted no receive buffers".into(), by_stage()),
        Cause::Limit => ("the guest's limit let nothing pass".into(), by_stage()),
        Cause::BehindDatapath => (
            "frames waited in the host, outside the daemon".into(),
            "look at the queueing disciplines between tap and wire (tc -s qdisc), and at the bridge or OVS".into(),
        ),
        Cause::Guest => (
            "the guest took its time, while its front end's threads ran".into(),
            "look into the guest: its load, its interrupts, the scheduling of the program that answers".into(),
        ),
        Cause::FarEnd => (
            "the far end took its time".into(),
            "look there: its load, and the scheduling of the program that answers; a program on this host is followed with \
             ringscope record --kernel-stages --far-end PID"
                .into(),
        ),
        Cause::Datapath => ("the datapath itself took longer".into(), by_stage()),
        Cause::Queue => ("other packets of the queue were served first".into(), by_stage()),
        Cause::Unknown => (
            "a worker took longer, and nothing on this kernel says why".into(),
            "look for what the kernel does not see: system management interrupts, deep idle states of the CPU, a hypervisor \
             (ringscope doctor)"
                .into(),
        ),
    }
}

fn upper(words: &str) -> String {
    let mut chars = words.chars();
    chars.next().map_or_else(String::new, |first| {
        // Names of programs stay as they are.
        let is_word = words.starts_with("the ") || words.starts_with("a ");
        match is_word {
            true => first.to_uppercase().chain(chars).collect(),
            false => words.to_owned(),
        }
    })
}

/// As one JSON object.
#[must_use]
pub fn to_json(why: &Why) -> String {
    let culprits: Vec<_> = why.groups.iter().map(group).collect();
    let object = json!({
        "name": why.name,
        "window_s": why.window_s,
        "bursts": why.bursts,
        "turns": why.turns,
        "over_ns": why.over_ns,
        "slow": why.slow,
        "slow_ns": why.slow_ns,
        "interruptions": why.interruptions,
        "kvm": why.kvm,
        "culprits": culprits,
    });
    format!("{object:#}")
}

fn group(group: &Group) -> Value {
    let (words, todo) = in_words(group);
    let Example { kind, queue, sequence, at_ns, total_ns, lost_ns } = &group.example;
    let worker = match group.cause {
        Cause::Interrupted(_, Subject::Worker(number)) => Some(number),
        _ => None,
    };
    json!({
        "cause": group.cause.name(),
        "subject": group.cause.subject(),
        "worker": worker,
        "culprit": group.culprit.map(|culprit| json!({
            "name": culprit.name(),
            "process": culprit.process,
            "thread": culprit.thread,
            "class": culprit.class(),
        })),
        "detail": group.detail,
        "cpu": group.cpu,
        "count": group.count,
        "time_ns": group.time_ns,
        "stage": group.stage,
        "direction": group.direction,
        "example": {
            "kind": kind,
            "queue": queue,
            "sequence": sequence,
            "at_s": *at_ns as f64 / 1e9,
            "total_ns": total_ns,
            "lost_ns": lost_ns,
        },
        "words": words,
        "advice": todo,
    })
}
