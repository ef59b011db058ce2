//! The running daemon's side of a take-over.

use std::fs;
use std::io;
use std::os::fd::{AsFd as _, OwnedFd};
use std::os::unix::fs::{FileTypeExt as _, MetadataExt as _, PermissionsExt as _};
use std::os::unix::net::{UnixListener, UnixStream};
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

use burst_trace::Recorder;
use datapath::af_xdp::UmemOwner;
use datapath::af_xdp::estate::Estate;
use datapath::af_xdp::shared::SharedInterface;
use datapath::macvtap::WatchedLink;
use datapath::tap::SharedQueue;
use host_files::socket::Peer;
use log_limit::LogLimit;
use rustix::event::{PollFd, PollFlags, Timespec, poll};
use rustix::process::geteuid;
use rustix::time::{ClockId, clock_gettime};
use vhost_control::handover::{Asked, Handover};

use super::PATIENCE;
use super::channel::{Channel, ChannelError};
use super::words::{Front, Guest, GuestEstate, Interface, Queue, RingStand, ToNew, ToRunning};
use crate::plan::GuestPlan;
use crate::spec::DatapathSpec;
use crate::stop::Stop;

/// Longest wait for the first message.
const HELLO_TIME: Duration = Duration::from_secs(1);
/// Delay after a take-over that was refused or failed, before the next one is looked at.
const PAUSE: Duration = Duration::from_millis(100);

/// The socket where other daemons ask. Its file is removed when this is dropped, unless another daemon has it.
#[derive(Debug)]
pub struct Door {
    listener: UnixListener,
    path: PathBuf,
    inode: u64,
    is_left: AtomicBool,
}

/// What a guest's datapath leaves to another daemon.
#[derive(Debug)]
pub enum Wire {
    /// Nothing: it has nothing of the host.
    Nothing,
    /// Queues of a tap or macvtap; and the macvtap's interface, unless it was handed over.
    Queues(Vec<SharedQueue>, Option<Arc<WatchedLink>>),
    /// An interface with its AF_XDP sockets.
    Interface(Arc<Estate>),
    /// That of the uplink of its switch.
    Uplink(Box<Wire>),
    /// It cannot be handed over, for this reason.
    Unfit(String),
}

/// Copies of what a guest's datapath leaves.
#[derive(Debug, Default)]
struct Shared {
    queues: Vec<SharedQueue>,
    /// This daemon made the macvtap.
    made: bool,
    interface: Option<SharedInterface>,
}

/// What belongs to a guest.
#[derive(Debug)]
pub struct Belongings<'d> {
    /// Its plan.
    pub plan: &'d GuestPlan,
    /// Its datapath.
    pub wire: &'d Wire,
    /// Where its thread is asked.
    pub handover: Arc<Handover>,
    /// Its recorder.
    pub recorder: &'d Recorder,
}

/// Gives all guests to another daemon that asks.
#[derive(Debug)]
pub struct Giver<'d> {
    /// All guests.
    pub guests: Vec<Belongings<'d>>,
    /// Where they ask.
    pub door: Door,
}

/// How a take-over ended that was not refused and did not fail.
enum Given {
    /// The other daemon serves the guests, which had no ring served for so long, nanoseconds.
    Served(u64),
    /// It may serve them: it got all of them, and lives.
    Perhaps,
}

impl Door {
    /// Makes the socket. This process must have the lock on the name of the guest that it is named after, so a socket that
    /// is there already is of a daemon that was killed.
    ///
    /// # Errors
    /// When something else is there, or the system refuses.
    pub fn open(path: PathBuf) -> io::Result<Self> {
        if fs::symlink_metadata(&path).is_ok_and(|found| found.file_type().is_socket()) {
            fs::remove_file(&path)?;
        }
        let listener = UnixListener::bind(&path)?;
        // A stranger that connects before this is refused by its credentials.
        fs::set_permissions(&path, fs::Permissions::from_mode(0o600))?;
        Self::handed(listener, path)
    }

    /// The socket at `path` that another daemon made.
    ///
    /// # Errors
    /// When it is not there.
    pub fn handed(listener: UnixListener, path: PathBuf) -> io::Result<Self> {
        let inode = fs::symlink_metadata(&path)?.ino();
        listener.set_nonblocking(true)?;
        Ok(Self { listener, path, inode, is_left: AtomicBool::new(false) })
    }

    /// Whether another daemon has it.
    pub fn set_left(&self, is_left: bool) {
        self.is_left.store(is_left, Ordering::Relaxed);
    }

    /// Says to those who connect from now on that this process listens.
    pub fn renew(&self) {
        let _ = rustix::net::listen(&self.listener, 128);
    }
}

impl Drop for Door {
    fn drop(&mut self) {
        let is_there =
            |path: &Path| fs::symlink_metadata(path).is_ok_and(|it| it.ino() == self.inode);
        if !self.is_left.load(Ordering::Relaxed) && is_there(&self.path) {
            let _ = fs::remove_file(&self.path);
        }
    }
}

