//! Target `recordings`: recorders, recordings and stamps with arbitrary contents.
//!
//! Whatever the bytes are, each reader refuses them or comes to an end, and so does every report.

use std::fs::File;
use std::io::Write as _;
use std::os::fd::AsRawFd as _;
use std::path::{Path, PathBuf};
use std::time::Duration;

use arbitrary::Arbitrary;
use burst_trace::file::{
    FACTS_BYTES_MAX, HEADER_WORDS, Layout, MAGIC, RECORDING_MAGIC, VERSION, word,
};
use burst_trace::record::RECORD_WORDS;
use burst_trace::{
    BurstRecord, Clocks, CyclicFrame, CyclicRecord, Ending, Gap, Migration, Milestone, ProbeRecord,
    Reader, Restart, Source, Step,
};
use report::csv::write_csv;
use report::hlog::write_hlog;
use report::html::write_html;
use report::journey::stamps::Stamps;
use report::journey::{self, Journeys, KnownClock};
use report::pcapng::write_pcapng;
use report::perfetto::write_perfetto;
use report::round_trip::{Exchanges, Measured};
use report::{Breakdown, Follower, Initiator, Window, figures::TickRate, json, table};
use rustix::fs::{MemfdFlags, memfd_create};

const RECORDS_MAX: usize = 256;
const WORKERS_MAX: usize = 4;
const PAIRS_MAX: usize = 4;
/// Longest report of such a small number of records, in bytes.
const REPORT_MAX: usize = 8 << 20;

/// A file, and how it is read.
#[derive(Arbitrary, Debug)]
pub struct Story {
    file: Contents,
    before: Option<Contents>,
    sender: Text,
    echo: Option<Text>,
    is_guest_first: bool,
    /// A report that first measures a clock. That takes a hundred times as long as the rest, so few inputs ask for it.
    slow: Slow,
}

#[derive(Arbitrary, Debug)]
enum Slow {
    None,
    /// The HTML page.
    Page(u8),
    /// The breakdown of the last time.
    Last(u8, u64),
}

/// What a file holds.
#[derive(Arbitrary, Debug)]
enum Contents {
    /// Any bytes.
    Raw(Vec<u8>),
    /// A file of the right shape, with any numbers.
    Shaped(Shaped),
}

#[derive(Arbitrary, Debug)]
struct Shaped {
    is_recording: bool,
    is_counted: bool,
    workers: u8,
    pairs: u8,
    log_capacity: u8,
    clock: u8,
    rate: Number,
    anchors: [Number; 6],
    facts: Facts,
    totals: Vec<(u16, Number)>,
    /// Number of records written by each worker.
    heads: Vec<Number>,
    records: Vec<Record>,
    /// Words of the file that are replaced.
    pokes: Vec<(u16, Number)>,
    /// Number of bytes missing at the end.
    cut: u16,
}

/// Numbers of every size, with few duplicates.
#[derive(Arbitrary, Clone, Copy, Debug)]
enum Number {
    Small(u8),
    Middle(u32),
    Any(u64),
    Most,
}

impl Number {
    const fn get(self) -> u64 {
        match self {
            Self::Small(number) => number as u64,
            Self::Middle(number) => number as u64,
            Self::Any(number) => number,
            Self::Most => u64::MAX,
        }
    }
}

#[derive(Arbitrary, Debug)]
enum Facts {
    None,
    Daemon,
    Text(String),
    Kernel(String, String),
}

impl Facts {
    fn bytes(&self) -> Vec<u8> {
        match self {
            Self::None => String::new(),
            Self::Daemon => r#"{"name":"vm0","datapath":"reflect","poll":"never"}"#.into(),
            Self::Text(text) => text.clone(),
            Self::Kernel(stage, state) => {
                serde_json::json!({"name": state, "kernel_stages": {stage: state}}).to_string()
            }
        }
        .into_bytes()
    }
}

/// A record after the one before it.
#[derive(Arbitrary, Debug)]
enum Record {
    Any([u64; RECORD_WORDS]),
    Burst { ring: u8, packets: u8, pause: u16, stages: [u16; 7], polled: bool, wakeup: Option<u16> },
    Drop { ring: u8, cause: u8, packets: u8 },
    Kernel { stage: u8, worker: u8, ring: u8, time: u16 },
    Probe { run: u8, sequence: u8 },
    Cyclic { description: u8, len: u8, stream: u8, counter: Number },
    Gap { worker: u8, lost: Number },
    Restart { before: Number, listening: u16, started: u16, after: u16, flags: u8 },
    Milestone { step: u8, ring: u8, writer: u8 },
    Migration { before: Number, stopped: u16, started: u16, after: u16, clocks: u8 },
}

