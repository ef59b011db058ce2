//! Probes whose every stamp is known, joined.

mod guest_stages;
mod one_clock;

use std::time::Duration;

use burst_trace::stage::STAGES_MAX;
use burst_trace::{
    BurstRecord, Clock, Direction, KernelSpan, KernelStage, Reader, Recorder, RecorderOptions,
    RecordingWriter, Source, Stage,
};
use report::Initiator;
use report::html::write_html;
use report::journey::stamps::{ProbeId, Stamp, Stamps};
use report::journey::{
    Journey, Journeys, KnownClock, Misfit, REMAINDER, Side, parts, to_json, to_text, write_csv,
};
use report::when::When;

const RUN: u32 = 7;
/// What a recorder's clock may be off from the host's, here.
const CLOSE_NS: i64 = 100;

struct Known {
    dir: tempfile::TempDir,
    recorder: Recorder,
    clock: Clock,
    /// Where time begins, ticks.
    zero: u64,
}

impl Known {
    fn new() -> Self {
        let dir = tempfile::tempdir().unwrap();
        let clock = Clock::new();
        let options = RecorderOptions {
            path: dir.path().join("vm0.trace"),
            workers: 2,
            queue_pairs: 1,
            capacity: 4096,
            facts: "{}".into(),
        };
        let recorder = Recorder::create(&options, &clock).unwrap();
        Self { dir, recorder, clock, zero: clock.now() }
    }

    /// A moment, in microseconds since the beginning.
    fn at(&self, us: u64) -> u64 {
        self.zero + self.clock.ticks_in(Duration::from_micros(us))
    }

    /// A burst: when it begins, and the microseconds in each stage. No limit held it back.
    fn burst(&self, direction: Direction, first: u64, stages_us: &[u64]) -> BurstRecord {
        let mut stages = [0; STAGES_MAX];
        let its = direction.stages().iter().enumerate().filter(|(_, it)| **it != Stage::Limited);
        for ((at, _), us) in its.zip(stages_us) {
            stages[at] = self.at(*us) - self.zero;
        }
        let first = self.at(first);
        BurstRecord {
            first,
            last: first + stages.iter().sum::<u64>(),
            stages,
            bytes: 64,
            packets: 1,
            ring: u16::from(direction == Direction::Tx),
            ..BurstRecord::default()
        }
    }

    fn join(&self, initiator: Initiator, sender: Stamp, echo: Option<Stamp>) -> Journeys {
        join(&self.source(), initiator, sender, echo)
    }

    fn source(&self) -> Source {
        Reader::open(self.recorder.path()).unwrap().into()
    }

    /// What `ringscope record` makes of it.
    fn recording(&self) -> Source {
        let path = self.dir.path().join("vm0.rec");
        let reader = Reader::open(self.recorder.path()).unwrap();
        let mut writer = RecordingWriter::create(&path, &reader, "{}").unwrap();
        for worker in 0..reader.workers() {
            reader.read(&mut reader.oldest(worker), |record| writer.push(record).unwrap());
        }
        writer.finish(&reader, true).unwrap();
        Source::open(&path).unwrap()
    }

    /// The same moment on the host's clock, nanoseconds.
    fn host(&self, us: u64) -> u64 {
        let reader = Reader::open(self.recorder.path()).unwrap();
        When::of(&reader).monotonic_ns(self.at(us))
    }
}

fn join(source: &Source, initiator: Initiator, sender: Stamp, echo: Option<Stamp>) -> Journeys {
    join_known(source, initiator, sender, echo, &KnownClock::default())
}

fn join_known(
    source: &Source,
    initiator: Initiator,
    sender: Stamp,
    echo: Option<Stamp>,
    known: &KnownClock,
) -> Journeys {
    let stamps = |stamp: Stamp| Stamps {
        probes: [(ProbeId { run: RUN, sequence: 3 }, stamp)].into(),
        ..Stamps::default()
    };
    Journeys::join(source, initiator, &stamps(sender), echo.map(stamps).as_ref(), known)
}

