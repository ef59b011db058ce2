//! Why packets were slow: each cause is found in records that have it, and none where there is none.

use std::path::Path;
use std::time::Duration;

use burst_trace::fixture::preempted;
use burst_trace::{
    BurstRecord, Clock, Culprit, Direction, Interruption, InterruptionCause, KernelSpan,
    KernelStage, Reader, Recorder, RecorderOptions, Source, Stage, Subject, Writer,
};
use report::why::{Limit, Why, to_json, to_text};
use serde_json::Value;

/// What is slow here: the other bursts take 60 us at most.
const OVER: Limit = Limit::Over(500_000);

/// Makes a recorder: bursts of 10 us a stage, one each way each millisecond, among which a story takes place. Its times are in
/// microseconds.
struct Story {
    clock: Clock,
    zero: u64,
    worker: Writer,
    kernel: Writer,
    recorder: Recorder,
    /// When the next burst begins.
    now: u64,
    sequence: u64,
}

impl Story {
    fn new(directory: &Path) -> Self {
        let clock = Clock::new();
        let options = RecorderOptions {
            path: directory.join("vm0.trace"),
            workers: 2,
            queue_pairs: 1,
            capacity: 4096,
            facts: r#"{"name":"vm0","kernel_stages":{"interruptions":"on"}}"#.into(),
        };
        let recorder = Recorder::create(&options, &clock).unwrap();
        let (worker, kernel) = (recorder.writer(0, clock), recorder.writer(1, clock));
        let zero = clock.now();
        let mut story = Self { clock, zero, worker, kernel, recorder, now: 0, sequence: 0 };
        (0..100).for_each(|_| story.ordinary());
        story
    }

    fn ticks(&self, us: u64) -> u64 {
        self.clock.ticks_in(Duration::from_micros(us))
    }

    fn at(&self, us: u64) -> u64 {
        self.zero + self.ticks(us)
    }

    /// A burst each way.
    fn ordinary(&mut self) {
        self.burst(0, None);
        self.burst(1, None);
        self.now += 1000;
    }

    /// A burst that begins now, and carries a probe. `slow`: one of its stages, and how long it takes, microseconds.
    fn burst(&mut self, ring: u16, slow: Option<(Stage, u64)>) -> BurstRecord {
        let direction = Direction::of_ring(ring);
        let mut stages = [0; burst_trace::stage::STAGES_MAX];
        stages[..direction.stages().len()].fill(self.ticks(10));
        stages[direction.position(Stage::Limited).unwrap()] = 0;
        if let Some((stage, us)) = slow {
            stages[direction.position(stage).unwrap()] = self.ticks(us);
        }
        let first = self.at(self.now);
        let last = first + stages.iter().sum::<u64>();
        let (sequence, packets) = (self.sequence, 1);
        let burst = BurstRecord {
            first,
            last,
            stages,
            packets,
            bytes: 64,
            ring,
            sequence,
            ..<_>::default()
        };
        self.worker.burst(&burst);
        self.worker.probe(&burst, 1, sequence);
        if ring == 1 {
            self.sequence += 1;
        }
        burst
    }

    fn interruption(
        &mut self,
        subject: Subject,
        cause: InterruptionCause,
        (start, end): (u64, u64),
    ) {
        let by_hog = preempted(self.at(start), self.at(end));
        let culprit = match cause {
            InterruptionCause::Preempted => by_hog.culprit,
            _ => Culprit::default(),
        };
        self.kernel.interruption(&Interruption { subject, cause, culprit, ..by_hog });
    }

    fn span(&mut self, stage: KernelStage, start: u64, end: u64) {
        let worker = stage.is_of_a_worker().then_some(0);
        let (start, end) = (self.at(start), self.at(end));
        self.kernel.kernel(&KernelSpan { stage, start, end, worker, writer: 1 });
    }

