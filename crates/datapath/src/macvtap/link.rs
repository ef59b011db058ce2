//! The interface behind a macvtap: whether it carries frames, and its end if it is ours.
//!
//! Writing to a macvtap succeeds whatever becomes of the frame (`tap_get_user`): when the interface is down the
//! kernel counts the loss, when it is gone nobody does. So a thread listens for what happens to it, asleep, and each
//! burst looks at what it heard.

use std::io;
use std::io::Write as _;
use std::os::unix::net::UnixStream;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::thread::{Builder, JoinHandle};

use rustix::event::{PollFd, PollFlags, poll};

use crate::netlink::{Connection, News};

/// An interface that is watched.
#[derive(Debug)]
pub struct Link {
    carries: Arc<AtomicBool>,
    /// Written to when the thread is to end.
    stop: UnixStream,
    thread: Option<JoinHandle<()>>,
    /// Last, so that its end is no news any more.
    _made: Option<Made>,
}

impl Link {
    /// Watches interface `index`, called `name`; `made` if it is ours.
    pub fn watch(name: &str, index: u32, made: Option<Made>) -> io::Result<Self> {
        let connection = Connection::listen()?;
        // From now on nothing is missed; this is how it was until now.
        connection.inquire(index)?;
        let (stop, stopped) = UnixStream::pair()?;
        let carries = Arc::new(AtomicBool::new(true));
        let watch =
            Watch { connection, stopped, index, name: name.into(), carries: Arc::clone(&carries) };
        let thread = Builder::new().name("link".into()).spawn(move || watch.run())?;
        Ok(Self { carries, stop, thread: Some(thread), _made: made })
    }

    /// Whether it takes frames: it is there, up, and has a carrier.
    #[inline]
    pub fn carries(&self) -> bool {
        self.carries.load(Ordering::Relaxed)
    }
}

impl Drop for Link {
    fn drop(&mut self) {
        // It may have ended by itself.
        let _ = self.stop.write_all(&[0]);
        if let Some(thread) = self.thread.take() {
            let _ = thread.join();
        }
    }
}

struct Watch {
    connection: Connection,
    stopped: UnixStream,
    index: u32,
    name: String,
    carries: Arc<AtomicBool>,
}

impl Watch {
    fn run(&self) {
        loop {
            let mut both = [
                PollFd::new(&self.stopped, PollFlags::IN),
                PollFd::new(&self.connection, PollFlags::IN),
            ];
            match poll(&mut both, None) {
                Err(rustix::io::Errno::INTR) => continue,
                Err(_) => return,
                Ok(_) if !both[0].revents().is_empty() => return,
                Ok(_) => {}
            }
            let mut is_gone = false;
            let heard = self.connection.hear(self.index, |news| {
                is_gone = news == News::Gone;
                self.tell(news);
            });
            match heard {
                // Its number may be another interface's one day.
                _ if is_gone => return,
                Ok(()) => {}
                // More happened than there was room for: asked anew.
                Err(error) if error.raw_os_error() == Some(libc::ENOBUFS) => {
                    let _ = self.connection.inquire(self.index);
                }
                Err(_) => return,
            }
        }
    }

    fn tell(&self, news: News) {
        let carries = news == News::Carries(true);
        // One that is removed goes down first.
        if self.carries.swap(carries, Ordering::Relaxed) == carries && news != News::Gone {
            return;
        }
        let name = &self.name;
        match news {
            News::Carries(true) => log::info!("macvtap '{name}' carries frames again"),
            News::Carries(false) => {
                log::warn!(
                    "macvtap '{name}', or what it is on, is down: frames from the guest are lost"
                );
            }
            News::Gone => log::warn!("macvtap '{name}' is gone: frames from the guest are lost"),
        }
    }
}

/// An interface that we made. It goes with us.
#[derive(Debug)]
pub struct Made {
    pub index: u32,
    pub name: String,
}

impl Drop for Made {
    fn drop(&mut self) {
        let removed = Connection::open().and_then(|connection| connection.remove(self.index));
        match removed {
            // Somebody else did it.
            Err(error) if error.raw_os_error() == Some(libc::ENODEV) => {}
            Err(error) => log::warn!("macvtap '{}' stays: {error}", self.name),
            Ok(()) => {}
        }
    }
}
