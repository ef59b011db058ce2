//! A second QEMU, to which the guest of a [`Place`] moves, with a daemon and a tap of its own on the same bridge.
//!
//! ```text
//! outside 10.77.0.1 - bridge - tap - ringscoped vm0 === QEMU  the guest, before
//!                          \-- tap - ringscoped vm1 === QEMU  the same guest, after
//! ```

use std::fs::{self, File};
use std::os::unix::fs::FileExt as _;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::thread::sleep;
use std::time::{Duration, Instant};

use lab::process::Process;
use serde_json::{Value, json};

use crate::daemon::Daemon;
use crate::monitor::Monitor;
use crate::qemu::{Failure, Place, SOON, said};

/// The daemon's name at the target.
const NAME: &str = "vm1";
/// Bytes of a page, for which the dirty log has a bit.
const PAGE: usize = 4096;
/// Least memory of a guest, bytes.
const MEMORY_MIN: u64 = 64 << 20;
/// The words with which a QEMU waits for a guest.
const WAITS: [&str; 2] = ["-incoming", "defer"];
/// Longest a migration may take, on a machine that is busy.
const MIGRATED: Duration = Duration::from_secs(120);
/// Time between two looks at a migration.
const LOOK: Duration = Duration::from_millis(20);

/// What belongs to one QEMU alone.
#[derive(Clone, Debug)]
pub struct Berth {
    /// The directory of its sockets and logs: `serial.log` has what the guest's kernel says.
    pub directory: PathBuf,
    /// Its back end's socket.
    pub socket: PathBuf,
}

impl Berth {
    /// Starts a QEMU here with the command line of process `pid`, which is a QEMU at `other`, and with `more` words. It waits
    /// for a guest.
    ///
    /// # Errors
    /// When it does not start.
    pub fn await_guest(&self, other: &Self, pid: u32, more: &[&str]) -> Result<Process, Failure> {
        self.await_guest_of(other, line_of(pid)?, more)
    }

    /// The same with a command line that [`line_of`] has read.
    ///
    /// # Errors
    /// As [`await_guest`](Self::await_guest).
    pub fn await_guest_of(
        &self,
        other: &Self,
        line: String,
        more: &[&str],
    ) -> Result<Process, Failure> {
        fs::create_dir_all(&self.directory)?;
        let pairs = [(&other.directory, &self.directory), (&other.socket, &self.socket)];
        let line = pairs.iter().fold(line, |line, (from, to)| {
            line.replace(&from.display().to_string(), &to.display().to_string())
        });
        let line = line.replace(&WAITS.map(|word| format!("{word}\0")).concat(), "");
        let mut words = line.split_terminator('\0');
        let mut command = Command::new(words.next().ok_or("QEMU without a command line")?);
        command.args(words).args(more).args(WAITS);
        let mut process = Process::spawn(&mut command, &self.directory.join("qemu.log"))?;
        let began = Instant::now();
        while !self.directory.join("monitor.sock").exists() {
            if process.ended()?.is_some() || began.elapsed() > SOON {
                return Err(format!("QEMU did not start: {}", process.log_tail(2000)).into());
            }
            sleep(LOOK);
        }
        Ok(process)
    }

    /// The monitor of the QEMU that is here.
    ///
    /// # Errors
    /// When QEMU does not answer.
    pub fn monitor(&self) -> Result<Monitor, Failure> {
        Monitor::at(&self.directory.join("monitor.sock"))
    }

    /// Moves the guest of `source` here, and waits until it runs here. Returns what QEMU says of the migration.
    ///
    /// # Errors
    /// When QEMU refuses it or it fails; the message is QEMU's.
    pub fn receive(&self, source: &mut Monitor) -> Result<Value, Failure> {
        let uri = format!("unix:{}", self.directory.join("migration.sock").display());
        self.monitor()?.execute("migrate-incoming", &json!({"uri": uri}))?;
        migrate(source, &uri)
    }
}

/// The command line of a process, each word with a zero after it.
///
/// # Errors
/// When there is no such process.
pub fn line_of(pid: u32) -> Result<String, Failure> {
    Ok(String::from_utf8(fs::read(format!("/proc/{pid}/cmdline"))?)?)
}

/// Migrates the guest of `source` to `uri`, and waits for the end. Returns what QEMU says of the migration.
///
/// # Errors
/// When QEMU refuses it or it fails; the message is QEMU's.
pub fn migrate(source: &mut Monitor, uri: &str) -> Result<Value, Failure> {
    // Without a limit of its own it ends although the guest writes all the time.
    let fast = json!({"max-bandwidth": 4_u64 << 30, "downtime-limit": 2000});
    source.execute("migrate-set-parameters", &fast)?;
    source.execute("migrate", &json!({"uri": uri}))?;
    let began = Instant::now();
    loop {
        let state = source.execute("query-migrate", &json!({}))?;
        match state["status"].as_str() {
            Some("completed") => return Ok(state),
            Some("failed" | "cancelled") => return Err(format!("it failed: {state}").into()),
            _ if began.elapsed() > MIGRATED => return Err(format!("it hangs: {state}").into()),
            _ => sleep(LOOK),
        }
    }
}

