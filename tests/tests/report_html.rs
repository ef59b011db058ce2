//! The page of `ringscope report --format html`, looked at in a browser.

use std::fmt::Write as _;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::time::Duration;

use burst_trace::fixture::preempted;
use burst_trace::stage::STAGES_MAX;
use burst_trace::{
    BurstRecord, Clock, Direction, KernelSpan, KernelStage, Recorder, RecorderOptions, Stage,
};
use frontend::{Guest, GuestOptions};
use report::Initiator;
use report::journey::parts;
use ringscope_tests::browser::{Browser, keep_picture};
use ringscope_tests::daemon::{Daemon, program};
use ringscope_tests::frames;
use ringscope_tests::trace::Trace;
use serde_json::Value;

const TX: u16 = 1;

/// A daemon's recorder with some slow bursts, reported to `page`.
fn page(directory: &Path, name: &str, page: &Path, more: &[&str]) -> Vec<BurstRecord> {
    let arguments = ["--datapath", "reflect", "--fault", "delay:tx.egress=8000,every=40"];
    let daemon = Daemon::start(directory, name, &arguments).unwrap();
    let mut guest = Guest::connect(daemon.socket(), GuestOptions::default()).unwrap();
    for _ in 0..60 {
        frames::come_back(&mut guest).unwrap();
    }
    guest.stop_ring(1).unwrap();
    guest.stop_ring(0).unwrap();
    let output = Command::new(program("ringscope").unwrap())
        .args(["report", "--format", "html", "-o"])
        .arg(page)
        .args(more)
        .arg("--run-dir")
        .arg(directory)
        .args(["--name", name])
        .output()
        .unwrap();
    assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
    Trace::open(directory, name).bursts(TX)
}

#[test]
fn a_slow_burst_is_chosen_and_its_journey_is_the_records() {
    let directory = tempfile::tempdir().unwrap();
    let file = directory.path().join("page.html");
    let bursts = page(directory.path(), "page", &file, &[]);
    let browser = Browser::start(1200, 2300).unwrap();
    browser.open(&file).unwrap();
    assert_eq!(browser.run("return document.title").unwrap(), "ringscope: page");
    let words = browser.run("return document.querySelector('#tx .words').textContent").unwrap();
    let words = words.as_str().unwrap();
    // For the mean, or for the tail as well: bursts that wait for a delayed one have that in their notice.
    assert!(words.contains("try first (egress)"), "{words}");
    assert!(words.contains("Not measured here: guest-send, wakeup, host-tx."), "{words}");
    let rows =
        browser.run("return document.querySelectorAll('#tx table tbody tr').length").unwrap();
    assert!(rows.as_u64().unwrap() >= 10, "{rows}");

    // The slowest one.
    let slowest = bursts.iter().max_by_key(|burst| burst.total()).unwrap();
    browser.click(&format!("#point-tx-{}", slowest.sequence)).unwrap();
    let journey = browser
        .run(
            "return [...document.querySelectorAll('#journey td.ns')].map(it => \
             [it.dataset.stage, Number(it.dataset.ns)]).concat([['total', \
             Number(document.getElementById('journey-total').dataset.ns)]])",
        )
        .unwrap();
    let rate = data(&file)["ticks_per_second"].as_f64().unwrap();
    let names = Direction::Tx.stages().iter().map(|stage| stage.name()).chain(["total"]);
    let ticks = slowest.stages.iter().copied().chain([slowest.total()]);
    for ((name, ticks), shown) in names.zip(ticks).zip(journey.as_array().unwrap()) {
        assert_eq!(shown[0], name);
        let ns = ticks as f64 * 1e9 / rate;
        assert!((shown[1].as_f64().unwrap() - ns).abs() <= 1.0, "{name}: {shown}, {ns} recorded");
    }
    let neighbours =
        browser.run("return document.querySelectorAll('#journey .small > div').length").unwrap();
    assert!(neighbours.as_u64().unwrap() > 1, "what its worker did around it");
    keep_picture("RINGSCOPE_REPORT_PICTURE", &browser.screenshot().unwrap()).unwrap();

    // A link to it opens it, too.
    browser.run("location.hash = ''; document.getElementById('journey').remove()").unwrap();
    browser.run(&format!("location.hash = 'burst-tx-{}'", slowest.sequence)).unwrap();
    let is_open = browser.run("return new Promise(done => setTimeout(() => done(!!document.getElementById('journey')), 100))");
    assert_eq!(is_open.unwrap(), true);
    assert_eq!(browser.complaints().unwrap(), Vec::<String>::new());
}

