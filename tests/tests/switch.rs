//! Guests in software that reach each other through a switch of the daemon.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{Duration, Instant};

use burst_trace::DropCause;
use frontend::{GuestOptions, Pair, RegionOptions};
use ringscope_tests::eventually::{eventually, when};
use ringscope_tests::frames::{self, formats};
use ringscope_tests::hostile::{SCRATCH, readable};
use ringscope_tests::lan::{EVERYONE, Lan, frame, station};
use ringscope_tests::packets;

const SOON: Duration = Duration::from_secs(5);
/// Frames to everyone that a port may send: at once, and in each second after that (`FLOOD_BURST` and `FLOOD_RATE` of
/// `worker/src/topology/switch/addresses.rs`).
const FLOOD_BURST: u64 = 512;
const FLOOD_RATE: f64 = 10_000.0;

fn guests(count: usize) -> Vec<GuestOptions> {
    vec![GuestOptions::default(); count]
}

#[test]
fn two_guests_exchange_frames_whatever_they_negotiated() {
    let base = GuestOptions { start_index: 65500, ..GuestOptions::default() };
    let kinds: Vec<_> = [base.clone(), base.clone().mergeable(false), base.event_index(false)]
        .iter()
        .flat_map(formats)
        .collect();
    for (n, one) in kinds.iter().enumerate() {
        let other = &kinds[(n * 5 + 1) % kinds.len()];
        let mut lan = Lan::new(&[one.clone(), other.clone()], "");
        lan.introduce();
        for (from, to) in [(0, 1), (1, 0)] {
            for (seed, len) in [60, 61, 1000, 1514, 64].into_iter().enumerate() {
                let sent = frame(station(to), station(from), seed, len);
                lan.send(from, &sent);
                lan.expect(to, &sent);
            }
            let burst: Vec<_> =
                (0..100).map(|n| frame(station(to), station(from), n, 60 + 10 * n)).collect();
            for sent in &burst {
                assert!(lan.pair(from).queue(sent).unwrap(), "room for a frame");
            }
            lan.pair(from).flush().unwrap();
            burst.iter().for_each(|sent| drop(lan.expect(to, sent)));
        }
        for guest in &lan.guests {
            guest.check_canaries().unwrap();
        }
        for n in 0..2 {
            eventually(SOON, "all frames are recorded", || {
                let packets = [0, 1].map(|ring| lan.trace(n).packets(ring));
                when(packets == [106; 2], format!("{packets:?}"))
            });
            let (received, sent) = (lan.trace(n).check(0), lan.trace(n).check(1));
            assert_eq!((received.packets, sent.packets), (106, 106));
            assert_eq!(received.bytes, lan.trace(1 - n).check(1).bytes);
        }
    }
}

#[test]
fn a_frame_goes_to_everyone_until_it_is_known_where_to() {
    let mut lan = Lan::new(&guests(4), "");
    let question = frame(station(1), station(0), 1, 100);
    lan.send(0, &question);
    (1..4).for_each(|n| drop(lan.expect(n, &question)));
    lan.expect_nothing(0);
    let answer = frame(station(0), station(1), 2, 100);
    lan.send(1, &answer);
    lan.expect(0, &answer);
    lan.send(0, &question);
    lan.expect(1, &question);
    [2, 3].into_iter().for_each(|n| lan.expect_nothing(n));
    let hello = frame(EVERYONE, station(3), 3, 100);
    lan.send(3, &hello);
    (0..3).for_each(|n| drop(lan.expect(n, &hello)));
    // To oneself there is no way.
    lan.send(3, &frame(station(3), station(3), 4, 100));
    lan.expect_drops(3, 1, DropCause::TxNoReceiver, 1);
}

#[test]
fn frames_for_many_in_one_burst_reach_each_in_order() {
    let mut lan = Lan::new(&guests(4), "");
    lan.introduce();
    let to = |n: usize| if n % 7 == 6 { EVERYONE } else { station(1 + n % 3) };
    for n in 0..60 {
        assert!(lan.pair(0).queue(&frame(to(n), station(0), n, 60 + n)).unwrap());
    }
    lan.pair(0).flush().unwrap();
    for guest in 1..4 {
        for n in (0..60).filter(|&n| to(n) == EVERYONE || to(n) == station(guest)) {
            lan.expect(guest, &frame(to(n), station(0), n, 60 + n));
        }
        lan.expect_nothing(guest);
    }
}

