//! The page of `ringscope report --format html`, looked at in a browser.

use std::path::Path;
use std::process::Command;

use burst_trace::{BurstRecord, Direction};
use frontend::{Guest, GuestOptions};
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
    // For the mean, or for the tail as well: what waits behind a delayed burst has that in its notice.
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
    assert_eq!(browser.complaints().unwrap(), Vec::<String>::new());
}

/// The data that the page draws.
fn data(page: &Path) -> Value {
    let text = std::fs::read_to_string(page).unwrap();
    let (_, text) = text.split_once("type=\"application/json\">").unwrap();
    let (text, _) = text.split_once("</script>").unwrap();
    serde_json::from_str(text).unwrap()
}
