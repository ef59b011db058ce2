//! `console DEV`: a shell for programs on a port of virtio-serial, or on a serial line.
//!
//! A request is one line. The reply to a command is a header with a length, and then that many bytes:
//!
//! ```text
//! in:   (empty line)
//! out:  =ringscope ready BOOT_ID=
//! in:   run SEQUENCE SECONDS COMMAND
//! out:  =ringscope done SEQUENCE STATUS LENGTH=
//!       LENGTH bytes of the command's output, standard error included
//! ```
//!
//! Any other line is run as a command, for people. Bytes sent before the other end listens are lost. The host therefore
//! sends empty lines until it is answered, and matches replies by their sequence
//! number.

use crate::Error;
use rustix::process::{Pid, Signal, kill_process_group};
use rustix::termios::{OptionalActions, isatty, tcgetattr, tcsetattr};
use std::fs::{File, OpenOptions};
use std::io::{self, BufRead, BufReader, Read, Seek, SeekFrom, Write};
use std::os::unix::process::{CommandExt, ExitStatusExt};
use std::process::{Child, Command, ExitStatus, Stdio};
use std::time::{Duration, Instant};

pub const READY_PREFIX: &str = "=ringscope ready ";
pub const REPLY_PREFIX: &str = "=ringscope done ";

/// Longest output of a command; a serial line carries some 100 KB a second.
const OUTPUT_BYTES_MAX: u64 = 1 << 20;

/// Interval at which a port without a host is read again.
const HOST_ASKED_EVERY: Duration = Duration::from_millis(100);

/// Exit status after the time limit, as of timeout(1).
const STATUS_TIMEOUT: i32 = 124;

#[derive(Debug, clap::Args)]
pub struct Args {
    /// The device: a port of virtio-serial such as /dev/vport0p1, or a serial line such as /dev/ttyS1.
    device: String,
    /// Time limit of commands that have none of their own, in seconds.
    #[arg(long, value_name = "SECONDS", default_value_t = 60)]
    timeout: u64,
    /// File for the output of a command while it runs.
    #[arg(long, value_name = "FILE", default_value = "/tmp/ringscope-console.out")]
    scratch: String,
}

/// One line from the other end.
#[derive(Debug, PartialEq, Eq)]
enum Request<'line> {
    Hello,
    Run { sequence: u64, limit: Duration, command: &'line str },
}

impl<'line> Request<'line> {
    fn parse(line: &'line str, default_limit: Duration) -> Self {
        let line = line.trim_matches(['\r', '\n', ' ', '\0']);
        if line.is_empty() {
            return Self::Hello;
        }
        Self::parse_run(line).unwrap_or(Self::Run {
            sequence: 0,
            limit: default_limit,
            command: line,
        })
    }

    fn parse_run(line: &'line str) -> Option<Self> {
        let mut words = line.strip_prefix("run ")?.splitn(3, ' ');
        let sequence = words.next()?.parse().ok()?;
        let limit = Duration::from_secs(words.next()?.parse().ok()?);
        Some(Self::Run { sequence, limit, command: words.next()? })
    }
}

pub fn run(args: &Args) -> Result<(), Error> {
    let failed = |source| Error::File { path: args.device.clone(), source };
    let device = OpenOptions::new().read(true).write(true).open(&args.device).map_err(failed)?;
    let is_line = isatty(&device);
    if is_line {
        make_raw(&device).map_err(failed)?;
    }
    let mut output = device.try_clone()?;
    let mut input = BufReader::new(device);
    let boot_id = std::fs::read_to_string("/proc/sys/kernel/random/boot_id").unwrap_or_default();
    let hello = format!("\n{READY_PREFIX}{}=\n", boot_id.trim());
    output.write_all(hello.as_bytes()).map_err(failed)?;
    let mut line = Vec::new();
    loop {
        line.clear();
        if input.read_until(b'\n', &mut line).map_err(failed)? == 0 {
            if is_line {
                return Ok(());
            }
            // A port reads as ended while the host has not connected.
            std::thread::sleep(HOST_ASKED_EVERY);
            continue;
        }
        let text = String::from_utf8_lossy(&line);
        let reply = match Request::parse(&text, Duration::from_secs(args.timeout)) {
            Request::Hello => hello.clone().into_bytes(),
            Request::Run { sequence, limit, command } => {
                reply_to(sequence, shell(command, limit, &args.scratch))
            }
        };
        output.write_all(&reply).map_err(failed)?;
    }
}

/// No echo, no line editing, no translation of either direction's bytes.
fn make_raw(device: &File) -> io::Result<()> {
    let mut settings = tcgetattr(device)?;
    settings.make_raw();
    Ok(tcsetattr(device, OptionalActions::Now, &settings)?)
}

