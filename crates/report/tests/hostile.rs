//! Recorders and recordings that nobody's daemon wrote: every report ends, without a panic, in little memory.

use std::fs::OpenOptions;
use std::io;
use std::os::unix::fs::FileExt as _;
use std::path::Path;
use std::time::{Duration, Instant};

use burst_trace::file::{Layout, MAGIC, RECORDING_MAGIC, VERSION, word};
use burst_trace::record::RECORD_WORDS;
use burst_trace::{Clock, Record, Source};
use report::html::write_html;
use report::journey::stamps::{GuestStages, ProbeId, ReceptionStamps, Stamp, Stamps};
use report::journey::{self, Journeys, KnownClock};
use report::{Breakdown, Follower, Initiator, Window, json, table};

/// A generator of numbers that are the same in every run (Marsaglia's xorshift64).
struct Numbers(u64);

impl Numbers {
    fn next(&mut self) -> u64 {
        self.0 ^= self.0 << 13;
        self.0 ^= self.0 >> 7;
        self.0 ^= self.0 << 17;
        self.0
    }

    /// One that is likely to be near a limit.
    fn odd(&mut self) -> u64 {
        let near = [0, 1, 1 << 31, u64::from(u32::MAX), 1 << 32, 1 << 63, u64::MAX][self.below(7)];
        match self.below(3) {
            0 => near.wrapping_add(self.next() % 5).wrapping_sub(2),
            1 => self.next() >> self.below(64),
            _ => self.next() % 1000,
        }
    }

    fn below(&mut self, limit: usize) -> usize {
        usize::try_from(self.next() % limit as u64).unwrap()
    }
}

/// A file of few records, whose numbers are anything.
fn file(numbers: &mut Numbers, is_recording: bool) -> Vec<u64> {
    let layout = Layout { workers: 2, queue_pairs: 1, capacity: 16 };
    let mut words = vec![0; layout.words()];
    words[word::MAGIC] = if is_recording { RECORDING_MAGIC } else { MAGIC };
    words[word::VERSION] = VERSION;
    words[word::WORKERS] = 2;
    words[word::QUEUE_PAIRS] = 1;
    words[word::CAPACITY] = 16;
    words[word::CLOCK] = Clock::new().kind() as u64;
    for word in &mut words[word::TICKS_PER_SECOND..layout.records(0)] {
        if numbers.below(3) == 0 {
            *word = numbers.odd();
        }
    }
    words[word::ANCHOR_VERSION] &= !1;
    for record in words[layout.records(0)..].chunks_exact_mut(RECORD_WORDS) {
        record.iter_mut().for_each(|word| *word = numbers.odd());
        // Mostly of a kind that is read.
        if numbers.below(4) > 0 {
            record[7] = record[7] & !0xff | numbers.below(8) as u64;
        }
        // A cyclic frame with a counter of 8 bytes has any counter; a few streams are met again.
        if record[7] & 0xff == 6 {
            record[7] = record[7] & !(0xff << 16) | 0x80 << 16 | (numbers.below(4) as u64) << 16;
            record[6] &= !0xffff_fffe;
        }
        // An interruption has a cause, and is of a thread of the guest's.
        if record[7] & 0xff == 7 {
            let (subject, cause) = (numbers.below(3) as u64, 1 + numbers.below(9) as u64);
            record[7] = record[7] & !(0xffff << 8) | subject << 8 | cause << 16;
            record[6] = record[6] & !0xffff_ffff | numbers.below(2) as u64;
        }
        if numbers.below(2) == 0 {
            record[6] = record[6] & !(0xffff << 48) | (numbers.below(2) as u64) << 48;
        }
    }
    words
}

/// Writes the file in place: it may be mapped.
fn write(path: &Path, words: &[u64]) {
    let file = OpenOptions::new().write(true).create(true).truncate(false).open(path).unwrap();
    let bytes: Vec<_> = words.iter().flat_map(|word| word.to_ne_bytes()).collect();
    file.write_all_at(&bytes, 0).unwrap();
}

/// Stamps of probes that the records may have.
fn stamps(source: &Source, numbers: &mut Numbers) -> Stamps {
    let mut stamps = Stamps { guest_stages: GuestStages::Stamped, ..Stamps::default() };
    source.read(|record| {
        let Record::Probe(probe) = record else { return };
        let id = ProbeId { run: probe.run, sequence: probe.sequence };
        let (sent, received) = (numbers.odd(), Some(numbers.odd()));
        let (sent_kernel, received_kernel) = (Some(numbers.odd()), Some(numbers.odd()));
        let [interrupt, softirq, woken, running] = [(); 4].map(|()| Some(numbers.odd()));
        let stages = ReceptionStamps { interrupt, softirq, woken, running };
        stamps.probes.insert(id, Stamp { sent, sent_kernel, received_kernel, received, stages });
    });
    stamps
}

fn report_all(source: &Source, numbers: &mut Numbers) {
    let out = &mut io::sink();
    for window in [Window::Held, Window::Last(Duration::from_secs(1))] {
        let breakdown = Breakdown::read(source, "vm0", window);
        let _ = table::to_table(&breakdown, None);
        let _ = json::to_json(&breakdown);
    }
    report::csv::write_csv(out, source, |_| {}).unwrap();
    report::pcapng::write_pcapng(out, source, "vm0", |_| {}).unwrap();
    report::perfetto::write_perfetto(out, source, "vm0", |_| {}).unwrap();
    let _ = report::hlog::write_hlog(out, source, |_| {});
    let (sender, echo) = (stamps(source, numbers), stamps(source, numbers));
    for initiator in [Initiator::Host, Initiator::Guest] {
        let known = KnownClock::default();
        let joined = Journeys::join(source, initiator, &sender, Some(&echo), &known);
        for journey in &joined.journeys {
            let parts = || journey.parts.iter().flatten();
            assert!(parts().all(|ns| *ns >= 0), "{journey:?}");
            let sum: i128 = parts().map(|ns| i128::from(*ns)).sum();
            assert_eq!(sum, journey.round_trip_ns.into(), "{journey:?}");
        }
        let _ = (journey::to_text(&joined), journey::to_json(&joined));
        journey::write_csv(out, &joined).unwrap();
        write_html(out, source, Some((source, "before")), Some(&joined), "vm0", || {}).unwrap();
    }
}

#[test]
fn whatever_is_in_a_file_its_reports_end() {
    let directory = tempfile::tempdir().unwrap();
    let path = directory.path().join("hostile");
    let mut numbers = Numbers(0x9e37_79b9_7f4a_7c15);
    for n in 0..16 {
        write(&path, &file(&mut numbers, n % 2 == 0));
        let begun = Instant::now();
        let source = Source::open(&path).unwrap();
        report_all(&source, &mut numbers);
        if let Source::Recorder(reader) = source {
            let mut follower = Follower::new(reader);
            // What it counts goes anywhere.
            write(&path, &file(&mut numbers, false));
            follower.take();
            write(&path, &file(&mut numbers, false));
            follower.take();
        }
        assert!(begun.elapsed() < Duration::from_secs(20), "file {n}");
    }
}
