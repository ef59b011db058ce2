//! Opens what the plan names, picks the datapath once, and puts the daemon together.
//!
//! The order matters for leaving nothing behind: datapath first, then the socket, the recorder last of what
//! has a name in the file system.

use std::io;
use std::os::fd::{BorrowedFd, OwnedFd};
use std::path::Path;
use std::sync::Arc;

use burst_trace::{Clock, Reader, Recorder, RecorderError, RecorderOptions};
use datapath::af_xdp::Options;
use datapath::{
    AfXdp, AfXdpError, Capabilities, CaptureError, CaptureOptions, Datapath, Faulty, Null, Pcap,
    Reflect, Tap, TapError, pcap,
};
use vhost_control::socket::Server;
use vhost_control::{Device, Endpoint, ServeError, SocketError, serve};
use virtio_net::ConfigSpace;
use worker::{GuestOptions, Worker, WorkerOptions};

use crate::plan::{EndpointPlan, Plan};
use crate::spec::DatapathSpec;
use crate::sys;

/// Bursts that the recorder keeps of each worker: 4 MiB, minutes of a quiet guest's traffic and a good
/// second of a busy one's.
const RECORDS: usize = 1 << 16;

/// Why the daemon cannot run.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// The tap.
    #[error(transparent)]
    Tap(#[from] TapError),
    /// The interface of AF_XDP sockets.
    #[error(transparent)]
    AfXdp(#[from] AfXdpError),
    /// The socket.
    #[error(transparent)]
    Socket(#[from] SocketError),
    /// The capture.
    #[error(transparent)]
    Capture(#[from] CaptureError),
    /// The recorder.
    #[error(transparent)]
    Recorder(#[from] RecorderError),
    /// A worker.
    #[error(
        "worker {index} cannot run{}: {source}",
        if source.kind() == io::ErrorKind::PermissionDenied {
            " with --sched (it needs root or CAP_SYS_NICE)"
        } else {
            " (do all CPUs of --cpus exist?)"
        }
    )]
    Worker {
        /// Its number.
        index: usize,
        /// What the system answered.
        source: io::Error,
    },
    /// Serving ended.
    #[error(transparent)]
    Serve(#[from] ServeError),
}

/// The descriptor that the plan names, if it names one. To be called before anything is opened: it could
/// get that number, and be taken for what was handed over.
///
/// # Errors
/// When there is no such descriptor.
pub fn handed_over(plan: &Plan) -> Result<Option<OwnedFd>, Error> {
    match plan.endpoint {
        EndpointPlan::Descriptor(fd) => Ok(Some(sys::take_fd(fd)?)),
        EndpointPlan::Listen(_) | EndpointPlan::Connect(_) => Ok(None),
    }
}

/// Runs the daemon until `stop` becomes readable.
///
/// # Errors
/// See [`Error`].
pub fn run(plan: &Plan, socket: Option<OwnedFd>, stop: BorrowedFd<'_>) -> Result<(), Error> {
    let pairs = usize::from(plan.queue_pairs);
    match &plan.datapath {
        DatapathSpec::Tap { ifname } => run_on(plan, Tap::open(ifname, pairs)?, socket, stop),
        DatapathSpec::AfXdp { ifname, options } => {
            let options = Options { stamps: plan.trace, ..*options };
            run_on(plan, AfXdp::open(ifname, pairs, &options)?, socket, stop)
        }
        DatapathSpec::Reflect => run_on(plan, (0..pairs).map(|_| Reflect).collect(), socket, stop),
        DatapathSpec::Null { receive } => {
            run_on(plan, (0..pairs).map(|_| Null::new(*receive)).collect(), socket, stop)
        }
    }
}

/// Puts what the plan names around the datapaths. Without a capture and faults there is nothing around them.
fn run_on<D: Datapath>(
    plan: &Plan,
    datapaths: Vec<D>,
    socket: Option<OwnedFd>,
    stop: BorrowedFd<'_>,
) -> Result<(), Error> {
    let endpoint = meet(&plan.endpoint, socket)?;
    let clock = Clock::new();
    let faulty = |(queue, datapath)| Faulty::new(datapath, &plan.faults, queue);
    if let Some(path) = &plan.capture {
        let lanes = pcap::begin(&capture(plan, path), plan.queue_pairs, clock)?;
        // Frames that a fault takes pass neither the wire nor the capture.
        let captured = datapaths.into_iter().zip(lanes).map(|(it, lane)| Pcap::new(it, lane));
        let faulty = (0..).zip(captured).map(|(queue, it)| Faulty::new(it, &plan.faults, queue));
        serve_on(plan, faulty.collect(), endpoint, clock, stop)
    } else if plan.faults.is_empty() {
        serve_on(plan, datapaths, endpoint, clock, stop)
    } else {
        serve_on(plan, (0..).zip(datapaths).map(faulty).collect(), endpoint, clock, stop)
    }
}

fn capture(plan: &Plan, path: &Path) -> CaptureOptions {
    CaptureOptions {
        path: path.to_owned(),
        application: concat!("ringscoped ", env!("CARGO_PKG_VERSION")).into(),
        name: plan.name.clone(),
        description: format!("virtio-net of the guest on {}", plan.datapath),
    }
}

fn serve_on<D: Datapath>(
    plan: &Plan,
    datapaths: Vec<D>,
    endpoint: Endpoint,
    clock: Clock,
    stop: BorrowedFd<'_>,
) -> Result<(), Error> {
    let capabilities = datapaths[0].capabilities();
    let recorder = Recorder::create(
        &RecorderOptions {
            path: plan.recorder.clone(),
            workers: plan.workers.len(),
            queue_pairs: plan.queue_pairs.into(),
            capacity: RECORDS,
            facts: facts(plan),
        },
        &clock,
    )?;
    let workers = spawn(plan, datapaths, clock, &recorder).inspect_err(|_| {
        // Nothing was recorded, so nothing is left behind.
        let _ = std::fs::remove_file(recorder.path());
    })?;
    let device = Arc::new(device(plan, &capabilities, &workers));
    log::info!(
        "{}: {} with {} queue pair(s), polling {}, recording to {}",
        plan.name,
        plan.datapath,
        plan.queue_pairs,
        plan.poll,
        recorder.path().display()
    );
    serve(endpoint, &device, stop).inspect_err(|_| remove_if_empty(&recorder))?;
    Ok(())
}

/// A daemon that fails before it served anyone leaves nothing behind; what was recorded stays.
fn remove_if_empty(recorder: &Recorder) {
    let is_empty = Reader::open(recorder.path()).is_ok_and(|reader| {
        (0..reader.queue_pairs() * 2).all(|ring| reader.totals(ring).bursts == 0)
    });
    if is_empty {
        let _ = std::fs::remove_file(recorder.path());
    }
}

fn meet(endpoint: &EndpointPlan, socket: Option<OwnedFd>) -> Result<Endpoint, SocketError> {
    match (endpoint, socket) {
        (_, Some(socket)) => Endpoint::from_fd(socket),
        (EndpointPlan::Listen(path), None) => Ok(Endpoint::Server(Server::bind(path)?)),
        (EndpointPlan::Connect(path), None) => Ok(Endpoint::Client(path.clone())),
        (EndpointPlan::Descriptor(fd), None) => {
            Err(SocketError::Descriptor { fd: *fd, found: "not open".into() })
        }
    }
}

/// Deals the queue pairs out among the workers.
fn spawn<D: Datapath>(
    plan: &Plan,
    datapaths: Vec<D>,
    clock: Clock,
    recorder: &Recorder,
) -> Result<Vec<Worker>, Error> {
    let mut hands: Vec<Vec<(u16, D)>> = plan.workers.iter().map(|_| Vec::new()).collect();
    for (pair, datapath) in (0..).zip(datapaths) {
        hands[worker_of(plan, pair)].push((pair, datapath));
    }
    let spawn_one = |(index, pairs): (usize, Vec<(u16, D)>)| {
        let options = WorkerOptions { index, scheduling: plan.workers[index], poll: plan.poll };
        let guest = GuestOptions {
            label: String::new(),
            writer: recorder.writer(index, clock),
            delays: plan.delays.clone(),
            trace: plan.trace,
        };
        Worker::spawn(options, guest, pairs, clock)
            .map_err(|source| Error::Worker { index, source })
    };
    hands.into_iter().enumerate().map(spawn_one).collect()
}

fn worker_of(plan: &Plan, pair: u16) -> usize {
    usize::from(pair) % plan.workers.len()
}

fn device(plan: &Plan, capabilities: &Capabilities, workers: &[Worker]) -> Device {
    let offloads = capabilities.from_guest.from_guest() | capabilities.to_guest.to_guest();
    let mailbox = |pair| Arc::clone(workers[worker_of(plan, pair)].mailbox(0));
    Device {
        features: Device::features(offloads, plan.queue_pairs, plan.mac.is_some()),
        config: ConfigSpace::new(plan.mac, plan.queue_pairs, capabilities.mtu),
        queue_pairs: plan.queue_pairs,
        queue_size: plan.queue_size,
        workers: (0..plan.queue_pairs).map(mailbox).collect(),
    }
}

/// What a report should know of this run.
fn facts(plan: &Plan) -> String {
    let cpus: Vec<_> = plan.workers.iter().filter_map(|worker| worker.cpu).collect();
    serde_json::json!({
        "name": plan.name,
        "version": env!("CARGO_PKG_VERSION"),
        "datapath": plan.datapath.to_string(),
        "queue_pairs": plan.queue_pairs,
        "poll": plan.poll.to_string(),
        "cpus": cpus,
        "sched": plan.workers[0].fifo.map(|priority| format!("fifo:{priority}")),
        "trace": if plan.trace { "on" } else { "off" },
        "faults": plan.delays.len() + plan.faults.len(),
        "pcap": plan.capture,
    })
    .to_string()
}
