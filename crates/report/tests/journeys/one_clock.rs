//! Probes whose guest's clock is related to the host's.

use burst_trace::{BurstRecord, Direction};
use report::Initiator;
use report::journey::stamps::{ProbeId, Stamp, Stamps};
use report::journey::{
    ClockBound, ClockBounds, GUEST_INTERRUPT, GUEST_KICK, Journeys, KnownClock, Means, REMAINDER,
    Relation, Side, parts, to_text,
};

use super::{Known, RUN, expect_whole, from_the_host, join_known, part_us};

#[test]
fn a_clock_page_says_when_the_guest_had_it() {
    let known = Known::new();
    from_the_host(&known);
    let sender = Stamp { sent: known.host(10), received: Some(known.host(90)), ..Stamp::default() };
    // The guest had it from 34 to 64.
    let ahead = 1_000_000_i64;
    let guest = |us: u64| known.host(us).saturating_add_signed(ahead);
    let echo = Stamp {
        received_kernel: Some(guest(34)),
        received: Some(guest(44)),
        sent: guest(56),
        sent_kernel: Some(guest(64)),
        ..Stamp::default()
    };
    let host_ns = known.host(0).cast_signed();
    let bound = |ahead: i64| ClockBound { host_ns, low_ns: ahead - 20, high_ns: ahead + 20 };
    let page = |bounds: Vec<ClockBound>| ClockBounds { means: Means::ClockPage, bounds };
    let joined = |relation, bounds| {
        let known_clock = KnownClock { relation, bounds };
        join_known(&known.source(), Initiator::Host, sender, Some(echo), &known_clock)
    };
    let with_page = joined(Relation::Constant, Some(page(vec![bound(ahead)])));
    let close = with_page.clock.unwrap();
    assert_eq!((close.relation, with_page.clock_note), ("clock-page", None));
    assert!(close.offset_low_ns <= ahead && ahead <= close.offset_high_ns, "{close:?}");
    assert!(close.width_p99_ns < 300, "{close:?}");
    assert_eq!(part_us(&with_page, Side::Between, GUEST_INTERRUPT.stage), Some(4));
    assert_eq!(part_us(&with_page, Side::Between, GUEST_KICK.stage), Some(1));
    assert!(with_page.journeys[0].bound_ns < 300, "{with_page:?}");
    expect_whole(&with_page.journeys[0]);

    // The page of another run, and a relation that is not there.
    let other = joined(Relation::Drifting, Some(page(vec![bound(ahead + 50_000)])));
    assert_eq!(other.clock.unwrap().relation, "drifting");
    assert!(other.clock_note.unwrap().contains("--clock, which are left out"));
    let same = joined(Relation::Same, None);
    assert_eq!(same.clock.unwrap().relation, "drifting");
    assert!(to_text(&same).contains("the probes contradict the given --clock-relation"));
}

#[test]
fn stamps_that_fit_no_clock_leave_the_remainder_whole_and_say_so() {
    let known = Known::new();
    from_the_host(&known);
    let sender = Stamp { sent: known.host(10), received: Some(known.host(90)), ..Stamp::default() };
    // A turn that is longer than the round trip.
    let echo = Stamp {
        received_kernel: Some(5_000),
        received: Some(6_000),
        sent: 205_000,
        sent_kernel: Some(206_000),
        ..Stamp::default()
    };
    let joined = known.join(Initiator::Host, sender, Some(echo));
    assert_eq!(joined.clock, None);
    assert_eq!(joined.parts, parts(Initiator::Host));
    assert!(to_text(&joined).contains("no offset between the clocks"));
    expect_whole(&joined.journeys[0]);
    assert_eq!(part_us(&joined, Side::Between, REMAINDER.stage), Some(0));
}

#[test]
fn a_packet_that_is_sent_while_its_burst_is_read_and_taken_early_has_no_part_below_zero() {
    // The worker looked at 20, the packet was sent at 24, and was in place at 29. The guest had it at 30, before the signal was
    // written at 33; its answer was sent at 65, and the last look that found nothing was at 61. The host had it at 77, before
    // the daemon's call was over at 84.
    let known = Known::new();
    let mut writer = known.recorder.writer(0, known.clock);
    let rx = known.burst(Direction::Rx, 20, &[1, 0, 8, 1, 3]);
    let tx = known.burst(Direction::Tx, 61, &[6, 0, 4, 13, 2, 1]);
    for record in [rx, tx] {
        writer.burst(&record);
        writer.probe(&record, RUN, 3);
    }
    let guest = |us: u64| known.host(us) + 77_000_000;
    let host = Stamp { sent: known.host(24), received: Some(known.host(77)), ..Stamp::default() };
    let echo = Stamp {
        received_kernel: Some(guest(30)),
        received: Some(guest(32)),
        sent: guest(60),
        sent_kernel: Some(guest(65)),
        ..Stamp::default()
    };
    let joined = known.join(Initiator::Host, host, Some(echo));
    let of = |side, stage| part_us(&joined, side, stage);
    expect_whole(&joined.journeys[0]);
    assert_eq!(of(Side::Host, "host-send"), Some(0));
    assert_eq!((of(Side::Rx, "notice"), of(Side::Rx, "place")), (Some(0), Some(5)));
    // The middle of what is possible: the guest had it between 29 and 32.
    assert_eq!((of(Side::Rx, "publish"), of(Side::Between, "guest-interrupt")), (Some(1), Some(0)));
    assert_eq!((of(Side::Between, "guest-kick"), of(Side::Tx, "notice")), (Some(0), Some(1)));
    assert_eq!((of(Side::Tx, "egress"), of(Side::Host, "host-receive")), (Some(6), Some(0)));
    // The same without the guest's stamps.
    let joined = known.join(Initiator::Host, host, None);
    expect_whole(&joined.journeys[0]);
}

