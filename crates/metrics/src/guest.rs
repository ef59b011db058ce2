//! Reads one guest's recorder as it is written, and makes its histograms.

use std::path::{Path, PathBuf};
use std::time::Duration;

use burst_trace::{
    BurstRecord, Clock, Cursor, Direction, KernelStage, ReadError, Reader, Record, Wakeup, Wakeups,
};

use crate::interrupted::Interrupted;

/// Upper bounds of the histogram buckets, in seconds. One more bucket holds all longer times.
pub const BUCKETS_S: [f64; 22] = [
    1e-7, 2e-7, 5e-7, 1e-6, 2e-6, 5e-6, 1e-5, 2e-5, 5e-5, 1e-4, 2e-4, 5e-4, 1e-3, 2e-3, 5e-3, 1e-2,
    2e-2, 5e-2, 0.1, 0.2, 0.5, 1.0,
];

/// Longest time between a burst and the records of its wake-up and of its interruptions. After this time these are final, and
/// are counted.
const LATE: Duration = Duration::from_secs(1);

/// A guest whose recorder is read as it is written.
#[derive(Debug)]
pub struct Guest {
    pub(crate) name: String,
    path: PathBuf,
    pub(crate) reader: Reader,
    pub(crate) facts: serde_json::Value,
    /// Whether the daemon has seen exits of KVM.
    pub(crate) sees_exits: bool,
    /// The recorder's version of these facts.
    facts_version: u64,
    cursors: Vec<Cursor>,
    bounds: [u64; BUCKETS_S.len()],
    clock: Clock,
    /// `None` when the daemon has not measured times in the host kernel.
    wakeups: Option<Wakeups>,
    /// `None` when the daemon has not seen interruptions.
    pub(crate) interrupted: Option<Interrupted>,
    pub(crate) directions: [DirectionHistograms; 2],
    pub(crate) lost: u64,
}

/// The histograms and counts of one direction.
#[derive(Debug)]
pub(crate) struct DirectionHistograms {
    pub(crate) direction: Direction,
    /// The daemon's stages in order, then their total.
    pub(crate) times: Vec<(&'static str, Times)>,
    /// The host kernel's stages.
    pub(crate) kernel: Vec<(KernelStage, Times)>,
    pub(crate) polled_packets: u64,
}

/// A histogram of times.
#[derive(Clone, Debug, Default)]
pub(crate) struct Times {
    /// Packets in each bucket. The last bucket holds times above every bound.
    pub(crate) counts: [u64; BUCKETS_S.len() + 1],
    pub(crate) packets: u64,
    pub(crate) ticks: u128,
}

impl Guest {
    /// Opens the recorder of guest `name` at `path`, which `clock` stamps. Reading begins at the oldest record of this daemon.
    ///
    /// # Errors
    /// When the recorder cannot be read.
    pub fn open(name: &str, path: &Path, clock: Clock) -> Result<Self, ReadError> {
        let reader = Reader::open(path)?;
        let rate = reader.ticks_per_second() as f64;
        let mut guest = Self {
            name: name.into(),
            path: path.into(),
            wakeups: None,
            interrupted: None,
            facts: serde_json::Value::Null,
            sees_exits: false,
            facts_version: 0,
            clock,
            cursors: (0..reader.workers())
                .map(|worker| reader.oldest_of_last_daemon(worker))
                .collect(),
            bounds: BUCKETS_S.map(|seconds| (seconds * rate) as u64),
            directions: [
                DirectionHistograms::new(Direction::Tx),
                DirectionHistograms::new(Direction::Rx),
            ],
            lost: 0,
            reader,
        };
        guest.read_facts();
        Ok(guest)
    }

    /// Reads what the daemon measures. What it has measured stays.
    fn read_facts(&mut self) {
        self.facts_version = self.reader.facts_version();
        self.facts = serde_json::from_str(&self.reader.facts()).unwrap_or_default();
        if self.facts["kernel_stages"].is_object() {
            self.wakeups.get_or_insert_default();
        }
        self.sees_exits |= is_or_was_on(&self.facts, "kvm");
        if is_or_was_on(&self.facts, "interruptions") {
            self.interrupted.get_or_insert_default();
        }
    }