/// The host sends at 10, we have it from 20 to 27, the guest's turn is of 30, we have it from 70 to 85, and the
/// host has the answer at 90.
fn from_the_host(known: &Known) {
    let mut writer = known.recorder.writer(0, known.clock);
    let mut kernel = known.recorder.writer(1, known.clock);
    let rx = known.burst(Direction::Rx, 20, &[1, 0, 3, 1, 2]);
    let rx = BurstRecord { wakeup: Some(u32::try_from(known.at(4) - known.zero).unwrap()), ..rx };
    let tx = known.burst(Direction::Tx, 70, &[2, 0, 4, 6, 2, 1]);
    for record in [rx, tx] {
        writer.burst(&record);
        writer.probe(&record, RUN, 3);
        writer.probe(&record, RUN + 1, 3);
    }
    // The front end is woken up while we signal, the worker by the kick.
    for (stage, start, end) in [(KernelStage::Wakeup, 65, 69), (KernelStage::Inject, 26, 30)] {
        let (start, end) = (known.at(start), known.at(end));
        let worker = stage.is_of_a_worker().then_some(0);
        kernel.kernel(&KernelSpan { stage, start, end, worker, writer: 0 });
    }
}

/// A part of the only journey, in whole microseconds.
fn part_us(joined: &Journeys, side: Side, stage: &str) -> Option<i64> {
    let at = joined.parts.iter().position(|it| it.side == side && it.stage == stage).unwrap();
    joined.journeys[0].parts[at].map(|ns| (ns + CLOSE_NS).div_euclid(1000))
}

fn expect_whole(journey: &Journey) {
    assert!(journey.parts.iter().flatten().all(|ns| *ns >= 0), "{journey:?}");
    assert_eq!(journey.parts.iter().flatten().sum::<i64>(), journey.round_trip_ns, "{journey:?}");
}

#[test]
fn every_stamp_of_a_hosts_probe_has_its_place_and_all_parts_add_up() {
    let known = Known::new();
    from_the_host(&known);
    // The guest's clock has nothing to do with the host's.
    let echo = Stamp {
        received_kernel: Some(5_000_000),
        received: Some(5_010_000),
        sent: 5_022_000,
        sent_kernel: Some(5_030_000),
        ..Stamp::default()
    };
    let sender = Stamp { sent: known.host(10), received: Some(known.host(90)), ..Stamp::default() };
    let joined = known.join(Initiator::Host, sender, Some(echo));
    assert_eq!((joined.journeys.len(), joined.lost, joined.unseen), (1, 0, 0));
    let journey = &joined.journeys[0];
    let of = |side, stage| part_us(&joined, side, stage);
    for (side, stage, us) in [
        (Side::Host, "host-send", 6),
        (Side::Rx, "wakeup", 4),
        (Side::Rx, "notice", 1),
        (Side::Rx, "place", 3),
        (Side::Rx, "publish", 1),
        (Side::Rx, "signal", 2),
        (Side::Rx, "inject", 3),
        (Side::Guest, "guest-receive", 10),
        (Side::Guest, "guest-turn", 12),
        (Side::Guest, "guest-send", 8),
        (Side::Tx, "wakeup", 5),
        (Side::Tx, "notice", 2),
        (Side::Tx, "gather", 4),
        (Side::Tx, "egress", 6),
        (Side::Host, "host-receive", 8),
        // 30 to 65, without the guest's 30: the guest may have had it from 24 to 42, in the middle of which is 33.
        (Side::Between, "guest-interrupt", 3),
        (Side::Between, "guest-kick", 2),
    ] {
        assert_eq!(of(side, stage), Some(us), "{side:?} {stage}");
    }
    expect_whole(journey);
    assert!(!joined.parts.contains(&REMAINDER), "{:?}", joined.parts);
    // Half of 18, and the errors of the kernel's stamps.
    assert!((9_000..9_500).contains(&journey.bound_ns), "{}", journey.bound_ns);
    let ways = journey.one_way.unwrap();
    let us = |ns: i64| (ns + CLOSE_NS).div_euclid(1000);
    // Sent at 10, received at 43; sent back at 55, received at 90.
    assert_eq!((us(ways.to_guest_ns), us(ways.from_guest_ns)), (33, 35));
    let text = to_text(&joined);
    assert!(text.contains("1 probes from the host to the guest and back"), "{text}");
    assert!(text.contains("The bound of guest-kick is wider than its mean"), "{text}");
    let json: serde_json::Value = serde_json::from_str(&to_json(&joined)).unwrap();
    assert_eq!(json["clock"]["relation"], "drifting");
    assert_eq!(json["one_way"]["to_guest"]["p50_ns"], ways.to_guest_ns);
    assert_eq!(json["journeys"][0]["from_guest_ns"], ways.from_guest_ns);
}

