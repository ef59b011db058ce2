//! A burst of frames with one system call (`io_uring_enter`).
//!
//! The writes of a burst are one chain of linked requests: they go one after the other, and those behind one that
//! fails are not tried, so order stays, and of a tap that takes no more it is a prefix that was taken. Reads go to
//! memory of ours, because a guest's buffers can only be chosen when the frame before has its own; from there each
//! frame is copied to where it belongs.
#![allow(unsafe_code, reason = "the kernel reads and writes memory by address")]

use std::fs::File;
use std::io;
use std::os::fd::AsRawFd as _;

use burst_trace::DropCause;
use guest_memory::GuestSlice;
use io_uring::squeue::{Entry, Flags};
use io_uring::{IoUring, opcode, types};
use virtio_net::features::HEADER_LEN;
use virtio_net::{BURST_MAX, FRAME_LEN_MAX, Frame, Frames, GuestRoom, Placed};

use super::TapError;
use super::queue::{Engine, RECEIVE_BURST, Readv, TapQueue};
use crate::{Look, Refusal, Transmitted};

/// Of a file that does not block, io_uring waits all the same, where it can.
const DO_NOT_WAIT: i32 = libc::RWF_NOWAIT;
/// A frame with its header.
const SLOT_BYTES: usize = HEADER_LEN + FRAME_LEN_MAX;

/// The engine `uring`.
pub struct Uring {
    ring: Requests,
    /// Room for a frame each.
    slots: Vec<Box<[u8]>>,
    /// The frames that were read and are not placed yet: their slots and lengths.
    read: Vec<(usize, usize)>,
    /// How many of them are placed.
    placed: usize,
    /// How many reads are tried together.
    ahead: usize,
    /// Frames that were read for another guest than the one that is there now.
    stale: usize,
}

impl Uring {
    /// Has a queue go through a ring of its own.
    ///
    /// # Errors
    /// When the system gives none.
    pub fn open(queue: TapQueue) -> Result<TapQueue<Self>, TapError> {
        let engine = Self::new(queue.file()).map_err(TapError::NoUring)?;
        Ok(queue.with_engine(engine))
    }

    fn new(file: &File) -> io::Result<Self> {
        let ring = Requests::new(file)?;
        // Pages that no frame ever reaches are never used.
        let slots = (0..RECEIVE_BURST).map(|_| vec![0; SLOT_BYTES].into_boxed_slice()).collect();
        let read = Vec::with_capacity(RECEIVE_BURST);
        Ok(Self { ring, slots, read, placed: 0, ahead: 1, stale: 0 })
    }

    const fn waiting(&self) -> usize {
        self.read.len() - self.placed
    }

    /// Reads frames: more than last time if they were all there, else one more than there were. Returns whether there
    /// may be more of them. There are none waiting before.
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
                // One that came in between is the next one's.
                Err(_) if result == -libc::EAGAIN => is_empty = true,
                Err(_) => failed = Some(io::Error::from_raw_os_error(-result)),
            }
        }
        let came = self.read.len();
        self.ahead = if is_empty { came + 1 } else { 2 * came.max(1) }.min(RECEIVE_BURST);
        match failed {
            // What was read comes first; the error comes again.
            Some(error) if came == 0 => Err(error),
            _ => Ok(!is_empty),
        }
    }

    /// Places the frames that wait, as far as there is room.
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

/// Writes `bytes` to the run that `list` makes. Returns how many there were.
fn spread(list: &[GuestSlice<'_>], bytes: &[u8]) -> usize {
    let mut rest = bytes;
    for slice in list {
        rest = &rest[slice.write(0, rest)..];
    }
    bytes.len()
}

impl Engine for Uring {
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
                    // The one before it failed: its turn is in the next chain.
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
                // The last of them, unless the guest has no room for them.
                let placed = self.place(room)?;
                let all = placed == Placed::Done;
                return Ok(if all { Look::Drained } else { Look::More });
            }
        }
    }

    fn receive_frame(&mut self, file: &File, to: GuestSlice<'_>) -> io::Result<Option<usize>> {
        let Some(&(slot, len)) = self.read.get(self.placed) else {
            // Nothing is read ahead for a switch: it has the header's length changed between two frames.
            return Readv.receive_frame(file, to);
        };
        self.placed += 1;
        Ok(Some(to.write(0, &self.slots[slot][..len])))
    }

    fn has_frames(&self) -> bool {
        self.waiting() > 0
    }
}

/// A ring of requests that are all done with when [`Requests::run`] returns.
struct Requests {
    ring: IoUring,
    file: types::Fd,
    /// What became of each of them.
    results: [i32; BURST_MAX],
}

impl Requests {
    #[expect(clippy::cast_possible_truncation, reason = "BURST_MAX is 64")]
    fn new(file: &File) -> io::Result<Self> {
        let size = BURST_MAX as u32;
        // Without an interrupt for a thread that comes for its completions anyway (Linux 5.19).
        let ring = IoUring::builder().setup_coop_taskrun().build(size);
        let ring = ring.or_else(|_| IoUring::new(size))?;
        // Not registered with the ring, which would let go of it some time after its own end: whoever opens the tap
        // next would find it busy.
        let file = types::Fd(file.as_raw_fd());
        Ok(Self { ring, file, results: [0; BURST_MAX] })
    }

    /// Asks for `frame` to be written, and the request behind it to wait for that.
    fn write(&mut self, n: usize, frame: &Frame<'_, '_>, is_last: bool) {
        let list = GuestSlice::as_iovecs(frame.slices());
        #[expect(clippy::cast_possible_truncation, reason = "at most 1023")]
        let request = opcode::Writev::new(self.file, list.as_ptr(), list.len() as u32);
        let flags = if is_last { Flags::empty() } else { Flags::IO_LINK };
        self.push(n, request.rw_flags(DO_NOT_WAIT).build().flags(flags));
    }

    /// Asks for a frame to be read to `slot`.
    fn read(&mut self, n: usize, slot: &mut [u8]) {
        #[expect(clippy::cast_possible_truncation, reason = "a frame is below 2^17 bytes")]
        let len = slot.len() as u32;
        let request = opcode::Read::new(self.file, slot.as_mut_ptr(), len);
        self.push(n, request.rw_flags(DO_NOT_WAIT).build());
    }

    fn push(&mut self, n: usize, request: Entry) {
        let request = request.user_data(n as u64);
        // SAFETY: what the request points to is borrowed by the caller (frames) or its own (slots) until `run` has
        // returned, which it does only when every request is done with.
        let pushed = unsafe { self.ring.submission().push(&request) };
        debug_assert!(
            pushed.is_ok(),
            "at most BURST_MAX requests, and none before the last ones are done"
        );
    }

    /// Submits the `count` requests that were pushed, and waits for all of them: nothing may refer to frames or
    /// slots afterwards. None of them waits for anything.
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
                    // Requests may be under way, with addresses that are soon somebody else's.
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
