//! A daemon with a control socket, and its clients.

use std::io::{BufRead as _, BufReader, IoSlice, Write as _};
use std::mem::MaybeUninit;
use std::os::fd::BorrowedFd;
use std::os::unix::net::UnixStream;
use std::path::{Path, PathBuf};
use std::process::{Command, Output};
use std::time::Duration;

use frontend::{Guest, GuestOptions};
use rustix::net::{SendAncillaryBuffer, SendAncillaryMessage, SendFlags, sendmsg};
use serde_json::Value;
use tempfile::TempDir;

use crate::daemon::{Daemon, program};
use crate::eventually::{eventually, when};

/// Longest wait for an answer.
const SOON: Duration = Duration::from_secs(5);
/// Most descriptors that go with a request.
const DESCRIPTORS: usize = 80;

/// A daemon with a control socket, which serves the guest `vm0`.
pub struct Controlled {
    /// Its run directory.
    pub directory: TempDir,
    /// The daemon.
    pub daemon: Daemon,
}

impl Controlled {
    /// One with this datapath and these flags.
    ///
    /// # Panics
    /// When it does not start.
    #[must_use]
    pub fn new(datapath: &str, arguments: &[&str]) -> Self {
        Self::in_directory(tempfile::tempdir().unwrap(), datapath, arguments)
    }

    /// The same with this run directory.
    ///
    /// # Panics
    /// When it does not start.
    #[must_use]
    pub fn in_directory(directory: TempDir, datapath: &str, arguments: &[&str]) -> Self {
        let socket = directory.path().join("control");
        let control = ["--datapath", datapath, "--control", socket.to_str().unwrap()];
        let arguments = [&control[..], arguments].concat();
        let daemon = Daemon::start(directory.path(), "vm0", &arguments).unwrap();
        wait_for(&socket);
        Self { directory, daemon }
    }

    /// A file of its run directory.
    #[must_use]
    pub fn file(&self, name: &str) -> PathBuf {
        self.directory.path().join(name)
    }

    /// A guest that attaches to it.
    ///
    /// # Panics
    /// When it cannot.
    #[must_use]
    pub fn guest(&self, options: GuestOptions) -> Guest {
        Guest::connect(self.daemon.socket(), options).unwrap()
    }

    /// A client that speaks without the tool.
    #[must_use]
    pub fn client(&self) -> Client {
        Client::new(&self.file("control"))
    }

    /// `ringscope ctl` with these arguments, in the run directory.
    ///
    /// # Panics
    /// When it cannot be run.
    #[must_use]
    pub fn ctl(&self, arguments: &[&str]) -> Output {
        let mut command = Command::new(program("ringscope").unwrap());
        command.args(["ctl", "--run-dir"]).arg(self.directory.path()).args(arguments);
        command.current_dir(self.directory.path()).output().unwrap()
    }

    /// What `ringscope ctl --json vm0` prints.
    ///
    /// # Panics
    /// When it is refused.
    pub fn asked(&self, arguments: &[&str]) -> Value {
        let output = self.ctl(&[&["--json", "vm0"], arguments].concat());
        assert!(output.status.success(), "{arguments:?}: {output:?}\n{}", self.daemon.log());
        serde_json::from_slice(&output.stdout).unwrap()
    }

    /// What `ringscope ctl vm0` says when it is refused.
    ///
    /// # Panics
    /// When it is not.
    #[must_use]
    pub fn refused(&self, arguments: &[&str]) -> String {
        let output = self.ctl(&[&["vm0"], arguments].concat());
        assert_eq!(output.status.code(), Some(1), "{output:?}");
        String::from_utf8(output.stderr).unwrap()
    }

    /// How the guest's virtqueue stands.
    #[must_use]
    pub fn ring(&self, ring: usize) -> Value {
        self.asked(&["status"])["guests"][0]["rings"][ring].clone()
    }
}

/// Waits for a control socket, which is made last.
pub fn wait_for(socket: &Path) {
    eventually(SOON, "the control socket", || when(UnixStream::connect(socket).is_ok(), "none"));
}

/// A client that speaks without the tool.
pub struct Client {
    /// What it sends.
    pub stream: UnixStream,
    /// What it gets.
    pub lines: BufReader<UnixStream>,
}

impl Client {
    /// Connects to a control socket.
    ///
    /// # Panics
    /// When it cannot.
    #[must_use]
    pub fn new(path: &Path) -> Self {
        let stream = UnixStream::connect(path).unwrap();
        stream.set_read_timeout(Some(SOON)).unwrap();
        Self { lines: BufReader::new(stream.try_clone().unwrap()), stream }
    }

    /// Sends text.
    ///
    /// # Panics
    /// When the daemon does not take it.
    pub fn say(&mut self, text: &str) {
        self.stream.write_all(text.as_bytes()).unwrap();
    }

    /// The next answer.
    ///
    /// # Panics
    /// When none comes.
    pub fn hear(&mut self) -> Value {
        let mut line = String::new();
        self.lines.read_line(&mut line).unwrap();
        serde_json::from_str(&line).unwrap_or_else(|why| panic!("{why}: {line:?}"))
    }

    /// The answer to a request.
    ///
    /// # Panics
    /// When none comes.
    pub fn ask(&mut self, request: &str) -> Value {
        self.say(&format!("{request}\n"));
        self.hear()
    }

    /// The answer to a request with these descriptors beside it.
    ///
    /// # Panics
    /// When none comes.
    pub fn ask_with(&mut self, request: &str, files: &[BorrowedFd<'_>]) -> Value {
        let mut space = [MaybeUninit::uninit(); rustix::cmsg_space!(ScmRights(DESCRIPTORS))];
        let mut ancillary = SendAncillaryBuffer::new(&mut space);
        assert!(ancillary.push(SendAncillaryMessage::ScmRights(files)), "too many descriptors");
        let line = format!("{request}\n");
        let sent = [IoSlice::new(line.as_bytes())];
        sendmsg(&self.stream, &sent, &mut ancillary, SendFlags::empty()).unwrap();
        self.hear()
    }
}
