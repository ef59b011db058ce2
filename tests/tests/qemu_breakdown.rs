//! Where a real guest's packets spend their time: every stage measured, and a delay found where it is.

use burst_trace::{BurstRecord, Direction, Reader, Stage};
use ringscope_tests::qemu::{Failure, Place};
use ringscope_tests::traffic;
use serde_json::Value;

/// Round trips of one packet.
const ROUND_TRIPS: u32 = 1000;

/// The planted delay, and in which of the bursts.
const DELAY_NS: f64 = 200_000.0;
const EVERY: usize = 10;

/// Most runs: one burst that takes 20 ms spoils the mean of a run.
const RUNS_MAX: usize = 4;

/// All bursts of the recorder that went one way.
fn bursts(reader: &Reader, direction: Direction) -> Vec<BurstRecord> {
    let mut found = Vec::new();
    let lost = reader.read(&mut reader.oldest(0), |record| {
        found.extend(record.as_burst().filter(|burst| burst.direction() == direction));
    });
    assert_eq!(lost, 0, "the guest is quiet");
    found
}

/// Every burst's stages add up to its whole time, exactly.
fn expect_exact_sums(reader: &Reader) {
    for direction in [Direction::Tx, Direction::Rx] {
        let bursts = bursts(reader, direction);
        assert!(bursts.len() >= ROUND_TRIPS as usize, "{direction:?}: {} bursts", bursts.len());
        for burst in bursts {
            assert_eq!(burst.stages.iter().sum::<u64>(), burst.last - burst.first, "{burst:?}");
        }
    }
}

/// Every stage of the daemon has figures, and they add up; the others say that they are not measured.
fn expect_all_stages(stats: &Value) {
    for way in ["tx", "rx"] {
        let way = &stats[way];
        let total = &way["total"];
        assert!(way["packets"].as_u64() >= Some(ROUND_TRIPS.into()), "{stats:#}");
        let mut sum = 0.0;
        for stage in way["stages"].as_array().expect("stages") {
            if stage["tier"] == "D" {
                assert_eq!(stage["count"], way["packets"], "{stage}");
                sum += stage["mean_ns"].as_f64().expect("a mean");
            } else {
                assert!(stage["count"].is_null(), "{stage}");
                assert!(stage.get("mean_ns").is_none(), "{stage}");
            }
        }
        let mean = total["mean_ns"].as_f64().expect("a mean");
        assert!((sum - mean).abs() <= 1.0 + mean * 1e-6, "stages {sum}, total {total}");
    }
}

/// The median over some bursts of what `time` returns of each, in nanoseconds.
fn median_ns(reader: &Reader, bursts: &[BurstRecord], time: impl Fn(&BurstRecord) -> u64) -> f64 {
    let mut times: Vec<_> = bursts.iter().map(time).collect();
    times.sort_unstable();
    times[times.len() / 2] as f64 * 1e9 / reader.ticks_per_second() as f64
}

#[test]
fn every_stage_is_measured_and_a_delay_shows_where_it_was_planted() -> Result<(), Failure> {
    let mut place = Place::new(1)?;
    place.spawn(&["--poll", "never"])?;
    let mut options = place.options()?;
    options.reconnect_ms = Some(100);
    place.attach(options)?;
    for _ in 0..RUNS_MAX {
        let without = measure(&mut place)?;
        place.daemon = None;
        place.spawn(&["--poll", "never", "--fault", "delay:egress=200,every=10"])?;
        let with = measure(&mut place)?;
        expect_delay(&place.reader()?);
        if mean_rises(&without, &with) {
            return Ok(());
        }
        place.daemon = None;
        place.spawn(&["--poll", "never"])?;
    }
    panic!("in {RUNS_MAX} runs the mean of egress never rose by the delay");
}

/// The breakdown of some round trips.
fn measure(place: &mut Place) -> Result<Value, Failure> {
    traffic::ping_pong(place, ROUND_TRIPS)?;
    let stats = place.stats(None)?;
    expect_all_stages(&stats);
    expect_exact_sums(&place.reader()?);
    Ok(stats)
}

/// Bursts of one run are compared, the delayed ones with the others: what else goes on in the machine
/// comes to both. Medians, because an emulated guest's outliers are longer than the delay.
fn expect_delay(reader: &Reader) {
    let all = bursts(reader, Direction::Tx);
    let pick = |wanted: bool| -> Vec<_> {
        let is_delayed = |n: usize| n % EVERY == EVERY - 1;
        let of = |(n, burst): (usize, &BurstRecord)| (is_delayed(n) == wanted).then_some(*burst);
        all.iter().enumerate().filter_map(of).collect()
    };
    let (delayed, others) = (pick(true), pick(false));
    let stages = Direction::Tx.stages();
    let added = |time: &dyn Fn(&BurstRecord) -> u64| {
        median_ns(reader, &delayed, time) - median_ns(reader, &others, time)
    };
    // To tell QEMU takes longer when it has gone to sleep in the meantime. That is the delay's doing, but
    // not the delay, and the table rightly shows it where it is. It is taken from each burst's total: medians of two
    // different times cannot be subtracted.
    let signal = stages.len() - 1;
    let total = added(&|burst| burst.total() - burst.stages[signal]);
    for (n, stage) in stages.iter().enumerate() {
        let here = added(&|burst| burst.stages[n]);
        eprintln!("{}: {here:.0} ns added", stage.name());
        match stage {
            Stage::Egress => {
                assert!(here >= 0.95 * total, "{here} of {total} ns");
                assert!((here - DELAY_NS).abs() < 0.1 * DELAY_NS, "{here} ns");
            }
            Stage::Signal => {}
            _ => assert!(here.abs() < 5000.0, "{}: {here} ns", stage.name()),
        }
    }
}

/// Whether the mean rises: by a tenth of the delay; how much else it moves is up to the machine.
fn mean_rises(without: &Value, with: &Value) -> bool {
    let egress = |stats: &Value| {
        let stages = stats["tx"]["stages"].as_array().expect("stages");
        let stage = stages.iter().find(|stage| stage["stage"] == "egress").expect("egress");
        let figure = |name: &str| stage[name].as_f64().expect("a figure");
        (figure("mean_ns"), figure("p50_ns"), figure("p99_ns"))
    };
    let ((before, ..), (after, p50, p99)) = (egress(without), egress(with));
    eprintln!("egress: mean {before:.0} ns without the delay, {after:.0} ns with it");
    assert!(p50 < DELAY_NS && p99 >= DELAY_NS, "p50 {p50}, p99 {p99}");
    after > before
}