    fn why(self, limit: Limit, is_virtual: bool) -> Why {
        let source = Source::from(Reader::open(self.recorder.path()).unwrap());
        Why::read(&source, "vm0", limit, is_virtual)
    }
}

/// The name and subject of the first cause, its count, and the stage.
fn first(why: &Why) -> (&'static str, &'static str, u64, &'static str) {
    let group = why.groups.first().unwrap_or_else(|| panic!("no cause in {why:?}"));
    (group.cause.name(), group.cause.subject(), group.count, group.stage)
}

#[test]
fn nothing_is_slow_where_nothing_is() {
    let directory = tempfile::tempdir().unwrap();
    let why = Story::new(directory.path()).why(OVER, true);
    assert_eq!((why.bursts, why.turns, why.slow, why.groups.len()), (200, 100, 0, 0));
    assert!(to_text(&why).contains("nothing took longer than 500"), "{}", to_text(&why));
}

#[test]
fn a_program_that_took_the_workers_cpu_is_named_with_what_to_do() {
    let directory = tempfile::tempdir().unwrap();
    let mut story = Story::new(directory.path());
    let now = story.now;
    story.burst(1, Some((Stage::Gather, 3050)));
    story.interruption(Subject::Worker(0), InterruptionCause::Preempted, (now + 30, now + 3030));
    let why = story.why(OVER, true);
    assert_eq!(first(&why), ("preempted", "worker", 1, "gather"));
    let text = to_text(&why);
    for part in
        ["hog", "fifo 50", "took CPU 1 from worker 0", "most of it in gather", "what to do:"]
    {
        assert!(text.contains(part), "no {part} in {text}");
    }
    let json: Value = serde_json::from_str(&to_json(&why)).unwrap();
    let culprit = &json["culprits"][0];
    assert_eq!(culprit["culprit"]["name"], "hog");
    assert_eq!(culprit["example"]["kind"], "burst");
    let lost = culprit["example"]["lost_ns"].as_u64().unwrap();
    assert!((2_990_000..=3_010_000).contains(&lost), "{json:#}");
}

#[test]
fn a_wait_before_the_first_boundary_belongs_to_the_burst_that_was_woken_up_for() {
    let directory = tempfile::tempdir().unwrap();
    let mut story = Story::new(directory.path());
    let woken = story.now;
    story.now += 2000;
    story.span(KernelStage::Wakeup, woken, woken + 1990);
    story.interruption(Subject::Worker(0), InterruptionCause::Stopped, (woken, woken + 1990));
    story.burst(0, None);
    let why = story.why(OVER, true);
    assert_eq!(first(&why), ("stopped", "worker", 1, "wakeup"));
}

#[test]
fn a_guest_that_owes_an_answer_is_slow_by_itself_or_because_its_front_end_did_not_run() {
    for (cause, expected) in [
        (None, ("guest", "guest", 1, "")),
        (Some(InterruptionCause::Stopped), ("stopped", "front-end", 1, "")),
        (Some(InterruptionCause::KvmExit), ("kvm-exit", "front-end", 1, "")),
    ] {
        let directory = tempfile::tempdir().unwrap();
        let mut story = Story::new(directory.path());
        story.burst(0, None);
        let from = story.now + 100;
        story.now += 5000;
        story.burst(1, None);
        if let Some(cause) = cause {
            let until = story.now;
            story.interruption(Subject::FrontEnd, cause, (from, until));
        }
        // Another thread of the front end that waits for little.
        story.interruption(Subject::FrontEnd, InterruptionCause::Preempted, (from, from + 50));
        let why = story.why(OVER, true);
        assert_eq!(first(&why), expected);
        assert_eq!(why.groups[0].example.kind, "guest-turn");
    }
}

