//! The two ends of a variant: the talker, which sends probes, and the responder, which answers them. Each is a network
//! namespace, a guest or a far host.

use std::fs;
use std::io;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::time::Duration;

use crate::command::{CommandError, Stop, run};
use crate::guest::scripts;

/// Where the programs of an end run.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Place {
    /// A network namespace of this host.
    Namespace(String),
    /// A guest, by its console.
    Console(PathBuf),
    /// A far host, by a connection of ssh that is open.
    Ssh {
        /// The socket of that connection (`ControlPath` in ssh_config(5)).
        control: PathBuf,
        /// The directory there that has the agent.
        directory: String,
    },
}

impl Place {
    /// Reads a line of `qemu-scripts/variant`: `netns NAME`, `console PATH` or `ssh CONTROL DIRECTORY`.
    #[must_use]
    pub fn parse(line: &str) -> Option<Self> {
        match line.trim().split_once(' ')? {
            ("netns", name) => Some(Self::Namespace(name.into())),
            ("console", path) => Some(Self::Console(path.into())),
            ("ssh", rest) => {
                let (control, directory) = rest.rsplit_once(' ')?;
                Some(Self::Ssh { control: control.into(), directory: directory.into() })
            }
            _ => None,
        }
    }
}

/// An end of a variant.
#[derive(Clone, Debug)]
pub struct End {
    place: Place,
    /// The host's `ringscope`.
    ringscope: PathBuf,
    /// The directory of the variant. Processes that `variant down` has to end are found by it.
    variant: PathBuf,
    /// CPUs of what runs in a namespace, as taskset writes them.
    cpus: Option<String>,
}

/// Why an end's file could not be had.
#[derive(Debug, thiserror::Error)]
pub enum EndError {
    /// The end did not do what was asked.
    #[error(transparent)]
    Command(#[from] CommandError),
    /// The file cannot be written here.
    #[error("cannot write {path}: {source}")]
    File {
        /// Its path.
        path: PathBuf,
        /// What the system said.
        source: io::Error,
    },
    /// The process has no number.
    #[error("expected the number of a process, found {0:?}")]
    Process(String),
}

impl End {
    /// The end at this place.
    #[must_use]
    pub const fn new(
        place: Place,
        ringscope: PathBuf,
        variant: PathBuf,
        cpus: Option<String>,
    ) -> Self {
        Self { place, ringscope, variant, cpus }
    }

    /// Whether programs of this end run on this host, by its clock.
    #[must_use]
    pub const fn is_on_host(&self) -> bool {
        matches!(self.place, Place::Namespace(_))
    }

    /// Whether programs of this end run on another host.
    #[must_use]
    pub const fn is_far(&self) -> bool {
        matches!(self.place, Place::Ssh { .. })
    }

    /// Runs a command line of the agent, as in `udp-ping 10.77.0.2:7010`, and returns what it prints.
    ///
    /// # Errors
    /// If it fails or takes longer than `limit`; and when `stop` is set.
    pub fn agent(&self, stop: &Stop, line: &str, limit: Duration) -> Result<String, CommandError> {
        self.shell(stop, &format!("{} agent {line}", self.program()), limit)
    }

    /// Starts a command line of the agent in the background, and returns its process's number at this end.
    ///
    /// # Errors
    /// As [`End::agent`].
    pub fn start_agent(&self, stop: &Stop, line: &str) -> Result<u32, EndError> {
        self.start_into(stop, &format!("{} agent {line}", self.program()), "/dev/null")
    }

    /// As [`End::start_agent`]; what it prints is in the file that [`End::fetch`] then brings to `path`.
    ///
    /// # Errors
    /// As [`End::agent`].
    pub fn start_agent_into(&self, stop: &Stop, line: &str, path: &Path) -> Result<u32, EndError> {
        let command = format!("{} agent {line}", self.program());
        self.start_into(stop, &command, &self.output_path(path))
    }

    /// Starts a command of the shell in the background, and returns its process's number at this end.
    ///
    /// # Errors
    /// As [`End::agent`].
    pub fn start(&self, stop: &Stop, command: &str) -> Result<u32, EndError> {
        self.start_into(stop, command, "/dev/null")
    }

