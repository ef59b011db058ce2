//! The control socket: a running daemon says how it stands, and takes other settings, while its guests go on.

use std::io::{Read as _, Write as _};
use std::os::unix::fs::PermissionsExt as _;
use std::path::Path;
use std::thread::sleep;
use std::time::{Duration, Instant};

use burst_trace::{DropCause, Record, Stage};
use frontend::{Guest, GuestOptions};
use ringscope_tests::control::{Client, Controlled, wait_for};
use ringscope_tests::daemon::Daemon;
use ringscope_tests::eventually::{eventually, when};
use ringscope_tests::frames;
use ringscope_tests::lan::guest_table;
use rustix::process::Signal;
use serde_json::json;

const SOON: Duration = Duration::from_secs(5);

/// A daemon whose guest gets its frames back.
fn reflecting(arguments: &[&str]) -> Controlled {
    Controlled::new("reflect", arguments)
}

/// Bursts that the recorder has records of.
fn bursts_of(rig: &Controlled) -> usize {
    let reader = rig.daemon.reader().unwrap();
    let mut bursts = 0;
    reader.read(&mut reader.oldest(0), |record| {
        bursts += usize::from(matches!(record, Record::Burst(_)));
    });
    bursts
}

/// A daemon that ends because it has no control socket, and what it said.
fn refused(directory: &Path, arguments: &[&str]) -> String {
    // It may have ended before it was seen to start.
    let mut daemon = match Daemon::start(directory, "vm1", arguments) {
        Ok(daemon) => daemon,
        Err(error) => return error.to_string(),
    };
    assert_eq!(daemon.wait(SOON).unwrap().code(), Some(1), "{}", daemon.log());
    daemon.log()
}

#[test]
fn status_says_how_each_ring_stands() {
    let rig = reflecting(&[]);
    assert_eq!(rig.ring(1)["state"], "stopped");
    for (packed, format) in [(false, "split"), (true, "packed")] {
        let before = rig.ring(1)["packets"].as_u64().unwrap();
        let mut guest =
            rig.guest(GuestOptions { queue_size: 64, ..GuestOptions::default() }.packed(packed));
        for n in 0..20 {
            guest.pair(0).send(&frames::frame(n, 100)).unwrap();
            guest.pair(0).receive_within(SOON).unwrap();
        }
        let status = rig.asked(&["status"]);
        assert_eq!(status["version"], env!("CARGO_PKG_VERSION"));
        let settings = json!({
            "poll": "adaptive:200",
            "trace": "on",
            "probe": [],
            "capture": "off",
            "fault": [],
            "kernel-stages": "off",
            "limit": { "tx": null, "rx": null },
        });
        assert_eq!(status["guests"][0]["settings"], settings);
        for (at, direction) in [(0, "rx"), (1, "tx")] {
            let ring = &status["guests"][0]["rings"][at];
            let found = [&ring["state"], &ring["format"], &ring["direction"]];
            assert_eq!(found, ["enabled", format, direction], "{ring}");
            assert_eq!((&ring["size"], &ring["ring"]), (&json!(64), &json!(at)));
            assert_eq!(ring["packets"], before + 20, "{ring}");
            let features = ring["features"].as_array().unwrap();
            assert_eq!(features.contains(&json!("packed")), packed, "{ring}");
            assert!(features.contains(&json!("version_1")), "{ring}");
            let calls = ["calls_sent", "calls_suppressed"].map(|key| ring[key].as_u64().unwrap());
            assert!(calls.iter().sum::<u64>() >= 20, "{ring}");
            assert!(ring["kicks"].is_u64() && ring["drops"].is_object(), "{ring}");
        }
        let ring = &status["guests"][0]["rings"][1];
        match packed {
            false => assert_eq!(ring["next_available"], 20, "{ring}"),
            true => {
                assert_eq!([&ring["next_descriptor"], &ring["wrap_counter"]], [20, 1], "{ring}")
            }
        }
    }
    eventually(SOON, "the rings to stop", || {
        let state = rig.ring(1)["state"].clone();
        when(state == "stopped", state)
    });
}