#[test]
fn a_flow_stays_on_the_queue_pairs_that_it_has() {
    let [two, one] = [2, 1].map(|pairs| GuestOptions::default().queue_pairs(pairs));
    let mut lan = Lan::new(&[two.clone(), two, one], "queue-pairs = 2");
    let hello = |n| frame(EVERYONE, station(n), n, 60);
    // From each pair of guest 0, and back to it.
    for pair in 0..2 {
        assert!(lan.guests[0].pair(pair).send(&hello(0)).unwrap());
        for (n, at) in [(1, pair), (2, 0)] {
            let came = lan.guests[n].pair(at).receive_within(SOON).unwrap();
            assert_eq!(came.unwrap().bytes, hello(0), "guest {n}, from pair {pair}");
            let answer = frame(station(0), station(n), n, 70);
            assert!(lan.guests[n].pair(at).send(&answer).unwrap());
            let came = lan.guests[0].pair(at).receive_within(SOON).unwrap();
            assert_eq!(came.unwrap().bytes, answer, "from guest {n}, pair {at}");
        }
    }
    let bytes = 2 * (60 + 60);
    assert_eq!(lan.trace(0).check(1).bytes + lan.trace(0).check(3).bytes, bytes / 2);
}

#[test]
fn a_guest_that_takes_nothing_holds_up_nobody() {
    for packed in [false, true] {
        let mut lan = Lan::new(&vec![GuestOptions::default().packed(packed).queue_size(64); 3], "");
        lan.introduce();
        lan.pair(2).refill().unwrap();
        // Guest 2 takes nothing from here on: its 64 buffers fill up. Each frame for guest 1 comes after one for guest 2.
        for n in 0..200 {
            lan.send(0, &frame(station(2), station(0), n, 60));
            let sent = frame(station(1), station(0), n, 60);
            lan.send(0, &sent);
            let begun = Instant::now();
            lan.expect(1, &sent);
            assert!(begun.elapsed() < Duration::from_millis(500), "held up: {:?}", begun.elapsed());
        }
        // All that its buffers do not hold.
        lan.expect_drops(2, 0, DropCause::RxSwitchFull, 200 - 64);
        // Those that found room come in order, and then it is served as before.
        let mut came = 0;
        while let Some(frame) = lan.pair(2).receive_within(Duration::from_millis(50)).unwrap() {
            assert_eq!(&frame.bytes[6..12], &station(0));
            came += 1;
        }
        assert_eq!(came, 64);
        let sent = frame(station(2), station(0), 7, 60);
        lan.send(0, &sent);
        lan.expect(2, &sent);
    }
}

#[test]
fn a_receiver_that_is_slow_for_a_moment_loses_nothing() {
    let mut lan = Lan::new(&vec![GuestOptions::default().queue_size(32); 2], "");
    lan.introduce();
    // More than the receiver has buffers: they wait in the sender's ring.
    let frames: Vec<_> = (0..56).map(|n| frame(station(1), station(0), n, 60)).collect();
    let (first, rest) = frames.split_at(28);
    for some in [first, rest] {
        some.iter().for_each(|sent| assert!(lan.pair(0).queue(sent).unwrap()));
        lan.pair(0).flush().unwrap();
        std::thread::sleep(Duration::from_millis(5));
    }
    frames.iter().for_each(|sent| drop(lan.expect(1, sent)));
    assert_eq!(lan.trace(1).drops(0, DropCause::RxSwitchFull), 0);
    // That the guest had no buffers shows in its stage.
    lan.daemon.terminate(Duration::from_secs(2)).unwrap();
    let trace = lan.trace(1);
    let _ = trace.check(0);
    let starved = trace
        .bursts(0)
        .iter()
        .map(|it| trace.stage_us(it, burst_trace::Stage::Starved))
        .fold(0.0, f64::max);
    assert!(starved > 1000.0, "starved for {starved} us");
}