    /// As [`End::start`]; what the command prints is in the file `into` of this end, such as [`End::output_path`].
    ///
    /// # Errors
    /// As [`End::agent`].
    pub fn start_into(&self, stop: &Stop, command: &str, into: &str) -> Result<u32, EndError> {
        let line = format!("{command} >{into} 2>&1 </dev/null & echo $!");
        let printed = self.shell(stop, &line, Duration::from_secs(20))?;
        printed.trim().parse().map_err(|_| EndError::Process(printed))
    }

    /// Ends a process that [`End::start`] started; it may have ended by itself.
    ///
    /// # Errors
    /// If the end does not answer.
    pub fn end_process(&self, stop: &Stop, pid: u32) -> Result<(), CommandError> {
        self.shell(stop, &format!("kill {pid} 2>/dev/null || true"), Duration::from_secs(20))
            .map(drop)
    }

    /// Makes the file, by which the process ends, waits for its end, and returns whether it ran until then.
    ///
    /// # Errors
    /// As [`End::agent`]; also if it does not end within 20 s.
    pub fn await_end(&self, stop: &Stop, pid: u32, file: &str) -> Result<bool, CommandError> {
        // A process that has ended is there until its parent has taken notice.
        let runs = format!("grep -qs ') [^ZX] ' /proc/{pid}/stat");
        let line = format!(
            "if {runs}; then echo runs; : >{file}; while {runs}; do sleep 0.02; done; rm {file}; fi"
        );
        Ok(!self.shell(stop, &line, Duration::from_secs(20))?.trim().is_empty())
    }

    /// Whether that process still runs.
    ///
    /// # Errors
    /// If the end does not answer.
    pub fn is_running(&self, stop: &Stop, pid: u32) -> Result<bool, CommandError> {
        let line = format!("kill -0 {pid} 2>/dev/null && echo yes || echo no");
        Ok(self.shell(stop, &line, Duration::from_secs(20))?.trim() == "yes")
    }

    /// Whether this end has a program of that name.
    ///
    /// # Errors
    /// If the end does not answer.
    pub fn has(&self, stop: &Stop, name: &str, limit: Duration) -> Result<bool, CommandError> {
        let line = format!("command -v {name} >/dev/null && echo yes || echo no");
        Ok(self.shell(stop, &line, limit)?.trim() == "yes")
    }

    /// Waits until a program of this end listens at a TCP port, which is given as four hexadecimal digits.
    ///
    /// # Errors
    /// If none does within `limit`.
    pub fn await_port(&self, stop: &Stop, port: &str, limit: Duration) -> Result<(), CommandError> {
        let tries = limit.as_millis() / 100;
        // State 0A of /proc/net/tcp: listening.
        let line = format!(
            "(for i in $(seq {tries}); do grep -q ':{port} [0:]* 0A' /proc/net/tcp /proc/net/tcp6 2>/dev/null && exit 0; \
             sleep 0.05; done; echo 'expected a program that listens at TCP port 0x{port}, found none'; exit 1)"
        );
        self.shell(stop, &line, limit).map(drop)
    }

    /// Where a program of this end writes the file that [`End::fetch`] then brings to `path`.
    #[must_use]
    pub fn output_path(&self, path: &Path) -> String {
        let name = path.file_name().unwrap_or_default().display();
        match &self.place {
            Place::Namespace(_) => path.display().to_string(),
            // The only directory that every kind of guest can write to.
            Place::Console(_) => format!("$HOME/{name}"),
            Place::Ssh { directory, .. } => format!("{directory}/{name}"),
        }
    }

    /// Brings a file from a guest or a far host to `path`, and removes it there. What runs on this host has written it already.
    ///
    /// # Errors
    /// If it is not there, or cannot be written here.
    pub fn fetch(&self, stop: &Stop, path: &Path) -> Result<(), EndError> {
        if self.is_on_host() {
            return Ok(());
        }
        let there = self.output_path(path);
        let content =
            self.shell(stop, &format!("cat {there} && rm {there}"), Duration::from_secs(60))?;
        fs::write(path, content).map_err(|source| EndError::File { path: path.into(), source })
    }

