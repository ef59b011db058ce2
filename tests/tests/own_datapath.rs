//! A datapath of one's own, run by a worker for a guest in software: frames come back with their addresses swapped.

use std::collections::VecDeque;
use std::io;
use std::os::fd::{AsFd as _, BorrowedFd};
use std::os::unix::net::UnixStream;
use std::sync::Arc;
use std::time::Duration;

use burst_trace::{Clock, Reader, Recorder, RecorderOptions};
use datapath::{Capabilities, Datapath, Interface, Look, Transmitted};
use frontend::Guest;
use log_limit::LogLimit;
use rustix::event::{EventfdFlags, eventfd};
use virtio_net::{ConfigSpace, Frames, GuestRoom, LinkSpeed, Offloads, Placed};
use worker::{
    GuestOptions, PanicAlarm, PollPolicy, ProbeTargets, Scheduling, Wire, Worker, WorkerOptions,
};

/// A wire with a mirror at its end. For brevity it allocates for each frame; a datapath should not.
#[derive(Default)]
struct Swap {
    /// Frames on their way back.
    waiting: VecDeque<Vec<u8>>,
}

impl Interface for Swap {
    fn capabilities(&self) -> Capabilities {
        // No offloads: checksums and segments are done by the guest.
        let none = Offloads::default();
        Capabilities { name: "swap", from_guest: none, to_guest: none, mtu: 1500 }
    }

    fn set_active(&mut self, active: bool) -> io::Result<()> {
        if !active {
            self.waiting.clear();
        }
        Ok(())
    }

    fn has_frames(&self) -> bool {
        !self.waiting.is_empty()
    }

    fn readiness(&self) -> Option<BorrowedFd<'_>> {
        // Frames come only when the guest has sent some, and then the worker is awake.
        None
    }
}

impl Datapath for Swap {
    fn transmit(&mut self, frames: Frames<'_, '_>) -> Transmitted {
        let mut done = Transmitted::default();
        for frame in frames.iter() {
            let mut bytes = vec![0; 1514];
            let len = frame.copy_to(&mut bytes);
            bytes.truncate(len);
            let (destination, rest) = bytes.split_at_mut(6);
            destination.swap_with_slice(&mut rest[..6]);
            self.waiting.push_back(bytes);
            done.taken += 1;
            done.bytes += u32::try_from(len).expect("at most 1514");
        }
        done
    }

    fn receive(&mut self, room: &mut GuestRoom<'_, '_>) -> io::Result<Look> {
        while let Some(frame) = self.waiting.front() {
            if room.place(frame) == Placed::NoRoom {
                return Ok(Look::More);
            }
            self.waiting.pop_front();
        }
        Ok(Look::Drained)
    }
}

#[test]
fn a_datapath_of_ones_own_is_served_and_traced() {
    let directory = tempfile::tempdir().unwrap();
    let clock = Clock::new();
    let recorder = RecorderOptions {
        path: directory.path().join("vm0.trace"),
        workers: 1,
        queue_pairs: 1,
        capacity: 1024,
        facts: "{}".into(),
    };
    let recorder = Recorder::create(&recorder, &clock).unwrap();
    let log = Arc::new(LogLimit::new("vm0"));
    let guest = GuestOptions {
        log: Arc::clone(&log),
        writer: recorder.writer(0, clock),
        delays: Vec::new(),
        faults: Vec::new(),
        capture: Vec::new(),
        crashes: Vec::new(),
        trace: true,
        limits: [None, None],
        probes: ProbeTargets::default(),
    };
    let (alarm, _alarmed) = UnixStream::pair().unwrap();
    let options = WorkerOptions {
        index: 0,
        scheduling: Scheduling { cpu: None, fifo: None },
        poll: PollPolicy::Never,
        wire: Wire::Nothing,
        alarm: PanicAlarm::new(alarm),
    };
    let swap = Swap::default();
    let mtu = swap.capabilities().mtu;
    let worker = Worker::spawn(options, guest, vec![(0, swap)], clock).unwrap();
    let device = Arc::new(vhost_control::Device {
        log,
        features: vhost_control::Device::features(0, 1, false),
        before: 0,
        config: ConfigSpace::new(None, 1, mtu, LinkSpeed::UNKNOWN),
        queue_pairs: 1,
        queue_size: 256,
        journal: None,
        state: None,
        workers: vec![Arc::clone(worker.mailbox(0))],
        memory_max: 1 << 30,
        witnesses: Vec::new(),
    });
    let (front, back) = UnixStream::pair().unwrap();
    let stop = eventfd(0, EventfdFlags::CLOEXEC).unwrap();
    std::thread::scope(|scope| {
        let endpoint = vhost_control::Endpoint::Connected(back);
        // It returns when the front end is gone.
        scope.spawn(|| vhost_control::serve(endpoint, &device, stop.as_fd()));
        let mut guest = Guest::over(front, frontend::GuestOptions::default()).unwrap();
        for n in 0..100 {
            let [to, from, rest] =
                [&[2, 0, 0, 0, 0, 1], &[2, 0, 0, 0, 0, 2], &[0x88, 0xb5, n, 0][..]];
            assert!(guest.pair(0).send(&[to, from, rest].concat()).unwrap());
            let came = guest.pair(0).receive_within(Duration::from_secs(5)).unwrap();
            assert_eq!(came.expect("a frame").bytes, [from, to, rest].concat());
            guest.pair(0).reap().unwrap();
        }
    });
    let reader = Reader::open(recorder.path()).unwrap();
    assert_eq!([0, 1].map(|ring| reader.totals(ring).packets), [100, 100]);
}
