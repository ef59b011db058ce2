//! A file that a user's tool writes.
//!
//! | what is at the path | what happens |
//! | --- | --- |
//! | nothing, or a regular file | written to a file beside it (`FILE.part`), which gets the name at the end |
//! | a link to a regular file | the same with the file that it leads to |
//! | a device or FIFO, or a link to one | written into; a FIFO waits for its reader as in a shell |
//! | the same file as standard output, or the path `-` | standard output |
//! | a directory, socket, block device, or a link to nothing | refused |
//!
//! All of that is checked when the output is opened, before a long run.

use std::ffi::OsString;
use std::fs::{self, File, Metadata, OpenOptions};
use std::io::{self, IsTerminal as _, Read as _, Write};
use std::os::fd::{AsFd as _, AsRawFd as _};
use std::os::unix::fs::{FileTypeExt as _, MetadataExt as _, OpenOptionsExt as _, PermissionsExt};
use std::path::{Path, PathBuf};

use rustix::fs::OFlags;

use crate::identity::{FileId, kind, refused};

/// Most files `FILE.part`, `FILE.2.part` and so on that killed runs may have left.
const PARTS_MAX: u32 = 100;
/// The sticky bit of a directory (`S_ISVTX`): only a file's owner may rename the file.
const STICKY: u32 = 0o1000;

/// Files that must not be replaced.
#[derive(Clone, Copy, Debug)]
pub struct Guard<'a> {
    /// The files that are read.
    pub inputs: &'a [FileId],
    /// The first 8 bytes of a flight recorder, which a daemon may be writing.
    pub mark: [u8; 8],
}

/// An open output. Without [`keep`](Self::keep) its file is removed when it is dropped.
#[derive(Debug)]
pub struct Output {
    file: File,
    whole: Option<Whole>,
}

/// A file that gets its name at the end.
#[derive(Debug)]
struct Whole {
    path: PathBuf,
    part: PathBuf,
    is_kept: bool,
}

impl Output {
    /// Opens the output that `path` names.
    ///
    /// # Errors
    /// When it cannot be written, or `guard` forbids it.
    pub fn open(path: &Path, guard: Guard<'_>) -> io::Result<Self> {
        if path.as_os_str() == "-" {
            return Self::stdout();
        }
        let found = match fs::symlink_metadata(path) {
            Err(error) if error.kind() == io::ErrorKind::NotFound => {
                return Self::beside(path.into(), None);
            }
            found => found?,
        };
        // A handle that neither reads nor writes, so that no kind of file blocks.
        let flags = OFlags::PATH.bits().cast_signed();
        let handle = match OpenOptions::new().read(true).custom_flags(flags).open(path) {
            Err(error) if error.kind() == io::ErrorKind::NotFound => {
                return Err(refused(
                    "it is a link to nothing; make what it leads to, or remove it",
                ));
            }
            handle => handle?,
        };
        let target = handle.metadata()?;
        let id = FileId::of(&target);
        if id == FileId::of_file(&File::from(io::stdout().as_fd().try_clone_to_owned()?))? {
            return Self::stdout();
        }
        let by_handle = PathBuf::from(format!("/proc/self/fd/{}", handle.as_raw_fd()));
        let kind_of = target.file_type();
        if kind_of.is_file() {
            check(&by_handle, id, guard)?;
            let path = if found.is_symlink() { fs::read_link(&by_handle)? } else { path.into() };
            return Self::beside(path, Some(&target));
        }
        if kind_of.is_dir() || kind_of.is_socket() || kind_of.is_block_device() {
            return Err(refused(format!("it is {}", kind(kind_of))));
        }
        let flags = OFlags::NOCTTY.bits().cast_signed();
        let file = OpenOptions::new().write(true).custom_flags(flags).open(by_handle)?;
        Ok(Self { file, whole: None })
    }

    fn stdout() -> io::Result<Self> {
        Ok(Self { file: io::stdout().as_fd().try_clone_to_owned()?.into(), whole: None })
    }

