//! Helpers, as the daemon sees them.

use std::ffi::OsString;
use std::io;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::os::unix::process::CommandExt as _;
use std::path::PathBuf;
use std::process::{Child, Command, ExitStatus, Stdio};
use std::sync::OnceLock;
use std::time::{Duration, Instant};

use rustix::event::{PollFd, PollFlags, Timespec, poll};
use rustix::io::Errno;
use rustix::net::RecvFlags;

use crate::message::{pair, receive, send};
use crate::{ARGUMENT, Task};

/// How a helper is started.
#[derive(Clone, Debug)]
pub struct Program {
    path: PathBuf,
    arguments: Vec<OsString>,
}

static PROGRAM: OnceLock<Program> = OnceLock::new();

impl Program {
    /// This process's own executable, whose `main` calls [`run`](crate::run) when its first argument is [`ARGUMENT`].
    /// Also when its file was replaced since.
    #[must_use]
    pub fn this() -> Self {
        Self { path: "/proc/self/exe".into(), arguments: vec![ARGUMENT.into()] }
    }

    /// Another executable that calls [`run`](crate::run) with these arguments: tests have one.
    #[must_use]
    pub fn other(path: PathBuf, arguments: &[&str]) -> Self {
        Self { path, arguments: arguments.iter().map(OsString::from).collect() }
    }
}

/// From now on helpers of this process are started so. Only the first call counts. Without one there are no helpers.
pub fn register(program: Program) {
    let _ = PROGRAM.set(program);
}

/// A helper process.
#[derive(Debug)]
pub struct Helper {
    /// `None` after [`dismiss`](Self::dismiss).
    socket: Option<OwnedFd>,
    child: Child,
}

impl Helper {
    /// Starts a helper that forwards the signals of `eventfd` to `pipe`, as 8 bytes each. Waits until it has opened the
    /// pipe for writing.
    ///
    /// # Errors
    /// The helper, if it was started, for [`wait`](Self::wait); and why it does not forward. After `patience` that is
    /// [`io::ErrorKind::TimedOut`].
    pub fn forward(
        eventfd: BorrowedFd<'_>,
        pipe: BorrowedFd<'_>,
        patience: Duration,
    ) -> Result<Self, (Option<Self>, io::Error)> {
        let helper = Self::start(Task::Forward, &[eventfd, pipe]).map_err(|error| (None, error))?;
        match helper.answer(patience) {
            Ok(0) => Ok(helper),
            Ok(errno) => {
                let errno = i32::try_from(errno).unwrap_or(i32::MAX);
                Err((Some(helper), io::Error::from_raw_os_error(errno)))
            }
            Err(error) => Err((Some(helper), error)),
        }
    }

    /// Starts a helper that asks `file` for the number of its file system (`statfs(2)`, `f_type`).
    ///
    /// # Errors
    /// As [`forward`](Self::forward).
    pub fn file_system(
        file: BorrowedFd<'_>,
        patience: Duration,
    ) -> Result<(Self, u64), (Option<Self>, io::Error)> {
        let helper = Self::start(Task::FileSystem, &[file]).map_err(|error| (None, error))?;
        match helper.answer(patience) {
            Ok(number) => Ok((helper, number)),
            Err(error) => Err((Some(helper), error)),
        }
    }

    pub(crate) fn start(task: Task, files: &[BorrowedFd<'_>]) -> io::Result<Self> {
        let Some(program) = PROGRAM.get() else {
            let text = "this program has no helper processes";
            return Err(io::Error::new(io::ErrorKind::Unsupported, text));
        };
        let (socket, theirs) = pair()?;
        let mut command = Command::new(&program.path);
        command.args(&program.arguments).current_dir("/").process_group(0);
        // A reader of the daemon's output sees its end when the daemon ends, even if a helper still runs.
        command.stdin(Stdio::from(theirs)).stdout(Stdio::null()).stderr(Stdio::null());
        let child = command.spawn()?;
        let helper = Self { socket: Some(socket), child };
        helper.send(&[task as u8], files)?;
        Ok(helper)
    }

    pub(crate) fn send(&self, bytes: &[u8], files: &[BorrowedFd<'_>]) -> io::Result<()> {
        send(self.socket.as_ref().ok_or(io::ErrorKind::BrokenPipe)?, bytes, files)
    }

    /// The bytes of an answer that is there.
    pub(crate) fn answered(&self) -> io::Result<Option<[u8; 8]>> {
        let socket = self.socket.as_ref().ok_or(io::ErrorKind::BrokenPipe)?;
        match receive(socket, RecvFlags::DONTWAIT) {
            Ok(message) => match message.bytes().try_into() {
                Ok(bytes) => Ok(Some(bytes)),
                Err(_) => Err(io::ErrorKind::UnexpectedEof.into()),
            },
            Err(error) if error.kind() == io::ErrorKind::WouldBlock => Ok(None),
            Err(error) => Err(error),
        }
    }

    fn answer(&self, patience: Duration) -> io::Result<u64> {
        let socket = self.socket.as_ref().ok_or(io::ErrorKind::BrokenPipe)?;
        let until = Instant::now() + patience;
        loop {
            let left = until.saturating_duration_since(Instant::now());
            let mut polled = [PollFd::from_borrowed_fd(socket.as_fd(), PollFlags::IN)];
            match poll(&mut polled, Timespec::try_from(left).ok().as_ref()) {
                Ok(0) => return Err(io::ErrorKind::TimedOut.into()),
                Ok(_) => {}
                Err(Errno::INTR) => continue,
                Err(error) => return Err(error.into()),
            }
            if let Some(bytes) = self.answered()? {
                return Ok(u64::from_ne_bytes(bytes));
            }
        }
    }

    /// Returns the helper's socket. When that is closed, the helper ends, as soon as it is in no call.
    ///
    /// # Errors
    /// When it was taken already.
    pub fn take_socket(&mut self) -> io::Result<OwnedFd> {
        self.socket.take().ok_or(io::ErrorKind::BrokenPipe.into())
    }

    /// Waits until the helper has ended. That may take for ever.
    ///
    /// # Errors
    /// When somebody else has waited for it.
    pub fn wait(mut self) -> io::Result<ExitStatus> {
        self.child.wait()
    }

    /// Asks the helper to end, and waits for that as [`wait`](Self::wait).
    ///
    /// # Errors
    /// As [`wait`](Self::wait).
    pub fn dismiss(mut self) -> io::Result<ExitStatus> {
        self.socket = None;
        self.wait()
    }
}
