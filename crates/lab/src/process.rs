//! A child process with a log file, killed when its handle is dropped.

use rustix::process::{Pid, Signal, kill_process};
use std::fs::{self, File};
use std::io;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, ExitStatus, Stdio};
use std::time::{Duration, Instant};

/// A child process whose output goes to a file. Dropping it kills it and waits for its end.
#[derive(Debug)]
pub struct Process {
    child: Child,
    log: PathBuf,
}

impl Process {
    /// Starts `command` with standard output and error appended to `log`, and no input.
    pub fn spawn(command: &mut Command, log: &Path) -> io::Result<Self> {
        let file = File::options().create(true).append(true).open(log)?;
        let child =
            command.stdin(Stdio::null()).stdout(file.try_clone()?).stderr(file).spawn().map_err(
                |error| {
                    let program = command.get_program().to_string_lossy();
                    io::Error::new(error.kind(), format!("cannot start {program}: {error}"))
                },
            )?;
        Ok(Self { child, log: log.to_path_buf() })
    }

    /// The child's process id.
    pub fn pid(&self) -> u32 {
        self.child.id()
    }

    /// The last `bytes` of what it has printed.
    pub fn log_tail(&self, bytes: usize) -> String {
        tail(&self.log, bytes)
    }

    /// How it ended, or `None` while it runs.
    pub fn ended(&mut self) -> io::Result<Option<ExitStatus>> {
        self.child.try_wait()
    }

    /// Waits for its end; `None` when it still runs after `limit`.
    pub fn wait(&mut self, limit: Duration) -> io::Result<Option<ExitStatus>> {
        let end = Instant::now() + limit;
        loop {
            if let Some(status) = self.child.try_wait()? {
                return Ok(Some(status));
            }
            if Instant::now() >= end {
                return Ok(None);
            }
            std::thread::sleep(Duration::from_millis(5));
        }
    }

    /// Sends it a signal, such as STOP or CONT.
    pub fn signal(&self, signal: Signal) -> io::Result<()> {
        let pid = Pid::from_raw(self.child.id() as i32).expect("a child's pid is not 0");
        Ok(kill_process(pid, signal)?)
    }

    /// Sends SIGTERM, and kills it if it still runs after `limit`.
    pub fn terminate(&mut self, limit: Duration) -> io::Result<ExitStatus> {
        // After it has been waited for, its number may be another process's.
        if self.child.try_wait()?.is_none() {
            self.signal(Signal::TERM)?;
        }
        match self.wait(limit)? {
            Some(status) => Ok(status),
            None => self.kill(),
        }
    }

    /// Kills it (SIGKILL) and waits for its end.
    pub fn kill(&mut self) -> io::Result<ExitStatus> {
        self.child.kill()?;
        self.child.wait()
    }
}

impl Drop for Process {
    fn drop(&mut self) {
        // Nothing can be done about an error here.
        let _ = self.kill();
    }
}

/// The end of a file, for error messages; empty when it cannot be read.
pub(crate) fn tail(path: &Path, bytes: usize) -> String {
    let content = fs::read(path).unwrap_or_default();
    let start = content.len().saturating_sub(bytes);
    String::from_utf8_lossy(&content[start..]).trim().to_owned()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn shell(script: &str, log: &Path) -> Process {
        Process::spawn(Command::new("/bin/sh").args(["-c", script]), log).unwrap()
    }

    #[test]
    fn output_is_kept_and_the_end_is_seen() {
        let dir = tempfile::tempdir().unwrap();
        let mut process = shell("echo said; exit 4", &dir.path().join("log"));
        let status = process.wait(Duration::from_secs(5)).unwrap().unwrap();
        assert_eq!((status.code(), process.log_tail(100).as_str()), (Some(4), "said"));
    }

    #[test]
    fn it_is_ended_with_its_handle() {
        let dir = tempfile::tempdir().unwrap();
        let process = shell("exec sleep 60", &dir.path().join("log"));
        let entry = PathBuf::from(format!("/proc/{}", process.pid()));
        assert!(entry.exists());
        drop(process);
        assert!(!entry.exists());
    }

    #[test]
    fn what_ignores_the_polite_way_is_killed() {
        let dir = tempfile::tempdir().unwrap();
        let mut process = shell("trap '' TERM; while :; do sleep 1; done", &dir.path().join("log"));
        std::thread::sleep(Duration::from_millis(100));
        assert_eq!(process.terminate(Duration::from_millis(200)).unwrap().code(), None);
    }

    #[test]
    fn a_missing_program_is_named() {
        let dir = tempfile::tempdir().unwrap();
        let log = dir.path().join("log");
        let error = Process::spawn(&mut Command::new("/no/such/program"), &log).unwrap_err();
        assert!(error.to_string().contains("/no/such/program"), "{error}");
    }
}
