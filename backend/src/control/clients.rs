//! The clients of the control socket: lines come in, answers go out.
//!
//! Descriptors may come with a request. They are kept until one needs them, until others come, or until all requests that are there are
//! answered: a client may send several at once.
//!
//! Nothing here waits for a client. A client that does not read its answer is not read either, and is closed after
//! [`PATIENCE`].

use std::io::{self, IoSliceMut, Write as _};
use std::mem::MaybeUninit;
use std::net::Shutdown;
use std::os::fd::OwnedFd;
use std::os::unix::net::{UnixListener, UnixStream};
use std::time::{Duration, Instant};

use kernel_stages::DESCRIPTORS_MAX;
use rustix::event::{PollFd, PollFlags, Timespec, poll};
use rustix::net::{RecvAncillaryBuffer, RecvAncillaryMessage, RecvFlags, recvmsg};

use super::commands::{Operator, refusal};

/// Longest request, bytes.
pub const REQUEST_MAX: usize = 16 << 10;
/// Most clients at a time.
const CLIENTS_MAX: usize = 8;
/// Most connections at a time, with those that were refused and are not closed by their clients yet.
const CONNECTIONS_MAX: usize = 16;
/// Shortest time from one request of a client to its next.
const REST: Duration = Duration::from_millis(10);
/// Longest wait for a client that does not read its answer.
const PATIENCE: Duration = Duration::from_secs(10);

/// A connection.
#[derive(Debug)]
struct Client {
    stream: UnixStream,
    /// What came of the next requests.
    input: Vec<u8>,
    /// The descriptors that came last.
    files: Vec<OwnedFd>,
    /// What is left of an answer.
    output: Vec<u8>,
    /// Its next request is not looked at before.
    rests_until: Instant,
    /// When its answer was made.
    answered: Instant,
    /// It sends nothing more.
    is_over: bool,
    /// It was told why it gets no more answers. What it still sends is read and thrown away until it closes: a close with
    /// unread bytes would give it an error in place of that reason.
    is_refused: bool,
}

/// Serves clients until the other end of `ended` is closed.
pub fn serve(listener: &UnixListener, ended: &UnixStream, operator: &Operator) {
    let mut clients: Vec<Client> = Vec::new();
    loop {
        let Some(is_new) = wait(listener, ended, &clients) else { return };
        if is_new {
            match listener.accept() {
                Ok((stream, _)) => admit(stream, &mut clients),
                // It stays in the listener's queue, for example without a free descriptor. The pause keeps this loop from
                // spinning.
                Err(_) => std::thread::sleep(REST),
            }
        }
        clients.retain_mut(|client| client.step(operator).unwrap_or(false));
    }
}

/// Takes a new client, or says why not.
fn admit(stream: UnixStream, clients: &mut Vec<Client>) {
    let Ok(mut client) = Client::new(stream) else { return };
    if clients.len() >= CONNECTIONS_MAX {
        return;
    }
    if clients.iter().filter(|client| !client.is_refused).count() >= CLIENTS_MAX {
        client.refuse(&format!(
            "expected at most {CLIENTS_MAX} connections, found one more; close one"
        ));
    }
    clients.push(client);
}

/// Waits until a client needs something. Returns whether one connects; `None` at the end.
fn wait(listener: &UnixListener, ended: &UnixStream, clients: &[Client]) -> Option<bool> {
    let now = Instant::now();
    let mut polled = vec![PollFd::new(ended, PollFlags::IN), PollFd::new(listener, PollFlags::IN)];
    let mut until: Option<Instant> = None;
    for client in clients {
        let due = if !client.output.is_empty() {
            polled.push(PollFd::new(&client.stream, PollFlags::OUT));
            client.answered + PATIENCE
        } else if client.rests_until > now {
            client.rests_until
        } else if client.is_refused {
            polled.push(PollFd::new(&client.stream, PollFlags::IN));
            client.answered + PATIENCE
        } else {
            polled.push(PollFd::new(&client.stream, PollFlags::IN));
            continue;
        };
        until = Some(until.map_or(due, |until| until.min(due)));
    }
    // A client's request that is there already is looked at when its rest is over.
    let left = until.map(|until| until.saturating_duration_since(now) + Duration::from_millis(1));
    let left = left.and_then(|left| Timespec::try_from(left).ok());
    if poll(&mut polled, left.as_ref()).is_err() {
        // Interrupted, or short of memory.
        std::thread::sleep(Duration::from_millis(1));
        return Some(false);
    }
    if polled[0].revents().is_empty() { Some(!polled[1].revents().is_empty()) } else { None }
}

