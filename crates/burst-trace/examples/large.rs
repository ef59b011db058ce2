//! Writes a recording of many invented bursts, to try reports with it:
//!
//! ```text
//! cargo run --release --example large -p burst-trace -- /tmp/large.rec 10000000
//! ```

use std::path::PathBuf;

use burst_trace::{
    BurstRecord, Clock, Direction, Reader, Record, Recorder, RecorderOptions, RecordingWriter,
};

fn main() {
    let mut arguments = std::env::args().skip(1);
    let path: PathBuf = arguments.next().expect("the recording's path").into();
    let bursts: u64 = arguments.next().map_or(10_000_000, |it| it.parse().expect("a number"));
    let clock = Clock::new();
    let recorder = tempfile::tempdir().expect("a directory");
    let options = RecorderOptions {
        path: recorder.path().join("large.trace"),
        workers: 2,
        queue_pairs: 1,
        capacity: 64,
        facts: r#"{"name":"large"}"#.into(),
    };
    let recorder = Recorder::create(&options, &clock).expect("a recorder");
    let reader = Reader::open(recorder.path()).expect("its reader");
    let mut writer = RecordingWriter::create(&path, &reader, &reader.facts()).expect("a recording");
    let start = clock.now();
    // Good enough for invented times (xorshift64).
    let mut random = 0x9e37_79b9_7f4a_7c15_u64;
    for n in 0..bursts {
        random ^= random << 13;
        random ^= random >> 7;
        random ^= random << 17;
        let ring = u16::from(n % 2 == 0);
        let mut stages = [0; burst_trace::stage::STAGES_MAX];
        let count = Direction::of_ring(ring).stages().len();
        for (n, stage) in stages[..count].iter_mut().enumerate() {
            // One in 4096 is slow.
            let slow = if random >> 52 == 0 { 1000 } else { 1 };
            *stage = (random >> (n * 8) & 0xff) * 3 * slow;
        }
        let first = start + n * 2600;
        let record = BurstRecord {
            first,
            last: first + stages.iter().sum::<u64>(),
            sequence: n / 2 * 32,
            stages,
            bytes: 64 * 32,
            packets: 32,
            ring,
            worker: (n % 2) as u8,
            ..BurstRecord::default()
        };
        writer.push(&Record::Burst(record)).expect("room for the recording");
    }
    writer.finish(&reader, false).expect("room for the recording");
}
