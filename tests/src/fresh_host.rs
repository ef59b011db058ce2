//! A host as after a boot, in namespaces: its own network, nothing in `/run` and `/tmp`, and a copy of this source tree in
//! which everything can be written.
//!
//! The copy is an overlay; what is written to it is gone with the host. Programs of `RINGSCOPE_BIN_DIR` are in `PATH`.

use std::fs::{self, File};
use std::io::{self, Read as _};
use std::os::unix::process::CommandExt as _;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, ExitStatus, Stdio};
use std::time::{Duration, Instant};

use rustix::process::{Pid, Signal, kill_process, kill_process_group};
use tempfile::TempDir;

use crate::daemon::program;
use crate::eventually::eventually;

/// Makes the host, and ends all of its processes when the test closes standard input, or has ended.
/// Arguments: source tree, programs, guest image.
const MAKE: &str = r#"
set -e
mount --make-rprivate /
mount -t sysfs sysfs /sys
mount -t tmpfs tmpfs /mnt
mkdir /mnt/upper /mnt/work /mnt/ringscope /mnt/bin /mnt/image
mount -t overlay overlay -o "lowerdir=$1,upperdir=/mnt/upper,workdir=/mnt/work" /mnt/ringscope
mount --bind "$2" /mnt/bin
mount --bind "$3" /mnt/image
mount -t tmpfs tmpfs /run
mount -t tmpfs tmpfs /tmp
ip link set lo up
for n in 0 1; do
    ip link add "eth$n" type veth peer name "far$n"
    ip link set "eth$n" up
    ip link set "far$n" up
done
echo ready
read -r _ || true
here=$(readlink /proc/self/ns/net)
for entry in /proc/[0-9]*; do
    [ "$entry" = "/proc/$$" ] || [ "$(readlink "$entry/ns/net")" != "$here" ] || kill -KILL "${entry#/proc/}"
done 2>/dev/null
"#;
/// Directory of the source tree there.
const TREE: &str = "/mnt/ringscope";
/// Most lines of a command's output in an error.
const LINES_SHOWN: usize = 12;
/// Time that a command has to end after a signal.
const KILLED: Duration = Duration::from_secs(20);
/// Time that a process has to end after SIGTERM.
const ENDED: Duration = Duration::from_secs(5);

/// The host. Dropping it ends all of its processes and removes everything.
#[derive(Debug)]
pub struct FreshHost {
    holder: Child,
    logs: TempDir,
    terminals: Vec<Terminal>,
    count: usize,
}

/// A command that goes on, in a terminal of its own.
#[derive(Debug)]
struct Terminal {
    child: Child,
    log: PathBuf,
}

/// What a command printed, and how it ended.
#[derive(Debug)]
pub struct Ended {
    /// Its exit status.
    pub status: ExitStatus,
    /// Its standard output and error, mixed.
    pub text: String,
}

impl FreshHost {
    /// Makes a host with the interfaces `eth0` and `eth1`.
    ///
    /// # Errors
    /// Without root, overlayfs or the built programs; the message says which.
    pub fn new(image: &Path) -> io::Result<Self> {
        let tree = Path::new(env!("CARGO_MANIFEST_DIR")).join("..").canonicalize()?;
        let programs = program("ringscoped")?.canonicalize()?;
        let programs = programs.parent().ok_or_else(|| io::Error::other("no directory"))?;
        let logs = tempfile::Builder::new().prefix("ringscope-guides-").tempdir()?;
        let mut holder = Command::new("unshare")
            .args(["--net", "--mount", "bash", "-c", MAKE, "bash"])
            .args([tree.as_path(), programs, &image.canonicalize()?])
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .stderr(File::create(logs.path().join("make"))?)
            .spawn()?;
        let mut ready = [0; 5];
        if holder.stdout.take().expect("a pipe").read_exact(&mut ready).is_err() {
            holder.wait()?;
            let said = fs::read_to_string(logs.path().join("make"))?;
            return Err(io::Error::other(format!("expected namespaces and overlayfs: {said}")));
        }
        Ok(Self { holder, logs, terminals: Vec::new(), count: 0 })
    }

