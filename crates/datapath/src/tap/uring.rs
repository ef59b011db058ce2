//! Reads or writes a burst of frames with one system call (`io_uring_enter`).
//!
//! The writes of a burst are one chain of linked requests. The kernel runs them one after the other, and after one that
//! fails it cancels the rest. So the frames stay in order, and a tap that accepts no more has taken a prefix of them.
//! Reads go to our own memory, because a guest's buffers can only be chosen once the frame before has its buffers. From
//! there each frame is copied to the guest's buffers.
#![allow(unsafe_code, reason = "the kernel reads and writes memory by address")]

use std::fs::File;
use std::io;
use std::os::fd::AsRawFd as _;

use burst_trace::DropCause;
use guest_memory::GuestSlice;
use io_uring::register::Restriction;
use io_uring::squeue::{Entry, Flags};
use io_uring::{IoUring, opcode, types};
use virtio_net::features::HEADER_LEN;
use virtio_net::{BURST_MAX, FRAME_LEN_MAX, Frame, Frames, GuestRoom, Placed};

use super::TapError;
use super::engine::Engine;
use super::queue::{RECEIVE_BURST, Readv, TapQueue};
use crate::{Look, Refusal, Transmitted};

/// Without this flag io_uring waits where it can, even for a non-blocking file.
const DO_NOT_WAIT: i32 = libc::RWF_NOWAIT;
/// Bytes of the longest frame with its header.
const SLOT_BYTES: usize = HEADER_LEN + FRAME_LEN_MAX;

/// The engine `uring`.
pub struct Uring {
    ring: Requests,
    /// Each has room for one frame.
    slots: Vec<Box<[u8]>>,
    /// The frames that were read and are not placed yet: their slots and lengths.
    read: Vec<(usize, usize)>,
    /// Number of them that are placed.
    placed: usize,
    /// Number of reads to submit together.
    ahead: usize,
    /// Number of frames that were read for an earlier guest than the present one.
    stale: usize,
}

impl Uring {
    /// Gives a queue its own ring.
    ///
    /// # Errors
    /// When the system refuses the ring.
    pub fn open(queue: TapQueue) -> Result<TapQueue<Self>, TapError> {
        let engine = Self::new(queue.file()).map_err(TapError::NoUring)?;
        Ok(queue.with_engine(engine))
    }

    fn new(file: &File) -> io::Result<Self> {
        let ring = Requests::new(file)?;
        // Pages that no frame reaches are never touched, so they take no memory.
        let slots = (0..RECEIVE_BURST).map(|_| vec![0; SLOT_BYTES].into_boxed_slice()).collect();
        let read = Vec::with_capacity(RECEIVE_BURST);
        Ok(Self { ring, slots, read, placed: 0, ahead: 1, stale: 0 })
    }

    const fn waiting(&self) -> usize {
        self.read.len() - self.placed
    }

    /// Reads frames, when none are waiting. If every read found a frame, the next call reads twice as many; else it
    /// reads one more than there were. Returns whether there may be more frames.
    fn read(&mut self) -> io::Result<bool> {
        self.read.clear();
        self.placed = 0;
        let wanted = self.ahead;
        for (n, slot) in self.slots[..wanted].iter_mut().enumerate() {
            self.ring.read(n, slot);
        }
        let results = self.ring.run(wanted);
        let (mut failed, mut is_empty) = (None, false);
        for (n, &result) in results.iter().enumerate() {
            match usize::try_from(result) {
                Ok(len) => self.read.push((n, len)),
                // A frame may still arrive between this read and the next, which then gets it.
                Err(_) if result == -libc::EAGAIN => is_empty = true,
                Err(_) => failed = Some(io::Error::from_raw_os_error(-result)),
            }
        }
        let came = self.read.len();
        self.ahead = if is_empty { came + 1 } else { 2 * came.max(1) }.min(RECEIVE_BURST);
        match failed {
            // The frames that were read are placed first. The error will occur again.
            Some(error) if came == 0 => Err(error),
            _ => Ok(!is_empty),
        }
    }

    /// Places the waiting frames, as far as there is room.
    fn place(&mut self, room: &mut GuestRoom<'_, '_>) -> io::Result<Placed> {
        if room.place_waiting() == Placed::NoRoom {
            return Ok(Placed::NoRoom);
        }
        while let Some(&(slot, len)) = self.read.get(self.placed) {
            let mut taken = false;
            let placed = room.scatter(|list| {
                taken = true;
                Ok(spread(list, &self.slots[slot][..len]))
            })?;
            self.placed += usize::from(taken);
            if placed == Placed::NoRoom {
                return Ok(Placed::NoRoom);
            }
        }
        Ok(Placed::Done)
    }
}

