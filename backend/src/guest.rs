//! A guest that is assembled: its recorder, its endpoint, and the threads that serve it.

use std::os::fd::AsFd as _;
use std::os::unix::net::UnixStream;
use std::sync::Arc;
use std::thread::{Builder, sleep};
use std::time::{Duration, Instant};

use burst_trace::{Before, Participants, Reader, Recorder, location};
use confine::Role;
use ring_journal::Journal;
use vhost_control::{
    Device, Endpoint, Handover, Heir, Server, SocketError, Succession, Witness, serve_on,
};

use crate::announce;
use crate::error::Error;
use crate::journal;
use crate::manager::Manager;
use crate::plan::{EndpointPlan, GuestPlan};
use crate::services::Services;
use crate::stop::Stop;
use crate::takeover::give::{Belongings, Door, Giver, Wire};
use crate::takeover::take::{Kept, Taking};
use crate::wires::Handed;

/// Longest wait for the first bursts before records of daemons before are copied.
const CALM: Duration = Duration::from_millis(50);
/// Time between two looks whether they have passed.
const LOOK: Duration = Duration::from_millis(1);

/// A recorder. Its file is removed at the end if it is empty, unless its guest was served without an error.
pub struct GuestRecorder {
    pub file: Recorder,
    pub stays: bool,
    /// The features of the guest whose recorder this one replaces; 0 if there is none.
    pub before: u64,
    pub journal: Option<Arc<Journal>>,
}

/// Writes a guest's front end and its features to its recorder.
#[derive(Debug)]
pub struct Noted(pub Participants);

impl Witness for Noted {
    fn connected(&self, process: u32) {
        self.0.set_front_end(process);
    }

    fn gone(&self, process: u32) {
        self.0.clear_front_end(process);
    }

    fn negotiated(&self, features: u64) {
        self.0.set_features(features);
    }
}

/// The endpoint of a guest, and the device that its front ends are offered.
pub struct Front {
    pub name: String,
    pub endpoint: Endpoint,
    pub device: Arc<Device>,
    /// Where another daemon asks for it.
    pub handover: Arc<Handover>,
    /// The daemon before served it.
    pub heir: Option<Heir>,
}

/// All guests of the daemon, as they are served.
pub struct Served<'d> {
    /// The guests of the plan, each with its datapath.
    pub guests: Vec<(&'d GuestPlan, &'d Wire)>,
    /// Their recorders, in the order of `fronts`.
    pub recorders: &'d [GuestRecorder],
    /// Their front ends.
    pub fronts: Vec<Front>,
    /// Where other daemons ask for them.
    pub door: Option<Door>,
    /// The daemon before, from which they come.
    pub taking: Option<Taking>,
    /// Who started this daemon.
    pub manager: Option<Manager>,
}

impl Served<'_> {
    /// Serves every guest until `stop`, or until another daemon has them. If one guest cannot be served any more, the others
    /// are served on. `watch` starts the services when the daemon before has ended. Returns what became of each guest, and of
    /// the take-over.
    pub fn run(
        self,
        stop: &Stop,
        watch: impl FnOnce() -> Services + Send,
    ) -> (Vec<Result<(), Error>>, Result<(), Error>) {
        let Self { guests, recorders, fronts, door, taking, manager } = self;
        let (is_alone, is_taking) = (fronts.len() == 1, taking.is_some());
        let belongings = fronts.iter().zip(recorders).filter_map(|(front, recorder)| {
            let (plan, wire) = *guests.iter().find(|(plan, _)| plan.name == front.name)?;
            let handover = Arc::clone(&front.handover);
            Some(Belongings { plan, wire, handover, recorder: &recorder.file })
        });
        let belongings: Vec<_> = belongings.collect();
        let records: Vec<_> = belongings.iter().map(|it| (it.plan, it.recorder)).collect();
        let kept = recorders.iter().map(|it| {
            let journal = it.journal.as_deref();
            Kept { recorder: &it.file, journal }
        });
        let kept: Vec<_> = kept.collect();
        let (finish, finished) = match UnixStream::pair() {
            Ok(pair) => pair,
            Err(error) => return (Vec::new(), Err(Error::Signals(error))),
        };
        let workers: Vec<_> =
            fronts.iter().flat_map(|front| front.device.workers.clone()).collect();
        let (manager, finished) = (manager.as_ref(), &finished);
        std::thread::scope(|scope| {
            let serve_one = |front| {
                scope.spawn(move || {
                    confine::enter(Role::Control);
                    serve_guest(front, is_alone, stop)
                })
            };
            let count = fronts.len();
            let threads: Vec<_> = fronts.into_iter().map(serve_one).collect();
            let speaker = scope.spawn(move || {
                let _watched = stop.alarm().watch();
                let mut door = door;
                if let Some(taking) = taking {
                    let (taken, before) = taking.finish(&kept, &workers)?;
                    door = Some(taken);
                    before.wait_for_the_end();
                    workers.iter().for_each(|worker| worker.go_on(true));
                }
                let copy = move || copy_records(&records, stop);
                // Without it, they are copied at the end.
                let _ = Builder::new().name("records".into()).spawn_scoped(scope, copy);
                let services = is_taking.then(watch);
                if let Some(manager) = manager {
                    manager.ready(count);
                    scope.spawn(move || {
                        confine::enter(Role::Manager);
                        manager.attend(&workers, stop, finished);
                    });
                }
                // Only now is everything set up: after a take-over, services start late.
                confine::enter(Role::TakeOver);
                if let Some(door) = door {
                    Giver { guests: belongings, door }.run(stop, finished);
                }
                drop(services);
                Ok(())
            });
            confine::enter(Role::Main);
            let results =
                threads.into_iter().map(|thread| thread.join().unwrap_or(Err(Error::Fault)));
            let results = results.collect();
            drop(finish);
            (results, speaker.join().unwrap_or(Err(Error::Fault)))
        })
    }
}