#[test]
fn info_has_what_a_bug_report_needs() {
    let rig = reflecting(&["--mac", "52:54:00:00:00:01", "--features=-in_order"]);
    let info = rig.asked(&["info"]);
    assert_eq!(info["process"], rig.daemon.pid());
    let guest = &info["guests"][0];
    assert_eq!((&guest["name"], &guest["datapath"]), (&json!("vm0"), &json!("reflect")));
    assert_eq!((&guest["mac"], &guest["trace"]), (&json!("52:54:00:00:00:01"), &json!("on")));
    assert_eq!(guest["withheld"], json!(["in_order"]));
    assert!(info["arguments"].as_array().unwrap().contains(&json!("--control")), "{info}");
    // The same for people: by name, and by the socket's path.
    let socket = rig.directory.path().join("control");
    for target in ["vm0", socket.to_str().unwrap()] {
        let output = rig.ctl(&[target, "info"]);
        let text = String::from_utf8(output.stdout).unwrap();
        assert!(text.contains("\n  datapath: reflect\n"), "{text}");
    }
}

#[test]
fn the_socket_is_private_and_goes_with_the_daemon() {
    let mut rig = reflecting(&[]);
    let path = rig.directory.path().join("control");
    assert_eq!(path.metadata().unwrap().permissions().mode() & 0o777, 0o600);
    let _ = rig.client();
    rig.daemon.signal(Signal::KILL).unwrap();
    rig.daemon.wait(SOON).unwrap();
    assert!(path.exists(), "a daemon that is killed removes nothing");
    let control = ["--datapath", "reflect", "--control", path.to_str().unwrap()];
    let mut again = Daemon::start(rig.directory.path(), "vm0", &control).unwrap();
    wait_for(&path);
    let other = tempfile::tempdir().unwrap();
    let said = refused(other.path(), &control);
    assert!(said.contains("is in use: another process listens"), "{said}");
    again.terminate(SOON).unwrap();
    assert!(!path.exists());
    std::fs::write(&path, "precious").unwrap();
    let said = refused(other.path(), &control);
    assert!(said.contains("exists and is not a socket"), "{said}");
    assert_eq!(std::fs::read(&path).unwrap(), b"precious");
}

