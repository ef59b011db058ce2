//! Guest memory that comes and goes while frames flow: regions added and removed, and whole new tables, as fast as the
//! daemon answers. Frames are sent from such a region and received into it.
//!
//! `RINGSCOPE_MEMORY_SECONDS` is the time for each wire and ring format.

use std::collections::VecDeque;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::thread;
use std::time::{Duration, Instant};

use burst_trace::DropCause::{RxUnmapped, TxUnmapped};
use frontend::driver::Buffer;
use frontend::link::Link;
use frontend::memory::SharedMemory;
use frontend::pair::Frame;
use frontend::{FileRegion, Guest, GuestOptions, Pair, RegionOptions, Ring};
use ringscope_tests::daemon::Daemon;
use ringscope_tests::eventually::{SOON, SetOnDrop, eventually, when};
use ringscope_tests::frames;
use ringscope_tests::hostile::{readable, writable};
use ringscope_tests::mirror::{Kind, Mirror};
use ringscope_tests::trace::Trace;
use rustix::fs::{MemfdFlags, memfd_create};

/// Name of the files of memory that is plugged in, as in `/proc/PID/maps`.
const FILE: &str = "ringscope-plugged";
const PLUGGED: RegionOptions = RegionOptions { address: 1 << 32, len: 1 << 20 };
/// Bytes of plugged memory for each frame.
const SLOT: u64 = 4096;
/// Frames that plugged memory has room for: half of them to be sent, and half to be received.
const SLOTS: u64 = PLUGGED.len / SLOT;
/// One frame in so many is sent from plugged memory.
const FROM_PLUGGED: usize = 8;
/// Most frames under way: fewer than any queue of the kernel holds.
const WINDOW: usize = 192;
/// Frames of a burst.
const BURST: usize = 32;
const LONGEST: usize = 300;
/// A frame that has not come after this time is lost.
const LOST_AFTER: Duration = Duration::from_secs(1);
/// No frame under way takes this long.
const QUIET: Duration = Duration::from_millis(100);
/// Longest time for which memory stays, whether it is used or not.
const STEADY_US: u64 = 1000;
/// Longest wait for frames in memory that stays until some went through.
const USED: Duration = Duration::from_millis(100);

fn seconds() -> u64 {
    let given = std::env::var("RINGSCOPE_MEMORY_SECONDS");
    given.map_or(1, |seconds| seconds.parse().expect("a number"))
}

/// Two files, of which one or none is plugged in, always at the same address. Odd: the first or the second one is.
#[derive(Debug)]
struct Plugged {
    files: [SharedMemory; 2],
    changes: AtomicU64,
    /// Frames that were sent from it, or received into it, while it stayed.
    used: AtomicU64,
}

impl Plugged {
    fn new() -> Self {
        let memory = || {
            let file = memfd_create(FILE, MemfdFlags::CLOEXEC).unwrap().into();
            SharedMemory::in_file(&[PLUGGED], Arc::new(file), false).unwrap()
        };
        let (changes, used) = (AtomicU64::new(0), AtomicU64::new(0));
        Self { files: [memory(), memory()], changes, used }
    }

    fn now(&self) -> u64 {
        self.changes.load(Ordering::Acquire)
    }

    /// The memory that is plugged in after so many changes.
    fn memory(&self, changes: u64) -> Option<&SharedMemory> {
        (changes % 2 == 1).then(|| &self.files[(changes / 2 % 2) as usize])
    }

    /// Plugs memory in and takes it away again until `stop`.
    fn keep_changing(&self, link: &mut Link, own: &SharedMemory, stop: &AtomicBool) {
        let mut random: u64 = 1;
        while !stop.load(Ordering::Relaxed) {
            let file = self.files[(self.now() / 2 % 2) as usize].file();
            let region = FileRegion { region: PLUGGED, file, offset: 0 };
            random = random.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1);
            let (by_table, steady) = (random >> 40 & 1 == 1, (random >> 45) % STEADY_US);
            match by_table {
                true => link.set_memory_with(own, &[region]).unwrap(),
                false => link.add_region(&region).unwrap(),
            }
            let used = self.used.load(Ordering::Relaxed);
            self.changes.fetch_add(1, Ordering::Release);
            thread::sleep(Duration::from_micros(steady));
            if random >> 55 & 1 == 1 {
                let until = Instant::now() + USED;
                while self.used.load(Ordering::Relaxed) < used + 2 && Instant::now() < until {
                    thread::yield_now();
                }
            }
            self.changes.fetch_add(1, Ordering::Release);
            match by_table {
                true => link.set_memory(own).unwrap(),
                false => link.remove_region(&region).unwrap(),
            }
        }
    }
}

/// A buffer of plugged memory that the daemon has.
#[derive(Clone, Copy, Debug)]
struct Lent {
    slot: u64,
    /// The changes when it was offered.
    changes: u64,
    /// The frame in it, if it is to be sent.
    number: usize,
}

