//! The new daemon's side of a take-over.

use std::collections::BTreeMap;
use std::fs::File;
use std::io;
use std::os::fd::OwnedFd;
use std::os::unix::net::UnixListener;
use std::path::PathBuf;
use std::sync::Arc;
use std::sync::mpsc::{Receiver, Sender, channel};

use burst_trace::Recorder;
use datapath::af_xdp::estate::Estate;
use datapath::af_xdp::shared::SharedInterface;
use datapath::macvtap::WatchedLink;
use datapath::tap::SharedQueue;
use host_files::socket::{Peer, connect};
use ring_journal::Journal;
use rustix::process::geteuid;
use vhost_control::Heir;
use vhost_control::handover::{FrontEnd, Stand};
use worker::Mailbox;

use super::channel::Channel;
use super::give::{Door, now_ns};
use super::words::{Files, Front, Guest, GuestEstate, Interface, Queue, ToNew, ToRunning};
use super::{PATIENCE, Predecessor, socket_of};
use crate::plan::Plan;

/// Why there is no take-over. The running daemon goes on.
#[derive(Debug, thiserror::Error)]
pub enum TakeOverError {
    /// There is nobody to take over from.
    #[error(
        "cannot take over: nobody answers at {path} ({source}); is the daemon running, with the same --name and --run-dir?"
    )]
    Nobody { path: PathBuf, source: io::Error },
    /// It is another process.
    #[error("cannot take over: process {found} listens at {path}, not process {wanted}")]
    Another { path: PathBuf, found: u32, wanted: u32 },
    /// It is another user's.
    #[error("cannot take over: {path} is of user {user}")]
    Stranger { path: PathBuf, user: u32 },
    /// A flag that does not go with it.
    #[error("cannot take over with {0}: start this daemon without it")]
    Flag(&'static str),
    /// It was refused, or failed.
    #[error("cannot take over: {0}; the running daemon goes on")]
    Failed(String),
}

/// Whether a guest's thread can go on with it.
type Prepared = Result<(), String>;

/// All guests of the running daemon, which serves them until [`Taking::finish`].
#[derive(Debug)]
pub struct Taking {
    channel: Channel,
    process: u32,
    program: String,
    door: Option<Door>,
    /// By name.
    guests: BTreeMap<String, Inherited>,
    /// The names in the running daemon's order.
    order: Vec<String>,
    /// Claims on interfaces, which are to be this process's.
    claims: Vec<OwnedFd>,
    /// Removed at the end if a daemon made them.
    links: Vec<Arc<WatchedLink>>,
    /// Their settings are put back at the end.
    interfaces: Vec<Arc<Estate>>,
    prepared: (Sender<Prepared>, Receiver<Prepared>),
    started: (Sender<()>, Receiver<()>),
    starts: BTreeMap<String, Sender<Vec<Stand>>>,
}

/// The files of a guest that get their place when it is this daemon's.
#[derive(Clone, Copy, Debug)]
pub struct Kept<'r> {
    /// Its recorder.
    pub recorder: &'r Recorder,
    /// The journal of its rings.
    pub journal: Option<&'r Journal>,
}

/// A guest of the running daemon.
#[derive(Debug)]
pub struct Inherited {
    /// The lock on its name.
    pub lock: Option<File>,
    /// The socket on which front ends are waited for.
    pub listener: Option<OwnedFd>,
    /// Queues of its datapath.
    pub queues: Vec<SharedQueue>,
    /// The running daemon made the interface.
    pub made: bool,
    /// An interface with AF_XDP sockets.
    pub interface: Option<SharedInterface>,
    /// Its front end.
    pub front: Option<FrontEnd>,
}

impl Inherited {
    /// Whether anything of a datapath came with it.
    pub const fn has_wire(&self) -> bool {
        !self.queues.is_empty() || self.interface.is_some()
    }
}

