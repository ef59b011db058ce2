//! The system calls by which frames pass a queue: what a queue needs of them.

use std::fs::File;
use std::io;

use guest_memory::GuestSlice;
use virtio_net::{Frames, GuestRoom};

use crate::{Look, Transmitted};

/// Writes frames to the kernel and reads them from it.
pub trait Engine: Send + 'static {
    /// Whether each frame is a call of its own.
    const IS_BY_FRAME: bool;

    /// Writes frames, in order.
    fn transmit(&mut self, file: &File, frames: Frames<'_, '_>) -> Transmitted;

    /// Reads frames into the guest's buffers.
    ///
    /// # Errors
    /// As [`Datapath::receive`](crate::Datapath::receive).
    fn receive(&mut self, file: &File, room: &mut GuestRoom<'_, '_>) -> io::Result<Look>;

    /// Reads one frame into our own memory.
    ///
    /// # Errors
    /// As [`FrameReader::receive_frame`](crate::FrameReader::receive_frame).
    fn receive_frame(&mut self, file: &File, to: GuestSlice<'_>) -> io::Result<Option<usize>>;

    /// Whether there are frames that were read and not placed yet.
    fn has_frames(&self) -> bool {
        false
    }

    /// Takes the frames that were read and not placed.
    fn take_read(&mut self) -> Vec<Vec<u8>> {
        Vec::new()
    }

    /// Discards the frames that were read and not placed: another guest is connected now, or the same one
    /// with other features.
    fn reset(&mut self) {}
}