    /// A shell command in the source tree.
    fn command(&self, words: &[&str]) -> Command {
        let mut command = Command::new("nsenter");
        command.args(["--net", "--mount", "--target", &self.holder.id().to_string()]);
        let path = std::env::var("PATH").unwrap_or_default();
        command.args(["env", &format!("PATH=/mnt/bin:{path}"), "RINGSCOPE_IMAGE=/mnt/image"]);
        // The tree that the programs were built in may not be visible there.
        command.arg(format!("RINGSCOPE_QEMU_SCRIPTS={TREE}/qemu-scripts"));
        command.args(["bash", "-c", &format!(r#"cd {TREE} && exec "$@""#), "bash"]).args(words);
        command.stdin(Stdio::null());
        command
    }

    /// The command's output goes to a new file, which processes that it leaves behind may keep open.
    fn log(&mut self, command: &mut Command) -> io::Result<PathBuf> {
        self.count += 1;
        let path = self.logs.path().join(self.count.to_string());
        let file = File::create(&path)?;
        command.stdout(file.try_clone()?).stderr(file);
        Ok(path)
    }

    /// Runs a shell command to its end. After `limit` its process group is sent this signal, once: SIGINT is Ctrl-C.
    ///
    /// # Errors
    /// What the system answers.
    ///
    /// # Panics
    /// When it still runs 20 s after the signal; the message is its output.
    pub fn run(&mut self, command: &str, limit: Duration, signal: Signal) -> io::Result<Ended> {
        let mut process = self.command(&["bash", "-c", command]);
        let log = self.log(&mut process)?;
        let mut child = process.process_group(0).spawn()?;
        let end = Instant::now() + limit;
        let mut is_signalled = false;
        let status = eventually(limit + KILLED, &format!("an end of {command}"), || {
            if !is_signalled && Instant::now() > end {
                is_signalled = true;
                // It may have ended a moment ago.
                let _ = kill_process_group(Pid::from_child(&child), signal);
            }
            child.try_wait().transpose().ok_or_else(|| read(&log))
        })?;
        Ok(Ended { status, text: read(&log) })
    }

    /// Starts a shell command that goes on, and waits until its output has `text`, if that is not empty.
    ///
    /// # Errors
    /// When it ends before; the message is its output.
    pub fn start(&mut self, command: &str, text: &str) -> io::Result<()> {
        let mut process = self.command(&["bash", "-c", command]);
        let log = self.log(&mut process)?;
        let mut terminal = Terminal { child: process.spawn()?, log };
        let is_alive = eventually(Duration::from_secs(20), &format!("{text:?}"), || {
            let said = read(&terminal.log);
            match terminal.child.try_wait() {
                Ok(None) if said.contains(text) => Ok(true),
                Ok(None) => Err(said),
                _ => Ok(false),
            }
        });
        let said = read(&terminal.log);
        self.terminals.push(terminal);
        if is_alive { Ok(()) } else { Err(io::Error::other(format!("it has ended:\n{said}"))) }
    }

    /// Sends Ctrl-C to the command that was started last, and waits for its end.
    ///
    /// # Errors
    /// When it does not end well; the message is its output.
    ///
    /// # Panics
    /// When it still runs after 5 s.
    pub fn interrupt_last(&mut self) -> io::Result<()> {
        let Some(mut terminal) = self.terminals.pop() else { return Ok(()) };
        kill_process(Pid::from_child(&terminal.child), Signal::INT)?;
        let status = eventually(ENDED, "an end after Ctrl-C", || {
            terminal.child.try_wait().transpose().ok_or_else(|| read(&terminal.log))
        })?;
        let said = read(&terminal.log);
        if status.success() { Ok(()) } else { Err(io::Error::other(format!("{status}: {said}"))) }
    }

    /// The end of what each command has printed, also of those in the background.
    #[must_use]
    pub fn printed(&self) -> String {
        let texts = (1..=self.count).map(|n| read(&self.logs.path().join(n.to_string())));
        let end = |text: String| {
            let lines: Vec<_> = text.lines().collect();
            let mut end = lines[lines.len().saturating_sub(LINES_SHOWN)..].join("\n");
            end.push('\n');
            end
        };
        texts.filter(|text| !text.is_empty()).map(end).collect()
    }

    /// Ends the processes of this name with SIGTERM.
    ///
    /// # Panics
    /// When one still runs after 5 s.
    pub fn end(&self, name: &str) {
        let here = fs::read_link(format!("/proc/{}/ns/net", self.holder.id())).ok();
        let is_one = |pid: &i32| {
            fs::read_to_string(format!("/proc/{pid}/comm")).is_ok_and(|comm| comm.trim() == name)
                && fs::read_link(format!("/proc/{pid}/ns/net")).ok() == here
        };
        let entries = fs::read_dir("/proc").into_iter().flatten().flatten();
        let pids = entries.filter_map(|entry| entry.file_name().to_str()?.parse().ok());
        for pid in pids.filter(is_one) {
            let _ = Pid::from_raw(pid).map(|pid| kill_process(pid, Signal::TERM));
            eventually(ENDED, &format!("{name} to end"), || {
                if is_one(&pid) { Err("that it runs") } else { Ok(()) }
            });
        }
    }

    /// Writes a file into the source tree there.
    ///
    /// # Errors
    /// What the system answers.
    pub fn write(&self, name: &str, content: &str) -> io::Result<()> {
        fs::write(format!("/proc/{}/root{TREE}/{name}", self.holder.id()), content)
    }
}

impl Drop for FreshHost {
    fn drop(&mut self) {
        drop(self.holder.stdin.take());
        // Nothing more can be done if one of these fails.
        let _ = self.holder.wait();
        for terminal in &mut self.terminals {
            let _ = terminal.child.kill();
            let _ = terminal.child.wait();
        }
    }
}

fn read(path: &Path) -> String {
    String::from_utf8_lossy(&fs::read(path).unwrap_or_default()).into_owned()
}
