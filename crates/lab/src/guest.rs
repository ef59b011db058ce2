//! A QEMU guest with a shell on its serial line, started by `qemu-scripts/launch`.

use crate::agent::{READY_PREFIX, REPLY_PREFIX};
use crate::process::{Process, tail};
use std::io::{self, Read, Write};
use std::os::unix::net::UnixStream;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::time::{Duration, Instant};

/// How much of a log an error shows.
const TAIL_BYTES: usize = 2000;

/// How often the console is asked whether it is there. A serial line has no connection, so what
/// was sent before the guest opened it may be lost.
const ASK_EVERY: Duration = Duration::from_millis(200);

/// What the guest's network device is attached to.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Attachment {
    /// A vhost-user socket.
    Socket(PathBuf),
    /// A vhost-user socket that QEMU makes, and the back end connects to.
    ServerSocket(PathBuf),
    /// QEMU's own tap back end, on this interface.
    Tap(String),
}

/// How a guest is started; each field is an option of `qemu-scripts/launch`.
#[derive(Debug, Clone)]
pub struct GuestOptions {
    /// What the network device is attached to.
    pub attachment: Attachment,
    /// Where its logs and sockets go; made when missing.
    pub dir: PathBuf,
    /// Address and prefix length of its eth0.
    pub address: String,
    /// Memory in MiB.
    pub memory_mib: u32,
    /// Queue pairs of the device, all of which the guest uses.
    pub queue_pairs: u16,
    /// Virtual CPUs; as many as queue pairs when `None`.
    pub vcpus: Option<u16>,
    /// Packed rather than split rings.
    pub packed: bool,
    /// Receive ring size.
    pub rx_queue_size: u16,
    /// Transmit ring size; QEMU allows more than 256 with vhost-user only.
    pub tx_queue_size: u16,
    /// Mergeable receive buffers.
    pub mrg_rxbuf: bool,
    /// Checksum and segmentation offloads, both ways.
    pub offloads: bool,
    /// Notification suppression by index.
    pub event_idx: bool,
    /// Indirect descriptors.
    pub indirect: bool,
    /// Shared guest memory, which vhost-user needs.
    pub share: bool,
    /// Time between attempts to connect again when the back end goes.
    pub reconnect_ms: Option<u32>,
    /// CPUs that QEMU may use, as taskset writes them.
    pub cpu_list: Option<String>,
    /// How long it may take to boot.
    pub boot_timeout: Duration,
}

impl GuestOptions {
    /// The defaults of `qemu-scripts/launch`: one queue pair, rings of 256, every feature on.
    pub fn new(attachment: Attachment, dir: impl Into<PathBuf>) -> Self {
        Self {
            attachment,
            dir: dir.into(),
            address: "10.77.0.2/24".into(),
            memory_mib: 512,
            queue_pairs: 1,
            vcpus: None,
            packed: false,
            rx_queue_size: 256,
            tx_queue_size: 256,
            mrg_rxbuf: true,
            offloads: true,
            event_idx: true,
            indirect: true,
            share: true,
            reconnect_ms: None,
            cpu_list: None,
            boot_timeout: Duration::from_secs(60),
        }
    }

    /// The command line of `qemu-scripts/launch`, its name left out.
    pub fn to_args(&self) -> Vec<String> {
        let switch = |on: bool| if on { "on" } else { "off" }.to_owned();
        let mut args = Vec::new();
        let mut push = |flag: &str, value: String| args.extend([flag.to_owned(), value]);
        match &self.attachment {
            Attachment::Socket(path) | Attachment::ServerSocket(path) => {
                push("--socket", path.display().to_string());
            }
            Attachment::Tap(interface) => push("--tap", interface.clone()),
        }
        push("--dir", self.dir.display().to_string());
        push("--address", self.address.clone());
        push("--memory", format!("{}M", self.memory_mib));
        push("--queue-pairs", self.queue_pairs.to_string());
        push("--rx-queue-size", self.rx_queue_size.to_string());
        push("--tx-queue-size", self.tx_queue_size.to_string());
        push("--mrg-rxbuf", switch(self.mrg_rxbuf));
        push("--offloads", switch(self.offloads));
        push("--event-idx", switch(self.event_idx));
        push("--indirect", switch(self.indirect));
        push("--share", switch(self.share));
        if let Some(vcpus) = self.vcpus {
            push("--vcpus", vcpus.to_string());
        }
        if let Some(reconnect_ms) = self.reconnect_ms {
            push("--reconnect-ms", reconnect_ms.to_string());
        }
        if let Some(cpu_list) = &self.cpu_list {
            push("--cpu-list", cpu_list.clone());
        }
        if self.packed {
            args.push("--packed".into());
        }
        if matches!(self.attachment, Attachment::ServerSocket(_)) {
            args.push("--server".into());
        }
        args
    }
}

