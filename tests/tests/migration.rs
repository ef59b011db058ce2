//! A guest moves from one QEMU and daemon to another, with its traffic.

use std::time::Duration;

use lab::guest::GuestOptions;
use lab::process::Process;
use ringscope_tests::daemon::program;
use ringscope_tests::eventually::{eventually, when};
use ringscope_tests::migration::{Target, compare_memory, memory_of, port_of};
use ringscope_tests::qemu::{Failure, GUEST, SOON};
use ringscope_tests::shuttle::{By, Kind, Moved, PARTS, Shuttle, Wire};
use ringscope_tests::traffic::{self, Check, From, Transfer};

/// The guest's Ethernet address, as `qemu-scripts/launch` gives it.
const ADDRESS: &str = "52:54:00:77:00:02";

#[test]
fn a_guest_with_split_rings_moves_under_load() -> Result<(), Failure> {
    moves_under_load(1, false)
}

#[test]
fn a_guest_with_packed_rings_moves_under_load() -> Result<(), Failure> {
    moves_under_load(1, true)
}

#[test]
fn a_guest_with_two_queue_pairs_moves_under_load() -> Result<(), Failure> {
    moves_under_load(2, true)
}

fn moves_under_load(queue_pairs: u16, packed: bool) -> Result<(), Failure> {
    let mut place = traffic::guest_on_tap(queue_pairs, |options| options.packed = packed)?;
    assert_eq!(port_of(&place, ADDRESS)?, place.tap());

    let mut target = Target::start(&mut place, queue_pairs)?;
    let start = |from| Transfer::start(&place, from, 96 << 20, Check::Hash);
    let mut transfers = [start(From::Outside)?, start(From::Guest)?];
    let state = target.receive(&place)?;
    for transfer in &mut transfers {
        assert!(transfer.is_running()?, "it ended before the guest had moved: {state}");
    }
    place.daemon().expect_log("logs which pages of its guest's memory are written");
    // The network learns where the guest is, although its own kernel announces nothing.
    target.daemon.expect_log(&format!("the guest has moved here: {ADDRESS} was announced"));
    eventually(SOON, "the guest behind the other tap", || {
        let port = port_of(&place, ADDRESS).map_err(|error| error.to_string())?;
        when(port == target.tap, port)
    });
    place.guest().kill()?;
    place.daemon = None;
    // Every byte arrives, and only once.
    transfers.iter_mut().try_for_each(|transfer| transfer.finish().map(drop))?;
    traffic::everything_a_little(&mut place)?;
    place.outside.exec(&format!("ping -q -c 100 -i 0.005 -W 5 {GUEST}"))?;
    // The guest's kernel has found nothing wrong with its rings, about which it would complain.
    assert_eq!(std::fs::read_to_string(target.directory().join("serial.log"))?.trim(), "");
    assert!(target.is_running()?, "QEMU has ended");
    assert!(target.daemon.is_alive(), "{}", target.daemon.log());
    Ok(())
}

/// Packets a second to a guest that does nothing but receive, and how long they come.
const FLOOD: [&str; 4] = ["--rate", "20000", "--duration-ms", "60000"];

/// At the source the guest is stopped, at the target it has not started, so nothing may differ. The guest reads each receive
/// buffer and uses its page again soon, which marks the page as well: whether the device's own marks are complete is what
/// `dirty_log.rs` tests.
#[test]
fn no_page_differs_at_the_switch_over() -> Result<(), Failure> {
    for packed in [false, true] {
        let of_kind =
            |options: &mut GuestOptions| (options.packed, options.memory_mib) = (packed, 256);
        let mut place = traffic::guest_on_tap(1, of_kind)?;
        let count = "ringscope agent udp-count --bind 0.0.0.0:7011 --timeout 100 >/dev/null 2>&1 &";
        place.guest().check(count)?;
        let mut flood = place.outside.command(&program("ringscope")?.to_string_lossy());
        flood.args(["agent", "udp-send", &format!("{GUEST}:7011")]).args(FLOOD);
        let flood = Process::spawn(&mut flood, &place.directory().join("flood.log"))?;
        let before = place.packets()?[0];
        eventually(SOON, "the flood", || {
            let came = place.packets().map_err(|error| error.to_string())?[0] - before;
            when(came > 1000, format!("{came}: {}", flood.log_tail(1000)))
        });
        let mut target = Target::start_paused(&mut place, 1)?;
        let state = target.receive(&place)?;
        let [source, copy] = [place.guest().pid(), target.pid()].map(memory_of);
        let (differ, filled) = compare_memory(&source?, &copy?)?;
        let ring = if packed { "packed" } else { "split" };
        println!("{ring}: {} of {filled} pages differ, {}", differ.len(), state["ram"]);
        assert!(differ.is_empty(), "{ring}: {} of {filled} pages: {differ:x?}", differ.len());
        assert!(filled > 4096, "{filled} pages are in use");
        // It was under way until the end.
        assert!(place.packets()?[0] - before > 2000);
    }
    Ok(())
}

