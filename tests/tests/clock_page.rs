//! The clock of an emulated guest, bounded by the page that it shares with the host. The bounds are compared with what the
//! guest's console shows of its clock, and probes are joined with them.

use std::path::{Path, PathBuf};
use std::process::Command;
use std::thread::sleep;
use std::time::Duration;

use agent::ClockPairs;
use agent::clock_page::{ClockBound, ClockBounds, EXCHANGES};
use lab::guest::{Guest, scripts};
use ringscope_tests::daemon::program;
use ringscope_tests::qemu::{Failure, GUEST, Place, said};
use ringscope_tests::traffic;
use rustix::time::{ClockId, clock_gettime};
use serde_json::Value;

/// The widest bound, of which half is the error on each side.
const WIDTH_NS: u64 = 1_000;
/// Exchanges until a bound is as narrow, on a machine whose CPUs others use, too.
const TRIES: usize = 3;
/// Two clocks drift apart by no more than this, parts of one.
const DRIFT: f64 = 1e-3;
const PROBES: usize = 300;
/// The echo is there, and its stamps are in their file, after this time.
const WRITTEN: Duration = Duration::from_millis(500);

fn now_ns() -> i64 {
    let now = clock_gettime(ClockId::Monotonic);
    now.tv_sec * 1_000_000_000 + now.tv_nsec
}

/// Bounds the offset until a bound is narrow enough. The bounds are added to those of `file`, which are `earlier` in number.
fn bound(
    guest: &mut Guest,
    page: &Path,
    file: &Path,
    earlier: usize,
) -> Result<ClockBounds, Failure> {
    let mut all = exchange(guest, page, file)?;
    for _ in 1..TRIES {
        if narrowest(&all.bounds[earlier..]).width_ns() < WIDTH_NS {
            break;
        }
        all = exchange(guest, page, file)?;
    }
    Ok(all)
}

/// Runs both ends of one exchange.
fn exchange(guest: &mut Guest, page: &Path, file: &Path) -> Result<ClockBounds, Failure> {
    guest.check("ringscope agent clock --guest >/tmp/clock.log 2>&1 &")?;
    let mut command = Command::new(program("ringscope")?);
    command.args(["agent", "clock", "--append", "--timeout", "20", "--page"]).arg(page);
    let answered = said(command.arg("-o").arg(file));
    // The guest's agent ends a moment later.
    let log = guest.check(
        "for i in 1 2 3 4 5 6 7 8 9; do grep -q . /tmp/clock.log && break; sleep 0.2; done; cat /tmp/clock.log",
    )?;
    answered.map_err(|error| format!("{error}; the guest's agent said {log:?}"))?;
    assert!(log.contains("\"answers\":"), "{log:?}");
    Ok(serde_json::from_str(&std::fs::read_to_string(file)?)?)
}

/// Sends probes to an echo in the guest. Returns the files of stamps: the sender's and the echo's.
fn probe(place: &mut Place) -> Result<[PathBuf; 2], Failure> {
    let echo = "udp-echo --bind 0.0.0.0:7010 --timeout 60 --stamps /tmp/echo.csv";
    place.guest().check(&format!("ringscope agent {echo} >/dev/null 2>&1 &"))?;
    sleep(WRITTEN);
    let files = ["ping.csv", "echo.csv"].map(|name| place.directory().join(name));
    let mut ping = place.outside.command(&program("ringscope")?.to_string_lossy());
    ping.args(["agent", "udp-ping", &format!("{GUEST}:7010"), "--mode", "closed", "--count"]);
    said(ping.arg(PROBES.to_string()).arg("--stamps").arg(&files[0]))?;
    sleep(WRITTEN);
    let stamps = place.guest().check("cat /tmp/echo.csv")?;
    std::fs::write(&files[1], stamps.replace('\r', ""))?;
    Ok(files)
}

/// What `ringscope stats --probes` makes of the probes, with the bounds in `clock` or without.
fn joined(place: &Place, probes: &[PathBuf; 2], clock: Option<&Path>) -> Result<Value, Failure> {
    let mut stats = Command::new(program("ringscope")?);
    stats.args(["stats", "--json", "--name", "vm0", "--initiator", "host", "--run-dir"]);
    stats.arg(place.directory()).arg("--probes").arg(&probes[0]).arg("--echo").arg(&probes[1]);
    if let Some(clock) = clock {
        stats.arg("--clock").arg(clock);
    }
    Ok(serde_json::from_str(&said(&mut stats)?)?)
}

