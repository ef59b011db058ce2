//! A guest with a shell on its console, started by `qemu-scripts/launch`: in QEMU, or User Mode Linux.

use crate::process::{Process, tail};
use agent::console::{self, Console};
use std::io;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::time::{Duration, Instant};

pub use agent::console::Output;

/// How much of a log an error shows.
const TAIL_BYTES: usize = 2000;

/// The back end of the guest's network device.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Attachment {
    /// A vhost-user socket.
    Socket(PathBuf),
    /// A vhost-user socket that QEMU makes, and the back end connects to.
    ServerSocket(PathBuf),
    /// QEMU's own tap back end, on this interface.
    Tap(String),
}

/// What the guest runs in.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Machine {
    /// QEMU.
    Qemu,
    /// User Mode Linux: a process of this host, with this `ringscope` as its agent. Only the attachment to a socket, the
    /// addresses, memory and CPUs can be chosen.
    Uml {
        /// The host's `ringscope`.
        agent: PathBuf,
    },
}

/// Most memory that can be plugged in, MiB.
const PLUGGED_MAX_MIB: u32 = 1024;

/// How a guest is started. Each field is an option of `qemu-scripts/launch`.
#[derive(Debug, Clone)]
pub struct GuestOptions {
    /// What it runs in.
    pub machine: Machine,
    /// What the network device is attached to.
    pub attachment: Attachment,
    /// Directory of its logs and sockets; made if missing.
    pub dir: PathBuf,
    /// Address and prefix length of its eth0.
    pub address: String,
    /// The Ethernet address of its eth0; `None`: the same for every guest.
    pub mac: Option<String>,
    /// Memory in MiB.
    pub memory_mib: u32,
    /// Slots for memory that is plugged in later, up to 1 GiB in all; 0: none.
    pub memory_slots: u8,
    /// Memory that its virtio-mem device can plug in, MiB; 0: there is no such device. Needs room for plugged memory.
    pub virtio_mem_mib: u32,
    /// A balloon.
    pub balloon: bool,
    /// Queue pairs of the device; the guest uses all of them.
    pub queue_pairs: u16,
    /// Virtual CPUs; `None`: one for each queue pair.
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
    /// Further properties of QEMU's device, as in `host_mtu=1400`; may be empty.
    pub properties: String,
    /// Shared guest memory, which vhost-user needs.
    pub share: bool,
    /// Time between attempts to reconnect to the back end, milliseconds.
    pub reconnect_ms: Option<u32>,
    /// CPUs that QEMU may use, as taskset writes them.
    pub cpu_list: Option<String>,
    /// File of a page that the guest shares with this host, for `ringscope agent clock`; QEMU only.
    pub clock_page: Option<PathBuf>,
    /// Directory of kernel and initramfs; `None`: what `launch` finds or builds.
    pub image: Option<PathBuf>,
    /// Time limit for its boot.
    pub boot_timeout: Duration,
}

