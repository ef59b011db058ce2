//! `--guest-stages` in the kernel of this machine, over its loopback interface. (`qemu_journeys.rs` has a guest's kernel.)

use std::path::{Path, PathBuf};
use std::process::{Command, Output};

use lab::process::Process;
use report::journey::stamps::{GuestStages, Stamps};
use ringscope_tests::daemon::program;
use ringscope_tests::eventually::{eventually, when};
use ringscope_tests::qemu::{Failure, SOON, said};

const PROBES: usize = 200;

/// Sends probes to an echo over loopback. Both ends stamp them. Returns the files of the sender and of the echo.
fn exchange(directory: &Path, mode: &str) -> Result<[PathBuf; 2], Failure> {
    // No other test has this address.
    let address = "127.77.0.1:7010";
    let files = ["ping.csv", "echo.csv"].map(|name| directory.join(name));
    let agent = |order: &[&str], file: &Path| {
        let mut command = Command::new(program("ringscope")?);
        command.arg("agent").args(order).arg("--guest-stages").arg("--stamps").arg(file);
        Ok::<_, Failure>(command)
    };
    let echo = &mut agent(&["udp-echo", "--bind", address, "--timeout", "60"], &files[1])?;
    let _echo = Process::spawn(echo, &directory.join("echo.log"))?;
    eventually(SOON, "the echo's file", || when(files[1].exists(), "none"));
    let count = PROBES.to_string();
    said(&mut agent(&["udp-ping", address, "--mode", mode, "--count", &count], &files[0])?)?;
    let echoed = || std::fs::read_to_string(&files[1]).unwrap_or_default().lines().count();
    eventually(SOON, "the echo's stamps", || when(echoed() > PROBES, echoed()));
    Ok(files)
}

#[test]
fn both_ends_stamp_how_their_kernel_receives_a_probe() -> Result<(), Failure> {
    for mode in ["open", "closed"] {
        let directory = tempfile::tempdir()?;
        for file in exchange(directory.path(), mode)? {
            let stamps = Stamps::read(&file)?;
            assert_eq!(stamps.guest_stages, GuestStages::Stamped, "{}", file.display());
            assert!(stamps.probes.len() >= PROBES);
            let mut slept = 0;
            for stamp in stamps.probes.values() {
                // No device interrupts for a packet over loopback.
                let stages = stamp.stages;
                assert_eq!(stages.interrupt, None, "{stamp:?}");
                let seen = [stages.softirq, stages.woken, stages.running, stamp.received];
                assert!(seen.iter().flatten().is_sorted(), "{stamp:?}");
                slept += usize::from(seen.iter().all(Option::is_some));
            }
            // The application waits for nearly each probe, on an idle machine.
            assert!(slept >= PROBES / 2, "{mode}, {}: {slept} of {PROBES}", file.display());
        }
    }
    Ok(())
}

#[test]
fn where_the_kernel_cannot_be_traced_the_other_stamps_are_taken_and_one_line_says_why()
-> Result<(), Failure> {
    let directory = tempfile::tempdir()?;
    let address = "127.77.0.2:7010";
    let mut echo = Command::new(program("ringscope")?);
    echo.args(["agent", "udp-echo", "--bind", address, "--timeout", "60"]);
    let _echo = Process::spawn(&mut echo, &directory.path().join("echo.log"))?;
    let file = directory.path().join("ping.csv");
    // The programs do not know the threads of another PID namespace.
    let mut ping = Command::new("unshare");
    ping.args(["--pid", "--fork", "--mount-proc"]).arg(program("ringscope")?);
    ping.args(["agent", "udp-ping", address, "--count", "50", "--guest-stages", "--stamps"]);
    let Output { status, stderr, .. } = ping.arg(&file).output()?;
    let said = String::from_utf8(stderr)?;
    assert!(status.success(), "{said}");
    let reason = "the kernel's programs do not know threads of this PID namespace";
    assert_eq!(
        said,
        format!("ringscope: guest stages n/a: {reason}; the other stamps are taken\n")
    );
    let stamps = Stamps::read(&file)?;
    assert_eq!(stamps.guest_stages, GuestStages::NotAvailable(reason.into()));
    assert_eq!(stamps.probes.len(), 50);
    assert!(stamps.probes.values().all(|stamp| stamp.received_kernel.is_some()));
    Ok(())
}
