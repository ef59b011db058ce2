use std::fs::{self, File};
use std::thread::{scope, sleep};

use burst_trace::Clock;
use tempfile::{NamedTempFile, TempDir};

use super::bounds::BOUNDS_MAX;
use super::guest::{answer, find, read};
use super::page::{PAGE_BYTES, Page, Reading, Wanted};
use super::*;
use crate::clock::now_ns;

/// Limit of an exchange that comes to its end.
const LONG: Duration = Duration::from_secs(20);
/// Limit of an exchange that does not.
const SHORT: Duration = Duration::from_secs(1);

fn page() -> NamedTempFile {
    let file = NamedTempFile::new().unwrap();
    file.as_file().set_len(PAGE_BYTES).unwrap();
    file
}

fn mapped(file: &NamedTempFile) -> Page {
    Page::map(&File::options().read(true).write(true).open(file).unwrap()).unwrap()
}

/// Bounds the clock of a guest in another thread, which answers with what `reading` returns.
fn bound(
    exchanges: u32,
    limit: Duration,
    reading: impl FnMut(Wanted) -> Reading + Send,
) -> Result<ClockBounds, Error> {
    let file = page();
    scope(|scope| {
        let page = mapped(&file);
        scope.spawn(move || answer(&page, LONG, reading));
        bound_clock(file.path(), exchanges, limit)
    })
}

#[test]
fn the_offset_of_one_clock_from_itself_lies_within_each_bound() {
    let clock = Clock::new();
    let found = bound(2_000, LONG, |wanted| read(&clock, wanted)).unwrap();
    assert!(found.exchanges >= 2_000, "{found:?}");
    assert!((2..=BOUNDS_MAX).contains(&found.bounds.len()), "{found:?}");
    for bound in &found.bounds {
        assert!(bound.low_ns <= 0 && bound.high_ns >= 0, "{bound:?}");
    }
    assert!(found.bounds.is_sorted_by_key(|it| it.host_ns), "{found:?}");
}

#[test]
fn a_guest_that_has_another_counter_and_is_ahead_or_behind_is_bounded() {
    let began = now_ns();
    for ahead in [7_000_000_123_i64, -(began.cast_signed() / 2)] {
        // A counter of 1 tick in 10 ns, and one of 3 ticks in 1 ns.
        for (ticks, ns) in [(1, 10), (3, 1)] {
            let counter = || (now_ns() - began) * ticks / ns + 5;
            let guest = |wanted| {
                let before = counter();
                let clock = now_ns().saturating_add_signed(ahead);
                let clock_ns = if wanted == Wanted::Pair { clock } else { 0 };
                let after = if wanted == Wanted::Pair { counter() } else { before };
                Reading { before, clock_ns, after }
            };
            for bound in bound(1_000, LONG, guest).unwrap().bounds {
                let is_within = bound.low_ns <= ahead && ahead <= bound.high_ns;
                assert!(is_within, "{ahead}: {bound:?}");
            }
        }
    }
}

#[test]
fn a_guest_that_does_not_answer_is_reported_in_time() {
    let file = page();
    let began = now_ns();
    let error = bound_clock(file.path(), 100, SHORT).unwrap_err().to_string();
    assert!(error.contains("within 1s, found no answer: run `ringscope agent"), "{error}");
    assert!(now_ns() - began < LONG.as_nanos() as u64);
    // And one that answers what nobody has asked.
    let error = scope(|scope| {
        let page = mapped(&file);
        scope.spawn(move || {
            while page.asked().wanted() != Wanted::Pair {
                sleep(Duration::from_millis(1));
            }
            page.answer(page.asked().next(Wanted::Pair), Reading::default());
        });
        bound_clock(file.path(), 100, SHORT).unwrap_err().to_string()
    });
    assert!(error.contains("found an answer to another question"), "{error}");
}

#[test]
fn answers_that_no_clock_gives_are_refused() {
    let clock = Clock::new();
    // What is expected of a reading, and a change that breaks it. The change is given the number of answers so far.
    type Change = fn(u64, Reading) -> Reading;
    let cases: [(&str, Change); 6] = [
        ("a counter that goes forward", |n, it| Reading { before: it.before - n, ..it }),
        ("a counter that goes forward", |_, it| Reading { after: it.before - 1, ..it }),
        ("a clock that goes forward", |n, it| Reading { clock_ns: u64::MAX - n, ..it }),
        ("that advance during a run", |_, _| Reading { before: 7, clock_ns: 7, after: 7 }),
        ("that advance during a run", |_, it| Reading { clock_ns: 7, ..it }),
        ("of steady rates", |n, it| Reading { clock_ns: it.clock_ns + (n / 66) * 1_000_000, ..it }),
    ];
    for (expected, change) in cases {
        let mut n = 0;
        let start = clock.now();
        let found = bound(200, LONG, |wanted| {
            n += 1;
            let it = read(&clock, wanted);
            // Large enough to be reduced by the number of answers.
            let it = Reading { before: it.before - start / 2, after: it.after - start / 2, ..it };
            change(if expected.starts_with("a counter") { n * n * 1_000_000 } else { n }, it)
        });
        let error = found.unwrap_err().to_string();
        assert!(error.contains(expected), "{expected}: {error}");
    }
    // The largest numbers are no panic.
    for reading in [u64::MAX, 0].map(|it| Reading { before: it, clock_ns: it, after: it }) {
        assert!(matches!(bound(100, LONG, |_| reading), Err(Error::Nonsense { .. })));
    }
    let mut n = 0;
    let jumps = bound(100, LONG, |_| {
        n += 1;
        let it = if n > 1 { u64::MAX } else { 0 };
        Reading { before: it, clock_ns: it, after: it }
    });
    assert!(jumps.is_err(), "{jumps:?}");
}

