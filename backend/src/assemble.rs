//! Opens everything in the plan, chooses each guest's datapath once, and puts the daemon together.
//!
//! The order is such that a failure leaves nothing behind: first the datapath, then the socket, and the recorder last, of
//! everything that has a name in the file system.

use std::collections::BTreeMap;
use std::path::PathBuf;
use std::sync::Arc;

use burst_trace::{Clock, Reader, Recorder, RecorderOptions, Writer};
use datapath::af_xdp::Options;
use datapath::{Capabilities, Datapath, FrameReader, Null, Reflect, Uring};
use log_limit::LogLimit;
use metrics::Address;
use vhost_control::{Device, Endpoint, Handover, Witness};
use worker::{
    GuestOptions, Member, PanicAlarm, PollPolicy, Scheduling, Worker, WorkerOptions, switch,
};

use crate::announce;
use crate::capture;
use crate::clock;
use crate::confinement;
use crate::control::{Way, Ways};
use crate::device::{device, with_mtu};
use crate::error::Error;
use crate::facts::facts;
use crate::guest::{Front, GuestRecorder, Noted, Served, meet};
use crate::journal;
use crate::kernel::{Enrolled, FollowError, Following, Kernel, Measurable, OnRequest};
use crate::limits::{Limits, limits_of};
use crate::manager::Manager;
use crate::moved;
use crate::plan::{EndpointPlan, GuestPlan, Plan, SwitchPlan};
use crate::probes::ProbeSpec;
use crate::services::Services;
use crate::spec::{DatapathSpec, Engine};
use crate::stop::Stop;
use crate::takeover;
use crate::takeover::give::{Door, Wire};
use crate::takeover::take::Taking;
use crate::wires::{
    Handed, Macvtapped, join_macvtaps, open_af_xdp, open_macvtap, open_tap, share_af_xdp,
    share_macvtaps, share_taps,
};

/// A constructor of a worker for queue pairs, by number, and what is at their other end.
type StartWorker<D> =
    fn(WorkerOptions, GuestOptions, Vec<(u16, D)>, Clock) -> std::io::Result<Worker>;

/// Bursts that a recorder keeps for each worker. They take 4 MiB and last for minutes with a quiet guest, for a second or
/// less with a busy one.
const RECORDS: usize = 1 << 16;

/// Those that are told when a guest's front end comes or goes.
type Witnesses = Vec<Box<dyn Witness>>;

/// Runs the daemon until `stop`.
///
/// # Errors
/// See [`Error`].
pub fn run(plan: &Plan, handed: Handed, stop: &Stop) -> Result<(), Error> {
    make_run_dirs(plan)?;
    let kernel = Kernel::attach(&plan.guests)?;
    let mut daemon = Daemon::new(plan, handed, kernel, stop.alarm().clone());
    for guest in &plan.guests {
        let name = |source| match plan.guests.len() {
            1 => source,
            _ => Error::Guest { name: guest.name.clone(), source: Box::new(source) },
        };
        if stop.is_asked() {
            return Ok(());
        }
        daemon.add_guest(guest).map_err(name)?;
    }
    for switch in &plan.switches {
        if stop.is_asked() {
            return Ok(());
        }
        daemon.add_switch(switch, &plan.guests)?;
    }
    daemon.following = daemon.kernel.take().map(Kernel::follow).transpose()?;
    let taking = daemon.handed.taking.take();
    if taking.is_none() {
        let services = Services::start(plan, &daemon.ways, daemon.clock, stop)?;
        daemon.services = Some(services);
    }
    daemon.serve(plan, taking, stop)
}

/// Makes the socket where other daemons ask for the guests. Without one they are served all the same.
fn open_door(plan: &Plan) -> Option<Door> {
    let path = takeover::socket_of(&plan.guests[0].recorder);
    Door::open(path.clone())
        .inspect_err(|error| {
            log::warn!(
                "no other daemon can take over from this one, because there is no {}: {error}",
                path.display()
            );
        })
        .ok()
}

/// Makes the recorder's directory where the socket is in it too, because the socket is made first.
fn make_run_dirs(plan: &Plan) -> Result<(), Error> {
    for guest in &plan.guests {
        if let EndpointPlan::Listen(socket) = &guest.endpoint
            && let Some(path) = guest.recorder.parent()
            && socket.parent() == Some(path)
        {
            let refused = |source| Error::RunDir { path: path.into(), source };
            std::fs::create_dir_all(path).map_err(refused)?;
        }
    }
    Ok(())
}

