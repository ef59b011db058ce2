//! Guests in software that reach each other through a switch of the daemon.

use std::time::{Duration, Instant};

use burst_trace::DropCause;
use frontend::GuestOptions;
use ringscope_tests::frames::formats;
use ringscope_tests::lan::{EVERYONE, Lan, frame, station};

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
fn a_guest_that_takes_nothing_holds_up_nobody() {
    for packed in [false, true] {
        let mut lan = Lan::new(&vec![GuestOptions::default().packed(packed).queue_size(64); 3], "");
        lan.introduce();
        // Guest 2 takes nothing: its 64 buffers fill up. Frames for guest 1 come behind those for it.
        let mut lost = 0;
        for n in 0..200 {
            lan.send(0, &frame(station(2), station(0), n, 60));
            let sent = frame(station(1), station(0), n, 60);
            lan.send(0, &sent);
            let begun = Instant::now();
            lan.expect(1, &sent);
            assert!(begun.elapsed() < Duration::from_millis(500), "held up: {:?}", begun.elapsed());
            lost = n;
        }
        assert!(lost > 100);
        let dropped = lan.trace(2).drops(0, DropCause::RxSwitchFull);
        assert!((120..=140).contains(&dropped), "{dropped} of 200 were dropped");
        // Those that found room come in order, and then it is served as before.
        let mut came = 0;
        while let Some(frame) = lan.pair(2).receive_within(Duration::from_millis(50)).unwrap() {
            assert_eq!(&frame.bytes[6..12], &station(0));
            came += 1;
        }
        assert_eq!(came + dropped, 200);
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

#[test]
fn what_goes_to_everyone_is_limited() {
    let mut lan = Lan::new(&guests(2), "");
    let storm = frame(EVERYONE, station(0), 0, 60);
    let mut sent = 0;
    let begun = Instant::now();
    while begun.elapsed() < Duration::from_millis(300) {
        if lan.pair(0).send(&storm).unwrap() {
            sent += 1;
        }
        while lan.pair(1).receive().unwrap().is_some() {}
    }
    let dropped = lan.trace(0).drops(1, DropCause::TxFloodLimit);
    let passed = sent - dropped;
    assert!(dropped > 0 && passed < 10_000, "{passed} of {sent} passed");
}

#[test]
fn who_goes_away_is_forgotten_and_comes_back() {
    let mut lan = Lan::new(&guests(3), "");
    lan.introduce();
    let to_gone = frame(station(2), station(0), 1, 60);
    lan.guests[2].disconnect();
    // Its rings are let go of as soon as that is seen; until then its buffers take frames.
    let until = Instant::now() + Duration::from_secs(5);
    loop {
        lan.send(0, &to_gone);
        if lan.pair(1).receive_within(Duration::from_millis(20)).unwrap().is_some() {
            break;
        }
        assert!(Instant::now() < until, "frames for a guest that is gone go to everyone");
    }
    let path = lan.directory().join("vm2.sock");
    lan.guests[2].reconnect(path).unwrap();
    while lan.pair(2).receive_within(Duration::from_millis(20)).unwrap().is_some() {}
    let hello = frame(EVERYONE, station(2), 2, 60);
    lan.send(2, &hello);
    lan.expect(0, &hello);
    lan.send(0, &to_gone);
    lan.expect(2, &to_gone);
}