/// Two guests flood two others. One of them sends the longest frames there are, and as many to everyone as it may. Two
/// more guests ask and answer each other meanwhile.
#[test]
fn a_flood_between_two_guests_does_not_hold_up_others() {
    let mut lan = Lan::new(&guests(6), "poll = 'always'");
    lan.introduce();
    let done = AtomicBool::new(false);
    let flood = |pair: &mut Pair, frames: &[Vec<u8>]| {
        let mut sent = 0_u64;
        while !done.load(Ordering::Relaxed) {
            let queued = frames.iter().filter(|frame| pair.queue(frame).unwrap()).count();
            pair.flush().unwrap();
            while pair.receive().unwrap().is_some() {}
            sent += queued as u64;
            std::thread::yield_now();
        }
        sent
    };
    let take_all = |pair: &mut Pair| {
        let mut came = 0_u64;
        while !done.load(Ordering::Relaxed) {
            came += u64::from(pair.receive_within(Duration::from_millis(5)).unwrap().is_some());
        }
        came
    };
    let [a, b, c, d, e, f] = &mut lan.guests[..] else { panic!("six guests") };
    let round_trips = std::thread::scope(|scope| {
        let short = vec![frame(station(1), station(0), 0, 60); 64];
        let long = vec![frame(station(3), station(2), 0, 9000), frame(EVERYONE, station(2), 0, 60)];
        let floods = [
            scope.spawn(move || flood(a.pair(0), &short)),
            scope.spawn(move || flood(c.pair(0), &long)),
        ];
        let sinks =
            [scope.spawn(move || take_all(b.pair(0))), scope.spawn(move || take_all(d.pair(0)))];
        std::thread::sleep(Duration::from_millis(50));
        let round_trips = ask_and_answer(e.pair(0), f.pair(0), 200);
        done.store(true, Ordering::Relaxed);
        for thread in floods.into_iter().chain(sinks) {
            let count = thread.join().unwrap();
            assert!(count > 100, "no flood: {count} frames");
        }
        round_trips
    });
    // All of these threads share the machine's CPUs with the daemon: a round trip is some turns of each.
    let (median, worst) = (round_trips[round_trips.len() / 2], round_trips[round_trips.len() - 1]);
    assert!(
        median < Duration::from_millis(20),
        "half of the round trips took more than {median:?}"
    );
    assert!(worst < Duration::from_millis(500), "a round trip took {worst:?}");
}

/// Guest 4 asks, guest 5 answers. Returns how long it took, in order.
fn ask_and_answer(asks: &mut Pair, answers: &mut Pair, count: usize) -> Vec<Duration> {
    let until = Instant::now() + Duration::from_secs(30);
    // Both take what comes all the time: frames for everyone are among it.
    let once = |n| {
        let begun = Instant::now();
        assert!(asks.send(&frame(station(5), station(4), n, 60)).unwrap());
        loop {
            assert!(Instant::now() < until, "a frame was lost");
            if let Some(came) = answers.receive().unwrap()
                && came.bytes[6..12] == station(4)
            {
                assert!(answers.send(&frame(station(4), station(5), n, 60)).unwrap());
            }
            match asks.receive().unwrap() {
                Some(came) if came.bytes[6..12] == station(5) => return begun.elapsed(),
                Some(_) => {}
                None => std::thread::yield_now(),
            }
        }
    };
    let mut times: Vec<_> = (0..count).map(once).collect();
    times.sort();
    times
}

#[test]
fn frames_to_everyone_are_limited() {
    let mut lan = Lan::new(&guests(2), "");
    let storm = frame(EVERYONE, station(0), 0, 60);
    let (mut sent, mut passed) = (0, 0);
    let begun = Instant::now();
    while begun.elapsed() < Duration::from_millis(300) {
        sent += u64::from(lan.pair(0).send(&storm).unwrap());
        while lan.pair(1).receive().unwrap().is_some() {
            passed += 1;
        }
    }
    eventually(SOON, &format!("{sent} frames to pass or to be dropped"), || {
        while lan.pair(1).receive().unwrap().is_some() {
            passed += 1;
        }
        let dropped = lan.trace(0).drops(1, DropCause::TxFloodLimit);
        let lost = lan.trace(1).drops(0, DropCause::RxSwitchFull);
        let found = format!("{passed} passed, {dropped} over the limit, {lost} without a buffer");
        when(passed + dropped + lost == sent, found)
    });
    let allowed = FLOOD_BURST + (FLOOD_RATE * begun.elapsed().as_secs_f64()) as u64;
    assert!(sent > 2 * allowed, "no flood: {sent} frames");
    // The burst, and most of the rate: the limit closes nobody's way.
    assert!((allowed * 9 / 10..=allowed).contains(&passed), "{passed} passed of {allowed} allowed");
}

