//! Guests and daemons come and go; traffic comes back each time.

use std::thread::sleep;
use std::time::{Duration, Instant};

use lab::guest::Attachment;
use ringscope_tests::eventually::{eventually, when};
use ringscope_tests::monitor::Monitor;
use ringscope_tests::qemu::{Failure, GUEST, Place, SOON, despite_qemu};
use ringscope_tests::traffic::{self, Check, From, Transfer};
use serde_json::json;

/// The daemon ends within this time when it is asked to, whatever goes on.
const SECOND: Duration = Duration::from_secs(1);

/// Asks the daemon to end, and expects that it does, in time and in order.
fn terminate(place: &mut Place) -> Result<(), Failure> {
    let begun = Instant::now();
    let status = place.daemon().terminate(SOON)?;
    let took = begun.elapsed();
    assert_eq!(status.code(), Some(0), "{}", place.daemon().log());
    assert!(took < SECOND, "it took {took:?}:\n{}", place.daemon().log());
    Ok(())
}

#[test]
fn a_guest_reboots_and_another_qemu_attaches() -> Result<(), Failure> {
    let mut place = Place::new(1)?;
    place.spawn(&[])?;
    place.attach(place.options()?)?;
    traffic::everything_a_little(&mut place)?;

    place.guest().reboot()?;
    traffic::everything_a_little(&mut place)?;

    // In the middle of traffic, and without a word.
    let mut cut_off = Transfer::start(&place, From::Guest, 1 << 40, Check::Compare)?;
    sleep(Duration::from_millis(300));
    assert!(cut_off.is_running()?);
    place.guest().kill()?;
    drop(cut_off);

    // The next one is of another kind.
    let mut options = place.options()?;
    (options.offloads, options.mrg_rxbuf, options.event_idx) = (false, false, false);
    place.attach(options)?;
    traffic::everything_a_little(&mut place)?;
    assert!(place.daemon().is_alive(), "{}", place.daemon().log());

    terminate(&mut place)?;
    assert!(!place.socket().exists());
    assert!(!place.reader()?.is_running(), "the recorder says that it ended in order");
    Ok(())
}

#[test]
fn a_daemon_comes_back_under_a_qemu_that_connects_again() -> Result<(), Failure> {
    despite_qemu(|| daemon_comes_back(false))
}

/// QEMU says where a packed ring began, not where it is.
#[test]
fn a_daemon_comes_back_under_a_qemu_with_packed_rings() -> Result<(), Failure> {
    despite_qemu(|| daemon_comes_back(true))
}

fn daemon_comes_back(packed: bool) -> Result<(), Failure> {
    let mut place = Place::new(2)?;
    place.spawn(&[])?;
    let mut options = place.options()?;
    options.reconnect_ms = Some(100);
    options.packed = packed;
    place.attach(options)?;
    traffic::everything_a_little(&mut place)?;

    // Killed under load: the connections live on, and every byte arrives.
    let start = |from| Transfer::start(&place, from, 128 << 20, Check::Hash);
    let mut transfers = [start(From::Outside)?, start(From::Guest)?];
    for _ in 0..2 {
        sleep(Duration::from_millis(400));
        place.daemon = None;
        place.spawn(&[])?;
    }
    for transfer in &mut transfers {
        assert!(transfer.is_running()?, "it ended before the daemon was killed");
    }
    for transfer in &mut transfers {
        transfer.finish()?;
    }
    traffic::everything_a_little(&mut place)?;

    // Asked to end under load.
    let mut transfer = Transfer::start(&place, From::Guest, 256 << 20, Check::Hash)?;
    sleep(Duration::from_millis(500));
    terminate(&mut place)?;
    assert!(!place.socket().exists());
    place.spawn(&["--poll", "never"])?;
    assert!(transfer.is_running()?, "it ended before the daemon did");
    transfer.finish()?;
    traffic::everything_a_little(&mut place)
}

#[test]
fn qemu_is_the_server_and_either_side_starts_again() -> Result<(), Failure> {
    despite_qemu(qemu_is_the_server)
}