/// Writes `bytes` across the slices of `list`. Returns the length of `bytes`.
fn spread(list: &[GuestSlice<'_>], bytes: &[u8]) -> usize {
    let mut rest = bytes;
    for slice in list {
        rest = &rest[slice.write(0, rest)..];
    }
    bytes.len()
}

impl Engine for Uring {
    const IS_BY_FRAME: bool = false;

    fn take_read(&mut self) -> Vec<Vec<u8>> {
        let waiting = self.read.drain(..).skip(std::mem::take(&mut self.placed));
        waiting.map(|(slot, len)| self.slots[slot][..len].to_vec()).collect()
    }

    fn reset(&mut self) {
        self.stale += self.waiting();
        self.read.clear();
        self.placed = 0;
    }

    fn transmit(&mut self, _file: &File, frames: Frames<'_, '_>) -> Transmitted {
        let mut done = Transmitted::default();
        while done.taken < frames.len() {
            let before = done.taken;
            let rest = frames.skip(before);
            for (n, frame) in rest.iter().enumerate() {
                self.ring.write(n, &frame, n + 1 == rest.len());
            }
            for (frame, &result) in rest.iter().zip(self.ring.run(rest.len())) {
                match result {
                    #[expect(
                        clippy::cast_possible_truncation,
                        reason = "a frame is below 2^17 bytes"
                    )]
                    0.. => done.bytes += frame.len() as u32,
                    // The frame before it failed, so this one goes into the next chain.
                    _ if result == -libc::ECANCELED => break,
                    _ => match Refusal::of(&io::Error::from_raw_os_error(-result)) {
                        Refusal::Later => return done,
                        Refusal::Lost(cause) => done.drops.add(cause),
                    },
                }
                done.taken += 1;
            }
            if done.taken == before {
                break;
            }
        }
        done
    }

    fn receive(&mut self, _file: &File, room: &mut GuestRoom<'_, '_>) -> io::Result<Look> {
        for _ in 0..std::mem::take(&mut self.stale) {
            room.lose(DropCause::RxStopped);
        }
        let before = room.frames();
        loop {
            if self.place(room)? == Placed::NoRoom || room.frames() >= before + RECEIVE_BURST {
                return Ok(Look::More);
            }
            if !self.read()? {
                // These are the last frames, unless the guest has no room for them.
                let placed = self.place(room)?;
                let all = placed == Placed::Done;
                return Ok(if all { Look::Drained } else { Look::More });
            }
        }
    }

    fn receive_frame(&mut self, file: &File, to: GuestSlice<'_>) -> io::Result<Option<usize>> {
        let Some(&(slot, len)) = self.read.get(self.placed) else {
            // For a switch nothing is read ahead, because it may change the header length between two frames.
            return Readv.receive_frame(file, to);
        };
        self.placed += 1;
        Ok(Some(to.write(0, &self.slots[slot][..len])))
    }

    fn has_frames(&self) -> bool {
        self.waiting() > 0
    }
}

/// A ring whose requests are all complete when [`Requests::run`] returns.
struct Requests {
    ring: IoUring,
    file: types::Fd,
    /// The result of each request.
    results: [i32; BURST_MAX],
}

impl Requests {
    #[expect(clippy::cast_possible_truncation, reason = "BURST_MAX is 64")]
    fn new(file: &File) -> io::Result<Self> {
        let size = BURST_MAX as u32;
        // Completions do not interrupt the thread, which waits for them anyway (Linux 5.19).
        let ring = IoUring::builder().setup_r_disabled().setup_coop_taskrun().build(size);
        let ring = ring.or_else(|_| IoUring::builder().setup_r_disabled().build(size))?;
        // No filter of system calls sees what a ring is asked for: it could open files. So it takes nothing but what is asked for
        // here (Linux 5.10).
        let mut allowed = [
            Restriction::sqe_op(opcode::Read::CODE),
            Restriction::sqe_op(opcode::Writev::CODE),
            Restriction::sqe_flags_allowed(Flags::IO_LINK.bits()),
        ];
        ring.submitter().register_restrictions(&mut allowed)?;
        ring.submitter().register_enable_rings()?;
        // The file is not registered with the ring. The ring would release it some time after its own end, and a
        // process that opens the tap next would find it busy.
        let file = types::Fd(file.as_raw_fd());
        Ok(Self { ring, file, results: [0; BURST_MAX] })
    }

