//! A file of the daemon in a directory that others may write to. It is new each time, and its name is locked.

use std::fs::{self, File, Metadata, OpenOptions};
use std::io::{self, Read as _};
use std::os::unix::fs::{MetadataExt as _, OpenOptionsExt as _, PermissionsExt as _};
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicBool, Ordering};

use rustix::fs::{FlockOperation, OFlags, flock};

use crate::identity::{FileId, kind, refused};

/// Most tries for a name that other processes create and remove at the same time.
const TRIES: u32 = 16;

/// Creates the file `path` with this mode. A regular file of this user at `path` is replaced, unless it begins with
/// `mark`.
///
/// # Errors
/// When something else is at `path`, or a system call fails.
pub fn create_own(path: &Path, mode: u32, mark: [u8; 8]) -> io::Result<File> {
    for _ in 0..TRIES {
        match new_file(path, mode) {
            Err(error) if error.kind() == io::ErrorKind::AlreadyExists => {}
            made => return made,
        }
        let Some(found) = own_file(path)? else { continue };
        if begins_with(path, mark)? {
            return Err(refused("it is a flight recorder"));
        }
        // The name is replaced, not the contents: readers that have the old file open keep it.
        let Some(name) = path.file_name() else { return Err(refused("it is a directory")) };
        let mut beside = name.to_owned();
        beside.push(format!(".{}.new", std::process::id()));
        let beside = path.with_file_name(beside);
        let file = new_file(&beside, mode)?;
        let is_same = own_file(path)?.is_none_or(|now| FileId::of(&now) == FileId::of(&found));
        let done = if is_same { fs::rename(&beside, path) } else { Err(changed()) };
        return match done {
            Ok(()) => Ok(file),
            Err(error) => {
                let _ = fs::remove_file(&beside);
                Err(error)
            }
        };
    }
    Err(changed())
}

/// Creates the file `path`, which must not exist.
///
/// # Errors
/// [`io::ErrorKind::AlreadyExists`] when anything is at `path`, even a link; else the error of the system call.
pub fn new_file(path: &Path, mode: u32) -> io::Result<File> {
    let flags = OFlags::NOFOLLOW.bits().cast_signed();
    let mut options = OpenOptions::new();
    options.read(true).write(true).create_new(true).mode(mode).custom_flags(flags).open(path)
}

/// The regular file of this user at `path`, if anything is there.
///
/// # Errors
/// When it is something else, or another user's.
pub fn own_file(path: &Path) -> io::Result<Option<Metadata>> {
    let found = match fs::symlink_metadata(path) {
        Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(None),
        found => found?,
    };
    check(&found).map(|()| Some(found))
}

/// Opens the regular file of this user at `path` for reading and writing, if anything is there.
///
/// # Errors
/// As [`own_file`], or the error of the system call.
pub fn open_own(path: &Path) -> io::Result<Option<File>> {
    // Checked before it is opened, because opening a device may have an effect.
    if own_file(path)?.is_none() {
        return Ok(None);
    }
    let flags = (OFlags::NOFOLLOW | OFlags::NONBLOCK).bits().cast_signed();
    let file = OpenOptions::new().read(true).write(true).custom_flags(flags).open(path)?;
    check(&file.metadata()?)?;
    Ok(Some(file))
}

fn check(found: &Metadata) -> io::Result<()> {
    if !found.is_file() {
        let found = kind(found.file_type());
        return Err(refused(format!(
            "expected a regular file or nothing, found {found}; remove it"
        )));
    }
    if found.uid() != rustix::process::geteuid().as_raw() {
        let uid = found.uid();
        return Err(refused(format!("the file there is another user's (uid {uid}); remove it")));
    }
    Ok(())
}

fn begins_with(path: &Path, mark: [u8; 8]) -> io::Result<bool> {
    let mut begin = [0; 8];
    let file = crate::open_regular(path);
    Ok(file.and_then(|mut file| file.read_exact(&mut begin)).is_ok() && begin == mark)
}

fn changed() -> io::Error {
    refused("another process keeps creating and removing the same name")
}

/// A lock on a name, held on a file that only this user can open. It is released when the process ends, however it ends.
/// Dropping it removes the file.
#[derive(Debug)]
pub struct Lock {
    file: File,
    path: PathBuf,
    /// Another process goes on with it.
    is_left: AtomicBool,
}

impl Lock {
    /// Takes the lock `path`; `None` when another process has it.
    ///
    /// # Errors
    /// When something else or another user's file is at `path`, or a system call fails.
    pub fn take(path: &Path) -> io::Result<Option<Self>> {
        let flags = (OFlags::NOFOLLOW | OFlags::NONBLOCK).bits().cast_signed();
        let mut options = OpenOptions::new();
        options.read(true).write(true).create(true).truncate(false).mode(0o600);
        options.custom_flags(flags);
        for _ in 0..TRIES {
            // Checked before it is opened, because opening a device may have an effect.
            own_file(path)?;
            let file = options.open(path)?;
            let found = file.metadata()?;
            check(&found)?;
            // Any process that can open it could lock it.
            if found.mode() & 0o777 != 0o600 {
                file.set_permissions(fs::Permissions::from_mode(0o600))?;
            }
            match flock(&file, FlockOperation::NonBlockingLockExclusive) {
                Err(rustix::io::Errno::WOULDBLOCK) => return Ok(None),
                done => done?,
            }
            // Its last owner may have removed it. Then the lock has no effect.
            if own_file(path)?.is_some_and(|now| FileId::of(&now) == FileId::of(&found)) {
                return Ok(Some(Self::on(file, path)));
            }
        }
        Err(changed())
    }

    fn on(file: File, path: &Path) -> Self {
        Self { file, path: path.into(), is_left: AtomicBool::new(false) }
    }

    /// The lock `path`, which another process has taken and shares. One of both must leave it to the other.
    ///
    /// # Errors
    /// When `file` is not the one at `path`.
    pub fn shared(file: File, path: &Path) -> io::Result<Self> {
        let found = own_file(path)?;
        if !found
            .is_some_and(|found| FileId::of_file(&file).is_ok_and(|id| id == FileId::of(&found)))
        {
            return Err(refused("it is not the lock that the other process shares"));
        }
        Ok(Self::on(file, path))
    }

    /// Another descriptor of the lock, for a process that goes on with it.
    ///
    /// # Errors
    /// When this process has no descriptor left.
    pub fn share(&self) -> io::Result<File> {
        self.file.try_clone()
    }

    /// Whether another process has the lock from now on, so that this one drops it without removing its file.
    pub fn leave(&self, is_left: bool) {
        self.is_left.store(is_left, Ordering::Relaxed);
    }
}

impl Drop for Lock {
    fn drop(&mut self) {
        if self.is_left.load(Ordering::Relaxed) {
            return;
        }
        // Removed while it is locked: a process that opens the path after this gets another file, or none.
        let _ = fs::remove_file(&self.path);
    }
}

#[cfg(test)]
mod tests;
