//! `--kernel-stages`: what passes in the host kernel is in the report, or the report says why it is not.

use std::fs;
use std::io::{Read as _, Write as _};
use std::os::unix::fs::PermissionsExt as _;
use std::os::unix::net::UnixStream;
use std::path::Path;
use std::process::{Command, Stdio};
use std::thread::sleep;
use std::time::Duration;

use burst_trace::Source;
use frontend::{Guest, GuestOptions};
use lab::Signal;
use lab::outside::Outside;
use ringscope_tests::daemon::{Daemon, program};
use ringscope_tests::frames;
use ringscope_tests::pings::Pinger;
use serde_json::Value;

const PATIENCE: Duration = Duration::from_secs(5);
const PINGS: usize = 200;
/// Time that the daemon is stopped, and the least part of it that has to show.
const STOPPED: Duration = Duration::from_millis(50);
const SEEN_NS: u64 = 40_000_000;

fn ringscope() -> Command {
    Command::new(program("ringscope").unwrap())
}

/// What `ringscope` prints of the daemon called `name`.
fn stats(directory: &Path, name: &str, arguments: &[&str]) -> String {
    // The thread that writes the kernel's times down reads them some milliseconds later.
    sleep(Duration::from_millis(50));
    let mut command = ringscope();
    command.args(["stats", "--name", name]).arg("--run-dir").arg(directory).args(arguments);
    let output = command.output().unwrap();
    assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
    String::from_utf8(output.stdout).unwrap()
}

fn json(directory: &Path, name: &str) -> Value {
    serde_json::from_str(&stats(directory, name, &["--json"])).unwrap()
}

/// The line of a stage, one way.
fn row<'v>(stats: &'v Value, way: &str, stage: &str) -> &'v Value {
    let rows = stats[way]["stages"].as_array().unwrap();
    rows.iter().find(|row| row["stage"] == stage).unwrap()
}

fn number(row: &Value, figure: &str) -> u64 {
    row[figure].as_u64().unwrap_or_else(|| panic!("no {figure} in {row}"))
}

/// What the daemon's metrics are.
fn ask(socket: &Path) -> String {
    let mut stream = UnixStream::connect(socket).unwrap();
    stream.write_all(b"GET /metrics HTTP/1.1\r\n\r\n").unwrap();
    let mut answer = String::new();
    stream.read_to_string(&mut answer).unwrap();
    answer
}

/// What was recorded of unasked pings is in the files for other tools as in the report.
fn expect_in_every_file(file: &Path) {
    let report = |format: &str| {
        let output = ringscope().arg("report").arg(file).args(["--format", format]).output();
        String::from_utf8(output.unwrap().stdout).unwrap()
    };
    let csv = report("csv");
    let log = report("hlog");
    let report = serde_json::from_str(&report("json")).unwrap();
    assert!(number(row(&report, "rx", "host-rx"), "count") >= 90, "{report}");
    assert!(number(row(&report, "rx", "wakeup"), "count") >= 90, "{report}");

    for (way, stage) in [("rx", "host-rx"), ("rx", "inject"), ("tx", "host-tx")] {
        let is_its = |line: &&str| {
            line.starts_with(&format!("kernel,{way},")) && line.contains(&format!(",{stage},"))
        };
        let lines = csv.lines().filter(is_its).count() as u64;
        let row = row(&report, way, stage);
        assert_eq!(lines, row["count"].as_u64().unwrap_or(0), "{way} {stage}");
        assert_eq!(log.contains(&format!("Tag={way}.{stage},")), lines > 0, "{way} {stage}");
    }
    assert!(log.contains("Tag=rx.wakeup,"), "{log}");
}

/// What Prometheus reads is what the report says.
fn expect_in_metrics(socket: &Path, directory: &Path) {
    // The latest wake-ups have their time until they count.
    sleep(Duration::from_millis(1100));
    let (metrics, found) = (ask(socket), json(directory, "vm0"));
    for (way, stage) in [("tx", "wakeup"), ("tx", "host-tx"), ("rx", "host-rx"), ("rx", "inject")] {
        let labels = format!("guest=\"vm0\",direction=\"{way}\",tier=\"K\",stage=\"{stage}\"");
        let head = format!("ringscope_stage_seconds_count{{{labels}}} ");
        let count = metrics.lines().find_map(|line| line.strip_prefix(&head));
        let count = count.unwrap_or_else(|| panic!("no {head} in {metrics}"));
        let expected = number(row(&found, way, stage), "count");
        assert_eq!(count.parse::<u64>().unwrap(), expected, "{way} {stage}");
    }
}

