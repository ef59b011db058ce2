//! What a run needs of the kernel's privileges: what `--print-privileges` says is enough, and nothing of it can be left out.

use std::fs;
use std::os::unix::fs::{PermissionsExt as _, chown};
use std::path::Path;
use std::process::{Command, Stdio};
use std::thread::sleep;
use std::time::{Duration, Instant};

use ringscope_tests::cable::Cable;
use ringscope_tests::daemon::program;
use ringscope_tests::eventually::SOON;
use rustix::process::{Pid, Signal, kill_process};

/// A user without a name.
const USER: u32 = 4711;

/// The capabilities that the daemon names for these flags.
fn named(arguments: &[&str]) -> Vec<String> {
    let mut command = Command::new(program("ringscoped").unwrap());
    let output = command
        .args(["--print-privileges", "--socket-path", "/nowhere/vm0.sock"])
        .args(arguments)
        .output()
        .unwrap();
    assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
    let text = String::from_utf8(output.stdout).unwrap();
    let names = text.lines().filter_map(|line| line.split_whitespace().next());
    names.filter(|name| name.starts_with("CAP_")).map(str::to_owned).collect()
}

/// Whether a daemon with these flags starts as a user with these capabilities and no others, and what it says if not.
fn starts(directory: &Path, arguments: &[&str], capabilities: &[String]) -> Result<(), String> {
    let names = capabilities.iter().map(|name| name.trim_start_matches("CAP_").to_lowercase());
    let set = names.fold("-all".to_owned(), |set, name| format!("{set},+{name}"));
    let run = directory.join("run");
    let _ = fs::remove_dir_all(&run);
    fs::create_dir(&run).unwrap();
    chown(&run, Some(USER), Some(USER)).unwrap();
    let log = fs::File::create(directory.join("log")).unwrap();
    // Without the capability, little memory can be locked.
    let mut command = Command::new("prlimit");
    command.args([
        "--memlock=65536:65536",
        "setpriv",
        "--reuid",
        "4711",
        "--regid",
        "4711",
        "--clear-groups",
    ]);
    command.args(["--inh-caps", &set, "--ambient-caps", &set]);
    command.arg(directory.join("ringscoped")).args(arguments).arg("--run-dir").arg(&run);
    command.arg("--socket-path").arg(run.join("vm0.sock"));
    let mut daemon = command.stdin(Stdio::null()).stderr(log).spawn().unwrap();
    let said = || fs::read_to_string(directory.join("log")).unwrap();
    let begun = Instant::now();
    let started = loop {
        if said().contains("recording to") {
            break Ok(());
        }
        if daemon.try_wait().unwrap().is_some() || begun.elapsed() > SOON {
            break Err(said());
        }
        sleep(Duration::from_millis(1));
    };
    let _ = kill_process(Pid::from_child(&daemon), Signal::TERM);
    daemon.wait().unwrap();
    started
}

fn expect_exactly_what_is_named(directory: &Path, arguments: &[&str]) {
    let named = named(arguments);
    if let Err(why) = starts(directory, arguments, &named) {
        panic!("{arguments:?} with {named:?}: {why}");
    }
    for n in 0..named.len() {
        let mut fewer = named.clone();
        let without = fewer.remove(n);
        let it = starts(directory, arguments, &fewer);
        assert!(it.is_err(), "{arguments:?} starts without {without}");
    }
}

#[test]
fn what_is_named_is_enough_and_nothing_of_it_can_be_left_out() {
    let directory = tempfile::tempdir().unwrap();
    let directory = directory.path();
    fs::set_permissions(directory, fs::Permissions::from_mode(0o755)).unwrap();
    // This copy can be executed by any user.
    fs::copy(program("ringscoped").unwrap(), directory.join("ringscoped")).unwrap();
    let cable = Cable::new();
    let (macvtap, _) = cable.add_macvtap();
    let [tap, owned] = ["rpt0", "rpt1"];
    let ip = |words: &str| {
        let done = Command::new("ip").args(words.split(' ')).status().unwrap();
        assert!(done.success(), "ip {words}");
    };
    ip(&format!("tuntap add dev {tap} mode tap vnet_hdr"));
    ip(&format!("tuntap add dev {owned} mode tap vnet_hdr user 4712"));
    let own = std::panic::catch_unwind(|| {
        let [tap, owned] = [tap, owned].map(|name| format!("tap:ifname={name}"));
        let macvtap = format!("macvtap:ifname={macvtap}");
        let made = format!("macvtap:ifname=rpm0,over={}", cable.interface());
        let af_xdp = format!("af-xdp:ifname={},mode=generic", cable.interface());
        for arguments in [
            &["--datapath", "reflect"][..],
            &["--datapath", "reflect", "--sched", "fifo:1"],
            &["--datapath", "reflect", "--socket-group", "4712"],
            &["--datapath", "reflect", "--socket-user", "4712"],
            &["--datapath", &tap],
            &["--datapath", &owned],
            &["--datapath", &tap, "--kernel-stages"],
            &["--datapath", &macvtap],
            &["--datapath", &made],
            &["--datapath", &af_xdp],
        ] {
            expect_exactly_what_is_named(directory, arguments);
        }
    });
    ip(&format!("link del {tap}"));
    ip(&format!("link del {owned}"));
    own.unwrap_or_else(|panic| std::panic::resume_unwind(panic));
}
