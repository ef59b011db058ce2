//! A queue pair: frames out and in.

use std::sync::Arc;
use std::time::Duration;

use guest_memory::GuestMemory;
use virtio_net::Negotiated;
use virtio_net::features::NUM_BUFFERS;
use virtqueue::driver::Buffer;

use crate::memory::SharedMemory;
use crate::ring::UsedChain;
use crate::{Error, Ring};

/// Receive buffers are offered again when this many have come back.
const REFILL: u16 = 16;

/// A frame that was received.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Frame {
    /// Its net header: 10 or 12 bytes.
    pub header: Vec<u8>,
    /// The frame itself.
    pub bytes: Vec<u8>,
    /// Number of receive chains that it came in.
    pub buffers: u16,
}

impl Frame {
    /// `num_buffers` of the header; `None` if it has no such field.
    #[must_use]
    pub fn num_buffers(&self) -> Option<u16> {
        let field = self.header.get(NUM_BUFFERS..NUM_BUFFERS + 2)?;
        Some(u16::from_le_bytes([field[0], field[1]]))
    }
}

/// A queue pair.
#[derive(Debug)]
pub struct Pair {
    memory: Arc<GuestMemory>,
    receive: Ring,
    transmit: Ring,
    header_len: usize,
    mergeable: bool,
    pieces: u16,
    refill: u16,
    /// Receive chains that are free and not offered.
    idle: u16,
}

impl Pair {
    pub(crate) fn new(
        memory: &Arc<GuestMemory>,
        features: Negotiated,
        receive: Ring,
        transmit: Ring,
        pieces: u16,
    ) -> Self {
        let mut pair = Self {
            memory: Arc::clone(memory),
            receive,
            transmit,
            header_len: features.header_len(),
            mergeable: features.mergeable(),
            pieces,
            refill: 0,
            idle: 0,
        };
        pair.all_idle();
        pair
    }

    /// The receive ring.
    pub const fn receive_ring(&mut self) -> &mut Ring {
        &mut self.receive
    }

    /// The transmit ring.
    pub const fn transmit_ring(&mut self) -> &mut Ring {
        &mut self.transmit
    }

    /// Both rings, the receive ring first.
    pub(crate) fn rings(&mut self) -> [&mut Ring; 2] {
        [&mut self.receive, &mut self.transmit]
    }

    /// Length of the net header before each frame.
    #[must_use]
    pub const fn header_len(&self) -> usize {
        self.header_len
    }

    /// Sends a frame with an empty net header, and kicks if it is wanted. Returns whether there was room.
    ///
    /// # Errors
    /// When the back end misbehaves or the system refuses.
    pub fn send(&mut self, frame: &[u8]) -> Result<bool, Error> {
        let queued = self.queue(frame)?;
        self.flush()?;
        Ok(queued)
    }

    /// Puts a frame with an empty net header in the ring: header and frame in one buffer, as far as they fit. Returns whether
    /// there was room; [`flush`](Self::flush) publishes it.
    ///
    /// # Errors
    /// When the back end misbehaves.
    pub fn queue(&mut self, frame: &[u8]) -> Result<bool, Error> {
        let mut bytes = vec![0; self.header_len];
        bytes.extend_from_slice(frame);
        self.queue_chain(&[&bytes])
    }

    /// Sends a frame as a chain of these pieces, the net header among them. Kicks if it is wanted.
    /// Returns whether there was room.
    ///
    /// # Errors
    /// When the chain is too long for the ring, the back end misbehaves or the system refuses.
    pub fn send_chain(&mut self, header: &[u8], pieces: &[&[u8]]) -> Result<bool, Error> {
        let mut all = vec![header];
        all.extend_from_slice(pieces);
        let queued = self.queue_chain(&all)?;
        self.flush()?;
        Ok(queued)
    }

    /// Puts a chain of these pieces in the ring, one descriptor each or more where a piece is longer than
    /// a buffer. Returns whether there was room; [`flush`](Self::flush) publishes it.
    ///
    /// # Errors
    /// When the chain is too long for the ring, or the back end misbehaves.
    pub fn queue_chain(&mut self, pieces: &[&[u8]]) -> Result<bool, Error> {
        let room = self.transmit.buffers().len() as usize;
        // A piece of no bytes has a descriptor all the same.
        let count: usize = pieces.iter().map(|piece| piece.len().div_ceil(room).max(1)).sum();
        let size = usize::from(self.transmit.driver().setup().size);
        if count > size {
            return Err(Error::ChainTooLong { pieces: count, size });
        }
        if !self.transmit.has_room(count) {
            self.reap()?;
            if !self.transmit.has_room(count) {
                return Ok(false);
            }
        }
        let mut chain = Vec::with_capacity(count);
        for piece in pieces {
            let (first, rest) = piece.split_at(piece.len().min(room));
            for part in std::iter::once(first).chain(rest.chunks(room)) {
                #[expect(clippy::cast_possible_truncation, reason = "no longer than a buffer")]
                let len = part.len() as u32;
                let buffer = self.transmit.take_buffer(len, false).expect("room for the chain");
                self.memory.write(buffer.address, part)?;
                chain.push(buffer);
            }
        }
        self.transmit.offer(chain);
        Ok(true)
    }