/// Where the guest of `place` is before it moves.
#[must_use]
pub fn berth_of(place: &Place) -> Berth {
    Berth { directory: place.directory().join("guest"), socket: place.socket() }
}

/// The place to which a guest moves.
#[derive(Debug)]
pub struct Target {
    process: Process,
    /// Its daemon.
    pub daemon: Daemon,
    /// Its tap.
    pub tap: String,
    berth: Berth,
}

impl Target {
    /// Starts the daemon, and a QEMU as the guest's present one, which waits for the guest.
    ///
    /// # Errors
    /// When one of them does not start.
    pub fn start(place: &mut Place, queue_pairs: u16) -> Result<Self, Failure> {
        Self::start_with(place, queue_pairs, &[], &[])
    }

    /// The same with these further arguments of the daemon.
    ///
    /// # Errors
    /// As [`start`](Self::start).
    pub fn start_daemon_with(place: &mut Place, arguments: &[&str]) -> Result<Self, Failure> {
        Self::start_with(place, 1, &[], arguments)
    }

    /// The same, but the guest does not run here when it has come.
    ///
    /// # Errors
    /// As [`start`](Self::start).
    pub fn start_paused(place: &mut Place, queue_pairs: u16) -> Result<Self, Failure> {
        Self::start_with(place, queue_pairs, &["-S"], &[])
    }

    fn start_with(
        place: &mut Place,
        queue_pairs: u16,
        more: &[&str],
        arguments: &[&str],
    ) -> Result<Self, Failure> {
        let tap = place.outside.add_tap(queue_pairs)?;
        let (datapath, pairs) = (format!("tap:ifname={tap}"), queue_pairs.to_string());
        let own = ["--datapath", &datapath, "--queue-pairs", &pairs];
        let daemon = Daemon::start(place.directory(), NAME, &[&own, arguments].concat())?;
        let directory = place.directory().join("target");
        let berth = Berth { directory, socket: daemon.socket().to_owned() };
        let process = berth.await_guest(&berth_of(place), place.guest().pid(), more)?;
        Ok(Self { process, daemon, tap, berth })
    }

    /// The directory of its QEMU: `serial.log` has what the guest's kernel says there.
    #[must_use]
    pub fn directory(&self) -> &Path {
        &self.berth.directory
    }

    /// Moves the guest here, and waits until it runs here. Returns what QEMU says of the migration.
    ///
    /// # Errors
    /// When QEMU refuses it or it fails; the message is QEMU's.
    pub fn receive(&mut self, place: &Place) -> Result<Value, Failure> {
        self.berth.receive(&mut Monitor::connect(place)?)
    }

    /// The number of its QEMU's process.
    #[must_use]
    pub fn pid(&self) -> u32 {
        self.process.pid()
    }

    /// Whether QEMU goes on.
    ///
    /// # Errors
    /// When the system does not say.
    pub fn is_running(&mut self) -> Result<bool, Failure> {
        Ok(self.process.ended()?.is_none())
    }
}

/// The memory of the guest of a QEMU: the file that it shares with its back end.
///
/// # Errors
/// When process `pid` has no such file.
pub fn memory_of(pid: u32) -> Result<File, Failure> {
    for entry in fs::read_dir(format!("/proc/{pid}/fd"))? {
        let path = entry?.path();
        let target = fs::read_link(&path).unwrap_or_default();
        // Others are small: logs and such.
        if target.to_string_lossy().starts_with("/memfd:") {
            let file = File::open(&path)?;
            if file.metadata()?.len() >= MEMORY_MIN {
                return Ok(file);
            }
        }
    }
    Err(format!("process {pid} has no memory of a guest").into())
}

/// The numbers of the pages of 4096 bytes that are other ones in `two`, and how many are not empty.
///
/// # Errors
/// When a file cannot be read, or their lengths differ.
pub fn compare_memory(one: &File, two: &File) -> Result<(Vec<u64>, u64), Failure> {
    let (len, other) = (one.metadata()?.len(), two.metadata()?.len());
    if len != other {
        return Err(format!("{len} and {other} bytes of memory").into());
    }
    let [mut here, mut there] = [vec![0; PAGE], vec![0; PAGE]];
    let (mut differ, mut filled) = (Vec::new(), 0);
    for page in 0..len / PAGE as u64 {
        one.read_exact_at(&mut here, page * PAGE as u64)?;
        two.read_exact_at(&mut there, page * PAGE as u64)?;
        filled += u64::from(here.iter().any(|byte| *byte != 0));
        if here != there {
            differ.push(page);
        }
    }
    Ok((differ, filled))
}

/// The port of the bridge behind which the guest's address was seen last.
///
/// # Errors
/// When the bridge does not know it.
pub fn port_of(place: &Place, address: &str) -> Result<String, Failure> {
    let bridge = place.outside.bridge();
    let table = said(Command::new("bridge").args(["fdb", "show", "br", bridge]))?;
    let line = table.lines().find(|line| line.starts_with(address) && !line.contains("permanent"));
    let line = line.ok_or_else(|| format!("{address} is not in {table}"))?;
    let port = line.split(' ').skip_while(|word| *word != "dev").nth(1);
    Ok(port.ok_or("a line without a port")?.to_owned())
}