/// A file of stamps, or of a measured round trip.
#[derive(Arbitrary, Debug)]
enum Text {
    Raw(Vec<u8>),
    Lines(Vec<(u8, u8, Number, Option<Number>, Option<Number>, Option<Number>)>),
}

/// Plays `story`.
pub fn play(story: &Story) {
    let file = Memory::new(&story.file.bytes());
    let before = story.before.as_ref().map(|it| Memory::new(&it.bytes()));
    if let Ok(reader) = Reader::open(file.path()) {
        follow(reader);
    }
    let Ok(source) = Source::open(file.path()) else { return };
    let last = match story.slow {
        Slow::Last(7, ns) => Some(Window::Last(Duration::from_nanos(ns))),
        _ => None,
    };
    for window in [Window::Held].into_iter().chain(last) {
        let rate = TickRate::new(source.ticks_per_second());
        let mut exchanges = Exchanges::new(Initiator::Host, source.queue_pairs(), rate, Some(1e6));
        let breakdown =
            Breakdown::read_with(&source, "file", window, |record| exchanges.add(record));
        let measured = Memory::new(br#"{"mean_ns":1000.5,"max_ns":2000}"#);
        let trip = Measured::read(measured.path()).map(|measured| exchanges.explain(measured));
        bounded(&table::to_table(&breakdown, trip.as_ref().ok()));
        bounded(&json::to_json(&breakdown));
    }
    let initiator = if story.is_guest_first { Initiator::Guest } else { Initiator::Host };
    let stamps = |text: &Text| Stamps::read(Memory::new(&text.bytes()).path()).ok();
    let journeys = stamps(&story.sender).map(|sender| {
        let echo = story.echo.as_ref().and_then(stamps);
        Journeys::join(&source, initiator, &sender, echo.as_ref(), &KnownClock::default())
    });
    if let Some(journeys) = &journeys {
        let mut out = Vec::new();
        journey::write_csv(&mut out, journeys).unwrap();
        bounded(&String::from_utf8(out).expect("text"));
        bounded(&journey::to_text(journeys));
        bounded(&journey::to_json(journeys));
    }
    let mut out = Sink::default();
    let other = before.as_ref().and_then(|it| Source::open(it.path()).ok());
    if let (Ok(again), Some(other)) = (Source::open(file.path()), other)
        && let Ok(joined) = Source::join(vec![(again, "file".into()), (other, "other".into())])
    {
        let breakdown = Breakdown::read(&joined, "file", Window::Held);
        bounded(&table::to_table(&breakdown, None));
        bounded(&json::to_json(&breakdown));
        write_csv(&mut out, &joined, |_| {}).unwrap();
        write_perfetto(&mut out, &joined, "file", |_| {}).unwrap();
    }
    write_csv(&mut out, &source, |_| {}).unwrap();
    write_pcapng(&mut out, &source, "file", |_| {}).unwrap();
    write_perfetto(&mut out, &source, "file", |_| {}).unwrap();
    // Times that do not fit a histogram are reported as an error.
    let _ = write_hlog(&mut out, &source, |_| {});
    if let Slow::Page(7) = story.slow {
        let before = before.and_then(|it| Source::open(it.path()).ok());
        write_html(
            &mut out,
            &source,
            before.as_ref().map(|it| (it, "before")),
            journeys.as_ref(),
            "file",
            || {},
        )
        .unwrap();
    }
}

fn follow(reader: Reader) {
    let mut cursors: Vec<_> = (0..reader.workers()).map(|worker| reader.newest(worker)).collect();
    for cursor in &mut cursors {
        assert_eq!(reader.read(cursor, |_| panic!("a record after the newest")), 0);
    }
    let mut follower = Follower::new(reader);
    follower.poll();
    let interval = follower.take();
    bounded(&json::interval_to_json(&interval, "file", Duration::ZERO));
}

/// Checks that a text has a reasonable length and no control characters for a terminal.
fn bounded(text: &str) {
    assert!(text.len() < REPORT_MAX, "{} bytes", text.len());
    let steers = |it: char| it.is_control() && !matches!(it, '\n' | '\t');
    assert!(!text.contains(steers), "{:?}", text.chars().find(|it| steers(*it)));
}

/// Counts the bytes written.
#[derive(Default)]
struct Sink(usize);

impl std::io::Write for Sink {
    fn write(&mut self, bytes: &[u8]) -> std::io::Result<usize> {
        self.0 += bytes.len();
        assert!(self.0 < REPORT_MAX, "a report without an end");
        Ok(bytes.len())
    }

    fn flush(&mut self) -> std::io::Result<()> {
        Ok(())
    }
}

/// A file that is in no file system's directory.
struct Memory {
    _file: File,
    path: PathBuf,
}

impl Memory {
    fn new(bytes: &[u8]) -> Self {
        let mut file = File::from(memfd_create("fuzz", MemfdFlags::CLOEXEC).unwrap());
        file.write_all(bytes).unwrap();
        let path = format!("/proc/self/fd/{}", file.as_raw_fd()).into();
        Self { _file: file, path }
    }

    fn path(&self) -> &Path {
        &self.path
    }
}

impl Text {
    fn bytes(&self) -> Vec<u8> {
        let lines = match self {
            Self::Raw(bytes) => return bytes.clone(),
            Self::Lines(lines) => lines,
        };
        let mut text =
            "run,sequence,sent_ns,sent_kernel_ns,received_kernel_ns,received_ns\n".to_owned();
        for (run, sequence, sent, a, b, c) in lines {
            let field = |it: &Option<Number>| it.map_or(String::new(), |it| it.get().to_string());
            let (sent, a, b, c) = (sent.get(), field(a), field(b), field(c));
            text += &format!("{},{},{sent},{a},{b},{c}\n", run % 2, sequence % 8);
        }
        text.into_bytes()
    }
}

impl Contents {
    fn bytes(&self) -> Vec<u8> {
        match self {
            Self::Raw(bytes) => bytes.clone(),
            Self::Shaped(shaped) => shaped.bytes(),
        }
    }
}

impl Shaped {
    fn bytes(&self) -> Vec<u8> {
        let layout = Layout {
            workers: usize::from(self.workers) % WORKERS_MAX + 1,
            queue_pairs: usize::from(self.pairs) % PAIRS_MAX + 1,
            capacity: 1 << (self.log_capacity % 7),
        };
        let records = self.records();
        let len = if self.is_recording {
            layout.records(0) + records.len() * RECORD_WORDS
        } else {
            layout.words()
        };
        let mut words = vec![0_u64; len];
        words[word::MAGIC] = if self.is_recording { RECORDING_MAGIC } else { MAGIC };
        words[word::VERSION] = VERSION;
        words[word::WORKERS] = layout.workers as u64;
        words[word::QUEUE_PAIRS] = layout.queue_pairs as u64;
        words[word::CAPACITY] = layout.capacity as u64;
        words[word::CLOCK] = u64::from(self.clock % 3) + 1;
        words[word::TICKS_PER_SECOND] = self.rate.get();
        words[word::PID] = 1;
        words[word::COUNTED] = self.is_counted.into();
        let facts = self.facts.bytes();
        words[word::FACTS_LEN] = facts.len() as u64;
        for (word, chunk) in words[word::FACTS..HEADER_WORDS].iter_mut().zip(facts.chunks(8)) {
            let mut bytes = [0; 8];
            bytes[..chunk.len()].copy_from_slice(chunk);
            *word = u64::from_le_bytes(bytes);
        }
        assert!(FACTS_BYTES_MAX == (HEADER_WORDS - word::FACTS) * 8);
        for (n, anchor) in self.anchors.iter().enumerate() {
            let at = if n < 3 { word::ANCHOR_START + n } else { word::ANCHOR_LATEST + n - 3 };
            words[at] = anchor.get();
        }
        for (at, total) in &self.totals {
            let rings = layout.head(0) - HEADER_WORDS;
            words[HEADER_WORDS + usize::from(*at) % rings] = total.get();
        }
        if self.is_recording {
            let places = words[layout.records(0)..].chunks_mut(RECORD_WORDS);
            places.zip(&records).for_each(|(to, record)| to.copy_from_slice(record));
        } else {
            self.fill(&layout, &records, &mut words);
        }
        for (at, value) in &self.pokes {
            if let Some(word) = words.get_mut(usize::from(*at)) {
                *word = value.get();
            }
        }
        let mut bytes: Vec<u8> = words.into_iter().flat_map(u64::to_ne_bytes).collect();
        bytes.truncate(bytes.len().saturating_sub(self.cut.into()));
        bytes
    }

    /// Writes the records of a recorder. A worker's head says how many it has written: the number of records, or any
    /// number.
    fn fill(&self, layout: &Layout, records: &[[u64; RECORD_WORDS]], words: &mut [u64]) {
        for worker in 0..layout.workers {
            let head = self.heads.get(worker).map_or(records.len() as u64, |head| head.get());
            words[layout.head(worker)] = head;
            let first = layout.records(worker);
            for (slot, record) in records.iter().enumerate().take(layout.capacity) {
                words[first + slot * RECORD_WORDS..][..RECORD_WORDS].copy_from_slice(record);
            }
        }
    }

    fn records(&self) -> Vec<[u64; RECORD_WORDS]> {
        let mut now = self.anchors[3].get().wrapping_add(1 << 32);
        let mut before = BurstRecord::default();
        let mut words = Vec::new();
        for record in self.records.iter().take(RECORDS_MAX) {
            match record {
                Record::Any(any) => words.push(*any),
                Record::Burst { ring, packets, pause, stages, polled, wakeup } => {
                    let stages = stages.map(u64::from);
                    let first = now.wrapping_add((*pause).into());
                    let last = first.wrapping_add(stages.iter().sum());
                    now = last;
                    before = BurstRecord {
                        first,
                        last,
                        stages,
                        sequence: before.sequence.wrapping_add(before.packets.into()),
                        bytes: u32::from(*packets) * 60,
                        packets: (*packets).into(),
                        ring: (ring % 10).into(),
                        is_polled: *polled,
                        worker: ring / 64,
                        wakeup: wakeup.map(u32::from),
                        ..before
                    };
                    words.push(burst_trace::Record::Burst(before).to_words());
                }
                Record::Drop { ring, cause, packets } => {
                    let (ring, packets) = (u64::from(ring % 10), u64::from(*packets));
                    let last = 2 | u64::from(*cause) << 16;
                    words.push([now, now, 0, 0, 0, 0, packets << 32 | ring << 48, last]);
                }
                Record::Kernel { stage, worker, ring, time } => {
                    let first = now.wrapping_sub((*time).into());
                    let (worker, ring) = (u64::from(*worker), u64::from(ring % 10));
                    let last = 3 | u64::from(stage % 6) << 16;
                    words.push([first, now, 0, 0, 0, 0, worker | ring << 48, last]);
                }
                Record::Probe { run, sequence } => {
                    let (run, sequence) = ((run % 2).into(), (sequence % 8).into());
                    let (packets, times) = (before.packets, before.times());
                    let probe = ProbeRecord { run, sequence, packets, times };
                    words.push(burst_trace::Record::Probe(probe).to_words());
                }
                Record::Cyclic { description, len, stream, counter } => {
                    let counter_len = len % 8 + 1;
                    let mask = u64::MAX >> (64 - 8 * u32::from(counter_len));
                    let frame = CyclicFrame {
                        description: description % 16,
                        counter_len,
                        stream: (*stream).into(),
                        counter: counter.get() & mask,
                    };
                    let (packets, times) = (before.packets, before.times());
                    let cyclic = CyclicRecord { frame, packets, times };
                    words.push(burst_trace::Record::Cyclic(cyclic).to_words());
                }
                Record::Gap { worker, lost } => {
                    let gap = Gap { writer: *worker, records: lost.get(), at: now };
                    words.push(burst_trace::Record::Gap(gap).to_words());
                }
                Record::Restart { before, listening, started, after, flags } => {
                    let ago = |ticks: &u16| now.wrapping_sub((*ticks).into());
                    let restart = Restart {
                        before: before.get(),
                        listening: ago(listening),
                        started: ago(started),
                        after: ago(after),
                        ending: [Ending::Ended, Ending::Killed, Ending::TakenOver]
                            [usize::from(flags & 1) + usize::from(flags >> 2 & 1)],
                        is_resumed: flags & 2 != 0,
                        processes: [(*flags).into(), (flags >> 3).into()],
                        writer: flags >> 6,
                    };
                    words.push(burst_trace::Record::Restart(restart).to_words());
                }
                Record::Milestone { step, ring, writer } => {
                    let step = match step % 5 {
                        0 => Step::FrontEndCame,
                        1 => Step::FrontEndLeft,
                        2 => Step::RingStarted((*ring).into()),
                        3 => Step::RingStopped((*ring).into()),
                        _ => Step::Announced([*ring; 6]),
                    };
                    let milestone = Milestone { at: now, step, writer: *writer };
                    words.push(burst_trace::Record::Milestone(milestone).to_words());
                }
                Record::Migration { before, stopped, started, after, clocks } => {
                    let ago = |ticks: &u16| now.wrapping_sub((*ticks).into());
                    let migration = Migration {
                        before: before.get(),
                        stopped: ago(stopped),
                        left: now,
                        connected: before.get(),
                        started: ago(started),
                        announced: now,
                        after: ago(after),
                        sent: now,
                        clocks: match clocks % 3 {
                            0 => Clocks::Same,
                            1 => Clocks::Within((*clocks).into()),
                            _ => Clocks::Unknown,
                        },
                        writer: clocks >> 6,
                    };
                    words.push(burst_trace::Record::Migration(migration).to_words());
                }
            }
        }
        words
    }
}
