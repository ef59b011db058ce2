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

/// Sends a frame a beat, but none in one of so many beats. Returns the share of them that found the worker awake, and the
/// worker's share of a CPU.
fn keep_the_beat(poll: &str, gap: Option<usize>) -> (f64, f64) {
    let directory = tempfile::tempdir().unwrap();
    let arguments = ["--datapath", "reflect", "--poll", poll];
    let daemon = Daemon::start(directory.path(), "beat", &arguments).unwrap();
    let mut guest = Guest::connect(daemon.socket(), GuestOptions::default()).unwrap();
    let begin = Instant::now();
    let before = daemon.cpu_time();
    let is_kept = |beat: &usize| gap.is_none_or(|gap| !beat.is_multiple_of(gap));
    let beats = (1..=BEATS).filter(is_kept);
    for beat in beats.clone() {
        sleep((begin + BEAT * beat as u32).saturating_duration_since(Instant::now()));
        assert!(guest.pair(0).send(&frames::frame(1, 100)).unwrap());
        assert!(guest.pair(0).receive_within(Duration::from_secs(1)).unwrap().is_some());
    }
    let used = (daemon.cpu_time() - before).as_secs_f64() / begin.elapsed().as_secs_f64();
    // The last frame is back before its burst is recorded.
    sleep(Duration::from_millis(50));
    let bursts = Trace::open(directory.path(), "beat").bursts(1);
    assert_eq!(bursts.len(), beats.count());
    let awake = bursts[FIRST..].iter().filter(|it| it.flags & BurstRecord::POLLED != 0).count();
    (awake as f64 / (bursts.len() - FIRST) as f64, used)
}

#[test]
fn the_worker_is_awake_for_a_beat_and_sleeps_between() {
    is_awake_and_sleeps(None);
}

#[test]
fn the_worker_is_awake_for_a_beat_with_gaps() {
    is_awake_and_sleeps(Some(3));
}

fn is_awake_and_sleeps(gap: Option<usize>) {
    // Whatever else this machine does may hold up the sender; a second and third run count as well.
    let mut seen = Vec::new();
    for _ in 0..3 {
        let (awake, used) = keep_the_beat("adaptive", gap);
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
    let (awake, _) = keep_the_beat("adaptive:0", None);
    assert!(awake < 0.1, "{awake:.2}");
}
