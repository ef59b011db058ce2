//! The daemon under test.

use std::fs;
use std::io;
use std::os::fd::OwnedFd;
use std::os::unix::fs::MetadataExt as _;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, ExitStatus, Stdio};
use std::time::Duration;

use burst_trace::{Reader, location};
use rustix::process::{Pid, Resource, Rlimit, Signal, getrlimit, kill_process, prlimit};

use crate::eventually::{eventually, when};
use crate::processes::stat_field;

/// Time that a daemon has to start.
const STARTED: Duration = Duration::from_secs(5);
/// Time that its threads have to stop after SIGSTOP.
const HELD: Duration = Duration::from_secs(5);

/// What a daemon logs in most tests: they look for every message, so its log limit is lifted.
const ALL_LINES: &str = "info,datapath=debug,log_limit=debug";
/// The same with the log limit of production.
const LIMITED_LINES: &str = "info,datapath=debug";

/// A running `ringscoped`. It ends when this is dropped.
#[derive(Debug)]
pub struct Daemon {
    child: Child,
    socket: PathBuf,
    log: PathBuf,
    recorder: PathBuf,
}

impl Daemon {
    /// Starts the daemon with its socket, its log and its run directory in `directory`, and waits for the
    /// socket.
    ///
    /// # Errors
    /// When it is not built, or does not open its socket; the message has its log.
    pub fn start(directory: &Path, name: &str, arguments: &[&str]) -> io::Result<Self> {
        // One that was killed leaves its socket file, which the new one has to replace.
        let stale = inode(&socket_path(directory, name));
        Self::spawn(directory, name, arguments, None, ALL_LINES)?.opened(stale)
    }

    /// The same with the log limit of production.
    ///
    /// # Errors
    /// As [`start`](Self::start).
    pub fn start_limited(directory: &Path, name: &str, arguments: &[&str]) -> io::Result<Self> {
        Self::spawn(directory, name, arguments, None, LIMITED_LINES)?.opened(None)
    }

    /// The same, with `fd` as its descriptor 9.
    ///
    /// # Errors
    /// As [`start`](Self::start).
    pub fn start_with(
        directory: &Path,
        name: &str,
        arguments: &[&str],
        fd: OwnedFd,
    ) -> io::Result<Self> {
        let stale = inode(&socket_path(directory, name));
        Self::spawn(directory, name, arguments, Some(fd), ALL_LINES)?.opened(stale)
    }

    /// The same, with `fd` as its descriptor 9, which `--fd 9` in `arguments` makes its socket.
    ///
    /// # Errors
    /// As [`start`](Self::start).
    pub fn start_on(
        directory: &Path,
        name: &str,
        arguments: &[&str],
        fd: OwnedFd,
    ) -> io::Result<Self> {
        let daemon = Self::spawn(directory, name, arguments, Some(fd), ALL_LINES)?;
        daemon.started("ringscoped to record", |daemon| daemon.log().contains("recording to"))
    }

    /// The same with this variable in its environment.
    ///
    /// # Errors
    /// As [`start`](Self::start).
    pub fn start_under(
        directory: &Path,
        name: &str,
        arguments: &[&str],
        variable: (&str, &Path),
    ) -> io::Result<Self> {
        let mut command = Command::new(program("ringscoped")?);
        command.arg("--socket-path").arg(socket_path(directory, name));
        command.args(["--name", name]).args(arguments).env(variable.0, variable.1);
        let stale = inode(&socket_path(directory, name));
        Self::spawn_command(directory, name, command, None, ALL_LINES)?.opened(stale)
    }

    /// Waits for its socket, where there was a stale one before or none.
    fn opened(self, stale: Option<(u64, i64, i64)>) -> io::Result<Self> {
        self.started("ringscoped to open its socket", |daemon| {
            let found = inode(&daemon.socket);
            // It opens the socket first; the recorder can still fail.
            found.is_some() && found != stale && daemon.log().contains("recording to")
        })
    }

