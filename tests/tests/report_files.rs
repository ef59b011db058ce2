//! What `ringscope report` writes for other tools says what the recording says: a trace for Perfetto, and a capture that
//! tshark reads.

use std::collections::{BTreeMap, HashSet};
use std::io::Write as _;
use std::path::Path;
use std::process::{Command, Stdio};
use std::time::Duration;

use burst_trace::{BurstRecord, Direction, DropRecord, Record, Source, Stage};
use frontend::{Guest, GuestOptions};
use report::figures::TickRate;
use report::when::When;
use ringscope_tests::daemon::{Daemon, program};
use ringscope_tests::eventually::{eventually, when};
use ringscope_tests::frames;
use ringscope_tests::perfetto::Trace;

const SOON: Duration = Duration::from_secs(10);
/// How many frames are sent at a time.
const ROUND: usize = 120;

/// A recording of a run with bursts that had to queue and with drops, and what is in it.
fn record(directory: &Path) -> (Source, Vec<Record>, std::path::PathBuf) {
    let arguments = ["--datapath", "reflect", "--fault", "drop=0.1,seed=1"];
    let daemon = Daemon::start(directory, "files", &arguments).unwrap();
    let mut guest = Guest::connect(daemon.socket(), GuestOptions::default()).unwrap();
    let file = directory.join("files.rec");
    let mut command = Command::new(program("ringscope").unwrap());
    // It ends by itself, also when this test does not come so far.
    command.args(["record", "--seconds", "2", "--run-dir"]).arg(directory).arg("-o").arg(&file);
    let mut recorder = command.stdout(Stdio::null()).stderr(Stdio::null()).spawn().unwrap();
    let part = directory.join("files.rec.part");
    eventually(SOON, "a recording to begin", || when(part.exists(), "no file of it"));
    for round in 0..20 {
        for n in 0..ROUND {
            assert!(guest.pair(0).queue(&frames::frame(round * ROUND + n, 60 + 7 * n)).unwrap());
        }
        guest.pair(0).flush().unwrap();
        let mut back = 0;
        eventually(SOON, &format!("{ROUND} buffers to come back"), || {
            while guest.pair(0).receive_within(Duration::from_millis(5)).unwrap().is_some() {}
            back += guest.pair(0).reap().unwrap();
            when(back >= ROUND, back)
        });
    }
    assert!(recorder.wait().unwrap().success(), "ringscope record");
    let source = Source::open(&file).unwrap();
    let mut records = Vec::new();
    assert_eq!(source.read(|record| records.push(*record)), 0);
    (source, records, file)
}

fn report(file: &Path, format: &str) -> Vec<u8> {
    let mut command = Command::new(program("ringscope").unwrap());
    let output = command.arg("report").arg(file).args(["--format", format]).output().unwrap();
    assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
    output.stdout
}

fn bursts(records: &[Record]) -> impl Iterator<Item = &BurstRecord> {
    records.iter().filter_map(Record::as_burst)
}

fn drops(records: &[Record]) -> impl Iterator<Item = &DropRecord> {
    records.iter().filter_map(|record| match record {
        Record::Drop(drop) => Some(drop),
        _ => None,
    })
}

#[test]
fn perfetto_and_tshark_read_what_was_recorded() {
    let directory = tempfile::tempdir().unwrap();
    let (source, records, file) = record(directory.path());
    assert!(bursts(&records).count() >= 40 && drops(&records).next().is_some());
    let trace = report(&file, "perfetto");
    check_perfetto(&source, &records, &trace);
    check_perfetto_knows(&trace);
    let capture = directory.path().join("files.pcapng");
    std::fs::write(&capture, report(&file, "pcapng")).unwrap();
    check_pcapng(&source, &records, &capture);
}