    /// What the clock of this end follows: an answer of `qemu-scripts/variants/far.sh clocks`. A guest's is not asked for.
    ///
    /// # Errors
    /// If it cannot be asked.
    pub(crate) fn clock_facts(&self, stop: &Stop) -> Result<String, CommandError> {
        let limit = Duration::from_secs(20);
        match &self.place {
            Place::Ssh { directory, .. } => {
                self.shell(stop, &format!("sh {directory}/far.sh clocks"), limit)
            }
            Place::Namespace(_) | Place::Console(_) => {
                let script = scripts().join("variants/far.sh");
                run(stop, Command::new("sh").arg(script).arg("clocks"), limit)
            }
        }
    }

    /// A script of `qemu-scripts` that guests have as a program: what the shell calls it.
    #[must_use]
    pub fn script(&self, name: &str) -> String {
        match self.place {
            Place::Namespace(_) => format!("'{}'", scripts().join(name).display()),
            Place::Console(_) => name.into(),
            Place::Ssh { .. } => name.into(),
        }
    }

    fn program(&self) -> String {
        match &self.place {
            Place::Namespace(_) => format!("'{}'", self.ringscope.display()),
            Place::Console(_) => "ringscope".into(),
            Place::Ssh { directory, .. } => format!("{directory}/ringscope"),
        }
    }

    /// Runs a shell command, and returns what it prints.
    pub(crate) fn shell(
        &self,
        stop: &Stop,
        line: &str,
        limit: Duration,
    ) -> Result<String, CommandError> {
        let mut command;
        match &self.place {
            Place::Namespace(name) => {
                command = Command::new("ip");
                command.args(["netns", "exec", name]);
                if let Some(cpus) = &self.cpus {
                    command.args(["taskset", "-c", cpus]);
                }
                command.args(["sh", "-c", line]).env("RINGSCOPE_VARIANT", &self.variant);
            }
            Place::Console(path) => {
                command = Command::new(&self.ringscope);
                let limit = limit.as_secs().max(1).to_string();
                command.args(["agent", "shell"]).arg(path).args(["--timeout", &limit, line]);
            }
            Place::Ssh { control, .. } => {
                command = Command::new("ssh");
                command.args(["-T", "-o", "BatchMode=yes", "-o", "ControlMaster=no", "-o"]);
                command.arg(format!("ControlPath={}", control.display()));
                // If the connection has ended, no other one is made: the far host has undone everything.
                command.args(["-o", "ProxyCommand=false", "peer"]);
                command.arg(format!("exec sh -c '{}'", line.replace('\'', r"'\''")));
            }
        }
        // The guest's end keeps the limit, too; ours is for one that does not answer.
        run(stop, &mut command, limit + Duration::from_secs(30))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_place_is_read_as_it_is_written() {
        assert_eq!(Place::parse("netns a-b\n"), Some(Place::Namespace("a-b".into())));
        assert_eq!(Place::parse("console /run/x y"), Some(Place::Console("/run/x y".into())));
        let far = Place::Ssh { control: "/run/a b/ssh".into(), directory: "/tmp/c".into() };
        assert_eq!(Place::parse("ssh /run/a b/ssh /tmp/c\n"), Some(far));
        for line in ["", "netns", "other x", "ssh /run/ssh"] {
            assert_eq!(Place::parse(line), None, "{line}");
        }
    }

    #[test]
    fn a_file_is_where_the_end_can_write() {
        let end = |place| End::new(place, "/bin/ringscope".into(), "/run/v".into(), None);
        let path = Path::new("/out/echo.csv");
        assert_eq!(end(Place::Namespace("a".into())).output_path(path), "/out/echo.csv");
        assert_eq!(end(Place::Console("/c".into())).output_path(path), "$HOME/echo.csv");
        let far = Place::Ssh { control: "/run/ssh".into(), directory: "/tmp/c".into() };
        assert_eq!(end(far).output_path(path), "/tmp/c/echo.csv");
    }
}
