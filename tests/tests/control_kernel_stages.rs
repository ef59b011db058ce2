//! `ringscope ctl NAME kernel-stages`: the host kernel is measured for a time, by programs that the client loads and hands over.

use std::fs::{self, File};
use std::io::pipe;
use std::os::fd::{AsFd as _, BorrowedFd};
use std::os::unix::fs::PermissionsExt as _;
use std::process::Command;
use std::thread::sleep;
use std::time::Duration;

use burst_trace::Reader;
use frontend::{Guest, GuestOptions};
use kernel_stages::KernelStages;
use lab::outside::Outside;
use libbpf_rs::libbpf_sys::bpf_map_create_opts;
use libbpf_rs::{MapHandle, MapType};
use ringscope_tests::control::{Client, Controlled};
use ringscope_tests::daemon::program;
use ringscope_tests::eventually::{eventually, when};
use ringscope_tests::frames;
use ringscope_tests::pings::Pinger;
use serde_json::{Value, json};

const SOON: Duration = Duration::from_secs(5);
const PINGS: usize = 100;

/// Pings with time for the worker to fall asleep.
fn ping(guest: &mut Guest, pinger: &mut Pinger) {
    for n in 0..PINGS {
        sleep(Duration::from_millis(1));
        assert!(pinger.ping(guest.pair(0), 100 + n, SOON), "ping {n} is lost");
    }
}

/// Number of times of a stage in the recorder.
fn count(rig: &Controlled, way: &str, stage: &str) -> u64 {
    let mut command = Command::new(program("ringscope").unwrap());
    command.args(["stats", "--json", "--name", "vm0", "--run-dir"]).arg(rig.directory.path());
    let stats: Value = serde_json::from_slice(&command.output().unwrap().stdout).unwrap();
    let rows = stats[way]["stages"].as_array().unwrap();
    let row = rows.iter().find(|row| row["stage"] == stage).unwrap();
    row["count"].as_u64().unwrap_or(0)
}

const STAGES: [(&str, &str); 4] =
    [("tx", "wakeup"), ("tx", "host-tx"), ("rx", "host-rx"), ("rx", "inject")];

fn counts(rig: &Controlled) -> [u64; 4] {
    STAGES.map(|(way, stage)| count(rig, way, stage))
}

/// Maps and links of the kernel's programs that the daemon has.
fn programs(rig: &Controlled) -> usize {
    let directory = format!("/proc/{}/fd", rig.daemon.pid());
    let links =
        fs::read_dir(directory).unwrap().filter_map(|it| fs::read_link(it.ok()?.path()).ok());
    links.filter(|link| link.to_string_lossy().contains("bpf")).count()
}

fn states(rig: &Controlled) -> Value {
    let facts = Reader::open(&rig.file("vm0.trace")).unwrap().facts();
    serde_json::from_str::<Value>(&facts).unwrap()["kernel_stages"].take()
}

#[test]
fn every_stage_has_figures_from_on_to_off() {
    let mut outside = Outside::new("kctl").unwrap();
    let tap = outside.add_tap(1).unwrap();
    let rig = Controlled::new(&format!("tap:ifname={tap}"), &["--poll", "never"]);
    let mut guest = rig.guest(GuestOptions::default());
    let mut pinger = Pinger::new(guest.pair(0), Pinger::MAC);
    let settings = || rig.asked(&["status"])["guests"][0]["settings"]["kernel-stages"].clone();
    ping(&mut guest, &mut pinger);
    assert_eq!((counts(&rig), programs(&rig), settings()), ([0; 4], 0, json!("off")));
    let mut before = [0; 4];
    for round in 0..3 {
        let on = rig.asked(&["kernel-stages", "on"]);
        for (_, stage) in STAGES {
            assert_eq!(on["kernel-stages"][stage], "on", "{on}");
        }
        assert_eq!((&states(&rig), &settings()), (&on["kernel-stages"], &on["kernel-stages"]));
        assert!(programs(&rig) > 10, "{}", programs(&rig));
        ping(&mut guest, &mut pinger);
        let refused = rig.refused(&["kernel-stages", "on"]);
        assert!(refused.contains("found that they are measured"), "{refused}");
        // What the programs have told is in the recorder then.
        assert_eq!(rig.asked(&["kernel-stages", "off"]), json!({ "kernel-stages": "off" }));
        assert_eq!((programs(&rig), settings()), (0, json!("off")));
        let now = counts(&rig);
        for ((stage, now), before) in STAGES.iter().zip(now).zip(before) {
            let least = if stage.1 == "inject" { PINGS / 4 } else { PINGS * 9 / 10 };
            assert!(now - before >= least as u64, "round {round}: {now} {stage:?} after {before}");
        }
        before = now;
        ping(&mut guest, &mut pinger);
        let [wakeup, others @ ..] = counts(&rig);
        // One that was seen before is of the first burst after it.
        assert!((before[0]..=before[0] + 1).contains(&wakeup), "{wakeup} after {before:?}");
        assert_eq!(others, before[1..]);
        before[0] = wakeup;
        let until = states(&rig)["wakeup"].as_str().unwrap().to_owned();
        assert!(until.starts_with("on until ") && until.ends_with(" UTC"), "{until}");
        // A front end that comes later, and one that comes while they are measured.
        if round == 0 {
            drop(guest);
            guest = rig.guest(GuestOptions::default());
            pinger = Pinger::new(guest.pair(0), Pinger::MAC);
        }
    }
    rig.asked(&["kernel-stages", "on"]);
    drop(guest);
    let mut guest = rig.guest(GuestOptions::default());
    let mut pinger = Pinger::new(guest.pair(0), Pinger::MAC);
    let before = count(&rig, "rx", "inject");
    ping(&mut guest, &mut pinger);
    rig.asked(&["kernel-stages", "off"]);
    assert!(count(&rig, "rx", "inject") >= before + PINGS as u64 / 4);
}