/// Why a guest could not be started or used.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// Files, sockets or the process itself.
    #[error("guest: {what}: {source}")]
    Io {
        /// What was being done.
        what: String,
        /// What the system said.
        source: io::Error,
    },
    /// QEMU, or the script that starts it, has ended.
    #[error(
        "expected a running guest, found QEMU ended ({status}); it said:\n{log}\nserial line:\n{serial}"
    )]
    Ended {
        /// How it ended.
        status: String,
        /// The end of QEMU's output.
        log: String,
        /// The end of the guest's serial console.
        serial: String,
    },
    /// The guest did not answer in time.
    #[error(
        "expected {what} within {limit:?}, found nothing; the end of the serial line:\n{serial}"
    )]
    Timeout {
        /// What was waited for.
        what: String,
        /// How long it had.
        limit: Duration,
        /// The end of the guest's serial console.
        serial: String,
    },
    /// The guest booted anew while a command ran.
    #[error(
        "expected an answer to `{command}`, found that the guest had rebooted; the end of the serial line:\n{serial}"
    )]
    Rebooted {
        /// The command that got no answer.
        command: String,
        /// The end of the guest's serial console.
        serial: String,
    },
    /// A command that had to succeed did not.
    #[error("expected `{command}` to succeed in the guest, found status {status}: {text}")]
    Failed {
        /// The command.
        command: String,
        /// Its exit status.
        status: i32,
        /// What it printed.
        text: String,
    },
}

/// What a command in the guest gave.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Output {
    /// Exit status; 124 when it was ended for taking too long, 128 and more for a signal.
    pub status: i32,
    /// Standard output and standard error, in the order they were written.
    pub text: String,
}

/// A running guest. Dropping it kills QEMU.
#[derive(Debug)]
pub struct Guest {
    process: Process,
    console: UnixStream,
    /// Bytes that came from the console and were not looked at yet.
    pending: Vec<u8>,
    boot_id: String,
    sequence: u64,
    options: GuestOptions,
}

impl Guest {
    /// Starts a guest and waits until its console answers.
    pub fn launch(options: GuestOptions) -> Result<Self, Error> {
        let dir = &options.dir;
        std::fs::create_dir_all(dir).map_err(io_error(format!("make {}", dir.display())))?;
        let log = dir.join("qemu.log");
        // What an earlier guest left here would be taken for this one's.
        for name in ["qemu.log", "serial.log", "console.sock"] {
            match std::fs::remove_file(dir.join(name)) {
                Err(error) if error.kind() != io::ErrorKind::NotFound => {
                    return Err(io_error(format!("remove old {name}"))(error));
                }
                _ => {}
            }
        }
        let mut process = Process::spawn(
            Command::new(scripts().join("launch")).args(options.to_args()),
            &log,
        )
        .map_err(io_error("start qemu-scripts/launch".into()))?;
        let end = Instant::now() + options.boot_timeout;
        let console = connect(&mut process, &options, end)?;
        let mut guest = Self {
            process,
            console,
            pending: Vec::new(),
            boot_id: String::new(),
            sequence: 0,
            options,
        };
        guest.await_boot(end)?;
        Ok(guest)
    }

    /// QEMU's process id.
    pub fn pid(&self) -> u32 {
        self.process.pid()
    }

    /// `kvm` or `tcg`: every figure taken with this guest should carry it.
    pub fn accelerator(&self) -> String {
        let text = std::fs::read_to_string(self.options.dir.join("accel")).unwrap_or_default();
        text.trim().to_owned()
    }

    /// The options it was started with.
    pub fn options(&self) -> &GuestOptions {
        &self.options
    }

    /// The end of QEMU's own output.
    pub fn qemu_log(&self) -> String {
        self.process.log_tail(TAIL_BYTES)
    }

    /// The end of the kernel's console.
    pub fn serial_log(&self) -> String {
        serial(&self.options.dir)
    }

    /// Runs a shell command in the guest, for up to a minute.
    pub fn run(&mut self, command: &str) -> Result<Output, Error> {
        self.run_for(command, Duration::from_secs(60))
    }