#[test]
fn on_a_tap_every_stage_of_the_kernel_that_is_attached_has_figures() {
    let directory = tempfile::tempdir().unwrap();
    let mut outside = Outside::new("kstages").unwrap();
    let tap = outside.add_tap(1).unwrap();
    let datapath = format!("tap:ifname={tap}");
    let socket = directory.path().join("metrics.sock");
    let metrics = format!("unix:{}", socket.display());
    let mut arguments = vec!["--datapath", &datapath, "--poll", "never", "--kernel-stages"];
    arguments.extend(["--metrics", &metrics]);
    let mut daemon = Daemon::start(directory.path(), "vm0", &arguments).unwrap();
    let mut guest = Guest::connect(daemon.socket(), GuestOptions::default()).unwrap();
    let mut pinger = Pinger::new(guest.pair(0), Pinger::MAC);
    for n in 0..PINGS {
        // Time for the worker to fall asleep. Answers come within its own call: it does not sleep until then.
        sleep(Duration::from_millis(1));
        assert!(pinger.ping(guest.pair(0), 100 + n, PATIENCE), "ping {n} is lost");
    }
    let file = directory.path().join("vm0.rec");
    let mut record = ringscope();
    record.args(["record", "--name", "vm0", "--seconds", "2", "--run-dir"]).arg(directory.path());
    let mut record = record.arg("-o").arg(&file).stderr(Stdio::null()).spawn().unwrap();
    sleep(Duration::from_millis(200));
    let unasked = "ping -q -c 100 -i 0.003 -W 0.1 10.77.0.2 || true";
    outside.exec(unasked).unwrap();

    let found = json(directory.path(), "vm0");
    let (sent, came) = (number(&found["tx"], "packets"), number(&found["rx"], "packets"));
    assert!(came >= sent + 90, "{came} frames came, {sent} were sent");
    for (way, stage, at_least, at_most) in [
        ("tx", "wakeup", sent * 9 / 10, sent),
        ("rx", "wakeup", 90, came),
        ("tx", "host-tx", sent * 9 / 10, sent),
        ("rx", "host-rx", came * 9 / 10, came),
        // This guest waits for its interrupt in its front end's own thread, unless the answer is there before it sleeps.
        ("rx", "inject", sent / 4, sent),
    ] {
        let row = row(&found, way, stage);
        let count = number(row, "count");
        assert!((at_least..=at_most).contains(&count), "{way}: {at_least} to {at_most}: {row}");
        let middle = number(row, "p50_ns");
        assert!(middle > 0 && middle < 10_000_000, "{row}");
    }
    // The host's work on a frame is a part of the call that hands it over.
    let mean = |stage| row(&found, "tx", stage)["mean_ns"].as_f64().unwrap();
    assert!(mean("host-tx") < mean("egress"), "{} in {}", mean("host-tx"), mean("egress"));

    assert!(record.wait().unwrap().success());
    expect_in_every_file(&file);
    expect_in_metrics(&socket, directory.path());

    let table = stats(directory.path(), "vm0", &[]);
    assert!(table.contains("inject ends where the front end's thread runs"), "{table}");
    assert!(table.contains("host-tx lies within egress"), "{table}");
    assert!(!table.contains("does not know"), "{table}");
    assert!(daemon.terminate(PATIENCE).unwrap().success(), "{}", daemon.log());
}

#[test]
fn under_sustained_load_frames_are_sampled_and_the_table_says_so() {
    const FRAMES: u64 = 20_000;
    let directory = tempfile::tempdir().unwrap();
    let mut outside = Outside::new("krush").unwrap();
    let tap = outside.add_tap(1).unwrap();
    let datapath = format!("tap:ifname={tap}");
    let arguments = ["--datapath", &datapath, "--kernel-stages"];
    let daemon = Daemon::start(directory.path(), "vm0", &arguments).unwrap();
    let mut guest = Guest::connect(daemon.socket(), GuestOptions::default()).unwrap();
    let pair = guest.pair(0);
    // To the outside host, who does not answer this protocol (IEEE 802: for experiments).
    let mut pinger = Pinger::new(pair, Pinger::MAC);
    pinger.ping_all(pair, 1);
    let mut frame = pinger.sent.last().unwrap().clone();
    frame[12..14].copy_from_slice(&[0x88, 0xb5]);
    let mut sent = 0;
    while sent < FRAMES {
        sent += u64::from(pair.send(&frame).unwrap());
        pair.reap().unwrap();
    }
    sleep(Duration::from_millis(200));
    let found = json(directory.path(), "vm0");
    let row = row(&found, "tx", "host-tx");
    let (count, packets) = (number(row, "count"), number(&found["tx"], "packets"));
    assert!(packets >= FRAMES, "{packets}");
    // One in 64, and some more at the beginning of each tick.
    assert!((FRAMES / 128..=FRAMES / 2).contains(&count), "{row}");
    let table = stats(directory.path(), "vm0", &[]);
    assert!(table.contains("under load"), "{table}");
}

