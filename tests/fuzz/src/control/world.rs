//! The devices, their workers, and the neighbour: a well-behaved guest.

use std::fs;
use std::io::{self, Write as _};
use std::os::fd::{AsFd, OwnedFd};
use std::os::unix::net::UnixStream;
use std::sync::atomic::AtomicU64;
use std::sync::mpsc::{Receiver, channel};
use std::sync::{Arc, Mutex, OnceLock, PoisonError};
use std::time::Duration;

use burst_trace::{Clock, Reader, Recorder, RecorderOptions};
use datapath::{Capabilities, Interface as _, Null, Reflect};
use log_limit::LogLimit;
use rustix::event::{EventfdFlags, eventfd};
use vhost_control::{Device, DeviceState, Endpoint, serve};
use virtio_net::{ConfigSpace, LinkSpeed, MacAddress};
use vmm_sys_util::signal::register_signal_handler;
use worker::{
    GuestOptions, Mailbox, Member, PanicAlarm, PollPolicy, ProbeTargets, Scheduling, Wire, Worker,
    WorkerOptions, switch,
};

/// Queue pairs of the devices that are not on the switch.
pub const PAIRS: u16 = 2;
/// Longest time until a conversation ends after its front end has gone, on a busy machine.
pub const PATIENCE: Duration = Duration::from_secs(10);
/// The daemon's parts. They live as long as this process.
pub struct World {
    pub(super) devices: Vec<Arc<Device>>,
    /// Never readable.
    stop: OwnedFd,
    /// The other guest of the switch.
    pub(super) neighbour: Mutex<Option<frontend::Guest>>,
    pub(super) checks: AtomicU64,
    pub(super) descriptors: OnceLock<usize>,
    /// The recorders with each device's counters, in the order of `devices`.
    pub(super) counts: Vec<Reader>,
    _workers: Vec<Worker>,
    _recorders: Vec<Recorder>,
}

/// A front end's conversation with a device.
pub struct Conversation {
    ended: Receiver<()>,
}

impl Conversation {
    /// Waits until it ends.
    ///
    /// # Panics
    /// If it does not end in time.
    pub fn end(self) {
        self.ended.recv_timeout(PATIENCE).expect("a conversation ends when its front end is gone");
    }
}

/// Formats every line but writes it nowhere.
struct Formatter;

impl log::Log for Formatter {
    fn enabled(&self, _: &log::Metadata<'_>) -> bool {
        true
    }

    fn log(&self, record: &log::Record<'_>) {
        let _ = write!(std::io::sink(), "{}", record.args());
    }

    fn flush(&self) {}
}

extern "C" fn ignore(_: libc::c_int, _: *mut libc::siginfo_t, _: *mut libc::c_void) {}

impl World {
    /// Returns the world. The first call makes it.
    pub fn get() -> &'static Self {
        static WORLD: OnceLock<World> = OnceLock::new();
        static FORMATTER: Formatter = Formatter;
        let mut is_new = false;
        let world = WORLD.get_or_init(|| {
            let _ = log::set_logger(&FORMATTER);
            log::set_max_level(log::LevelFilter::Debug);
            // A Rust program ignores it, but here `main` is the fuzzer's.
            register_signal_handler(libc::SIGPIPE, ignore).expect("a signal handler");
            is_new = true;
            Self::new()
        });
        if is_new {
            world.meet_neighbour();
        }
        world
    }

    fn new() -> Self {
        let clock = Clock::new();
        let (mut devices, mut workers) = (Vec::new(), Vec::new());
        let (mut recorders, mut counts) = (Vec::new(), Vec::new());
        let mut guest = |name: &str| {
            let (recorder, reader, options) = guest_options(name, clock);
            recorders.push(recorder);
            counts.push(reader);
            options
        };
        let reflect: Vec<_> = (0..PAIRS).map(|pair| (pair, Reflect)).collect();
        let able = Reflect::capabilities();
        workers.push(
            Worker::spawn_reflect(options(0), guest("reflect"), reflect, clock).expect("a worker"),
        );
        devices.push(device("reflect", PAIRS, None, &able, workers[0].mailbox(0)));
        let null: Vec<_> = (0..PAIRS).map(|pair| (pair, Null::new(256))).collect();
        let able = null[0].1.capabilities();
        workers.push(Worker::spawn(options(1), guest("null"), null, clock).expect("a worker"));
        devices.push(device("null", PAIRS, None, &able, workers[1].mailbox(0)));
        let able = switch::capabilities(None);
        let mac = |number| Some(MacAddress([0x52, 0x54, 0, 0, 0, number]));
        let member = |mac: Option<_>| Member { queue_pairs: 1, mac, mac_locked: mac.is_some() };
        let members = vec![(guest("one"), member(None)), (guest("two"), member(mac(2)))];
        let joined = Worker::spawn_switch(options(2), members, None::<Null>, false, clock);
        workers.push(joined.expect("a worker"));
        devices.push(device("one", 1, None, &able, workers[2].mailbox(0)));
        devices.push(device("two", 1, mac(2), &able, workers[2].mailbox(1)));
        Self {
            devices,
            stop: eventfd(0, EventfdFlags::CLOEXEC).expect("an eventfd"),
            neighbour: Mutex::new(None),
            checks: AtomicU64::new(0),
            descriptors: OnceLock::new(),
            counts,
            _workers: workers,
            _recorders: recorders,
        }
    }

    /// Number of devices to be fuzzed. The guest of the last device is the neighbour.
    #[must_use]
    pub fn devices(&self) -> usize {
        self.devices.len() - 1
    }

    /// The features offered by a device.
    #[must_use]
    pub fn offered(&self, device: usize) -> u64 {
        // VHOST_USER_F_PROTOCOL_FEATURES is the framework's.
        self.devices[device].features | 1 << 30
    }

    /// Whether a device is on the switch.
    #[must_use]
    pub fn is_at_switch(&self, device: usize) -> bool {
        device + 2 >= self.devices.len()
    }

    /// Begins a conversation with a device.
    pub fn converse(&'static self, device: usize) -> (UnixStream, Conversation) {
        let (front, back) = UnixStream::pair().expect("sockets");
        let device = &self.devices[device];
        let (tell, ended) = channel();
        std::thread::spawn(move || {
            // Why a conversation ends does not matter to the next one.
            let _ = serve(Endpoint::Connected(back), device, self.stop.as_fd());
            let _ = tell.send(());
        });
        (front, Conversation { ended })
    }

    fn meet_neighbour(&'static self) {
        let (stream, conversation) = self.converse(self.devices.len() - 1);
        // It lives as long as this process.
        std::mem::forget(conversation);
        let options = frontend::GuestOptions::default().queue_size(256);
        let neighbour = frontend::Guest::over(stream, options).expect("a guest is served");
        *self.neighbour.lock().unwrap_or_else(PoisonError::into_inner) = Some(neighbour);
    }
}

