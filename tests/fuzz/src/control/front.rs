//! The socket, messages and descriptors.

use std::fs::File;
use std::io::{IoSlice, Read as _};
use std::mem::MaybeUninit;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::os::unix::net::UnixStream;
use std::time::{Duration, Instant};

use arbitrary::Arbitrary;
use rustix::event::{EventfdFlags, eventfd};
use rustix::fs::{MemfdFlags, memfd_create};
use rustix::net::{SendAncillaryBuffer, SendAncillaryMessage, SendFlags, sendmsg};
use rustix::pipe::{PipeFlags, pipe_with};

use super::world::{Conversation, World};

pub use frontend::raw::request;

/// Bits of a header's flags: the protocol's version, and the request for an answer.
const VERSION: u32 = 1;
const NEED_REPLY: u32 = 1 << 3;
const HEADER_LEN: usize = 12;
/// Bit of the number that comes with a descriptor: there is no descriptor.
const NO_DESCRIPTOR: u64 = 0x100;
/// Most descriptors of a message: more than the daemon accepts, fewer than the kernel's 253.
const DESCRIPTORS_MAX: usize = 70;
/// Longest wait for an answer on a busy machine: a worker that does not answer is interrupted after 10 s.
const PATIENCE: Duration = Duration::from_secs(20);

/// A message to the back end.
pub struct Message {
    request: u32,
    payload: Vec<u8>,
}

impl Message {
    /// A message with this payload.
    #[must_use]
    pub const fn new(request: u32, payload: Vec<u8>) -> Self {
        Self { request, payload }
    }

    /// `SET_VRING_ADDR`: descriptor table, driver area and device area, as the front end knows them.
    #[must_use]
    pub fn addresses(ring: u8, [table, driver, device]: [u64; 3]) -> Self {
        let words = [ring.into(), table, device, driver, 0];
        Self::new(request::SET_VRING_ADDR, words.map(u64::to_ne_bytes).concat())
    }

    fn bytes(&self, flags: u32, lie: i8) -> Vec<u8> {
        let len = (self.payload.len() as u32).wrapping_add_signed(lie.into());
        let header = [self.request, flags, len].map(u32::to_ne_bytes).concat();
        [&header[..], &self.payload].concat()
    }
}

/// A kind of descriptor.
#[derive(Arbitrary, Clone, Copy, Debug)]
pub enum Descriptor {
    /// A valid eventfd.
    Event,
    /// An eventfd that makes its reader or writer wait.
    Waiting,
    /// An eventfd whose counter is full.
    Full,
    /// A memory file, with its length in pages.
    Memory(u8),
    /// The read end of a pipe.
    PipeOut,
    /// The write end of a pipe.
    PipeIn,
    /// A socket whose other end is closed.
    Socket,
    /// `/dev/null`.
    Null,
    /// A directory.
    Directory,
    /// A read-only file.
    ReadOnly,
    /// The front end's own connection.
    Own,
}

impl Descriptor {
    /// Makes a descriptor for the front end with this connection.
    #[must_use]
    pub fn make(self, own: &UnixStream) -> OwnedFd {
        let open = |path: &str| OwnedFd::from(File::open(path).expect("a file of every system"));
        let event =
            |count, flags| eventfd(count, flags | EventfdFlags::CLOEXEC).expect("an eventfd");
        let pipe = || pipe_with(PipeFlags::CLOEXEC).expect("a pipe");
        match self {
            Self::Event => event(0, EventfdFlags::NONBLOCK),
            Self::Waiting => event(0, EventfdFlags::empty()),
            Self::Full => {
                let full = event(0, EventfdFlags::NONBLOCK);
                rustix::io::write(&full, &(u64::MAX - 1).to_ne_bytes()).expect("room in a counter");
                full
            }
            Self::Memory(pages) => {
                let file = memfd_create("fuzz", MemfdFlags::CLOEXEC).expect("a memory file");
                rustix::fs::ftruncate(&file, u64::from(pages) * 4096).expect("a size");
                file
            }
            Self::PipeOut => pipe().0,
            Self::PipeIn => pipe().1,
            Self::Socket => UnixStream::pair().expect("sockets").0.into(),
            Self::Null => open("/dev/null"),
            Self::Directory => open("/"),
            Self::ReadOnly => open("/proc/self/exe"),
            Self::Own => own.try_clone().expect("a descriptor").into(),
        }
    }
}

