//! Messages between two daemons: a header that is the same in all versions, JSON, and descriptors.

use std::io::{self, IoSlice, IoSliceMut, Read as _, Write as _};
use std::mem::MaybeUninit;
use std::os::fd::{AsFd as _, BorrowedFd, OwnedFd};
use std::os::unix::net::UnixStream;
use std::time::{Duration, Instant};

use rustix::net::{
    RecvAncillaryBuffer, RecvAncillaryMessage, RecvFlags, SendAncillaryBuffer,
    SendAncillaryMessage, SendFlags, recvmsg, sendmsg,
};
use serde::Serialize;
use serde::de::DeserializeOwned;

use super::{PATIENCE, VERSION};

/// Begins a header.
const MAGIC: [u8; 8] = *b"RINGTAKE";
/// Magic, version, length of the JSON text, number of descriptors, and zeroes.
const HEADER_LEN: usize = 24;
/// Longest JSON text, bytes. A queue pair with `engine=uring` may have 2 MiB of frames that wait for buffers, which are four times
/// as long here.
const TEXT_MAX: usize = 1 << 30;
/// Most descriptors of a message.
const FILES_MAX: usize = 1 << 16;
/// Descriptors that are sent with one byte. The kernel takes up to 253.
const FILES_AT_ONCE: usize = 200;

/// The other daemon.
#[derive(Debug)]
pub struct Channel(UnixStream);

/// Why a message could not be received.
#[derive(Debug, thiserror::Error)]
pub enum ChannelError {
    /// The socket.
    #[error("{}", explain(.0))]
    Io(#[from] io::Error),
    /// It is no message of a daemon.
    #[error("it sent something else than a message: {0}")]
    Garbage(String),
    /// The other daemon speaks another version.
    #[error(
        "it speaks version {found} of the take-over, and this daemon ({program}) version {own}",
        found = .0, program = env!("CARGO_PKG_VERSION"), own = VERSION
    )]
    Version(u32),
}

fn explain(error: &io::Error) -> String {
    match error.kind() {
        io::ErrorKind::UnexpectedEof | io::ErrorKind::BrokenPipe => "it is gone".into(),
        io::ErrorKind::ConnectionReset => "it is gone".into(),
        io::ErrorKind::WouldBlock | io::ErrorKind::TimedOut => "it does not answer".into(),
        _ => error.to_string(),
    }
}

impl ChannelError {
    /// Whether the other daemon has ended, or closed the connection.
    pub fn is_gone(&self) -> bool {
        matches!(self, Self::Io(error) if explain(error) == "it is gone")
    }
}

impl Channel {
    /// On this connection. A write does not wait longer than `patience`.
    ///
    /// # Errors
    /// What the system answers.
    pub fn new(stream: UnixStream, patience: Duration) -> io::Result<Self> {
        stream.set_write_timeout(Some(patience))?;
        Ok(Self(stream))
    }

    /// The connection.
    pub const fn stream(&self) -> &UnixStream {
        &self.0
    }