#[test]
fn two_are_compared_stage_by_stage() {
    let directory = tempfile::tempdir().unwrap();
    let [before, after] = ["before.html", "after.html"].map(|name| directory.path().join(name));
    page(directory.path(), "before", &before, &[]);
    let recorder = directory.path().join("before.trace");
    page(directory.path(), "after", &after, &["--before", recorder.to_str().unwrap()]);
    let browser = Browser::start(1200, 900).unwrap();
    browser.open(&after).unwrap();
    let text = browser.run("return document.querySelector('#tx .change').textContent").unwrap();
    let text = text.as_str().unwrap();
    assert!(text.contains("Compared with before") && text.contains("mean before"), "{text}");
    assert!(text.contains("before.trace: ") && text.contains("After: after: "), "{text}");
    assert_eq!(browser.complaints().unwrap(), Vec::<String>::new());
}

/// The times of a burst that waited for no limit: each other stage took `ticks`.
fn stages(direction: Direction, ticks: u64) -> [u64; STAGES_MAX] {
    let mut stages = [0; STAGES_MAX];
    for (time, stage) in stages.iter_mut().zip(direction.stages()) {
        *time = if *stage == Stage::Limited { 0 } else { ticks };
    }
    stages
}

/// A recorder of 200 probes of the host's, 1 ms apart, and what their sender stamped: number n took 100 µs and n. Only what
/// one clock measured is known exactly, so the daemon's part is of whole microseconds: 10 in, 20 out.
fn probes(directory: &Path) -> [PathBuf; 2] {
    const RUN: u32 = 7;
    let clock = Clock::new();
    let trace = directory.join("probes.trace");
    let options = RecorderOptions {
        path: trace.clone(),
        workers: 2,
        queue_pairs: 1,
        capacity: 1024,
        facts: "{}".into(),
    };
    let recorder = Recorder::create(&options, &clock).unwrap();
    let anchor = clock.anchor();
    let (mut writer, mut kernel) = (recorder.writer(0, clock), recorder.writer(1, clock));
    let ticks = |us| clock.ticks_in(Duration::from_micros(us));
    let mut stamps =
        "run,sequence,sent_ns,sent_kernel_ns,received_kernel_ns,received_ns\n".to_owned();
    for sequence in 0..200 {
        let sent = anchor.ticks + ticks(1000 * (sequence + 1));
        for (ring, at, us) in [(0, 30, 2), (1, 60, 4)] {
            let stages = stages(Direction::of_ring(ring), ticks(us));
            let first = sent + ticks(at);
            let last = first + stages.iter().sum::<u64>();
            let burst = BurstRecord {
                first,
                last,
                sequence,
                stages,
                packets: 1,
                ring,
                ..Default::default()
            };
            writer.burst(&burst);
            writer.probe(&burst, RUN, sequence);
        }
        // The kernel takes a frame while the daemon hands it over, and goes on for 5 µs.
        let (stage, start) = (KernelStage::HostTx, sent + ticks(73));
        let end = start + ticks(5);
        kernel.kernel(&KernelSpan { stage, start, end, worker: Some(0), writer: 0 });
        let sent_ns = anchor.monotonic_ns + 1_000_000 * (sequence + 1);
        let received_ns = sent_ns + 100_000 + sequence * 1000;
        writeln!(stamps, "{RUN},{sequence},{sent_ns},,,{received_ns}").unwrap();
    }
    let sender = directory.join("ping.csv");
    std::fs::write(&sender, stamps).unwrap();
    [trace, sender]
}