impl Wire {
    /// Why a guest with this plan cannot be handed over.
    pub fn unfit(plan: &GuestPlan) -> Option<String> {
        let why = match &plan.datapath {
            DatapathSpec::AfXdp { options, .. } if options.umem == UmemOwner::Guest => {
                "with umem=guest, its AF_XDP sockets send from memory that another daemon has elsewhere"
            }
            _ => return None,
        };
        Some(why.into())
    }

    /// What there is, to be given away once. `active`: for each queue pair, whether the guest takes frames.
    fn share(&self, active: &[bool]) -> Result<Shared, String> {
        match self {
            Self::Nothing => Ok(Shared::default()),
            Self::Interface(estate) => {
                let interface = estate.share(active).map_err(|error| error.to_string())?;
                Ok(Shared { interface: Some(interface), ..Shared::default() })
            }
            Self::Unfit(why) => Err(why.clone()),
            // A switch always takes frames from it.
            Self::Uplink(wire) => wire.share(&[true]),
            Self::Queues(queues, link) => {
                let is_active = |n: usize| active.get(n).copied().unwrap_or(false);
                let copies = queues.iter().enumerate().map(|(n, it)| it.try_clone(is_active(n)));
                let queues =
                    copies.collect::<io::Result<_>>().map_err(|error| error.to_string())?;
                let made = link.as_ref().is_some_and(|link| link.is_made());
                Ok(Shared { queues, made, interface: None })
            }
        }
    }

    fn leave(&self) {
        match self {
            Self::Queues(_, Some(link)) => link.set_stays(true),
            Self::Interface(estate) => estate.leave(),
            Self::Uplink(wire) => wire.leave(),
            Self::Queues(_, None) | Self::Nothing | Self::Unfit(_) => {}
        }
    }
}

