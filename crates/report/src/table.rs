//! A breakdown as tables for a terminal.

use std::fmt::Write;

use burst_trace::{Direction, DropCause, Notification, Notifications, SocketEvent};
use comfy_table::{CellAlignment, Table, presets};

use crate::breakdown::{Breakdown, Window, WindowEnd};
use crate::collect::DirectionBreakdown;
use crate::cyclic;
use crate::interruption::InterruptionRow;
use crate::migration;
use crate::restart;
use crate::rollup::{Span, rollup};
use crate::round_trip::{Initiator, Parts, RoundTrip};
use crate::stage_table::{NOT_MEASURED, UPPER_BOUND, stage_table};
use crate::units::{grouped, percent, scaled, time};

/// Smallest mean of packets in a burst that is shown as more than 1.00.
const BURST_WORTH: f64 = 1.005;

/// The whole report: header, a table for each direction, the roll-up, the cyclic frames and the round trip if there are any.
#[must_use]
pub fn to_table(breakdown: &Breakdown, round_trip: Option<&RoundTrip>) -> String {
    let mut text = header(breakdown);
    for way in breakdown.directions() {
        text.push('\n');
        text += &direction(breakdown, way);
    }
    text += &interruptions(breakdown);
    text += &notifications(breakdown);
    let &Breakdown { ref migrations, ref restarts, restarted, sent_twice_max, .. } = breakdown;
    text += &migration::to_text(migrations);
    text += &restart::to_text(restarts, restarted, sent_twice_max);
    text.push('\n');
    text += &rollup_lines(&breakdown.rx);
    let cyclic = cyclic::to_text(&breakdown.cyclic);
    if !cyclic.is_empty() {
        text.push('\n');
        text += &cyclic;
    }
    if let Some(trip) = round_trip {
        text.push('\n');
        text += &round_trip_lines(trip);
    }
    text
}

fn header(breakdown: &Breakdown) -> String {
    let facts = &breakdown.facts;
    let mut line = vec![breakdown.name.clone()];
    line.extend(facts.datapath.iter().map(|datapath| format!("datapath {datapath}")));
    line.extend(facts.poll.iter().map(|poll| format!("poll {poll}")));
    line.extend(facts.version.iter().map(|version| format!("ringscoped {version}")));
    let rate = scaled(breakdown.ticks_per_second as f64);
    line.push(format!("clock {} {rate}Hz", breakdown.clock));
    let window = match (breakdown.window, breakdown.window_end) {
        (_, WindowEnd::Recording) => "of the recording, up to its end".to_owned(),
        (_, WindowEnd::Recordings) => "of the recordings together".to_owned(),
        (Window::Held, _) => "all that the recorder still holds".to_owned(),
        (Window::Last(_), WindowEnd::Now) => "up to now".to_owned(),
        (Window::Last(_), WindowEnd::NewestRecord) => {
            "up to the newest record: the daemon has ended".to_owned()
        }
    };
    let mut text = format!("{}\n{:.3} s, {window}\n", line.join(", "), breakdown.window_s);
    if !breakdown.features.is_empty() {
        let _ = writeln!(text, "the guest negotiated: {}", breakdown.features.join(" "));
    }
    if let (true, Window::Last(time)) = (breakdown.is_cut, breakdown.window) {
        let asked = time.as_secs_f64();
        let held = breakdown.window_s;
        let _ = writeln!(text, "note: {asked} s were asked for, the recorder holds {held:.3} s");
    }
    if breakdown.lost_records > 0 {
        let lost = grouped(breakdown.lost_records);
        let _ = writeln!(text, "note: {lost} records were overwritten while this was read");
    }
    if breakdown.malformed_records > 0 {
        let count = grouped(breakdown.malformed_records);
        let _ = writeln!(text, "note: {count} records are of a kind this version does not know");
    }
    text
}

