//! File descriptors that a front end handed over.
//!
//! A front end may keep a duplicate of each, and can change the flags that both share. So a call on one can block
//! although we made it non-blocking. `close` can block as well: a TCP socket with `SO_LINGER` waits for its peer, a
//! FUSE file for its file system, a pipe for a writer that holds its lock. So workers and control threads never close
//! one. Each connection has a thread for that, and nothing waits for that thread. [`Alarm`] ends the calls that a signal
//! can end.
//!
//! No signal ends the wait for a pipe or a FUSE file, and this process cannot end with such a thread. So the thread
//! itself closes only eventfds and files that were found harmless ([`Foreign::mark_harmless`]). It gives all others to a
//! helper process, which it starts for the first one ([`foreign_files`]).

use std::io;
use std::os::fd::{AsFd, AsRawFd, BorrowedFd, OwnedFd, RawFd};
use std::os::unix::net::UnixStream;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU8, AtomicUsize, Ordering};
use std::sync::mpsc::{Receiver, Sender, channel};
use std::thread::Builder;
use std::time::{Duration, Instant};

use confine::Role;
use foreign_files::Closer;
use rustix::event::{EventfdFlags, eventfd};
use rustix::io::Errno;
use rustix::net::Shutdown;
use rustix::time::{ClockId, clock_gettime};

use crate::alarm::Alarm;
use crate::sys;

/// The descriptors of one connection.
#[derive(Debug)]
pub struct Custody {
    work: Sender<Work>,
    held: Arc<Held>,
    hung: OwnedFd,
}

/// Numbers of the descriptors that were dropped.
#[derive(Debug, Default)]
struct Held {
    /// Neither closed by this process nor with the helper.
    here: AtomicUsize,
    /// With the helper, which has not closed them yet.
    helper: AtomicUsize,
}

/// Longest time of a normal signal. The write to an eventfd notifies each epoll instance that waits for it. So a front
/// end that registers the eventfd in very many of them makes every signal as slow as it likes.
const SLOW: Duration = Duration::from_micros(500);

/// Slow signals in a row that are allowed; the next one ends the connection.
const SLOW_MAX: u8 = 3;

/// What the thread of a [`Custody`] does.
#[derive(Debug)]
enum Work {
    Close(Given),
    Signal(Arc<Foreign>),
    /// Nothing new; the helper may have closed some.
    Look,
}

/// A descriptor to be closed.
#[derive(Debug)]
struct Given {
    fd: OwnedFd,
    is_harmless: bool,
}

/// A descriptor from a front end. It is closed by the thread of its [`Custody`].
#[derive(Debug)]
pub struct Foreign {
    /// `None` only in `drop`.
    fd: Option<OwnedFd>,
    /// The number of slow signals in a row.
    slow: AtomicU8,
    is_harmless: AtomicBool,
    custody: Arc<Custody>,
}

/// A write to an eventfd blocked and was interrupted, because the front end cleared `O_NONBLOCK` and filled the
/// counter. Or more than [`SLOW_MAX`] writes in a row were slow.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Hung;

impl Custody {
    /// Starts the thread for a new connection. `threads` counts the running threads of this kind. A thread ends after
    /// its connection, when all descriptors are closed.
    ///
    /// # Errors
    /// When the system has no thread or no eventfd left.
    pub fn new(threads: &Arc<AtomicUsize>) -> io::Result<Arc<Self>> {
        let (work, todo) = channel();
        let held = Arc::<Held>::default();
        let hung = eventfd(0, EventfdFlags::NONBLOCK | EventfdFlags::CLOEXEC)?;
        let (inside, alive) = (Arc::clone(&held), Alive::new(threads));
        Builder::new().name("closer".into()).spawn(move || {
            let _alive = alive;
            confine::narrow(Role::Closer);
            close_all(&todo, &inside);
        })?;
        Ok(Arc::new(Self { work, held, hung }))
    }

    /// Takes ownership of a descriptor.
    #[must_use]
    pub fn take(self: &Arc<Self>, fd: OwnedFd) -> Foreign {
        let (slow, is_harmless) = Default::default();
        Foreign { fd: Some(fd), slow, is_harmless, custody: Arc::clone(self) }
    }

