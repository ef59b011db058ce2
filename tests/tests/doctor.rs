//! What `ringscope doctor` finds on a real kernel: on this host, on a veth and on the loopback interface.

use std::fs;
use std::os::unix::fs::PermissionsExt as _;
use std::process::{Child, Command, Output};
use std::time::Duration;

use lab::outside::Outside;
use ringscope_tests::daemon::{Daemon, program};
use ringscope_tests::eventually::eventually;
use serde_json::Value;

fn doctor(arguments: &[&str]) -> Output {
    Command::new(program("ringscope").unwrap()).arg("doctor").args(arguments).output().unwrap()
}

/// The one object that a command printed which went well.
fn object(output: &Output) -> Value {
    let said = String::from_utf8_lossy(&output.stderr);
    assert!(output.status.success() && said.is_empty(), "{}: {said}", output.status);
    serde_json::from_slice(&output.stdout).unwrap()
}

fn text(output: &Output) -> String {
    assert!(output.status.success(), "{output:?}");
    String::from_utf8(output.stdout.clone()).unwrap()
}

/// What `--iface NAME --json` prints in the namespace.
fn on(outside: &Outside, name: &str) -> Value {
    let mut command = outside.command(program("ringscope").unwrap().to_str().unwrap());
    object(&command.args(["doctor", "--iface", name, "--json"]).output().unwrap())
}

fn commands(report: &Value) -> Vec<String> {
    let advice = report["advice"].as_array().unwrap().iter();
    advice.filter_map(|advice| Some(advice["command"].as_str()?.to_owned())).collect()
}

fn has(list: &Value, name: &str) -> bool {
    list.as_array().unwrap().iter().any(|found| found == name)
}

#[test]
fn the_host_is_judged_line_by_line() {
    let report = object(&doctor(&["--json"]));
    let checks = report["host"].as_array().unwrap();
    let lines = text(&doctor(&[]));
    for name in [
        "kernel",
        "machine",
        "KVM",
        "stamps",
        "clock source",
        "CPU governor",
        "C-states",
        "SMT",
        "isolated CPUs",
        "irqbalance",
        "huge pages",
        "locked memory",
        "confined QEMU",
        "real-time threads",
        "CPU quotas",
        "interrupts",
        "RPS",
        "stolen time",
    ] {
        let check = checks.iter().find(|check| check["check"] == name).expect(name);
        let verdict = check["verdict"].as_str().unwrap();
        assert!(["ok", "change", "note", "unknown"].contains(&verdict), "{check}");
        assert_eq!(check["change"].is_string(), verdict == "change", "{check}");
        let is_line = |line: &str| line.starts_with(verdict) && line.contains(name);
        assert!(lines.lines().any(is_line), "no line of {check} in:\n{lines}");
    }
    let release = fs::read_to_string("/proc/sys/kernel/osrelease").unwrap();
    assert!(checks[0]["found"].as_str().unwrap().contains(release.trim()));
}

/// One check of the host.
fn check(name: &str) -> Value {
    let report = object(&doctor(&["--json"]));
    let mut checks = report["host"].as_array().unwrap().iter();
    checks.find(|check| check["check"] == name).expect(name).clone()
}

/// A process that is killed when this is dropped.
struct Killed(Child);

impl Drop for Killed {
    fn drop(&mut self) {
        let _ = self.0.kill();
        let _ = self.0.wait();
    }
}

/// On a host with one CPU a thread cannot be moved away.
#[test]
fn a_real_time_thread_on_a_workers_cpu_is_warned_of_until_it_is_moved_away() {
    let directory = tempfile::tempdir().unwrap();
    let arguments = ["--datapath", "reflect", "--cpus", "0"];
    let _daemon = Daemon::start(directory.path(), "vm0", &arguments).unwrap();
    let mut command = Command::new("taskset");
    command.args(["-c", "0", "chrt", "-f", "17", "sleep", "60"]);
    let sleeper = Killed(command.spawn().unwrap());
    let named = format!("sleep (process {}, real-time priority 17)", sleeper.0.id());
    let warning = eventually(Duration::from_secs(10), "a warning", || {
        let check = check("real-time threads");
        let is_there = check["found"].as_str().unwrap().contains(&named);
        if is_there { Ok(check) } else { Err(check.to_string()) }
    });
    let Some(change) = warning["change"].as_str() else {
        assert!(warning["found"].to_string().contains("workers may run on every CPU"), "{warning}");
        return;
    };
    assert!(change.contains(&format!(" {}", sleeper.0.id())), "{warning}");
    let ours = change.split("; ").find(|part| part.ends_with(&format!(" {}", sleeper.0.id())));
    assert!(Command::new("sh").args(["-c", ours.unwrap()]).output().unwrap().status.success());
    let after = check("real-time threads");
    assert!(!after["found"].as_str().unwrap().contains(&named), "{after}");
}