fn direction(breakdown: &Breakdown, way: &DirectionBreakdown) -> String {
    let mut text = format!("{}: {} packets", title(way.direction), grouped(way.packets));
    if let (true, Some(burst)) = (way.packets > 0, way.mean_burst()) {
        let (bytes, bursts) = (grouped(way.bytes), grouped(way.bursts));
        let _ = write!(text, ", {bytes} bytes, {bursts} bursts of {burst:.2} packets");
        if breakdown.window_s > 0.0 {
            let rate = scaled(way.packets as f64 / breakdown.window_s);
            let _ = write!(text, ", {rate} packets/s");
        }
    }
    text.push('\n');
    text += &stage_table(&way.stages, &way.total, way.polled_packets > 0);
    text += &notes(way);
    text += &kernel_notes(breakdown, way);
    let span = counted_span(breakdown.window_end);
    text += &drops(way, breakdown.window, span);
    text += &events(way, span);
    text += &gro(way, span);
    if way.moves > 0 {
        let moves = grouped(way.moves);
        let _ = writeln!(text, "addresses that moved between ports of the switch {span}: {moves}");
    }
    text
}

/// The time over which everything is counted that is not read from the records.
fn counted_span(end: WindowEnd) -> &'static str {
    match end {
        WindowEnd::Recording | WindowEnd::Recordings => "in the recording's time",
        WindowEnd::NewestRecord | WindowEnd::Now => "since the daemon's start",
    }
}

fn gro(way: &DirectionBreakdown, span: &str) -> String {
    let Some((counts, mean)) = way.gro.and_then(|gro| Some((gro, gro.mean_segments()?))) else {
        return String::new();
    };
    let (segments, frames) = (grouped(counts.segments), grouped(counts.frames));
    format!("GRO {span}: {segments} frames in {frames} packets, {mean:.1} in each\n")
}

fn title(direction: Direction) -> &'static str {
    match direction {
        Direction::Tx => "guest to wire (tx)",
        Direction::Rx => "wire to guest (rx)",
    }
}

fn notes(way: &DirectionBreakdown) -> String {
    let mut text = String::new();
    if way.polled_packets > 0 {
        let share = percent(way.polled_packets as f64, way.packets as f64);
        let _ = writeln!(
            text,
            "{UPPER_BOUND} upper bound: {share} of the packets were found by polling, where notice \
             counts from the last look that found nothing"
        );
    }
    if let Some(burst) = way.mean_burst().filter(|&burst| burst >= BURST_WORTH) {
        let _ = writeln!(
            text,
            "bursts hold {burst:.2} packets: each packet's time is its burst's, although the first \
             ones of a burst may be through earlier"
        );
    }
    text
}

/// Notes on the kernel's stages, if they were requested: which were not measured and why, and which time is measured
/// twice.
fn kernel_notes(breakdown: &Breakdown, way: &DirectionBreakdown) -> String {
    let mut text = String::new();
    for (stage, state) in &breakdown.facts.kernel_stages {
        if let Some(reason) = state.strip_prefix("n/a: ")
            && way.stage(stage).is_some_and(|row| row.figures.is_none())
        {
            let _ = writeln!(text, "{stage} is not measured: {reason}");
        }
    }
    let on_tap = breakdown.facts.datapath.as_ref().is_some_and(|it| it.starts_with("tap:"));
    if on_tap && way.stage("host-tx").is_some_and(|row| row.figures.is_some()) {
        text += "host-tx lies within egress: on a tap, the host works on a frame in the worker's own call\n";
    }
    let inject = way.stage("inject");
    let is_on = |(stage, state): &(String, String)| stage == "inject" && state.starts_with("on");
    if inject.is_some() && breakdown.facts.kernel_stages.iter().any(is_on) {
        text += match inject.and_then(|row| row.figures) {
            Some(_) => {
                "inject ends where the front end's thread runs that interrupts the guest, which is emulated\n"
            }
            None => {
                "inject is not measured: no thread of the front end was woken up for it (with KVM the kernel itself \
                 interrupts the guest)\n"
            }
        };
    }
    if inject.and_then(|row| row.count).is_some_and(|count| count > way.packets) {
        text += "inject is counted for each interrupt, also those that only return sent buffers to the guest: more often than there are \
                 packets here\n";
    }
    let is_followed = |stage| way.stage(stage).and_then(|row| row.count).unwrap_or(way.packets);
    if ["host-tx", "host-rx"].into_iter().any(|stage| is_followed(stage) < way.packets) {
        text += "under load the host kernel's times are of sampled frames: per device, the first 16 in each kernel tick, then one in 64\n";
    }
    text
}

