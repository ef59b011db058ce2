//! The table's part about talkers that are not scheduled by default.

use comfy_table::{CellAlignment, Table, presets};
use report::units::{grouped, time};

use super::name;
use crate::results::{Results, Row};
use crate::talker::{Talker, TalkerCpu};

/// What the talkers are, and what their launch times did. Empty if all were scheduled by default.
pub(super) fn text(results: &Results) -> String {
    let mut seen = Vec::new();
    for row in &results.rows {
        if !seen.contains(&row.talker) {
            seen.push(row.talker);
        }
    }
    seen.retain(|&it| it != Talker::Default);
    if seen.is_empty() {
        return String::new();
    }
    let mut text = "\nTalkers:\n".to_owned();
    for talker in seen {
        text += &format!("  {:<9} {}\n", talker.name(), meaning(talker, results.talker_cpu));
    }
    text + &launches(results)
}

fn meaning(talker: Talker, cpu: Option<TalkerCpu>) -> String {
    match (talker, cpu) {
        (Talker::Pinned, Some(TalkerCpu { cpu, is_own: true })) => {
            format!("its program has CPU {cpu} for itself")
        }
        (Talker::Pinned, Some(TalkerCpu { cpu, is_own: false })) => {
            format!("its program runs on CPU {cpu}, with others: this host has no CPU for it alone")
        }
        (Talker::Realtime, _) => "its program runs in the real-time class, with all memory locked".into(),
        (Talker::Uml, _) => "a User Mode Linux guest, the neighbour of etf and taprio".into(),
        (Talker::Etf, _) => "mqprio and etf send each probe at its launch time (SO_TXTIME)".into(),
        (Talker::Taprio, _) => {
            "launch times within the gate of taprio; a wait for the gate is the part `gate` of a round trip".into()
        }
        _ => talker.name().into(),
    }
}

fn launches(results: &Results) -> String {
    let rows: Vec<_> =
        results.rows.iter().filter_map(|row| Some((row, row.launches.as_ref()?))).collect();
    if rows.is_empty() {
        return String::new();
    }
    let mut table = Table::new();
    table.load_preset(presets::NOTHING);
    table.set_header([
        "variant",
        "load",
        "n",
        "missed",
        "invalid",
        "no buffer",
        "dropped by",
        "early",
        "gated",
        "gate, mean",
        "sent after, p50",
        "p99",
        "max",
    ]);
    for (row, launches) in rows {
        let Row { sent, missed, invalid, no_buffer, .. } = *row;
        let count = |number: usize| grouped(number as u64);
        let dropped = launches.dropped.iter().map(|(kind, it)| format!("{kind} {}", grouped(*it)));
        let dropped: Vec<_> = dropped.collect();
        let figure = |of: fn(&agent::Figures) -> u64| {
            launches.release.as_ref().map_or_else(|| "-".into(), |it| time(of(it) as f64))
        };
        table.add_row([
            name(&row.variant, row.talker),
            row.load.name().into(),
            count(sent),
            count(missed),
            count(invalid),
            count(no_buffer),
            dropped.join(", "),
            count(launches.early),
            count(launches.gated),
            time(launches.gate_mean_ns),
            figure(|it| it.p50_ns),
            figure(|it| it.p99_ns),
            figure(|it| it.max_ns),
        ]);
    }
    for column in table.column_iter_mut().skip(2) {
        column.set_cell_alignment(CellAlignment::Right);
    }
    format!(
        "\nLaunch times. Round trips count from when a probe was due.\n\n{}\n\n\
         missed: etf had no time to send it. invalid: its time was over when the program passed it on. no buffer: dropped\n\
         without a reason. These are not lost on the way. dropped by: the disciplines' own counters, with the warm-up.\n\
         early: sent before its time. gated: waited for the gate. sent after: by the kernel, from when it should.\n",
        table.trim_fmt()
    )
}
