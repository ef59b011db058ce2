//! The host's end of a guest's console: commands go in, their output comes back.
//!
//! The guest's end is `agent console`; the protocol is described there, in `server`. Bytes sent before the guest opens its
//! device are lost. The host therefore sends empty lines until it is answered. It tells one
//! boot from the next by the kernel's boot id.

pub(crate) mod server;

use server::{READY_PREFIX, REPLY_PREFIX};
use std::fs::{File, OpenOptions};
use std::io::{self, Read, Write};
use std::os::fd::OwnedFd;
use std::os::unix::fs::OpenOptionsExt as _;
use std::os::unix::net::UnixStream;
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

use rustix::event::{PollFd, PollFlags, Timespec, poll};
use rustix::fs::OFlags;

const ASK_EVERY: Duration = Duration::from_millis(200);

/// Time to wait beyond a command's limit, which the guest enforces: for a busy machine and a slow serial line.
const ANSWER_MARGIN: Duration = Duration::from_secs(20);

/// Time that a byte of an answer takes on the slowest line: the serial port of a guest within an emulated guest needs more
/// than a millisecond.
const SLOWEST_BYTE: Duration = Duration::from_millis(10);

/// Interval of the empty lines that are sent while an answer is late. A serial port of the guest that has lost an interrupt
/// neither reads nor writes until the next one, which such a line causes. None is sent before: a command may be measuring.
const NUDGE_EVERY: Duration = Duration::from_secs(3);

/// The result of a command in the guest.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Output {
    /// Exit status; 124 after its time limit, 128 and more for a signal.
    pub status: i32,
    /// Standard output and standard error, in the order they were written.
    pub text: String,
}

/// Why a command was not answered.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// The socket could not be connected to, read or written.
    #[error("cannot use the console {path}: {source}; does the guest run, with this console?")]
    Io {
        /// The socket.
        path: PathBuf,
        /// What the system said.
        source: io::Error,
    },
    /// The guest did not answer in time.
    #[error("expected {what} within {limit:?}, found nothing")]
    Timeout {
        /// What was waited for.
        what: String,
        /// How long it had.
        limit: Duration,
    },
    /// The guest rebooted while a command ran.
    #[error("expected an answer to `{command}`, found that the guest had rebooted")]
    Rebooted {
        /// The command that got no answer.
        command: String,
    },
}

/// A connection to a guest's console.
#[derive(Debug)]
pub struct Console {
    path: PathBuf,
    from_guest: File,
    to_guest: File,
    /// Bytes received and not read yet.
    pending: Vec<u8>,
    boot_id: String,
    sequence: u64,
    /// [`ANSWER_MARGIN`].
    margin: Duration,
}

impl Console {
    /// Connects to QEMU's socket, or to a directory with the FIFOs `in` and `out` of User Mode Linux; the guest may not
    /// listen yet.
    pub fn connect(path: &Path) -> Result<Self, Error> {
        let (from_guest, to_guest) =
            open(path).map_err(|source| Error::Io { path: path.to_path_buf(), source })?;
        Ok(Self {
            path: path.to_path_buf(),
            from_guest,
            to_guest,
            pending: Vec::new(),
            boot_id: String::new(),
            sequence: 0,
            margin: ANSWER_MARGIN,
        })
    }

    /// Asks until a boot other than the one known answers.
    pub fn await_boot(&mut self, limit: Duration) -> Result<(), Error> {
        let end = Instant::now() + limit;
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
        Err(Error::Timeout { what: "the guest's console to answer".into(), limit })
    }

    /// Runs a shell command, which the guest ends when it takes longer than `limit`.
    ///
    /// # Panics
    ///
    /// When the command is more than one line.
    pub fn run(&mut self, command: &str, limit: Duration) -> Result<Output, Error> {
        assert!(!command.contains('\n'), "a command is one line");
        self.sequence += 1;
        let line = format!("run {} {} {command}\n", self.sequence, limit.as_secs().max(1));
        self.write(line.as_bytes())?;
        let due = Instant::now() + limit;
        let timeout = || Error::Timeout { what: format!("an answer to `{command}`"), limit };
        loop {
            let line = self.read_late_line(due)?.ok_or_else(timeout)?;
            if between(&line, READY_PREFIX).is_some_and(|boot_id| boot_id != self.boot_id) {
                return Err(Error::Rebooted { command: command.into() });
            }
            if let Some((sequence, status, length)) = parse_reply(&line)
                && sequence == self.sequence
            {
                let text = self.read_text(length)?.ok_or_else(timeout)?;
                return Ok(Output { status, text: String::from_utf8_lossy(&text).into_owned() });
            }
        }
    }

