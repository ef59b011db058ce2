//! Watches an exchange with another machine, from a thread of its own: a progress line, a sentence when the other end
//! is silent, and the end of our patience. The exchange only counts.

use std::net::SocketAddr;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::thread;
use std::time::{Duration, Instant};

use crate::progress::Progress;

/// Time between two looks at the counters.
const LOOK_EVERY: Duration = Duration::from_millis(100);
/// Silence that is reported, and jobs shorter than this show no progress.
const SILENCE: Duration = Duration::from_secs(2);

/// The counters of an exchange, packets or bytes.
#[derive(Debug, Default)]
pub struct Tally {
    sent: AtomicU64,
    answered: AtomicU64,
    is_given_up: AtomicBool,
}

impl Tally {
    /// Counts what was sent.
    pub fn sent(&self, number: u64) {
        self.sent.fetch_add(number, Ordering::Relaxed);
    }

    /// Counts what came back, or what the other end has taken.
    pub fn answered(&self, number: u64) {
        self.answered.fetch_add(number, Ordering::Relaxed);
    }

    /// The number that was counted as answered so far.
    pub fn so_far(&self) -> u64 {
        self.answered.load(Ordering::Relaxed)
    }

    /// Whether the exchange is to end.
    pub fn is_given_up(&self) -> bool {
        self.is_given_up.load(Ordering::Relaxed)
    }
}

/// What is expected of an exchange.
#[derive(Debug, Clone, Copy)]
pub struct Watch {
    /// The other end.
    pub peer: SocketAddr,
    /// The subcommand that serves there.
    pub server: &'static str,
    /// The full number of packets or bytes.
    pub of: u64,
    /// "packets" or "bytes".
    pub unit: &'static str,
    /// An answer is always due, and not only after something was sent.
    pub is_always_due: bool,
    /// Time without a first answer after which the exchange is given up; 0: never.
    pub patience: Duration,
    /// When the exchange ends in any case.
    pub end: Option<Instant>,
}

impl Watch {
    /// Runs `job` and watches it. Giving up sets the tally's mark and calls `give_up` once.
    pub fn run<T>(self, tally: &Tally, give_up: impl Fn() + Sync, job: impl FnOnce() -> T) -> T {
        let is_done = AtomicBool::new(false);
        thread::scope(|scope| {
            let watcher = scope.spawn(|| self.look_until(&is_done, tally, &give_up));
            let finish = Finish { is_done: &is_done, watcher: watcher.thread().clone() };
            let done = job();
            drop(finish);
            done
        })
    }

    fn look_until(self, is_done: &AtomicBool, tally: &Tally, give_up: &impl Fn()) {
        let (mut progress, started) = (Progress::new(), Instant::now());
        let mut silence =
            Silence { since: self.is_always_due.then_some(started), ..Silence::default() };
        while !is_done.load(Ordering::Acquire) {
            thread::park_timeout(LOOK_EVERY);
            let now = Instant::now();
            let (sent, answered) = (tally.sent.load(Ordering::Relaxed), tally.so_far());
            if let Some(sentence) = silence.look(&self, now, sent, answered) {
                progress.say(&sentence);
            }
            let is_patience_over = !self.patience.is_zero()
                && answered == 0
                && silence.since.is_some_and(|since| now - since >= self.patience);
            let is_over = is_patience_over || self.end.is_some_and(|end| now >= end);
            if is_over && !tally.is_given_up.swap(true, Ordering::Relaxed) {
                give_up();
            }
            if now - started >= SILENCE {
                let (seconds, Self { of, unit, .. }) = ((now - started).as_secs(), self);
                progress.show(|| format!("{answered} of {of} {unit} done after {seconds} s"));
            }
        }
    }
}

/// Ends the watcher, also if the job panics.
struct Finish<'job> {
    is_done: &'job AtomicBool,
    watcher: thread::Thread,
}

impl Drop for Finish<'_> {
    fn drop(&mut self) {
        self.is_done.store(true, Ordering::Release);
        self.watcher.unpark();
    }
}

/// What is known of the other end's silence.
#[derive(Debug, Default)]
struct Silence {
    /// The time of the first look at which an answer was due.
    since: Option<Instant>,
    answered: u64,
    /// The number sent when the last answer was seen.
    sent: u64,
    is_reported: bool,
}