#[test]
fn a_frame_that_waits_in_the_host_shows_where_the_datapath_was_quick() {
    let directory = tempfile::tempdir().unwrap();
    let mut story = Story::new(directory.path());
    let now = story.now;
    story.ordinary();
    story.span(KernelStage::HostTx, now + 35, now + 4000);
    let why = story.why(OVER, true);
    assert_eq!(first(&why), ("behind-datapath", "host", 1, "host-tx"));
}

#[test]
fn a_burst_that_no_interruption_explains_is_explained_by_its_stage() {
    for (ring, stage, is_virtual, expected) in [
        (0, Stage::Starved, true, ("no-buffers", "guest", 1, "starved")),
        (1, Stage::Egress, true, ("datapath", "worker", 1, "egress")),
        (1, Stage::Queued, true, ("queue", "worker", 1, "queued")),
        (1, Stage::Gather, true, ("hypervisor", "worker", 1, "gather")),
        (1, Stage::Gather, false, ("unknown", "worker", 1, "gather")),
    ] {
        let directory = tempfile::tempdir().unwrap();
        let mut story = Story::new(directory.path());
        story.burst(ring, Some((stage, 2000)));
        let now = story.now;
        // A tick is no cause of that.
        let tick = (now + 100, now + 105);
        story.interruption(Subject::Worker(0), InterruptionCause::Interrupt, tick);
        let why = story.why(OVER, is_virtual);
        assert_eq!(first(&why), expected, "{stage:?}");
    }
}