    /// Closes a connection to a front end. Messages that were not read may hold descriptors, which are closed with it.
    pub fn close_connection(self: &Arc<Self>, front: UnixStream) {
        // Nothing can come after that. The front end notices the end even if the socket itself is closed later.
        let _ = rustix::net::shutdown(&front, Shutdown::Both);
        let connection = self.take(front.into());
        if rustix::io::ioctl_fionread(&connection) == Ok(0) {
            connection.mark_harmless();
        }
    }

    /// Closes this process's descriptor of a connection with which another process goes on.
    pub fn leave_connection(self: &Arc<Self>, front: UnixStream) {
        // The other process has it, so this is not the last one.
        self.take(front.into()).mark_harmless();
    }

    /// Number of descriptors that were dropped and are not closed yet.
    #[must_use]
    pub fn unclosed(&self) -> usize {
        if self.held.helper.load(Ordering::Relaxed) > 0 {
            let _ = self.work.send(Work::Look);
        }
        self.here() + self.held.helper.load(Ordering::Relaxed)
    }

    /// Number of those that keep this process from ending: they are not with the helper either.
    #[must_use]
    pub fn here(&self) -> usize {
        self.held.here.load(Ordering::Relaxed)
    }

    /// Readable after a worker blocked in a write to one of these descriptors ([`Hung`]).
    #[must_use]
    pub fn hung(&self) -> BorrowedFd<'_> {
        self.hung.as_fd()
    }
}

impl Foreign {
    /// Adds 1 to an eventfd's counter. Returns whether the descriptor took it. If the counter is full, a signal is pending
    /// already. Any other failure is the front end's fault.
    ///
    /// With `alarm`, for a worker that serves several guests: a write that blocks ends after [`PERIOD`], and writes
    /// that take too much CPU time several times in a row count as blocked.
    ///
    /// [`PERIOD`]: crate::alarm::PERIOD
    ///
    /// # Errors
    /// When the write blocked. The control plane then ends the connection ([`Custody::hung`]).
    #[inline]
    pub(crate) fn signal(&self, alarm: Option<&Alarm>) -> Result<bool, Hung> {
        let Some(fd) = &self.fd else { return Ok(false) };
        let Some(alarm) = alarm else { return self.write(fd) };
        alarm.arm();
        // The front end can clear the flag at any time. Checking it costs much less than waiting for the alarm. The
        // alarm covers a change after the check.
        let _ = sys::set_nonblocking(fd);
        if self.slow.load(Ordering::Relaxed) > 0 {
            return self.write_under_suspicion(fd);
        }
        let begun = Instant::now();
        let written = self.write(fd);
        if begun.elapsed() > SLOW {
            // The thread may only have waited for its CPU, so the next write is measured in CPU time.
            self.slow.store(1, Ordering::Relaxed);
        }
        written
    }

    #[inline]
    fn write(&self, fd: &OwnedFd) -> Result<bool, Hung> {
        match rustix::io::write(fd, &1_u64.to_ne_bytes()) {
            // Only a write that waits for room in the counter is interrupted.
            Err(Errno::INTR) => Err(self.report()),
            written => Ok(written.is_ok()),
        }
    }

    /// Writes after a slow write, and measures the CPU time.
    #[cold]
    fn write_under_suspicion(&self, fd: &OwnedFd) -> Result<bool, Hung> {
        let begun = cpu_time();
        let written = self.write(fd)?;
        if cpu_time().saturating_sub(begun) <= SLOW {
            self.slow.store(0, Ordering::Relaxed);
            return Ok(written);
        }
        if self.slow.fetch_add(1, Ordering::Relaxed) >= SLOW_MAX {
            return Err(self.report());
        }
        Ok(written)
    }

    #[cold]
    fn report(&self) -> Hung {
        // Our own descriptor, non-blocking. If its counter is full, a report is pending already.
        let _ = rustix::io::write(&self.custody.hung, &1_u64.to_ne_bytes());
        Hung
    }