    /// Adds a request to write `frame`. The request after it waits for this one, unless this is the last.
    fn write(&mut self, n: usize, frame: &Frame<'_, '_>, is_last: bool) {
        let list = GuestSlice::as_iovecs(frame.slices());
        #[expect(clippy::cast_possible_truncation, reason = "at most 1023")]
        let request = opcode::Writev::new(self.file, list.as_ptr(), list.len() as u32);
        let flags = if is_last { Flags::empty() } else { Flags::IO_LINK };
        self.push(n, request.rw_flags(DO_NOT_WAIT).build().flags(flags));
    }

    /// Adds a request to read a frame into `slot`.
    fn read(&mut self, n: usize, slot: &mut [u8]) {
        #[expect(clippy::cast_possible_truncation, reason = "a frame is below 2^17 bytes")]
        let len = slot.len() as u32;
        let request = opcode::Read::new(self.file, slot.as_mut_ptr(), len);
        self.push(n, request.rw_flags(DO_NOT_WAIT).build());
    }

    fn push(&mut self, n: usize, request: Entry) {
        let request = request.user_data(n as u64);
        // SAFETY: the memory that the request points to is borrowed by the caller (frames) or owned by it (slots) until
        // `run` has returned, and `run` returns only when every request is complete.
        let pushed = unsafe { self.ring.submission().push(&request) };
        debug_assert!(
            pushed.is_ok(),
            "at most BURST_MAX requests, and none before the last ones are done"
        );
    }

    /// Submits the `count` requests that were pushed, and waits until all are complete: no request may refer to frames
    /// or slots afterwards. No request waits for anything (`DO_NOT_WAIT`).
    fn run(&mut self, count: usize) -> &[i32] {
        let mut left = count;
        while left > 0 {
            match self.ring.submit_and_wait(left) {
                Ok(_) => {}
                Err(error)
                    if matches!(
                        error.raw_os_error(),
                        Some(libc::EINTR | libc::EAGAIN | libc::EBUSY | libc::ENOMEM)
                    ) =>
                {
                    std::thread::yield_now();
                }
                Err(error) => {
                    // Requests may still be in progress, with addresses of memory that is soon used for something else.
                    log::error!("io_uring_enter: {error}");
                    std::process::abort();
                }
            }
            for completion in self.ring.completion() {
                #[expect(clippy::cast_possible_truncation, reason = "below BURST_MAX")]
                let n = completion.user_data() as usize;
                self.results[n] = completion.result();
                left -= 1;
            }
        }
        &self.results[..count]
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use guest_memory::Spare;
    use std::os::fd::OwnedFd;
    use std::os::unix::net::UnixDatagram;

    #[test]
    fn a_ring_opens_no_files() {
        let file = File::open("/dev/null").unwrap();
        let mut requests = Requests::new(&file).unwrap();
        let path = c"/dev/null";
        let request = opcode::OpenAt::new(types::Fd(libc::AT_FDCWD), path.as_ptr()).build();
        requests.push(0, request);
        assert_eq!(requests.run(1), [-libc::EACCES]);
    }

    #[test]
    fn a_frame_alone_does_not_overtake_those_that_were_read_before() {
        let (ours, theirs) = UnixDatagram::pair().unwrap();
        ours.set_nonblocking(true).unwrap();
        let file = File::from(OwnedFd::from(ours));
        let mut engine = Uring::new(&file).unwrap();
        let to = Spare::new(SLOT_BYTES);
        let next = |engine: &mut Uring| {
            let len = engine.receive_frame(&file, to.slice()).unwrap()?;
            let mut bytes = vec![0; len];
            to.slice().read(0, &mut bytes);
            Some(bytes)
        };
        engine.ahead = 2;
        for frame in ["one", "second", "3"] {
            theirs.send(frame.as_bytes()).unwrap();
        }
        assert!(engine.read().unwrap());
        assert_eq!(engine.waiting(), 2);
        for frame in ["one", "second", "3"] {
            assert_eq!(next(&mut engine), Some(frame.as_bytes().to_vec()));
        }
        assert_eq!((next(&mut engine), engine.has_frames()), (None, false));
    }
}