impl Client {
    fn new(stream: UnixStream) -> io::Result<Self> {
        stream.set_nonblocking(true)?;
        let (input, files, output, now) = (Vec::new(), Vec::new(), Vec::new(), Instant::now());
        let (is_over, is_refused) = (false, false);
        let (rests_until, answered) = (now, now);
        Ok(Self { stream, input, files, output, rests_until, answered, is_over, is_refused })
    }

    /// Says why nothing more is answered.
    fn refuse(&mut self, why: &str) {
        self.answer(&refusal(None, why));
        self.is_refused = true;
    }

    /// Goes on as far as possible. Returns whether the client stays.
    fn step(&mut self, operator: &Operator) -> io::Result<bool> {
        self.flush()?;
        if !self.output.is_empty() {
            return Ok(self.answered.elapsed() < PATIENCE);
        }
        if Instant::now() < self.rests_until {
            return Ok(true);
        }
        if self.is_refused {
            return self.discard();
        }
        if !self.input.contains(&b'\n') && !self.is_over {
            self.read()?;
        }
        let Some(end) = self.input.iter().position(|&byte| byte == b'\n') else {
            if self.input.len() > REQUEST_MAX {
                let why = format!("expected requests of at most {REQUEST_MAX} bytes, found more");
                self.refuse(&why);
                self.flush()?;
            }
            return Ok(!self.is_over);
        };
        let line: Vec<u8> = self.input.drain(..=end).collect();
        let answer = operator.answer(line.trim_ascii(), &mut self.files);
        if self.input.is_empty() {
            self.files.clear();
        }
        self.answer(&answer);
        self.flush()?;
        Ok(true)
    }

    fn answer(&mut self, answer: &serde_json::Value) {
        self.output = format!("{answer}\n").into_bytes();
        self.answered = Instant::now();
        self.rests_until = self.answered + REST;
    }

    /// Reads what a refused client sends. Returns whether it stays.
    fn discard(&mut self) -> io::Result<bool> {
        self.input.clear();
        self.files.clear();
        self.read()?;
        self.rests_until = Instant::now() + REST;
        if self.is_over || self.answered.elapsed() >= PATIENCE {
            return Ok(false);
        }
        // The client sees the end after the answer.
        self.stream.shutdown(Shutdown::Write)?;
        Ok(true)
    }

    fn read(&mut self) -> io::Result<()> {
        let mut bytes = [0; REQUEST_MAX + 1];
        let room = bytes.len().saturating_sub(self.input.len());
        // The kernel closes what there is no space for.
        let mut space = [MaybeUninit::uninit(); rustix::cmsg_space!(ScmRights(DESCRIPTORS_MAX))];
        let mut ancillary = RecvAncillaryBuffer::new(&mut space);
        let mut parts = [IoSliceMut::new(&mut bytes[..room])];
        let flags = RecvFlags::CMSG_CLOEXEC;
        let len = match recvmsg(&self.stream, &mut parts, &mut ancillary, flags) {
            Ok(received) => received.bytes,
            Err(error) if is_later(&error.into()) => return Ok(()),
            Err(error) => return Err(error.into()),
        };
        for message in ancillary.drain() {
            if let RecvAncillaryMessage::ScmRights(files) = message {
                self.files = files.collect();
            }
        }
        if len == 0 {
            self.is_over = true;
        }
        self.input.extend_from_slice(&bytes[..len]);
        Ok(())
    }

    fn flush(&mut self) -> io::Result<()> {
        while !self.output.is_empty() {
            match self.stream.write(&self.output) {
                Ok(len) => drop(self.output.drain(..len)),
                Err(error) if is_later(&error) => break,
                Err(error) => return Err(error),
            }
        }
        Ok(())
    }
}

fn is_later(error: &io::Error) -> bool {
    matches!(error.kind(), io::ErrorKind::WouldBlock | io::ErrorKind::Interrupted)
}