/// One front end.
pub struct Front {
    stream: UnixStream,
    conversation: Conversation,
    offered: u64,
    is_at_switch: bool,
    /// Whether the other side has closed the connection.
    is_over: bool,
    /// Whether all messages so far were whole, so that the next one is understood.
    is_in_step: bool,
    asks: bool,
    cut: Option<usize>,
    /// Whether a message was sent since the last answer.
    is_ahead: bool,
}

impl Front {
    /// Connects to device number `device`.
    #[must_use]
    pub fn connect(world: &'static World, device: usize) -> Self {
        let (stream, conversation) = world.converse(device);
        Self {
            stream,
            conversation,
            offered: world.offered(device),
            is_at_switch: world.is_at_switch(device),
            is_over: false,
            is_in_step: true,
            asks: false,
            cut: None,
            is_ahead: true,
        }
    }

    /// Whether the device's worker also serves other guests.
    #[must_use]
    pub const fn is_at_switch(&self) -> bool {
        self.is_at_switch
    }

    /// The connection.
    #[must_use]
    pub const fn stream(&self) -> &UnixStream {
        &self.stream
    }

    /// The features that the device offers.
    #[must_use]
    pub const fn offered(&self) -> u64 {
        self.offered
    }

    /// Whether the back end answers, and has not closed the connection.
    #[must_use]
    pub const fn is_served(&self) -> bool {
        !self.is_over
    }

    /// Closes the connection. The conversation must then end.
    pub fn end(self) {
        drop(self.stream);
        self.conversation.end();
    }

    /// Sets whether messages ask for an answer from now on.
    pub const fn asks_for_answers(&mut self, asks: bool) {
        self.asks = asks;
    }

    /// Sends the next message in two pieces.
    pub fn cut_next(&mut self, at: u8) {
        self.cut = Some(at.into());
    }

    /// Sends a message without descriptors.
    pub fn send(&mut self, message: &Message) {
        self.send_with(message, &[]);
    }

    /// Sends a message whose payload is a number.
    pub fn send_number(&mut self, request: u32, number: u64) {
        self.send(&Message::new(request, number.to_ne_bytes().to_vec()));
    }

    /// Sends a message with descriptors.
    pub fn send_with(&mut self, message: &Message, descriptors: &[OwnedFd]) {
        let borrowed: Vec<_> = descriptors.iter().map(AsFd::as_fd).collect();
        self.send_borrowed(message, &borrowed);
    }

