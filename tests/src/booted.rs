//! A Debian system with systemd, made by debootstrap and booted by systemd-nspawn: [`Booted`].

use std::fs;
use std::io;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Output, Stdio};
use std::time::Duration;

use rustix::process::{Pid, Signal, kill_process};

use crate::eventually::eventually;

/// Debian's release in it.
const SUITE: &str = "bookworm";
const MIRROR: &str = "http://deb.debian.org/debian";
const PACKAGES: &str = "systemd,systemd-sysv,dbus,man-db,iproute2,procps,libelf1,zlib1g";
/// Time that it has to boot, and to halt.
const BOOTED: Duration = Duration::from_secs(120);

/// A booted system with a network of its own, in which everything can be written. It is gone when this is dropped.
#[derive(Debug)]
pub struct Booted {
    nspawn: Child,
    leader: u32,
    root: tempfile::TempDir,
}

impl Booted {
    /// Makes a copy of a fresh system, which is fetched once, and boots it.
    ///
    /// # Errors
    /// When debootstrap or the boot fails; the message has what they said.
    pub fn new() -> io::Result<Self> {
        let fresh = fresh_system()?;
        let root = tempfile::tempdir()?;
        let system = root.path().join("system");
        run(Command::new("cp").args(["-a", "--reflink=auto"]).arg(fresh).arg(&system))?;
        let log = fs::File::create(root.path().join("console"))?;
        // Without a systemd here that it would be registered with.
        let nspawn = Command::new("systemd-nspawn")
            .args([
                "-q",
                "--register=no",
                "--keep-unit",
                "--private-network",
                "--bind=/dev/net/tun",
                "-b",
                "-D",
            ])
            .arg(&system)
            .stdin(Stdio::null())
            .stdout(log.try_clone()?)
            .stderr(log)
            .spawn()?;
        let mut booted = Self { nspawn, leader: 0, root };
        booted.leader =
            eventually(BOOTED, "systemd to boot", || booted.find_leader().ok_or("nothing"));
        eventually(BOOTED, "the system to be up", || {
            let state =
                booted.run("systemctl is-system-running").map_err(|error| error.to_string())?;
            // A container lacks what some of its own services need.
            if ["running", "degraded"].contains(&state.trim()) { Ok(()) } else { Err(state) }
        });
        Ok(booted)
    }

    /// The process of systemd, once it runs.
    fn find_leader(&self) -> Option<u32> {
        let nspawn = self.nspawn.id();
        let children = fs::read_to_string(format!("/proc/{nspawn}/task/{nspawn}/children")).ok()?;
        let leader = children.split_whitespace().next()?.parse().ok()?;
        let program = fs::read_link(format!("/proc/{leader}/exe")).ok()?;
        program.ends_with("systemd").then_some(leader)
    }

    /// Where a path of the system is for this one.
    pub fn path(&self, path: &str) -> PathBuf {
        PathBuf::from(format!("/proc/{}/root{path}", self.leader))
    }

    /// Runs a command of the shell in it, and returns what it prints on standard output and standard error.
    ///
    /// # Errors
    /// When it cannot be run.
    pub fn run(&self, command: &str) -> io::Result<String> {
        let Output { stdout, stderr, .. } = self.shell(command).output()?;
        Ok(String::from_utf8_lossy(&[stdout, stderr].concat()).into_owned())
    }

    /// The same, as a command that must end well.
    ///
    /// # Errors
    /// When it does not; the message has what it said, and the end of the journal.
    pub fn must(&self, command: &str) -> io::Result<String> {
        let output = self.shell(command).output()?;
        let said = String::from_utf8_lossy(&[output.stdout, output.stderr].concat()).into_owned();
        if output.status.success() {
            return Ok(said);
        }
        let journal = self.run("journalctl --no-pager -o cat -n 20")?;
        Err(io::Error::other(format!("{command}: {said}; the journal:\n{journal}")))
    }

    fn shell(&self, command: &str) -> Command {
        let mut shell = Command::new("nsenter");
        shell.args(["-t", &self.leader.to_string(), "-a", "--"]);
        shell.args(["env", "-i", "PATH=/usr/bin:/usr/sbin", "TERM=dumb", "sh", "-c", command]);
        shell.stdin(Stdio::null());
        shell
    }
}

impl Drop for Booted {
    /// Halts it; what does not halt is killed.
    fn drop(&mut self) {
        let halt = self.shell("systemctl halt --force").output();
        if halt.is_err()
            && let Ok(leader) = i32::try_from(self.leader)
            && let Some(leader) = Pid::from_raw(leader)
        {
            let _ = kill_process(leader, Signal::KILL);
        }
        for _ in 0..100 {
            if matches!(self.nspawn.try_wait(), Ok(Some(_))) {
                return;
            }
            std::thread::sleep(Duration::from_millis(100));
        }
        let _ = self.nspawn.kill();
        let _ = self.nspawn.wait();
        log_left(self.root.path());
    }
}

fn log_left(root: &Path) {
    let console = fs::read_to_string(root.join("console")).unwrap_or_default();
    eprintln!("the system did not halt; its console:\n{console}");
}

fn fresh_system() -> io::Result<PathBuf> {
    let cache = Path::new(env!("CARGO_MANIFEST_DIR")).join("../target/packages");
    let root = cache.join(format!("system-{SUITE}"));
    if root.exists() {
        return Ok(root);
    }
    fs::create_dir_all(&cache)?;
    let part = tempfile::tempdir_in(&cache)?;
    let system = part.path().join("system");
    let include = format!("--include={PACKAGES}");
    run(Command::new("debootstrap")
        .args(["--variant=minbase", &include, SUITE])
        .arg(&system)
        .arg(MIRROR))?;
    fs::rename(&system, &root)?;
    Ok(root)
}

fn run(command: &mut Command) -> io::Result<()> {
    let output = command.stdin(Stdio::null()).output()?;
    if output.status.success() {
        return Ok(());
    }
    let said = String::from_utf8_lossy(&[output.stdout, output.stderr].concat()).into_owned();
    Err(io::Error::other(format!("{command:?}: {said}")))
}
