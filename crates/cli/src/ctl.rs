//! `ringscope ctl`: asks a running daemon how it stands, and tells it other settings, through its control socket.
//!
//! - `capture`: the file of a capture, and which frames are wanted.
//! - `kernel`: the programs that measure in the host kernel.

mod capture;
mod kernel;

use std::io::{self, BufRead as _, BufReader, IoSlice, Read as _, Write as _};
use std::mem::MaybeUninit;
use std::os::fd::{AsFd as _, BorrowedFd};
use std::os::unix::net::UnixStream;
use std::path::{Path, PathBuf};
use std::time::Duration;

use burst_trace::Reader;
use burst_trace::location::{recorder_path, run_dir_to_read};
use host_files::socket::connect;
use kernel_stages::DESCRIPTORS_MAX;
use report::without_controls;
use rustix::net::{SendAncillaryBuffer, SendAncillaryMessage, SendFlags, sendmsg};
use serde_json::{Value, json};

use crate::Outcome;
use crate::output;
use crate::recorder::{self, FindError};
use kernel::Programs;

/// Longest wait for the answer. The daemon asks each of a guest's workers a few times, and waits a second for each answer at most.
const PATIENCE: Duration = Duration::from_secs(30);
/// Longest answer, bytes: more than that of 64 guests with 16 rings each.
const ANSWER_MAX: u64 = 16 << 20;

const EXAMPLES: &str = "\
The daemon was started with --control PATH. The commands are the daemon's:
\"help\" lists those that it knows.

Examples:
  ringscope ctl vm0 help
  ringscope ctl vm0 info              version, flags and host: for a bug report
  ringscope ctl vm0 status            settings, and how each ring stands
  ringscope ctl vm0 poll always
  ringscope ctl vm0 fault drop:tx=0.01
  ringscope ctl vm0 capture on vm0.pcapng size=100MB filter='udp port 319'
  ringscope ctl vm0 capture off
  ringscope ctl vm0 kernel-stages on  as root: also times in the host kernel
  ringscope ctl vm0 kernel-stages off
  ringscope ctl vm0 trace off
  ringscope ctl --json vm0 status     one JSON object, for other programs";

/// Arguments of `ringscope ctl`.
#[derive(Debug, clap::Args)]
#[command(after_long_help = EXAMPLES)]
pub struct Arguments {
    /// Directory of the recorders, which name the control socket [default: without
    /// root $XDG_RUNTIME_DIR/ringscope if it exists, else /run/ringscope]
    #[arg(long, value_name = "DIR")]
    run_dir: Option<PathBuf>,
    /// The guest, if SOCKET is a path and its daemon has several
    #[arg(long, value_name = "NAME")]
    guest: Option<String>,
    /// Print the answer as one JSON object
    #[arg(long)]
    json: bool,
    /// The guest's name, or the path of the daemon's control socket
    #[arg(value_name = "NAME|SOCKET")]
    target: String,
    /// What to ask or to change, such as status
    #[arg(value_name = "COMMAND")]
    command: String,
    /// The command's value, such as always
    #[arg(value_name = "VALUE", allow_hyphen_values = true)]
    value: Vec<String>,
}

/// Why there is no answer.
#[derive(Debug, thiserror::Error)]
enum CtlError {
    /// The recorder was not found.
    #[error(transparent)]
    Find(#[from] FindError),
    /// The daemon has no control socket.
    #[error("the daemon of {0} has no control socket; start it with --control PATH")]
    NoSocket(String),
    /// It cannot be reached.
    #[error(
        "cannot connect to {path}: {source}; is the daemon running, with --control, and are you its user?"
    )]
    Connect { path: PathBuf, source: io::Error },
    /// It does not answer.
    #[error("expected an answer on {path}, found none: {source}")]
    NoAnswer { path: PathBuf, source: io::Error },
    /// There is no capture.
    #[error(transparent)]
    Capture(#[from] capture::CaptureError),
    /// Nothing is measured in the kernel.
    #[error(transparent)]
    Kernel(#[from] kernel_stages::Error),
    /// It is not ours.
    #[error(
        "expected an answer of ringscoped on {path}, found something else; give the path of --control"
    )]
    Garbage { path: PathBuf },
    /// The daemon refuses.
    #[error("{0}")]
    Refused(String),
}