/// Number of moves of each kind of guest in a series.
fn moves() -> usize {
    std::env::var("RINGSCOPE_MIGRATIONS").map_or(2, |moves| moves.parse().expect("a number"))
}

/// Every kind. Of a short series the kinds that are no part of the tests above, each setting once.
fn kinds() -> Vec<Kind> {
    let kind = |wire, queue_pairs, packed| Kind {
        wire,
        queue_pairs,
        packed,
        offloads: true,
        by: By::Ringscoped,
        transfer: 16 << 20,
    };
    if std::env::var_os("RINGSCOPE_MIGRATIONS").is_none() {
        return vec![kind(Wire::AfXdp, 1, false), kind(Wire::AfXdp, 4, true)];
    }
    let wires = [Wire::Tap, Wire::AfXdp].into_iter();
    let with_pairs = wires.flat_map(|wire| [1, 4].map(|queue_pairs| (wire, queue_pairs)));
    let all = with_pairs.flat_map(|(wire, queue_pairs)| {
        [false, true].map(|packed| kind(wire, queue_pairs, packed))
    });
    all.collect()
}

/// Moves a guest of this kind so many times, and prints a row. No move may fail.
fn series(kind: Kind, moves: usize) -> Result<(), Failure> {
    let mut shuttle = Shuttle::new(kind)?;
    let moved = (0..moves).map(|_| shuttle.go()).collect::<Result<Vec<Moved>, _>>()?;
    shuttle.check()?;
    let row = |of: &dyn Fn(&Moved) -> Option<Duration>| {
        let mut times: Vec<_> = moved.iter().filter_map(of).collect();
        times.sort();
        let last = times.len().checked_sub(1)?;
        let at = |percent: usize| times[(times.len() * percent / 100).min(last)];
        Some([at(0), at(50), at(99), times[last]].map(|time| time.as_secs_f64() * 1e3))
    };
    let lost: u64 = moved.iter().map(|it| it.lost).sum();
    let ring = if kind.packed { "packed" } else { "split" };
    println!(
        "{:?}, {:?}, {ring}, {} queue pairs: {moves} moves, 0 failed, 0 wrong, {lost} probes lost; min, p50, p99, max in ms:",
        kind.by, kind.wire, kind.queue_pairs
    );
    let print = |what: &str, of: &dyn Fn(&Moved) -> Option<Duration>| {
        if let Some(times) = row(of) {
            println!("    {what}: {times:.1?}");
        }
    };
    print("without an answer", &|it| Some(it.down));
    print("stopped, as QEMU says", &|it| Some(it.stopped));
    print("from the last answer to the announcement", &|it| Some(it.announced?[0]));
    print("from the announcement to the next answer", &|it| Some(it.announced?[1]));
    for (n, what) in PARTS.iter().enumerate() {
        print(what, &|it| Some(it.parts?[n]));
    }
    Ok(())
}

#[test]
fn a_guest_moves_to_and_fro_under_probes_and_transfers() -> Result<(), Failure> {
    kinds().into_iter().try_for_each(|kind| series(kind, moves()))
}

/// The same with QEMU's own tap back end, whose announcement and first answer no daemon can be faster than.
#[test]
#[ignore = "takes minutes: tests/long migrations"]
fn announcements_beside_those_of_qemus_own_tap() -> Result<(), Failure> {
    for by in [By::Qemu, By::Ringscoped] {
        let (wire, queue_pairs, packed) = (Wire::Tap, 1, false);
        series(Kind { wire, queue_pairs, packed, offloads: true, by, transfer: 0 }, moves())?;
    }
    Ok(())
}

/// The same guest on the same wire, without offloads, which DPDK's AF_XDP driver does not do.
#[test]
#[ignore = "takes minutes: tests/long migrations"]
fn down_times_beside_dpdk() -> Result<(), Failure> {
    for by in [By::Dpdk, By::Ringscoped] {
        let kind = Kind {
            wire: Wire::AfXdp,
            queue_pairs: 1,
            packed: false,
            offloads: false,
            by,
            transfer: 0,
        };
        series(kind, moves())?;
    }
    Ok(())
}