/// A daemon that is being put together. Field order is drop order: services, workers, the kernel-stage threads, recorders.
struct Daemon {
    services: Option<Services>,
    workers: Vec<Worker>,
    following: Option<Following>,
    kernel: Option<Kernel>,
    ways: Ways,
    recorders: Vec<GuestRecorder>,
    fronts: Vec<Front>,
    handed: Handed,
    /// What of each guest's datapath another daemon gets. By name; nothing if there is none.
    wires: BTreeMap<String, Wire>,
    clock: Clock,
    /// When the endpoint of the guest that is put together was there, ticks.
    met: u64,
    /// Number of guests, including those of switches.
    guests: usize,
    /// Where metrics will be served.
    metrics_at: Option<Address>,
    /// The control socket, if there will be one.
    control_at: Option<PathBuf>,
    alarm: PanicAlarm,
}

impl Daemon {
    fn new(plan: &Plan, handed: Handed, kernel: Option<Kernel>, alarm: PanicAlarm) -> Self {
        Self {
            services: None,
            workers: Vec::new(),
            following: None,
            kernel,
            ways: Ways::new(),
            recorders: Vec::new(),
            fronts: Vec::new(),
            handed,
            wires: BTreeMap::new(),
            clock: clock::of(&plan.guests),
            met: 0,
            guests: plan.guests.len(),
            metrics_at: plan.metrics.clone(),
            control_at: plan.control.as_ref().and_then(|path| std::path::absolute(path).ok()),
            alarm,
        }
    }

    /// Puts together a guest with a datapath of its own. Guests of a switch are put together with the switch.
    fn add_guest(&mut self, plan: &GuestPlan) -> Result<(), Error> {
        let pairs = usize::from(plan.queue_pairs);
        match &plan.datapath {
            DatapathSpec::Tap { port, napi, engine, gro } => {
                let options = (*napi, *gro);
                let taps = open_tap(port, &mut self.handed, pairs, options, &plan.name)?;
                self.share(plan, || share_taps(&taps));
                match engine {
                    Engine::Readv => self.add(plan, taps),
                    Engine::Uring => {
                        let taps = taps.into_iter().map(Uring::open).collect::<Result<_, _>>()?;
                        self.add(plan, taps)
                    }
                }
            }
            DatapathSpec::Macvtap { port, over, gro } => {
                let (handed, owner) = (&mut self.handed, Macvtapped::Guest(plan.mac));
                let queues =
                    open_macvtap(port, over.as_ref(), handed, pairs, (owner, plan.name.as_str()))?;
                self.share(plan, || share_macvtaps(&queues));
                self.add(plan, join_macvtaps(queues, *gro))
            }
            DatapathSpec::AfXdp { ifname, options } => {
                let options = Options { stamps: plan.trace, ..*options };
                let all = open_af_xdp(ifname, &mut self.handed, pairs, &options, &plan.name)?;
                self.share(plan, || Ok(share_af_xdp(&all)));
                self.add(plan, all)
            }
            DatapathSpec::Reflect => self.add_reflect(plan),
            DatapathSpec::Null { receive } => {
                self.add(plan, (0..pairs).map(|_| Null::new(*receive)).collect())
            }
            DatapathSpec::Switch { .. } => Ok(()),
        }
    }

    /// Notes what of the guest's datapath another daemon gets.
    fn share(&mut self, plan: &GuestPlan, share: impl FnOnce() -> std::io::Result<Wire>) {
        let shared = || share().unwrap_or_else(|error| Wire::Unfit(error.to_string()));
        let wire = Wire::unfit(plan).map_or_else(shared, Wire::Unfit);
        self.wires.insert(plan.name.clone(), wire);
    }

    /// As [`Daemon::share`], for the uplink of a switch, which another daemon gets with the guest `owner`.
    fn share_uplink(&mut self, owner: &GuestPlan, share: impl FnOnce() -> std::io::Result<Wire>) {
        self.share(owner, || Ok(Wire::Uplink(Box::new(share()?))));
    }

    /// Puts together a guest with a datapath for each queue pair.
    fn add<D: Datapath>(&mut self, plan: &GuestPlan, datapaths: Vec<D>) -> Result<(), Error> {
        let endpoint = meet(plan, &mut self.handed)?;
        self.met = self.clock.now();
        let able = datapaths[0].capabilities();
        self.spawn(plan, datapaths, able, endpoint, Worker::spawn)
    }