/// Numbered frames on their way to the wire and back.
struct Traffic<'t> {
    pair: &'t mut Pair,
    plugged: &'t Plugged,
    trace: &'t Trace,
    /// How often each came.
    came: Vec<u8>,
    /// Frames that came.
    back: usize,
    /// Frames in plugged memory that was taken away before the guest looked.
    unread: usize,
    /// Frames that are not as they were sent, or came before: their memory was replaced while they were in the ring.
    strange: usize,
    /// Buffers of frames to be sent whose memory did not stay.
    replaced: usize,
    /// Frames that did not come, whatever the daemon counted.
    missing: usize,
    /// Their memory stayed until the daemon had sent them.
    safe: Vec<usize>,
    sending: VecDeque<Lent>,
    receiving: VecDeque<Lent>,
    slots: [Vec<u64>; 2],
    received_there: usize,
    frame: Frame,
}

fn bytes(number: usize) -> ([u8; LONGEST], usize) {
    #[expect(clippy::cast_possible_truncation, reason = "a pattern of bytes")]
    let mut bytes = [number as u8; LONGEST];
    // Local experimental (IEEE 802).
    bytes[12..14].copy_from_slice(&[0x88, 0xb5]);
    bytes[14..18].copy_from_slice(&u32::try_from(number).unwrap().to_le_bytes());
    (bytes, 64 + number % (LONGEST - 64))
}

impl<'t> Traffic<'t> {
    fn new(pair: &'t mut Pair, plugged: &'t Plugged, trace: &'t Trace) -> Self {
        let slots = [(0..SLOTS / 2).collect(), (SLOTS / 2..SLOTS).collect()];
        Self {
            pair,
            plugged,
            trace,
            came: Vec::new(),
            back: 0,
            unread: 0,
            strange: 0,
            replaced: 0,
            missing: 0,
            safe: Vec::new(),
            sending: VecDeque::new(),
            receiving: VecDeque::new(),
            slots,
            received_there: 0,
            frame: Frame::default(),
        }
    }

    fn drops(&self) -> [usize; 2] {
        let count = |ring, cause| usize::try_from(self.trace.drops(ring, cause)).unwrap();
        [count(1, TxUnmapped), count(0, RxUnmapped)]
    }

    fn under_way(&self) -> usize {
        let gone = self.back + self.drops().iter().sum::<usize>();
        let gone = gone + self.unread + self.strange + self.missing;
        self.came.len().saturating_sub(gone)
    }

    /// Sends a burst, if there is room.
    fn send(&mut self) {
        for _ in 0..BURST.min(WINDOW.saturating_sub(self.under_way())) {
            let number = self.came.len();
            let sent = if number.is_multiple_of(FROM_PLUGGED) {
                self.send_from_plugged(number)
            } else {
                let (bytes, len) = bytes(number);
                self.pair.queue(&bytes[..len]).unwrap()
            };
            if sent {
                self.came.push(0);
            }
        }
        self.pair.flush().unwrap();
    }

    fn send_from_plugged(&mut self, number: usize) -> bool {
        let changes = self.plugged.now();
        let own = |this: &mut Self| {
            let (bytes, len) = bytes(number);
            this.pair.queue(&bytes[..len]).unwrap()
        };
        let Some(memory) = self.plugged.memory(changes) else { return own(self) };
        let Some(slot) = self.slots[0].pop() else { return own(self) };
        let (bytes, len) = bytes(number);
        let header = self.pair.header_len();
        let address = PLUGGED.address + slot * SLOT;
        memory.guest().write(address + header as u64, &bytes[..len]).unwrap();
        let buffer = readable(address, u32::try_from(header + len).unwrap());
        let offered = self.pair.transmit_ring().offer_foreign(&[buffer]);
        if offered {
            self.sending.push_back(Lent { slot, changes, number });
        } else {
            self.slots[0].push(slot);
        }
        offered
    }

    /// Has a frame received in plugged memory, if there is any.
    fn lend(&mut self) {
        let changes = self.plugged.now();
        if self.plugged.memory(changes).is_none() || self.receiving.len() > BURST {
            return;
        }
        let Some(slot) = self.slots[1].pop() else { return };
        let buffer: Buffer = writable(PLUGGED.address + slot * SLOT, 2048);
        let ring: &mut Ring = self.pair.receive_ring();
        if ring.offer_foreign(&[buffer]) {
            ring.publish();
            ring.kick().unwrap();
            self.receiving.push_back(Lent { slot, changes, number: 0 });
        } else {
            self.slots[1].push(slot);
        }
    }