#[test]
fn a_far_senders_stamps_are_compared_only_with_each_other() {
    let known = Known::new();
    from_the_host(&known);
    let echo = Stamp {
        received_kernel: Some(7_000),
        received: Some(8_000),
        sent: 9_000,
        sent_kernel: None,
        ..Stamp::default()
    };
    // Its clock began a moment ago. The round trip is 80 us, of which its own kernel had 3 and 5.
    let sender = Stamp {
        sent: 1_000,
        sent_kernel: Some(4_000),
        received_kernel: Some(76_000),
        received: Some(81_000),
        ..Stamp::default()
    };
    let stamps = |stamp| Stamps {
        probes: [(ProbeId { run: RUN, sequence: 3 }, stamp)].into(),
        ..Stamps::default()
    };
    let known_clock = KnownClock::default();
    let joined =
        Journeys::join_far(&known.source(), &stamps(sender), Some(&stamps(echo)), &known_clock);
    assert_eq!(joined.check(), Ok(()));
    let journey = &joined.journeys[0];
    let of = |side, stage| part_us(&joined, side, stage);
    assert_eq!(of(Side::Host, "host-send"), Some(3));
    assert_eq!(of(Side::Host, "host-receive"), Some(5));
    assert_eq!((of(Side::Rx, "wakeup"), of(Side::Rx, "notice")), (Some(4), Some(1)));
    expect_whole(journey);
    assert_eq!(journey.round_trip_ns, 80_000);
    // From 16 to 82 we and the guest have it. The rest is the wire's.
    assert_eq!(of(Side::Between, "remainder"), Some(6));
    assert_eq!(journey.one_way, None);
    // The guest has it for 2 of the 48 between our place and our notice: half of the rest, and the errors of its stamps.
    assert!((23_000..23_300).contains(&journey.bound_ns), "{}", journey.bound_ns);
    // Without the guest's stamps there are two remainders in one. The wait of 5 us may have begun before the packet came.
    let joined = Journeys::join_far(&known.source(), &stamps(sender), None, &known_clock);
    let journey = &joined.journeys[0];
    expect_whole(journey);
    assert!((12_400..12_800).contains(&journey.bound_ns), "{}", journey.bound_ns);
}

#[test]
fn a_packet_waits_from_when_it_was_sent_whatever_the_worker_did_before() {
    // The last look that found nothing was at 20; or the worker was woken up at 14, for something else, and ran at 20. The
    // packet was sent at 23, or at 17, and found at 28.
    for (wakeup, sent, waits) in [
        (None, 23, (None, Some(5))),
        (Some(6), 17, (Some(3), Some(8))),
        (Some(6), 23, (Some(0), Some(5))),
    ] {
        let known = Known::new();
        let mut writer = known.recorder.writer(0, known.clock);
        let wakeup = wakeup.map(|us| u32::try_from(known.at(us) - known.zero).unwrap());
        let rx = BurstRecord { wakeup, ..known.burst(Direction::Rx, 20, &[8, 0, 3, 1, 2]) };
        let tx = known.burst(Direction::Tx, 70, &[2, 0, 4, 6, 2, 1]);
        for record in [rx, tx] {
            writer.burst(&record);
            writer.probe(&record, RUN, 3);
        }
        let sender =
            Stamp { sent: known.host(sent), received: Some(known.host(90)), ..Stamp::default() };
        let joined = known.join(Initiator::Host, sender, None);
        let of = |side, stage| part_us(&joined, side, stage);
        assert_eq!(of(Side::Host, "host-send"), Some(0));
        assert_eq!((of(Side::Rx, "wakeup"), of(Side::Rx, "notice")), waits);
        expect_whole(&joined.journeys[0]);
    }
}