    /// Puts together a guest whose frames come back.
    fn add_reflect(&mut self, plan: &GuestPlan) -> Result<(), Error> {
        let endpoint = meet(plan, &mut self.handed)?;
        self.met = self.clock.now();
        let able = Reflect::capabilities();
        let mirrors = (0..plan.queue_pairs).map(|_| Reflect).collect();
        self.spawn(plan, mirrors, able, endpoint, Worker::spawn_reflect)
    }

    /// Spreads the queue pairs over the guest's workers, which `start` starts.
    fn spawn<D>(
        &mut self,
        plan: &GuestPlan,
        datapaths: Vec<D>,
        capabilities: Capabilities,
        endpoint: Endpoint,
        start: StartWorker<D>,
    ) -> Result<(), Error> {
        let capabilities = with_mtu(plan, &capabilities)?;
        let captures = capture::thread(plan, self.control_at.is_some())?;
        let lanes = capture::of(plan, captures.as_ref(), self.clock)?;
        let mut lanes = capture::hands(lanes, plan.workers.len());
        let log = log_of(plan);
        let enrolled = self.kernel.as_mut().and_then(|kernel| kernel.enroll(plan, &log));
        let recorder = self.record(plan, enrolled.as_ref())?;
        let (first, limits) = (self.workers.len(), limits_of(plan, &self.clock));
        let mut hands: Vec<Vec<(u16, D)>> = plan.workers.iter().map(|_| Vec::new()).collect();
        for (pair, datapath) in (0..).zip(datapaths) {
            hands[usize::from(pair) % plan.workers.len()].push((pair, datapath));
        }
        for (n, pairs) in hands.into_iter().enumerate() {
            let index = first + n;
            let wire = confinement::wire_of(&plan.datapath);
            let options = self.worker_options(index, plan.workers[n], plan.poll, wire);
            let writer = recorder.file.writer(n, self.clock);
            let guest = guest_options(plan, &log, writer, limits.clone());
            let guest = GuestOptions { capture: std::mem::take(&mut lanes[n]), ..guest };
            let worker = start(options, guest, pairs, self.clock)
                .map_err(|source| Error::Worker { index, source })?;
            self.workers.push(worker);
        }
        let threads: Vec<_> = self.workers[first..].iter().map(Worker::tid).collect();
        let (witnesses, kernel) = self.follow(plan, enrolled, (&threads, &log), &recorder)?;
        let mailboxes = self.workers[first..].iter().map(|worker| worker.mailbox(0));
        let way = Way { workers: mailboxes.cloned().collect(), captures, kernel };
        self.show(plan, (endpoint, log), &recorder, &capabilities, way, witnesses)?;
        self.recorders.push(recorder);
        Ok(())
    }

    fn worker_options(
        &self,
        index: usize,
        scheduling: Scheduling,
        poll: PollPolicy,
        wire: confine::Wire,
    ) -> WorkerOptions {
        WorkerOptions { index, scheduling, poll, wire, alarm: self.alarm.clone() }
    }

    /// Puts together a switch with all its guests.
    fn add_switch(&mut self, plan: &SwitchPlan, guests: &[GuestPlan]) -> Result<(), Error> {
        let guests: Vec<_> = plan.guests.iter().map(|&n| &guests[n]).collect();
        // The uplink is handed over with one of them.
        let owner = self.handed.owner_of_uplink(&guests);
        let name = owner.name.as_str();
        let wire = plan.uplink.as_ref().map_or(confine::Wire::Nothing, confinement::wire_of);
        match &plan.uplink {
            None | Some(DatapathSpec::Switch { .. } | DatapathSpec::Reflect) => {
                self.join(&guests, wire, None::<Null>)
            }
            Some(DatapathSpec::Tap { port, napi, engine, gro }) => {
                let taps = open_tap(port, &mut self.handed, 1, (*napi, *gro), name)?;
                self.share_uplink(owner, || share_taps(&taps));
                let tap = taps.into_iter().next();
                match engine {
                    Engine::Readv => self.join(&guests, wire, tap),
                    Engine::Uring => self.join(&guests, wire, tap.map(Uring::open).transpose()?),
                }
            }
            Some(DatapathSpec::Macvtap { port, over, gro }) => {
                let (handed, user) = (&mut self.handed, (Macvtapped::Switch, name));
                let uplink = open_macvtap(port, over.as_ref(), handed, 1, user)?;
                self.share_uplink(owner, || share_macvtaps(&uplink));
                self.join(&guests, wire, join_macvtaps(uplink, *gro).pop())
            }
            Some(DatapathSpec::AfXdp { ifname, options }) => {
                let all = open_af_xdp(ifname, &mut self.handed, 1, options, name)?;
                self.share_uplink(owner, || Ok(share_af_xdp(&all)));
                self.join(&guests, wire, all.into_iter().next())
            }
            Some(DatapathSpec::Null { receive }) => {
                self.join(&guests, wire, Some(Null::new(*receive)))
            }
        }
    }