fn options(index: usize) -> WorkerOptions {
    let scheduling = Scheduling { cpu: None, fifo: None };
    // Nobody listens: a panic ends this process at once.
    let alarm = PanicAlarm::new(UnixStream::pair().expect("sockets").0);
    WorkerOptions { index, scheduling, poll: PollPolicy::Never, wire: Wire::Nothing, alarm }
}

fn guest_options(name: &str, clock: Clock) -> (Recorder, Reader, GuestOptions) {
    let path = std::env::temp_dir().join(format!("fuzz-{}-{name}.trace", std::process::id()));
    let options = RecorderOptions {
        path: path.clone(),
        workers: 1,
        queue_pairs: PAIRS.into(),
        capacity: 1024,
        facts: "{}".into(),
    };
    let recorder = Recorder::create(&options, &clock).expect("a recorder");
    let reader = Reader::open(&path).expect("a recorder");
    // No other process reads it.
    for path in [path.with_extension("lock"), path] {
        fs::remove_file(path).expect("to remove a file that this process made");
    }
    let writer = recorder.writer(0, clock);
    let log = Arc::new(LogLimit::new(format!("{name}: ")));
    let cyclic =
        ["ethertype:0x0800,counter@4/2,stream@0/2,vlan=5", "ethertype:0x86dd,counter@8/8,le"];
    let probes = ProbeTargets {
        udp_ports: vec![0x0035],
        cyclic: cyclic.map(|text| text.parse().expect("a description")).to_vec(),
    };
    (
        recorder,
        reader,
        GuestOptions {
            log,
            writer,
            delays: Vec::new(),
            faults: Vec::new(),
            capture: Vec::new(),
            crashes: Vec::new(),
            trace: true,
            limits: [None, None],
            probes,
        },
    )
}

/// A state that moves, of which there is never a file: a fuzzer has no helper processes.
#[derive(Debug)]
struct NoFiles;

impl DeviceState for NoFiles {
    fn save(&self) -> io::Result<OwnedFd> {
        Err(io::ErrorKind::Unsupported.into())
    }

    fn place(&self) -> io::Result<OwnedFd> {
        Err(io::ErrorKind::Unsupported.into())
    }

    fn has_come(&self, _: io::Result<u64>) {}

    fn has_gone(&self, _: u64) {}
}

fn device(
    label: &str,
    queue_pairs: u16,
    mac: Option<MacAddress>,
    capabilities: &Capabilities,
    mailbox: &Arc<Mailbox>,
) -> Arc<Device> {
    let offloads = capabilities.from_guest.from_guest() | capabilities.to_guest.to_guest();
    Arc::new(Device {
        log: Arc::new(LogLimit::new(label)),
        features: Device::features(offloads, queue_pairs, mac.is_some()),
        before: 0,
        config: ConfigSpace::new(mac, queue_pairs, capabilities.mtu, LinkSpeed::UNKNOWN),
        queue_pairs,
        queue_size: 256,
        journal: None,
        state: Some(Arc::new(NoFiles)),
        workers: vec![Arc::clone(mailbox); queue_pairs.into()],
        memory_max: 1 << 30,
        witnesses: Vec::new(),
    })
}