fn reply_to(sequence: u64, outcome: io::Result<(i32, Vec<u8>)>) -> Vec<u8> {
    let (status, text) = outcome
        .unwrap_or_else(|error| (127, format!("agent: cannot run a command: {error}\n").into()));
    let mut reply = format!("\n{REPLY_PREFIX}{sequence} {status} {}=\n", text.len()).into_bytes();
    reply.extend_from_slice(&text);
    reply
}

/// Runs a command. Its output goes through a file, not a pipe: a command may leave a process in the background, and the
/// reader of a pipe would wait for that process too.
fn shell(command: &str, limit: Duration, scratch: &str) -> io::Result<(i32, Vec<u8>)> {
    // Do not write into a link, or into a file that a killed agent left.
    let _ = std::fs::remove_file(scratch);
    let mut file = OpenOptions::new().read(true).write(true).create_new(true).open(scratch)?;
    // Unlinked, so that the next command has a file of its own.
    std::fs::remove_file(scratch)?;
    let child = Command::new("/bin/sh")
        .args(["-c", command])
        .stdin(Stdio::null())
        .stdout(file.try_clone()?)
        .stderr(file.try_clone()?)
        .process_group(0)
        .spawn()?;
    let status = wait(child, limit)?;
    let mut text = Vec::new();
    file.seek(SeekFrom::Start(0))?;
    (&mut file).take(OUTPUT_BYTES_MAX).read_to_end(&mut text)?;
    let length = file.metadata()?.len();
    if length > OUTPUT_BYTES_MAX {
        text.extend_from_slice(format!("\nagent: cut here, {length} bytes in all\n").as_bytes());
    }
    let Some(status) = status else {
        text.extend_from_slice(format!("\nagent: ended after {limit:?}\n").as_bytes());
        return Ok((STATUS_TIMEOUT, text));
    };
    // The shell's convention for "ended by a signal".
    Ok((status.code().unwrap_or_else(|| 128 + status.signal().unwrap_or(0)), text))
}

/// `None` when the command had to be ended.
fn wait(mut child: Child, limit: Duration) -> io::Result<Option<ExitStatus>> {
    let end = Instant::now() + limit;
    // Quick commands are answered quickly; long ones, which may be measuring, are disturbed rarely.
    let mut pause = Duration::from_millis(1);
    while Instant::now() < end {
        if let Some(status) = child.try_wait()? {
            return Ok(Some(status));
        }
        std::thread::sleep(pause);
        pause = (pause * 2).min(Duration::from_millis(100));
    }
    if let Some(group) = Pid::from_raw(child.id() as i32) {
        let _ = kill_process_group(group, Signal::KILL);
    }
    child.wait()?;
    Ok(None)
}

#[cfg(test)]
mod tests {
    use super::*;

    const LIMIT: Duration = Duration::from_secs(5);

    fn run_here(command: &str, limit: Duration) -> (i32, String) {
        let scratch = tempfile::tempdir().unwrap();
        let path = scratch.path().join("out");
        let (status, text) = shell(command, limit, path.to_str().unwrap()).unwrap();
        (status, String::from_utf8(text).unwrap())
    }

    #[test]
    fn requests_are_told_apart() {
        let parse = |line| Request::parse(line, LIMIT);
        assert_eq!(parse("\r\n"), Request::Hello);
        let limit = Duration::from_secs(3);
        assert_eq!(parse("run 7 3 a  b\n"), Request::Run { sequence: 7, limit, command: "a  b" });
        let by_hand = Request::Run { sequence: 0, limit: LIMIT, command: "run fast" };
        assert_eq!(parse("run fast\n"), by_hand);
    }

    #[test]
    fn output_and_status_come_back() {
        assert_eq!(run_here("echo out; echo err >&2; exit 3", LIMIT), (3, "out\nerr\n".into()));
        assert_eq!(run_here("kill -9 $$", LIMIT).0, 128 + 9);
    }

    #[test]
    fn a_process_left_behind_is_not_waited_for() {
        let before = Instant::now();
        assert_eq!(run_here("sleep 3 & echo started", LIMIT), (0, "started\n".into()));
        assert!(before.elapsed() < Duration::from_secs(2));
    }

    #[test]
    fn a_command_that_takes_too_long_is_ended() {
        let (status, text) = run_here("echo first; sleep 60", Duration::from_millis(200));
        assert_eq!(status, STATUS_TIMEOUT);
        assert!(text.starts_with("first\n") && text.contains("ended after"), "{text}");
    }

    #[test]
    fn replies_carry_their_length() {
        let reply = reply_to(4, Ok((1, b"=ringscope done".to_vec())));
        assert_eq!(reply, b"\n=ringscope done 4 1 15=\n=ringscope done");
    }
}