impl Taking {
    /// Gets the guests of the plan from the daemon that serves them.
    ///
    /// # Errors
    /// See [`TakeOverError`].
    pub fn begin(plan: &Plan, from: &Predecessor) -> Result<Self, TakeOverError> {
        if plan.guests.iter().any(|guest| guest.capture.is_some()) {
            return Err(TakeOverError::Flag("--pcap"));
        }
        let own = socket_of(&plan.guests[0].recorder);
        let path = match from {
            Predecessor::Process(_) => own.clone(),
            Predecessor::Socket(path) => path.clone(),
        };
        let nobody = |source| TakeOverError::Nobody { path: path.clone(), source };
        let stream = connect(&path).map_err(nobody)?;
        let peer = Peer::of(&stream).map_err(nobody)?;
        let process = peer.process.unwrap_or_default();
        if let Predecessor::Process(wanted) = *from
            && process != wanted
        {
            return Err(TakeOverError::Another { path, found: process, wanted });
        }
        if peer.user != 0 && peer.user != geteuid().as_raw() && !geteuid().is_root() {
            return Err(TakeOverError::Stranger { path, user: peer.user });
        }
        let channel = Channel::new(stream, PATIENCE).map_err(nobody)?;
        Self::receive(channel, process, plan, path).map_err(TakeOverError::Failed)
    }

    fn receive(channel: Channel, process: u32, plan: &Plan, path: PathBuf) -> Result<Self, String> {
        let guests = plan.guests.iter().map(Guest::of).collect();
        let hello = ToRunning::Hello { program: env!("CARGO_PKG_VERSION").into(), guests };
        channel.send(&hello, &[]).map_err(|error| error.to_string())?;
        let received = channel.receive(PATIENCE, true).map_err(|error| error.to_string())?;
        let (program, estates, mut files) = match received {
            (ToNew::Estate { program, guests }, files) => (program, guests, Files(files.into())),
            (ToNew::Refused { why }, _) => return Err(format!("process {process} refused: {why}")),
            (ToNew::Start { .. }, _) => return Err("the rings came before the guests".into()),
        };
        let listener = UnixListener::from(files.next()?);
        let door = Door::handed(listener, path).map_err(|error| error.to_string())?;
        door.set_left(true);
        let mut taking = Self {
            channel,
            process,
            program,
            door: Some(door),
            guests: BTreeMap::new(),
            order: Vec::new(),
            claims: Vec::new(),
            links: Vec::new(),
            interfaces: Vec::new(),
            prepared: std::sync::mpsc::channel(),
            started: std::sync::mpsc::channel(),
            starts: BTreeMap::new(),
        };
        estates.into_iter().try_for_each(|estate| taking.add(estate, &mut files))?;
        Ok(taking)
    }

    fn add(&mut self, estate: GuestEstate, files: &mut Files) -> Result<(), String> {
        let GuestEstate { name, has_listener, queues, made, interface, front } = estate;
        let lock = Some(files.next()?.into());
        let listener = has_listener.then(|| files.next()).transpose()?;
        let queues = queues.into_iter().map(|queue: Queue| queue.take(files));
        let queues = queues.collect::<Result<Vec<SharedQueue>, String>>()?;
        for claim in queues.iter().filter_map(|queue| queue.claim.as_ref()) {
            self.claims.push(claim.try_clone().map_err(|error| error.to_string())?);
        }
        let interface = interface.map(|it: Interface| it.take(files)).transpose()?;
        let front = front.map(|front: Front| front.take(files)).transpose()?;
        self.order.push(name.clone());
        self.guests.insert(name, Inherited { lock, listener, queues, made, interface, front });
        Ok(())
    }

    /// The guest with this name, to take its parts out.
    pub fn guest(&mut self, name: &str) -> Option<&mut Inherited> {
        self.guests.get_mut(name)
    }

    /// From the end of the take-over on, an interface that was made is removed at this daemon's end.
    pub fn add_link(&mut self, link: Option<Arc<WatchedLink>>) {
        self.links.extend(link);
    }