#[test]
fn a_daemon_that_is_stopped_shows_it() {
    let directory = tempfile::tempdir().unwrap();
    let mut outside = Outside::new("kstopped").unwrap();
    let tap = outside.add_tap(1).unwrap();
    let datapath = format!("tap:ifname={tap}");
    let arguments = ["--datapath", &datapath, "--poll", "never", "--kernel-stages"];
    let daemon = Daemon::start(directory.path(), "vm0", &arguments).unwrap();
    let mut guest = Guest::connect(daemon.socket(), GuestOptions::default()).unwrap();
    let mut pinger = Pinger::new(guest.pair(0), Pinger::MAC);
    pinger.ping_all(guest.pair(0), 20);
    daemon.hold().unwrap();
    let ping = outside.command("ping").args(["-c", "1", "-W", "1", "10.77.0.2"]).spawn();
    sleep(STOPPED);
    daemon.signal(Signal::CONT).unwrap();
    // The wake-up is for the frame that waited, not for what the guest sends next.
    sleep(STOPPED);
    pinger.ping_all(guest.pair(0), 1);
    let _ = ping.unwrap().wait();

    let found = json(directory.path(), "vm0");
    // The thread could not run: that is `wakeup`. Once it ran it looked at once: that is `notice`.
    let [wakeup, notice] =
        ["wakeup", "notice"].map(|stage| number(row(&found, "rx", stage), "max_ns"));
    assert!(wakeup >= SEEN_NS, "wakeup: {wakeup} ns of {STOPPED:?} in {found:#}");
    assert!(notice < SEEN_NS, "notice: {notice} ns in {found:#}");
}

#[test]
fn without_a_tap_the_wake_ups_are_there_and_the_table_says_why_nothing_else_is() {
    let directory = tempfile::tempdir().unwrap();
    let arguments = ["--datapath", "reflect", "--poll", "never", "--kernel-stages"];
    let daemon = Daemon::start(directory.path(), "vm0", &arguments).unwrap();
    let mut guest = Guest::connect(daemon.socket(), GuestOptions::default()).unwrap();
    frames::come_back(&mut guest).unwrap();
    let found = json(directory.path(), "vm0");
    assert_eq!(row(&found, "tx", "host-tx")["count"], Value::Null);
    assert_eq!(row(&found, "rx", "host-rx")["count"], Value::Null);
    assert!(number(row(&found, "tx", "wakeup"), "count") > 0);
    let table = stats(directory.path(), "vm0", &[]);
    for stage in ["host-tx", "host-rx"] {
        let why = format!("{stage} is not measured: only frames of a tap");
        assert!(table.contains(&why), "{table}");
    }
}

#[test]
fn a_recording_can_measure_the_kernel_for_a_daemon_that_does_not() {
    let directory = tempfile::tempdir().unwrap();
    let mut outside = Outside::new("krecord").unwrap();
    let tap = outside.add_tap(1).unwrap();
    let datapath = format!("tap:ifname={tap}");
    let arguments = ["--datapath", &datapath, "--poll", "never"];
    let daemon = Daemon::start(directory.path(), "vm0", &arguments).unwrap();
    let file = directory.path().join("vm0.rec");
    let mut record = ringscope();
    record.args(["record", "--kernel-stages", "--name", "vm0", "--seconds", "3", "-o"]).arg(&file);
    let record = record.arg("--run-dir").arg(directory.path()).stderr(Stdio::piped());
    let record = record.spawn().unwrap();
    // Time for the programs to be there; the front end comes later, and is seen all the same.
    sleep(Duration::from_secs(1));
    let mut guest = Guest::connect(daemon.socket(), GuestOptions::default()).unwrap();
    sleep(Duration::from_millis(300));
    let mut pinger = Pinger::new(guest.pair(0), Pinger::MAC);
    for n in 0..PINGS {
        sleep(Duration::from_millis(1));
        assert!(pinger.ping(guest.pair(0), 100 + n, PATIENCE), "ping {n} is lost");
    }
    let ended = record.wait_with_output().unwrap();
    let said = String::from_utf8(ended.stderr).unwrap();
    assert!(ended.status.success(), "{said}");
    let cost = said.lines().find(|line| line.contains("the kernel's programs ran")).unwrap();
    assert!(cost.contains("% of a CPU") && !cost.contains(" 0 times"), "{cost}");
    let report = ringscope().arg("report").arg(&file).args(["--format", "json"]).output().unwrap();
    let report: Value = serde_json::from_slice(&report.stdout).unwrap();
    for (way, stage, least) in [
        ("tx", "wakeup", PINGS * 9 / 10),
        ("tx", "host-tx", PINGS * 9 / 10),
        ("rx", "host-rx", PINGS * 9 / 10),
        ("rx", "inject", PINGS / 4),
    ] {
        let row = row(&report, way, stage);
        assert!(number(row, "count") >= least as u64, "{way}: {least}: {row}");
        assert!((1..10_000_000).contains(&number(row, "p50_ns")), "{row}");
    }
    let table = ringscope().arg("report").arg(&file).output().unwrap();
    let table = String::from_utf8(table.stdout).unwrap();
    assert!(table.contains("host-tx lies within egress"), "{table}");
    // Whether exits of KVM are seen depends on this kernel, and what is said of them does not.
    let kvm = report["kvm"].as_str().unwrap();
    assert_eq!(kvm != "on", table.contains("exits of KVM are not measured: "), "{kvm}: {table}");
    assert!(kvm == "on" || kvm.starts_with("n/a: "), "{kvm}");
    // The daemon's own recorder has none of it.
    assert_eq!(row(&json(directory.path(), "vm0"), "rx", "host-rx")["count"], Value::Null);
}

