//! Recorders that somebody truncates, under the daemon that writes them and under those who read them.

use std::fs::OpenOptions;
use std::os::unix::process::ExitStatusExt as _;
use std::process::{Command, Stdio};
use std::thread::sleep;
use std::time::Duration;

use frontend::{Guest, GuestOptions};
use ringscope_tests::daemon::{Daemon, program};
use ringscope_tests::eventually::{SOON, eventually, when};
use ringscope_tests::frames;

fn truncate(path: &std::path::Path) {
    OpenOptions::new().write(true).open(path).unwrap().set_len(0).unwrap();
}

#[test]
fn a_recorder_that_is_truncated_costs_its_trace_and_no_traffic() {
    let directory = tempfile::tempdir().unwrap();
    let arguments = ["--datapath", "reflect", "--metrics", "127.0.0.1:0"];
    let mut daemon = Daemon::start(directory.path(), "cut", &arguments).unwrap();
    let mut guest = Guest::connect(daemon.socket(), GuestOptions::default()).unwrap();
    frames::come_back(&mut guest).unwrap();
    truncate(daemon.recorder());
    for _ in 0..5 {
        frames::come_back(&mut guest).unwrap();
    }
    eventually(SOON, "a message that the recorder was truncated", || {
        frames::come_back(&mut guest).unwrap();
        let log = daemon.log();
        when(log.contains("the flight recorder was truncated"), log)
    });
    assert!(daemon.is_alive(), "{}", daemon.log());
    assert_eq!(daemon.log().matches("was truncated").count(), 1, "{}", daemon.log());
    let ended = daemon.terminate(Duration::from_secs(2)).unwrap();
    assert!(ended.success(), "{ended}: {}", daemon.log());
}

#[test]
fn readers_of_a_truncated_recorder_say_so() {
    for arguments in [&["record", "--seconds", "2", "-o"][..], &["top", "--json"], &["stats"]] {
        let directory = tempfile::tempdir().unwrap();
        let daemon = Daemon::start(directory.path(), "cut", &["--datapath", "reflect"]).unwrap();
        let mut guest = Guest::connect(daemon.socket(), GuestOptions::default()).unwrap();
        frames::come_back(&mut guest).unwrap();
        let is_endless = arguments[0] == "top";
        let mut command = Command::new(program("ringscope").unwrap());
        command.args(arguments);
        if arguments.ends_with(&["-o"]) {
            command.arg(directory.path().join("out.rec"));
        }
        command.arg("--run-dir").arg(directory.path());
        command.stdout(Stdio::null()).stderr(Stdio::piped());
        let mut reader = command.spawn().unwrap();
        sleep(Duration::from_millis(500));
        truncate(daemon.recorder());
        if is_endless {
            // Some intervals of a second.
            sleep(Duration::from_secs(2));
            let pid = rustix::process::Pid::from_child(&reader);
            let _ = rustix::process::kill_process(pid, rustix::process::Signal::INT);
        }
        eventually(2 * SOON, &format!("{arguments:?} to end"), || {
            when(reader.try_wait().unwrap().is_some(), "that it runs")
        });
        let output = reader.wait_with_output().unwrap();
        let said = String::from_utf8_lossy(&output.stderr).into_owned();
        let status = output.status;
        assert_eq!(status.signal(), None, "{arguments:?} ends by a signal: {said}");
        if arguments[0] == "record" {
            assert_eq!(status.code(), Some(1), "{said}");
            assert!(said.contains("was shortened"), "{said}");
        }
    }
}
