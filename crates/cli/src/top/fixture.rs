//! What the tests of `ringscope top` show.

use std::sync::LazyLock;

use burst_trace::fixture::preempted;
use burst_trace::{BurstRecord, Clock, DropCause, Notification, Reader, Recorder, RecorderOptions};
use ratatui::Terminal;
use ratatui::backend::TestBackend;
use report::{Facts, Follower, Interval};

use super::screen;
use super::source::Identity;
use super::sources::Sample;
use super::view::View;

/// One clock for all intervals: two find slightly different rates, and then the same ticks are different times.
static CLOCK: LazyLock<Clock> = LazyLock::new(Clock::new);

/// An interval of 2 s with this number of bursts of 4 packets, with 1 to 6 µs a stage. They left by queue 1, but the
/// last one by queue 3, with 50 µs more in `egress`. 3 packets were lost.
/// Queue 1 had 4 kicks, 2 calls, 1 that was suppressed and 4 that were refused.
pub fn interval(bursts: usize) -> Interval {
    recorded(bursts, false)
}

/// The same. Besides, `hog` had the worker's CPU for 30 µs of the last burst.
pub fn interrupted(bursts: usize) -> Interval {
    recorded(bursts, true)
}

fn recorded(bursts: usize, is_interrupted: bool) -> Interval {
    let dir = tempfile::tempdir().unwrap();
    let clock = *CLOCK;
    let options = RecorderOptions {
        path: dir.path().join("vm0.trace"),
        workers: 2,
        queue_pairs: 2,
        capacity: 64,
        facts: r#"{"kernel_stages":{"interruptions":"on"}}"#.into(),
    };
    let recorder = Recorder::create(&options, &clock).unwrap();
    let mut follower = Follower::new(Reader::open(recorder.path()).unwrap());
    let mut writer = recorder.writer(0, clock);
    let microseconds = clock.ticks_per_second() / 1_000_000;
    let first = clock.now();
    for n in 0..bursts {
        let is_last = n + 1 == bursts;
        let mut stages = [1, 2, 0, 3, 4, 5, 6].map(|us| us * microseconds);
        stages[4] += if is_last { 50 * microseconds } else { 0 };
        writer.burst(&BurstRecord {
            first,
            last: first + stages.iter().sum::<u64>(),
            stages,
            packets: 4,
            bytes: 400,
            ring: if is_last { 3 } else { 1 },
            is_polled: true,
            ..BurstRecord::default()
        });
    }
    if bursts > 0 {
        writer.dropped(1, DropCause::TxLinkDown, 3, first);
        for (kind, count) in Notification::ALL.into_iter().zip([4, 2, 1, 4]) {
            (0..count).for_each(|_| writer.count_notification(1, kind));
        }
    }
    if is_interrupted {
        let at = |us| first + us * microseconds;
        recorder.writer(1, clock).interruption(&preempted(at(25), at(55)));
    }
    Interval { seconds: 2.0, ..follower.take() }
}

/// A running guest with such an interval.
pub fn sample(name: &str, bursts: usize) -> Sample {
    let facts = Facts {
        datapath: Some("tap:ifname=tap0".into()),
        poll: Some("never".into()),
        ..Facts::default()
    };
    let identity = Identity { name: name.into(), facts, pid: 7, is_alive: true, restarts: 0 };
    Sample { key: name.into(), identity, interval: Some(interval(bursts)) }
}

/// The guests' names in the order of the table.
pub fn names(view: &View) -> Vec<&str> {
    view.samples.iter().map(|sample| sample.key.as_str()).collect()
}

/// The screen of a terminal of this size.
pub fn picture(view: &View, width: u16, height: u16) -> String {
    let mut terminal = Terminal::new(TestBackend::new(width, height)).unwrap();
    terminal.draw(|frame| screen::render(view, frame)).unwrap();
    terminal.backend().to_string()
}
