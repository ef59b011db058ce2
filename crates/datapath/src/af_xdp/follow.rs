//! Follows an interface while it is served: more queues, another MTU, and an interface of the same name in place of one
//! that is gone.
//!
//! A thread sleeps until the kernel reports a change, opens sockets for what is new, and hands them to the queue pairs.
//! A pair takes them over at its next burst; an eventfd wakes its worker up for that.

use std::io::{self, Write as _};
use std::os::unix::net::UnixStream;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex, PoisonError};
use std::thread::{Builder, JoinHandle};
use std::time::Duration;

use confine::Role;
use host_links::link::Link;
use host_links::notices::Notices;
use rustix::event::{EventfdFlags, PollFd, PollFlags, Timespec, eventfd, poll};
use rustix::fd::OwnedFd;

use super::channel::Channel;
use super::device::Device;
use super::error::{AfXdpError, explain};
use super::estate::Estate;
use super::open::{Opened, Settings};
use super::program::Program;
use super::{Options, UmemOwner};

/// Wait after a change, so that the changes that come with it are seen together: a new interface is renamed and set up.
const SETTLE: Duration = Duration::from_millis(50);
/// Time between two attempts to serve an interface that is there but cannot be served.
const RETRY: Duration = Duration::from_secs(5);

/// News for a queue pair.
#[derive(Debug)]
pub enum News {
    /// Its interface has changed.
    Change(Change),
    /// Another daemon has used its sockets, and does not any more.
    Resume,
}

/// What a queue pair takes over.
#[derive(Debug)]
pub struct Change {
    /// The interface as it is now.
    pub device: Device,
    /// The program on it.
    pub program: Arc<Program>,
    /// Sockets for the pair's queues.
    pub channels: Vec<Channel>,
    /// Whether they take the place of the pair's sockets, because the interface is another one.
    pub replaces: bool,
}

/// Where a queue pair finds what it has to take over.
#[derive(Debug)]
pub struct Inbox {
    is_full: AtomicBool,
    news: Mutex<Vec<News>>,
    /// Becomes readable when there is a change.
    wake: OwnedFd,
}

impl Inbox {
    /// An empty one.
    ///
    /// # Errors
    /// Those of `eventfd(2)`.
    pub fn new() -> io::Result<Self> {
        let wake = eventfd(0, EventfdFlags::CLOEXEC | EventfdFlags::NONBLOCK)?;
        Ok(Self { is_full: AtomicBool::new(false), news: Mutex::default(), wake })
    }

    /// What becomes readable with each change.
    pub const fn wake(&self) -> &OwnedFd {
        &self.wake
    }

    /// Whether there is something to take over.
    #[inline]
    pub fn is_full(&self) -> bool {
        self.is_full.load(Ordering::Relaxed)
    }

    /// Takes the news, oldest first.
    pub fn take(&self) -> Vec<News> {
        let mut news = self.news.lock().unwrap_or_else(PoisonError::into_inner);
        self.is_full.store(false, Ordering::Relaxed);
        // It may be empty already: then another change has come, and wakes up once more.
        let _ = rustix::io::read(&self.wake, &mut [0; 8]);
        std::mem::take(&mut news)
    }

    /// Adds to it.
    pub fn put(&self, more: News) {
        let mut news = self.news.lock().unwrap_or_else(PoisonError::into_inner);
        news.push(more);
        self.is_full.store(true, Ordering::Relaxed);
        // The counter is full only after 2^64 changes.
        let _ = rustix::io::write(&self.wake, &1u64.to_ne_bytes());
    }
}

/// The thread that follows an interface. It ends when this is dropped.
#[derive(Debug)]
pub struct Follower {
    /// Written to when the thread is to end.
    stop: UnixStream,
    thread: Option<JoinHandle<()>>,
}

impl Follower {
    /// Follows `device`, on which `program` runs, for the pairs with these inboxes. `estate` is kept up to date.
    ///
    /// # Errors
    /// What the system answers.
    pub fn start(
        device: Device,
        program: Arc<Program>,
        estate: Arc<Estate>,
        options: Options,
        pairs: Vec<Arc<Inbox>>,
    ) -> io::Result<Self> {
        let notices = Notices::new()?;
        let (stop, stopped) = UnixStream::pair()?;
        let following =
            Following { notices, stopped, device, program, estate, options, pairs, is_gone: false };
        let thread = Builder::new().name("link".into()).spawn(move || {
            confine::enter(Role::Interface);
            following.run();
        })?;
        Ok(Self { stop, thread: Some(thread) })
    }
}

impl Drop for Follower {
    fn drop(&mut self) {
        // The thread may have ended by itself.
        let _ = self.stop.write_all(&[0]);
        if let Some(thread) = self.thread.take() {
            let _ = thread.join();
        }
    }
}

struct Following {
    notices: Notices,
    stopped: UnixStream,
    /// The interface as the pairs know it.
    device: Device,
    program: Arc<Program>,
    estate: Arc<Estate>,
    options: Options,
    pairs: Vec<Arc<Inbox>>,
    /// Whether the interface was removed, or moved to another network namespace.
    is_gone: bool,
}