#[test]
fn a_recording_has_the_same_journeys_in_every_format() {
    let known = Known::new();
    from_the_host(&known);
    let sender = Stamp { sent: known.host(10), received: Some(known.host(90)), ..Stamp::default() };
    let live = known.join(Initiator::Host, sender, None);
    let recording = known.recording();
    let kept = join(&recording, Initiator::Host, sender, None);
    assert_eq!(live.journeys, kept.journeys);
    let parts = parts(Initiator::Host);
    let journey = &kept.journeys[0];
    let empty = |part: &Option<i64>| part.map_or_else(String::new, |ns| ns.to_string());

    let mut csv = Vec::new();
    write_csv(&mut csv, &kept).unwrap();
    let csv = String::from_utf8(csv).unwrap();
    let lines: Vec<_> = csv.lines().map(|line| line.split(',').collect::<Vec<_>>()).collect();
    let names = parts.iter().map(|it| format!("{}.{}_ns", it.side.name(), it.stage));
    assert_eq!(lines[0][5..], names.collect::<Vec<_>>());
    assert_eq!(lines[0][..5], ["run", "sequence", "sent_ns", "round_trip_ns", "bound_ns"]);
    let head = [7, 3, sender.sent.cast_signed(), journey.round_trip_ns, journey.bound_ns];
    assert_eq!(lines[1][..5], head.map(|it| it.to_string()));
    assert_eq!(lines[1][5..], journey.parts.iter().map(empty).collect::<Vec<_>>());
    assert_eq!(lines.len(), 2);

    let mut page = Vec::new();
    write_html(&mut page, &recording, None, Some(&kept), "vm0", || ()).unwrap();
    let page = String::from_utf8(page).unwrap();
    let (_, data) = page.split_once("type=\"application/json\">").unwrap();
    let (data, _) = data.split_once("</script>").unwrap();
    let trips = &serde_json::from_str::<serde_json::Value>(data).unwrap()["trips"];
    assert_eq!(trips["slowest"][0]["parts_ns"], serde_json::json!(journey.parts));
    assert_eq!(trips["slowest"][0]["bound_ns"], journey.bound_ns);
    let mean = &trips["mean"];
    let sum: f64 = mean["parts_ns"].as_array().unwrap().iter().filter_map(|it| it.as_f64()).sum();
    assert!((sum - mean["total_ns"].as_f64().unwrap()).abs() < 1e-3, "{mean}");
    assert!(trips["tail"].is_null() && trips["has_echo"] == false, "{trips}");
}

#[test]
fn without_the_echos_stamps_its_turn_is_in_the_remainder() {
    let known = Known::new();
    from_the_host(&known);
    let sender = Stamp { sent: known.host(10), received: Some(known.host(90)), ..Stamp::default() };
    let joined = known.join(Initiator::Host, sender, None);
    assert_eq!(part_us(&joined, Side::Guest, "guest-turn"), None);
    assert_eq!(part_us(&joined, Side::Between, REMAINDER.stage), Some(35));
    assert!(to_text(&joined).contains("without --echo the turn of the guest is not taken apart"));
}

