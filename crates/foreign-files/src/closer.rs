//! Closes files whose `close` may block.

use std::collections::VecDeque;
use std::io;
use std::os::fd::{AsFd as _, OwnedFd};

use crate::Task;
use crate::message::FILES_MAX;
use crate::program::Helper;

/// What makes a helper close the files of the oldest message.
pub(crate) const CLOSE: &[u8] = b"x";

/// A helper that closes files.
#[derive(Debug)]
pub struct Closer {
    helper: Helper,
    /// Numbers of files in messages that are not closed yet, oldest first.
    pending: VecDeque<usize>,
}

impl Closer {
    /// Most files of one [`close`](Self::close).
    pub const FILES_MAX: usize = FILES_MAX;

    /// Starts a helper.
    ///
    /// # Errors
    /// When there are no helpers, or the system has no process or descriptor left.
    pub fn start() -> io::Result<Self> {
        Ok(Self { helper: Helper::start(Task::Close, &[])?, pending: VecDeque::new() })
    }

    /// Gives files to the helper, which closes them. They are no longer this process's when this returns.
    ///
    /// # Errors
    /// When they cannot be sent, or the helper has ended. Then this process has closed them.
    pub fn close(&mut self, files: Vec<OwnedFd>) -> io::Result<()> {
        let borrowed: Vec<_> = files.iter().map(|file| file.as_fd()).collect();
        self.helper.send(&[Task::Close as u8], &borrowed)?;
        self.pending.push_back(files.len());
        drop(files);
        // Only now: otherwise the helper could close its copies first, and the last `close` would be the one above.
        self.helper.send(CLOSE, &[])
    }

    /// Returns the number of files that the helper has closed since the last call.
    ///
    /// # Errors
    /// When the helper has ended. Then it has closed all of them.
    pub fn closed(&mut self) -> io::Result<usize> {
        let mut count = 0;
        while self.helper.answered()?.is_some() {
            count += self.pending.pop_front().unwrap_or(0);
        }
        Ok(count)
    }

    /// Waits until all files are closed and the helper has ended.
    ///
    /// # Errors
    /// See [`Helper::wait`].
    pub fn finish(self) -> io::Result<()> {
        self.helper.dismiss()
    }
}
