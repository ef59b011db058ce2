//! `ringscope record` under way.

use std::fs;
use std::io::{self, Read as _};
use std::os::unix::fs::FileExt as _;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::thread::sleep;
use std::time::Duration;

use lab::Signal;
use rustix::process::{Pid, kill_process};

use crate::daemon::program;
use crate::eventually::{eventually, when};

const SOON: Duration = Duration::from_secs(20);

/// The process. It is killed when this is dropped.
#[derive(Debug)]
pub struct RecordCommand(Child);

impl RecordCommand {
    /// Has what the daemons of `directory` record kept in `file` from now on.
    ///
    /// # Errors
    /// When it cannot be started.
    ///
    /// # Panics
    /// When it does not begin within 20 s.
    pub fn start(directory: &Path, file: &Path, arguments: &[&str]) -> io::Result<Self> {
        Self::start_by(Command::new(program("ringscope")?), directory, file, arguments)
    }

    /// The same, in the idle class: any other program gets its CPU at once.
    ///
    /// # Errors
    /// As [`start`](Self::start).
    ///
    /// # Panics
    /// As [`start`](Self::start).
    pub fn start_idle(directory: &Path, file: &Path, arguments: &[&str]) -> io::Result<Self> {
        let mut command = Command::new("chrt");
        command.args(["--idle", "0"]).arg(program("ringscope")?);
        Self::start_by(command, directory, file, arguments)
    }

    fn start_by(
        mut command: Command,
        directory: &Path,
        file: &Path,
        arguments: &[&str],
    ) -> io::Result<Self> {
        command.arg("record").arg("--run-dir").arg(directory).arg("-o").arg(file).args(arguments);
        let recording = Self(command.stdout(Stdio::null()).stderr(Stdio::piped()).spawn()?);
        // It has its place in the recorder once its file is there.
        let part = beside(file, "part");
        let what = format!("the recording's file {}", part.display());
        eventually(SOON, &what, || when(part.exists(), "none"));
        // Nothing shows when it has found its place in the recorder, just after it has made the file.
        sleep(Duration::from_millis(20));
        Ok(recording)
    }

    /// Whether it has ended by itself.
    ///
    /// # Errors
    /// What the system answers.
    pub fn has_ended(&mut self) -> io::Result<bool> {
        Ok(self.0.try_wait()?.is_some())
    }

    /// Ends it as Ctrl-C does. Returns what it said.
    ///
    /// # Errors
    /// What the system answers.
    ///
    /// # Panics
    /// When it does not end within 20 s.
    pub fn interrupt(self) -> io::Result<String> {
        kill_process(Pid::from_child(&self.0), Signal::INT)?;
        self.wait()
    }

    /// Waits until it has ended by itself. Returns what it said.
    ///
    /// # Errors
    /// What the system answers.
    ///
    /// # Panics
    /// When it does not end within 20 s.
    pub fn wait(mut self) -> io::Result<String> {
        eventually(SOON, "ringscope record to end", || {
            self.0.try_wait().transpose().ok_or("that it runs")
        })?;
        let mut said = String::new();
        if let Some(output) = &mut self.0.stderr {
            output.read_to_string(&mut said)?;
        }
        Ok(said)
    }
}

impl Drop for RecordCommand {
    fn drop(&mut self) {
        let _ = self.0.kill();
        let _ = self.0.wait();
    }
}

/// `FILE.EXTENSION`.
#[must_use]
pub fn beside(file: &Path, extension: &str) -> PathBuf {
    PathBuf::from(format!("{}.{extension}", file.display()))
}

/// Writes this word of a recorder.
///
/// # Panics
/// When it cannot be written.
pub fn write_word(recorder: &Path, at: usize, word: u64) {
    let file = fs::File::options().write(true).open(recorder).unwrap();
    file.write_all_at(&word.to_ne_bytes(), at as u64 * 8).unwrap();
}
