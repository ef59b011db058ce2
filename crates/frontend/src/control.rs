//! Commands on the control queue (virtio 1.2, 5.1.6.5).

use std::time::{Duration, Instant};

use crate::{Error, Guest, Ring};

/// Longest wait for the answer to a command.
const PATIENCE: Duration = Duration::from_secs(5);
/// What the room for an answer has before the device writes it.
const UNWRITTEN: u8 = 0xa5;

impl Guest {
    /// The control queue, if the guest has one.
    pub const fn control(&mut self) -> Option<&mut Ring> {
        self.control.as_mut()
    }

    /// Sends a command, class and number included, and waits for the answer: `VIRTIO_NET_OK` is 0, `VIRTIO_NET_ERR` is 1.
    ///
    /// # Errors
    /// As [`command_in`](Self::command_in), and when the device wrote no answer.
    pub fn command(&mut self, command: &[u8]) -> Result<u8, Error> {
        let (head, value) = command.split_at(command.len().min(2));
        let answer = self.command_in(&[head, value], 1)?;
        answer.first().copied().ok_or_else(|| Error::Options("the device wrote no answer".into()))
    }

    /// Sends a chain of these readable pieces, and room of `room` bytes for the answer if that is not 0. Returns what was
    /// written.
    ///
    /// # Errors
    /// When there is no control queue, the chain does not come back in time, or the back end misbehaves.
    pub fn command_in(&mut self, pieces: &[&[u8]], room: u32) -> Result<Vec<u8>, Error> {
        let memory = self.memory.guest();
        let ring = self.control.as_mut();
        let ring = ring.ok_or_else(|| Error::Options("there is no control queue".into()))?;
        let mut chain = Vec::new();
        for piece in pieces {
            #[expect(clippy::cast_possible_truncation, reason = "no longer than a buffer")]
            let buffer = ring.take_buffer(piece.len() as u32, false).expect("a free buffer");
            memory.write(buffer.address, piece)?;
            chain.push(buffer);
        }
        if room > 0 {
            let answer = ring.take_buffer(room, true).expect("a free buffer");
            memory.write(answer.address, &vec![UNWRITTEN; room as usize])?;
            chain.push(answer);
        }
        ring.offer(chain);
        ring.publish();
        ring.kick()?;
        let until = Instant::now() + PATIENCE;
        let used = loop {
            // Chains that a test offered itself come back before it.
            if let Some(used) = ring.next_used()? {
                break used;
            }
            if !ring.wait_call(until.saturating_duration_since(Instant::now()))? {
                return Err(Error::Options("a command did not come back".into()));
            }
        };
        let mut written = vec![0; used.len as usize];
        if let Some(answer) = used.buffers.iter().find(|buffer| buffer.writable) {
            memory.read(answer.address, &mut written)?;
        }
        ring.recycle(used);
        Ok(written)
    }
}