    /// Waits until `is_ready`, or until it has ended, which is an error.
    fn started(mut self, what: &str, is_ready: impl Fn(&Self) -> bool) -> io::Result<Self> {
        let is_running = eventually(STARTED, what, || match () {
            () if is_ready(&self) => Ok(true),
            () if !self.is_alive() => Ok(false),
            () => Err(self.log()),
        });
        if is_running {
            return Ok(self);
        }
        Err(io::Error::other(format!("expected {what}, but it ended:\n{}", self.log())))
    }

    /// Starts a daemon that takes over from this one, and waits until it has. Its log is beside this one's.
    ///
    /// # Errors
    /// When it does not take over; the message has its log.
    pub fn successor(&self, arguments: &[&str]) -> io::Result<Self> {
        let directory = self.log.parent().unwrap_or(Path::new("/"));
        let name = self.recorder.file_stem().unwrap_or_default().to_string_lossy();
        let process = self.pid().to_string();
        let mut command = Command::new(program("ringscoped")?);
        command.args(arguments).args(["--take-over", &process]);
        if !arguments.contains(&"--config") {
            command.args(["--name", &name]);
            if !arguments.contains(&"--fd") {
                command.arg("--socket-path").arg(&self.socket);
            }
        }
        let log = directory.join(format!("{name}.after-{process}.log"));
        let daemon = Self::spawn_logging(directory, &name, command, None, (ALL_LINES, log))?;
        daemon.started("ringscoped to take over", |daemon| daemon.log().contains("took over"))
    }

    /// The same as a client: it connects to the front end that listens at its socket, now or later.
    ///
    /// # Errors
    /// When it is not built.
    pub fn start_as_client(directory: &Path, name: &str, arguments: &[&str]) -> io::Result<Self> {
        // The recorder is then its own, and not that of one before.
        Self::spawn(directory, name, &[&["--client"], arguments].concat(), None, ALL_LINES)?
            .started("ringscoped to record", |daemon| daemon.log().contains("recording to"))
    }

    /// Starts the daemon with a file of several guests, its log and its run directory in `directory`, and waits
    /// until it is ready. The guest `first` is the one that [`socket`](Self::socket) and
    /// [`recorder`](Self::recorder) are of.
    ///
    /// # Errors
    /// When it is not built, or does not get ready; the message has its log.
    pub fn start_with_config(directory: &Path, first: &str, config: &str) -> io::Result<Self> {
        Self::start_several(directory, first, config, ALL_LINES)
    }

    /// The same with the log limit of production.
    ///
    /// # Errors
    /// As [`start_with_config`](Self::start_with_config).
    pub fn start_limited_with_config(
        directory: &Path,
        first: &str,
        config: &str,
    ) -> io::Result<Self> {
        Self::start_several(directory, first, config, LIMITED_LINES)
    }

    fn start_several(directory: &Path, first: &str, config: &str, lines: &str) -> io::Result<Self> {
        let path = directory.join("config.toml");
        fs::write(&path, config)?;
        let mut command = Command::new(program("ringscoped")?);
        command.arg("--config").arg(&path);
        let guests = config.matches("[[guest]]").count();
        let what = format!("ringscoped to record {guests} guests");
        Self::spawn_command(directory, first, command, None, lines)?
            .started(&what, |daemon| daemon.log().matches("recording to").count() >= guests)
    }

    fn spawn(
        directory: &Path,
        name: &str,
        arguments: &[&str],
        handed: Option<OwnedFd>,
        lines: &str,
    ) -> io::Result<Self> {
        let program = program("ringscoped")?;
        let mut command = match &handed {
            None => Command::new(program),
            Some(_) => {
                // The shell becomes the daemon.
                let mut shell = Command::new("/bin/sh");
                shell.args(["-c", "exec 9<&0 </dev/null \"$@\"", "sh"]).arg(program);
                shell
            }
        };
        if !arguments.contains(&"--fd") {
            command.arg("--socket-path").arg(socket_path(directory, name));
        }
        command.args(["--name", name]).args(arguments);
        Self::spawn_command(directory, name, command, handed, lines)
    }