    /// Runs a shell command in the guest, which ends it when it takes longer than `limit`.
    pub fn run_for(&mut self, command: &str, limit: Duration) -> Result<Output, Error> {
        assert!(!command.contains('\n'), "a command is one line");
        self.sequence += 1;
        let line = format!(
            "run {} {} {command}\n",
            self.sequence,
            limit.as_secs().max(1)
        );
        self.write(line.as_bytes())?;
        // The guest keeps the limit; the margin is for a busy machine and a slow serial line.
        let end = Instant::now() + limit + Duration::from_secs(20);
        loop {
            let Some(line) = self.read_line(end)? else {
                return Err(self.timeout(format!("an answer to `{command}`"), limit));
            };
            if let Some(boot_id) = between(&line, READY_PREFIX)
                && boot_id != self.boot_id
            {
                let serial = serial(&self.options.dir);
                return Err(Error::Rebooted {
                    command: command.into(),
                    serial,
                });
            }
            let Some((sequence, status, length)) = parse_reply(&line) else {
                continue;
            };
            if sequence != self.sequence {
                continue;
            }
            let Some(text) = self.read_bytes(length, end)? else {
                return Err(self.timeout(format!("{length} bytes from `{command}`"), limit));
            };
            return Ok(Output {
                status,
                text: String::from_utf8_lossy(&text).into_owned(),
            });
        }
    }

    /// Runs a shell command that has to succeed, and returns what it printed.
    pub fn check(&mut self, command: &str) -> Result<String, Error> {
        let Output { status, text } = self.run(command)?;
        if status == 0 {
            return Ok(text);
        }
        Err(Error::Failed {
            command: command.into(),
            status,
            text,
        })
    }

    /// Reboots the guest inside the same QEMU, and waits until its console answers again.
    pub fn reboot(&mut self) -> Result<(), Error> {
        // In the background, so that the answer comes before the reboot.
        self.check("(sleep 0.2; reboot -f) >/dev/null 2>&1 &")?;
        let end = Instant::now() + self.options.boot_timeout;
        self.await_boot(end)
    }

    /// Sends a signal such as STOP or CONT to QEMU.
    pub fn signal(&self, signal: rustix::process::Signal) -> io::Result<()> {
        let pid = rustix::process::Pid::from_raw(self.pid() as i32).expect("a child has a pid");
        Ok(rustix::process::kill_process(pid, signal)?)
    }

    /// Ends QEMU and waits for it.
    pub fn kill(&mut self) -> io::Result<()> {
        self.process.kill().map(|_| ())
    }

    /// Asks until a boot other than the one known answers.
    fn await_boot(&mut self, end: Instant) -> Result<(), Error> {
        while Instant::now() < end {
            self.write(b"\n")?;
            let ask_again = (Instant::now() + ASK_EVERY).min(end);
            while let Some(line) = self.read_line(ask_again)? {
                match between(&line, READY_PREFIX) {
                    Some(boot_id) if boot_id != self.boot_id => {
                        self.boot_id = boot_id.to_owned();
                        return Ok(());
                    }
                    _ => {}
                }
            }
        }
        Err(self.timeout("the guest's console".into(), self.options.boot_timeout))
    }

    fn write(&mut self, bytes: &[u8]) -> Result<(), Error> {
        match self.console.write_all(bytes) {
            Ok(()) => Ok(()),
            Err(source) => Err(ended(&mut self.process, &self.options.dir)
                .unwrap_or_else(|| io_error("write to the console".into())(source))),
        }
    }

    /// The next line, without its end; `None` when none came by `end`.
    fn read_line(&mut self, end: Instant) -> Result<Option<String>, Error> {
        loop {
            if let Some(length) = self.pending.iter().position(|&byte| byte == b'\n') {
                let line: Vec<u8> = self.pending.drain(..=length).collect();
                return Ok(Some(String::from_utf8_lossy(&line).trim_end().to_owned()));
            }
            if !self.fill(end)? {
                return Ok(None);
            }
        }
    }

    fn read_bytes(&mut self, length: usize, end: Instant) -> Result<Option<Vec<u8>>, Error> {
        while self.pending.len() < length {
            if !self.fill(end)? {
                return Ok(None);
            }
        }
        Ok(Some(self.pending.drain(..length).collect()))
    }

    /// Waits for more bytes from the console; false when none came by `end`.
    fn fill(&mut self, end: Instant) -> Result<bool, Error> {
        let mut block = [0; 4096];
        loop {
            let left = end.saturating_duration_since(Instant::now());
            if left.is_zero() {
                return Ok(false);
            }
            // Never long, because QEMU's end is to be seen as well.
            let wait = left.min(Duration::from_secs(1));
            let failed = io_error("read from the console".into());
            if let Err(error) = self.console.set_read_timeout(Some(wait)) {
                return Err(failed(error));
            }
            let found = self.console.read(&mut block);
            match found {
                Ok(length) if length > 0 => {
                    self.pending.extend_from_slice(&block[..length]);
                    return Ok(true);
                }
                Ok(_) => {
                    let status = self.process.wait(Duration::from_secs(2));
                    drop(status);
                    let closed = || failed(io::ErrorKind::UnexpectedEof.into());
                    return Err(ended(&mut self.process, &self.options.dir).unwrap_or_else(closed));
                }
                Err(error) if is_passing(&error) => {}
                Err(error) => return Err(failed(error)),
            }
            if let Some(error) = ended(&mut self.process, &self.options.dir) {
                return Err(error);
            }
        }
    }