    /// Reads the new records. Returns the fraction of the recorder that was written since the last call: 1 when the
    /// busiest worker filled its part.
    pub(crate) fn follow(&mut self) -> f64 {
        // Its daemon is another process, and was started again. Counters begin at 0, as those of a daemon do.
        if self.reader.is_replaced(&self.path)
            && let Ok(new) = Self::open(&self.name, &self.path, self.clock)
        {
            *self = new;
        }
        if self.reader.facts_version() != self.facts_version {
            self.read_facts();
        }
        let Self { reader, cursors, bounds, directions, wakeups, interrupted, lost, .. } = self;
        let mut most = 0;
        for cursor in cursors {
            let mut came = 0;
            *lost += reader.read(cursor, |record| {
                came += 1;
                let way = |direction| usize::from(direction == Direction::Rx);
                match record {
                    Record::Burst(burst) => {
                        directions[way(burst.direction())].add(burst, bounds);
                        if let Some(wakeups) = wakeups {
                            wakeups.add_burst(&burst.times(), burst.packets);
                        }
                        if let Some(interrupted) = interrupted {
                            interrupted.add_burst(burst);
                        }
                    }
                    Record::Interruption(interruption) => {
                        if let Some(interrupted) = interrupted {
                            interrupted.add(interruption);
                        }
                    }
                    Record::KernelSpan(span) => match (span.stage.direction(), &mut *wakeups) {
                        (Some(direction), _) => {
                            directions[way(direction)].add_kernel(
                                span.stage,
                                span.total(),
                                1,
                                bounds,
                            );
                        }
                        (None, Some(wakeups)) => wakeups.add(span),
                        (None, None) => {}
                    },
                    _ => {}
                }
            });
            most = most.max(came);
        }
        let until = self.clock.now().saturating_sub(self.clock.ticks_in(LATE));
        if let Some(interrupted) = interrupted {
            interrupted.count_before(until);
        }
        if let Some(wakeups) = wakeups {
            for Wakeup { direction, packets, ticks, .. } in wakeups.take_before(until) {
                let way = &mut directions[usize::from(direction == Direction::Rx)];
                way.add_kernel(KernelStage::Wakeup, ticks, packets.into(), bounds);
            }
        }
        f64::from(most) / reader.capacity() as f64
    }
}

/// Whether the daemon measures it, or has: `interruptions` of all causes or some, or `kvm`.
fn is_or_was_on(facts: &serde_json::Value, name: &str) -> bool {
    facts["kernel_stages"][name].as_str().is_some_and(|state| state.starts_with("on"))
}

impl DirectionHistograms {
    fn new(direction: Direction) -> Self {
        let names = direction.stages().iter().map(|stage| stage.name()).chain(["total"]);
        let times = names.map(|name| (name, Times::default())).collect();
        let is_its = |stage: &KernelStage| stage.direction().is_none_or(|it| it == direction);
        let kernel = KernelStage::ALL.into_iter().filter(is_its);
        let kernel = kernel.map(|stage| (stage, Times::default())).collect();
        Self { direction, times, kernel, polled_packets: 0 }
    }

