//! A thread that waits for its CPU: who or what is blamed, and which waits are reported.
//!
//! Softirqs are blamed for what they took of a wait, and for nothing that they took before it. The thread that has the CPU makes
//! them by itself: it broadcasts on the loopback interface, and the kernel delivers each packet to many sockets before the sender
//! goes on.

use std::io::{Read as _, Write as _, pipe};
use std::net::UdpSocket;
use std::os::fd::AsFd as _;
use std::process::{self, Command};
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::mpsc::channel;
use std::sync::{Barrier, Mutex, PoisonError};
use std::thread::{self, sleep};
use std::time::{Duration, Instant};

use burst_trace::InterruptionCause;
use kernel_stages::{Event, KernelStages, ThreadEvent};
use rustix::net::sockopt::{set_socket_broadcast, set_socket_reuseaddr};
use rustix::net::{AddressFamily, SocketAddrV4, SocketType, bind, getsockname, socket};
use rustix::thread::{CpuSet, gettid, sched_setaffinity};

/// The CPU of both threads.
const CPU: usize = 0;
/// One test has that CPU at a time.
static TURN: Mutex<()> = Mutex::new(());
/// Sockets to which each packet is delivered.
const SOCKETS: usize = 300;
/// How long the thread waits for its CPU.
const WAIT: Duration = Duration::from_millis(12);
/// The reported wait is at least this long.
const SEEN: Duration = Duration::from_millis(8);
/// How long softirqs run before that, longer than the wait.
const BEFORE: Duration = Duration::from_millis(30);
/// Attempts. In some the hypervisor takes the CPU.
const ATTEMPTS: u32 = 5;
/// Number of a softirq (include/linux/interrupt.h).
const NET_RX: u32 = 3;
/// How often a thread gives way.
const YIELDS: usize = 200;

/// Sockets on one port, and one that sends to all of them.
struct Crowd {
    _sockets: Vec<UdpSocket>,
    sender: UdpSocket,
}

impl Crowd {
    fn gather() -> Self {
        let mut address = SocketAddrV4::new(std::net::Ipv4Addr::UNSPECIFIED, 0);
        let sockets = (0..SOCKETS).map(|_| {
            let socket = socket(AddressFamily::INET, SocketType::DGRAM, None).unwrap();
            set_socket_reuseaddr(&socket, true).unwrap();
            bind(&socket, &address).unwrap();
            address = getsockname(&socket).unwrap().try_into().unwrap();
            UdpSocket::from(socket)
        });
        let sockets = sockets.collect();
        let sender = UdpSocket::bind("127.0.0.1:0").unwrap();
        set_socket_broadcast(&sender, true).unwrap();
        sender.connect(("127.255.255.255", address.port())).unwrap();
        Self { _sockets: sockets, sender }
    }

    /// Keeps this CPU busy with softirqs.
    fn stir(&self, time: Duration) {
        let begun = Instant::now();
        while begun.elapsed() < time {
            self.sender.send(&[0; 32]).unwrap();
        }
    }
}

fn spin(time: Duration) {
    let begun = Instant::now();
    while begun.elapsed() < time {
        std::hint::spin_loop();
    }
}

/// Puts the calling thread on the CPU in a real-time class. Returns its id.
fn take_place(priority: u32) -> u32 {
    let mut cpus = CpuSet::new();
    cpus.set(CPU);
    sched_setaffinity(None, &cpus).unwrap();
    let thread = gettid().as_raw_nonzero().get().cast_unsigned();
    let mut chrt = Command::new("chrt");
    chrt.args(["--fifo", "--pid", &priority.to_string(), &thread.to_string()]);
    assert!(chrt.status().unwrap().success());
    thread
}

/// The events that are reported while `each` runs, which gets the loaded programs.
fn reported_while<T>(each: impl FnOnce(&KernelStages) -> T) -> (Vec<ThreadEvent>, T) {
    let _turn = TURN.lock().unwrap_or_else(PoisonError::into_inner);
    let (stages, _) = KernelStages::attach(false).unwrap();
    let told = Mutex::new(Vec::new());
    let (stop, alive) = pipe().unwrap();
    let result = thread::scope(|scope| {
        scope.spawn(|| {
            stages.drain(
                stop.as_fd(),
                || {},
                |event| {
                    if let Event::Thread(event) = event {
                        told.lock().unwrap().push(event);
                    }
                },
            )
        });
        let _alive = alive;
        each(&stages)
    });
    (told.into_inner().unwrap(), result)
}