#[test]
fn a_guests_probe_has_the_hosts_turn_between_ours() {
    let known = Known::new();
    let mut writer = known.recorder.writer(0, known.clock);
    let tx = known.burst(Direction::Tx, 20, &[2, 0, 4, 6, 2, 1]);
    let rx = known.burst(Direction::Rx, 50, &[1, 0, 3, 1, 2]);
    for record in [tx, rx] {
        writer.burst(&record);
        writer.probe(&record, RUN, 3);
    }
    let sender = Stamp {
        sent: 1_000,
        sent_kernel: Some(8_000),
        received_kernel: Some(60_000),
        received: Some(69_000),
        ..Stamp::default()
    };
    let echo = Stamp { received: Some(known.host(38)), sent: known.host(41), ..Stamp::default() };
    let joined = known.join(Initiator::Guest, sender, Some(echo));
    let of = |side, stage| part_us(&joined, side, stage);
    assert_eq!(of(Side::Guest, "guest-send"), Some(7));
    assert_eq!(of(Side::Host, "host-receive"), Some(6));
    assert_eq!(of(Side::Host, "host-turn"), Some(3));
    assert_eq!(of(Side::Host, "host-send"), Some(9));
    assert_eq!(of(Side::Guest, "guest-receive"), Some(9));
    // The round trip of 68, less the daemon's 12 and 7, the host's 18 and the guest's 16: 15 are left for both parts.
    assert_eq!(of(Side::Between, "guest-kick"), Some(8));
    assert_eq!(of(Side::Between, "guest-interrupt"), Some(7));
    expect_whole(&joined.journeys[0]);
    let ways = joined.journeys[0].one_way.unwrap();
    // Sent at 5, received at 38; sent back at 41, received at 73.
    assert_eq!((ways.from_guest_ns + CLOSE_NS) / 1000, 33);
    assert_eq!((ways.to_guest_ns + CLOSE_NS) / 1000, 32);
    let whole = known.join(Initiator::Guest, sender, None);
    assert_eq!(part_us(&whole, Side::Host, "host-turn"), Some(18));
    assert_eq!(whole.journeys[0].one_way, None);
}

#[test]
fn what_was_lost_or_never_seen_is_counted() {
    let known = Known::new();
    let lost = known.join(Initiator::Host, Stamp::default(), None);
    assert_eq!((lost.journeys.len(), lost.lost, lost.unseen), (0, 1, 0));
    let unseen = Stamp { received: Some(5), ..Stamp::default() };
    let unseen = known.join(Initiator::Host, unseen, None);
    assert_eq!((unseen.journeys.len(), unseen.lost, unseen.unseen), (0, 0, 1));
    assert!(to_text(&unseen).contains("--trace-probe"));
}

#[test]
fn stages_of_a_probes_burst_telescope_in_whole_nanoseconds() {
    let known = Known::new();
    let mut writer = known.recorder.writer(0, known.clock);
    for (direction, first) in [(Direction::Rx, 20), (Direction::Tx, 70)] {
        let mut record = known.burst(direction, first, &[]);
        let stages = direction.stages().len();
        for (n, stage) in record.stages.iter_mut().enumerate().take(stages) {
            *stage = 3 + n as u64;
        }
        record.last = record.first + record.stages.iter().sum::<u64>();
        writer.burst(&record);
        writer.probe(&record, RUN, 3);
    }
    let sender = Stamp { sent: known.host(10), received: Some(known.host(90)), ..Stamp::default() };
    let joined = known.join(Initiator::Host, sender, None);
    let journey = &joined.journeys[0];
    let ours: i64 = parts(Initiator::Host)
        .iter()
        .zip(&journey.parts)
        .filter(|(part, _)| part.side == Side::Rx && Stage::from_name(part.stage).is_some())
        .filter_map(|(_, ns)| *ns)
        .sum();
    // 3 to 8 ticks: less than one nanosecond of rounding in all, not one a stage.
    let exact = 33.0 * 1e9 / known.clock.ticks_per_second() as f64;
    assert!((ours as f64 - exact).abs() <= 1.0, "{ours} of {exact}");
}

#[test]
fn a_wrong_role_or_clock_is_noticed() {
    let known = Known::new();
    from_the_host(&known);
    let stamp = |sent, received| Stamp { sent, received: Some(received), ..Stamp::default() };
    let right = stamp(known.host(10), known.host(90));
    assert_eq!(known.join(Initiator::Host, right, None).check(), Ok(()));
    let misfit = known.join(Initiator::Guest, right, None).check().unwrap_err();
    assert_eq!(misfit, Misfit::Initiator { initiator: Initiator::Guest, backwards: 1, joined: 1 });
    assert!(misfit.to_string().ends_with("give --initiator host"), "{misfit}");
    // The clock of another machine, an hour ahead or behind.
    let hour_ns = 3_600_000_000_000;
    for (sent, received) in [
        (known.host(10) + hour_ns, known.host(90) + hour_ns),
        (1_000, known.host(90) - known.host(10) + 1_000),
    ] {
        let joined = known.join(Initiator::Host, stamp(sent, received), None);
        assert_eq!(joined.check(), Err(Misfit::Clock { misplaced: 1, joined: 1 }));
    }
}
