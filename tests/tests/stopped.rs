//! Programs at both ends that are stopped or frozen, beside a guest in User Mode Linux: recordings have their threads, and
//! `ringscope why` says so.

use std::collections::HashSet;
use std::fs;
use std::thread::sleep;
use std::time::Duration;

use burst_trace::{Interruption, InterruptionCause, Record, Source, Subject};
use ringscope_tests::planted::{Answer, GuestKind, Kind, Scene, Setting, Undo, freezer};
use ringscope_tests::qemu::Failure;

/// When the fault begins, after the beginning of its recording.
const BEGINS: Duration = Duration::from_millis(100);
/// How long it lasts, and the least part of it that has to show.
const LASTS: Duration = Duration::from_millis(80);
const SEEN: Duration = Duration::from_millis(60);
/// On a virtual machine something else can take more time in a recording. A wrong answer is wrong each time.
const ATTEMPTS: usize = 5;
/// `detail` of an interruption: the control group was frozen.
const FROZEN: u32 = 1;

/// The times in which one of these threads was stopped for [`SEEN`] or longer, and the answer of `ringscope why`, of
/// recordings with the fault: of the first one whose answer is about `subject`, or of the last one.
fn recorded(
    scene: &Scene,
    subject: &str,
    process: u32,
    plant: impl Fn() -> Result<Undo, Failure>,
) -> Result<(Vec<Interruption>, Option<Answer>), Failure> {
    let mut found = (Vec::new(), None);
    for _ in 0..ATTEMPTS {
        scene.await_traffic()?;
        let recording = scene.record()?;
        sleep(BEGINS);
        let planted = plant()?;
        sleep(LASTS);
        planted.now()?;
        recording.wait()?;
        found = (stops(scene, process)?, Answer::first(&scene.why()?)?);
        let answer = found.1.as_ref();
        if answer.is_some_and(|it| it.subject == subject && it.cause == "stopped") {
            break;
        }
        eprintln!("something else took longer: {answer:?}");
    }
    Ok(found)
}

/// The long stops of this process's threads in the recording.
fn stops(scene: &Scene, process: u32) -> Result<Vec<Interruption>, Failure> {
    let tasks = fs::read_dir(format!("/proc/{process}/task"))?.flatten();
    let threads: HashSet<u32> =
        tasks.filter_map(|task| task.file_name().to_str()?.parse().ok()).collect();
    let source = Source::open(&scene.file())?;
    let seen_ticks = (source.ticks_per_second() as f64 * SEEN.as_secs_f64()) as u64;
    let mut stops = Vec::new();
    source.read(|record| match record {
        Record::Interruption(it)
            if it.cause == InterruptionCause::Stopped
                && threads.contains(&it.thread)
                && it.total() >= seen_ticks =>
        {
            stops.push(*it);
        }
        _ => {}
    });
    Ok(stops)
}

#[test]
fn a_program_at_the_far_end_that_is_stopped_is_named() -> Result<(), Failure> {
    let scene = Scene::start(Setting::GuestAsks, GuestKind::Uml)?;
    let plant = || scene.plant(Kind::FarEndStopped, LASTS);
    let (stops, answer) = recorded(&scene, "far-end", scene.far_end()?, plant)?;
    let answer = answer.expect("a cause");
    assert_eq!(answer.to_string(), "far-end stopped", "{answer:?}");
    assert!(answer.words.contains("a signal or a debugger had stopped"), "{}", answer.words);
    let [stop] = stops[..] else { panic!("expected one thread to stop once, found {stops:?}") };
    assert_eq!((stop.subject, stop.thread, stop.detail), (Subject::FarEnd, scene.far_end()?, 0));
    Ok(())
}

#[test]
fn a_front_end_in_a_frozen_control_group_is_said_to_be_frozen() -> Result<(), Failure> {
    let hierarchies = freezer::hierarchies();
    if hierarchies.is_empty() {
        println!("left out: no control groups are mounted that can be frozen");
        return Ok(());
    }
    let scene = Scene::start(Setting::GuestAnswers, GuestKind::Uml)?;
    for hierarchy in &hierarchies {
        let front_end = scene.front_end()?;
        let plant = || freezer::freeze(hierarchy, front_end);
        let (stops, answer) = recorded(&scene, "front-end", front_end, plant)?;
        let answer = answer.expect("a cause");
        assert_eq!(answer.to_string(), "front-end stopped", "{hierarchy:?}: {answer:?}");
        assert!(answer.words.contains("was frozen"), "{hierarchy:?}: {}", answer.words);
        assert!(!stops.is_empty(), "{hierarchy:?}");
        let are_frozen =
            stops.iter().all(|it| (it.subject, it.detail) == (Subject::FrontEnd, FROZEN));
        assert!(are_frozen, "{hierarchy:?}: {stops:?}");
    }
    Ok(())
}
