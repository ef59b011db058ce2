//! Writes a live recorder with plausible bursts, to try `ringscope top` and `stats` without a guest:
//!
//! ```text
//! cargo run --example synthetic -p burst-trace -- /tmp/ringscope/vm0.trace [SECONDS [BURSTS_PER_SECOND]]
//! ```

use std::path::PathBuf;
use std::time::{Duration, Instant};

use burst_trace::stage::STAGES_MAX;
use burst_trace::{BurstRecord, Clock, Direction, DropCause, Recorder, RecorderOptions, Writer};

/// Usual time in each stage, nanoseconds, in the order of `Direction::stages`.
const TX_NS: [u64; STAGES_MAX] = [300, 60, 0, 450, 2600, 90, 700];
const RX_NS: [u64; STAGES_MAX] = [250, 0, 20, 1900, 80, 900, 0];
const QUEUE_PAIRS: u16 = 2;

/// A generator good enough for invented times (xorshift64).
struct Random(u64);

impl Random {
    fn below(&mut self, bound: u64) -> u64 {
        self.0 ^= self.0 << 13;
        self.0 ^= self.0 >> 7;
        self.0 ^= self.0 << 17;
        self.0 % bound
    }
}

fn main() {
    let mut arguments = std::env::args().skip(1);
    let path: PathBuf = arguments.next().expect("the recorder's path").into();
    let mut number = |default: u64| {
        arguments.next().map_or(default, |text| text.parse().expect("a whole number"))
    };
    let (seconds, bursts_per_second) = (number(60), number(5000));
    let clock = Clock::new();
    let options = RecorderOptions {
        path,
        workers: 1,
        queue_pairs: usize::from(QUEUE_PAIRS),
        capacity: 1 << 16,
        facts: concat!(
            r#"{"name":"vm0","datapath":"tap:ifname=tap0","poll":"adaptive:50","version":""#,
            env!("CARGO_PKG_VERSION"),
            r#""}"#
        )
        .into(),
    };
    let recorder = Recorder::create(&options, &clock).expect("a recorder");
    let mut writer = recorder.writer(0, clock);
    let mut random = Random(0x9e37_79b9_7f4a_7c15);
    let mut sequences = [0; 2 * QUEUE_PAIRS as usize];
    let start = Instant::now();
    let mut written = 0;
    while start.elapsed() < Duration::from_secs(seconds) {
        let due = start.elapsed().as_micros() as u64 * bursts_per_second / 1_000_000;
        while written < due {
            write_one(&mut writer, clock, &mut random, &mut sequences);
            written += 1;
        }
        std::thread::sleep(Duration::from_millis(1));
    }
}

fn write_one(writer: &mut Writer, clock: Clock, random: &mut Random, sequences: &mut [u64]) {
    // The first queue pair is the busy one.
    let ring = random.below(2) as u16 + if random.below(5) == 0 { 2 } else { 0 };
    let packets = if random.below(4) == 0 { random.below(31) as u16 + 2 } else { 1 };
    let base = match Direction::of_ring(ring) {
        Direction::Tx => TX_NS,
        Direction::Rx => RX_NS,
    };
    let mut stages = [0; STAGES_MAX];
    for (stage, ns) in stages.iter_mut().zip(base) {
        let jitter = random.below(ns / 2 + 1);
        // Sometimes the scheduler takes the CPU away.
        let stall = if ns > 0 && random.below(5000) == 0 { random.below(400_000) } else { 0 };
        *stage = clock.ticks_in(Duration::from_nanos(ns + jitter + stall));
    }
    let last = clock.now();
    if random.below(20_000) == 0 {
        let cause = match Direction::of_ring(ring) {
            Direction::Tx => DropCause::TxLinkDown,
            Direction::Rx => DropCause::RxNoBuffers,
        };
        writer.dropped(ring, cause, 1, last);
    }
    let sequence = &mut sequences[usize::from(ring)];
    writer.burst(&BurstRecord {
        first: last - stages.iter().sum::<u64>(),
        last,
        sequence: *sequence,
        stages,
        bytes: u32::from(packets) * (60 + random.below(1400) as u32),
        packets,
        ring,
        is_polled: random.below(3) == 0,
        ..BurstRecord::default()
    });
    *sequence += u64::from(packets);
}