fn check_perfetto(source: &Source, records: &[Record], trace: &[u8]) {
    let (when, trace) = (When::of(source), Trace::read(trace));
    // Each burst is there with its times and its stages, and nothing else is.
    let mut expected = BTreeMap::new();
    for burst in bursts(records) {
        let track = format!("{} {}", burst.direction().name(), burst.ring);
        let mut at = burst.first;
        let mut stages = Vec::new();
        for (stage, ticks) in burst.direction().stages().iter().zip(burst.stages) {
            let (from, to) = (when.monotonic_ns(at), when.monotonic_ns(at + ticks));
            at += ticks;
            if to > from {
                stages.push((stage.name().to_owned(), from, to));
            }
        }
        let whole = (when.monotonic_ns(burst.first), when.monotonic_ns(burst.last));
        let numbers = (u64::from(burst.packets), u64::from(burst.bytes));
        expected.insert((track, burst.sequence), (whole, numbers, stages));
    }
    let mut found = BTreeMap::new();
    for (n, slice) in trace.slices.iter().enumerate() {
        if slice.name == "burst" {
            assert_eq!(slice.parent, None, "bursts of one track do not overlap: {slice:?}");
            let inner = trace.slices.iter().skip(n).filter(|inner| inner.parent == Some(n));
            let stages = inner
                .filter_map(|inner| Some((inner.name.clone(), inner.start_ns, inner.end_ns?)))
                .collect();
            let whole = (slice.start_ns, slice.end_ns.expect("an end"));
            let numbers = (slice.notes["packets"], slice.notes["bytes"]);
            let key = (slice.track.clone(), slice.notes["sequence"]);
            assert!(
                found.insert(key, (whole, numbers, stages)).is_none(),
                "{slice:?} is there twice"
            );
        }
    }
    assert_eq!(found.len(), bursts(records).count());
    assert!(found == expected, "expected {expected:#?}, found {found:#?}");
    let lost: HashSet<_> = drops(records)
        .map(|drop| (when.monotonic_ns(drop.at), format!("drop {}", drop.cause.name())))
        .collect();
    let instants = trace.slices.iter().filter(|slice| slice.end_ns.is_none());
    let instants: HashSet<_> = instants.map(|slice| (slice.start_ns, slice.name.clone())).collect();
    assert_eq!(instants, lost);
    // The guest filled its ring with more than one burst.
    let lanes = trace.tracks.values().filter(|(_, name)| name == "tx 1").count();
    assert!(lanes > 1, "{lanes} tracks of a queue in which bursts had to wait");
}

/// Perfetto's own definitions have a name for everything in `trace`: nothing is lost by reading and writing it with them.
fn check_perfetto_knows(trace: &[u8]) {
    const KNOWN: &str = "
import sys
from perfetto.protos.perfetto.trace.perfetto_trace_pb2 import Trace
trace = Trace.FromString(sys.stdin.buffer.read())
trace.DiscardUnknownFields()
sys.stdout.buffer.write(trace.SerializeToString())
";
    let python = Path::new(env!("CARGO_MANIFEST_DIR")).join("../target/perfetto/bin/python");
    let mut python = Command::new(python)
        .args(["-c", KNOWN])
        .stdin(Stdio::piped())
        .stdout(Stdio::piped())
        .spawn()
        .expect("Perfetto's definitions: qemu-scripts/setup --tests installs them");
    // It reads to the end before it writes.
    python.stdin.take().unwrap().write_all(trace).unwrap();
    let known = python.wait_with_output().unwrap();
    assert!(known.status.success());
    assert!(known.stdout == trace, "{} bytes of {} are known", known.stdout.len(), trace.len());
}

fn check_pcapng(source: &Source, records: &[Record], capture: &Path) {
    let fields = ["time_epoch", "len", "cap_len", "packet_flags_direction", "comment"];
    let mut tshark = Command::new("tshark");
    tshark.arg("-r").arg(capture).args(["-T", "fields"]);
    fields.iter().for_each(|field| _ = tshark.arg("-e").arg(format!("frame.{field}")));
    let output = tshark.output().expect("tshark: qemu-scripts/setup --tests installs it");
    assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
    let found = String::from_utf8(output.stdout).unwrap();
    let (when, rate) = (When::of(source), TickRate::new(source.ticks_per_second()));
    let mut lines = found.lines();
    for record in records {
        let ring = match record {
            Record::Burst(burst) => burst.ring,
            Record::Drop(drop) => drop.ring,
            _ => continue,
        };
        let direction = Direction::of_ring(ring);
        let mut comment = format!("{} ring={ring}", direction.name());
        let mut len = 0;
        if let Record::Burst(burst) = record {
            comment += &format!(" burst={} frames={}", burst.sequence, burst.packets);
            let stages = direction.stages().iter().zip(burst.stages);
            // No guest here has a limit.
            for (stage, ticks) in stages.filter(|(stage, _)| **stage != Stage::Limited) {
                comment += &format!(" {}={}ns", stage.name(), rate.ns(ticks));
            }
            if burst.is_polled {
                comment += " polled";
            }
            len = (f64::from(burst.bytes) / f64::from(burst.packets)).round() as u32;
        } else if let Record::Drop(drop) = record {
            comment += &format!(" drop={} packets={}", drop.cause.name(), drop.packets);
        }
        let line: Vec<_> = lines.next().expect("a packet of this record").split('\t').collect();
        let (seconds, rest) = line[0].split_once('.').expect("a time with its fraction");
        let ns = seconds.parse::<u64>().unwrap() * 1_000_000_000 + rest.parse::<u64>().unwrap();
        assert_eq!((rest.len(), ns), (9, when.realtime_ns(record.first())), "{line:?}");
        let way = if direction.name() == "tx" { 2 } else { 1 };
        let way_found = line[3].trim_start_matches("0x").parse::<u32>();
        assert_eq!(way_found, Ok(way), "{line:?}");
        assert_eq!((line[1], line[2], line[4]), (&*len.to_string(), "0", &*comment));
    }
    assert_eq!(lines.next(), None, "no packet without a record");
}