#[test]
fn nobody_is_blamed_for_a_time_that_was_not_measured() {
    let directory = tempfile::tempdir().unwrap();
    let mut story = Story::new(directory.path());
    story.burst(1, Some((Stage::Gather, 2000)));
    let states = r#"{"interruptions":"on until 14:03:07 UTC"}"#;
    let facts = format!(r#"{{"kernel_stages":{states},"kernel_windows":[]}}"#);
    story.recorder.participants().set_facts(&facts);
    assert_eq!(first(&story.why(OVER, true)), ("unknown", "worker", 1, "gather"));
}

#[test]
fn debug_messages_in_a_slow_call_are_its_cause() {
    let directory = tempfile::tempdir().unwrap();
    let mut story = Story::new(directory.path());
    let now = story.now;
    story.burst(1, Some((Stage::Egress, 2000)));
    let cause = InterruptionCause::Printk;
    (0..3)
        .for_each(|n| story.interruption(Subject::Worker(0), cause, (now + 50 + n, now + 50 + n)));
    assert_eq!(first(&story.why(OVER, true)), ("printk", "worker", 1, "egress"));
}

#[test]
fn a_turn_in_which_another_burst_kept_the_worker_busy_has_the_cause_of_that_burst() {
    let directory = tempfile::tempdir().unwrap();
    let mut story = Story::new(directory.path());
    story.burst(0, None);
    // The frame of another flow.
    story.sequence += 1000;
    story.now += 100;
    let now = story.now;
    story.burst(1, Some((Stage::Egress, 4000)));
    story.interruption(Subject::Worker(0), InterruptionCause::Printk, (now + 50, now + 50));
    // Only then does the worker see the answer.
    story.sequence -= 1001;
    story.now += 4100;
    story.burst(1, None);
    assert_eq!(first(&story.why(OVER, true)), ("printk", "worker", 2, "egress"));
}

#[test]
fn a_frame_that_is_reflected_waits_for_the_receivers_buffers() {
    let directory = tempfile::tempdir().unwrap();
    let mut story = Story::new(directory.path());
    story.burst(1, Some((Stage::Queued, 5000)));
    story.burst(0, Some((Stage::Starved, 4950)));
    let why = story.why(OVER, true);
    assert_eq!((why.groups.len(), first(&why).0), (1, "no-buffers"));
}

#[test]
fn several_interruptions_together_are_a_cause_and_the_longest_is_named() {
    let directory = tempfile::tempdir().unwrap();
    let mut story = Story::new(directory.path());
    let now = story.now;
    story.burst(1, Some((Stage::Gather, 10_000)));
    let worker = Subject::Worker(0);
    let causes = [InterruptionCause::PageFault, InterruptionCause::Softirq];
    for (start, cause) in (100..).step_by(3000).zip(causes) {
        let start = now + start;
        story.interruption(worker, cause, (start, start + 2500));
    }
    story.interruption(worker, InterruptionCause::Preempted, (now + 6100, now + 9000));
    assert_eq!(first(&story.why(OVER, true)), ("preempted", "worker", 1, "gather"));
}

#[test]
fn threads_of_a_front_end_that_wait_at_once_lose_that_time_once() {
    let directory = tempfile::tempdir().unwrap();
    let mut story = Story::new(directory.path());
    let now = story.now;
    story.burst(0, None);
    story.now += 3000;
    story.burst(1, None);
    // Of 3 ms, 0.6 ms: a fifth, for each of three threads.
    for thread in 0..3 {
        let by_hog = preempted(story.at(now + 1000), story.at(now + 1600));
        let subject = Subject::FrontEnd;
        story.kernel.interruption(&Interruption { subject, thread, ..by_hog });
    }
    assert_eq!(first(&story.why(OVER, true)), ("guest", "guest", 1, ""));
}

#[test]
fn threads_of_a_front_end_that_take_turns_are_no_cause_unless_one_takes_a_good_part() {
    for (other_us, expected) in [(400, "guest"), (1200, "preempted")] {
        let directory = tempfile::tempdir().unwrap();
        let mut story = Story::new(directory.path());
        story.recorder.participants().set_front_end(77);
        let now = story.now;
        story.burst(0, None);
        story.now += 3000;
        story.burst(1, None);
        // A thread of another program, and two of the front end's own.
        for (process, start, us) in [(9, 200, 500), (77, 900, other_us), (77, 2200, 400)] {
            let by_hog = preempted(story.at(now + start), story.at(now + start + us));
            let culprit = Culprit { process, ..by_hog.culprit };
            let thread = u32::try_from(start).unwrap();
            let it = Interruption { subject: Subject::FrontEnd, thread, culprit, ..by_hog };
            story.kernel.interruption(&it);
        }
        assert_eq!(first(&story.why(OVER, true)).0, expected, "{other_us} us");
    }
}

#[test]
fn a_worker_that_was_held_up_just_before_its_sleep_has_kept_frames_waiting() {
    let directory = tempfile::tempdir().unwrap();
    let mut story = Story::new(directory.path());
    let start = story.now;
    let worker = Subject::Worker(0);
    // Nothing waits for this one: the next burst comes long after it.
    story.interruption(worker, InterruptionCause::Preempted, (start, start + 7000));
    story.now += 8000;
    story.burst(0, None);
    story.sequence += 1;
    // This one began within a burst, and is over: what comes next came after it.
    let end = story.now + 9000;
    story.interruption(worker, InterruptionCause::Preempted, (story.now + 20, end));
    story.now = end + 20;
    story.burst(0, None);
    story.sequence += 1;
    // And this one is too short to say anything.
    story.now += 1000;
    story.interruption(worker, InterruptionCause::Preempted, (story.now - 48, story.now - 45));
    story.burst(0, None);
    story.sequence += 1;
    story.now += 1000;
    let held_up = story.now;
    story.interruption(worker, InterruptionCause::Preempted, (held_up, held_up + 9000));
    story.now += 9020;
    story.burst(0, None);
    story.burst(1, None);
    let why = story.why(Limit::Over(5_000_000), true);
    assert_eq!(first(&why), ("preempted", "worker", 2, "wakeup"));
    let json: Value = serde_json::from_str(&to_json(&why)).unwrap();
    let total = json["culprits"][0]["example"]["total_ns"].as_u64().unwrap();
    assert!((9_020_000..9_200_000).contains(&total), "{json:#}");
}

#[test]
fn what_waited_for_an_interruption_is_its_consequence() {
    let directory = tempfile::tempdir().unwrap();
    let mut story = Story::new(directory.path());
    let now = story.now;
    story.interruption(Subject::Worker(0), InterruptionCause::Stopped, (now, now + 20_000));
    story.now += 20_100;
    // The guest has much to do then.
    story.burst(0, None);
    story.now += 4000;
    story.burst(1, None);
    assert_eq!(first(&story.why(OVER, true)), ("stopped", "worker", 1, ""));
}

#[test]
fn a_short_interruption_in_the_rush_after_a_long_one_is_its_consequence_too() {
    for (within_us, expected) in [(3000, "stopped"), (15_000, "preempted")] {
        let directory = tempfile::tempdir().unwrap();
        let mut story = Story::new(directory.path());
        let now = story.now;
        story.interruption(Subject::Worker(0), InterruptionCause::Stopped, (now, now + 20_000));
        story.now += 20_100;
        story.burst(0, None);
        let from = story.now + 100;
        let until = from + within_us;
        story.interruption(Subject::FrontEnd, InterruptionCause::Preempted, (from, until));
        story.now = until + 1000;
        story.burst(1, None);
        assert_eq!(first(&story.why(OVER, true)).0, expected, "{within_us} us");
    }
}

#[test]
fn the_time_of_a_burst_counts_for_each_of_its_packets() {
    let directory = tempfile::tempdir().unwrap();
    let mut story = Story::new(directory.path());
    let now = story.now;
    let burst = story.burst(1, Some((Stage::Gather, 10_000)));
    // The same with 63 packets: 64 in all.
    story.worker.burst(&BurstRecord { packets: 63, sequence: 1000, ..burst });
    let stopped = (now + 50, now + 9000);
    story.interruption(Subject::Worker(0), InterruptionCause::Stopped, stopped);
    let why = story.why(OVER, true);
    assert_eq!(first(&why), ("stopped", "worker", 2, "gather"));
    let ms = why.groups[0].time_ns as f64 / 1e6;
    assert!((ms - 64.0 * 9.99).abs() < 2.0, "{ms} ms");
}

#[test]
fn without_a_limit_the_slowest_hundredth_is_explained() {
    let directory = tempfile::tempdir().unwrap();
    let mut story = Story::new(directory.path());
    let now = story.now;
    story.burst(1, Some((Stage::Gather, 3050)));
    story.interruption(Subject::Worker(0), InterruptionCause::Preempted, (now + 30, now + 3030));
    let why = story.why(Limit::P99, true);
    assert_eq!(first(&why), ("preempted", "worker", 1, "gather"));
    assert!(to_text(&why).contains("above the 99th percentile"), "{}", to_text(&why));
}

#[test]
fn where_interruptions_are_not_measured_nobody_is_blamed_and_the_text_says_so() {
    let directory = tempfile::tempdir().unwrap();
    let clock = Clock::new();
    let options = RecorderOptions {
        path: directory.path().join("vm0.trace"),
        workers: 1,
        queue_pairs: 1,
        capacity: 64,
        facts: "{}".into(),
    };
    let recorder = Recorder::create(&options, &clock).unwrap();
    let (first, long) = (clock.now(), clock.ticks_in(Duration::from_millis(2)));
    let stages = [0, 0, 0, long, 0, 0, 0];
    let burst =
        BurstRecord { first, last: first + long, stages, packets: 1, ring: 1, ..<_>::default() };
    recorder.writer(0, clock).burst(&burst);
    let source = Source::from(Reader::open(recorder.path()).unwrap());
    let why = Why::read(&source, "vm0", Limit::Over(1_000_000), true);
    // Whether something ran in the worker's place is not known.
    assert_eq!(why.groups.first().map(|group| group.cause.name()), Some("unknown"));
    assert!(to_text(&why).contains("record with --kernel-stages"), "{}", to_text(&why));
}