    /// Duplicates the descriptor.
    ///
    /// # Errors
    /// When this process has no descriptor left.
    pub fn try_clone(&self) -> io::Result<Self> {
        Ok(self.custody.take(self.as_fd().try_clone_to_owned()?))
    }

    /// Declares that its `close` does not block: the file is of a kind and a file system that answer at once.
    pub fn mark_harmless(&self) {
        self.is_harmless.store(true, Ordering::Relaxed);
    }

    /// Adds 1 to an eventfd's counter on the custody's thread, so that the caller does not block.
    pub fn signal_elsewhere(self: &Arc<Self>) {
        let _ = self.custody.work.send(Work::Signal(Arc::clone(self)));
    }
}

impl AsFd for Foreign {
    fn as_fd(&self) -> BorrowedFd<'_> {
        // Only `drop` takes it out.
        self.fd.as_ref().expect("a descriptor").as_fd()
    }
}

impl AsRawFd for Foreign {
    fn as_raw_fd(&self) -> RawFd {
        self.as_fd().as_raw_fd()
    }
}

impl Drop for Foreign {
    fn drop(&mut self) {
        let Some(fd) = self.fd.take() else { return };
        let is_harmless = self.is_harmless.load(Ordering::Relaxed);
        self.custody.held.here.fetch_add(1, Ordering::Relaxed);
        // The thread runs until all senders are dropped.
        let _ = self.custody.work.send(Work::Close(Given { fd, is_harmless }));
    }
}

/// The CPU time of the calling thread.
fn cpu_time() -> Duration {
    let now = clock_gettime(ClockId::ThreadCPUTime);
    now.try_into().unwrap_or_default()
}

/// Counts a thread while it lives.
struct Alive(Arc<AtomicUsize>);

impl Alive {
    fn new(threads: &Arc<AtomicUsize>) -> Self {
        threads.fetch_add(1, Ordering::Relaxed);
        Self(Arc::clone(threads))
    }
}

impl Drop for Alive {
    fn drop(&mut self) {
        self.0.fetch_sub(1, Ordering::Relaxed);
    }
}

fn close_all(todo: &Receiver<Work>, held: &Held) {
    // Without an alarm, a call that blocks delays this thread only.
    let alarm = Alarm::new().ok();
    let mut closer = None;
    while let Ok(work) = todo.recv() {
        if let Some(alarm) = &alarm {
            alarm.arm();
        }
        let mut doubtful = Vec::new();
        for work in std::iter::once(work).chain(todo.try_iter().take(Closer::FILES_MAX - 1)) {
            match work {
                Work::Close(Given { fd, is_harmless }) if is_harmless || is_eventfd(&fd) => {
                    drop(fd);
                    held.here.fetch_sub(1, Ordering::Relaxed);
                }
                Work::Close(Given { fd, .. }) => doubtful.push(fd),
                Work::Signal(error) => {
                    let _ = error.signal(alarm.as_ref());
                }
                Work::Look => {}
            }
        }
        if let Some(alarm) = &alarm {
            alarm.disarm();
        }
        if !doubtful.is_empty() {
            give(&mut closer, doubtful, held);
        }
        if let Some(found) = &mut closer {
            match found.closed() {
                Ok(count) => {
                    held.helper.fetch_sub(count, Ordering::Relaxed);
                }
                Err(_) => end(&mut closer, held),
            }
        }
    }
    end(&mut closer, held);
}

/// Gives files to the helper. Without one they are closed here.
fn give(closer: &mut Option<Closer>, files: Vec<OwnedFd>, held: &Held) {
    let count = files.len();
    if closer.is_none() {
        *closer = Closer::start().ok();
    }
    match closer {
        Some(found) => {
            held.helper.fetch_add(count, Ordering::Relaxed);
            if found.close(files).is_err() {
                end(closer, held);
            }
        }
        None => drop(files),
    }
    held.here.fetch_sub(count, Ordering::Relaxed);
}