/// One thread has the CPU: it does `first`, wakes a second thread, and does `then`, while the second one waits. Returns the
/// reported waits of the second thread, and the first one's id.
fn waits(first: impl FnOnce() + Send, then: impl FnOnce() + Send) -> (Vec<ThreadEvent>, u32) {
    let (mut bell, mut ring) = pipe().unwrap();
    let (id, ids) = channel();
    let (mut told, hog) = reported_while(|stages| {
        thread::scope(|scope| {
            scope.spawn(move || {
                id.send(take_place(10)).unwrap();
                bell.read_exact(&mut [0]).unwrap();
            });
            stages.add_worker(process::id(), ids.recv().unwrap(), 0).unwrap();
            // It goes to sleep.
            sleep(Duration::from_millis(20));
            let hog = scope.spawn(move || {
                let thread = take_place(50);
                first();
                ring.write_all(&[0]).unwrap();
                then();
                thread
            });
            hog.join().unwrap()
        })
    });
    told.retain(|event| {
        let length = Duration::from_nanos(event.end_ns - event.start_ns);
        event.cause != InterruptionCause::Blocked && length >= SEEN
    });
    (told, hog)
}

#[test]
fn softirqs_before_a_wait_are_not_blamed_for_it() {
    let crowd = Crowd::gather();
    let mut last = Vec::new();
    for _ in 0..ATTEMPTS {
        let (waits, hog) = waits(|| crowd.stir(BEFORE), || spin(WAIT));
        assert!(waits.iter().all(|it| it.cause != InterruptionCause::Softirq), "{waits:?}");
        let is_named =
            |it: &ThreadEvent| it.cause == InterruptionCause::Preempted && it.culprit.thread == hog;
        if waits.iter().any(is_named) {
            return;
        }
        last = waits;
    }
    panic!("expected the thread that had the CPU to be named, found {last:?}");
}

#[test]
fn softirqs_that_take_most_of_a_wait_are_blamed_for_it() {
    let crowd = Crowd::gather();
    let mut last = Vec::new();
    for _ in 0..ATTEMPTS {
        last = waits(|| spin(BEFORE), || crowd.stir(WAIT)).0;
        if last.iter().any(|it| it.cause == InterruptionCause::Softirq && it.detail == NET_RX) {
            return;
        }
    }
    panic!("expected softirqs to be blamed, found {last:?}");
}

/// One thread yields its CPU again and again, and another one then runs for `held`. Returns the number of reported waits of the
/// first one.
fn yields_reported(held: Duration) -> usize {
    let (id, ids) = channel();
    let (is_over, begin) = (AtomicBool::new(false), Barrier::new(2));
    let (told, ()) = reported_while(|stages| {
        thread::scope(|scope| {
            scope.spawn(|| {
                id.send(take_place(10)).unwrap();
                begin.wait();
                for _ in 0..YIELDS {
                    thread::yield_now();
                }
                is_over.store(true, Ordering::Relaxed);
            });
            stages.add_worker(process::id(), ids.recv().unwrap(), 0).unwrap();
            scope.spawn(|| {
                take_place(10);
                begin.wait();
                while !is_over.load(Ordering::Relaxed) {
                    spin(held);
                    thread::yield_now();
                }
            });
        });
    });
    told.iter().filter(|event| event.cause == InterruptionCause::Preempted).count()
}

#[test]
fn a_thread_that_gives_way_is_told_only_of_long_waits() {
    let short = yields_reported(Duration::from_micros(15));
    assert!(short < YIELDS / 4, "{short} of {YIELDS}");
    let long = yields_reported(Duration::from_micros(150));
    assert!(long > YIELDS / 2, "{long} of {YIELDS}");
}
