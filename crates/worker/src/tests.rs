//! A worker between a driver and a scripted datapath.

use std::fs::{File, read_to_string};
use std::io::{self, Read as _, Write as _};
use std::os::fd::{AsFd as _, BorrowedFd, OwnedFd};
use std::os::unix::net::UnixStream;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::thread::sleep;
use std::time::{Duration, Instant};

use burst_trace::{DropCause, DropCounts, Notification, Reader, Recorder, RecorderOptions};
use datapath::{Capabilities, Datapath, InPlace, Interface, Look, Transmitted};
use guest_memory::GuestMemory;
use log_limit::LogLimit;
use rustix::event::{EventfdFlags, eventfd};
use virtio_net::features::BASE;
use virtio_net::{Frames, GuestRoom, MacAddress, Negotiated, Offloads};
use virtqueue::driver::{Buffer, Driver, RingOptions};
use vm_memory::{GuestAddress, GuestMemoryMmap};

use crate::clock::Clock;
use crate::mailbox::{Command, Inbox, Mailbox};
use crate::topology::wire::Wire;
use crate::worker::pairs_of;
use crate::{
    ANNOUNCEMENTS_AT_ONCE, Announced, Custody, Foreign, GuestOptions, PanicAlarm, PollPolicy,
    ProbeTargets, RingStart, Scheduling, StartError, Worker, WorkerOptions,
};

const SOON: Duration = Duration::from_secs(5);
/// Where the rings are in the guest's memory, by their index, and where frames are.
const RINGS: [u64; 2] = [0x1000, 0x8000];
const FRAME: Buffer = Buffer { address: 0x1_0000, len: 100, writable: false };
const SIZE: u16 = 64;

/// The script of the datapath.
#[derive(Debug, Default)]
struct Orders {
    refuses_memory: AtomicBool,
    cannot_be_read: AtomicBool,
    /// Every frame of the guest is lost.
    is_gone: AtomicBool,
    /// The kernel sends nothing.
    is_stuck: AtomicBool,
    /// Number of frames of the guest that were taken.
    taken: AtomicU64,
    /// Number of frames that were copied.
    copied: AtomicU64,
    /// Times that it was read.
    reads: AtomicU64,
}

/// Takes all frames and has none.
#[derive(Debug)]
struct Obedient {
    orders: Arc<Orders>,
    /// Never readable.
    descriptor: OwnedFd,
    /// Number of frames taken and not reported as sent.
    taken: usize,
}

impl Interface for Obedient {
    fn capabilities(&self) -> Capabilities {
        let none = Offloads::default();
        Capabilities { name: "obedient", from_guest: none, to_guest: none, mtu: 1500 }
    }

    fn set_active(&mut self, _active: bool) -> io::Result<()> {
        Ok(())
    }

    fn has_frames(&self) -> bool {
        false
    }

    fn readiness(&self) -> Option<BorrowedFd<'_>> {
        Some(self.descriptor.as_fd())
    }
}

impl Datapath for Obedient {
    fn transmit(&mut self, frames: Frames<'_, '_>) -> Transmitted {
        if self.orders.is_gone.load(Ordering::Relaxed) {
            let drops = DropCounts::only(DropCause::TxLinkDown, frames.len());
            return Transmitted { taken: frames.len(), drops, ..Transmitted::default() };
        }
        self.taken += frames.len();
        self.orders.taken.fetch_add(frames.len() as u64, Ordering::Relaxed);
        Transmitted { taken: frames.len(), ..Transmitted::default() }
    }

    fn receive(&mut self, _room: &mut GuestRoom<'_, '_>) -> io::Result<Look> {
        self.orders.reads.fetch_add(1, Ordering::Relaxed);
        match self.orders.cannot_be_read.load(Ordering::Relaxed) {
            true => Err(io::ErrorKind::NetworkDown.into()),
            false => Ok(Look::Drained),
        }
    }

    fn in_place(&mut self) -> Option<&mut impl InPlace> {
        (!self.orders.is_gone.load(Ordering::Relaxed)).then_some(self)
    }
}

/// All frames are sent at once, or none.
impl InPlace for Obedient {
    fn attach(&mut self, _memory: &GuestMemory) -> io::Result<()> {
        match self.orders.refuses_memory.load(Ordering::Relaxed) {
            true => Err(io::ErrorKind::OutOfMemory.into()),
            false => Ok(()),
        }
    }

    fn detach(&mut self) {}

    fn sent(&mut self) -> Transmitted {
        if self.orders.is_stuck.load(Ordering::Relaxed) {
            return Transmitted::default();
        }
        let taken = std::mem::take(&mut self.taken);
        Transmitted { taken, ..Transmitted::default() }
    }