/// Their page, opened.
fn page_of_probes(directory: &Path) -> Browser {
    let [trace, sender] = probes(directory);
    let file = directory.join("page.html");
    let output = Command::new(program("ringscope").unwrap())
        .args(["report", "--format", "html", "-o"])
        .args([&file, &trace])
        .arg("--probes")
        .arg(sender)
        .output()
        .unwrap();
    assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
    let browser = Browser::start(1200, 2300).unwrap();
    browser.open(&file).unwrap();
    browser
}

/// A recorder of 400 bursts, 1 ms apart, with 3 s of rest in the middle. `us` returns the time of each stage of a burst.
fn recorder(directory: &Path, name: &str, us: impl Fn(u64) -> u64) -> PathBuf {
    let path = directory.join(format!("{name}.trace"));
    let clock = Clock::new();
    let options = RecorderOptions {
        path: path.clone(),
        workers: 1,
        queue_pairs: 1,
        capacity: 1024,
        facts: "{}".into(),
    };
    let recorder = Recorder::create(&options, &clock).unwrap();
    let (mut writer, zero) = (recorder.writer(0, clock), clock.now());
    let ticks = |us| clock.ticks_in(Duration::from_micros(us));
    for sequence in 0..400 {
        let rest = if sequence < 200 { 0 } else { 3_000_000 };
        let first = zero + ticks(sequence * 1000 + rest);
        let stages = stages(Direction::Tx, ticks(us(sequence)));
        let last = first + stages.iter().sum::<u64>();
        writer.burst(&BurstRecord {
            first,
            last,
            sequence,
            stages,
            packets: 1,
            ring: TX,
            ..Default::default()
        });
    }
    path
}

fn report(page: &Path, of: &Path, more: &[&Path]) {
    let mut command = Command::new(program("ringscope").unwrap());
    command.args(["report", "--format", "html", "-o"]).args([page, of]);
    for before in more {
        command.arg("--before").arg(before);
    }
    let output = command.output().unwrap();
    assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
}

#[test]
fn a_change_is_coloured_if_chance_does_not_explain_it() {
    let directory = tempfile::tempdir().unwrap();
    let page = directory.path().join("change.html");
    // Times that vary from burst to burst as 100 to 199 do, in an order of each recorder's own.
    let vary = |factor: u64| move |n: u64| 100 + n * factor % 100;
    let before = recorder(directory.path(), "before", vary(37));
    // One burst more than doubles the mean, and shows how little the mean is known.
    let one = |n| if n == 17 { 100_000 } else { vary(53)(n) };
    let same = recorder(directory.path(), "same", one);
    let slower = recorder(directory.path(), "slower", |n| 2 * vary(53)(n));
    let browser = Browser::start(1200, 900).unwrap();
    for (after, expected) in [(&same, [0, 0]), (&slower, [21, 0])] {
        report(&page, after, &[&before]);
        browser.open(&page).unwrap();
        let coloured = browser.run(
            "return ['worse', 'better'].map(it => document.querySelectorAll(`#tx .change .${it}`).length)",
        );
        let coloured = coloured.unwrap();
        assert_eq!([&coloured[0], &coloured[1]].map(|it| it.as_u64()), expected.map(Some));
    }
}