/// Copies the records of the daemons before, when the first bursts have passed or after [`CALM`]. The thread has the
/// priority of all others: one with a lower priority would keep them waiting for the locks that it holds in the kernel.
fn copy_records(recorders: &[(&GuestPlan, &Recorder)], stop: &Stop) {
    let _watched = stop.alarm().watch();
    confine::enter(Role::Records);
    let until = Instant::now() + CALM;
    while recorders.iter().any(|(_, it)| it.awaits_burst()) && Instant::now() < until {
        sleep(LOOK);
    }
    for (plan, recorder) in recorders {
        announce::recorder(plan, &recorder.copy_before());
    }
}

/// Serves a guest until `stop`, or until another daemon has it.
fn serve_guest(front: Front, is_alone: bool, stop: &Stop) -> Result<(), Error> {
    let _watched = stop.alarm().watch();
    let Front { name, endpoint, device, handover, heir } = front;
    let succession = Succession { handover: Some(&handover), heir };
    serve_on(endpoint, &device, stop.as_fd(), succession).map_err(|error| {
        if is_alone {
            return error.into();
        }
        // Logged now, because the other guests may be served for a long time.
        log::error!("{}{error}", device.log.prefix());
        Error::Guest { name, source: Box::new(error.into()) }
    })
}

impl Drop for GuestRecorder {
    /// Removes the file of a daemon that failed before it recorded anything, unless it goes on with that of another one.
    fn drop(&mut self) {
        let is_new = !matches!(self.file.copy_before(), Before::Continued(_));
        let is_empty = || {
            Reader::open(self.file.path()).is_ok_and(|reader| {
                (0..reader.queue_pairs() * 2).all(|ring| reader.totals(ring).bursts == 0)
            })
        };
        if !self.stays && is_new && is_empty() {
            let _ = std::fs::remove_file(self.file.path());
            let _ = std::fs::remove_file(journal::path(self.file.path()));
            let moved = location::moved_path(self.file.path());
            if moved.metadata().is_ok_and(|found| found.len() == 0) {
                let _ = std::fs::remove_file(moved);
            }
        }
    }
}

/// Where the front ends of a guest connect.
pub fn meet(plan: &GuestPlan, handed: &mut Handed) -> Result<Endpoint, SocketError> {
    if let Some(inherited) = handed.inherited(&plan.name) {
        return match (&plan.endpoint, inherited.listener.take()) {
            (EndpointPlan::Listen(path), Some(socket)) => {
                Ok(Endpoint::Server(Server::shared(socket, path)?))
            }
            (EndpointPlan::Connect(path), _) => Ok(Endpoint::Client(path.clone())),
            (_, Some(socket)) => Endpoint::from_fd(socket),
            (_, None) => Ok(Endpoint::Nothing),
        };
    }
    match &plan.endpoint {
        EndpointPlan::Listen(path) => match handed.listening(path) {
            Some(socket) => Endpoint::from_fd(socket),
            None => Ok(Endpoint::Server(Server::bind(path, handed.socket_owner)?)),
        },
        EndpointPlan::Connect(path) => Ok(Endpoint::Client(path.clone())),
        EndpointPlan::Descriptor(fd) => match handed.take(*fd) {
            Some(socket) => Endpoint::from_fd(socket),
            None => Err(SocketError::Descriptor { fd: *fd, found: "not open".into() }),
        },
    }
}