    fn send_borrowed(&mut self, message: &Message, descriptors: &[BorrowedFd<'_>]) {
        let flags = VERSION | if self.asks { NEED_REPLY } else { 0 };
        self.transmit(&message.bytes(flags, 0), descriptors);
    }

    /// Sends a message with an arbitrary header.
    pub fn send_lying(&mut self, message: &Message, flags: u8, lie: i8, kinds: &[Descriptor]) {
        let made = kinds.iter().take(DESCRIPTORS_MAX);
        let made: Vec<_> = made.map(|kind| kind.make(&self.stream)).collect();
        let borrowed: Vec<_> = made.iter().map(AsFd::as_fd).collect();
        self.is_in_step &= lie == 0;
        self.transmit(&message.bytes(flags.into(), lie), &borrowed);
    }

    /// Sends any bytes.
    pub fn send_bytes(&mut self, bytes: &[u8]) {
        self.is_in_step &= bytes.is_empty();
        self.transmit(bytes, &[]);
    }

    /// Gives a ring a descriptor of some kind, or tells the back end that there is none.
    pub fn give(&mut self, request: u32, ring: u8, descriptor: Option<&Descriptor>) {
        match descriptor {
            Some(kind) => self.give_this(request, ring, &kind.make(&self.stream)),
            None => self.send_number(request, u64::from(ring) | NO_DESCRIPTOR),
        }
    }

    /// Gives a ring this descriptor.
    pub fn give_this(&mut self, request: u32, ring: u8, descriptor: &OwnedFd) {
        let payload = u64::from(ring).to_ne_bytes().to_vec();
        self.send_borrowed(&Message::new(request, payload), &[descriptor.as_fd()]);
    }

    fn transmit(&mut self, bytes: &[u8], descriptors: &[BorrowedFd<'_>]) {
        let (first, second) = bytes.split_at(self.cut.take().unwrap_or(0).min(bytes.len()));
        self.transmit_piece(first, if second.is_empty() { descriptors } else { &[] });
        self.transmit_piece(second, descriptors);
        self.is_ahead = true;
    }

    fn transmit_piece(&mut self, mut bytes: &[u8], descriptors: &[BorrowedFd<'_>]) {
        let mut space = [MaybeUninit::uninit(); rustix::cmsg_space!(ScmRights(DESCRIPTORS_MAX))];
        let mut ancillary = SendAncillaryBuffer::new(&mut space);
        if !descriptors.is_empty() {
            assert!(ancillary.push(SendAncillaryMessage::ScmRights(descriptors)));
        }
        let until = Instant::now() + PATIENCE;
        while !bytes.is_empty() && !self.is_over {
            let flags = SendFlags::NOSIGNAL | SendFlags::DONTWAIT;
            match sendmsg(&self.stream, &[IoSlice::new(bytes)], &mut ancillary, flags) {
                Ok(sent) => {
                    bytes = &bytes[sent..];
                    ancillary.clear();
                }
                Err(rustix::io::Errno::AGAIN) => {
                    assert!(Instant::now() < until, "the back end reads nothing any more");
                    self.drain();
                    std::thread::yield_now();
                }
                Err(_) => self.is_over = true,
            }
        }
    }

    /// Takes all answers that came.
    pub fn drain(&mut self) {
        let mut bytes = [0; 4096];
        self.stream.set_nonblocking(true).expect("a socket");
        loop {
            match self.stream.read(&mut bytes) {
                Ok(0) => self.is_over = true,
                Ok(_) => continue,
                Err(error) if error.kind() == std::io::ErrorKind::WouldBlock => {}
                Err(_) => self.is_over = true,
            }
            return;
        }
    }

    /// Waits until the back end has processed all messages, if it can still be asked.
    pub fn sync(&mut self) {
        if !self.is_in_step || self.is_over || !std::mem::replace(&mut self.is_ahead, false) {
            return;
        }
        self.drain();
        self.transmit(&Message::new(request::GET_FEATURES, Vec::new()).bytes(VERSION, 0), &[]);
        self.is_ahead = false;
        self.await_answer(request::GET_FEATURES);
    }

    /// Reads answers up to the one to `wanted`. Returns whether it came before the conversation ended.
    pub fn await_answer(&mut self, wanted: u32) -> bool {
        self.stream.set_nonblocking(false).expect("a socket");
        self.stream.set_read_timeout(Some(PATIENCE)).expect("a socket");
        while !self.is_over {
            let mut header = [0; HEADER_LEN];
            match self.stream.read_exact(&mut header) {
                Ok(()) => {}
                Err(error) if error.kind() == std::io::ErrorKind::WouldBlock => {
                    panic!("no answer to request {wanted}")
                }
                Err(_) => {
                    self.is_over = true;
                    break;
                }
            }
            let word = |at: usize| u32::from_ne_bytes(std::array::from_fn(|n| header[at + n]));
            assert!(word(8) <= 4096, "an answer of {} bytes", word(8));
            let mut payload = vec![0; word(8) as usize];
            self.is_over |= self.stream.read_exact(&mut payload).is_err();
            if word(0) == wanted {
                return !self.is_over;
            }
        }
        false
    }
}