#[test]
fn a_narrow_window_scrolls_nothing_but_tables_and_drawings_say_no_more_than_they_know() {
    let directory = tempfile::tempdir().unwrap();
    let file = directory.path().join("rest.html");
    // In one narrow range of times.
    report(&file, &recorder(directory.path(), "rest", |_| 10), &[]);
    let browser = Browser::start(500, 900).unwrap();
    browser.open(&file).unwrap();
    browser.run("location.hash = 'burst-tx-7'").unwrap();
    let wide = browser.run(
        "return new Promise(done => setTimeout(() => done([document.documentElement.scrollWidth - innerWidth, \
         [...document.querySelectorAll('body *')].filter(it => it.getBoundingClientRect().right > innerWidth + 1 \
         && !it.closest('.wide') && !it.closest('svg') && !it.closest('.bar')).map(it => it.outerHTML.slice(0, 80))]), 100))",
    );
    let wide = wide.unwrap();
    assert!(wide[0].as_i64().unwrap() <= 0, "the page scrolls sideways by {}", wide[0]);
    assert_eq!(wide[1].as_array().unwrap().len(), 0, "{wide}");
    // No line is as long as the rest.
    let widest = browser.run(
        "return Math.max(...[...document.querySelectorAll('#tx svg .line polyline')].map(it => it.getBBox().width))",
    );
    assert!(widest.unwrap().as_f64().unwrap() < 200.0);
    // Each drawing's axis of times has at least two labels, and each of counts.
    let labels = browser.run(
        "return [...document.querySelectorAll('#tx svg')].map(svg => { const texts = [...svg.querySelectorAll('text')]; \
         const at = side => texts.filter(it => (it.getAttribute('text-anchor') === 'end') === side).length; \
         return Math.min(at(true), at(false)); })",
    );
    let labels = labels.unwrap();
    let labels = labels.as_array().unwrap();
    assert!(!labels.is_empty() && labels.iter().all(|it| it.as_u64() >= Some(2)), "{labels:?}");
    // White on each segment of a bar can be read.
    let contrast = browser.run(
        "const light = rgb => rgb.match(/\\d+/g).slice(0, 3).map(it => it / 255).map(it => it <= 0.03928 ? it / 12.92 \
         : ((it + 0.055) / 1.055) ** 2.4).reduce((sum, it, n) => sum + it * [0.2126, 0.7152, 0.0722][n], 0); \
         return Math.min(...[...document.querySelectorAll('.bar span')].map(it => 1.05 / (light(getComputedStyle(it).backgroundColor) + 0.05)))",
    );
    assert!(contrast.unwrap().as_f64().unwrap() >= 4.5);
    let words = text(&browser, "#tx .words");
    assert!(!words.contains("split the queues"), "there is one queue pair: {words}");
    assert_eq!(browser.complaints().unwrap(), Vec::<String>::new());
}

fn text(browser: &Browser, selector: &str) -> String {
    let script = format!(
        "return document.querySelector('{selector}').textContent.replaceAll('\\u00a0', ' ')"
    );
    browser.run(&script).unwrap().as_str().unwrap().to_owned()
}