/// Every probe is joined on one clock, which the page bounds better than the probes.
fn expect_one_clock(place: &Place, probes: &[PathBuf; 2], clock: &Path) -> Result<(), Failure> {
    let [alone, with_page] = [None, Some(clock)].map(|clock| joined(place, probes, clock));
    let (alone, with_page) = (alone?, with_page?);
    let width = |found: &Value| found["clock"]["width_p99_ns"].as_i64().unwrap_or(i64::MAX);
    let (alone_ns, page_ns) = (width(&alone), width(&with_page));
    eprintln!(
        "the offset is known to {page_ns} ns (p99) by the page, to {alone_ns} ns by the probes"
    );
    assert_eq!(with_page["clock"]["relation"], "clock-page", "{}", with_page["clock"]);
    assert!(page_ns < 2 * WIDTH_NS.cast_signed() && page_ns < alone_ns, "{}", with_page["clock"]);
    let journeys = with_page["journeys"].as_array().ok_or("no journeys")?;
    assert!(journeys.len() >= PROBES, "{} journeys of {PROBES} probes", journeys.len());
    for journey in journeys {
        let parts = journey["parts_ns"].as_array().ok_or("no parts")?;
        let parts: Vec<_> = parts.iter().filter_map(Value::as_i64).collect();
        assert_eq!(Some(parts.iter().sum()), journey["round_trip_ns"].as_i64(), "{journey}");
        assert!(parts.iter().all(|&ns| ns >= 0), "{journey}");
    }
    Ok(())
}

/// The narrowest bound.
fn narrowest(bounds: &[ClockBound]) -> ClockBound {
    *bounds.iter().min_by_key(|it| it.width_ns()).expect("a bound")
}

#[test]
fn the_clock_of_an_emulated_guest_is_known_to_a_fraction_of_a_microsecond() -> Result<(), Failure> {
    let mut place = Place::new(1)?;
    place.spawn(&["--trace-probe", "7010"])?;
    let mut options = place.options()?;
    let [page, file] = ["clock", "clock.json"].map(|name| place.directory().join(name));
    options.clock_page = Some(page.clone());
    place.attach(options)?;

    let first = bound(place.guest(), &page, &file, 0)?;
    // The guest reads its clock between these two times of the host.
    let before = now_ns();
    let pairs = place.guest().check("ringscope agent clock")?;
    let after = now_ns();
    let probes = probe(&mut place)?;
    let both = bound(place.guest(), &page, &file, first.bounds.len())?;

    let second = &both.bounds[first.bounds.len()..];
    let [early, late] = [narrowest(&first.bounds), narrowest(second)];
    for (found, bound) in [(first.exchanges, early), (both.exchanges - first.exchanges, late)] {
        let ClockBound { low_ns, high_ns, .. } = bound;
        eprintln!(
            "{found} exchanges, the shortest {} ns: the guest is ahead by {low_ns} to {high_ns} ns ({} ns wide)",
            both.shortest_ns,
            bound.width_ns()
        );
        assert!(found >= u64::from(EXCHANGES), "{found} exchanges");
        assert!(bound.width_ns() < WIDTH_NS, "{bound:?}");
    }
    let pairs: ClockPairs = serde_json::from_str(&pairs)?;
    for pair in pairs.pairs {
        let guest = pair.monotonic_ns.cast_signed();
        for ClockBound { low_ns, high_ns, .. } in [early, late] {
            assert!(guest - after <= high_ns && low_ns <= guest - before, "{pair:?}");
        }
    }
    let apart = (late.host_ns - early.host_ns) as f64 * DRIFT;
    let moved = late.low_ns.abs_diff(early.low_ns) as f64;
    assert!(moved <= apart + WIDTH_NS as f64, "{moved} ns in {apart} / {DRIFT} ns");
    expect_one_clock(&place, &probes, &file)?;
    // The page is memory of the guest, of which QEMU tells the back end.
    traffic::everything_a_little(&mut place)?;
    assert_eq!(place.drops()?, []);
    Ok(())
}

#[test]
fn pages_that_cannot_be_shared_are_refused_by_the_launcher() -> Result<(), Failure> {
    let directory = tempfile::tempdir()?;
    let page = directory.path().join("page");
    std::fs::write(&page, "too short")?;
    for (guest, expected) in [
        ("uml", "--clock-page is for --guest qemu"),
        ("qemu", "expected a file of 4096 bytes, or none, found regular file of 9 bytes"),
    ] {
        let mut command = Command::new(scripts().join("launch"));
        command.args(["--guest", guest, "--socket", "/none.sock", "--clock-page"]).arg(&page);
        let output = command.output()?;
        let error = String::from_utf8_lossy(&output.stderr);
        assert!(!output.status.success() && error.contains(expected), "{error}");
    }
    Ok(())
}