#[test]
fn what_was_taken_until_the_guest_stopped_counts() {
    let clock = Clock::new();
    let mut answers = 0;
    let found = bound(10_000, Duration::from_secs(2), |wanted| {
        answers += 1;
        if answers == 200 {
            sleep(Duration::from_millis(2_500));
        }
        read(&clock, wanted)
    });
    let found = found.unwrap();
    assert!(found.exchanges < 200 && !found.bounds.is_empty(), "{found:?}");
    assert!(found.bounds.iter().all(|it| it.low_ns <= 0 && it.high_ns >= 0), "{found:?}");
}

#[test]
fn a_page_that_is_shortened_is_reported() {
    let clock = Clock::new();
    let file = page();
    let error = scope(|scope| {
        let page = mapped(&file);
        let mut answers = 0;
        let file = &file;
        let clock = &clock;
        scope.spawn(move || {
            answer(&page, SHORT, |wanted| {
                answers += 1;
                if answers == 50 {
                    file.as_file().set_len(0).unwrap();
                }
                read(clock, wanted)
            })
        });
        bound_clock(file.path(), 10_000, SHORT).unwrap_err()
    });
    assert!(matches!(error, Error::Torn), "{error}");
}

#[test]
fn only_a_page_is_written_to_and_by_one_process_at_a_time() {
    let refused = |path: &Path| bound_clock(path, 100, SHORT).unwrap_err().to_string();
    let file = page();
    file.as_file().set_len(PAGE_BYTES - 1).unwrap();
    let error = refused(file.path());
    assert!(error.contains("found 4095 bytes: give the file of the guest's"), "{error}");
    let content = vec![7; PAGE_BYTES as usize];
    fs::write(file.path(), &content).unwrap();
    assert!(refused(file.path()).contains("found other content"));
    assert_eq!(fs::read(file.path()).unwrap(), content);
    let directory = TempDir::new().unwrap();
    assert!(refused(directory.path()).contains("cannot open the clock page"));
    assert!(refused(Path::new("/dev/null")).contains("found a device"));
    let file = page();
    rustix::fs::flock(file.as_file(), rustix::fs::FlockOperation::LockExclusive).unwrap();
    assert!(refused(file.path()).contains("found another `ringscope`"));
}

#[test]
fn a_guest_waits_for_a_question_of_this_exchange() {
    let file = page();
    // The host's end is there from before.
    assert!(bound_clock(file.path(), 100, Duration::from_millis(1)).is_err());
    let error = answer(&mapped(&file), SHORT, |_| Reading::default()).unwrap_err().to_string();
    assert!(error.contains("within 1s, found none: run `ringscope agent clock --page"), "{error}");
}

#[test]
fn the_page_is_found_among_other_devices() {
    let devices = TempDir::new().unwrap();
    let error = find(&devices.path().join("none")).unwrap_err().to_string();
    assert!(error.contains("expected a PCI device 1af4:1110"), "{error}");
    for (name, ids, bytes) in [
        ("0000:00:01.0", ["0x1af4", "0x1041"], PAGE_BYTES),
        // The shared memory of another program.
        ("0000:00:02.0", ["0x1af4", "0x1110"], 1 << 20),
        ("0000:00:03.0", ["0x1af4", "0x1110"], PAGE_BYTES),
    ] {
        assert!(matches!(find(devices.path()), Err(Error::NoDevice { .. })));
        let device = devices.path().join(name);
        fs::create_dir(&device).unwrap();
        for (file, id) in ["vendor", "device"].into_iter().zip(ids) {
            fs::write(device.join(file), format!("{id}\n")).unwrap();
        }
        File::create(device.join("resource2")).unwrap().set_len(bytes).unwrap();
    }
    assert_eq!(find(devices.path()).unwrap(), devices.path().join("0000:00:03.0"));
}

#[test]
fn bounds_are_added_to_those_of_a_file() {
    let directory = TempDir::new().unwrap();
    let path = directory.path().join("clock.json");
    let run = |host_ns, shortest_ns| ClockBounds {
        relation: RELATION.into(),
        exchanges: 3,
        shortest_ns,
        bounds: vec![ClockBound { host_ns, low_ns: -5, high_ns: 6 }],
    };
    assert_eq!(earlier(&path, RELATION).unwrap(), None);
    write(path.to_str().unwrap(), &run(1, 50)).unwrap();
    let mut all = earlier(&path, RELATION).unwrap().unwrap();
    all.add(run(2, 40));
    write(path.to_str().unwrap(), &all).unwrap();
    let found = earlier(&path, RELATION).unwrap().unwrap();
    assert_eq!((found.exchanges, found.shortest_ns, found.bounds.len()), (6, 40, 2));
    let other = earlier(&path, "ptp-kvm").unwrap_err().to_string();
    assert!(other.contains("found") && other.contains("bounds by clock-page"), "{other}");
    fs::write(&path, "{}").unwrap();
    let error = earlier(&path, RELATION).unwrap_err().to_string();
    assert!(error.contains("--append: expected a file of"), "{error}");
}
