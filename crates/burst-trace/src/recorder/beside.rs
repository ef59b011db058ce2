//! The recorder of a daemon that takes over from another one, beside that one's until it has its place.

use std::fs::{self, File};
use std::io;
use std::path::{Path, PathBuf};
use std::sync::PoisonError;
use std::sync::atomic::Ordering;

use host_files::Lock;
use host_files::own::own_file;

use super::{Predecessor, Recorder, RecorderError, RecorderOptions, count_on};
use crate::before::{AtPath, Before};
use crate::clock::Clock;

impl Recorder {
    /// The same for a daemon that takes over from one that still writes its own file and shares its `lock`. The new file gets
    /// the name with [`take_place`](Self::take_place).
    ///
    /// # Errors
    /// When the lock is another one, or the system refuses.
    pub fn create_beside(
        options: &RecorderOptions,
        clock: &Clock,
        lock: File,
    ) -> Result<Self, RecorderError> {
        let path = &options.path;
        let io_error = |source| RecorderError::Io { path: path.clone(), source };
        let lock = Lock::shared(lock, &super::lock_path(path))
            .map_err(|source| RecorderError::Lock { path: super::lock_path(path), source })?;
        // Until it takes the other daemon's place, the lock is that one's.
        lock.leave(true);
        let at = self::path(path);
        // A daemon that was killed while it took over may have left one.
        if own_file(&at).map_err(io_error)?.is_some() {
            fs::remove_file(&at).map_err(io_error)?;
        }
        let old = AtPath::find(path).map_err(io_error)?;
        Self::make(options, clock, lock, &at, old.as_ref(), true).map_err(io_error)
    }

    /// The other daemon has stopped the guest's rings at `stopped_ns` of `CLOCK_MONOTONIC`, and none is started here yet:
    /// counts on from where it stood. Its records are for [`copy_before`](Self::copy_before).
    pub fn succeed(&self, stopped_ns: u64) {
        let mut before = self.before.lock().unwrap_or_else(PoisonError::into_inner);
        match std::mem::replace(&mut *before, Predecessor::Done(Before::Nothing)) {
            Predecessor::Serving(old) => {
                let at = Some(stopped_ns);
                let (next, left) = count_on(*old, at, &self.words, &self.layout);
                *before = next;
                left.into_iter().for_each(|left| self.restarting.take_over(left));
            }
            other => *before = other,
        }
    }

    /// Gives the file the name that the other daemon's has, which is removed. The lock is this daemon's from now on.
    ///
    /// # Errors
    /// What the system answers.
    pub fn take_place(&self) -> io::Result<()> {
        if self.is_beside.load(Ordering::Relaxed) {
            self.lock.leave(false);
            fs::rename(path(&self.path), &self.path)?;
            self.is_beside.store(false, Ordering::Relaxed);
        }
        Ok(())
    }

    /// Another descriptor of the lock on the name, for a daemon that takes over.
    ///
    /// # Errors
    /// When this process has no descriptor left.
    pub fn share_lock(&self) -> io::Result<File> {
        self.lock.share()
    }

    /// Another daemon has taken over: name and lock are its own.
    pub fn leave(&self) {
        self.lock.leave(true);
    }
}

/// `RUN_DIR/NAME.trace.next` of the recorder `RUN_DIR/NAME.trace`, while a daemon prepares to take over.
pub fn path(recorder: &Path) -> PathBuf {
    let mut beside = recorder.as_os_str().to_owned();
    beside.push(".next");
    beside.into()
}