    fn timeout(&self, what: String, limit: Duration) -> Error {
        Error::Timeout {
            what,
            limit,
            serial: serial(&self.options.dir),
        }
    }
}

/// Where `launch` is: beside this crate's sources, or where `RINGSCOPE_QEMU_SCRIPTS` says.
pub fn scripts() -> PathBuf {
    let beside = || Path::new(env!("CARGO_MANIFEST_DIR")).join("../../qemu-scripts");
    std::env::var_os("RINGSCOPE_QEMU_SCRIPTS").map_or_else(beside, PathBuf::from)
}

fn connect(
    process: &mut Process,
    options: &GuestOptions,
    end: Instant,
) -> Result<UnixStream, Error> {
    let path = options.dir.join("console.sock");
    loop {
        // The socket's file is there a moment before QEMU listens.
        if let Ok(stream) = UnixStream::connect(&path) {
            return Ok(stream);
        }
        if let Some(error) = ended(process, &options.dir) {
            return Err(error);
        }
        if Instant::now() > end {
            let what = format!("QEMU to make {}", path.display());
            let serial = process.log_tail(TAIL_BYTES);
            return Err(Error::Timeout {
                what,
                limit: options.boot_timeout,
                serial,
            });
        }
        std::thread::sleep(Duration::from_millis(10));
    }
}

fn ended(process: &mut Process, dir: &Path) -> Option<Error> {
    let status = match process.ended() {
        Ok(None) => return None,
        Ok(Some(status)) => status.to_string(),
        Err(error) => error.to_string(),
    };
    Some(Error::Ended {
        status,
        log: process.log_tail(TAIL_BYTES),
        serial: serial(dir),
    })
}

fn serial(dir: &Path) -> String {
    tail(&dir.join("serial.log"), TAIL_BYTES)
}

fn io_error(what: String) -> impl Fn(io::Error) -> Error {
    move |source| Error::Io {
        what: what.clone(),
        source,
    }
}

fn is_passing(error: &io::Error) -> bool {
    use io::ErrorKind::{Interrupted, TimedOut, WouldBlock};
    matches!(error.kind(), Interrupted | TimedOut | WouldBlock)
}

/// The part of a marker line between its prefix and its closing `=`.
fn between<'line>(line: &'line str, prefix: &str) -> Option<&'line str> {
    line.strip_prefix(prefix)?.strip_suffix('=')
}

/// Sequence, status and length of a reply's header.
fn parse_reply(line: &str) -> Option<(u64, i32, usize)> {
    let mut words = between(line, REPLY_PREFIX)?.split(' ');
    let reply = (
        words.next()?.parse().ok()?,
        words.next()?.parse().ok()?,
        words.next()?.parse().ok()?,
    );
    words.next().is_none().then_some(reply)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn options_become_the_command_line() {
        let mut options =
            GuestOptions::new(Attachment::ServerSocket("/run/a.sock".into()), "/run/a");
        options.packed = true;
        options.mrg_rxbuf = false;
        options.queue_pairs = 2;
        let line = options.to_args().join(" ");
        for part in [
            "--socket /run/a.sock",
            "--server",
            "--packed",
            "--mrg-rxbuf off",
            "--queue-pairs 2",
        ] {
            assert!(line.contains(part), "{part} is not in {line}");
        }
        let tap = GuestOptions::new(Attachment::Tap("tap7".into()), "/run/a")
            .to_args()
            .join(" ");
        assert!(
            tap.contains("--tap tap7") && !tap.contains("--server"),
            "{tap}"
        );
    }

    #[test]
    fn marker_lines_are_read() {
        assert_eq!(parse_reply("=ringscope done 3 0 17="), Some((3, 0, 17)));
        for line in [
            "=ringscope done 3 0=",
            "=ringscope done 3 0 17",
            "ringscope done 3 0 17=",
            "",
        ] {
            assert_eq!(parse_reply(line), None, "{line}");
        }
        assert_eq!(
            between("=ringscope ready ab-c=", READY_PREFIX),
            Some("ab-c")
        );
    }

    #[test]
    fn a_script_that_fails_is_told_with_its_words() {
        let dir = tempfile::tempdir().unwrap();
        let options = GuestOptions::new(Attachment::Socket("/no/such.sock".into()), dir.path());
        let error = Guest::launch(options).unwrap_err().to_string();
        assert!(error.contains("/no/such.sock"), "{error}");
    }
}