    /// Reads a line that is due at that time, and waits longer for it, with empty lines to the guest meanwhile; `None` when it
    /// did not come.
    fn read_late_line(&mut self, due: Instant) -> Result<Option<String>, Error> {
        let end = due + self.margin;
        let mut nudge = due + NUDGE_EVERY;
        loop {
            if let Some(line) = self.read_line(nudge.min(end))? {
                return Ok(Some(line));
            }
            if nudge >= end {
                return Ok(None);
            }
            self.write(b"\n")?;
            nudge += NUDGE_EVERY;
        }
    }

    /// Reads the bytes of an answer that is under way, with empty lines to the guest where it pauses; `None` when it fell
    /// silent, or took longer than the slowest line.
    fn read_text(&mut self, length: usize) -> Result<Option<Vec<u8>>, Error> {
        let bytes = u32::try_from(length).unwrap_or(u32::MAX);
        let end = Instant::now() + self.margin + SLOWEST_BYTE.saturating_mul(bytes);
        let mut silent_since = Instant::now();
        while self.pending.len() < length {
            let now = Instant::now();
            if now >= end || now - silent_since >= self.margin {
                return Ok(None);
            }
            if self.fill((now + NUDGE_EVERY).min(end))? {
                silent_since = Instant::now();
            } else {
                self.write(b"\n")?;
            }
        }
        Ok(Some(self.pending.drain(..length).collect()))
    }

    fn write(&mut self, bytes: &[u8]) -> Result<(), Error> {
        self.to_guest.write_all(bytes).map_err(|source| self.failed(source))
    }