/// Waits for the helper's end, after which it has no files.
fn end(closer: &mut Option<Closer>, held: &Held) {
    if let Some(closer) = closer.take() {
        let _ = closer.finish();
        held.helper.store(0, Ordering::Relaxed);
    }
}

/// Whether `fd` is an eventfd: the kernel itself makes the text of such a link.
fn is_eventfd(fd: &OwnedFd) -> bool {
    let link = rustix::fs::readlink(format!("/proc/self/fd/{}", fd.as_raw_fd()), Vec::new());
    link.is_ok_and(|text| text.as_bytes() == b"anon_inode:[eventfd]")
}

#[cfg(test)]
mod tests {
    use super::*;

    fn wait_for(what: &str, done: impl Fn() -> bool) {
        let until = Instant::now() + Duration::from_secs(5);
        while !done() {
            assert!(Instant::now() < until, "{what}");
            std::thread::sleep(Duration::from_millis(1));
        }
    }

    #[test]
    fn what_is_given_up_is_closed_and_the_thread_ends_with_the_last() {
        let threads = Arc::default();
        let custody = Custody::new(&threads).unwrap();
        let (reader, writer) = std::io::pipe().unwrap();
        let foreign = custody.take(writer.into());
        drop(custody);
        assert_eq!(threads.load(Ordering::Relaxed), 1);
        drop(foreign);
        // The end of the pipe: its only writer is closed.
        assert_eq!(std::io::read_to_string(reader).unwrap(), "");
        wait_for("the thread is still there", || threads.load(Ordering::Relaxed) == 0);
    }

    /// The eventfd has a full counter and no `O_NONBLOCK`.
    #[test]
    fn a_signal_that_blocks_ends_and_is_reported() {
        use rustix::event::{PollFd, PollFlags, poll};
        let custody = Custody::new(&Arc::default()).unwrap();
        let full = eventfd(0, EventfdFlags::CLOEXEC).unwrap();
        rustix::io::write(&full, &(u64::MAX - 1).to_ne_bytes()).unwrap();
        let call = Arc::new(custody.take(full));
        // As in a worker with one guest: it does not check the flag, and another thread interrupts it.
        let alarm = Alarm::new().unwrap();
        alarm.arm();
        assert_eq!(call.signal(None), Err(Hung));
        let mut polled = [PollFd::from_borrowed_fd(custody.hung(), PollFlags::IN)];
        assert_eq!(poll(&mut polled, None), Ok(1));
        // As in a worker with several guests: it sets the flag again, and a full counter means that a signal is
        // pending.
        assert_eq!(call.signal(Some(&alarm)), Ok(false));
    }

    /// 40,000 epoll entries wait for the eventfd: 2,000 descriptors in each of 20 epoll instances.
    #[test]
    fn a_signal_that_is_slow_again_and_again_counts_as_blocked() {
        use rustix::event::epoll;
        let custody = Custody::new(&Arc::default()).unwrap();
        let fd = eventfd(0, EventfdFlags::CLOEXEC).unwrap();
        let mut limit = rustix::process::getrlimit(rustix::process::Resource::Nofile);
        limit.current = limit.maximum;
        rustix::process::setrlimit(rustix::process::Resource::Nofile, limit).unwrap();
        let copies: Vec<_> = (0..2000).map(|_| fd.try_clone().unwrap()).collect();
        let waits = || {
            let set = epoll::create(epoll::CreateFlags::CLOEXEC).unwrap();
            for copy in &copies {
                let data = epoll::EventData::new_u64(0);
                epoll::add(&set, copy, data, epoll::EventFlags::IN).unwrap();
            }
            set
        };
        let (call, alarm) = (custody.take(fd), Alarm::new().unwrap());
        for _ in 0..100 {
            assert_eq!(call.signal(Some(&alarm)), Ok(true), "nobody waits for it");
        }
        let _sets: Vec<_> = (0..20).map(|_| waits()).collect();
        let took = (0..10).take_while(|_| call.signal(Some(&alarm)).is_ok()).count();
        assert_eq!(took, usize::from(SLOW_MAX), "signals until it is given up");
    }
}
