//! The page of `ringscope lab report --format html`, looked at in a browser: from the table to a slow packet.

use std::fs;
use std::path::Path;
use std::process::Command;

use ringscope_tests::browser::{Browser, keep_picture};
use ringscope_tests::daemon::program;
use serde_json::Value;

/// Runs `ringscope` with these arguments.
fn ringscope(arguments: &[&str]) {
    let scripts = Path::new(env!("CARGO_MANIFEST_DIR")).join("../qemu-scripts");
    let output = Command::new(program("ringscope").unwrap())
        .args(arguments)
        .env("RINGSCOPE_QEMU_SCRIPTS", scripts)
        .output()
        .unwrap();
    assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
}

/// What a script returns 100 ms later: links have been followed then.
fn later(browser: &Browser, value: &str) -> Value {
    let script = format!("return new Promise(done => setTimeout(() => done({value}), 100))");
    browser.run(&script).unwrap()
}

fn number(value: &Value) -> f64 {
    value.as_f64().unwrap_or_else(|| panic!("expected a number, found {value}"))
}

#[test]
fn a_click_leads_from_the_table_to_a_slow_packet() {
    let directory = tempfile::tempdir().unwrap();
    let kept = directory.path().join("kept");
    let page = directory.path().join("all variants & more.html");
    let [kept, file] = [&kept, &page].map(|path| path.to_str().unwrap());
    ringscope(&[
        "lab",
        "--guest",
        "uml",
        "--variants",
        "host-host,tap-bridge",
        "--loads",
        "none",
        "--count",
        "200",
        "--repeats",
        "1",
        "--untraced",
        "off",
        "--out",
        kept,
    ]);
    ringscope(&["lab", "report", kept, "--format", "html", "-o", file]);
    let browser = Browser::start(1200, 2000).unwrap();
    browser.open(&page).unwrap();

    // The drawings have both variants, on one scale.
    let drawn = browser
        .run(
            "const widths = [...document.querySelectorAll('#compositions .bar')].map(it => it.getBoundingClientRect().width); \
             return [document.querySelectorAll('#table tbody tr').length, document.querySelectorAll('.curve').length, \
             widths[1] / widths[0], data.results.rows[1].composition.round_trip_ns / data.results.rows[0].composition.round_trip_ns]",
        )
        .unwrap();
    assert_eq!([&drawn[0], &drawn[1]].map(Value::as_u64), [Some(2), Some(2)]);
    let (shown, measured) = (number(&drawn[2]), number(&drawn[3]));
    assert!((shown / measured - 1.0).abs() < 0.1, "{shown}, {measured} measured");
    browser.click("#compositions .bar span:not(.thin)").unwrap();
    let said = browser.run("return document.querySelector('#compositions .readout').textContent");
    assert!(said.unwrap().as_str().unwrap().contains("joined probes"));
    // A line is switched off and on by its box.
    browser.click(".legend input").unwrap();
    let display = "return document.querySelector('.curve').style.display";
    assert_eq!(browser.run(display).unwrap(), "none");
    browser.click(".legend input").unwrap();
    assert_eq!(browser.run(display).unwrap(), "");
    keep_picture("RINGSCOPE_LAB_PICTURE", &browser.screenshot().unwrap()).unwrap();

    // Why one is slower, part by part.
    let compared = browser.run(
        "return [document.querySelectorAll('#verdicts .verdict').length, data.results.differences[0].difference_ns, \
         [...document.querySelectorAll('.difference td.ns')].reduce((sum, it) => sum + Number(it.dataset.ns), 0)]",
    );
    let compared = compared.unwrap();
    assert_eq!(compared[0], 1);
    assert!((number(&compared[1]) - number(&compared[2])).abs() < 1.0, "{compared}");

    // Without a recording there is no page to go to.
    let links = browser.run("return document.querySelectorAll('#row-0 a').length");
    assert_eq!(links.unwrap(), 0);
    browser.click("#table a[href='#row-1']").unwrap();
    assert_eq!(later(&browser, "location.hash"), "#row-1");
    let slowest =
        browser.run("return Number(document.querySelector('#row-1 a.probe').dataset.ns)").unwrap();
    browser.click("#row-1 a.probe").unwrap();
    let opened = later(
        &browser,
        "[document.title, Number(document.getElementById('journey-total').dataset.ns), \
         [...document.querySelectorAll('#journey td.ns')].reduce((sum, it) => sum + Number(it.dataset.ns), 0)]",
    );
    assert_eq!(opened[0], "ringscope: tap-bridge, load none, repeat 1");
    assert_eq!(opened[1], slowest);
    assert_eq!(opened[2], slowest, "the parts add up");
    assert_eq!(browser.complaints().unwrap(), Vec::<String>::new());
    narrow(&page);
    refused_outputs(kept);
}

/// A narrow window scrolls nothing but tables.
fn narrow(page: &Path) {
    let browser = Browser::start(500, 900).unwrap();
    browser.open(page).unwrap();
    let wide = browser
        .run(
            "return [document.documentElement.scrollWidth - innerWidth, \
             [...document.querySelectorAll('body *')].filter(it => it.getBoundingClientRect().right > innerWidth + 1 \
             && !it.closest('.wide') && !it.closest('svg') && !it.closest('.bar') && !it.closest('pre')) \
             .map(it => it.outerHTML.slice(0, 80))]",
        )
        .unwrap();
    assert!(number(&wide[0]) <= 0.0, "the page scrolls sideways by {}", wide[0]);
    assert_eq!(wide[1].as_array().unwrap().len(), 0, "{wide}");
    assert_eq!(browser.complaints().unwrap(), Vec::<String>::new());
}

/// What was kept is not overwritten by a report of it.
fn refused_outputs(kept: &str) {
    let recording = Path::new(kept).join("tap-bridge/1/none/daemon.rec");
    let before = fs::read(&recording).unwrap();
    let output = Command::new(program("ringscope").unwrap())
        .args(["lab", "report", kept, "--format", "json", "-o"])
        .arg(&recording)
        .output()
        .unwrap();
    let said = String::from_utf8_lossy(&output.stderr);
    assert!(!output.status.success() && said.contains("it is one of the inputs"), "{said}");
    assert!(fs::read(&recording).unwrap() == before);
}
