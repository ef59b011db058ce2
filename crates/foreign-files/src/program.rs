//! Helpers, as the daemon sees them.

use std::ffi::OsString;
use std::fs::File;
use std::io::{self, Read as _};
use std::os::fd::{AsFd as _, BorrowedFd, OwnedFd};
use std::os::unix::net::UnixStream;
use std::path::PathBuf;
use std::sync::OnceLock;
use std::time::Duration;

use crate::copying::Copying;
use crate::message::{answer_of, answered, await_answer, received, send};
use crate::starter::Starter;
use crate::{ARGUMENT, Task};

/// How a helper is started.
#[derive(Clone, Debug)]
pub struct Program {
    path: PathBuf,
    arguments: Vec<OsString>,
}

static STARTER: OnceLock<io::Result<Starter>> = OnceLock::new();

impl Program {
    /// This process's own executable, whose `main` calls [`run`](crate::run) when its first argument is [`ARGUMENT`].
    /// Also when its file was replaced since. `more`: further arguments.
    #[must_use]
    pub fn this(more: &[&str]) -> Self {
        let arguments = [ARGUMENT].iter().chain(more).map(OsString::from).collect();
        Self { path: "/proc/self/exe".into(), arguments }
    }

    /// Another executable that calls [`run`](crate::run) with these arguments: tests have one.
    #[must_use]
    pub fn other(path: PathBuf, arguments: &[&str]) -> Self {
        Self { path, arguments: arguments.iter().map(OsString::from).collect() }
    }
}

/// Starts the process that starts the helpers of this one. Only the first call counts. Without one there are no helpers.
///
/// # Errors
/// Why it could not be started.
pub fn register(program: &Program) -> io::Result<()> {
    match STARTER.get_or_init(|| Starter::start(&program.path, &program.arguments)) {
        Ok(_) => Ok(()),
        Err(error) => Err(error.kind().into()),
    }
}

/// A helper process.
#[derive(Debug)]
pub struct Helper {
    /// `None` after [`dismiss`](Self::dismiss).
    socket: Option<OwnedFd>,
    /// Ends when the helper does.
    alive: UnixStream,
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

    /// Opens `/proc/PID/maps` of the process at the other end of `socket` (`SO_PEERCRED`).
    ///
    /// # Errors
    /// Why it cannot be read, as [`forward`](Self::forward) without the helper, which ends by itself.
    pub fn maps(socket: BorrowedFd<'_>, patience: Duration) -> io::Result<File> {
        let helper = Self::start(Task::Maps, &[socket])?;
        await_answer(helper.socket()?, patience)?;
        let mut message = received(helper.socket()?)?.ok_or(io::ErrorKind::TimedOut)?;
        message.files.pop().map(File::from).ok_or(io::ErrorKind::PermissionDenied.into())
    }

    /// Starts a helper that copies all of `from`, up to its end, to the beginning of `to`. If `to` is a file, it gets that length.
    ///
    /// # Errors
    /// When there are no helpers, or the system has no process or descriptor left.
    pub fn copy(from: BorrowedFd<'_>, to: BorrowedFd<'_>) -> io::Result<(Self, Copying)> {
        let mut helper = Self::start(Task::Copy, &[from, to])?;
        let copying = Copying::by(helper.take_socket()?);
        Ok((helper, copying))
    }

    pub(crate) fn start(task: Task, files: &[BorrowedFd<'_>]) -> io::Result<Self> {
        let Some(Ok(starter)) = STARTER.get() else {
            let text = "this program has no helper processes";
            return Err(io::Error::new(io::ErrorKind::Unsupported, text));
        };
        let (socket, alive) = starter.helper()?;
        let helper = Self { socket: Some(socket), alive };
        helper.send(&[task as u8], files)?;
        Ok(helper)
    }

    pub(crate) fn send(&self, bytes: &[u8], files: &[BorrowedFd<'_>]) -> io::Result<()> {
        send(&self.socket()?, bytes, files)
    }

    /// The bytes of an answer that is there.
    pub(crate) fn answered(&self) -> io::Result<Option<[u8; 8]>> {
        answered(self.socket()?)
    }

    fn answer(&self, patience: Duration) -> io::Result<u64> {
        answer_of(self.socket()?, patience)
    }

    fn socket(&self) -> io::Result<BorrowedFd<'_>> {
        Ok(self.socket.as_ref().ok_or(io::ErrorKind::BrokenPipe)?.as_fd())
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
    /// When the socket that shows it cannot be read.
    pub fn wait(mut self) -> io::Result<()> {
        // A helper writes nothing there.
        self.alive.read_to_end(&mut Vec::new()).map(drop)
    }

    /// Asks the helper to end, and waits for that as [`wait`](Self::wait).
    ///
    /// # Errors
    /// As [`wait`](Self::wait).
    pub fn dismiss(mut self) -> io::Result<()> {
        self.socket = None;
        self.wait()
    }
}