impl Following {
    fn run(mut self) {
        // After a failure: when to try again, and the message, which is logged once.
        let mut failed: Option<String> = None;
        while self.wait(failed.as_ref().map(|_| RETRY)) && self.settle() {
            // It is looked at when it is this daemon's; the notices stay until then.
            if self.estate.stays() {
                continue;
            }
            let index = self.device.index;
            let mut is_gone = false;
            self.notices.receive(|removed| is_gone |= removed == index);
            if is_gone && !self.is_gone {
                self.gone();
            }
            let result = if self.is_gone { self.serve_again() } else { self.serve_changes() };
            let error = result.err().map(|error| error.to_string());
            if let Some(error) = error.as_ref().filter(|_| error != failed) {
                log::error!("{error}; tried again every {} s", RETRY.as_secs());
            }
            failed = error;
        }
        // By this thread, which may do it.
        self.estate.keep(Settings::default());
    }

    /// Waits for a change, or until `limit` has passed. Returns whether to go on.
    fn wait(&self, limit: Option<Duration>) -> bool {
        let limit = limit.and_then(|limit| Timespec::try_from(limit).ok());
        let mut fds = vec![PollFd::new(&self.stopped, PollFlags::IN)];
        fds.extend(
            self.notices.descriptors().map(|fd| PollFd::from_borrowed_fd(fd, PollFlags::IN)),
        );
        match poll(&mut fds, limit.as_ref()) {
            Ok(_) => fds[0].revents().is_empty(),
            Err(error) => error == rustix::io::Errno::INTR,
        }
    }

    /// Waits until changes that come together are over. Returns whether to go on.
    fn settle(&self) -> bool {
        let limit = Timespec::try_from(SETTLE).ok();
        let mut fds = [PollFd::new(&self.stopped, PollFlags::IN)];
        !matches!(poll(&mut fds, limit.as_ref()), Ok(1..))
    }

    fn gone(&mut self) {
        self.is_gone = true;
        // It may have moved to another namespace, with the program on it.
        self.program.detach();
        self.estate.lose();
        let name = &self.device.name;
        if self.options.umem == UmemOwner::Guest {
            log::warn!(
                "{name} is gone; with umem=guest, another interface of this name is served only after a restart of ringscoped"
            );
        } else {
            log::warn!(
                "{name} is gone; it is served again when there is an interface of this name"
            );
        }
    }

    /// The interface is there: finds out what has changed.
    fn serve_changes(&mut self) -> Result<(), AfXdpError> {
        let Some(link) = Link::numbered(self.device.index).ok().flatten() else {
            self.gone();
            return self.serve_again();
        };
        let known = &self.device;
        let found = Device::find(&link.name).filter(|found| found.index == known.index);
        let Some(mut now) = found.filter(|found| found != known) else { return Ok(()) };
        let name = &now.name;
        if now.name != known.name {
            log::info!("{} is called {name} now, and is served on", known.name);
            self.estate.rename(name);
        }
        if now.mtu != known.mtu {
            log::info!("{name}: the MTU is {} now", now.mtu);
            if now.mtu > known.mtu && !now.is_virtual {
                log::warn!(
                    "{name}: frames longer than the MTU at the start may be lost (rx_af_xdp_no_chunk) until ringscoped is \
                     restarted"
                );
            }
        }
        let mut channels: Vec<_> = self.pairs.iter().map(|_| Vec::new()).collect();
        for queue in known.queues..now.queues {
            let channel = Channel::open(&now, queue, &self.options, None)
                .map_err(|error| explain(&now, &self.options, "opening a socket", error))?;
            channels[queue as usize % self.pairs.len()].push(channel);
        }
        let has_more = now.queues > known.queues;
        if has_more && now.is_virtual {
            self.program
                .renew()
                .map_err(|error| explain(&now, &self.options, "renewing the XDP program", error))?;
        }
        // Sockets of queues that are gone stay, and are used when the queues come back.
        now.queues = now.queues.max(known.queues);
        say_unshared(name, self.estate.add(&channels));
        self.hand_over(channels, &now, false);
        if has_more {
            log::info!("{name}: {} receive queues now, all of them served", now.queues);
        }
        self.device = now;
        Ok(())
    }

    /// The interface is gone: serves another one of its name, if there is one.
    fn serve_again(&mut self) -> Result<(), AfXdpError> {
        if self.options.umem == UmemOwner::Guest {
            return Ok(());
        }
        let Some(device) = Device::find(&self.device.name) else { return Ok(()) };
        // First its settings are put back: another interface has others.
        self.estate.keep(Settings::default());
        let Opened { device, program, settings, channels } =
            Opened::new(device, self.pairs.len(), &self.options)?;
        self.estate.keep(settings);
        let shared = self.estate.serve((&device.name, device.index), &program, &channels);
        (self.program, self.is_gone) = (program, false);
        say_unshared(&device.name, shared);
        self.hand_over(channels, &device, true);
        log::info!("{} is there again, and is served", device.name);
        self.device = device;
        Ok(())
    }

    /// Hands each pair its `channels`.
    fn hand_over(&self, channels: Vec<Vec<Channel>>, device: &Device, replaces: bool) {
        for (pair, channels) in self.pairs.iter().zip(channels) {
            let (device, program) = (device.clone(), Arc::clone(&self.program));
            pair.put(News::Change(Change { device, program, channels, replaces }));
        }
    }
}

/// Frames flow all the same.
fn say_unshared(name: &str, shared: io::Result<()>) {
    if let Err(error) = shared {
        log::warn!("{name}: another daemon could not take it over: {error}");
    }
}
