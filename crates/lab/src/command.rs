//! Programs that the lab runs. Each has a process group of its own: Ctrl-C reaches the lab alone, which then takes
//! everything down in order.

use std::io::{self, BufRead as _, BufReader, Read};
use std::os::unix::process::CommandExt as _;
use std::process::{Child, Command, Stdio};
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::mpsc::{Receiver, RecvTimeoutError, channel};
use std::sync::{Arc, LazyLock};
use std::thread::{JoinHandle, sleep, spawn};
use std::time::{Duration, Instant};

use rustix::process::{Pid, Signal, kill_process_group};

/// Time between two looks at a program that runs.
const LOOK_EVERY: Duration = Duration::from_millis(10);
/// Time that a program has to end before it is killed.
const ENDS_WITHIN: Duration = Duration::from_secs(3);
/// The environment variable by which limits of time are multiplied, for a machine that is emulated.
pub const PATIENCE: &str = "RINGSCOPE_PATIENCE";
/// Bytes of a program's messages that an error shows.
const SAID_BYTES: usize = 2000;

/// Whether the lab is to end: set by a signal.
#[derive(Clone, Debug, Default)]
pub struct Stop(Arc<AtomicBool>);

impl Stop {
    /// What a signal handler sets.
    #[must_use]
    pub fn flag(&self) -> Arc<AtomicBool> {
        Arc::clone(&self.0)
    }

    /// Whether the lab is to end.
    #[must_use]
    pub fn is_set(&self) -> bool {
        self.0.load(Ordering::Relaxed)
    }
}

/// A limit of time, for this machine.
#[must_use]
pub fn patient(limit: Duration) -> Duration {
    static FACTOR: LazyLock<u32> = LazyLock::new(|| {
        let factor = std::env::var(PATIENCE).ok().and_then(|it| it.parse().ok());
        factor.filter(|it| (1..=100).contains(it)).unwrap_or(1)
    });
    limit * *FACTOR
}

/// Why a program did not do its work.
#[derive(Debug, thiserror::Error)]
pub enum CommandError {
    /// It could not be started or waited for.
    #[error("cannot run `{command}`: {source}")]
    Io {
        /// The command line.
        command: String,
        /// What the system said.
        source: io::Error,
    },
    /// It ended with an error.
    #[error("`{command}` failed ({status}): {said}")]
    Failed {
        /// The command line.
        command: String,
        /// How it ended.
        status: String,
        /// The end of what it printed.
        said: String,
    },
    /// It ran for too long, and was ended.
    #[error(
        "expected `{command}` to end within {limit:?}, found that it still runs; it said: {said}"
    )]
    TooLong {
        /// The command line.
        command: String,
        /// The time it had.
        limit: Duration,
        /// The end of what it printed.
        said: String,
    },
    /// It said nothing for too long, and was ended.
    #[error(
        "expected `{command}` to go on, found that it said nothing for {silence:?}; before that: {said}"
    )]
    Silent {
        /// The command line.
        command: String,
        /// The time.
        silence: Duration,
        /// The end of what it printed.
        said: String,
    },
    /// A signal has come: the lab ends.
    #[error("interrupted")]
    Interrupted,
}

/// Runs `command` to its end, and returns its standard output.
///
/// # Errors
/// If it cannot be started, ends with an error, or runs longer than `limit`; and when `stop` is set.
pub fn run(stop: &Stop, command: &mut Command, limit: Duration) -> Result<String, CommandError> {
    let (line, limit) = (line_of(command), patient(limit));
    let mut running = Running::start_with(command, Stdio::piped(), Stdio::piped())?;
    let (out, said) = (drain(running.child.stdout.take()), drain(running.child.stderr.take()));
    let ended = running.wait(stop, limit);
    drop(running);
    let text = |thread: JoinHandle<Vec<u8>>| {
        String::from_utf8_lossy(&thread.join().unwrap_or_default()).into_owned()
    };
    let (out, said) = (text(out), text(said));
    let said = || last_of(&format!("{out}{said}"));
    match ended? {
        Some(status) if status.success() => Ok(out),
        Some(status) => {
            Err(CommandError::Failed { command: line, status: status.to_string(), said: said() })
        }
        None => Err(CommandError::TooLong { command: line, limit, said: said() }),
    }
}