    fn transmit_copies(&mut self, frames: Frames<'_, '_>) -> Transmitted {
        self.orders.copied.fetch_add(frames.len() as u64, Ordering::Relaxed);
        Transmitted { taken: frames.len(), ..Transmitted::default() }
    }
}

fn new_eventfd() -> File {
    eventfd(0, EventfdFlags::NONBLOCK | EventfdFlags::CLOEXEC).unwrap().into()
}

/// A guest of one queue pair.
struct Rig {
    worker: Worker,
    orders: Arc<Orders>,
    memory: Arc<GuestMemory>,
    drivers: [Driver; 2],
    /// Of each ring.
    kicks: [File; 2],
    errors: [File; 2],
    custody: Arc<Custody>,
    _alarm: UnixStream,
    _directory: tempfile::TempDir,
    recorder: Recorder,
}

impl Rig {
    fn new(poll: PollPolicy, clock: Clock) -> Self {
        let directory = tempfile::tempdir().unwrap();
        let options = RecorderOptions {
            path: directory.path().join("vm.trace"),
            workers: 1,
            queue_pairs: 1,
            capacity: 64,
            facts: String::new(),
        };
        let recorder = Recorder::create(&options, &clock).unwrap();
        let log = Arc::new(LogLimit::new(""));
        let mut guest = GuestOptions {
            log: Arc::clone(&log),
            writer: recorder.writer(0, *clock),
            delays: Vec::new(),
            faults: Vec::new(),
            capture: Vec::new(),
            crashes: Vec::new(),
            trace: true,
            limits: [None, None],
            probes: ProbeTargets::default(),
        };
        let (alarm, wake) = UnixStream::pair().unwrap();
        let options = WorkerOptions {
            index: 0,
            scheduling: Scheduling::default(),
            poll,
            wire: confine::Wire::Nothing,
            alarm: PanicAlarm::new(wake),
        };
        let orders = Arc::new(Orders::default());
        let datapath =
            Obedient { orders: Arc::clone(&orders), descriptor: new_eventfd().into(), taken: 0 };
        let pairs = pairs_of(&guest, [0].into_iter());
        let wire = Wire::new(&mut guest, vec![(0, datapath)]);
        let worker = Worker::spawn_joined(options, wire, vec![guest], pairs, clock);
        let map = GuestMemoryMmap::from_ranges(&[(GuestAddress(0), 0x20_0000)]).unwrap();
        let memory = Arc::new(GuestMemory::new(Arc::new(map)));
        let drivers = RINGS.map(|at| Driver::new(&memory, at, RingOptions::of(SIZE), 0));
        Self {
            worker: worker.unwrap(),
            orders,
            memory,
            drivers,
            kicks: [new_eventfd(), new_eventfd()],
            errors: [new_eventfd(), new_eventfd()],
            custody: Custody::new(&Arc::default()).unwrap(),
            _alarm: alarm,
            _directory: directory,
            recorder,
        }
    }

    fn start(&self, ring: u16) -> Result<(), StartError> {
        self.worker.mailbox(0).start(ring, self.ring_start(ring))
    }

    fn ring_start(&self, ring: u16) -> RingStart {
        let at = usize::from(ring);
        RingStart {
            setup: self.drivers[at].setup(),
            memory: Arc::clone(&self.memory),
            dirty: None,
            negotiated: Negotiated(BASE),
            kick: Some(self.hand_over(&self.kicks[at])),
            call: None,
            error: Some(self.hand_over(&self.errors[at])),
            enabled: true,
            journal: None,
        }
    }

    fn hand_over(&self, file: &File) -> Arc<Foreign> {
        Arc::new(self.custody.take(file.try_clone().unwrap().into()))
    }

    /// Of the transmit ring: kicks, and calls sent, suppressed and refused.
    fn notifications(&self) -> [u64; 4] {
        let counted = Reader::open(self.recorder.path()).unwrap().notifications(1);
        Notification::ALL.map(|kind| counted.of(kind))
    }

    fn kick(&self, ring: usize) {
        (&self.kicks[ring]).write_all(&1_u64.to_ne_bytes()).unwrap();
    }

    /// Sends `count` frames, and waits until their buffers are back.
    fn send(&mut self, count: usize) {
        for _ in 0..count {
            self.drivers[1].add(&[FRAME]).unwrap();
        }
        self.drivers[1].publish();
        self.kick(1);
        let mut back = 0;
        wait_for(|| {
            back += std::iter::from_fn(|| self.drivers[1].used()).count();
            back == count
        });
    }

    /// How often the worker has slept so far (`proc_pid_status(5)`).
    fn sleeps(&self) -> u64 {
        let path = format!("/proc/self/task/{}/status", self.worker.tid());
        let status = read_to_string(path).unwrap();
        let line = status.lines().find_map(|line| line.strip_prefix("voluntary_ctxt_switches:"));
        line.unwrap().trim().parse().unwrap()
    }