/// A generator of numbers that are the same in every run (Marsaglia's xorshift64).
struct Numbers(u64);

impl Numbers {
    fn below(&mut self, limit: u64) -> u64 {
        self.0 ^= self.0 << 13;
        self.0 ^= self.0 >> 7;
        self.0 ^= self.0 << 17;
        self.0 % limit
    }
}

/// A clock that is ahead by a while, and gains 20 parts in a million.
fn guest(known: &Known, us: u64) -> u64 {
    known.host(us) + 3_000_000_000 + us * 20 / 1000
}

/// A probe of random times, microseconds, that begins at `at`: its bursts, and the stamps of host and guest. The daemon may
/// look before the probe is sent, and may be busy with it when the next side has it.
fn random(known: &Known, numbers: &mut Numbers, at: u64) -> ([BurstRecord; 2], [Stamp; 2]) {
    let mut some = |limit| numbers.below(limit);
    let (first, sent) = (at + some(40), at + some(40));
    let (notice, starved) = (some(10), some(3));
    let place = 1 + some(10) + sent.saturating_sub(first + notice + starved);
    let rx = known.burst(Direction::Rx, first, &[notice, starved, place, some(3), some(30)]);
    let arrived = first + notice + starved + place + 1 + some(40);
    let received = arrived + some(10);
    let answered = received + some(20);
    let left = answered + some(10);
    let (seen, looked) = (left + 1 + some(40), some(60));
    let (gather, egress) = (some(5), some(20));
    let stages = [looked, 0, gather, egress, some(5), some(5)];
    let tx = known.burst(Direction::Tx, seen - looked, &stages);
    let back = seen + gather + 1 + some(30);
    let host =
        Stamp { sent: known.host(sent), received: Some(known.host(back)), ..Stamp::default() };
    let echo = Stamp {
        sent: guest(known, answered),
        sent_kernel: Some(guest(known, left)),
        received_kernel: Some(guest(known, arrived)),
        received: Some(guest(known, received)),
        ..Stamp::default()
    };
    ([rx, tx], [host, echo])
}

#[test]
fn parts_of_random_journeys_add_up_and_the_true_offset_is_within_its_interval() {
    const PROBES: u64 = 900;
    let known = Known::new();
    let mut writer = known.recorder.writer(0, known.clock);
    let mut numbers = Numbers(0x9e37_79b9_7f4a_7c15);
    let (mut sender, mut echo) = (Stamps::default(), Stamps::default());
    for sequence in 0..PROBES {
        let (bursts, [host, turned]) = random(&known, &mut numbers, 100 + 1000 * sequence);
        for burst in bursts {
            writer.burst(&burst);
            writer.probe(&burst, RUN, sequence);
        }
        sender.probes.insert(ProbeId { run: RUN, sequence }, host);
        echo.probes.insert(ProbeId { run: RUN, sequence }, turned);
    }
    let known_clock = KnownClock::default();
    let source = known.source();
    let joined = Journeys::join(&source, Initiator::Host, &sender, Some(&echo), &known_clock);
    assert_eq!(joined.journeys.len() as u64, PROBES);
    joined.journeys.iter().for_each(expect_whole);
    let clock = joined.clock.unwrap();
    assert!(clock.drift_ppm_low <= 20.0 && 20.0 <= clock.drift_ppm_high, "{clock:?}");
    let middle = 3_000_000_000 + (100 + 500 * PROBES.cast_signed()) * 20 / 1000;
    assert!(clock.offset_low_ns <= middle && middle <= clock.offset_high_ns, "{clock:?}");
    // The shortest time there and back that is not the guest's own is 2 us.
    assert!(clock.width_p99_ns < 10_000, "{clock:?}");

    // The same without the guest's stamps.
    let joined = Journeys::join(&source, Initiator::Host, &sender, None, &known_clock);
    joined.journeys.iter().for_each(expect_whole);
    assert_eq!(joined.parts, parts(Initiator::Host));
}