    /// `handed` becomes its standard input, `lines` its `RUST_LOG`.
    fn spawn_command(
        directory: &Path,
        name: &str,
        command: Command,
        handed: Option<OwnedFd>,
        lines: &str,
    ) -> io::Result<Self> {
        let log = directory.join(format!("{name}.log"));
        Self::spawn_logging(directory, name, command, handed, (lines, log))
    }

    fn spawn_logging(
        directory: &Path,
        name: &str,
        mut command: Command,
        handed: Option<OwnedFd>,
        (lines, log): (&str, PathBuf),
    ) -> io::Result<Self> {
        let socket = socket_path(directory, name);
        let child = command
            .env("RUST_LOG", lines)
            .arg("--run-dir")
            .arg(directory)
            .stdin(handed.map_or_else(Stdio::null, Stdio::from))
            .stdout(Stdio::null())
            .stderr(std::fs::File::create(&log)?)
            .spawn()?;
        Ok(Self { child, socket, log, recorder: location::recorder_path(directory, name) })
    }

    /// Where it listens.
    #[must_use]
    pub fn socket(&self) -> &Path {
        &self.socket
    }

    /// What it has logged.
    #[must_use]
    pub fn log(&self) -> String {
        std::fs::read_to_string(&self.log).unwrap_or_default()
    }

    /// Waits until it has logged `text`.
    ///
    /// # Panics
    /// When it does not within 5 s; the message has the log.
    #[track_caller]
    pub fn expect_log(&self, text: &str) {
        eventually(STARTED, &format!("{text:?} in the log"), || {
            let log = self.log();
            when(log.contains(text), log)
        });
    }

    /// Sends it a signal.
    ///
    /// # Errors
    /// What the system answers.
    pub fn signal(&self, signal: Signal) -> io::Result<()> {
        Ok(kill_process(Pid::from_child(&self.child), signal)?)
    }

    /// Stops it (SIGSTOP), and waits until each of its threads has stopped. SIGCONT ends that.
    ///
    /// # Errors
    /// What the system answers.
    ///
    /// # Panics
    /// When a thread runs on for 5 s.
    pub fn hold(&self) -> io::Result<()> {
        self.signal(Signal::STOP)?;
        let running = || -> io::Result<Option<String>> {
            for thread in fs::read_dir(format!("/proc/{}/task", self.pid()))? {
                let stat = fs::read_to_string(thread?.path().join("stat"))?;
                // After the name, which may have brackets itself.
                if !stat.rsplit(')').next().is_some_and(|rest| rest.starts_with(" T")) {
                    return Ok(Some(stat));
                }
            }
            Ok(None)
        };
        eventually(HELD, "each thread to stop", || match running().transpose() {
            None => Ok(Ok(())),
            Some(Err(error)) => Ok(Err(error)),
            Some(Ok(stat)) => Err(stat),
        })
    }

    /// How many descriptors it has open.
    ///
    /// # Panics
    /// When it is gone.
    #[must_use]
    pub fn descriptors(&self) -> usize {
        fs::read_dir(format!("/proc/{}/fd", self.pid())).expect("its descriptors").count()
    }

    /// Lets it open no further descriptor: all numbers below the limit are in use. (The limit also says how many poll(2)
    /// takes.) Returns the limit before, for [`set_descriptor_limit`](Self::set_descriptor_limit).
    ///
    /// # Panics
    /// When it is gone.
    #[must_use]
    pub fn refuse_descriptors(&self) -> Option<u64> {
        let is_open =
            |n: &u64| fs::symlink_metadata(format!("/proc/{}/fd/{n}", self.pid())).is_ok();
        let limit = (0..).find(|n| !is_open(n)).expect("it has few");
        assert!(limit >= 8, "only {limit} descriptors: the daemon is gone");
        self.set_descriptor_limit(Some(limit))
    }

    /// Sets the number of descriptors that it may have from now on. Returns what that was.
    ///
    /// # Panics
    /// When it is gone.
    pub fn set_descriptor_limit(&self, current: Option<u64>) -> Option<u64> {
        let process = Pid::from_raw(self.pid().cast_signed());
        // The hard limit is the one that it got from us.
        let maximum = getrlimit(Resource::Nofile).maximum;
        let before = prlimit(process, Resource::Nofile, Rlimit { current, maximum });
        before.expect("its limit").current
    }