/// Runs `command` to its end, and gives each line that it prints to `tell` meanwhile. `silence`: its longest time without one.
///
/// # Errors
/// As [`run`].
pub fn run_told(
    stop: &Stop,
    command: &mut Command,
    silence: Duration,
    mut tell: impl FnMut(&str),
) -> Result<(), CommandError> {
    let line = line_of(command);
    let mut running = Running::start_with(command, Stdio::piped(), Stdio::piped())?;
    let lines = lines_of(&mut running.child);
    let (mut end, mut said) = (Instant::now() + silence, String::new());
    loop {
        match lines.recv_timeout(LOOK_EVERY) {
            Ok(line) => {
                tell(&line);
                end = Instant::now() + silence;
                said = last_of(&format!("{said}{line}\n")) + "\n";
            }
            Err(RecvTimeoutError::Timeout) => {}
            // Nobody has its output open any more.
            Err(RecvTimeoutError::Disconnected) => break,
        }
        if stop.is_set() {
            return Err(CommandError::Interrupted);
        }
        if Instant::now() > end {
            return Err(CommandError::Silent { command: line, silence, said: last_of(&said) });
        }
    }
    match running.wait(stop, ENDS_WITHIN)? {
        Some(status) if status.success() => Ok(()),
        Some(status) => Err(CommandError::Failed {
            command: line,
            status: status.to_string(),
            said: last_of(&said),
        }),
        None => Err(CommandError::Silent { command: line, silence, said: last_of(&said) }),
    }
}

/// The lines that a program prints, of both its outputs.
fn lines_of(child: &mut Child) -> Receiver<String> {
    let (sender, lines) = channel();
    let out = child.stdout.take().map(|it| Box::new(it) as Box<dyn Read + Send>);
    let said = child.stderr.take().map(|it| Box::new(it) as Box<dyn Read + Send>);
    for from in [out, said].into_iter().flatten() {
        let sender = sender.clone();
        spawn(move || {
            for line in BufReader::new(from).split(b'\n').map_while(Result::ok) {
                // If nobody listens any more, it is read to its end all the same: the program never waits.
                let _ = sender.send(String::from_utf8_lossy(&line).into_owned());
            }
        });
    }
    lines
}

/// A program that runs beside the lab. Dropping it ends it, with all that it has started in its process group.
#[derive(Debug)]
pub struct Running {
    child: Child,
    line: String,
}

impl Running {
    /// Starts it; its output is discarded.
    ///
    /// # Errors
    /// If it cannot be started.
    pub fn start(command: &mut Command) -> Result<Self, CommandError> {
        Self::start_with(command, Stdio::null(), Stdio::null())
    }

    fn start_with(command: &mut Command, out: Stdio, said: Stdio) -> Result<Self, CommandError> {
        let line = line_of(command);
        command.stdin(Stdio::null()).stdout(out).stderr(said).process_group(0);
        match command.spawn() {
            Ok(child) => Ok(Self { child, line }),
            Err(source) => Err(CommandError::Io { command: line, source }),
        }
    }

    /// Its number.
    pub(crate) fn pid(&self) -> u32 {
        self.child.id()
    }

    /// Waits for its end; `None` if it still runs after `limit`.
    ///
    /// # Errors
    /// When `stop` is set, or it cannot be waited for.
    pub fn wait(
        &mut self,
        stop: &Stop,
        limit: Duration,
    ) -> Result<Option<std::process::ExitStatus>, CommandError> {
        let end = Instant::now() + limit;
        loop {
            match self.child.try_wait() {
                Ok(Some(status)) => return Ok(Some(status)),
                Ok(None) if stop.is_set() => return Err(CommandError::Interrupted),
                Ok(None) if Instant::now() >= end => return Ok(None),
                Ok(None) => sleep(LOOK_EVERY),
                Err(source) => return Err(CommandError::Io { command: self.line.clone(), source }),
            }
        }
    }

    /// Sends it `signal`, and waits until it has ended.
    ///
    /// # Errors
    /// If it does not end in time, or cannot be waited for; then it is killed.
    pub fn end(mut self, signal: Signal) -> Result<(), CommandError> {
        self.signal(signal);
        match self.wait(&Stop::default(), ENDS_WITHIN)? {
            Some(_) => Ok(()),
            None => Err(CommandError::TooLong {
                command: self.line.clone(),
                limit: ENDS_WITHIN,
                said: String::new(),
            }),
        }
    }

    fn signal(&self, signal: Signal) {
        // It may have ended by itself.
        if let Some(group) = Pid::from_raw(self.child.id().cast_signed()) {
            let _ = kill_process_group(group, signal);
        }
    }
}

