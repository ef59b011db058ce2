//! The guest as a whole: connects, negotiates, sets rings up, stops and starts them.

use std::io::ErrorKind;
use std::os::unix::net::{UnixListener, UnixStream};
use std::path::{Path, PathBuf};
use std::thread::sleep;
use std::time::{Duration, Instant};

use rustix::event::{PollFd, PollFlags, Timespec, poll};
use virtio_net::Negotiated;

use crate::buffers::Buffers;
use crate::link::Link;
use crate::memory::{SharedMemory, memory_file};
use crate::signal::eventfd;
use crate::{Error, GuestOptions, Pair, RegionOptions, Ring};

/// How long a guest that is refused at once tries again. A back end has one front end at a time, and may not have noticed
/// yet that the previous one is gone. (A program that another thread is starting holds the socket open for a moment.)
const AGAIN_FOR: Duration = Duration::from_millis(500);
const AGAIN_AFTER: Duration = Duration::from_millis(10);

/// A guest in software.
#[derive(Debug)]
pub struct Guest {
    options: GuestOptions,
    pub(crate) memory: SharedMemory,
    features: Negotiated,
    /// `None` without a back end.
    link: Option<Link>,
    pairs: Vec<Pair>,
    pub(crate) control: Option<Ring>,
}

impl Guest {
    /// Connects to the back end that listens at `path`, and starts all rings with receive buffers in
    /// them. A guest that is refused at once tries again.
    ///
    /// # Errors
    /// When there is no back end in time, it refuses, or the options do not fit together.
    pub fn connect(path: impl AsRef<Path>, options: GuestOptions) -> Result<Self, Error> {
        let until = Instant::now() + AGAIN_FOR;
        loop {
            let stream = connect(path.as_ref(), options.patience)?;
            match Self::over(stream, options.clone()) {
                Err(error) if error.is_closed_at_once() && Instant::now() < until => {
                    sleep(AGAIN_AFTER)
                }
                result => return result,
            }
        }
    }

    /// Listens at `path` for a back end that is the client; see [`Listener`].
    ///
    /// # Errors
    /// As [`connect`](Self::connect).
    pub fn listen(path: impl AsRef<Path>, options: GuestOptions) -> Result<Self, Error> {
        Listener::bind(path)?.accept(options)
    }

    /// Starts over a socket that is connected already.
    ///
    /// # Errors
    /// As [`connect`](Self::connect).
    pub fn over(stream: UnixStream, options: GuestOptions) -> Result<Self, Error> {
        options.check()?;
        let link = Link::negotiate(stream, &options)?;
        let features = link.features();
        options.check_rings(features)?;
        let len = bytes_wanted(&options, features).next_multiple_of(1 << 21);
        let regions = match &options.regions[..] {
            [] => &[RegionOptions { address: 0, len }][..],
            regions => regions,
        };
        let file = options.file.clone().map_or_else(memory_file, Ok)?;
        let mut memory = SharedMemory::in_file(regions, file, options.private)?;
        let mut ring = |index| Ring::new(index, &mut memory, &options, features);
        let rings = (0..options.queue_pairs).map(|n| Ok((ring(2 * n)?, ring(2 * n + 1)?)));
        let rings = rings.collect::<Result<Vec<_>, Error>>()?;
        let control = options.control.then(|| ring(2 * options.queue_pairs)).transpose()?;
        let pieces = options.receive_pieces;
        let pairs = rings.into_iter().map(|(receive, transmit)| {
            Pair::new(memory.guest(), features, receive, transmit, pieces)
        });
        let pairs = pairs.collect();
        let mut guest = Self { options, memory, features, link: Some(link), pairs, control };
        guest.start()?;
        Ok(guest)
    }

    /// The features that guest and back end agreed on.
    #[must_use]
    pub const fn features(&self) -> Negotiated {
        self.features
    }

    /// The options of the guest.
    #[must_use]
    pub const fn options(&self) -> &GuestOptions {
        &self.options
    }

    /// Guest memory.
    #[must_use]
    pub const fn memory(&self) -> &SharedMemory {
        &self.memory
    }

    /// The connection.
    ///
    /// # Errors
    /// When there is none.
    pub fn link(&mut self) -> Result<&mut Link, Error> {
        self.link.as_mut().ok_or_else(|| Error::Options("no back end is connected".into()))
    }

    /// The connection, guest memory and all queue pairs, for a guest whose memory changes while frames flow.
    ///
    /// # Errors
    /// When there is no connection.
    pub fn parts(&mut self) -> Result<(&mut Link, &SharedMemory, &mut [Pair]), Error> {
        let Self { link: Some(link), memory, pairs, .. } = self else {
            return Err(Error::Options("no back end is connected".into()));
        };
        Ok((link, memory, pairs))
    }

    /// Queue pair `n`.
    ///
    /// # Panics
    /// When there is no such pair or ring.
    pub fn pair(&mut self, n: usize) -> &mut Pair {
        &mut self.pairs[n]
    }