#[test]
fn a_guest_that_disconnects_is_forgotten_and_learned_again() {
    let mut lan = Lan::new(&guests(3), "");
    lan.introduce();
    let to_gone = frame(station(2), station(0), 1, 60);
    lan.guests[2].disconnect();
    // Its rings are let go of as soon as that is seen; until then its buffers take frames.
    eventually(SOON, "a frame for a guest that is gone to go to everyone", || {
        lan.send(0, &to_gone);
        let came = lan.pair(1).receive_within(Duration::from_millis(20)).unwrap();
        when(came.is_some(), "none")
    });
    let path = lan.directory().join("vm2.sock");
    lan.guests[2].reconnect(path).unwrap();
    while lan.pair(2).receive_within(Duration::from_millis(20)).unwrap().is_some() {}
    let hello = frame(EVERYONE, station(2), 2, 60);
    lan.send(2, &hello);
    lan.expect(0, &hello);
    lan.send(0, &to_gone);
    lan.expect(2, &to_gone);
}

#[test]
fn segments_cross_whole_to_guests_that_take_them_and_are_cut_for_others() {
    let whole = GuestOptions::default().offloads();
    for cut in formats(&GuestOptions::default()) {
        let mut lan = Lan::new(&[whole.clone(), whole.clone(), cut], "");
        lan.introduce();
        let payload = frames::frame(1, 20_000);
        let header = packets::gso_header(1000);
        let macs = |to| (station(0), station(to));
        for to in [1, 2] {
            let sent = packets::tcp_unsummed(macs(to), &payload);
            // Frames before and after it keep their places.
            let [before, after] = [2, 3].map(|seed| frame(station(to), station(0), seed, 60));
            lan.send(0, &before);
            assert!(lan.pair(0).send_chain(&header, &[&sent]).unwrap());
            lan.send(0, &after);
            lan.expect(to, &before);
            if to == 1 {
                let came = lan.expect(1, &sent);
                assert_eq!(came.header[..10], header[..10]);
            } else {
                for (n, part) in payload.chunks(1000).enumerate() {
                    let came = lan.pair(2).receive_within(SOON).unwrap().unwrap();
                    assert_eq!(came.header[..10], [0; 10]);
                    let expected = (1 + 1000 * u32::try_from(n).unwrap(), part);
                    assert_eq!(packets::tcp_checked(&came.bytes), Some(expected));
                }
            }
            lan.expect(to, &after);
        }
        // A checksum alone.
        let sent = packets::tcp_unsummed(macs(2), &payload[..100]);
        assert!(lan.pair(0).send_chain(&packets::gso_header(0), &[&sent]).unwrap());
        let came = lan.pair(2).receive_within(SOON).unwrap().unwrap();
        assert_eq!(packets::tcp_checked(&came.bytes), Some((1, &payload[..100])));
    }
}

#[test]
fn segments_wait_for_room_one_by_one() {
    let cut = GuestOptions::default().queue_size(16);
    let mut lan = Lan::new(&[GuestOptions::default().offloads(), cut], "");
    lan.introduce();
    let payload = frames::frame(1, 60_000);
    for round in 0..3 {
        let sent = packets::tcp_unsummed((station(0), station(1)), &payload);
        assert!(lan.pair(0).send_chain(&packets::gso_header(600), &[&sent]).unwrap());
        for (n, part) in payload.chunks(600).enumerate() {
            let came = lan.pair(1).receive_within(SOON).unwrap();
            let came = came.unwrap_or_else(|| panic!("segment {n} of round {round}"));
            let expected = (1 + 600 * u32::try_from(n).unwrap(), part);
            assert_eq!(packets::tcp_checked(&came.bytes), Some(expected), "segment {n}");
        }
        lan.expect_nothing(1);
    }
    assert_eq!(lan.trace(1).drops(0, DropCause::RxSwitchFull), 0);
}