impl Drop for Running {
    fn drop(&mut self) {
        if matches!(self.child.try_wait(), Ok(None)) {
            self.signal(Signal::TERM);
            if !matches!(self.wait(&Stop::default(), ENDS_WITHIN), Ok(Some(_))) {
                self.signal(Signal::KILL);
                let _ = self.child.wait();
            }
        }
    }
}

/// Reads everything, so that the program never waits for its reader.
fn drain(from: Option<impl Read + Send + 'static>) -> JoinHandle<Vec<u8>> {
    spawn(move || {
        let mut bytes = Vec::new();
        if let Some(mut from) = from {
            // What was read until an error is what there is.
            let _ = from.read_to_end(&mut bytes);
        }
        bytes
    })
}

fn line_of(command: &Command) -> String {
    let words = std::iter::once(command.get_program()).chain(command.get_args());
    words.map(|word| word.to_string_lossy()).collect::<Vec<_>>().join(" ")
}

fn last_of(text: &str) -> String {
    let text = text.trim();
    let mut start = text.len().saturating_sub(SAID_BYTES);
    while !text.is_char_boundary(start) {
        start += 1;
    }
    text[start..].to_owned()
}

#[cfg(test)]
mod tests {
    use super::*;

    const LIMIT: Duration = Duration::from_secs(10);

    fn shell(script: &str) -> Command {
        let mut command = Command::new("sh");
        command.args(["-c", script]);
        command
    }

    #[test]
    fn output_is_returned_and_an_error_says_what_was_printed() {
        let stop = Stop::default();
        assert_eq!(run(&stop, &mut shell("echo yes; echo no >&2"), LIMIT).unwrap(), "yes\n");
        let error = run(&stop, &mut shell("echo why >&2; exit 3"), LIMIT).unwrap_err().to_string();
        assert!(error.contains("exit 3") && error.ends_with("why"), "{error}");
        let error = run(&stop, &mut Command::new("/no/such"), LIMIT).unwrap_err().to_string();
        assert!(error.contains("/no/such"), "{error}");
    }

    #[test]
    fn what_runs_for_too_long_ends_with_all_that_it_started() {
        let short = Duration::from_millis(200);
        let error =
            run(&Stop::default(), &mut shell("echo a; sleep 60 & wait"), short).unwrap_err();
        // The reader of its output has seen the end, so the sleep has ended, too.
        assert!(matches!(&error, CommandError::TooLong { said, .. } if said == "a"), "{error}");
    }

    #[test]
    fn lines_are_told_while_it_runs() {
        let stop = Stop::default();
        let mut told = Vec::new();
        // Each line is answered before the next one comes.
        let dir = tempfile::tempdir().unwrap();
        let script = format!(
            "cd {}; echo one; until [ -e one ]; do sleep 0.01; done; echo two >&2",
            dir.path().display()
        );
        run_told(&stop, &mut shell(&script), LIMIT, |line| {
            std::fs::write(dir.path().join(line), "").unwrap();
            told.push(line.to_owned());
        })
        .unwrap();
        assert_eq!(told, ["one", "two"]);
        let error = run_told(&stop, &mut shell("echo why; exit 3"), LIMIT, |_| ()).unwrap_err();
        let error = error.to_string();
        assert!(error.contains("exit 3") && error.ends_with("why"), "{error}");
        // It may run for longer than it may be silent.
        let (script, silence) = ("for i in 1 2 3 4; do echo $i; sleep 0.2; done", LIMIT / 20);
        run_told(&stop, &mut shell(script), silence, |_| ()).unwrap();
        let short = Duration::from_millis(50);
        let error = run_told(&stop, &mut shell("echo a; sleep 60"), short, |_| ()).unwrap_err();
        assert!(matches!(&error, CommandError::Silent { said, .. } if said == "a"), "{error}");
        stop.flag().store(true, Ordering::Relaxed);
        let error = run_told(&stop, &mut shell("sleep 60"), LIMIT, |_| ()).unwrap_err();
        assert!(matches!(error, CommandError::Interrupted), "{error}");
    }

    #[test]
    fn a_signal_ends_it() {
        let stop = Stop::default();
        stop.flag().store(true, Ordering::Relaxed);
        let error = run(&stop, &mut shell("sleep 60"), LIMIT).unwrap_err();
        assert!(matches!(error, CommandError::Interrupted), "{error}");
    }
}