    /// All queue pairs. Each can be given to a thread.
    pub fn pairs(&mut self) -> &mut [Pair] {
        &mut self.pairs
    }

    /// Ring `index` as vhost-user counts: receive and transmit rings in turn.
    ///
    /// # Panics
    /// When there is no such pair or ring.
    pub fn ring(&mut self, index: u16) -> &mut Ring {
        ring(&mut self.pairs, &mut self.control, index)
    }

    /// Stops ring `index`. Returns where it stopped ([`Ring::base`]).
    ///
    /// # Errors
    /// When the back end refuses.
    pub fn stop_ring(&mut self, index: u16) -> Result<u16, Error> {
        let told = self.link()?.stop(index)?;
        #[expect(clippy::cast_possible_truncation, reason = "two halves")]
        let (base, used) = (told as u16, (told >> 16) as u16);
        if used != 0 && !(self.features.packed() && used == base) {
            return Err(Error::Options(format!("ring {index} stopped at {told:#x}")));
        }
        self.ring(index).stopped_at(base);
        Ok(base)
    }

    /// Starts ring `index` where it stopped.
    ///
    /// # Errors
    /// When the back end refuses.
    pub fn start_ring(&mut self, index: u16) -> Result<(), Error> {
        let Self { link: Some(link), pairs, control, memory, .. } = self else {
            return self.link().map(drop);
        };
        let ring = ring(pairs, control, index);
        link.start(ring, memory)?;
        // What was offered while nobody looked was not heard either.
        ring.kick_anyway()
    }

    /// Starts ring `index` at any position ([`Ring::base`]).
    ///
    /// # Errors
    /// When the back end refuses.
    pub fn start_ring_at(&mut self, index: u16, base: u16) -> Result<(), Error> {
        self.ring(index).stopped_at(base);
        self.start_ring(index)
    }

    /// Gives the back end a call descriptor for ring `index` that nobody reads, as QEMU does for a moment when it starts a
    /// ring; or the ring's own one again.
    ///
    /// # Errors
    /// When the back end refuses.
    pub fn set_deaf(&mut self, index: u16, deaf: bool) -> Result<(), Error> {
        let Self { link: Some(link), pairs, .. } = self else { return self.link().map(drop) };
        let [receive, transmit] = pairs[usize::from(index / 2)].rings();
        let ring = if index.is_multiple_of(2) { receive } else { transmit };
        if deaf {
            link.set_call(index, &eventfd()?)
        } else {
            link.set_call(index, ring.call.eventfd())
        }
    }

    /// Stops all rings and starts them again.
    ///
    /// # Errors
    /// When the back end refuses.
    pub fn restart(&mut self) -> Result<(), Error> {
        for index in 0..self.options.rings() {
            self.stop_ring(index)?;
        }
        for index in 0..self.options.rings() {
            self.start_ring(index)?;
        }
        Ok(())
    }

    /// Stops all rings and starts them empty, as a guest that reboots.
    ///
    /// # Errors
    /// When the back end refuses.
    pub fn reboot(&mut self) -> Result<(), Error> {
        for index in 0..self.options.rings() {
            self.stop_ring(index)?;
        }
        if let Some(control) = &mut self.control {
            control.reset(&self.memory);
        }
        for pair in &mut self.pairs {
            for ring in pair.rings() {
                ring.reset(&self.memory);
            }
            pair.all_idle();
        }
        self.start()
    }

    /// Resets ring `index` alone and starts it empty, as a driver does that has `VIRTIO_F_RING_RESET` (virtio 1.2,
    /// 2.6.1). Frames in it are lost.
    ///
    /// # Errors
    /// When the back end refuses.
    pub fn reset_ring(&mut self, index: u16) -> Result<(), Error> {
        self.stop_ring(index)?;
        self.pairs[usize::from(index / 2)].reset_ring(index, &self.memory);
        self.start_ring(index)?;
        self.pair(usize::from(index / 2)).refill()
    }

    /// Closes the connection without a message. The rings stay as they are.
    pub fn disconnect(&mut self) {
        self.link = None;
    }

    /// Connects again, to this back end or another, and continues after the last used chain. Tries again if a back end that
    /// has not noticed the end of its last connection closes this one.
    ///
    /// # Errors
    /// As [`connect`](Self::connect), and when the back end does not offer the same features.
    pub fn reconnect(&mut self, path: impl AsRef<Path>) -> Result<(), Error> {
        let until = Instant::now() + self.options.patience;
        loop {
            let stream = connect(path.as_ref(), self.options.patience)?;
            match self.reconnect_over(stream) {
                Err(error) if error.is_closed_at_once() && Instant::now() < until => {
                    sleep(AGAIN_AFTER);
                }
                result => return result,
            }
        }
    }