/// Runs `ringscope ctl`.
///
/// # Errors
/// When the daemon cannot be asked, or refuses.
pub fn run(arguments: &Arguments) -> Outcome {
    let (path, guest) = arguments.socket()?;
    let mut request = json!({ "command": arguments.command });
    if let Some(guest) = guest {
        request["guest"] = guest.into();
    }
    let words = &arguments.value;
    let (command, value) = (arguments.command.as_str(), words.join(" "));
    let capture = if command == "capture" { capture::wanted(words)? } else { None };
    let programs = match (command, value.as_str()) {
        ("kernel-stages", "on") => {
            let info = json!({ "command": "info", "guest": request["guest"] });
            Some(Programs::load(&ask(&path, &info, &[])?).map_err(CtlError::from)?)
        }
        _ => None,
    };
    if !words.is_empty() {
        request["value"] = value.into();
    }
    let mut files = Vec::new();
    if let Some(capture) = &capture {
        capture.describe(&mut request);
        files.push(capture.file().as_fd());
    }
    if let Some(programs) = &programs {
        files.extend(programs.describe(&mut request));
    }
    let answer = ask(&path, &request, &files)?;
    capture.map_or(Ok(()), capture::Wanted::keep)?;
    programs.into_iter().for_each(Programs::keep);
    let text = if arguments.json { format!("{answer}\n") } else { in_lines(&answer) };
    output::print(&text)?;
    Ok(())
}

impl Arguments {
    /// The control socket, and the guest that the command is about.
    fn socket(&self) -> Result<(PathBuf, Option<String>), CtlError> {
        if self.target.contains('/') {
            return Ok((self.target.clone().into(), self.guest.clone()));
        }
        let dir = self.run_dir.clone().or_else(run_dir_to_read).ok_or(FindError::NoRunDir)?;
        let path = recorder_path(&dir, &self.target);
        if !path.exists() {
            let names = recorder::names(&dir)?;
            return Err(FindError::NoSuchName { path, names }.into());
        }
        let reader = Reader::open(&path).map_err(FindError::from)?;
        let facts: Value = serde_json::from_str(&reader.facts()).unwrap_or_default();
        match facts["control"].as_str() {
            Some(socket) if !socket.is_empty() => Ok((socket.into(), Some(self.target.clone()))),
            _ => Err(CtlError::NoSocket(self.target.clone())),
        }
    }
}