fn qemu_is_the_server() -> Result<(), Failure> {
    let mut place = Place::new(1)?;
    place.spawn_client(&[])?;
    let mut options = place.options()?;
    options.attachment = Attachment::ServerSocket(place.socket());
    place.attach(options.clone())?;
    traffic::everything_a_little(&mut place)?;

    place.daemon = None;
    place.spawn_client(&[])?;
    traffic::everything_a_little(&mut place)?;

    terminate(&mut place)?;
    assert!(place.socket().exists(), "the socket is QEMU's");
    place.spawn_client(&[])?;
    traffic::everything_a_little(&mut place)?;

    place.guest().kill()?;
    place.attach(options)?;
    traffic::everything_a_little(&mut place)?;
    terminate(&mut place)
}

#[test]
fn memory_that_is_not_shared_is_refused_with_what_to_do_and_the_next_guest_is_served()
-> Result<(), Failure> {
    let mut place = Place::new(1)?;
    place.spawn(&[])?;
    let mut options = place.options()?;
    options.share = false;
    // What becomes of QEMU is not ours to say: it may end, or its guest may have no network.
    options.boot_timeout = SOON;
    let _ = place.attach(options);

    let log = place.daemon().log();
    assert!(log.contains("a front end was refused") && log.contains("share=on"), "{log}");
    assert!(place.daemon().is_alive(), "{log}");
    let options = place.options()?;
    place.attach(options)?;
    traffic::everything_a_little(&mut place)?;
    Ok(())
}

/// Frames dropped because their buffers are not in shared memory.
fn unmapped(place: &Place) -> Result<u64, Failure> {
    let of_cause =
        |(_, cause, count): (_, &str, u64)| cause.ends_with("unmapped_buffer").then_some(count);
    Ok(place.drops()?.into_iter().filter_map(of_cause).sum())
}

/// QEMU sends the region of a file (ADD_MEM_REG), and says nothing of memory without one.
#[test]
fn memory_that_is_plugged_in_but_not_shared_is_named_and_the_guest_goes_on() -> Result<(), Failure>
{
    const PLUGGED: [(&str, &str); 2] =
        [("private", "memory-backend-memfd"), ("without-file", "memory-backend-ram")];
    let mut place = Place::new(1)?;
    place.spawn(&[])?;
    let mut options = place.options()?;
    options.memory_slots = 2;
    place.attach(options)?;
    // Its kernel would use new memory at once, first of all for network buffers.
    place.guest().check("echo offline >/sys/devices/system/memory/auto_online_blocks")?;
    let mut monitor = Monitor::connect(&place)?;
    let start = |from| Transfer::start(&place, from, 8 << 20, Check::Hash);
    let mut transfers = [start(From::Outside)?, start(From::Guest)?];
    for (id, memory) in PLUGGED {
        let backend = json!({"qom-type": memory, "id": id, "size": 128 << 20, "share": false});
        monitor.execute("object-add", &backend)?;
        let dimm = json!({"driver": "pc-dimm", "id": format!("dimm-{id}"), "memdev": id});
        monitor.execute("device_add", &dimm)?;
    }
    place.daemon().expect_log("region 1, 128 MiB at 0x100000000, is private to process");
    for transfer in &mut transfers {
        assert!(transfer.is_running()?, "it ended before memory was plugged in");
    }
    transfers.iter_mut().try_for_each(|transfer| transfer.finish().map(drop))?;
    assert_eq!(unmapped(&place)?, 0);

    // Frames in memory that did not arrive here are dropped, with the reason.
    for block in ["memory32", "memory33"] {
        place.guest().check(&format!("echo online >/sys/devices/system/memory/{block}/state"))?;
    }
    eventually(SOON, "a frame in that memory", || {
        let _ = place.outside.exec(&format!("ping -q -c 50 -i 0.01 -W 1 -s 9000 {GUEST}"));
        let drops = unmapped(&place).unwrap();
        when(drops > 0, place.daemon().log())
    });
    place.daemon().expect_log("if memory was plugged in, it must be shared too");
    // Nothing has ended.
    place.guest().check("true")?;
    assert!(place.daemon().is_alive(), "{}", place.daemon().log());
    Ok(())
}