#[test]
fn a_daemon_that_ends_while_it_measures_leaves_nothing() {
    let mut rig = Controlled::new("reflect", &["--poll", "never"]);
    let mut guest = rig.guest(GuestOptions::default());
    rig.asked(&["kernel-stages", "on"]);
    frames::come_back(&mut guest).unwrap();
    drop(guest);
    assert!(rig.daemon.terminate(SOON).unwrap().success(), "{}", rig.daemon.log());
    assert!(states(&rig)["wakeup"].as_str().unwrap().starts_with("on until "));
    assert!(count(&rig, "tx", "wakeup") > 0);
}

#[test]
fn a_recording_measures_by_itself_only_while_the_daemon_does_not() {
    let rig = Controlled::new("reflect", &["--poll", "never"]);
    let record = || {
        let mut command = Command::new(program("ringscope").unwrap());
        command.args(["record", "--kernel-stages", "--name", "vm0", "--seconds", "0.2", "-o"]);
        command.arg(rig.file("x.rec")).arg("--run-dir").arg(rig.directory.path());
        let output = command.output().unwrap();
        (output.status.success(), String::from_utf8(output.stderr).unwrap())
    };
    rig.asked(&["kernel-stages", "on"]);
    let (is_done, said) = record();
    assert!(!is_done && said.contains("leave --kernel-stages out"), "{said}");
    rig.asked(&["kernel-stages", "off"]);
    let (is_done, said) = record();
    assert!(is_done, "{said}");
}

/// A request to measure by these programs.
fn on(programs: &Value) -> String {
    json!({"command": "kernel-stages", "value": "on", "programs": programs}).to_string()
}