#[test]
fn a_probes_round_trip_is_chosen_and_seen_part_by_part() {
    let directory = tempfile::tempdir().unwrap();
    let browser = page_of_probes(directory.path());
    let text = |selector: &str| text(&browser, selector);
    assert_eq!(text("#trips h2"), "From application to application");
    assert!(text("#trips p").starts_with("200 probes from the host to the guest and back"));
    assert!(text("#trips").contains("mean of the 2 round trips above p99 (297 µs)"));
    assert!(text("#trips .key:nth-child(3)").starts_with("guest n/a"), "nobody measured it");
    assert!(text("#trips .remainder").contains("known to "), "{}", text("#trips .remainder"));
    // The parts of a bar have their colour by whose they are, and fill it.
    let filled = browser.run(
        "const bar = document.querySelector('#trips .bar'); const parts = [...bar.children]; \
         return [new Set(parts.map(it => getComputedStyle(it).backgroundColor)).size, \
         parts.reduce((sum, it) => sum + it.getBoundingClientRect().width, 0) / bar.getBoundingClientRect().width]",
    );
    let filled = filled.unwrap();
    assert_eq!(filled[0], 3, "host, daemon, between: {filled}");
    assert!((0.95..1.05).contains(&filled[1].as_f64().unwrap()), "{filled}");

    browser.click("#point-7-199").unwrap();
    let shown = browser.run(
        "return [...document.querySelectorAll('#journey td.ns')].map(it => \
         [it.dataset.side, it.dataset.stage, it.dataset.ns === '' ? null : Number(it.dataset.ns)])",
    );
    let shown = shown.unwrap();
    let shown = shown.as_array().unwrap();
    let parts = parts(Initiator::Host);
    assert_eq!(shown.len(), parts.len());
    for (part, shown) in parts.iter().zip(shown) {
        assert_eq!([&shown[0], &shown[1]], [part.side.name(), part.stage]);
        let expected = match (part.side.name(), part.stage) {
            (_, "wakeup" | "inject") | ("guest", _) => None,
            (_, "limited") => Some(0.0),
            ("rx", _) => Some(2.0),
            ("tx", _) => Some(4.0),
            ("host", "host-send") => Some(30.0),
            // 299 without what it took until the datapath had it: 60 and 16.
            ("host", _) => Some(223.0),
            // From 40 to 60.
            _ => Some(20.0),
        };
        let us = shown[2].as_f64().map(|ns| ns / 1000.0);
        assert_eq!(us.is_some(), expected.is_some(), "{shown}");
        let off = us.unwrap_or_default() - expected.unwrap_or_default();
        assert!(off.abs() < 0.5, "{shown}, {expected:?} µs were stamped");
    }
    let total = browser.run("return document.getElementById('journey-total').dataset.ns");
    assert_eq!(total.unwrap(), "299000");
    // A link to a probe opens it.
    browser.run("location.hash = 'probe-7-150'").unwrap();
    let title = browser.run("return new Promise(done => setTimeout(() => done(document.querySelector('#journey h3').textContent.replaceAll('\\u00a0', ' ')), 100))");
    assert_eq!(title.unwrap(), "The round trip of probe 150: 250 µs");
    browser.run("document.getElementById('trips').scrollIntoView()").unwrap();
    keep_picture("RINGSCOPE_PROBES_PICTURE", &browser.screenshot().unwrap()).unwrap();
    assert!(!text("main").contains("null"), "what is not there is not shown");
    assert_eq!(browser.complaints().unwrap(), Vec::<String>::new());
}

#[test]
fn kernel_times_stand_at_their_place_in_a_burst() {
    let directory = tempfile::tempdir().unwrap();
    let browser = page_of_probes(directory.path());
    let text = |selector: &str| text(&browser, selector);
    let point = "document.getElementById('point-tx-150').dispatchEvent(new Event('click'))";
    browser.run(point).unwrap();
    assert!(text("#journey h3").starts_with("The timeline of tx packet 150"));
    assert_eq!(browser.run("return document.querySelectorAll('#journey').length").unwrap(), 1);
    let kernel = browser.run(
        "const cells = [...document.querySelectorAll('#journey td.kernel')]; \
         const of = name => document.querySelector(`#journey td[data-stage=${name}]`).parentNode.lastChild.firstChild; \
         const left = name => of(name).getBoundingClientRect().left; \
         return cells.map(it => [it.dataset.stage, Math.round(it.dataset.ns / 1000)]).concat( \
         [[left('egress') < left('host-tx'), left('host-tx') < left('complete')]])",
    );
    let expected = serde_json::json!([["host-tx", 5], [true, true]]);
    assert_eq!(kernel.unwrap(), expected);
    let spread = "const select = document.querySelector('#tx select'); select.value = 'host-tx'; \
                  select.dispatchEvent(new Event('change'));";
    browser.run(spread).unwrap();
    assert!(text("#tx .two").starts_with("host-tx: packets"), "{}", text("#tx .two"));
    assert!(text("#tx .words").contains("In the host kernel, beside these: host-tx 5.00 µs"));
    assert_eq!(browser.complaints().unwrap(), Vec::<String>::new());
}