    /// Its memory that is resident and its own, KiB (`proc_pid_status(5)`, `RssAnon`).
    ///
    /// # Panics
    /// When it is gone.
    #[must_use]
    pub fn memory_kib(&self) -> u64 {
        let status =
            fs::read_to_string(format!("/proc/{}/status", self.pid())).expect("its status");
        let line = status.lines().find_map(|line| line.strip_prefix("RssAnon:"));
        line.and_then(|line| line.trim().strip_suffix(" kB")?.parse().ok()).expect("a number")
    }

    /// Its process id.
    #[must_use]
    pub fn pid(&self) -> u32 {
        self.child.id()
    }

    /// Its time on the CPUs so far, in whole clock ticks of 10 ms (`proc_pid_stat(5)`, fields 14 and 15).
    ///
    /// # Panics
    /// When it is gone.
    #[must_use]
    pub fn cpu_time(&self) -> Duration {
        let stat = fs::read_to_string(format!("/proc/{}/stat", self.pid())).expect("its stat");
        let time = |number| stat_field(&stat, number).and_then(|field| field.parse::<u64>().ok());
        let ticks: u64 = [14, 15].map(|number| time(number).expect("a number")).iter().sum();
        Duration::from_millis(10 * ticks)
    }

    /// Whether it is still running.
    pub fn is_alive(&mut self) -> bool {
        matches!(self.child.try_wait(), Ok(None))
    }

    /// Its flight recorder's file.
    #[must_use]
    pub fn recorder(&self) -> &Path {
        &self.recorder
    }

    /// Its flight recorder, open.
    ///
    /// # Errors
    /// When it cannot be read.
    pub fn reader(&self) -> io::Result<Reader> {
        Reader::open(&self.recorder).map_err(io::Error::other)
    }

    /// Waits until it has ended by itself.
    ///
    /// # Errors
    /// What the system answers.
    ///
    /// # Panics
    /// When it still runs after `limit`; the message has its log.
    #[track_caller]
    pub fn wait(&mut self, limit: Duration) -> io::Result<ExitStatus> {
        eventually(limit, "ringscoped to end", || {
            self.child.try_wait().transpose().ok_or_else(|| self.log())
        })
    }

    /// Asks it to end (SIGTERM), and waits until it has.
    ///
    /// # Errors
    /// As [`wait`](Self::wait).
    ///
    /// # Panics
    /// As [`wait`](Self::wait).
    #[track_caller]
    pub fn terminate(&mut self, limit: Duration) -> io::Result<ExitStatus> {
        let pid = Pid::from_child(&self.child);
        if self.is_alive() {
            kill_process(pid, Signal::TERM)?;
        }
        self.wait(limit)
    }
}

fn socket_path(directory: &Path, name: &str) -> PathBuf {
    directory.join(format!("{name}.sock"))
}

impl Drop for Daemon {
    fn drop(&mut self) {
        // If it has ended already there is nothing more to be done.
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

fn inode(path: &Path) -> Option<(u64, i64, i64)> {
    let found = std::fs::metadata(path).ok()?;
    // Inode numbers are used again: the time tells the files apart.
    Some((found.ino(), found.ctime(), found.ctime_nsec()))
}

/// A program of this workspace: in `RINGSCOPE_BIN_DIR`, or built with these tests, in the same target
/// directory, two levels above them.
///
/// # Errors
/// When it is not built.
pub fn program(name: &str) -> io::Result<PathBuf> {
    let directory = match std::env::var_os("RINGSCOPE_BIN_DIR") {
        Some(directory) => PathBuf::from(directory),
        None => std::env::current_exe()?.ancestors().nth(2).unwrap_or(Path::new("/")).to_owned(),
    };
    let program = directory.join(name);
    if program.exists() {
        return Ok(program);
    }
    let text = format!("no {}; build the workspace first", program.display());
    Err(io::Error::other(text))
}