    fn add(&mut self, record: &BurstRecord, bounds: &[u64]) {
        let stages = &record.stages[..self.direction.stages().len()];
        let times = stages.iter().copied().chain([record.total()]);
        for ((_, sum), ticks) in self.times.iter_mut().zip(times) {
            sum.add(ticks, record.packets.into(), bounds);
        }
        if let Some(ticks) = record.wakeup {
            let packets = record.packets.into();
            self.add_kernel(KernelStage::Wakeup, ticks.into(), packets, bounds);
        }
        if record.is_polled {
            self.polled_packets += u64::from(record.packets);
        }
    }
}

impl DirectionHistograms {
    fn add_kernel(&mut self, stage: KernelStage, ticks: u64, packets: u64, bounds: &[u64]) {
        for (_, sum) in self.kernel.iter_mut().filter(|(it, _)| *it == stage) {
            sum.add(ticks, packets, bounds);
        }
    }
}

impl Times {
    fn add(&mut self, ticks: u64, packets: u64, bounds: &[u64]) {
        self.counts[bounds.partition_point(|bound| *bound < ticks)] += packets;
        self.packets += packets;
        self.ticks += u128::from(ticks) * u128::from(packets);
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::exposition::to_text;
    use burst_trace::{
        Culprit, Interruption, InterruptionCause, KernelSpan, Recorder, RecorderOptions, Subject,
        Writer,
    };

    /// Writes a burst in each direction with 10 µs in each stage, and its kernel spans, about 1 ms after `zero`. Returns the
    /// writer of the kernel spans.
    fn write(recorder: &Recorder, clock: Clock, zero: u64) -> Writer {
        let ticks = |us| clock.ticks_in(Duration::from_micros(us));
        let (mut worker, mut kernel) = (recorder.writer(0, clock), recorder.writer(1, clock));
        for (ring, first, packets) in [(1, 1000, 2), (0, 2000, 3)] {
            let mut stages = [0; burst_trace::stage::STAGES_MAX];
            stages[..Direction::of_ring(ring).stages().len()].fill(ticks(10));
            let limited = Direction::of_ring(ring).position(burst_trace::Stage::Limited);
            stages[limited.unwrap()] = 0;
            let first = zero + ticks(first);
            let last = first + stages.iter().sum::<u64>();
            worker.burst(&BurstRecord { first, last, stages, packets, ring, ..Default::default() });
        }
        for (stage, start, end) in [
            (KernelStage::Wakeup, 980, 999),
            (KernelStage::HostTx, 1032, 1037),
            (KernelStage::Inject, 2045, 2075),
        ] {
            let (start, end) = (zero + ticks(start), zero + ticks(end));
            let worker = stage.is_of_a_worker().then_some(0);
            kernel.kernel(&KernelSpan { stage, start, end, worker, writer: 0 });
        }
        kernel
    }

    /// A recorder of a worker and of the kernel, with these facts.
    fn recorder(directory: &Path, clock: Clock, facts: &str) -> Recorder {
        let options = RecorderOptions {
            path: directory.join("vm0.trace"),
            workers: 2,
            queue_pairs: 1,
            capacity: 64,
            facts: facts.into(),
        };
        Recorder::create(&options, &clock).unwrap()
    }

    #[test]
    fn interruptions_count_in_bursts_once_they_are_final_and_where_they_are_seen() {
        let clock = Clock::new();
        let lines = |facts: &str| {
            let directory = tempfile::tempdir().unwrap();
            let recorder = recorder(directory.path(), clock, facts);
            // The bursts are from 1000 to 1060 us and from 2000 to 2050 us.
            let zero = clock.now() - clock.ticks_in(2 * LATE);
            let mut writer = write(&recorder, clock, zero);
            let at = |us| zero + clock.ticks_in(Duration::from_micros(us));
            for (subject, start) in [(Subject::Worker(0), 1040), (Subject::FrontEnd, 1500)] {
                writer.interruption(&Interruption {
                    start: at(start),
                    end: at(start + 100),
                    subject,
                    thread: 5,
                    cause: InterruptionCause::Preempted,
                    culprit: Culprit::default(),
                    detail: 0,
                    cpu: 1,
                    writer: 1,
                });
            }
            let mut guest = Guest::open("vm0", recorder.path(), clock).unwrap();
            guest.follow();
            guest.follow();
            let text = to_text(std::slice::from_ref(&guest)).unwrap();
            let start = "ringscope_interrupted_seconds_total{";
            let lines = text.lines().filter(|line| line.starts_with(start));
            lines.map(str::to_owned).collect::<Vec<_>>()
        };
        for state in ["on", "on, without interrupts: this kernel refuses their programs"] {
            let facts = format!(r#"{{"kernel_stages":{{"interruptions":"{state}"}}}}"#);
            let lines = lines(&facts);
            assert_eq!(lines.len(), 16, "{lines:?}");
            let of = |labels: &str| {
                let line = lines.iter().find(|line| line.contains(labels)).expect(labels);
                line.rsplit(' ').next().unwrap().parse::<f64>().unwrap()
            };
            let labels = |subject: &str, cause: &str| {
                format!("{{guest=\"vm0\",cause=\"{cause}\",subject=\"{subject}\"}}")
            };
            assert!((of(&labels("worker", "preempted")) - 20e-6).abs() < 1e-6, "{lines:?}");
            assert!((of(&labels("front-end", "preempted")) - 100e-6).abs() < 1e-6, "{lines:?}");
            assert!(of(&labels("worker", "throttled")).abs() < 1e-12, "{lines:?}");
        }
        let with_kvm = lines(r#"{"kernel_stages":{"interruptions":"on","kvm":"on"}}"#);
        let exits: Vec<_> = with_kvm.iter().filter(|line| line.contains("kvm-exit")).collect();
        assert_eq!(exits.len(), 1, "{with_kvm:?}");
        assert!(exits[0].contains("front-end"), "{with_kvm:?}");
        for facts in ["", r#"{"kernel_stages":{"interruptions":"n/a: no","wakeup":"on"}}"#] {
            assert_eq!(lines(facts), Vec::<String>::new(), "{facts}");
        }
    }

    #[test]
    fn the_host_kernels_stages_have_histograms_where_they_are_measured() {
        let directory = tempfile::tempdir().unwrap();
        let clock = Clock::new();
        let facts = r#"{"kernel_stages":{"wakeup":"on"}}"#;
        let recorder = recorder(directory.path(), clock, facts);
        write(&recorder, clock, clock.now());
        let mut guest = Guest::open("vm0", recorder.path(), clock).unwrap();
        let mut counts = || {
            guest.follow();
            let text = to_text(std::slice::from_ref(&guest)).unwrap();
            let of = |labels: &str| {
                let head = format!("ringscope_stage_seconds_count{{guest=\"vm0\",{labels}}} ");
                let line = text.lines().find_map(|line| line.strip_prefix(&head));
                line.map(|count| count.parse::<u64>().unwrap())
            };
            [("tx", "D", "total"), ("tx", "K", "host-tx"), ("rx", "K", "inject")]
                .into_iter()
                .chain([("rx", "K", "host-rx"), ("tx", "K", "wakeup"), ("rx", "K", "wakeup")])
                .map(|(way, tier, stage)| {
                    of(&format!("direction=\"{way}\",tier=\"{tier}\",stage=\"{stage}\""))
                })
                .collect::<Vec<_>>()
        };
        // No host-rx span was written. The burst is so recent that another record of its wake-up may follow.
        assert_eq!(counts(), [Some(2), Some(1), Some(1), None, None, None]);
        // The burst begins 1 ms after the recorder was made.
        std::thread::sleep(LATE + Duration::from_millis(50));
        assert_eq!(counts(), [Some(2), Some(1), Some(1), None, Some(2), None]);
        assert_eq!(counts()[4], Some(2), "it counts once");
        let wakeup = guest.directions[0].kernel[0].1.ticks;
        let us = |ticks: u128| ticks * 1_000_000 / u128::from(clock.ticks_per_second());
        assert!((39..=41).contains(&us(wakeup)), "20 us of two packets: {wakeup}");
    }

    #[test]
    fn a_time_is_in_the_first_bucket_that_is_not_shorter() {
        let mut times = Times::default();
        let bounds = BUCKETS_S.map(|seconds| (seconds * 1e9) as u64);
        for (ticks, bucket) in
            [(0, 0), (100, 0), (101, 1), (1_000_000_000, 21), (1_000_000_001, 22)]
        {
            let before = times.counts[bucket];
            times.add(ticks, 3, &bounds);
            assert_eq!(times.counts[bucket], before + 3, "{ticks}");
        }
        assert_eq!(times.packets, 15);
    }
}