/// What kept threads from running, or why that is not known. Nothing if it was not asked for.
fn interruptions(breakdown: &Breakdown) -> String {
    let reason = |name| breakdown.facts.kernel_state(name)?.strip_prefix("n/a: ");
    let seen = match &breakdown.interruptions {
        None => {
            let why = reason("interruptions");
            return why
                .map_or_else(String::new, |why| format!("\nnot running is not measured: {why}\n"));
        }
        Some(rows) if rows.is_empty() => {
            "\nnot running: nothing kept a worker from running during a burst\n".into()
        }
        Some(rows) => interruption_table(rows),
    };
    let kvm = reason("kvm").map(|why| format!("exits of KVM are not measured: {why}\n"));
    seen + &kvm.unwrap_or_default()
}

fn interruption_table(rows: &[InterruptionRow]) -> String {
    let mut table = Table::new();
    table.load_preset(presets::NOTHING);
    table.set_header(["who", "times", "time", "longest", "why"]);
    for row in rows {
        table.add_row([
            row.who(),
            grouped(row.count),
            time(row.total_ns as f64),
            time(row.longest_ns as f64),
            row.words.clone(),
        ]);
    }
    for column in table.column_iter_mut().skip(1).take(3) {
        column.set_cell_alignment(CellAlignment::Right);
    }
    format!(
        "\nnot running: workers during a burst, other threads at any time\n{}\n",
        table.trim_fmt()
    )
}

/// What the kernel counted on AF_XDP sockets. That a transmit ring was empty is how every call to send ends, so it is left
/// out here; JSON and metrics have it.
fn events(way: &DirectionBreakdown, span: &str) -> String {
    let counted: Vec<_> = way
        .events
        .iter()
        .filter(|(event, count)| *count > 0 && *event != SocketEvent::TxRingEmpty)
        .map(|(event, count)| format!("{} {}", event.name(), grouped(*count)))
        .collect();
    if counted.is_empty() {
        return String::new();
    }
    format!("AF_XDP {span}, no losses by themselves: {}\n", counted.join(", "))
}

fn drops(way: &DirectionBreakdown, window: Window, counted_span: &str) -> String {
    if way.dropped() == 0 {
        return String::new();
    }
    let span = match window {
        Window::Held => counted_span,
        Window::Last(_) => "in this time",
    };
    let mut text = format!("drops {span}: {}\n", grouped(way.dropped()));
    for (cause, count) in way.drops.iter().filter(|(_, count)| *count > 0) {
        let _ = writeln!(text, "  {} {}", cause.name(), grouped(*count));
    }
    let is_unmapped = |(cause, count): &(DropCause, u64)| {
        *count > 0 && matches!(cause, DropCause::TxUnmapped | DropCause::RxUnmapped)
    };
    if way.drops.iter().any(is_unmapped) {
        text += "unmapped buffers lie outside of the memory that the front end shares: was memory plugged in without share=on, or \
                 as memory-backend-ram?\n";
    }
    text
}

/// A line for each queue with kicks or calls.
fn notifications(breakdown: &Breakdown) -> String {
    if breakdown.notifications.is_empty() {
        return String::new();
    }
    let span = counted_span(breakdown.window_end);
    let mut table = Table::new();
    table.load_preset(presets::NOTHING);
    table.set_header(["queue", "kicks", "calls sent", "calls suppressed", "calls refused"]);
    for (ring, counted) in &breakdown.notifications {
        let queue = format!("{ring} {}", Direction::of_ring(*ring).name());
        table.add_row([queue].into_iter().chain(counted.iter().map(|(_, count)| grouped(count))));
    }
    for column in table.column_iter_mut().skip(1) {
        column.set_cell_alignment(CellAlignment::Right);
    }
    let mut text = format!("\nnotifications {span}\n{}\n", table.trim_fmt());
    let is_refused =
        |(_, counted): &(u16, Notifications)| counted.of(Notification::CallRefused) > 0;
    if breakdown.notifications.iter().any(is_refused) {
        text += "refused: the front end does not read its call descriptor, or has closed its other end\n";
    }
    text
}

fn rollup_lines(rx: &DirectionBreakdown) -> String {
    let mut text = String::from("roll-up of the way to the guest (means)\n");
    for span in rollup(rx) {
        let _ = writeln!(text, "  ({}) {:<32} {}", span.letter, span.name, span_value(&span));
    }
    text
}

