//! A worker that learned a guest's beat is awake for its packets, and sleeps between them.

use std::thread::sleep;
use std::time::{Duration, Instant};

use burst_trace::BurstRecord;
use frontend::{Guest, GuestOptions};
use ringscope_tests::daemon::Daemon;
use ringscope_tests::frames;
use ringscope_tests::trace::Trace;

const BEAT: Duration = Duration::from_millis(3);
const BEATS: usize = 600;
/// How many are left out of the count: the worker has to learn them.
const FIRST: usize = 100;

/// Sends a frame a beat. Returns the share of them that found the worker awake, and the worker's share of a CPU.
fn keep_the_beat(poll: &str) -> (f64, f64) {
    let directory = tempfile::tempdir().unwrap();
    let arguments = ["--datapath", "reflect", "--poll", poll];
    let daemon = Daemon::start(directory.path(), "beat", &arguments).unwrap();
    let mut guest = Guest::connect(daemon.socket(), GuestOptions::default()).unwrap();
    let begin = Instant::now();
    let before = daemon.cpu_time();
    for beat in 1..=BEATS {
        sleep((begin + BEAT * beat as u32).saturating_duration_since(Instant::now()));
        assert!(guest.pair(0).send(&frames::frame(1, 100)).unwrap());
        assert!(guest.pair(0).receive_within(Duration::from_secs(1)).unwrap().is_some());
    }
    let used = (daemon.cpu_time() - before).as_secs_f64() / begin.elapsed().as_secs_f64();
    // The last frame is back before its burst is recorded.
    sleep(Duration::from_millis(50));
    let bursts = Trace::open(directory.path(), "beat").bursts(1);
    assert_eq!(bursts.len(), BEATS);
    let awake = bursts[FIRST..].iter().filter(|it| it.flags & BurstRecord::POLLED != 0).count();
    (awake as f64 / (BEATS - FIRST) as f64, used)
}

#[test]
fn the_worker_is_awake_for_a_beat_and_sleeps_between() {
    // Whatever else this machine does may hold up the sender; a second and third run count as well.
    let mut seen = Vec::new();
    for _ in 0..3 {
        let (awake, used) = keep_the_beat("adaptive");
        seen.push((awake, used));
        if awake > 0.5 && used < 0.5 {
            return;
        }
    }
    panic!(
        "expected to be awake for 0.5 of the beats with 0.5 of a CPU, found (awake, CPU) {seen:.2?}"
    );
}

#[test]
fn a_worker_that_polls_too_briefly_for_a_forecast_is_woken() {
    let (awake, _) = keep_the_beat("adaptive:0");
    assert!(awake < 0.1, "{awake:.2}");
}