    /// Waits until the worker sleeps and nothing wakes it up.
    fn settle(&self) {
        wait_for(|| {
            let before = self.sleeps();
            sleep(Duration::from_millis(50));
            self.sleeps() == before && self.is_asleep()
        });
    }

    fn is_asleep(&self) -> bool {
        let path = format!("/proc/self/task/{}/stat", self.worker.tid());
        let stat = read_to_string(path).unwrap();
        stat.rsplit(") ").next().is_some_and(|rest| rest.starts_with('S'))
    }
}

#[track_caller]
fn wait_for(mut is_so: impl FnMut() -> bool) {
    let until = Instant::now() + SOON;
    while !is_so() {
        assert!(Instant::now() < until, "not within {SOON:?}");
        sleep(Duration::from_micros(100));
    }
}

fn steady() -> Clock {
    Clock::from(burst_trace::Clock::new())
}

#[test]
fn a_ring_whose_memory_the_datapath_refuses_is_not_listened_to() {
    let mut rig = Rig::new(PollPolicy::Never, steady());
    rig.orders.refuses_memory.store(true, Ordering::Relaxed);
    assert!(matches!(rig.start(1), Err(StartError::System(_))));
    rig.settle();
    let before = rig.sleeps();
    for _ in 0..10 {
        rig.kick(1);
        sleep(Duration::from_millis(5));
    }
    assert_eq!(rig.sleeps(), before, "a kick wakes the worker up");
    rig.orders.refuses_memory.store(false, Ordering::Relaxed);
    rig.start(1).unwrap();
    rig.send(3);
}

#[test]
fn nothing_is_written_into_a_ring_that_is_broken() {
    let mut rig = Rig::new(PollPolicy::Never, steady());
    rig.start(1).unwrap();
    rig.send(3);
    rig.settle();
    let setup = rig.drivers[1].setup();
    // More chains than the ring has (virtio 1.2, 2.7.13: `idx` follows the flags).
    rig.memory.write(setup.driver_area + 2, &2000_u16.to_le_bytes()).unwrap();
    rig.kick(1);
    wait_for(|| (&rig.errors[1]).read(&mut [0; 8]).is_ok());
    let canary = [0xa5; 16];
    rig.memory.write(setup.device_area, &canary).unwrap();
    for _ in 0..5 {
        rig.kick(1);
        rig.settle();
    }
    let mut found = [0; 16];
    rig.memory.read(setup.device_area, &mut found).unwrap();
    assert_eq!(found, canary);
}

#[test]
fn kicks_and_calls_are_counted_by_what_became_of_them() {
    let mut rig = Rig::new(PollPolicy::Never, steady());
    rig.start(1).unwrap();
    rig.settle();
    assert_eq!(rig.notifications(), [0, 0, 1, 0], "a ring without a call descriptor");
    let (call, mailbox) = (new_eventfd(), rig.worker.mailbox(0));
    mailbox.set_call(1, Some(rig.hand_over(&call))).unwrap();
    assert_eq!(rig.notifications(), [0, 1, 1, 0], "a new descriptor is written once");
    for sends in 1..=2 {
        rig.send(3);
        rig.settle();
        assert_eq!(rig.notifications(), [sends, 1 + sends, 1, 0]);
    }
    rig.drivers[1].disable_notification();
    rig.send(3);
    rig.settle();
    assert_eq!(rig.notifications(), [3, 3, 2, 0]);
    // A counter that nobody reads is full at last.
    (&call).read_exact(&mut [0; 8]).unwrap();
    (&call).write_all(&(u64::MAX - 1).to_ne_bytes()).unwrap();
    rig.drivers[1].enable_notification();
    rig.send(3);
    rig.settle();
    assert_eq!(rig.notifications(), [4, 3, 2, 1]);
}