    /// As [`reconnect`](Self::reconnect), over a socket that is connected already.
    ///
    /// # Errors
    /// As [`reconnect`](Self::reconnect).
    pub fn reconnect_over(&mut self, stream: UnixStream) -> Result<(), Error> {
        self.link = None;
        let link = Link::negotiate(stream, &self.options)?;
        if link.features() != self.features {
            let (found, expected) = (link.features().0, self.features.0);
            let text = format!("features {found:#x} after reconnecting; expected {expected:#x}");
            return Err(Error::Options(text));
        }
        self.link = Some(link);
        for ring in self.pairs.iter_mut().flat_map(Pair::rings).chain(&mut self.control) {
            ring.abandoned();
            if self.options.forgetful {
                ring.forget_position();
            }
        }
        self.start()
    }

    /// Checks every byte between buffers.
    ///
    /// # Errors
    /// With the first byte that changed.
    pub fn check_canaries(&self) -> Result<(), Error> {
        self.pairs.iter().try_for_each(Pair::check_canaries)
    }

    /// Gives the back end the table of the guest's memory again.
    ///
    /// # Errors
    /// When the back end refuses.
    pub fn give_memory(&mut self) -> Result<(), Error> {
        let Self { link: Some(link), memory, .. } = self else { return self.link().map(drop) };
        link.set_memory(memory)
    }

    fn start(&mut self) -> Result<(), Error> {
        let Self { link: Some(link), pairs, control, memory, .. } = self else { return Ok(()) };
        link.set_memory(memory)?;
        for ring in pairs.iter_mut().flat_map(Pair::rings).chain(control) {
            link.start(ring, memory)?;
            ring.kick_anyway()?;
        }
        self.pairs.iter_mut().try_for_each(Pair::refill)
    }
}

/// Ring `index` as vhost-user counts.
fn ring<'g>(pairs: &'g mut [Pair], control: &'g mut Option<Ring>, index: u16) -> &'g mut Ring {
    if let Some(ring) = control.as_mut().filter(|ring| ring.index() == index) {
        return ring;
    }
    let [receive, transmit] = pairs[usize::from(index / 2)].rings();
    if index.is_multiple_of(2) { receive } else { transmit }
}

/// A socket to which a back end connects as the client.
#[derive(Debug)]
pub struct Listener {
    listener: UnixListener,
    path: PathBuf,
}

impl Listener {
    /// Listens at `path`. The socket file is removed on drop.
    ///
    /// # Errors
    /// When the system refuses.
    pub fn bind(path: impl AsRef<Path>) -> Result<Self, Error> {
        let path = path.as_ref().to_owned();
        let listener = UnixListener::bind(&path).map_err(Error::system("listening"))?;
        Ok(Self { listener, path })
    }

    /// Waits for a back end, and starts a guest with it.
    ///
    /// # Errors
    /// As [`Guest::connect`].
    pub fn accept(&self, options: GuestOptions) -> Result<Guest, Error> {
        let stream = self.stream(options.patience)?;
        Guest::over(stream, options)
    }

    /// Waits for a back end to connect.
    ///
    /// # Errors
    /// When none comes in time, or the system refuses.
    pub fn stream(&self, patience: Duration) -> Result<UnixStream, Error> {
        let seconds = patience.as_secs();
        let timeout = Timespec {
            tv_sec: seconds.try_into().unwrap_or(i64::MAX),
            tv_nsec: patience.subsec_nanos().into(),
        };
        let mut fds = [PollFd::new(&self.listener, PollFlags::IN)];
        let ready = poll(&mut fds, Some(&timeout)).map_err(Error::system("waiting"))?;
        if ready == 0 {
            return Err(Error::NobodyCame { path: self.path.clone(), seconds });
        }
        let (stream, _) = self.listener.accept().map_err(Error::system("accepting"))?;
        Ok(stream)
    }
}

impl Drop for Listener {
    fn drop(&mut self) {
        // Nothing to be done about a file that somebody else removed.
        let _ = std::fs::remove_file(&self.path);
    }
}

/// Connects, waiting for a back end that has not opened its socket yet.
fn connect(path: &Path, patience: Duration) -> Result<UnixStream, Error> {
    let until = Instant::now() + patience;
    loop {
        match UnixStream::connect(path) {
            Ok(stream) => return Ok(stream),
            Err(error)
                if matches!(error.kind(), ErrorKind::NotFound | ErrorKind::ConnectionRefused)
                    && Instant::now() < until =>
            {
                sleep(Duration::from_millis(10));
            }
            Err(source) => return Err(Error::Connect { path: path.to_owned(), source }),
        }
    }
}

fn bytes_wanted(options: &GuestOptions, features: Negotiated) -> u64 {
    let buffers = Buffers::bytes(options.queue_size.into(), options.buffer_len, options.canary_len);
    // A page each for rounding up: ring, tables, buffers.
    u64::from(options.rings()) * (Ring::bytes(options, features) + buffers + 3 * 4096)
}