    /// From the end of the take-over on, what was changed for an interface is put back at this daemon's end.
    pub fn add_interface(&mut self, interface: &Arc<Estate>) {
        self.interfaces.push(Arc::clone(interface));
    }

    /// What the thread of the guest with this name needs to go on with it.
    pub fn heir(&mut self, name: &str) -> Option<Heir> {
        let front = self.guests.get_mut(name)?.front.take();
        let (stands, start) = channel();
        self.starts.insert(name.into(), stands);
        let (prepared, started) = (self.prepared.0.clone(), self.started.0.clone());
        Some(Heir { front, prepared, start, started })
    }

    /// Takes over when all guests' threads are prepared. Returns the socket where the next daemon will ask. On an error the
    /// running daemon goes on, and the guests' threads end. `workers`: those of all guests.
    ///
    /// # Errors
    /// Why it failed.
    pub fn finish(
        mut self,
        kept: &[Kept<'_>],
        workers: &[Arc<Mailbox>],
    ) -> Result<(Door, Channel), TakeOverError> {
        let gap_ns = self.start(kept, workers).inspect_err(|why| {
            let _ = self.channel.send(&ToRunning::Failed { why: why.clone() }, &[]);
        });
        let gap_ns = gap_ns.map_err(TakeOverError::Failed)?;
        // From here on the guests are this daemon's, whatever happens.
        if let Err(error) = self.channel.send(&ToRunning::Done { gap_ns }, &[]) {
            log::warn!(
                "process {} does not know that it is taken over from: {error}",
                self.process
            );
        }
        for Kept { recorder, journal } in kept {
            let placed = journal.map_or(Ok(()), |journal| journal.take_place());
            if let Err(error) = placed.and(recorder.take_place()) {
                log::error!(
                    "{} stays the recorder of the daemon before, or its journal stays: {error}",
                    recorder.path().display()
                );
            }
        }
        for claim in &self.claims {
            let _ = rustix::net::listen(claim, 128);
        }
        self.links.iter().for_each(|link| link.set_stays(false));
        for interface in &self.interfaces {
            if let Err(error) = interface.take_place() {
                log::warn!("the XDP program stays that of the daemon before: {error}");
            }
        }
        let (process, program) = (self.process, &self.program);
        log::info!(
            "took over {} guest(s) from process {process} (ringscoped {program}): no ring was served for {:.2} ms",
            self.order.len(),
            gap_ns as f64 / 1e6
        );
        let door = self.door.take().ok_or_else(|| TakeOverError::Failed("no socket".into()))?;
        door.renew();
        door.set_left(false);
        Ok((door, self.channel))
    }

    /// Returns for how long no ring was served, nanoseconds.
    fn start(&self, kept: &[Kept<'_>], workers: &[Arc<Mailbox>]) -> Result<u64, String> {
        let gone = |_| "a guest's thread does not answer".to_owned();
        for _ in &self.order {
            self.prepared.1.recv_timeout(PATIENCE).map_err(gone)??;
        }
        self.channel.send(&ToRunning::Ready, &[]).map_err(|error| error.to_string())?;
        let received = self.channel.receive(PATIENCE, false).map_err(|error| error.to_string())?;
        let (begun_ns, stands) = match received.0 {
            ToNew::Start { begun_ns, stands } => (begun_ns, stands),
            ToNew::Refused { why } => {
                return Err(format!("process {} gave up: {why}", self.process));
            }
            ToNew::Estate { .. } => return Err("the guests came again".into()),
        };
        kept.iter().for_each(|it| it.recorder.succeed(begun_ns));
        for (name, stands) in self.order.iter().zip(stands) {
            if let Some(start) = self.starts.get(name) {
                let _ = start.send(stands.into_iter().map(Into::into).collect());
            }
        }
        for _ in &self.order {
            if self.started.1.recv_timeout(PATIENCE).is_err() {
                log::error!("a guest's rings have not started yet");
            }
        }
        workers.iter().for_each(|worker| worker.go_on(false));
        Ok(now_ns().saturating_sub(begun_ns))
    }
}