    /// Publishes all queued frames, and kicks the back end if it needs that.
    ///
    /// # Errors
    /// When the system refuses.
    pub fn flush(&mut self) -> Result<(), Error> {
        self.transmit.publish();
        self.transmit.kick()
    }

    /// Takes back the buffers of sent frames. Returns the number of frames.
    ///
    /// # Errors
    /// When the back end misbehaves.
    pub fn reap(&mut self) -> Result<usize, Error> {
        let mut count = 0;
        while let Some(chain) = self.transmit.next_used()? {
            self.transmit.recycle(chain);
            count += 1;
        }
        Ok(count)
    }

    /// Offers all free receive buffers, and kicks if it is wanted.
    ///
    /// # Errors
    /// When the system refuses.
    pub fn refill(&mut self) -> Result<(), Error> {
        self.refill = 0;
        if self.idle == 0 {
            return Ok(());
        }
        let len = self.receive.buffers().len();
        for _ in 0..std::mem::take(&mut self.idle) {
            let take = |_| self.receive.take_buffer(len, true).expect("a free buffer");
            let chain: Vec<Buffer> = (0..self.pieces).map(take).collect();
            self.receive.offer(chain);
        }
        self.receive.publish();
        self.receive.kick()
    }

    /// Takes the next frame that was received, if there is one.
    ///
    /// # Errors
    /// When the back end misbehaves or the system refuses.
    pub fn receive(&mut self) -> Result<Option<Frame>, Error> {
        let mut frame = Frame::default();
        Ok(self.receive_into(&mut frame)?.then_some(frame))
    }

    /// Takes the next frame into `frame`, and reuses its memory. Returns whether there was one.
    ///
    /// # Errors
    /// When the back end misbehaves or the system refuses.
    pub fn receive_into(&mut self, frame: &mut Frame) -> Result<bool, Error> {
        frame.header.clear();
        frame.bytes.clear();
        frame.buffers = 1;
        let first = loop {
            match self.receive.next_used()? {
                // Given back without a frame: counted by the ring.
                Some(chain) if chain.len == 0 => self.took(chain)?,
                Some(chain) => break chain,
                None => {
                    self.refill()?;
                    return Ok(false);
                }
            }
        };
        let len = first.len;
        self.append(frame, first)?;
        if frame.bytes.len() < self.header_len {
            return Err(Error::NoHeader { len, header: self.header_len });
        }
        frame.header.extend(frame.bytes.drain(..self.header_len));
        let said = if self.mergeable { frame.num_buffers().unwrap_or(1) } else { 1 };
        while frame.buffers < said {
            let found = frame.buffers;
            let next = self.receive.next_used()?.ok_or(Error::NumBuffers { said, found })?;
            self.append(frame, next)?;
            frame.buffers += 1;
        }
        if said == 0 {
            return Err(Error::NumBuffers { said, found: 1 });
        }
        Ok(true)
    }

    /// Takes the next frame, waiting for it asleep. `None` when none came in time.
    ///
    /// # Errors
    /// When the back end misbehaves or the system refuses.
    pub fn receive_within(&mut self, timeout: Duration) -> Result<Option<Frame>, Error> {
        let frame = self.receive()?;
        if frame.is_some() || !self.receive.wait_call(timeout)? {
            return Ok(frame);
        }
        self.receive()
    }

    /// Checks every byte between the buffers of both rings.
    ///
    /// # Errors
    /// With the first byte that changed.
    pub fn check_canaries(&self) -> Result<(), Error> {
        self.receive.buffers().check_canaries()?;
        self.transmit.buffers().check_canaries()
    }

    /// After a reset: all receive chains are free.
    pub(crate) fn all_idle(&mut self) {
        let size = self.receive.driver().setup().size;
        self.idle = size / self.pieces;
        self.refill = 0;
    }

    /// Resets ring `index`, one of the two.
    pub(crate) fn reset_ring(&mut self, index: u16, memory: &SharedMemory) {
        if index.is_multiple_of(2) {
            self.receive.reset(memory);
            self.all_idle();
        } else {
            self.transmit.reset(memory);
        }
    }

    fn append(&mut self, frame: &mut Frame, chain: UsedChain) -> Result<(), Error> {
        let mut left = chain.len as usize;
        for buffer in &chain.buffers {
            let count = left.min(buffer.len as usize);
            let at = frame.bytes.len();
            frame.bytes.resize(at + count, 0);
            self.memory.read(buffer.address, &mut frame.bytes[at..])?;
            left -= count;
        }
        self.took(chain)
    }

    fn took(&mut self, chain: UsedChain) -> Result<(), Error> {
        self.receive.recycle(chain);
        self.idle += 1;
        self.refill += 1;
        let size = self.receive.driver().setup().size;
        if self.refill >= REFILL.min(size / self.pieces / 4).max(1) {
            self.refill()?;
        }
        Ok(())
    }
}
