//! A worker that learned the period of a guest's traffic is awake for its frames, and sleeps between them.
//!
//! Daemon and guest run in a real-time class, on CPUs that no hypervisor takes away as idle: a sender that others delay
//! has no period.

use std::thread::sleep;
use std::time::{Duration, Instant};

use frontend::{Guest, GuestOptions};
use ringscope_tests::beside::{Awake, run_in_real_time};
use ringscope_tests::daemon::Daemon;
use ringscope_tests::frames;
use ringscope_tests::trace::Trace;

const PERIOD: Duration = Duration::from_millis(3);
const PERIODS: usize = 600;
/// Frames that are left out of the count: the worker learns the period from them.
const FIRST: usize = 100;
/// Least share of the frames that find the worker awake. With the share of a CPU it is what the guide promises
/// (`backend/README.md`).
const AWAKE_MIN: f64 = 0.9;
/// Largest share of a CPU: the guide's sixth, and half as much again for a slower machine.
const USED_MAX: f64 = 0.25;
/// Most runs of a test. A hypervisor may take a CPU away for some milliseconds; a worker that does not learn fails in
/// every run.
const RUNS: usize = 3;

/// Sends a frame each period, except every `skipped`th one. Returns the share of the frames that found the worker awake,
/// and the worker's share of a CPU.
fn send_periodically(poll: &str, skipped: Option<usize>) -> (f64, f64) {
    run_in_real_time();
    let _awake = [0, 1].map(Awake::keep);
    let directory = tempfile::tempdir().unwrap();
    let arguments = ["--datapath", "reflect", "--poll", poll];
    let mut daemon = Daemon::start(directory.path(), "periodic", &arguments).unwrap();
    let mut guest = Guest::connect(daemon.socket(), GuestOptions::default()).unwrap();
    let begin = Instant::now();
    let before = daemon.cpu_time();
    let is_sent = |period: &usize| skipped.is_none_or(|skipped| !period.is_multiple_of(skipped));
    let periods = (1..=PERIODS).filter(is_sent);
    for period in periods.clone() {
        sleep((begin + PERIOD * period as u32).saturating_duration_since(Instant::now()));
        assert!(guest.pair(0).send(&frames::frame(1, 100)).unwrap());
        assert!(guest.pair(0).receive_within(Duration::from_secs(1)).unwrap().is_some());
    }
    let used = (daemon.cpu_time() - before).as_secs_f64() / begin.elapsed().as_secs_f64();
    // A daemon that has ended has recorded every burst.
    daemon.terminate(Duration::from_secs(2)).unwrap();
    let bursts = Trace::open(directory.path(), "periodic").bursts(1);
    assert_eq!(bursts.len(), periods.count());
    let awake = bursts[FIRST..].iter().filter(|it| it.is_polled).count();
    (awake as f64 / (bursts.len() - FIRST) as f64, used)
}

#[test]
fn the_worker_is_awake_for_periodic_frames_and_sleeps_between() {
    expect_awake(None);
}

#[test]
fn the_worker_is_awake_for_periodic_frames_with_periods_skipped() {
    expect_awake(Some(3));
}

fn expect_awake(skipped: Option<usize>) {
    let mut seen = Vec::new();
    for _ in 0..RUNS {
        let (awake, used) = send_periodically("adaptive", skipped);
        seen.push((awake, used));
        if awake >= AWAKE_MIN && used <= USED_MAX {
            return;
        }
    }
    panic!(
        "expected a worker that is awake for {AWAKE_MIN} of the frames and uses {USED_MAX} of a CPU; \
         found (awake, CPU) {seen:.2?}"
    );
}

#[test]
fn a_worker_that_polls_too_briefly_for_a_forecast_is_woken() {
    let (awake, _) = send_periodically("adaptive:0", None);
    assert!(awake < 0.1, "{awake:.2}");
}