/// A recorder of 20 bursts to the wire, 10 ms apart. Number 7 was in `gather` for 4 ms, in which `hog` had the worker's CPU
/// for 3 ms.
fn interrupted(directory: &Path) -> PathBuf {
    let path = directory.join("interrupted.trace");
    let clock = Clock::new();
    let options = RecorderOptions {
        path: path.clone(),
        workers: 2,
        queue_pairs: 1,
        capacity: 64,
        facts: r#"{"kernel_stages":{"interruptions":"on"}}"#.into(),
    };
    let recorder = Recorder::create(&options, &clock).unwrap();
    let (mut writer, zero) = (recorder.writer(0, clock), clock.now());
    let at = |us| zero + clock.ticks_in(Duration::from_micros(us));
    for sequence in 0..20 {
        let begin = 10_000 * sequence;
        let taken = begin + 10;
        let gathered = taken + if sequence == 7 { 4000 } else { 5 };
        let boundaries = [begin, begin + 5, taken, gathered].map(at);
        let (first, last) = (boundaries[0], boundaries[3]);
        let mut stages = [0; STAGES_MAX];
        let its = [Stage::Notice, Stage::Queued, Stage::Gather];
        for (stage, pair) in its.into_iter().zip(boundaries.windows(2)) {
            stages[Direction::Tx.position(stage).unwrap()] = pair[1] - pair[0];
        }
        let (packets, ring) = (1, TX);
        let burst =
            BurstRecord { first, last, sequence, stages, packets, ring, ..Default::default() };
        writer.burst(&burst);
    }
    recorder.writer(1, clock).interruption(&preempted(at(70_510), at(73_510)));
    path
}

#[test]
fn an_interruption_is_drawn_inside_the_stage_in_which_it_fell() {
    let directory = tempfile::tempdir().unwrap();
    let page = directory.path().join("interrupted.html");
    report(&page, &interrupted(directory.path()), &[]);
    let browser = Browser::start(1200, 2300).unwrap();
    browser.open(&page).unwrap();
    let text = |selector: &str| text(&browser, selector);
    assert!(text("#tx table thead").contains("meannot runningmin"), "{}", text("#tx table thead"));
    assert!(text("#interruptions").contains("worker 0preempted by hog (fifo 50)13 ms3 ms"));
    browser.click("#point-tx-7").unwrap();
    let drawn = browser.run(
        "const drawn = [...document.querySelectorAll('#journey .interruption')], of = it => it.getBoundingClientRect(); \
         const gather = document.querySelector('#journey td[data-stage=gather]').parentNode.lastChild.firstChild; \
         const [it, bar] = [of(drawn[0]), of(gather)]; \
         return [drawn.length, drawn[0].parentNode === gather, drawn[0].title.replaceAll('\\u00a0', ' '), \
         it.left > bar.left && it.right < bar.right && it.height === bar.height, it.width / bar.width, (it.left - bar.left) / bar.width]",
    );
    let drawn = drawn.unwrap();
    let title = "preempted by hog (fifo 50): 3 ms";
    let expected = serde_json::json!([1, true, title, true]);
    assert_eq!(drawn.as_array().unwrap()[..4], expected.as_array().unwrap()[..]);
    for (found, expected) in [(&drawn[4], 0.75), (&drawn[5], 0.125)] {
        assert!((found.as_f64().unwrap() - expected).abs() < 0.01, "{drawn}");
    }
    assert_eq!(text("#interrupted li"), format!("{title} on CPU 1, in gather"));
    keep_picture("RINGSCOPE_INTERRUPTED_PICTURE", &browser.screenshot().unwrap()).unwrap();
    // A burst that nothing interrupted has no such list.
    browser.run("location.hash = 'burst-tx-8'").unwrap();
    let list = browser.run("return new Promise(done => setTimeout(() => done(document.querySelectorAll('#interrupted').length), 100))");
    assert_eq!(list.unwrap(), 0);
    assert_eq!(browser.complaints().unwrap(), Vec::<String>::new());
}

/// The data that the page draws.
fn data(page: &Path) -> Value {
    let text = std::fs::read_to_string(page).unwrap();
    let (_, text) = text.split_once("type=\"application/json\">").unwrap();
    let (text, _) = text.split_once("</script>").unwrap();
    serde_json::from_str(text).unwrap()
}
