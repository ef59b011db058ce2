//! The capacities as a table, for a person to read.

use comfy_table::{CellAlignment, Table, presets};
use report::units::{grouped, time};

use super::figures::Capacity;
use super::search::Outcome;

const HEADER: [&str; 12] = [
    "variant",
    "sender",
    "packets/s",
    "Mbit/s",
    "trials",
    "back end",
    "front end",
    "kernel",
    "host",
    "10 %: p50, p99",
    "50 %: p50, p99",
    "90 %: p50, p99",
];

/// The table with its notes; empty if there is nothing.
pub(crate) fn to_text(capacities: &[Capacity]) -> String {
    if capacities.is_empty() {
        return String::new();
    }
    let mut table = Table::new();
    table.load_preset(presets::NOTHING);
    table.set_header(HEADER);
    for it in capacities {
        table.add_row(cells(it));
    }
    for column in table.column_iter_mut().skip(2) {
        column.set_cell_alignment(CellAlignment::Right);
    }
    let [head, legend, notes @ ..] = &texts(capacities)[..] else { return String::new() };
    let mut text = format!("\n{head}\n\n{}\n\n{legend}\n", table.trim_fmt());
    for note in notes {
        text += note;
        text.push('\n');
    }
    text
}

/// What the table is about, what its columns are, and what its rows do not say.
pub(crate) fn texts(capacities: &[Capacity]) -> Vec<String> {
    [HEAD, LEGEND]
        .map(str::to_owned)
        .into_iter()
        .chain(capacities.iter().filter_map(note))
        .collect()
}

/// What the table is about.
const HEAD: &str =
    "Capacity: UDP packets of 1500 bytes on one queue; the highest rate at which none was lost.";

/// What its columns say.
const LEGEND: &str = "\
back end to host: CPU seconds for a million packets, at 50 % of the rate. back end: ringscoped or another one. front end:
QEMU or User Mode Linux, with the guest. kernel: the kernel's threads. host: all CPUs, with all that ran there.
10 %, 50 %, 90 %: round trips of probes beside packets at that share of the rate. Trials of the search last half a second:
queues can hold some packets so long, and a longer flow then loses them, which a note below says.";

fn cells(it: &Capacity) -> Vec<String> {
    let dash = || "-".to_owned();
    let seconds = |it: Option<f64>| it.map_or_else(dash, |it| format!("{it:.2} s"));
    let cpu =
        |of: fn(&super::figures::CpuAMillion) -> Option<f64>| seconds(it.cpu.as_ref().and_then(of));
    let mut cells = vec![
        it.variant.clone(),
        it.way.sender().into(),
        it.lossless_pps.map_or_else(dash, |pps| format!("{}{}", at_least(it), grouped(pps))),
        it.lossless_bits_per_s.map_or_else(dash, |bits| grouped(bits / 1_000_000)),
        grouped(it.trials as u64),
        cpu(|it| it.back_end_s),
        cpu(|it| it.front_end_s),
        cpu(|it| Some(it.kernel_threads_s)),
        cpu(|it| Some(it.host_s)),
    ];
    for percent in super::PERCENT {
        let probes =
            it.loaded.iter().find(|it| it.percent == percent).and_then(|it| it.probes.as_ref());
        cells.push(probes.map_or_else(dash, |it| {
            format!("{}, {}", time(it.p50_ns as f64), time(it.p99_ns as f64))
        }));
    }
    cells
}

/// Before a rate that the way may exceed.
const fn at_least(it: &Capacity) -> &'static str {
    match it.outcome {
        Outcome::SenderLimit | Outcome::HighestRate => ">= ",
        Outcome::Found | Outcome::AlwaysLoses | Outcome::OutOfTrials => "",
    }
}

/// What the row does not say.
fn note(it: &Capacity) -> Option<String> {
    let lost: u64 =
        it.loaded.iter().filter_map(|it| it.flow.sent.checked_sub(it.flow.received)).sum();
    let mut notes = Vec::new();
    notes.extend(match it.outcome {
        Outcome::Found => None,
        Outcome::SenderLimit => Some(
            "the sender sent no more, or its kernel accepted no more; the way may carry more"
                .to_owned(),
        ),
        Outcome::HighestRate => {
            Some("nothing was lost at the highest rate that is tried".to_owned())
        }
        Outcome::AlwaysLoses => it.lossy_pps.map(|pps| {
            format!(
                "packets were lost at every rate that was tried, also at {} a second",
                grouped(pps)
            )
        }),
        Outcome::OutOfTrials => Some(format!(
            "the search ended after {} trials{}; the rate is less certain than the others",
            it.trials,
            it.lossy_pps.map_or_else(String::new, |pps| format!(
                ", with loss at {} packets/s",
                grouped(pps)
            )),
        )),
    });
    if lost > 0 {
        notes.push(format!("{} packets were lost beside the probes", grouped(lost)));
    }
    let lost_probes: u64 = it.loaded.iter().filter_map(|it| Some(it.probes.as_ref()?.lost)).sum();
    if lost_probes > 0 {
        notes.push(format!("{} probes were lost", grouped(lost_probes)));
    }
    notes.extend(it.trouble.clone());
    (!notes.is_empty())
        .then(|| format!("{}, {} sends: {}.", it.variant, it.way.sender(), notes.join("; ")))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::capacity::figures::CpuAMillion;
    use crate::capacity::search::Trial;
    use crate::capacity::{Loaded, Probed};
    use crate::plan::Way;

    #[test]
    fn rates_cpu_and_round_trips_are_in_a_row() {
        let flow = Trial { intended_pps: 15_000, sent: 7500, received: 7490, seconds: 0.5 };
        let probes = Probed { sent: 200, lost: 2, p50_ns: 300_000, p99_ns: 1_200_000, max_ns: 0 };
        let capacity = Capacity {
            variant: "tap-bridge".into(),
            way: Way::FromResponder,
            repeat: 1,
            packet_bytes: 1500,
            outcome: Outcome::SenderLimit,
            lossless_pps: Some(31_000),
            lossless_bits_per_s: Some(372_000_000),
            lossy_pps: None,
            trials: 2,
            cpu: Some(CpuAMillion {
                percent: 50,
                back_end_s: Some(4.25),
                front_end_s: Some(20.0),
                kernel_threads_s: 0.5,
                host_s: 40.0,
            }),
            loaded: vec![Loaded { percent: 50, flow, probes: Some(probes), cpu: None }],
            trouble: Some("no time".into()),
        };
        let text = to_text(&[capacity]);
        for part in [
            ">= 31",
            "372",
            "4.25 s",
            "300",
            "tap-bridge, responder sends",
            "10 packets were lost",
            "no time.",
        ] {
            assert!(text.contains(part), "{part} is not in:\n{text}");
        }
        assert_eq!(to_text(&[]), "");
    }
}
