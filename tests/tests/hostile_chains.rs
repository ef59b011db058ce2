//! Chains that are cheap to make and costly to serve, from one guest of a switch: they delay its neighbours no more than a
//! lawful flood.

use std::sync::atomic::Ordering;
use std::time::{Duration, Instant};

use burst_trace::DropCause;
use frontend::{GuestOptions, Pair};
use ringscope_tests::eventually::{SOON, eventually, when};
use ringscope_tests::hostile_rings::{Pattern, Progress};
use ringscope_tests::lan::{Lan, frame, station};

/// A quarter of the neighbours' round trips must be shorter. All threads of the test share the CPUs with the daemon and any
/// other load, and a round trip takes some turns of each. When chains were followed to their ends, one turn of the daemon
/// took up to 600 ms, and each round trip had one.
const QUARTER_MAX: Duration = Duration::from_millis(50);
const ROUND_TRIPS: usize = 60;

/// Guests of the scene.
const ASKS: usize = 0;
const ANSWERS: usize = 1;
const HOSTILE: usize = 2;
/// Sends to the hostile guest, and takes what that one sends.
const FRIEND: usize = 3;

#[test]
fn a_split_ring_that_is_costly_to_serve_does_not_hold_up_the_neighbours() {
    Pattern::ALL.into_iter().for_each(|pattern| neighbours_beside(pattern, false));
}

#[test]
fn a_packed_ring_that_is_costly_to_serve_does_not_hold_up_the_neighbours() {
    Pattern::ALL.into_iter().for_each(|pattern| neighbours_beside(pattern, true));
}

/// Two guests ask and answer each other beside one that keeps its ring busy with `pattern`.
fn neighbours_beside(pattern: Pattern, packed: bool) {
    let honest = GuestOptions::default().packed(packed);
    let hostile = pattern.options(packed);
    let mut lan = Lan::new(&[honest.clone(), honest.clone(), hostile, honest], "poll = 'always'");
    lan.introduce();
    let progress = &Progress::default();
    let [asks, answers, hostile, friend] = &mut lan.guests[..] else { panic!("four guests") };
    let times = std::thread::scope(|scope| {
        let _stop = progress.stop_at_the_end();
        let way = [station(FRIEND), station(HOSTILE)];
        scope.spawn(move || pattern.keep_busy(hostile, way, progress));
        scope.spawn(|| keep_sending(friend.pair(0), pattern.receives(), progress));
        std::thread::sleep(Duration::from_millis(50));
        let times = ask_and_answer(pattern, asks.pair(0), answers.pair(0));
        let count = if pattern.breaks() { &progress.resets } else { &progress.came };
        eventually(SOON, &format!("{pattern:?} to go on"), || {
            let found = || format!("{progress:?} {}", lan.daemon.log());
            if count.load(Ordering::Relaxed) > 0 { Ok(()) } else { Err(found()) }
        });
        times
    });
    let quarter = times[times.len() / 4];
    assert!(
        quarter < QUARTER_MAX,
        "{pattern:?}: a quarter of the round trips took up to {quarter:?}"
    );
    let (log, resets) = (lan.daemon.log(), progress.resets.load(Ordering::Relaxed));
    assert_eq!(resets > 0, pattern.breaks(), "{pattern:?}: {log}");
    if pattern.breaks() {
        assert!(log.contains("a descriptor chain of more than 1024 descriptors"), "{log}");
    }
    for guest in [ASKS, ANSWERS, FRIEND] {
        lan.guests[guest].check_canaries().unwrap();
    }
}

/// An honest guest takes what comes, and sends to the hostile one, if it is to.
fn keep_sending(pair: &mut Pair, sends: bool, progress: &Progress) {
    let sent = frame(station(HOSTILE), station(FRIEND), 0, 200);
    while !progress.done.load(Ordering::Relaxed) {
        if sends {
            while pair.queue(&sent).unwrap() {}
            pair.flush().unwrap();
        }
        while pair.receive().unwrap().is_some() {}
        std::thread::yield_now();
    }
}

/// How long frames took to go to a neighbour and back, in order.
fn ask_and_answer(pattern: Pattern, asks: &mut Pair, answers: &mut Pair) -> Vec<Duration> {
    let until = Instant::now() + Duration::from_secs(30);
    let once = |n| {
        let begun = Instant::now();
        assert!(asks.send(&frame(station(ANSWERS), station(ASKS), n, 60)).unwrap());
        loop {
            assert!(Instant::now() < until, "{pattern:?}: frames between neighbours do not come");
            if let Some(came) = answers.receive().unwrap()
                && came.bytes[6..12] == station(ASKS)
            {
                assert!(answers.send(&frame(station(ASKS), station(ANSWERS), n, 60)).unwrap());
            }
            match asks.receive().unwrap() {
                Some(came) if came.bytes[6..12] == station(ANSWERS) => return begun.elapsed(),
                Some(_) => {}
                None => std::thread::yield_now(),
            }
        }
    };
    let mut times: Vec<_> = (0..ROUND_TRIPS).map(once).collect();
    times.sort();
    times
}

/// A receiver that posts nothing but chains without room is one without buffers: a frame waits for it for a moment, however
/// many of them come meanwhile, then it is dropped and counted, and what the sender has for others goes on.
#[test]
fn a_receiver_of_empty_chains_holds_up_no_sender() {
    const FRAMES: usize = 300;
    for pattern in [Pattern::ReceiveEmpty, Pattern::ReceiveEmptyTables, Pattern::ReceiveUnmapped] {
        for packed in [false, true] {
            let honest = GuestOptions::default().packed(packed);
            let options = [honest.clone(), honest, pattern.options(packed)];
            let mut lan = Lan::new(&options, "poll = 'always'");
            lan.introduce();
            let progress = &Progress::default();
            let [sender, other, hostile] = &mut lan.guests[..] else { panic!("three guests") };
            std::thread::scope(|scope| {
                let stop = progress.stop_at_the_end();
                let way = [station(0), station(2)];
                let hostile = scope.spawn(move || pattern.keep_busy(hostile, way, progress));
                // Its 256 honest buffers are the first to go; from then on it only has empty ones.
                for n in 0..FRAMES {
                    let pair = sender.pair(0);
                    assert!(pair.send(&frame(station(2), station(0), n, 60)).unwrap());
                    eventually(SOON, &format!("frame {n} beside {pattern:?} to be done"), || {
                        pair.reap().unwrap();
                        when(pair.transmit_ring().driver().free() == 256, "its buffer not back")
                    });
                }
                let sent = frame(station(1), station(0), 1, 60);
                assert!(sender.pair(0).send(&sent).unwrap());
                let came = other.pair(0).receive_within(Duration::from_secs(5)).unwrap();
                assert!(came.is_some_and(|came| came.bytes == sent), "{pattern:?}: nothing comes");
                drop(stop);
                hostile.join().unwrap();
            });
            let dropped = lan.trace(2).drops(0, DropCause::RxSwitchFull);
            assert!((FRAMES as u64 - 256..FRAMES as u64).contains(&dropped), "{dropped} dropped");
        }
    }
}