    /// Sends a message with descriptors.
    ///
    /// # Errors
    /// What the socket answers.
    #[expect(
        clippy::cast_possible_truncation,
        reason = "16 MiB and some thousand descriptors at most"
    )]
    pub fn send(&self, message: &impl Serialize, files: &[OwnedFd]) -> io::Result<()> {
        let text = serde_json::to_vec(message)?;
        let numbers = [VERSION, text.len() as u32, files.len() as u32, 0].map(u32::to_le_bytes);
        (&self.0).write_all(&[&MAGIC[..], &numbers.concat(), &text].concat())?;
        for some in files.chunks(FILES_AT_ONCE) {
            let borrowed: Vec<BorrowedFd<'_>> = some.iter().map(|file| file.as_fd()).collect();
            let mut space = [MaybeUninit::uninit(); rustix::cmsg_space!(ScmRights(FILES_AT_ONCE))];
            let mut ancillary = SendAncillaryBuffer::new(&mut space);
            ancillary.push(SendAncillaryMessage::ScmRights(&borrowed));
            sendmsg(&self.0, &[IoSlice::new(&[0])], &mut ancillary, SendFlags::NOSIGNAL)?;
        }
        Ok(())
    }

    /// Receives a message within `limit`, with its descriptors if it may have some.
    ///
    /// # Errors
    /// When the other end sends something else, or nothing, or is gone.
    pub fn receive<T: DeserializeOwned>(
        &self,
        limit: Duration,
        has_files: bool,
    ) -> Result<(T, Vec<OwnedFd>), ChannelError> {
        let until = Instant::now() + limit;
        let header = self.read(HEADER_LEN, until)?;
        if header[..8] != MAGIC {
            return Err(ChannelError::Garbage("it does not begin as one does".into()));
        }
        let number = |n: usize| {
            let at = 8 + 4 * n;
            header[at..at + 4].try_into().map_or(0, u32::from_le_bytes)
        };
        let (version, len, count) = (number(0), number(1) as usize, number(2) as usize);
        if version != VERSION {
            return Err(ChannelError::Version(version));
        }
        if len > TEXT_MAX || count > if has_files { FILES_MAX } else { 0 } {
            return Err(ChannelError::Garbage(format!("{len} bytes, {count} descriptors")));
        }
        let text = self.read(len, until)?;
        let files = self.receive_files(count, until)?;
        let message =
            serde_json::from_slice(&text).map_err(|why| ChannelError::Garbage(why.to_string()))?;
        Ok((message, files))
    }

    /// Descriptors that come where none are expected are closed by the kernel.
    fn read(&self, len: usize, until: Instant) -> Result<Vec<u8>, ChannelError> {
        let (mut bytes, mut done) = (vec![0; len], 0);
        while done < len {
            self.wait_until(until)?;
            match (&self.0).read(&mut bytes[done..]) {
                Ok(0) => return Err(io::Error::from(io::ErrorKind::UnexpectedEof).into()),
                Ok(more) => done += more,
                Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
                Err(error) => return Err(error.into()),
            }
        }
        Ok(bytes)
    }

    fn receive_files(&self, count: usize, until: Instant) -> Result<Vec<OwnedFd>, ChannelError> {
        let mut files = Vec::new();
        while files.len() < count {
            self.wait_until(until)?;
            let mut space = [MaybeUninit::uninit(); rustix::cmsg_space!(ScmRights(FILES_AT_ONCE))];
            let mut ancillary = RecvAncillaryBuffer::new(&mut space);
            let mut byte = [0];
            let mut list = [IoSliceMut::new(&mut byte)];
            let received = recvmsg(&self.0, &mut list, &mut ancillary, RecvFlags::CMSG_CLOEXEC)
                .map_err(io::Error::from)?;
            let before = files.len();
            for message in ancillary.drain() {
                if let RecvAncillaryMessage::ScmRights(some) = message {
                    files.extend(some);
                }
            }
            if received.bytes == 0 {
                return Err(io::Error::from(io::ErrorKind::UnexpectedEof).into());
            }
            if files.len() == before {
                let why =
                    "descriptors are missing; is the limit of open files (RLIMIT_NOFILE) too low?";
                return Err(ChannelError::Garbage(why.into()));
            }
        }
        if files.len() != count {
            return Err(ChannelError::Garbage("too many descriptors".into()));
        }
        Ok(files)
    }

    /// Waits until the other daemon has ended, or for [`PATIENCE`].
    pub fn wait_for_the_end(&self) {
        // It says nothing any more.
        let _ = self.read(1, Instant::now() + PATIENCE);
    }

    fn wait_until(&self, until: Instant) -> io::Result<()> {
        let left = until.saturating_duration_since(Instant::now());
        if left.is_zero() {
            return Err(io::ErrorKind::TimedOut.into());
        }
        self.0.set_read_timeout(Some(left))
    }
}