impl Silence {
    /// Looks at the counters. Returns the sentence to say, if one is due.
    fn look(&mut self, watch: &Watch, now: Instant, sent: u64, answered: u64) -> Option<String> {
        let Watch { peer, server, of, unit, patience, .. } = watch;
        if answered != self.answered {
            let after = self.since.map(|since| (now - since).as_secs());
            (self.answered, self.sent) = (answered, sent);
            self.since = watch.is_always_due.then_some(now);
            let was_reported = std::mem::take(&mut self.is_reported);
            return after
                .filter(|_| was_reported)
                .map(|after| format!("{peer} answers after {after} s"));
        }
        if sent != self.sent {
            self.since.get_or_insert(now);
        }
        let silent_for = now - self.since?;
        if silent_for < SILENCE || std::mem::replace(&mut self.is_reported, true) {
            return None;
        }
        let nothing = format!("nothing from {peer} for {} s", SILENCE.as_secs());
        if answered > 0 {
            return Some(format!("{nothing}, after {answered} of {of} {unit}; still waiting"));
        }
        let question = format!("{nothing}: is `ringscope agent {server}` running there?");
        Some(match patience.as_secs() {
            0 => format!("{question} Waiting"),
            patience => format!("{question} Giving up after {patience} s (--patience)"),
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const SECOND: Duration = Duration::from_secs(1);

    fn watch() -> Watch {
        Watch {
            peer: "192.0.2.1:7007".parse().unwrap(),
            server: "udp-echo",
            of: 10,
            unit: "packets",
            is_always_due: false,
            patience: 10 * SECOND,
            end: None,
        }
    }

    #[test]
    fn silence_is_reported_once_and_its_end_too() {
        let (start, watch, mut silence) = (Instant::now(), watch(), Silence::default());
        assert_eq!(silence.look(&watch, start, 1, 0), None);
        let said = silence.look(&watch, start + 2 * SECOND, 2, 0).unwrap();
        let expected = "nothing from 192.0.2.1:7007 for 2 s: is `ringscope agent udp-echo` running there? Giving up \
                        after 10 s (--patience)";
        assert_eq!(said, expected);
        assert_eq!(silence.look(&watch, start + 3 * SECOND, 3, 0), None);
        let said = silence.look(&watch, start + 4 * SECOND, 4, 1).unwrap();
        assert_eq!(said, "192.0.2.1:7007 answers after 4 s");
        assert_eq!(silence.look(&watch, start + 5 * SECOND, 5, 1), None);
        let said = silence.look(&watch, start + 7 * SECOND, 6, 1).unwrap();
        assert_eq!(
            said,
            "nothing from 192.0.2.1:7007 for 2 s, after 1 of 10 packets; still waiting"
        );
    }

    #[test]
    fn no_answer_is_due_between_two_packets_far_apart() {
        let (start, watch, mut silence) = (Instant::now(), watch(), Silence::default());
        silence.look(&watch, start, 1, 0);
        silence.look(&watch, start + SECOND, 1, 1);
        assert_eq!(silence.look(&watch, start + 9 * SECOND, 1, 1), None);
        assert_eq!(silence.since, None);
    }

    #[test]
    fn a_job_without_an_answer_is_given_up_and_one_with_an_answer_is_not() {
        let patience = Duration::from_millis(150);
        for answers in [0, 1] {
            let (tally, watch) = (Tally::default(), Watch { patience, ..watch() });
            tally.sent(1);
            tally.answered(answers);
            let end = Instant::now() + 5 * patience;
            watch.run(
                &tally,
                || {},
                || {
                    while !tally.is_given_up() && Instant::now() < end {
                        thread::sleep(Duration::from_millis(5));
                    }
                },
            );
            assert_eq!(tally.is_given_up(), answers == 0);
        }
    }

    #[test]
    fn the_end_comes_even_while_answers_come() {
        let (tally, end) = (Tally::default(), Instant::now() + LOOK_EVERY);
        let given_up = AtomicU64::new(0);
        let count = || {
            given_up.fetch_add(1, Ordering::Relaxed);
        };
        Watch { end: Some(end), ..watch() }.run(&tally, count, || {
            while !tally.is_given_up() {
                tally.answered(1);
                thread::yield_now();
            }
            thread::sleep(3 * LOOK_EVERY);
        });
        assert_eq!(given_up.into_inner(), 1);
    }
}
