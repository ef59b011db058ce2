//! A guest that is stopped, saved and started again, in the same QEMU or in another.

use std::fs;
use std::process::Command;
use std::thread::sleep;
use std::time::{Duration, Instant};

use lab::guest::GuestOptions;
use ringscope_tests::migration::{Berth, berth_of, line_of, migrate};
use ringscope_tests::monitor::Monitor;
use ringscope_tests::qemu::{Failure, Place, SOON, said};
use ringscope_tests::traffic;
use serde_json::{Value, json};

/// Longest time for a snapshot.
const SAVED: Duration = Duration::from_secs(60);

/// A guest with split or packed rings on a tap. With packed ones its records are saved with it.
fn guest(packed: bool) -> Result<Place, Failure> {
    let mut place = Place::new(1)?;
    place.spawn(&["--device-state", if packed { "on" } else { "off" }])?;
    let options = place.options()?;
    place.attach(GuestOptions { packed, memory_mib: 256, ..options })?;
    traffic::everything_a_little(&mut place)?;
    Ok(place)
}

#[test]
fn a_guest_that_is_stopped_goes_on() -> Result<(), Failure> {
    for packed in [false, true] {
        let mut place = guest(packed)?;
        let mut monitor = Monitor::connect(&place)?;
        for _ in 0..3 {
            monitor.execute("stop", &json!({}))?;
            sleep(Duration::from_millis(200));
            monitor.execute("cont", &json!({}))?;
            traffic::everything_a_little(&mut place)?;
        }
    }
    Ok(())
}

/// Runs a job of QEMU's to its end.
fn job(monitor: &mut Monitor, command: &str, arguments: &Value) -> Result<(), Failure> {
    monitor.execute(command, arguments)?;
    let began = Instant::now();
    loop {
        let jobs = monitor.execute("query-jobs", &json!({}))?;
        let it = jobs.as_array().and_then(|jobs| jobs.iter().find(|it| it["id"] == "job"));
        let it = it.ok_or_else(|| format!("no job in {jobs}"))?.clone();
        if it["status"] == "concluded" {
            monitor.execute("job-dismiss", &json!({"id": "job"}))?;
            return it["error"].as_str().map_or(Ok(()), |error| Err(error.to_owned().into()));
        }
        if began.elapsed() > SAVED {
            return Err(format!("it takes too long: {jobs}").into());
        }
        sleep(Duration::from_millis(20));
    }
}

#[test]
fn a_guest_goes_back_to_a_snapshot() -> Result<(), Failure> {
    for packed in [false, true] {
        let mut place = guest(packed)?;
        let image = place.directory().join("disk.qcow2").display().to_string();
        said(Command::new("qemu-img").args(["create", "-f", "qcow2", &image, "1G"]))?;
        let mut monitor = Monitor::connect(&place)?;
        let file = json!({"driver": "file", "filename": image});
        let disk = json!({"driver": "qcow2", "node-name": "disk", "file": file});
        monitor.execute("blockdev-add", &disk)?;
        let snapshot =
            json!({"job-id": "job", "tag": "before", "vmstate": "disk", "devices": ["disk"]});
        job(&mut monitor, "snapshot-save", &snapshot)?;
        traffic::everything_a_little(&mut place)?;
        for _ in 0..2 {
            job(&mut monitor, "snapshot-load", &snapshot)?;
            let state = monitor.execute("query-status", &json!({}))?;
            if state["running"] != true {
                monitor.execute("cont", &json!({}))?;
            }
            traffic::everything_a_little(&mut place)?;
        }
    }
    Ok(())
}

#[test]
fn a_guest_in_a_file_goes_on_in_another_qemu() -> Result<(), Failure> {
    for packed in [false, true] {
        let mut place = guest(packed)?;
        let file = place.directory().join("state");
        let uri = format!("exec:cat > {}", file.display());
        migrate(&mut Monitor::connect(&place)?, &uri)?;
        assert!(fs::metadata(&file)?.len() > 1 << 20, "the guest is not in {}", file.display());
        let here = berth_of(&place);
        let there = Berth { directory: place.directory().join("later"), ..here.clone() };
        let line = line_of(place.guest().pid())?;
        // A back end has one front end at a time.
        place.guest().kill()?;
        let mut process = there.await_guest_of(&here, line, &[])?;
        let uri = json!({"uri": format!("exec:cat {}", file.display())});
        let mut monitor = there.monitor()?;
        monitor.execute("migrate-incoming", &uri)?;
        let began = Instant::now();
        while monitor.execute("query-status", &json!({}))?["running"] != true {
            assert!(began.elapsed() < SOON, "{}", process.log_tail(2000));
            sleep(Duration::from_millis(20));
        }
        let went = traffic::everything_a_little(&mut place);
        let serial = fs::read_to_string(there.directory.join("serial.log"))?;
        went.map_err(|error| format!("{error}; the guest's kernel: {serial:?}"))?;
        // It is the same guest, which says nothing, and not one that boots.
        assert_eq!(serial.trim(), "");
        assert!(process.ended()?.is_none(), "{}", process.log_tail(2000));
    }
    Ok(())
}