    /// Takes the frames that came, and the buffers of those that were sent. Returns whether any came.
    fn take(&mut self) -> bool {
        let before = self.back;
        let mut frame = std::mem::take(&mut self.frame);
        while self.pair.receive_into(&mut frame).unwrap() {
            self.count(&frame.bytes);
        }
        self.frame = frame;
        for used in self.pair.receive_ring().foreign_used() {
            // Chains come back in order.
            let lent = self.receiving.pop_front().expect("it was offered");
            self.slots[1].push(lent.slot);
            if used.len > 0 {
                let memory = self.plugged.memory(lent.changes).unwrap();
                let mut bytes = vec![0; used.len as usize];
                memory.guest().read(PLUGGED.address + lent.slot * SLOT, &mut bytes).unwrap();
                // Written after other memory was plugged in there, it is in that.
                if self.plugged.now() == lent.changes {
                    self.count(&bytes[self.pair.header_len()..]);
                    self.received_there += 1;
                    self.plugged.used.fetch_add(1, Ordering::Relaxed);
                } else {
                    self.unread += 1;
                }
            }
        }
        self.pair.reap().unwrap();
        for _ in self.pair.transmit_ring().foreign_used() {
            let lent = self.sending.pop_front().expect("it was offered");
            self.slots[0].push(lent.slot);
            if self.plugged.now() == lent.changes {
                self.safe.push(lent.number);
                self.plugged.used.fetch_add(1, Ordering::Relaxed);
            } else {
                self.replaced += 1;
            }
        }
        self.back > before
    }

    fn count(&mut self, came: &[u8]) {
        let number = u32::from_le_bytes(came[14..18].try_into().unwrap()) as usize;
        let (expected, len) = bytes(number);
        match self.came.get_mut(number) {
            Some(times @ 0) if *came == expected[..len] => {
                *times = 1;
                self.back += 1;
            }
            _ => self.strange += 1,
        }
    }

    /// Sends and receives for this time, and then takes what is left.
    fn run(&mut self, time: Duration) {
        let (begun, mut progress) = (Instant::now(), Instant::now());
        while begun.elapsed() < time || progress.elapsed() < QUIET || self.under_way() > 0 {
            if begun.elapsed() < time {
                self.send();
                self.lend();
            }
            if self.take() {
                progress = Instant::now();
            } else if progress.elapsed() > LOST_AFTER {
                self.missing += self.under_way();
            }
        }
    }

    fn lost(&self, numbers: impl Iterator<Item = usize>) -> usize {
        numbers.filter(|&number| self.came[number] == 0).count()
    }
}

fn expect_no_mapping(daemon: &Daemon) {
    eventually(SOON, "the daemon to unmap what was taken away", || {
        let maps = std::fs::read_to_string(format!("/proc/{}/maps", daemon.pid())).unwrap();
        when(!maps.contains(FILE), maps)
    });
}

fn scene(kind: Kind, mirror: &Mirror, options: GuestOptions) {
    let directory = tempfile::tempdir().unwrap();
    let datapath = ["--datapath", mirror.datapath()];
    let mut daemon = Daemon::start_limited(directory.path(), "vm0", &datapath).unwrap();
    let trace = Trace::open(directory.path(), "vm0");
    // Three descriptors for each receive chain, or one with indirect tables: then there is room for others.
    let options = GuestOptions { receive_pieces: 3, ..options.mergeable(false) };
    let mut guest = Guest::connect(daemon.socket(), options).unwrap();
    let packed = guest.features().packed();
    let (plugged, stop) = (Plugged::new(), AtomicBool::new(false));
    let time = Duration::from_secs(seconds());
    let (link, own, pairs) = guest.parts().unwrap();
    let mut traffic = Traffic::new(&mut pairs[0], &plugged, &trace);
    thread::scope(|scope| {
        scope.spawn(|| plugged.keep_changing(link, own, &stop));
        let _stop = SetOnDrop(&stop);
        traffic.run(time);
    });
    let [tx, rx] = traffic.drops();
    let sent = traffic.came.len();
    let lost = traffic.lost(0..sent);
    let Traffic { missing, strange, unread, replaced, .. } = traffic;
    let lost_in_vain = traffic.lost(traffic.safe.iter().copied());
    let (safe, received) = (traffic.safe.len(), traffic.received_there);
    println!(
        "{kind}, packed {packed}: {} changes of memory and {sent} frames in {time:?}, {safe} sent from memory that came \
         and {received} received in it; {lost} lost, {tx} and {rx} in memory that was taken away, {strange} in memory that \
         was replaced, {missing} missing",
        plugged.now(),
    );
    // There its socket is made again for each change, and the frames in it are lost.
    if kind != Kind::AfXdpFromGuest {
        assert_eq!(missing, 0);
        assert!(lost <= tx + rx + unread + strange && lost_in_vain <= rx + unread);
    }
    assert!(strange <= replaced, "{strange} strange frames, {replaced} buffers");
    assert!(plugged.now() > 4 && safe > 0 && received > 0, "{}", daemon.log());
    expect_no_mapping(&daemon);
    frames::come_back(&mut guest).unwrap();
    assert!(daemon.is_alive(), "{}", daemon.log());
}

#[test]
fn regions_come_and_go_under_load_and_no_frame_is_lost_but_those_in_them() {
    for kind in Kind::ALL {
        // The wire stays: to make one takes longer than the test.
        let mirror = Mirror::new(kind);
        for packed in [false, true] {
            scene(kind, &mirror, GuestOptions::default().packed(packed));
        }
    }
}