#[test]
fn on_a_veth_the_advice_is_given_until_it_is_taken() {
    let outside = Outside::new("doctor").unwrap();
    outside
        .exec("ip link add near mtu 9500 type veth peer name far && ip link set far up")
        .unwrap();
    outside.exec("ip tuntap add dev tun0 mode tun").unwrap();
    let why = on(&outside, "tun0")["advice"][0]["why"].to_string();
    assert!(why.contains("no Ethernet frames"), "{why}");
    let before = on(&outside, "near");
    let interface = &before["interface"];
    assert_eq!((&interface["driver"], &interface["virtual"]), (&"veth".into(), &true.into()));
    assert_eq!((&interface["mtu"], &interface["peer"]), (&9500.into(), &"far".into()));
    assert_eq!((&interface["up"], &interface["rx_queues"]), (&false.into(), &1.into()));
    let features = &interface["xdp_features"];
    for action in ["basic", "redirect", "rx-sg"] {
        assert!(has(&features["actions"], action), "no {action} in {features}");
    }
    assert!(!has(&features["actions"], "xsk-zerocopy"));
    assert!(has(&features["receive_metadata"], "timestamp"));
    assert_eq!(interface["offloads"]["tx-checksum-ip-generic"]["on"], true);
    assert_eq!(before["datapath"], "--datapath af-xdp:ifname=near");

    let advice = commands(&before);
    let mut expected = vec!["ip link set dev near up", "ip link set dev near mtu 9000"];
    // Linux before 6.8: frames come without their tags.
    if !has(&features["receive_metadata"], "vlan-tag") {
        expected.push("ethtool -K far tx-vlan-hw-insert off");
    }
    expected.push("ethtool -K far tx-checksum-ip-generic off");
    assert_eq!(advice, expected);
    outside.exec(&advice.join(" && ")).unwrap();
    let after = on(&outside, "near");
    assert_eq!(after["advice"], Value::Array(Vec::new()));
    assert_eq!(
        (&after["interface"]["up"], &after["interface"]["mtu"]),
        (&true.into(), &9000.into())
    );

    // Redirected frames are taken only where the other end has NAPI, which GRO turns on.
    assert!(!has(&features["actions"], "ndo-xmit"));
    outside.exec("ethtool -K far gro on").unwrap();
    let with_napi = on(&outside, "near");
    assert!(has(&with_napi["interface"]["xdp_features"]["actions"], "ndo-xmit"), "{with_napi}");
}

#[test]
fn a_bridge_and_a_peer_in_another_namespace_are_reported() {
    let outside = Outside::new("doctor").unwrap();
    // Its other end is in the root namespace, where it is part of a bridge.
    let inner = on(&outside, "eth0");
    assert_eq!(
        (&inner["interface"]["driver"], &inner["interface"]["peer"]),
        (&"veth".into(), &Value::Null)
    );
    let found = fs::read_dir(format!("/sys/class/net/{}/brif", outside.bridge())).unwrap().next();
    let member = found.unwrap().unwrap().file_name().into_string().unwrap();
    let outer = object(&doctor(&["--iface", &member, "--json"]));
    assert_eq!(outer["interface"]["master"], outside.bridge());
    assert!(commands(&outer).contains(&format!("ip link set dev {member} nomaster")));
}

#[test]
fn the_loopback_interface_has_the_generic_mode_alone() {
    let report = object(&doctor(&["--iface", "lo", "--json"]));
    let interface = &report["interface"];
    assert_eq!((&interface["name"], &interface["virtual"]), (&"lo".into(), &true.into()));
    assert_eq!((&interface["driver"], &interface["device"]), (&Value::Null, &Value::Null));
    assert_eq!(interface["xdp_features"]["actions"], Value::Array(Vec::new()));
    assert_eq!(report["datapath"], "--datapath af-xdp:ifname=lo,mode=generic");
    let lines = text(&doctor(&["--iface", "lo"]));
    assert!(lines.contains("\nXDP            generic only"), "{lines}");
    assert!(
        lines.ends_with("Then: ringscoped --socket-path /run/ringscope/vm0.sock --datapath af-xdp:ifname=lo,mode=generic\n"),
        "{lines}"
    );
}

#[test]
fn an_interface_that_is_not_there_is_one_sentence() {
    for name in ["rs-none", "a-name-that-is-too-long", ""] {
        let output = doctor(&["--iface", name, "--json"]);
        let said = String::from_utf8(output.stderr).unwrap();
        assert_eq!(output.status.code(), Some(1), "{said}");
        assert!(output.stdout.is_empty() && said.lines().count() == 1, "{said}");
        assert!(said.contains(&format!("found no '{name}'")), "{said}");
    }
    assert_eq!(doctor(&["--speed", "9"]).status.code(), Some(2));
}

/// As another user, with a copy of the program, because directories above it may be root's alone.
#[test]
fn it_needs_no_root() {
    let directory = tempfile::tempdir().unwrap();
    fs::set_permissions(directory.path(), fs::Permissions::from_mode(0o755)).unwrap();
    let copy = directory.path().join("ringscope");
    fs::copy(program("ringscope").unwrap(), &copy).unwrap();
    let as_nobody = |arguments: &[&str]| {
        let mut command = Command::new("setpriv");
        command.args(["--reuid", "65534", "--regid", "65534", "--clear-groups", "--"]);
        object(&command.arg(&copy).arg("doctor").args(arguments).output().unwrap())
    };
    assert!(as_nobody(&["--json"])["host"].is_array());
    let lo = as_nobody(&["--iface", "lo", "--json"]);
    assert_eq!(lo["interface"]["memlock"]["exempt"], false);
    assert!(lo["interface"]["xdp_features"].is_object());
}