    fn join<U: FrameReader>(
        &mut self,
        plans: &[&GuestPlan],
        wire: confine::Wire,
        uplink: Option<U>,
    ) -> Result<(), Error> {
        let capabilities = switch::capabilities(uplink.as_ref().map(U::capabilities));
        let mut prepared = Vec::new();
        let mut members = Vec::new();
        for plan in plans {
            with_mtu(plan, &capabilities)?;
            let endpoint = meet(plan, &mut self.handed)?;
            self.met = self.clock.now();
            let log = log_of(plan);
            let enrolled = self.kernel.as_mut().and_then(|kernel| kernel.enroll(plan, &log));
            let recorder = self.record(plan, enrolled.as_ref())?;
            let (writer, limits) =
                (recorder.file.writer(0, self.clock), limits_of(plan, &self.clock));
            let guest = guest_options(plan, &log, writer, limits);
            let GuestPlan { queue_pairs, mac, mac_locked, .. } = **plan;
            members.push((guest, Member { queue_pairs, mac, mac_locked }));
            prepared.push((endpoint, log, enrolled, recorder));
        }
        let (index, is_heir) = (self.workers.len(), self.handed.taking.is_some());
        let GuestPlan { workers, poll, .. } = plans[0];
        let options = self.worker_options(index, workers[0], *poll, wire);
        let worker = Worker::spawn_switch(options, members, uplink, is_heir, self.clock)
            .map_err(|source| Error::Worker { index, source })?;
        for (n, (plan, prepared)) in plans.iter().zip(prepared).enumerate() {
            let (endpoint, log, enrolled, recorder) = prepared;
            let threads = [worker.tid()];
            let (witnesses, kernel) = self.follow(plan, enrolled, (&threads, &log), &recorder)?;
            let way = Way { workers: vec![Arc::clone(worker.mailbox(n))], captures: None, kernel };
            let capabilities = with_mtu(plan, &capabilities)?;
            self.show(plan, (endpoint, log), &recorder, &capabilities, way, witnesses)?;
            self.recorders.push(recorder);
        }
        self.workers.push(worker);
        Ok(())
    }

    /// Writes the guest's threads to its recorder, and starts recording its kernel stages if the plan asks for them. They
    /// have a writer of their own, after those of the workers. Returns the witnesses of the guest's front ends, and what measures
    /// kernel stages when the operator asks for them.
    fn follow(
        &mut self,
        plan: &GuestPlan,
        enrolled: Option<Enrolled>,
        (threads, log): (&[u32], &Arc<LogLimit>),
        recorder: &GuestRecorder,
    ) -> Result<(Witnesses, Option<Arc<OnRequest>>), Error> {
        let participants = recorder.file.participants();
        for (worker, &thread) in threads.iter().enumerate() {
            participants.set_thread(worker, thread);
        }
        let mut witnesses: Witnesses = vec![Box::new(Noted(participants))];
        let writer = || recorder.file.writer(plan.workers.len(), self.clock);
        if let Some((kernel, guest)) = self.kernel.as_mut().zip(enrolled) {
            kernel.record(&guest, threads, writer(), self.clock)?;
            witnesses.push(Box::new(guest.witness));
        } else if self.control_at.is_some() {
            let guest = Measurable {
                plan: plan.clone(),
                threads: threads.to_vec(),
                writer: (writer(), self.clock),
                participants: recorder.file.participants(),
                control_at: self.control_at.clone(),
            };
            let on_request = OnRequest::start(guest, log).map_err(FollowError::Thread)?;
            witnesses.push(Box::new(on_request.witness().clone()));
            return Ok((witnesses, Some(Arc::new(on_request))));
        }
        Ok((witnesses, None))
    }