/// As with `umem=guest` on an interface that sends nothing. A wait for it would be a wait of all queue pairs of the worker.
#[test]
fn an_announcement_waits_for_no_frame_of_the_guest() {
    let mut rig = Rig::new(PollPolicy::Never, steady());
    rig.start(1).unwrap();
    rig.orders.is_stuck.store(true, Ordering::Relaxed);
    rig.drivers[1].add(&[FRAME]).unwrap();
    rig.drivers[1].publish();
    rig.kick(1);
    wait_for(|| rig.orders.taken.load(Ordering::Relaxed) == 1);
    let (mailbox, address) = (rig.worker.mailbox(0), MacAddress([2; 6]));
    let begun = Instant::now();
    for _ in 0..ANNOUNCEMENTS_AT_ONCE {
        assert_eq!(mailbox.announce(address), Ok(Announced::Carried));
    }
    let took = begun.elapsed();
    assert!(took < Duration::from_millis(90), "they took {took:?}");
    assert_eq!(mailbox.announce(address), Ok(Announced::TooMany));
    assert_eq!(rig.orders.copied.load(Ordering::Relaxed), u64::from(ANNOUNCEMENTS_AT_ONCE));
    assert!(rig.drivers[1].used().is_none(), "the guest has a buffer back that is in use");
    // They are not taken for frames of the guest.
    rig.orders.is_stuck.store(false, Ordering::Relaxed);
    wait_for(|| rig.drivers[1].used().is_some());
    assert!(rig.drivers[1].used().is_none());
    let reader = Reader::open(rig.recorder.path()).unwrap();
    assert_eq!(reader.totals(1).packets, u64::from(ANNOUNCEMENTS_AT_ONCE) + 1);
    assert_eq!(reader.drops(1, DropCause::TxFloodLimit), 1);
}

/// What a clock may be off by after a jump, ticks: a counter that starts again after days, one that goes on elsewhere,
/// and one that goes back by a little.
const JUMPS: [u64; 5] = [1 << 50, 0, u64::MAX >> 1, (1 << 50) - 1_000_000_000, 1 << 40];

#[test]
fn a_clock_that_jumps_stops_no_traffic() {
    for poll in [PollPolicy::Never, PollPolicy::default(), PollPolicy::Always] {
        let jump: &'static AtomicU64 = Box::leak(Box::new(AtomicU64::new(1 << 50)));
        let mut rig = Rig::new(poll, Clock::jumping(jump));
        rig.start(0).unwrap();
        rig.start(1).unwrap();
        for to in JUMPS.into_iter().cycle().take(20) {
            // Enough that the worker paces its looks at the ring.
            for _ in 0..200 {
                rig.send(usize::from(SIZE) / 2);
            }
            jump.store(to, Ordering::Relaxed);
        }
        rig.send(1);
        if poll != PollPolicy::Always {
            rig.settle();
            // It is awake, and polls.
            rig.send(1);
            jump.store(0, Ordering::Relaxed);
            rig.settle();
        }
    }
}

#[test]
fn a_clock_that_jumps_keeps_no_datapath_from_being_read_again() {
    let jump: &'static AtomicU64 = Box::leak(Box::new(AtomicU64::new(1 << 50)));
    let mut rig = Rig::new(PollPolicy::default(), Clock::jumping(jump));
    rig.orders.cannot_be_read.store(true, Ordering::Relaxed);
    for _ in 0..8 {
        rig.drivers[0].add(&[Buffer { address: 0x2_0000, len: 2048, writable: true }]).unwrap();
    }
    rig.drivers[0].publish();
    rig.start(0).unwrap();
    let reads = |rig: &Rig| rig.orders.reads.load(Ordering::Relaxed);
    wait_for(|| reads(&rig) >= 3);
    for to in JUMPS {
        jump.store(to, Ordering::Relaxed);
        let before = reads(&rig);
        wait_for(|| reads(&rig) > before + 1);
    }
}

/// The kernel may report nothing when a tap is removed.
#[test]
fn a_datapath_that_loses_frames_is_read() {
    let mut rig = Rig::new(PollPolicy::Never, steady());
    rig.drivers[0].add(&[Buffer { address: 0x2_0000, len: 2048, writable: true }]).unwrap();
    rig.drivers[0].publish();
    rig.start(0).unwrap();
    rig.start(1).unwrap();
    rig.settle();
    let reads = |rig: &Rig| rig.orders.reads.load(Ordering::Relaxed);
    rig.send(1);
    rig.settle();
    let before = reads(&rig);
    rig.send(1);
    rig.settle();
    assert_eq!(reads(&rig), before, "nothing is lost, and nothing is read");
    rig.orders.is_gone.store(true, Ordering::Relaxed);
    rig.send(1);
    wait_for(|| reads(&rig) > before);
}

/// The worker may find it later: it must not serve a ring that the control plane takes for one that never started.
#[test]
fn a_start_that_nobody_waits_for_any_more_is_undone() {
    let rig = Rig::new(PollPolicy::Never, Clock::from(burst_trace::Clock::new()));
    let inbox = Arc::new(Inbox::new().unwrap());
    let hangs = Mailbox::new(Arc::clone(&inbox), 0);
    hangs.hurry();
    let started = hangs.start(0, rig.ring_start(0));
    assert!(matches!(started, Err(StartError::WorkerGone)));
    let commands = Vec::from(inbox.take());
    assert!(
        matches!(commands[..], [(0, Command::Start { .. }), (0, Command::Stop { ring: 0, .. })]),
        "{commands:?}"
    );
}