impl Giver<'_> {
    /// Waits for other daemons until one has taken over, or `stop` or `finished` becomes readable.
    pub fn run(self, stop: &Stop, finished: &UnixStream) {
        let log = LogLimit::new("");
        let mut refused: u64 = 0;
        while self.is_asked(stop, finished) {
            let Ok((stream, _)) = self.door.listener.accept() else {
                std::thread::sleep(PAUSE);
                continue;
            };
            let process = Peer::of(&stream).ok().and_then(|peer| peer.process).unwrap_or_default();
            match self.attend(stream, stop) {
                Ok(given) => {
                    match given {
                        Given::Served(gap_ns) => log::info!(
                            "process {process} has taken over: no ring was served for {:.2} ms; this daemon ends",
                            gap_ns as f64 / 1e6
                        ),
                        Given::Perhaps => log::error!(
                            "process {process} has taken over, but did not confirm it for {} s; this daemon ends",
                            PATIENCE.as_secs()
                        ),
                    }
                    return;
                }
                Err(why) => {
                    refused += 1;
                    log_limit::warn!(
                        log,
                        "process {process} did not take over ({refused} in all), and this daemon goes on: {why}"
                    );
                    std::thread::sleep(PAUSE);
                }
            }
        }
    }

    fn is_asked(&self, stop: &Stop, finished: &UnixStream) -> bool {
        let mut all = [
            PollFd::from_borrowed_fd(stop.as_fd(), PollFlags::IN),
            PollFd::new(finished, PollFlags::IN),
            PollFd::new(&self.door.listener, PollFlags::IN),
        ];
        loop {
            match poll(&mut all, None) {
                Err(rustix::io::Errno::INTR) => {}
                Err(_) => return false,
                Ok(_) => return all[..2].iter().all(|end| end.revents().is_empty()),
            }
        }
    }

    /// Speaks with one other process. On an error all guests are served on.
    fn attend(&self, stream: UnixStream, stop: &Stop) -> Result<Given, String> {
        let told = |error: io::Error| error.to_string();
        stream.set_nonblocking(false).map_err(told)?;
        let user = Peer::of(&stream).map_err(told)?.user;
        let channel = Channel::new(stream, PATIENCE).map_err(told)?;
        let result = if user == 0 || user == geteuid().as_raw() {
            self.give(&channel, stop)
        } else {
            let own = geteuid().as_raw();
            Err(format!("it is of user {user}, and only user {own} or root may do that"))
        };
        match &result {
            // The other daemon waits for the end of this process, which closes the connection: until then this one serves
            // metrics and has its recorders.
            Ok(_) => std::mem::forget(channel),
            Err(why) => {
                let _ = channel.send(&ToNew::Refused { why: why.clone() }, &[]);
            }
        }
        result
    }

    fn give(&self, channel: &Channel, stop: &Stop) -> Result<Given, String> {
        match receive(channel, HELLO_TIME)? {
            ToRunning::Hello { guests, .. } => self.expect_same(&guests)?,
            _ => return Err("it sent something else than a greeting".into()),
        }
        // Dropping them lets the guests go on.
        let asked: Vec<Asked> = self.guests.iter().map(|guest| guest.handover.ask()).collect();
        self.send_estates(channel, &asked)?;
        wait(channel, stop, PATIENCE)?;
        match receive(channel, PATIENCE)? {
            ToRunning::Ready => {}
            ToRunning::Failed { why } => return Err(why),
            _ => return Err("it did not say whether it is ready".into()),
        }
        let begun_ns = now_ns();
        let released: Vec<_> = asked.iter().map(Asked::release).collect();
        let stands = released
            .iter()
            .map(|stands| Ok(stands.wait()?.into_iter().map(RingStand::from).collect::<Vec<_>>()));
        let stands = stands.collect::<Result<Vec<_>, String>>()?;
        channel
            .send(&ToNew::Start { begun_ns, stands }, &[])
            .map_err(|error| format!("it did not get the rings: {error}"))?;
        let given = match channel.receive(PATIENCE, false) {
            Ok((ToRunning::Done { gap_ns }, _)) => Given::Served(gap_ns),
            Ok((ToRunning::Failed { why }, _)) => return Err(why),
            Err(error) if error.is_gone() => {
                return Err("it ended before it served the guests".into());
            }
            _ => Given::Perhaps,
        };
        self.leave(asked);
        Ok(given)
    }

    /// Checks that the other daemon wants the guests that are here.
    fn expect_same(&self, wanted: &[Guest]) -> Result<(), String> {
        for Belongings { plan, wire, .. } in &self.guests {
            let own = Guest::of(plan);
            let found = wanted.iter().find(|guest| guest.name == own.name);
            let found = found.ok_or_else(|| format!("it has no guest '{}'", own.name))?;
            if *found != own {
                let show = |guest: &Guest| {
                    let Guest { endpoint, datapath, queue_pairs, .. } = guest;
                    format!("{endpoint} --datapath {datapath} --queue-pairs {queue_pairs}")
                };
                let (own, found, name) = (show(&own), show(found), &plan.name);
                return Err(format!(
                    "guest '{name}' is served with {own} here, and with {found} there"
                ));
            }
            if let Wire::Unfit(why) = wire {
                return Err(format!("guest '{}': {why}", plan.name));
            }
        }
        if wanted.len() > self.guests.len() {
            return Err(format!(
                "it has {} guests, and this daemon {}",
                wanted.len(),
                self.guests.len()
            ));
        }
        Ok(())
    }

    fn send_estates(&self, channel: &Channel, asked: &[Asked]) -> Result<(), String> {
        let copy = |listener: &UnixListener| listener.as_fd().try_clone_to_owned();
        let mut files = vec![copy(&self.door.listener).map_err(|error| error.to_string())?];
        let mut guests = Vec::new();
        for (guest, asked) in self.guests.iter().zip(asked) {
            let estate = self.estate(guest, asked, &mut files);
            guests.push(estate.map_err(|why| format!("guest '{}': {why}", guest.plan.name))?);
        }
        let program = env!("CARGO_PKG_VERSION").into();
        channel
            .send(&ToNew::Estate { program, guests }, &files)
            .map_err(|error| format!("it did not get the guests: {error}"))
    }

    fn estate(
        &self,
        guest: &Belongings<'_>,
        asked: &Asked,
        files: &mut Vec<OwnedFd>,
    ) -> Result<GuestEstate, String> {
        let estate = asked.estate()?;
        let lock = guest.recorder.share_lock().map_err(|error| error.to_string())?;
        files.push(lock.into());
        let has_listener = estate.listener.is_some();
        files.extend(estate.listener);
        let active = estate.front.as_ref().map_or(&[][..], |front| &front.active);
        let Shared { queues, made, interface } = guest.wire.share(active)?;
        let queues = queues.into_iter().map(|queue| Queue::give(queue, files)).collect();
        let interface = interface.map(|interface| Interface::give(interface, files));
        let front = estate.front.map(|front| Front::give(front, files));
        let name = guest.plan.name.clone();
        Ok(GuestEstate { name, has_listener, queues, made, interface, front })
    }

    /// Another daemon has everything.
    fn leave(&self, asked: Vec<Asked>) {
        self.door.set_left(true);
        for guest in &self.guests {
            guest.recorder.leave();
            guest.wire.leave();
        }
        asked.into_iter().for_each(Asked::leave);
    }
}

fn receive(channel: &Channel, limit: Duration) -> Result<ToRunning, String> {
    channel
        .receive(limit, false)
        .map(|(message, _)| message)
        .map_err(|error: ChannelError| error.to_string())
}

/// Waits until the other daemon has said something.
fn wait(channel: &Channel, stop: &Stop, limit: Duration) -> Result<(), String> {
    let mut both = [
        PollFd::new(channel.stream(), PollFlags::IN),
        PollFd::from_borrowed_fd(stop.as_fd(), PollFlags::IN),
    ];
    let limit = Timespec::try_from(limit).ok();
    match poll(&mut both, limit.as_ref()) {
        Ok(_) if !both[1].revents().is_empty() => Err("this daemon is to end".into()),
        Ok(0) => Err("it does not answer".into()),
        // An interruption: it is waited for again.
        _ => Ok(()),
    }
}

/// `CLOCK_MONOTONIC` in nanoseconds.
pub fn now_ns() -> u64 {
    let now = Duration::try_from(clock_gettime(ClockId::Monotonic)).unwrap_or_default();
    u64::try_from(now.as_nanos()).unwrap_or(u64::MAX)
}
