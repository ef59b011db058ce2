//! Cyclic frames as tables with notes, for a person to read.

use std::fmt::Write;

use burst_trace::Direction;
use comfy_table::{CellAlignment, Table, presets};

use super::{CyclicTraffic, Event, EventKind, Group, SlowFrame, Stream};
use crate::stage_table::stage_table;
use crate::units::{grouped, time, time_of_day};

/// Most streams of a group that have a line. JSON has all of them.
const STREAMS_SHOWN: usize = 40;
/// Most events of a group that have a line.
const EVENTS_SHOWN: usize = 10;

/// The section of a report. Empty if no cyclic frames were asked for and none are recorded.
#[must_use]
pub fn to_text(traffic: &CyclicTraffic) -> String {
    let mut text = String::new();
    if traffic.is_empty() {
        return text;
    }
    for group in &traffic.groups {
        text += &of_group(group);
        text.push('\n');
    }
    for description in &traffic.unseen {
        let _ = writeln!(
            text,
            "cyclic frames {description}: none; check EtherType, VLAN and OFFSET: a frame that ends before its counter \
             does not count"
        );
    }
    if traffic.left_out > 0 {
        let frames = grouped(traffic.left_out);
        let _ = writeln!(
            text,
            "note: {frames} cyclic frames of further streams were left out; check the stream fields, or limit them with \
             vlan=ID"
        );
    }
    if traffic.lost_records > 0 {
        let lost = grouped(traffic.lost_records);
        let _ =
            writeln!(text, "note: {lost} records are missing; their counters count as lost here");
    }
    text
}

fn of_group(group: &Group) -> String {
    let way = match group.direction {
        Direction::Tx => "from the guest (tx)",
        Direction::Rx => "to the guest (rx)",
    };
    let (description, frames) = (&group.description, grouped(group.frames));
    let mut text = format!("cyclic frames {way}, {description}: {frames}\n");
    text += &stream_table(&group.streams);
    for stream in &group.streams {
        text += &advice(stream);
    }
    text += &events(&group.streams);
    let is_lossy = group.streams.iter().any(|stream| stream.lost > 0);
    if is_lossy && group.drops > 0 {
        let drops = grouped(group.drops);
        let _ = writeln!(
            text,
            "lost frames did not reach the daemon, or are among the {drops} packets of this direction that it dropped"
        );
    }
    text.push('\n');
    text += &stage_table(&group.stages, &group.total, group.polled > 0);
    text += arrivals(group);
    for (n, frame) in group.slowest.iter().enumerate() {
        let _ = writeln!(text, "{} {}", if n == 0 { "slowest" } else { "       " }, slow(frame));
    }
    text
}

fn stream_table(streams: &[Stream]) -> String {
    let has_names = streams.iter().any(|stream| !stream.stream.is_empty());
    let mut table = Table::new();
    table.load_preset(presets::NOTHING);
    let heads = [
        "stream",
        "frames",
        "lost",
        "twice",
        "late",
        "jumps",
        "period",
        "jitter",
        "min",
        "p99",
        "max",
        "in daemon",
        "max",
    ];
    table.set_header(heads.into_iter().skip(usize::from(!has_names)));
    for stream in streams.iter().take(STREAMS_SHOWN) {
        let mut cells = vec![stream.stream.clone()];
        let counts = [stream.frames, stream.lost, stream.duplicates, stream.late, stream.jumps];
        cells.extend(counts.map(grouped));
        match &stream.period {
            None => cells.extend(["-"; 5].map(str::to_owned)),
            Some(period) => {
                cells.extend([period.mean_ns, period.jitter_ns].map(time));
                cells.extend(
                    [period.min_ns, period.p99_ns, period.max_ns].map(|ns| time(ns as f64)),
                );
            }
        }
        cells.extend([stream.mean_ns, stream.max_ns as f64].map(time));
        table.add_row(cells.into_iter().skip(usize::from(!has_names)));
    }
    for column in table.column_iter_mut().skip(usize::from(has_names)) {
        column.set_cell_alignment(CellAlignment::Right);
    }
    let mut text = format!("{}\n", table.trim_fmt());
    if let Some(more) = streams.len().checked_sub(STREAMS_SHOWN).filter(|more| *more > 0) {
        let _ = writeln!(text, "and {more} more streams: --format json has all of them");
    }
    text
}