    /// Creates the file beside `path` that gets its name at the end. `found` is the file that is at `path` now.
    fn beside(path: PathBuf, found: Option<&Metadata>) -> io::Result<Self> {
        let Some(name) = path.file_name().map(ToOwned::to_owned) else {
            return Err(refused("it is a directory"));
        };
        let own = rustix::process::geteuid();
        let is_ours = |file: &Metadata| file.uid() == own.as_raw();
        if let Some(found) = found {
            let directory = fs::metadata(directory_of(&path))?;
            let is_sticky = directory.mode() & STICKY != 0;
            if is_sticky && !is_ours(found) && !is_ours(&directory) && !own.is_root() {
                return Err(refused("it is another user's file"));
            }
        }
        let mut options = OpenOptions::new();
        // The new file has the permissions of the old one.
        let mode = found.filter(|found| is_ours(found)).map(|found| found.mode() & 0o777);
        options
            .read(true)
            .write(true)
            .create_new(true)
            .mode(mode.map_or(0o666, |mode| mode & 0o600));
        for number in 1..=PARTS_MAX {
            let mut part = name.clone();
            part.push(match number {
                1 => OsString::from(".part"),
                _ => OsString::from(format!(".{number}.part")),
            });
            let part = path.with_file_name(part);
            let file = match options.open(&part) {
                Err(error) if error.kind() == io::ErrorKind::AlreadyExists => continue,
                file => file?,
            };
            let whole = Whole { path, part, is_kept: false };
            if let Some(mode) = mode {
                file.set_permissions(PermissionsExt::from_mode(mode))?;
            }
            return Ok(Self { file, whole: Some(whole) });
        }
        let part = format!("{}.part", name.to_string_lossy());
        Err(refused(format!("{PARTS_MAX} files such as {part} are there already; remove them")))
    }

    /// The file.
    #[must_use]
    pub const fn file(&self) -> &File {
        &self.file
    }

    /// Whether it is a terminal.
    #[must_use]
    pub fn is_terminal(&self) -> bool {
        self.file.is_terminal()
    }

    /// The path until [`keep`](Self::keep); `None` for an output that is written in place.
    #[must_use]
    pub fn part(&self) -> Option<&Path> {
        self.whole.as_ref().map(|whole| whole.part.as_path())
    }

    /// Ends the output: the file gets its name.
    ///
    /// # Errors
    /// When the system call fails, or the path has become something else. The written bytes stay in
    /// [`part`](Self::part).
    pub fn keep(mut self) -> io::Result<()> {
        let Some(whole) = &mut self.whole else { return Ok(()) };
        whole.is_kept = true;
        let error = |why: String| refused(format!("{why}; it is in {}", whole.part.display()));
        match fs::symlink_metadata(&whole.path) {
            Ok(found) if !found.is_file() => {
                return Err(error(format!("it has become {}", kind(found.file_type()))));
            }
            _ => {}
        }
        fs::rename(&whole.part, &whole.path).map_err(|source| error(source.to_string()))
    }
}

impl Write for Output {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        self.file.write(bytes)
    }

    fn flush(&mut self) -> io::Result<()> {
        self.file.flush()
    }
}

impl Drop for Whole {
    fn drop(&mut self) {
        if !self.is_kept {
            let _ = fs::remove_file(&self.part);
        }
    }
}

/// Opens `path` to be written in place from its beginning, for a file that others read while it is written. Links are
/// followed; a device or FIFO is written into.
///
/// # Errors
/// When it cannot be written, or `guard` forbids it.
pub fn rewrite(path: &Path, guard: Guard<'_>) -> io::Result<File> {
    let flags = OFlags::NOCTTY.bits().cast_signed();
    let mut options = OpenOptions::new();
    let file = options.write(true).create(true).truncate(false).custom_flags(flags).open(path)?;
    if file.metadata()?.is_file() {
        let by_handle = PathBuf::from(format!("/proc/self/fd/{}", file.as_raw_fd()));
        check(&by_handle, FileId::of_file(&file)?, guard)?;
        file.set_len(0)?;
    }
    Ok(file)
}

/// Checks that the regular file `id` may be replaced: it is not an input, not a recorder, and is writable.
fn check(path: &Path, id: FileId, guard: Guard<'_>) -> io::Result<()> {
    if guard.inputs.contains(&id) {
        return Err(refused("it is one of the inputs"));
    }
    // A file that this user cannot read is not a recorder of this user's daemons.
    let mut mark = [0; 8];
    let begins = File::open(path).and_then(|mut file| file.read_exact(&mut mark));
    if begins.is_ok() && mark == guard.mark {
        return Err(refused("it is a flight recorder, which only its daemon writes"));
    }
    OpenOptions::new().write(true).open(path).map(drop)
}

fn directory_of(path: &Path) -> &Path {
    path.parent().filter(|directory| !directory.as_os_str().is_empty()).unwrap_or(Path::new("."))
}

#[cfg(test)]
mod tests;