/// The daemon's answer to a request, which `files` go along with.
fn ask(path: &Path, request: &Value, files: &[BorrowedFd<'_>]) -> Result<Value, CtlError> {
    let refused = |source| CtlError::Connect { path: path.into(), source };
    // Who listens there may be anybody, if the path was given.
    let stream = connect(path).map_err(refused)?;
    let gone = |source| CtlError::NoAnswer { path: path.into(), source };
    stream.set_read_timeout(Some(PATIENCE)).map_err(gone)?;
    stream.set_write_timeout(Some(PATIENCE)).map_err(gone)?;
    send(&stream, format!("{request}\n").as_bytes(), files).map_err(gone)?;
    let mut line = String::new();
    if BufReader::new((&stream).take(ANSWER_MAX)).read_line(&mut line).map_err(gone)? == 0 {
        return Err(gone(io::ErrorKind::UnexpectedEof.into()));
    }
    let mut answer: Value =
        serde_json::from_str(&line).map_err(|_| CtlError::Garbage { path: path.into() })?;
    match (answer["ok"].take(), answer["error"].as_str()) {
        (_, Some(why)) => Err(CtlError::Refused(why.into())),
        (Value::Null, None) => Err(CtlError::Garbage { path: path.into() }),
        (done, None) => Ok(done),
    }
}

/// Sends a request. The files go with its first bytes.
fn send(mut stream: &UnixStream, bytes: &[u8], files: &[BorrowedFd<'_>]) -> io::Result<()> {
    let mut sent = 0;
    if !files.is_empty() {
        let mut space = [MaybeUninit::uninit(); rustix::cmsg_space!(ScmRights(DESCRIPTORS_MAX))];
        let mut ancillary = SendAncillaryBuffer::new(&mut space);
        if !ancillary.push(SendAncillaryMessage::ScmRights(files)) {
            return Err(io::Error::other(format!("{} descriptors are too many", files.len())));
        }
        sent = sendmsg(stream, &[IoSlice::new(bytes)], &mut ancillary, SendFlags::NOSIGNAL)?;
    }
    stream.write_all(&bytes[sent..])
}

/// An answer to read: a line for each value, and what belongs to an object below its name.
fn in_lines(answer: &Value) -> String {
    let mut text = String::new();
    write_value(&mut text, answer, 0);
    text
}

fn write_value(text: &mut String, value: &Value, depth: usize) {
    let indent = "  ".repeat(depth);
    let Value::Object(fields) = value else {
        text.push_str(&format!("{indent}{}\n", plain(value)));
        return;
    };
    for (key, value) in fields {
        let key = without_controls(key);
        match value {
            Value::Array(list) if list.iter().any(Value::is_object) => {
                for item in list {
                    text.push_str(&format!("{indent}{key}:\n"));
                    write_value(text, item, depth + 1);
                }
            }
            Value::Object(inside) if !inside.is_empty() => {
                text.push_str(&format!("{indent}{key}:\n"));
                write_value(text, value, depth + 1);
            }
            _ => text.push_str(&format!("{indent}{key}: {}\n", plain(value))),
        }
    }
}

/// A value in one line.
fn plain(value: &Value) -> String {
    match value {
        Value::Null => "-".into(),
        Value::String(text) => without_controls(text),
        Value::Array(list) if list.is_empty() => "none".into(),
        Value::Object(fields) if fields.is_empty() => "none".into(),
        Value::Array(list) => list.iter().map(plain).collect::<Vec<_>>().join(" "),
        other => other.to_string(),
    }
}

#[cfg(test)]
mod tests {
    use std::os::unix::net::UnixListener;
    use std::thread;

    use super::*;

    #[test]
    fn who_accepts_nobody_or_never_stops_is_left() {
        let directory = tempfile::tempdir().unwrap();
        let path = directory.path().join("control");
        let listener = UnixListener::bind(&path).unwrap();
        let mut waiting = Vec::new();
        while let Ok(stream) = connect(&path) {
            waiting.push(stream);
        }
        let error = ask(&path, &json!({}), &[]).unwrap_err().to_string();
        assert!(error.contains("cannot connect to"), "{error}");
        // They are accepted before the next one.
        let gone = waiting.len();
        drop(waiting);
        thread::scope(|scope| {
            scope.spawn(|| {
                for stream in listener.incoming().take(gone + 1) {
                    let mut stream = stream.unwrap();
                    while stream.write_all(&[b'7'; 1 << 16]).is_ok() {}
                }
            });
            let error = loop {
                match ask(&path, &json!({"command": "status"}), &[]).unwrap_err() {
                    // They are still being accepted.
                    CtlError::Connect { .. } => thread::yield_now(),
                    other => break other.to_string(),
                }
            };
            assert!(error.contains("something else"), "{error}");
        });
    }

    #[test]
    fn an_answer_is_printed_a_line_for_each_value() {
        let answer = json!({
            "uptime_s": 1.5,
            "guests": [{ "name": "vm0\u{1b}[2J", "features": ["packed", "mq"], "rings": [{ "ring": 0, "drops": {} }] }],
            "mac": null,
        });
        let lines = in_lines(&answer);
        let expected: Vec<_> = [
            "guests:",
            "  features: packed mq",
            "  name: vm0",
            "  rings:",
            "    drops: none",
            "    ring: 0",
            "mac: -",
            "uptime_s: 1.5",
        ]
        .into();
        let found: Vec<_> = lines.lines().collect();
        assert_eq!(found.len(), expected.len(), "{lines}");
        for (found, expected) in found.iter().zip(expected) {
            assert!(found.starts_with(expected), "{lines}");
        }
        assert!(!lines.contains('\u{1b}'));
    }
}
