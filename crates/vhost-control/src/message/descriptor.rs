//! The kind of a file descriptor from a front end.
//!
//! Any call into an unknown file can block: a FUSE file answers when its file system wants to. So no call goes to the
//! file itself. The kernel makes the link text of `/proc/self/fd/N` from the file's kind and name. A name cannot imitate
//! a kind: the text of a file with a name begins with `/`.

use std::io;
use std::os::fd::{AsFd, AsRawFd as _};

/// The kind of a descriptor.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Kind {
    /// An eventfd: written and polled without waiting, and its `close` does not wait.
    Eventfd,
    /// An anonymous pipe, either end.
    Pipe,
    /// A socket of any family.
    Socket,
    /// A file with a name, of a file system or of memory (`memfd_create(2)`).
    File,
    /// Anything else: epoll instances, timers, other pseudo files.
    Other,
}

impl Kind {
    fn from_link(text: &[u8]) -> Self {
        if text == b"anon_inode:[eventfd]" {
            Self::Eventfd
        } else if text.starts_with(b"pipe:[") {
            Self::Pipe
        } else if text.starts_with(b"socket:[") {
            Self::Socket
        } else if text.starts_with(b"/") {
            Self::File
        } else {
            Self::Other
        }
    }

    /// Its name in messages, after "expected".
    pub const fn name(self) -> &'static str {
        match self {
            Self::Eventfd => "an eventfd",
            Self::Pipe => "a pipe",
            Self::Socket => "a socket",
            Self::File => "a file",
            Self::Other => "another descriptor",
        }
    }
}

/// Finds out the kind of `fd`. Returns it and the kernel's text for it.
///
/// # Errors
/// When there is no `/proc`.
pub fn inspect(fd: &impl AsFd) -> io::Result<(Kind, String)> {
    let link = rustix::fs::readlink(path(fd), Vec::new())?;
    Ok((Kind::from_link(link.as_bytes()), link.to_string_lossy().into_owned()))
}

/// Returns the kind of `descriptor`, if it is one of those expected.
///
/// # Errors
/// When it is of another kind, or there is no `/proc`.
pub fn expect_kinds(descriptor: &impl AsFd, expected: &[Kind]) -> Result<Kind, String> {
    let (kind, found) = inspect(descriptor)
        .map_err(|error| format!("the kind of its descriptor cannot be found out: {error}"))?;
    if expected.contains(&kind) {
        return Ok(kind);
    }
    let names: Vec<_> = expected.iter().map(|kind| kind.name()).collect();
    Err(format!("its descriptor is {found:?}; expected {}", names.join(" or ")))
}

/// The path by which `fd` can be opened again.
pub fn path(fd: &impl AsFd) -> String {
    format!("/proc/self/fd/{}", fd.as_fd().as_raw_fd())
}

#[cfg(test)]
mod tests {
    use super::*;
    use rustix::event::{EventfdFlags, epoll, eventfd};
    use rustix::fs::{MemfdFlags, memfd_create};
    use std::fs::File;
    use std::os::unix::net::{UnixListener, UnixStream};

    fn kind(fd: &impl AsFd) -> Kind {
        inspect(fd).unwrap().0
    }

    #[test]
    fn the_kernel_reports_the_kind() {
        assert_eq!(kind(&eventfd(0, EventfdFlags::SEMAPHORE).unwrap()), Kind::Eventfd);
        let (reader, writer) = std::io::pipe().unwrap();
        assert_eq!((kind(&reader), kind(&writer)), (Kind::Pipe, Kind::Pipe));
        assert_eq!(kind(&memfd_create("m", MemfdFlags::CLOEXEC).unwrap()), Kind::File);
        assert_eq!(kind(&File::open("/dev/null").unwrap()), Kind::File);
        let (socket, _other) = UnixStream::pair().unwrap();
        assert_eq!(kind(&socket), Kind::Socket);
        assert_eq!(kind(&epoll::create(epoll::CreateFlags::CLOEXEC).unwrap()), Kind::Other);
        assert_eq!(kind(&File::open("/proc/self/ns/net").unwrap()), Kind::Other);
    }

    #[test]
    fn a_name_does_not_imitate_a_kind() {
        let directory = tempfile::tempdir().unwrap();
        for name in ["anon_inode:[eventfd]", "pipe:[1]"] {
            assert_eq!(kind(&memfd_create(name, MemfdFlags::CLOEXEC).unwrap()), Kind::File);
            let path = directory.path().join(name);
            let file = File::create(&path).unwrap();
            assert_eq!(kind(&file), Kind::File);
            std::fs::remove_file(&path).unwrap();
            assert_eq!(kind(&file), Kind::File, "a file that is deleted");
        }
        let listener = UnixListener::bind(directory.path().join("socket")).unwrap();
        assert_eq!(kind(&listener), Kind::Socket);
    }
}