    fn failed(&self, source: io::Error) -> Error {
        Error::Io { path: self.path.clone(), source }
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

    /// Waits for more bytes; false when none came by `end`.
    fn fill(&mut self, end: Instant) -> Result<bool, Error> {
        let mut block = [0; 4096];
        loop {
            let left = end.saturating_duration_since(Instant::now());
            if left.is_zero() {
                return Ok(false);
            }
            let mut polled = [PollFd::new(&self.from_guest, PollFlags::IN)];
            let limit = Timespec::try_from(left).ok();
            match poll(&mut polled, limit.as_ref()) {
                Ok(1..) => {}
                Ok(0) | Err(rustix::io::Errno::INTR) => continue,
                Err(error) => return Err(self.failed(error.into())),
            }
            match self.from_guest.read(&mut block) {
                Ok(0) => return Err(self.failed(io::ErrorKind::UnexpectedEof.into())),
                Ok(length) => {
                    self.pending.extend_from_slice(&block[..length]);
                    return Ok(true);
                }
                Err(error) if is_passing(&error) => {}
                Err(error) => return Err(self.failed(error)),
            }
        }
    }
}

/// The ends to read from and to write to.
fn open(path: &Path) -> io::Result<(File, File)> {
    if !path.is_dir() {
        let file = File::from(OwnedFd::from(UnixStream::connect(path)?));
        return Ok((file.try_clone()?, file));
    }
    #[expect(clippy::cast_possible_wrap, reason = "a flag")]
    let flags = OFlags::NONBLOCK.bits() as i32;
    // For writing first: that fails while nobody has the FIFOs open.
    let to_guest = OpenOptions::new().write(true).custom_flags(flags).open(path.join("in"))?;
    let mut from_guest =
        OpenOptions::new().read(true).custom_flags(flags).open(path.join("out"))?;
    // What a previous connection has left would be taken for an answer.
    let mut block = [0; 4096];
    while matches!(from_guest.read(&mut block), Ok(1..)) {}
    Ok((from_guest, to_guest))
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
    let reply =
        (words.next()?.parse().ok()?, words.next()?.parse().ok()?, words.next()?.parse().ok()?);
    words.next().is_none().then_some(reply)
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::io::BufRead;
    use std::os::unix::net::UnixListener;

    const LIMIT: Duration = Duration::from_secs(5);

    /// A guest that answers each line by `answer`, until the host has gone.
    fn guest(
        mut answer: impl FnMut(&str) -> String + Send + 'static,
    ) -> (tempfile::TempDir, Console) {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("console.sock");
        let listener = UnixListener::bind(&path).unwrap();
        std::thread::spawn(move || {
            let (stream, _) = listener.accept().unwrap();
            for line in io::BufReader::new(&stream).lines() {
                let Ok(line) = line else { return };
                if (&stream).write_all(answer(&line).as_bytes()).is_err() {
                    return;
                }
            }
        });
        let console = Console::connect(&path).unwrap();
        (dir, console)
    }

    #[test]
    fn marker_lines_are_read() {
        assert_eq!(parse_reply("=ringscope done 3 0 17="), Some((3, 0, 17)));
        for line in ["=ringscope done 3 0=", "=ringscope done 3 0 17", "ringscope done 3 0 17=", ""]
        {
            assert_eq!(parse_reply(line), None, "{line}");
        }
        assert_eq!(between("=ringscope ready ab-c=", READY_PREFIX), Some("ab-c"));
    }

    #[test]
    fn an_old_reply_is_passed_over_and_text_may_look_like_a_marker() {
        let (_dir, mut console) = guest(|line| match line {
            "" => "\n=ringscope ready A=\n".into(),
            _ => "\n=ringscope done 0 9 1=\nx\n=ringscope done 1 3 17=\n=ringscope done \n".into(),
        });
        console.await_boot(LIMIT).unwrap();
        let output = console.run("anything", LIMIT).unwrap();
        assert_eq!(output, Output { status: 3, text: "=ringscope done \n".into() });
    }

    #[test]
    fn a_guest_that_has_lost_an_interrupt_answers_after_an_empty_line() {
        let parts = ["=ringscope done 1 0 4=\nha", "lf"];
        let mut parts = parts.into_iter();
        let mut is_asked = false;
        let (_dir, mut console) = guest(move |line| {
            if !line.is_empty() {
                is_asked = true;
                return String::new();
            }
            let part = if is_asked { parts.next() } else { Some("=ringscope ready A=\n") };
            part.unwrap_or_default().into()
        });
        console.await_boot(LIMIT).unwrap();
        let output = console.run("anything", Duration::from_millis(10)).unwrap();
        assert_eq!(output, Output { status: 0, text: "half".into() });
    }

    #[test]
    fn a_slow_line_has_time_for_each_byte_and_one_that_stops_is_given_up() {
        let output = |text: &str| {
            let (_dir, mut console) = guest(|line| match line {
                "" => "=ringscope ready A=\n".into(),
                _ => String::new(),
            });
            console.await_boot(LIMIT).unwrap();
            console.margin = Duration::from_millis(300);
            let (guest, host) = UnixStream::pair().unwrap();
            console.from_guest = File::from(OwnedFd::from(host));
            std::thread::scope(|scope| {
                scope.spawn(|| {
                    (&guest).write_all(b"=ringscope done 1 0 64=\n").unwrap();
                    for byte in text.as_bytes().chunks(1) {
                        std::thread::sleep(Duration::from_millis(8));
                        (&guest).write_all(byte).unwrap();
                    }
                });
                console.run("anything", LIMIT)
            })
        };
        let whole = "sixteen letters!".repeat(4);
        assert_eq!(output(&whole).unwrap().text, whole);
        assert!(matches!(output("fewer"), Err(Error::Timeout { .. })));
    }

    #[test]
    fn a_reboot_in_the_middle_is_reported() {
        let (_dir, mut console) = guest(|line| match line {
            "" => "=ringscope ready A=\n".into(),
            _ => "=ringscope ready B=\n".into(),
        });
        console.await_boot(LIMIT).unwrap();
        assert!(matches!(console.run("anything", LIMIT), Err(Error::Rebooted { .. })));
    }

    #[test]
    fn a_silent_guest_is_given_up() {
        let (_dir, mut console) = guest(|_| String::new());
        let limit = Duration::from_millis(300);
        assert!(matches!(console.await_boot(limit), Err(Error::Timeout { .. })));
    }
}
