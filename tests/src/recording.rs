//! `ringscope record` under way.

use std::io::{self, Read as _};
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::thread::sleep;
use std::time::{Duration, Instant};

use lab::Signal;
use rustix::process::{Pid, kill_process};

use crate::daemon::program;

const SOON: Duration = Duration::from_secs(20);

/// The process. It is killed when this is dropped.
#[derive(Debug)]
pub struct Recording(Child);

impl Recording {
    /// Has what the daemons of `directory` record kept in `file` from now on.
    ///
    /// # Errors
    /// When it does not begin.
    pub fn start(directory: &Path, file: &Path, arguments: &[&str]) -> io::Result<Self> {
        let mut command = Command::new(program("ringscope")?);
        command.arg("record").arg("--run-dir").arg(directory).arg("-o").arg(file).args(arguments);
        let recording = Self(command.stdout(Stdio::null()).stderr(Stdio::piped()).spawn()?);
        // It has its place in the recorder once its file is there.
        let part = beside(file, "part");
        let until = Instant::now() + SOON;
        while !part.exists() {
            if Instant::now() >= until {
                return Err(io::Error::other(format!("no {}", part.display())));
            }
            sleep(Duration::from_millis(5));
        }
        sleep(Duration::from_millis(20));
        Ok(recording)
    }

    /// Ends it as Ctrl-C does. Returns what it said.
    ///
    /// # Errors
    /// When it does not end.
    pub fn interrupt(self) -> io::Result<String> {
        kill_process(Pid::from_child(&self.0), Signal::INT)?;
        self.wait()
    }

    /// Waits until it has ended by itself. Returns what it said.
    ///
    /// # Errors
    /// When it does not end.
    pub fn wait(mut self) -> io::Result<String> {
        let until = Instant::now() + SOON;
        while self.0.try_wait()?.is_none() {
            if Instant::now() >= until {
                return Err(io::Error::other("ringscope record does not end"));
            }
            sleep(Duration::from_millis(10));
        }
        let mut said = String::new();
        if let Some(output) = &mut self.0.stderr {
            output.read_to_string(&mut said)?;
        }
        Ok(said)
    }
}

impl Drop for Recording {
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
