//! The interface of a macvtap: watches whether it carries frames, and removes it at the end if we made it.
//!
//! A write to a macvtap succeeds even if the frame is lost (`tap_get_user`). When the interface is down, the kernel
//! counts the loss; when it is gone, nobody does. So a thread sleeps until the interface's state changes, and each
//! burst checks the state that the thread keeps.

use std::io;
use std::io::Write as _;
use std::os::unix::net::UnixStream;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::thread::{Builder, JoinHandle};

use confine::Role;
use host_links::macvtap::remove;
use host_links::watch::{LinkEvent, LinkWatch};
use rustix::event::{PollFd, PollFlags, poll};

/// A watched interface.
#[derive(Debug)]
pub struct WatchedLink {
    carries: Arc<AtomicBool>,
    /// Written to when the thread is to end.
    stop: UnixStream,
    thread: Option<JoinHandle<()>>,
    /// We made it, or the daemon before did.
    made: Option<Arc<Made>>,
}

impl WatchedLink {
    /// Watches interface `index` with this `name`. `made` is given if we made it.
    pub fn watch(name: &str, index: u32, made: Option<Made>) -> io::Result<Self> {
        let events = LinkWatch::new(index)?;
        let (stop, stopped) = UnixStream::pair()?;
        let carries = Arc::new(AtomicBool::new(true));
        let watch = Watch { events, stopped, name: name.into(), carries: Arc::clone(&carries) };
        let made = made.map(Arc::new);
        let removed = made.clone();
        let thread = Builder::new().name("link".into()).spawn(move || {
            confine::enter(Role::Link { is_made: removed.is_some() });
            watch.run();
            // At the end, so that nobody reports its removal. Only this thread may remove it.
            watch.wait_for_the_end();
            removed.iter().for_each(|made| made.remove());
        })?;
        Ok(Self { carries, stop, thread: Some(thread), made })
    }

    /// Whether this process made the interface, or goes on with one that a daemon before it made.
    #[must_use]
    pub const fn is_made(&self) -> bool {
        self.made.is_some()
    }

    /// If we made the interface: whether it stays when this is dropped, because another daemon goes on with it.
    pub fn set_stays(&self, stays: bool) {
        if let Some(made) = &self.made {
            made.stays.store(stays, Ordering::Relaxed);
        }
    }

    /// Whether the interface takes frames: it exists, is up, and has a carrier.
    #[inline]
    pub fn carries(&self) -> bool {
        self.carries.load(Ordering::Relaxed)
    }
}

impl Drop for WatchedLink {
    fn drop(&mut self) {
        // The thread may have ended by itself.
        let _ = self.stop.write_all(&[0]);
        if let Some(thread) = self.thread.take() {
            let _ = thread.join();
        }
    }
}

struct Watch {
    events: LinkWatch,
    stopped: UnixStream,
    name: String,
    carries: Arc<AtomicBool>,
}

impl Watch {
    fn run(&self) {
        loop {
            let mut both = [
                PollFd::new(&self.stopped, PollFlags::IN),
                PollFd::new(&self.events, PollFlags::IN),
            ];
            match poll(&mut both, None) {
                Err(rustix::io::Errno::INTR) => continue,
                Err(_) => return,
                Ok(_) if !both[0].revents().is_empty() => return,
                Ok(_) => {}
            }
            let mut is_gone = false;
            let received = self.events.receive(|event| {
                is_gone = event == LinkEvent::Removed;
                self.report(event);
            });
            // Another interface may get the index of a removed one.
            if is_gone || received.is_err() {
                return;
            }
        }
    }

    /// Waits until the thread is to end.
    fn wait_for_the_end(&self) {
        let mut stopped = [PollFd::new(&self.stopped, PollFlags::IN)];
        while poll(&mut stopped, None) == Err(rustix::io::Errno::INTR) {}
    }

    fn report(&self, event: LinkEvent) {
        let carries = event == LinkEvent::Up;
        // An interface that is removed goes down first, so its removal is reported although the state is the same.
        if self.carries.swap(carries, Ordering::Relaxed) == carries && event != LinkEvent::Removed {
            return;
        }
        let name = &self.name;
        match event {
            LinkEvent::Up => log::info!("macvtap '{name}' carries frames again"),
            LinkEvent::Down => {
                log::warn!(
                    "macvtap '{name}', or what it is on, is down: frames from the guest are lost"
                );
            }
            LinkEvent::Removed => {
                log::warn!(
                    "macvtap '{name}' is gone: frames from the guest are lost; restart ringscoped when it is there again"
                )
            }
        }
    }
}

/// An interface that we made. Dropping this removes it, unless it stays.
#[derive(Debug)]
pub struct Made {
    pub index: u32,
    pub name: String,
    pub stays: AtomicBool,
}

impl Made {
    /// Removes it, unless it stays or was removed.
    fn remove(&self) {
        if self.stays.swap(true, Ordering::Relaxed) {
            return;
        }
        match remove(self.index) {
            // It was removed already.
            Err(error) if error.raw_os_error() == Some(libc::ENODEV) => {}
            Err(error) => log::warn!("macvtap '{}' stays: {error}", self.name),
            Ok(()) => {}
        }
    }
}

impl Drop for Made {
    fn drop(&mut self) {
        self.remove();
    }
}
