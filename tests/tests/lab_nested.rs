//! `ringscope lab --nested`: a variant that this kernel cannot have runs in an emulated machine, its figures stand apart, and
//! the machine ends with the lab, whatever ends that.

use std::fs;
use std::io::{BufRead as _, BufReader};
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Output, Stdio};
use std::time::Duration;

use lab::Signal;
use ringscope_tests::daemon::program;
use ringscope_tests::eventually::{eventually, when};
use rustix::process::{Pid, kill_process};
use serde_json::Value;

/// Time for the kernel's package to be downloaded and unpacked, if nobody has done it yet.
const STARTED: Duration = Duration::from_secs(300);
/// Time for everything to end.
const ENDED: Duration = Duration::from_secs(20);

/// `ringscope lab` with two variants in the machine, which keeps everything in `kept`.
fn lab(kept: &Path, temporary: &Path) -> Command {
    let scripts = Path::new(env!("CARGO_MANIFEST_DIR")).join("../qemu-scripts");
    let mut command = Command::new(program("ringscope").unwrap());
    command.args([
        "lab",
        "--quick",
        "--nested",
        "--variants",
        "host-host,vhost-net",
        "--count",
        "50",
    ]);
    command.args(["--kernel-stages", "off", "--out"]).arg(kept);
    command.env("RINGSCOPE_QEMU_SCRIPTS", scripts).env("TMPDIR", temporary);
    command
}

fn text_of(output: &Output) -> String {
    String::from_utf8_lossy(&output.stdout).into_owned() + &String::from_utf8_lossy(&output.stderr)
}

/// Processes with this directory on their command line, or in it: their numbers and command lines.
fn processes_of(kept: &Path) -> Vec<(i32, String)> {
    let entries = fs::read_dir("/proc").unwrap().flatten();
    let line = |it: fs::DirEntry| {
        let process = it.file_name().to_str()?.parse().ok()?;
        let line = fs::read(it.path().join("cmdline")).ok()?;
        let line = String::from_utf8_lossy(&line).replace('\0', " ");
        line.contains(kept.to_str().unwrap()).then_some((process, line))
    };
    entries.filter_map(line).collect()
}

/// The emulated machine.
fn machine_of(kept: &Path) -> Pid {
    let all = processes_of(kept);
    let machine = all.iter().find(|(_, line)| line.starts_with("qemu-system"));
    Pid::from_raw(machine.expect("a machine").0).unwrap()
}

fn expect_nothing_left(kept: &Path, temporary: &Path, after: &str) {
    eventually(ENDED, &format!("no process left after {after}"), || {
        let left = processes_of(kept);
        when(left.is_empty(), format!("{left:?}"))
    });
    eventually(ENDED, &format!("no file left after {after}"), || {
        let left: Vec<PathBuf> =
            fs::read_dir(temporary).unwrap().flatten().map(|it| it.path()).collect();
        when(left.is_empty(), format!("{left:?}"))
    });
}

/// Starts the lab, and waits until its machine runs.
fn started(kept: &Path, temporary: &Path) -> Child {
    let mut command = lab(kept, temporary);
    let mut child = command.stdout(Stdio::null()).stderr(Stdio::null()).spawn().unwrap();
    eventually(STARTED, "a running machine", || {
        assert!(child.try_wait().unwrap().is_none(), "the lab has ended");
        let all = processes_of(kept);
        let is_there = all.iter().any(|(_, line)| line.starts_with("qemu-system"));
        when(is_there, format!("{all:?}"))
    });
    child
}

#[test]
fn a_variant_that_needs_another_kernel_is_measured_in_a_machine_that_ends_with_the_lab() {
    let directory = tempfile::tempdir().unwrap();
    let temporary = directory.path().join("temporary");
    fs::create_dir(&temporary).unwrap();

    for (signal, code) in [(Signal::INT, Some(130)), (Signal::KILL, None)] {
        let kept = directory.path().join(format!("{signal:?}"));
        let mut child = started(&kept, &temporary);
        kill_process(Pid::from_child(&child), signal).unwrap();
        let status =
            eventually(ENDED, "the lab's end", || child.try_wait().unwrap().ok_or("that it runs"));
        assert_eq!(status.code(), code, "{signal:?}");
        expect_nothing_left(&kept, &temporary, &format!("{signal:?}"));
    }

    let kept = directory.path().join("kept");
    let mut command = lab(&kept, &temporary);
    command.arg("--json").stdout(Stdio::piped()).stderr(Stdio::piped());
    let mut child = command.spawn().unwrap();
    let said = child.stderr.take().unwrap();
    // The first machine ends in the middle of its work, as an emulated one may by itself.
    let mut killed = false;
    let mut progress = Vec::new();
    for line in BufReader::new(said).lines() {
        let line = line.unwrap();
        if line.contains("vhost-net: building it") && !std::mem::replace(&mut killed, true) {
            kill_process(machine_of(&kept), Signal::KILL).unwrap();
        }
        progress.push(line);
    }
    let output = child.wait_with_output().unwrap();
    let progress = progress.join("\n");
    assert!(output.status.success(), "{progress}");
    expect_nothing_left(&kept, &temporary, "a run");
    for part in ["another one measures what is left: vhost-net", "vhost-net: measuring"] {
        assert!(progress.contains(part), "{progress}");
    }
    let results: Value = serde_json::from_slice(&output.stdout).unwrap();
    assert_eq!(results["rows"].as_array().unwrap().len(), 0, "nothing runs on this host");
    let row_of = |variant: &str| {
        let rows = results["nested"]["rows"].as_array().unwrap();
        rows.iter().find(|it| it["variant"] == variant).unwrap().clone()
    };
    let row = row_of("vhost-net");
    assert_eq!(row["sent"], 50);
    assert_ne!(results["nested"]["host"]["kernel"], results["host"]["kernel"]);
    // The card has time stamps for some packets only, and isochron asks for those of all.
    let host_host = row_of("host-host");
    let others = host_host["others"].as_array().unwrap();
    let isochron = others.iter().find(|it| it["probe"] == "isochron").unwrap();
    assert_eq!((&isochron["sent"], &isochron["trouble"]), (&50.into(), &Value::Null), "{isochron}");
    // The kernel's thread has carried every probe.
    let proof = kept.join("nested/vhost-net/1/none/proof.json");
    let proof: Value = serde_json::from_slice(&fs::read(proof).unwrap()).unwrap();
    let places = proof.as_array().unwrap();
    let answered = 50 - row["lost"].as_u64().unwrap();
    for place in ["vhost-net.tx", "vhost-net.rx"] {
        let passed = places.iter().find(|it| it["place"] == place).unwrap();
        assert!(passed["frames"].as_u64().unwrap() >= answered, "{proof}");
    }
    let report = |format: &str| {
        let mut command = Command::new(program("ringscope").unwrap());
        let output = command.args(["lab", "report", "--format", format]).arg(&kept).output();
        let output = output.unwrap();
        assert!(output.status.success(), "{}", text_of(&output));
        text_of(&output)
    };
    let table = report("table");
    assert!(table.contains("functional figures") && table.contains("vhost-net"), "{table}");
    assert!(report("html").contains("In an emulated machine"));
    assert_eq!(serde_json::from_str::<Value>(&report("json")).unwrap(), results);
}