#[test]
fn what_is_wrong_is_said_with_what_is_known() {
    let rig = reflecting(&[]);
    for (arguments, part) in [
        (&["speed"][..], "expected one of the commands help, info, status, "),
        (&["status", "now"], "expected no value for status, found 'now'"),
        (&["poll"], "expected poll never|adaptive[:USEC]|always, found no value"),
        (&["poll", "often"], "expected never, adaptive, adaptive:USEC or always, found 'often'"),
        (&["trace", "maybe"], "expected trace on or trace off, found 'maybe'"),
        (&["probe", "0"], "expected a UDP port of 1 to 65535, or off, found '0'"),
        (&["fault", "delay:wire=5"], "expected one of the stages"),
        (&["fault", "drop=2"], "expected a probability above 0 and at most 1"),
        (&["fault", "panic:tx"], "panics are planted when the daemon starts (--fault)"),
    ] {
        let said = rig.refused(arguments);
        assert!(said.starts_with("ringscope: ") && said.contains(part), "{arguments:?}: {said}");
    }
    let mut client = rig.client();
    for (request, part) in [
        ("status", "expected a JSON object such as"),
        ("[]", "expected a JSON object such as"),
        (
            r#"{"command":"status","speed":9}"#,
            "unknown field `speed`, expected one of `command`, `guest`",
        ),
        (r#"{"guest":"vm0"}"#, "missing field `command`"),
        (r#"{"command":"status","guest":"vm9"}"#, "expected one of the guests vm0, found 'vm9'"),
        ("", "expected a JSON object"),
    ] {
        let answer = client.ask(request);
        assert!(answer["error"].as_str().unwrap().contains(part), "{request}: {answer}");
    }
    let answer = client.ask(r#"{"command":"poll","value":"always","id":{"mine":7}}"#);
    assert_eq!(answer, json!({ "id": { "mine": 7 }, "ok": { "poll": "always" } }));
    let output = rig.ctl(&["vm9", "status"]);
    assert!(String::from_utf8(output.stderr).unwrap().contains("found vm0"));
}

#[test]
fn clients_that_misbehave_cost_others_nothing() {
    let rig = reflecting(&[]);
    let mut guest = rig.guest(GuestOptions::default());
    // One sends half a request, one a request that never ends, and one never reads its answers.
    let mut half = rig.client();
    half.say(r#"{"command":"#);
    let mut endless = rig.client();
    endless.say(&"x".repeat(20_000));
    assert!(endless.hear()["error"].as_str().unwrap().contains("at most 16384 bytes"));
    assert_eq!(endless.lines.read(&mut [0]).unwrap_or(0), 0, "it is closed");
    let mut deaf = rig.client();
    deaf.stream.set_write_timeout(Some(Duration::from_millis(100))).unwrap();
    let requests = "{\"command\":\"status\"}\n".repeat(100_000);
    assert!(deaf.stream.write_all(requests.as_bytes()).is_err(), "it is not read on without end");
    for _ in 0..5 {
        assert_eq!(rig.asked(&["status"])["guests"][0]["name"], "vm0");
    }
    frames::come_back(&mut guest).unwrap();
    half.say("\"info\"}\n");
    assert_eq!(half.hear()["ok"]["process"], rig.daemon.pid());
    // The ninth client is turned away, and each has its time for itself.
    let mut more: Vec<_> = (0..6).map(|_| rig.client()).collect();
    more.iter_mut().for_each(|client| drop(client.ask(r#"{"command":"help"}"#)));
    let error = rig.client().hear()["error"].clone();
    assert!(error.as_str().unwrap().contains("at most 8 connections"), "{error}");
    drop(more);
    let begun = Instant::now();
    (0..20).for_each(|_| drop(half.ask(r#"{"command":"help"}"#)));
    assert!(begun.elapsed() >= Duration::from_millis(19 * 10), "requests are limited");
    frames::come_back(&mut guest).unwrap();
}

#[test]
fn a_client_that_there_is_no_room_for_waits_and_nothing_spins() {
    let rig = reflecting(&[]);
    // Then everything is set up.
    let mut guest = rig.guest(GuestOptions::default());
    frames::come_back(&mut guest).unwrap();
    let mut served = rig.client();
    served.ask(r#"{"command":"help"}"#);
    let before = rig.daemon.refuse_descriptors();
    let mut waiting = rig.client();
    waiting.say("{\"command\":\"info\"}\n");
    let cpu = rig.daemon.cpu_time();
    sleep(Duration::from_millis(500));
    let spent = rig.daemon.cpu_time() - cpu;
    assert!(spent < Duration::from_millis(100), "{spent:?} of CPU in half a second");
    assert_eq!(served.ask(r#"{"command":"info"}"#)["ok"]["process"], rig.daemon.pid());
    rig.daemon.set_descriptor_limit(before);
    assert_eq!(waiting.hear()["ok"]["process"], rig.daemon.pid());
    frames::come_back(&mut guest).unwrap();
}

#[test]
fn polling_changes_while_frames_flow() {
    let rig = reflecting(&["--poll", "never"]);
    let mut guest = rig.guest(GuestOptions::default());
    for policy in ["always", "never", "adaptive:50", "never", "always", "adaptive:0", "never"] {
        assert_eq!(rig.asked(&["poll", policy]), json!({ "poll": policy }));
        frames::come_back(&mut guest).unwrap();
        let kicks = rig.ring(1)["kicks"].as_u64().unwrap();
        std::thread::sleep(Duration::from_millis(20));
        for n in 0..10 {
            guest.pair(0).send(&frames::frame(n, 100)).unwrap();
            guest.pair(0).receive_within(SOON).unwrap();
            std::thread::sleep(Duration::from_millis(2));
        }
        let more = rig.ring(1)["kicks"].as_u64().unwrap() - kicks;
        match policy {
            "always" => assert_eq!(more, 0, "a worker that never sleeps is never kicked"),
            "never" => assert!(more >= 8, "{more} kicks"),
            _ => {}
        }
    }
    assert!(rig.daemon.log().contains("vm0: the control socket sets poll never"));
}

#[test]
fn tracing_changes_while_frames_flow() {
    let rig = reflecting(&[]);
    let mut guest = rig.guest(GuestOptions::default());
    frames::come_back(&mut guest).unwrap();
    for round in 0..3 {
        assert_eq!(rig.asked(&["trace", "off"]), json!({ "trace": "off" }));
        let recorded = bursts_of(&rig);
        assert!(recorded > 0);
        let packets = rig.ring(1)["packets"].as_u64().unwrap();
        frames::come_back(&mut guest).unwrap();
        assert_eq!(bursts_of(&rig), recorded, "round {round}");
        assert!(rig.ring(1)["packets"].as_u64().unwrap() > packets, "they are counted");
        std::thread::sleep(Duration::from_millis(50));
        assert_eq!(rig.asked(&["trace", "on"]), json!({ "trace": "on" }));
        let asked = Instant::now();
        frames::come_back(&mut guest).unwrap();
        let took = asked.elapsed();
        assert!(bursts_of(&rig) > recorded, "round {round}");
        // No time from before it was on is in a stage.
        let reader = rig.daemon.reader().unwrap();
        let limit =
            (took + Duration::from_millis(20)).as_secs_f64() * reader.ticks_per_second() as f64;
        let mut n = 0;
        reader.read(&mut reader.oldest(0), |record| {
            let Record::Burst(burst) = record else { return };
            n += 1;
            assert!(n <= recorded || (burst.total() as f64) < limit, "{burst:?}");
        });
    }
    let capture = rig.directory.path().join("capture");
    let capturing = reflecting(&["--pcap", capture.to_str().unwrap()]);
    assert!(
        capturing.refused(&["trace", "off"]).contains("because the capture needs the time stamps")
    );
}

#[test]
fn a_delay_is_planted_and_taken_back_while_frames_flow() {
    let rig = reflecting(&[]);
    let mut guest = rig.guest(GuestOptions::default());
    let gather_min = |guest: &mut Guest| {
        let reader = rig.daemon.reader().unwrap();
        let mut cursor = reader.newest(0);
        for n in 0..5 {
            guest.pair(0).send(&frames::frame(n, 100)).unwrap();
            guest.pair(0).receive_within(SOON).unwrap();
        }
        let at = burst_trace::Direction::Tx.position(Stage::Gather).unwrap();
        let mut min = u64::MAX;
        reader.read(&mut cursor, |record| {
            if let Record::Burst(burst) = record
                && burst.ring == 1
            {
                min = min.min(burst.stages[at]);
            }
        });
        Duration::from_secs_f64(min as f64 / reader.ticks_per_second() as f64)
    };
    assert!(gather_min(&mut guest) < Duration::from_millis(3));
    let set = rig.asked(&["fault", "delay:tx.gather=5000", "delay:rx.place=1"]);
    assert_eq!(set, json!({ "fault": ["delay:tx.gather=5000", "delay:rx.place=1"] }));
    assert!(gather_min(&mut guest) >= Duration::from_millis(5));
    assert_eq!(rig.asked(&["fault", "off"]), json!({ "fault": [] }));
    assert!(gather_min(&mut guest) < Duration::from_millis(3));
}

#[test]
fn frames_are_lost_as_planted_while_others_flow() {
    let rig = reflecting(&["--queue-pairs", "2", "--cpus", "0,1"]);
    let mut guest = rig.guest(GuestOptions::default().queue_pairs(2));
    let lost = |ring, cause| rig.daemon.reader().unwrap().drops(ring, cause);
    frames::come_back(&mut guest).unwrap();
    let set = rig.asked(&["fault", "drop:tx", "delay:tx.gather=1", "error:rx.EIO=0.5"]);
    let planted =
        ["delay:tx.gather=1", "drop:tx=1,every=1,seed=0", "error:rx.EIO=0.5,every=1,seed=0"];
    assert_eq!(set, json!({ "fault": planted }));
    for pair in [0, 1] {
        for n in 0..10 {
            assert!(guest.pair(pair).send(&frames::frame(n, 100)).unwrap());
        }
        eventually(SOON, "10 losses", || {
            let found = lost(2 * pair + 1, DropCause::TxFault);
            when(found == 10, found)
        });
    }
    assert_eq!(rig.asked(&["fault", "off"]), json!({ "fault": [] }));
    for pair in [0, 1] {
        frames::come_back_on(&mut guest, pair).unwrap();
    }
    assert_eq!([1, 3].map(|ring| lost(ring, DropCause::TxFault)), [10, 10]);
}

#[test]
fn each_guest_has_settings_of_its_own_and_drain_ends_all() {
    let directory = tempfile::tempdir().unwrap();
    let socket = directory.path().join("control");
    let guests: String =
        (0..2).map(|n| guest_table(directory.path(), n, "datapath = 'reflect'")).collect();
    let config = format!("control = '{}'\n{guests}", socket.display());
    let mut daemon = Daemon::start_with_config(directory.path(), "vm0", &config).unwrap();
    wait_for(&socket);
    let mut client = Client::new(&socket);
    let answer = client.ask(r#"{"command":"poll","value":"never"}"#);
    assert!(answer["error"].as_str().unwrap().contains("one of vm0, vm1, found none"), "{answer}");
    client.ask(r#"{"command":"poll","value":"never","guest":"vm1"}"#);
    let status = client.ask(r#"{"command":"status"}"#);
    let poll = |n: usize| status["ok"]["guests"][n]["settings"]["poll"].clone();
    assert_eq!([poll(0), poll(1)], ["adaptive:200", "never"]);
    assert!(client.ask(r#"{"command":"drain"}"#)["ok"].is_object());
    assert_eq!(daemon.wait(Duration::from_secs(1)).unwrap().code(), Some(0));
}