impl GuestOptions {
    /// The defaults of `qemu-scripts/launch`: one queue pair, rings of 256, every feature on.
    pub fn new(attachment: Attachment, dir: impl Into<PathBuf>) -> Self {
        Self {
            machine: Machine::Qemu,
            attachment,
            dir: dir.into(),
            address: "10.77.0.2/24".into(),
            mac: None,
            memory_mib: 512,
            memory_slots: 0,
            virtio_mem_mib: 0,
            balloon: false,
            queue_pairs: 1,
            vcpus: None,
            packed: false,
            rx_queue_size: 256,
            tx_queue_size: 256,
            mrg_rxbuf: true,
            offloads: true,
            event_idx: true,
            indirect: true,
            properties: String::new(),
            share: true,
            reconnect_ms: None,
            cpu_list: None,
            clock_page: None,
            image: None,
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
        let slots = match self.memory_slots {
            0 => String::new(),
            slots => format!(",slots={slots},maxmem={}M", self.memory_mib + PLUGGED_MAX_MIB),
        };
        push("--memory", format!("{}M{slots}", self.memory_mib));
        if let Some(mac) = &self.mac {
            push("--mac", mac.clone());
        }
        if let Some(cpu_list) = &self.cpu_list {
            push("--cpu-list", cpu_list.clone());
        }
        if let Some(clock_page) = &self.clock_page {
            push("--clock-page", clock_page.display().to_string());
        }
        if let Machine::Uml { agent } = &self.machine {
            push("--guest", "uml".into());
            push("--agent", agent.display().to_string());
            return args;
        }
        push("--queue-pairs", self.queue_pairs.to_string());
        push("--rx-queue-size", self.rx_queue_size.to_string());
        push("--tx-queue-size", self.tx_queue_size.to_string());
        push("--mrg-rxbuf", switch(self.mrg_rxbuf));
        push("--offloads", switch(self.offloads));
        push("--event-idx", switch(self.event_idx));
        push("--indirect", switch(self.indirect));
        push("--share", switch(self.share));
        push("--balloon", switch(self.balloon));
        if self.virtio_mem_mib > 0 {
            push("--virtio-mem", format!("{}M", self.virtio_mem_mib));
        }
        if !self.properties.is_empty() {
            push("--properties", self.properties.clone());
        }
        if let Some(vcpus) = self.vcpus {
            push("--vcpus", vcpus.to_string());
        }
        if let Some(reconnect_ms) = self.reconnect_ms {
            push("--reconnect-ms", reconnect_ms.to_string());
        }
        if let Some(image) = &self.image {
            push("--image", image.display().to_string());
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
        "expected a running guest, found QEMU ended ({status}); it said:\n{log}\n\
         the end of the serial line:\n{serial}"
    )]
    Ended {
        /// How it ended.
        status: String,
        /// The end of QEMU's output.
        log: String,
        /// The end of the guest's serial console.
        serial: String,
    },
    /// The console did not answer.
    #[error("{source}; the end of the serial line:\n{serial}")]
    Console {
        /// What is wrong with it.
        source: console::Error,
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

/// A running guest. Dropping it kills QEMU.
#[derive(Debug)]
pub struct Guest {
    process: Process,
    console: Console,
    options: GuestOptions,
}

impl Guest {
    /// Starts a guest and waits until its console answers.
    pub fn launch(options: GuestOptions) -> Result<Self, Error> {
        let dir = &options.dir;
        std::fs::create_dir_all(dir).map_err(io_error(format!("make {}", dir.display())))?;
        // Files that an earlier guest left here would be taken for this one's.
        for name in ["qemu.log", "serial.log", "console.sock"] {
            let path = dir.join(name);
            let removed = if path.is_dir() {
                std::fs::remove_dir_all(path)
            } else {
                std::fs::remove_file(path)
            };
            match removed {
                Err(error) if error.kind() != io::ErrorKind::NotFound => {
                    return Err(io_error(format!("remove old {name}"))(error));
                }
                _ => {}
            }
        }
        let mut command = Command::new(scripts().join("launch"));
        command.args(options.to_args());
        let mut process = Process::spawn(&mut command, &dir.join("qemu.log"))
            .map_err(io_error("start qemu-scripts/launch".into()))?;
        let console = connect(&mut process, &options)?;
        let mut guest = Self { process, console, options };
        guest.await_boot()?;
        Ok(guest)
    }

    /// QEMU's process id.
    pub fn pid(&self) -> u32 {
        self.process.pid()
    }

    /// `kvm`, `tcg` or `uml`. State it with every figure taken with this guest.
    pub fn accelerator(&self) -> String {
        let text = std::fs::read_to_string(self.options.dir.join("accel")).unwrap_or_default();
        text.trim().to_owned()
    }

    /// The options it was started with.
    pub fn options(&self) -> &GuestOptions {
        &self.options
    }

    /// Runs a shell command in the guest, for up to a minute.
    pub fn run(&mut self, command: &str) -> Result<Output, Error> {
        self.run_for(command, Duration::from_secs(60))
    }

    /// Runs a shell command of one line in the guest, which ends it when it takes longer than
    /// `limit`.
    pub fn run_for(&mut self, command: &str, limit: Duration) -> Result<Output, Error> {
        let result = self.console.run(command, limit);
        self.explain(result)
    }

    /// Runs a shell command that has to succeed, and returns what it printed.
    pub fn check(&mut self, command: &str) -> Result<String, Error> {
        self.check_for(command, Duration::from_secs(60))
    }

    /// As [`Guest::check`], with a limit.
    pub fn check_for(&mut self, command: &str, limit: Duration) -> Result<String, Error> {
        let Output { status, text } = self.run_for(command, limit)?;
        if status == 0 {
            return Ok(text);
        }
        Err(Error::Failed { command: command.into(), status, text })
    }

    /// Reboots the guest inside the same QEMU, and waits until its console answers again.
    pub fn reboot(&mut self) -> Result<(), Error> {
        // In the background, so that the answer comes before the reboot.
        self.check("(sleep 0.2; reboot -f) >/dev/null 2>&1 &")?;
        self.await_boot()
    }

    /// Sends a signal such as STOP or CONT to QEMU.
    pub fn signal(&self, signal: rustix::process::Signal) -> io::Result<()> {
        self.process.signal(signal)
    }

    /// How QEMU ended, or `None` while it runs.
    pub fn ended(&mut self) -> io::Result<Option<std::process::ExitStatus>> {
        self.process.ended()
    }

    /// Ends QEMU and waits for it.
    pub fn kill(&mut self) -> io::Result<()> {
        self.process.kill().map(|_| ())
    }

    fn await_boot(&mut self) -> Result<(), Error> {
        let result = self.console.await_boot(self.options.boot_timeout);
        self.explain(result)
    }

    /// If the console fails because QEMU has ended, the error says so.
    fn explain<T>(&mut self, result: Result<T, console::Error>) -> Result<T, Error> {
        let source = match result {
            Ok(value) => return Ok(value),
            Err(source) => source,
        };
        let dir = &self.options.dir;
        if matches!(source, console::Error::Io { .. }) {
            // The socket closes a moment before the process can be waited for.
            let _ = self.process.wait(Duration::from_secs(2));
        }
        Err(ended(&mut self.process, dir)
            .unwrap_or_else(|| Error::Console { source, serial: serial(dir) }))
    }
}

/// `qemu-scripts` of this source tree, or another directory that a package names when it is built: its programs are
/// the same wherever they are built.
const SCRIPTS: &str = match option_env!("RINGSCOPE_PACKAGED_SCRIPTS") {
    Some(directory) => directory,
    None => concat!(env!("CARGO_MANIFEST_DIR"), "/../../qemu-scripts"),
};

/// The directory of `launch`: `RINGSCOPE_QEMU_SCRIPTS`, or where the scripts were when this was built.
pub fn scripts() -> PathBuf {
    std::env::var_os("RINGSCOPE_QEMU_SCRIPTS").map_or_else(|| SCRIPTS.into(), PathBuf::from)
}

fn connect(process: &mut Process, options: &GuestOptions) -> Result<Console, Error> {
    let path = options.dir.join("console.sock");
    let end = Instant::now() + options.boot_timeout;
    loop {
        // The socket's file is there a moment before QEMU listens.
        let source = match Console::connect(&path) {
            Ok(console) => return Ok(console),
            Err(source) => source,
        };
        if let Some(error) = ended(process, &options.dir) {
            return Err(error);
        }
        if Instant::now() > end {
            return Err(Error::Console { source, serial: process.log_tail(TAIL_BYTES) });
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
    Some(Error::Ended { status, log: process.log_tail(TAIL_BYTES), serial: serial(dir) })
}

fn serial(dir: &Path) -> String {
    tail(&dir.join("serial.log"), TAIL_BYTES)
}

fn io_error(what: String) -> impl Fn(io::Error) -> Error {
    move |source| Error::Io { what: what.clone(), source }
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
        options.memory_slots = 3;
        options.virtio_mem_mib = 256;
        options.clock_page = Some("/run/a/clock".into());
        let line = options.to_args().join(" ");
        for part in [
            "--socket /run/a.sock",
            "--server",
            "--packed",
            "--mrg-rxbuf off",
            "--queue-pairs 2",
            "--memory 512M,slots=3,maxmem=1536M",
            "--virtio-mem 256M",
            "--balloon off",
            "--clock-page /run/a/clock",
        ] {
            assert!(line.contains(part), "{part} is not in {line}");
        }
        options.machine = Machine::Uml { agent: "/bin/ringscope".into() };
        let line = options.to_args().join(" ");
        assert!(line.ends_with(" --guest uml --agent /bin/ringscope"), "{line}");
        assert!(!line.contains("--packed") && !line.contains("--queue-pairs"), "{line}");
        let tap = GuestOptions::new(Attachment::Tap("tap7".into()), "/run/a").to_args().join(" ");
        assert!(tap.contains("--tap tap7") && !tap.contains("--server"), "{tap}");
    }

    #[test]
    fn the_error_of_a_failed_script_has_its_output() {
        let dir = tempfile::tempdir().unwrap();
        let options = GuestOptions::new(Attachment::Socket("/no/such.sock".into()), dir.path());
        let error = Guest::launch(options).unwrap_err().to_string();
        assert!(error.contains("/no/such.sock"), "{error}");
    }
}