    /// Makes a guest's recorder.
    fn record(
        &mut self,
        plan: &GuestPlan,
        enrolled: Option<&Enrolled>,
    ) -> Result<GuestRecorder, Error> {
        let has_kernel_writer = enrolled.is_some() || self.control_at.is_some();
        let options = RecorderOptions {
            path: plan.recorder.clone(),
            workers: plan.workers.len() + usize::from(has_kernel_writer),
            queue_pairs: plan.queue_pairs.into(),
            capacity: RECORDS,
            facts: facts(
                plan,
                (enrolled.map(|guest| &guest.facts), None),
                self.control_at.as_deref(),
            ),
        };
        let before = Reader::open(&plan.recorder).map_or(0, |reader| reader.features_ever());
        let lock = self.handed.inherited(&plan.name).and_then(|inherited| inherited.lock.take());
        // The files of a daemon that still runs stay, whatever becomes of this one.
        let stays = lock.is_some();
        let file = match lock {
            None => Recorder::create(&options, &self.clock)?,
            Some(lock) => Recorder::create_beside(&options, &self.clock, lock)?,
        };
        file.participants().set_features_before(before);
        file.listens(self.met);
        Ok(GuestRecorder { file, stays, before, journal: journal::open(plan, stays) })
    }

    fn show(
        &mut self,
        plan: &GuestPlan,
        (endpoint, log): (Endpoint, Arc<LogLimit>),
        recorder: &GuestRecorder,
        capabilities: &Capabilities,
        way: Way,
        witnesses: Witnesses,
    ) -> Result<(), Error> {
        announce::guest(plan, capabilities, self.guests == 1, self.metrics_at.as_ref());
        let memory_max = Device::memory_max(self.guests);
        let device = device(plan, log, capabilities, &way.workers, witnesses);
        self.ways.insert(plan.name.clone(), way);
        let (before, journal) = (recorder.before, recorder.journal.clone());
        let state = moved::of(plan, &recorder.file, &device.log)?;
        let device = Arc::new(Device { memory_max, before, journal, state, ..device });
        let (name, handover) =
            (plan.name.clone(), Arc::new(Handover::new().map_err(Error::Descriptors)?));
        let heir = self.handed.taking.as_mut().and_then(|taking| taking.heir(&name));
        self.fronts.push(Front { name, endpoint, device, handover, heir });
        Ok(())
    }

    /// Serves every guest until `stop`, or until another daemon has them.
    fn serve(mut self, plan: &Plan, taking: Option<Taking>, stop: &Stop) -> Result<(), Error> {
        for guest in &plan.guests {
            let wire = || Wire::unfit(guest).map_or(Wire::Nothing, Wire::Unfit);
            self.wires.entry(guest.name.clone()).or_insert_with(wire);
        }
        let door = if taking.is_none() { open_door(plan) } else { None };
        // They are made by now, or soon; no guest is served before workers can join them.
        confine::wait_for_namespaces();
        let guests = plan.guests.iter().map(|guest| (guest, &self.wires[&guest.name])).collect();
        let (fronts, clock, ways) = (std::mem::take(&mut self.fronts), self.clock, &self.ways);
        for path in self.handed.spare() {
            log::warn!(
                "the service manager made the socket {}, which no guest has as its --socket-path",
                path.display()
            );
        }
        let manager = Manager::find(plan.part.is_some());
        let served = Served { guests, recorders: &self.recorders, fronts, door, taking, manager };
        let (results, taken) = served.run(stop, || Services::start_late(plan, ways, clock, stop));
        for (recorder, result) in self.recorders.iter_mut().zip(&results) {
            recorder.stays |= result.is_ok();
        }
        if stop.alarm().is_raised() {
            return Err(Error::Fault);
        }
        results.into_iter().collect::<Result<(), _>>().and(taken)
    }
}

/// The log of a guest: of all that it and its front end cause.
fn log_of(plan: &GuestPlan) -> Arc<LogLimit> {
    Arc::new(LogLimit::new(plan.log_prefix.as_str()))
}

fn guest_options(
    plan: &GuestPlan,
    log: &Arc<LogLimit>,
    writer: Writer,
    limits: Limits,
) -> GuestOptions {
    GuestOptions {
        log: Arc::clone(log),
        writer,
        delays: plan.delays.clone(),
        faults: plan.faults.clone(),
        capture: Vec::new(),
        crashes: plan.crashes.clone(),
        trace: plan.trace,
        limits,
        probes: ProbeSpec::targets(&plan.probes),
    }
}