/// What to change in the description, if the counter does not move as it says.
fn advice(stream: &Stream) -> String {
    let of = if stream.stream.is_empty() { String::new() } else { format!(" {}", stream.stream) };
    match stream.usual_step {
        None => String::new(),
        Some(0) => format!(
            "note: the counter of stream{of} stays the same in most frames: check OFFSET and LEN, and whether several frames \
             have one counter (stream@OFFSET/LEN)\n"
        ),
        Some(step) if step.is_power_of_two() && step.trailing_zeros().is_multiple_of(8) => format!(
            "note: the counter of stream{of} mostly moves by {step}, a byte other than its last one: is it little endian (le), \
             or longer or shorter than LEN?\n"
        ),
        Some(step) => {
            format!("note: the counter of stream{of} mostly moves by {step}: add step={step}\n")
        }
    }
}

fn events(streams: &[Stream]) -> String {
    let mut all: Vec<(&str, &Event)> = streams
        .iter()
        .flat_map(|stream| stream.events.iter().map(|event| (stream.stream.as_str(), event)))
        .collect();
    all.sort_by_key(|(_, event)| event.at_ns);
    let mut text = String::new();
    for (stream, event) in all.iter().take(EVENTS_SHOWN) {
        let (counter, at) = (event.counter, time_of_day(event.at_ns));
        let of = if stream.is_empty() { String::new() } else { format!(" of stream {stream}") };
        let what = match event.kind {
            EventKind::Gap => format!("{} lost before counter {counter}{of}", grouped(event.lost)),
            EventKind::Duplicate => format!("counter {counter}{of} came twice"),
            EventKind::Late => format!("counter {counter}{of} came late"),
            EventKind::Jump => format!("the counter{of} jumped to {counter}"),
        };
        let _ = writeln!(text, "  {at} {what}");
    }
    let further: u64 = streams.iter().map(|stream| stream.further_events).sum();
    let more = further + all.len().saturating_sub(EVENTS_SHOWN) as u64;
    if more > 0 {
        let _ = writeln!(text, "  and {} more", grouped(more));
    }
    text
}

/// Which arrival the period is of.
const fn arrivals(group: &Group) -> &'static str {
    if group.stamped == group.frames {
        "a frame arrives when the host kernel stamps the first one of its burst\n"
    } else if group.stamped == 0 {
        "a frame arrives when the worker sees its burst: the end of notice\n"
    } else {
        "a frame arrives when the host kernel stamps the first one of its burst; without a stamp, when the worker sees it\n"
    }
}

fn slow(frame: &SlowFrame) -> String {
    let mut stages = frame.stages_ns.clone();
    stages.sort_by_key(|(_, ns)| std::cmp::Reverse(*ns));
    // Without a stamp the frame arrived after these.
    let is_before =
        |stage: &str| !frame.stamped && matches!(stage, "host-rx" | "wakeup" | "notice");
    let stages = stages.iter().filter(|(stage, ns)| *ns > 0 && !is_before(stage)).take(3);
    let stages: Vec<_> =
        stages.map(|(stage, ns)| format!("{stage} {}", time(*ns as f64))).collect();
    let of = if frame.stream.is_empty() { String::new() } else { format!(" of {}", frame.stream) };
    format!(
        "{} counter {}{of}: {}, of it {}",
        time_of_day(frame.at_ns),
        frame.counter,
        time(frame.total_ns as f64),
        stages.join(", ")
    )
}