/// Asks with these descriptors, and expects a refusal.
fn refused(client: &mut Client, request: &str, files: &[BorrowedFd<'_>], part: &str) {
    let answer = client.ask_with(request, files);
    let why = answer["error"].as_str().unwrap_or_else(|| panic!("{request}: {answer}"));
    assert!(why.contains(part), "{request}: {why}");
}

/// Waits until the daemon has no more descriptors than that.
fn expect_descriptors(rig: &Controlled, most: usize) {
    eventually(SOON, "descriptors that are closed", || {
        let now = rig.daemon.descriptors();
        when(now <= most, format!("{now} of {most}"))
    });
}

#[test]
fn what_cannot_be_is_refused_and_leaves_nothing() {
    let rig = Controlled::new("reflect", &[]);
    assert!(rig.refused(&["kernel-stages"]).contains("expected kernel-stages on|off"));
    assert!(rig.refused(&["kernel-stages", "up"]).contains("expected kernel-stages on or"));
    let mut client = rig.client();
    client.ask(r#"{"command":"status"}"#);
    let descriptors = rig.daemon.descriptors();
    let group =
        |links| json!({"links": links, "sees_threads": true, "is_whole": true, "no_kvm": null});
    let handed = |stage: &str, why: Option<&str>, links| {
        on(&json!({"stages": [[stage, why]], "groups": [group(links)]}))
    };
    let twice = on(&json!({"stages": [["inject", null], ["inject", null]], "groups": [group(0)]}));
    let none = r#"{"command":"kernel-stages","value":"on"}"#.to_owned();
    let (reader, writer) = pipe().unwrap();
    let file = File::open("/dev/null").unwrap();
    let others: Vec<_> = [reader.as_fd(), writer.as_fd(), file.as_fd()].repeat(25);
    for (request, part) in [
        (none, "ctl NAME kernel-stages on"),
        (on(&json!(7)), "expected a JSON object"),
        (handed("wakeup", None, 3), "expected 8 descriptors"),
        (handed("wakeup", None, usize::MAX), "found 5"),
        (handed("lunch", None, 0), "expected a stage of the kernel"),
        (handed("wakeup", Some("a\nb"), 0), "without control characters"),
        (handed("wakeup", Some(&"x".repeat(300)), 0), "at most 200 bytes"),
        (twice, "expected each stage once"),
        (handed("wakeup", None, 0), "cannot be used"),
    ] {
        refused(&mut client, &request, &others[..5], part);
    }
    // The kernel closes what is more than any request needs.
    refused(&mut client, &handed("wakeup", None, 70), &others, "expected 75 descriptors");
    expect_descriptors(&rig, descriptors);

    let from_the_start = Controlled::new("reflect", &["--kernel-stages"]);
    for value in ["on", "off"] {
        let said = from_the_start.refused(&["kernel-stages", value]);
        assert!(said.contains("measured from the start on"), "{said}");
    }
}

#[test]
fn programs_that_are_not_what_they_are_said_to_be_are_refused() {
    let rig = Controlled::new("reflect", &[]);
    let mut client = rig.client();
    client.ask(r#"{"command":"status"}"#);
    let descriptors = rig.daemon.descriptors();
    let (stages, attached) = KernelStages::attach(false).unwrap();
    let (words, files) = stages.hand_over(&attached);
    let words = on(&json!(words));
    let reversed: Vec<_> = files.iter().rev().copied().collect();
    refused(&mut client, &words, &reversed, "cannot be used");
    let mut others = files.clone();
    others[0] = files[1];
    refused(&mut client, &words, &others, "expected a ring buffer");
    // Of such a map the kernel gives a value for each CPU.
    let sz = size_of::<bpf_map_create_opts>() as u64;
    let options = bpf_map_create_opts { sz, ..Default::default() };
    let each_cpu =
        MapHandle::create(MapType::PercpuArray, Some("lost"), 4, 8, 1, &options).unwrap();
    let mut others = files.clone();
    others[1] = each_cpu.as_fd();
    refused(&mut client, &words, &others, "expected a table");
    let file = File::open("/dev/null").unwrap();
    let mut others = files.clone();
    others[5] = file.as_fd();
    refused(&mut client, &words, &others, "expected links of programs");
    let answer = client.ask_with(&words, &files);
    assert!(answer["ok"].is_object(), "{answer}");
    assert!(rig.refused(&["trace", "off"]).contains("kernel stages add to the records"));
    assert_eq!(rig.asked(&["kernel-stages", "off"]), json!({ "kernel-stages": "off" }));
    rig.asked(&["trace", "off"]);
    assert!(rig.refused(&["kernel-stages", "on"]).contains("expected trace on, found off"));
    expect_descriptors(&rig, descriptors);
    let mut guest = rig.guest(GuestOptions::default());
    frames::come_back(&mut guest).unwrap();
}

#[test]
fn who_may_not_load_programs_is_told_so() {
    let directory = tempfile::tempdir().unwrap();
    fs::set_permissions(directory.path(), fs::Permissions::from_mode(0o755)).unwrap();
    std::os::unix::fs::chown(directory.path(), Some(65534), Some(65534)).unwrap();
    let rig = Controlled::in_directory(directory, "reflect", &["--user", "65534:65534"]);
    // Somebody else may not be let into the folder where it is built.
    let tool = rig.file("ringscope");
    fs::copy(program("ringscope").unwrap(), &tool).unwrap();
    let mut command = Command::new("setpriv");
    command.args(["--reuid", "65534", "--regid", "65534", "--clear-groups"]).arg(tool);
    command.args(["ctl", "--run-dir"]).arg(rig.directory.path()).args([
        "vm0",
        "kernel-stages",
        "on",
    ]);
    let output = command.output().unwrap();
    let said = String::from_utf8(output.stderr).unwrap();
    assert_eq!((output.status.code(), said.lines().count()), (Some(1), 1), "{said}");
    assert!(said.contains("run as root"), "{said}");
    // Root loads them for a daemon that is another user.
    rig.asked(&["kernel-stages", "on"]);
    let mut guest = rig.guest(GuestOptions::default());
    frames::come_back(&mut guest).unwrap();
}
