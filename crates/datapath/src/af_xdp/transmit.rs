//! From guest memory into the transmit ring.

use arrayvec::ArrayVec;
use burst_trace::DropCause;
use rustix::io::Errno;
use virtio_net::{Finish, Frame, NetHeader};

use super::socket::{PARTS_MAX, Socket};
use crate::Transmitted;

/// The longest link header, bytes: with two tags.
const LINK_HEADER_MAX: usize = 14 + 8;

/// What became of a frame.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Queued {
    /// It is in the ring, or refused and counted.
    Done,
    /// There is no room for it, or for the rest of its segments.
    Full,
}

impl Socket {
    /// Puts a frame with this net header into the transmit ring.
    #[inline]
    pub fn queue(
        &mut self,
        header: &NetHeader,
        frame: &Frame<'_, '_>,
        done: &mut Transmitted,
    ) -> Queued {
        if header.is_plain() {
            self.queue_plain(frame, done)
        } else {
            self.queue_unfinished(header, frame, done)
        }
    }

    #[inline]
    fn queue_plain(&mut self, frame: &Frame<'_, '_>, done: &mut Transmitted) -> Queued {
        let len = frame.len();
        if len > self.umem.chunk() as usize || len > self.frame_len_max() {
            return self.queue_unfinished(&NetHeader::PLAIN, frame, done);
        }
        if self.transmit.room(1) == 0 {
            return Queued::Full;
        }
        let Some(offset) = self.umem.take() else { return Queued::Full };
        #[expect(clippy::cast_possible_truncation, reason = "at most a chunk")]
        let len = len as u32;
        if let Some(to) = self.umem.slice(offset, len) {
            frame.copy_to_run(&[to]);
        }
        self.transmit.push(Self::descriptor(offset, len, false));
        done.bytes += len;
        Queued::Done
    }

    /// Puts what is to become of a frame into the transmit ring: the frame with its checksum, its segments, or
    /// a frame that takes several chunks.
    #[inline(never)]
    fn queue_unfinished(
        &mut self,
        header: &NetHeader,
        frame: &Frame<'_, '_>,
        done: &mut Transmitted,
    ) -> Queued {
        let mut finish = match Finish::plan_frame(header, frame) {
            Ok(finish) if finish.next_len() <= self.frame_len_max() => finish,
            Ok(_) => {
                done.drops.add(DropCause::TxTooLong);
                return Queued::Done;
            }
            Err(cause) => {
                done.drops.add(cause);
                return Queued::Done;
            }
        };
        let from = frame.slices();
        let all = finish.count();
        // Those that found room the last time this frame was here.
        finish.skip(from, std::mem::take(&mut self.begun));
        while finish.count() > 0 {
            if !self.queue_next(&mut finish, frame) {
                self.begun = all - finish.count();
                return Queued::Full;
            }
        }
        #[expect(clippy::cast_possible_truncation, reason = "a frame is below 2^17 bytes")]
        {
            done.bytes += frame.len() as u32;
        }
        Queued::Done
    }

    /// Puts the next frame that `finish` makes into the ring. Returns whether there was room.
    fn queue_next(&mut self, finish: &mut Finish, frame: &Frame<'_, '_>) -> bool {
        #[expect(clippy::cast_possible_truncation, reason = "at most the MTU and a link header")]
        let len = finish.next_len() as u32;
        let chunk = self.umem.chunk();
        let count = len.div_ceil(chunk);
        if self.transmit.room(count) < count || self.umem.free() < count as usize {
            return false;
        }
        let mut parts = ArrayVec::<_, PARTS_MAX>::new();
        for n in 0..count {
            let Some(offset) = self.umem.take() else { break };
            parts.push((offset, chunk.min(len - n * chunk)));
        }
        let slices: ArrayVec<_, PARTS_MAX> =
            parts.iter().filter_map(|&(offset, len)| self.umem.slice(offset, len)).collect();
        finish.write_next(frame.slices(), &slices, 0);
        for (n, &(offset, len)) in parts.iter().enumerate() {
            let goes_on = n + 1 < parts.len();
            self.transmit.push(Self::descriptor(offset, len, goes_on));
        }
        true
    }

    /// The longest frame that the interface sends, bytes. The kernel would drop longer ones without a word.
    #[inline]
    const fn frame_len_max(&self) -> usize {
        let len = self.mtu as usize + LINK_HEADER_MAX;
        if self.multi_buffer || len < self.umem.chunk() as usize {
            len
        } else {
            self.umem.chunk() as usize
        }
    }

    /// Has the kernel send what is in the transmit ring, as far as it takes it now; `unsent` says whether that
    /// was not all.
    ///
    /// # Errors
    /// `ENETDOWN` when the interface is down, `ENXIO` when it is gone.
    #[inline]
    pub fn flush(&mut self) -> Result<(), Errno> {
        if self.need_wakeup && !self.transmit.needs_wakeup() {
            self.unsent = false;
            return Ok(());
        }
        let mut left = self.transmit.left();
        let result = loop {
            let kicked = self.kick();
            let now = self.transmit.left();
            let progress = now < left;
            left = now;
            match kicked {
                // A call takes so many frames at a time.
                Ok(()) | Err(Errno::AGAIN | Errno::INTR) if progress && now > 0 => {}
                Ok(()) | Err(Errno::AGAIN | Errno::BUSY | Errno::NOBUFS | Errno::INTR) => {
                    break Ok(());
                }
                Err(error) => break Err(error),
            }
        };
        self.unsent = left > 0;
        result
    }

    /// The ring or the chunks are used up: shows the kernel what there is, and takes back what it has sent. Returns
    /// whether that made room.
    ///
    /// # Errors
    /// As [`flush`](Self::flush).
    #[cold]
    pub fn make_room(&mut self) -> Result<bool, Errno> {
        let before = self.umem.free();
        self.transmit.publish();
        self.flush()?;
        self.reap();
        Ok(self.umem.free() > before)
    }

    /// Takes back the chunks of frames that were sent.
    #[inline]
    pub fn reap(&mut self) {
        let count = self.completion.look();
        for ahead in 0..count {
            let offset = self.completion.peek(ahead);
            self.umem.give_back(self.umem.chunk_of(offset));
        }
        if count > 0 {
            self.completion.skip(count);
            self.completion.release();
        }
    }
}