#[test]
fn a_recording_has_the_clocks_of_its_host() {
    let directory = tempfile::tempdir().unwrap();
    let daemon = Daemon::start(directory.path(), "vm0", &["--datapath", "reflect"]).unwrap();
    let _guest = Guest::connect(daemon.socket(), GuestOptions::default()).unwrap();
    let file = directory.path().join("vm0.rec");
    let mut record = ringscope();
    record.args(["record", "--seconds", "0.2", "-o"]).arg(&file);
    assert!(record.arg("--run-dir").arg(directory.path()).status().unwrap().success());
    let facts = Source::open(&file).unwrap().facts();
    let clocks = serde_json::from_str::<Value>(&facts).unwrap()["clocks"].take();
    let ahead = |at: usize| clocks["realtime_ahead_ns"][at].as_i64().unwrap();
    assert!((0..1_000_000).contains(&(ahead(1) - ahead(0))), "{clocks}");
    // A guest in software is none of KVM.
    let counter = clocks["guest_counter"].as_str().unwrap();
    assert!(counter.starts_with("n/a: ") && counter.to_lowercase().contains("kvm"), "{clocks}");
}

#[test]
fn a_recording_of_a_daemon_that_measures_the_kernel_does_not_do_it_again() {
    let directory = tempfile::tempdir().unwrap();
    let arguments = ["--datapath", "reflect", "--kernel-stages"];
    let _daemon = Daemon::start(directory.path(), "vm0", &arguments).unwrap();
    let mut record = ringscope();
    record.args(["record", "--kernel-stages", "-o"]).arg(directory.path().join("vm0.rec"));
    let output = record.arg("--run-dir").arg(directory.path()).output().unwrap();
    let said = String::from_utf8(output.stderr).unwrap();
    assert_eq!(output.status.code(), Some(1), "{said}");
    assert!(said.contains("leave --kernel-stages out"), "{said}");
    assert!(!directory.path().join("vm0.rec.part").exists());
}

#[test]
fn without_the_flag_nothing_of_the_kernel_is_measured() {
    let directory = tempfile::tempdir().unwrap();
    let arguments = ["--datapath", "reflect", "--poll", "never"];
    let daemon = Daemon::start(directory.path(), "vm0", &arguments).unwrap();
    let mut guest = Guest::connect(daemon.socket(), GuestOptions::default()).unwrap();
    frames::come_back(&mut guest).unwrap();
    let found = json(directory.path(), "vm0");
    for (way, stage) in [("tx", "wakeup"), ("tx", "host-tx"), ("rx", "host-rx")] {
        assert_eq!(row(&found, way, stage)["count"], Value::Null, "{stage}");
    }
    assert!(!stats(directory.path(), "vm0", &[]).contains("is not measured"));
}

#[test]
fn without_permission_one_sentence_says_so() {
    let directory = tempfile::tempdir().unwrap();
    fs::set_permissions(directory.path(), fs::Permissions::from_mode(0o777)).unwrap();
    // Somebody else may not be let into the folder where it is built.
    let daemon = directory.path().join("ringscoped");
    fs::copy(program("ringscoped").unwrap(), &daemon).unwrap();
    let mut command = Command::new("setpriv");
    command.args(["--reuid", "65534", "--regid", "65534", "--clear-groups"]).arg(daemon);
    command.args(["--datapath", "reflect", "--kernel-stages", "--socket-path"]);
    command.arg(directory.path().join("vm0.sock")).arg("--run-dir").arg(directory.path());
    let output = command.output().unwrap();
    let said = String::from_utf8(output.stderr).unwrap();
    assert_eq!(output.status.code(), Some(1), "{said}");
    assert_eq!(said.lines().count(), 1, "{said}");
    assert!(said.contains("run as root"), "{said}");
    assert!(
        !directory.path().join("vm0.trace").exists() && !directory.path().join("vm0.sock").exists()
    );
}
