//! A second QEMU, to which the guest of a [`Place`] moves, with a daemon and a tap of its own on the same bridge.
//!
//! ```text
//! outside 10.77.0.1 - bridge - tap - ringscoped vm0 === QEMU  the guest, before
//!                          \-- tap - ringscoped vm1 === QEMU  the same guest, after
//! ```

use std::fs;
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
/// Longest a migration may take, on a machine that is busy.
const MIGRATED: Duration = Duration::from_secs(120);
/// Time between two looks at a migration.
const LOOK: Duration = Duration::from_millis(20);

/// The place to which a guest moves.
#[derive(Debug)]
pub struct Target {
    process: Process,
    /// Its daemon.
    pub daemon: Daemon,
    /// Its tap.
    pub tap: String,
    directory: PathBuf,
}

impl Target {
    /// Starts the daemon, and a QEMU as the guest's present one, which waits for the guest.
    ///
    /// # Errors
    /// When one of them does not start.
    pub fn start(place: &mut Place, queue_pairs: u16) -> Result<Self, Failure> {
        let tap = place.outside.add_tap(queue_pairs)?;
        let (datapath, pairs) = (format!("tap:ifname={tap}"), queue_pairs.to_string());
        let arguments = ["--datapath", &datapath, "--queue-pairs", &pairs];
        let daemon = Daemon::start(place.directory(), NAME, &arguments)?;
        let directory = place.directory().join("target");
        fs::create_dir_all(&directory)?;
        let here = place.directory().join("guest").display().to_string();
        let there = directory.display().to_string();
        let sockets =
            [place.socket(), daemon.socket().to_owned()].map(|it| it.display().to_string());
        let line = fs::read(format!("/proc/{}/cmdline", place.guest().pid()))?;
        let line =
            String::from_utf8(line)?.replace(&here, &there).replace(&sockets[0], &sockets[1]);
        let mut words = line.split_terminator('\0');
        let mut command = Command::new(words.next().ok_or("QEMU without a command line")?);
        command.args(words).args(["-incoming", "defer"]);
        let mut process = Process::spawn(&mut command, &directory.join("qemu.log"))?;
        let began = Instant::now();
        while !directory.join("monitor.sock").exists() {
            if process.ended()?.is_some() || began.elapsed() > SOON {
                return Err(format!("QEMU did not start: {}", process.log_tail(2000)).into());
            }
            sleep(LOOK);
        }
        Ok(Self { process, daemon, tap, directory })
    }

    /// The directory of its QEMU: `serial.log` has what the guest's kernel says there.
    #[must_use]
    pub fn directory(&self) -> &Path {
        &self.directory
    }

    /// Moves the guest here, and waits until it runs here. Returns what QEMU says of the migration.
    ///
    /// # Errors
    /// When QEMU refuses it or it fails; the message is QEMU's.
    pub fn receive(&mut self, place: &Place) -> Result<Value, Failure> {
        let socket = self.directory.join("migration.sock");
        let uri = json!({"uri": format!("unix:{}", socket.display())});
        let mut target = Monitor::at(&self.directory.join("monitor.sock"))?;
        let mut source = Monitor::connect(place)?;
        // Without a limit of its own it ends although the guest writes all the time.
        let fast = json!({"max-bandwidth": 4_u64 << 30, "downtime-limit": 2000});
        source.execute("migrate-set-parameters", &fast)?;
        target.execute("migrate-incoming", &uri)?;
        source.execute("migrate", &uri)?;
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

    /// Whether QEMU goes on.
    ///
    /// # Errors
    /// When the system does not say.
    pub fn is_running(&mut self) -> Result<bool, Failure> {
        Ok(self.process.ended()?.is_none())
    }
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