fn span_value(span: &Span) -> String {
    if let Some(mean_ns) = span.mean_ns {
        return time(mean_ns);
    }
    let missing = span.missing.join(", ");
    if span.known.is_empty() {
        return format!("{NOT_MEASURED}: {missing} not known");
    }
    let known = span.known.join(" + ");
    format!("{NOT_MEASURED}: {missing} not known; {known} = {}", time(span.known_ns))
}

fn round_trip_lines(trip: &RoundTrip) -> String {
    let measured = &trip.measured;
    let from = match trip.initiator {
        Initiator::Host => "host",
        Initiator::Guest => "guest",
    };
    let mut text = format!("round trip from the {from}: mean {}", time(measured.mean_ns));
    for (name, figure) in [("p50", measured.p50_ns), ("p99", measured.p99_ns)] {
        if let Some(ns) = figure {
            let _ = write!(text, ", {name} {}", time(ns));
        }
    }
    if let Some(received) = measured.received {
        let _ = write!(text, ", {} answers", grouped(received));
    }
    text.push('\n');
    match &trip.parts {
        Some(parts) => text += &parts_table(trip, parts),
        None => {
            let _ = writeln!(
                text,
                "  {NOT_MEASURED}: the records show no exchange: a request of one packet, and its \
                 answer in the same queue pair"
            );
        }
    }
    text += &round_trip_notes(trip);
    text
}

/// A row for each part, in the packet's order, with what the part includes.
fn parts_table(trip: &RoundTrip, parts: &Parts) -> String {
    let our_tx = ("our TX", parts.tx_ns, "wake to signalled: the stages of tx above");
    let our_rx = ("our RX", parts.rx_ns, "wake to signalled: the stages of rx above");
    let rows = match trip.initiator {
        Initiator::Host => [
            our_rx,
            (
                "guest's turn",
                parts.turn_ns,
                "interrupt into the guest, its stack, its program, its kick and our wakeup by it",
            ),
            our_tx,
            (
                "host's own share",
                parts.rest_ns,
                "what is left: the sender's stack both ways, bridge, tap and our wakeup by it",
            ),
        ],
        Initiator::Guest => [
            our_tx,
            (
                "host's turn",
                parts.turn_ns,
                "tap, bridge, the far end's stack and program, the way back and our wakeup by it",
            ),
            our_rx,
            (
                "guest's own share",
                parts.rest_ns,
                "what is left: its stack both ways, its kick, our wakeup by it and the interrupt",
            ),
        ],
    };
    let mut table = Table::new();
    table.load_preset(presets::NOTHING);
    for (name, ns, what) in rows {
        let share = percent(ns, trip.measured.mean_ns);
        table.add_row([name.to_owned(), time(ns), share, what.to_owned()]);
    }
    let whole = [trip.measured.mean_ns; 2];
    table.add_row([
        "round trip".into(),
        time(whole[0]),
        percent(whole[0], whole[1]),
        String::new(),
    ]);
    for column in table.column_iter_mut().skip(1).take(2) {
        column.set_cell_alignment(CellAlignment::Right);
    }
    format!("{}\n", table.trim_fmt())
}

fn round_trip_notes(trip: &RoundTrip) -> String {
    let mut text = String::new();
    if let Some(parts) = &trip.parts {
        let _ = writeln!(
            text,
            "means of {} exchanges in the records; of our TX, {} come after the datapath took the \
             frame, while the host is already at work on it",
            grouped(trip.exchanges),
            time(parts.after_egress_ns),
        );
        if parts.rest_ns < 0.0 {
            let _ = writeln!(
                text,
                "note: the parts are longer than the whole: the records are of other packets"
            );
        }
    }
    if trip.parts.is_some_and(|parts| parts.turn_ns < 0.0) {
        let _ = writeln!(
            text,
            "note: a turn below 0 means that the answer's burst began before the request's had ended"
        );
    }
    if trip.too_long > 0 {
        let count = grouped(trip.too_long);
        let _ = writeln!(
            text,
            "note: {count} pairs of records took longer than the longest round trip and do not count"
        );
    }
    if trip.is_of_other_packets() {
        let _ = writeln!(
            text,
            "note: the records show {} exchanges, the sender counted {}: the window holds other \
             traffic, or not all of the run; choose it with --last",
            grouped(trip.exchanges),
            grouped(trip.measured.received.unwrap_or(0)),
        );
    }
    text
}