/// It is dropped then, and the next one must not continue where it stopped.
#[test]
fn a_frame_that_is_spoilt_while_its_segments_wait_leaves_the_next_one_whole() {
    let regions = vec![RegionOptions { address: 0, len: 16 << 20 }];
    let sender = GuestOptions { regions, ..GuestOptions::default().offloads() };
    let mut lan = Lan::new(&[sender, GuestOptions::default().queue_size(16)], "");
    lan.introduce();
    let macs = (station(0), station(1));
    let [spoilt, whole] = [2, 1].map(|seed| frames::frame(seed, 30_000));
    let header = packets::gso_header(600);
    let first = [&header[..], &packets::tcp_unsummed(macs, &spoilt)].concat();
    let next = packets::tcp_unsummed(macs, &whole);
    let memory = Arc::clone(lan.guests[0].memory().guest());
    // On a busy machine the wait may end first: then all that waits is dropped, and it is tried again.
    for _ in 0..20 {
        // The receiver offers all its buffers.
        lan.expect_nothing(1);
        let dropped = lan.trace(0).drops(1, DropCause::TxBadNetHeader);
        let (before, full) =
            (lan.trace(1).packets(0), lan.trace(1).drops(0, DropCause::RxSwitchFull));
        memory.write(SCRATCH, &first).unwrap();
        let len = u32::try_from(first.len()).unwrap();
        assert!(lan.pair(0).transmit_ring().offer_foreign(&[readable(SCRATCH, len)]));
        assert!(lan.pair(0).send_chain(&header, &[&next]).unwrap());
        eventually(SOON, "16 segments", || {
            let placed = lan.trace(1).packets(0) - before;
            when(placed == 16, placed)
        });
        // A size of no bytes (virtio 1.2, 5.1.6.2: `gso_size` is at 4).
        memory.write(SCRATCH + 4, &[0; 2]).unwrap();
        let mut came = Vec::new();
        while let Some(frame) = lan.pair(1).receive_within(Duration::from_millis(200)).unwrap() {
            came.push(packets::tcp_checked(&frame.bytes).map(|(_, part)| part.to_vec()).unwrap());
        }
        if lan.trace(1).drops(0, DropCause::RxSwitchFull) > full {
            continue;
        }
        assert_eq!(lan.trace(0).drops(1, DropCause::TxBadNetHeader), dropped + 1);
        let expected = spoilt.chunks(600).take(16).chain(whole.chunks(600));
        assert!(came.iter().eq(expected), "{} segments", came.len());
        return;
    }
    panic!("no try was quick enough");
}

#[test]
fn frames_with_invalid_net_headers_are_dropped() {
    let mut lan = Lan::new(&vec![GuestOptions::default().offloads(); 2], "");
    lan.introduce();
    let sent = packets::tcp_unsummed((station(0), station(1)), &[1; 5000]);
    let tiny = packets::tcp_unsummed((station(0), station(1)), &[1; 60_000]);
    let with = |at: usize, value: u8| {
        let mut header = packets::gso_header(1000);
        header[at] = value;
        header
    };
    let mut sizeless = [0; 12];
    sizeless[..4].copy_from_slice(&packets::gso_header(1000)[..4]);
    // Checksum far out of the frame; an unknown type; segments of no bytes; of one byte, which are too many.
    for (header, frame) in [
        (with(7, 0xff), &sent),
        (with(1, 7), &sent),
        (sizeless, &sent),
        (packets::gso_header(1), &tiny),
    ] {
        assert!(lan.pair(0).send_chain(&header, &[frame]).unwrap());
    }
    lan.expect_nothing(1);
    eventually(SOON, "4 frames dropped for their net headers", || {
        let drops = |cause| lan.trace(0).drops(1, cause);
        let found = drops(DropCause::TxBadNetHeader) + drops(DropCause::TxUnsegmentable);
        when(found == 4, found)
    });
    let sane = frame(station(1), station(0), 1, 60);
    lan.send(0, &sane);
    lan.expect(1, &sane);
}

#[test]
fn at_rest_a_switch_uses_no_cpu() {
    for poll in ["never", "adaptive"] {
        let mut lan = Lan::new(&guests(3), &format!("poll = '{poll}'"));
        lan.introduce();
        std::thread::sleep(Duration::from_millis(50));
        let before = lan.daemon.cpu_time();
        std::thread::sleep(Duration::from_secs(1));
        assert_eq!(lan.daemon.cpu_time(), before, "--poll {poll}");
    }
}
