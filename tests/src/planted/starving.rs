//! A guest in software that can stop posting receive buffers.

use std::path::Path;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::thread::{JoinHandle, sleep, spawn};
use std::time::Duration;

use frontend::{Guest, GuestOptions};

use super::undo::Undo;
use crate::beside::run_on;
use crate::frames;
use crate::qemu::Failure;

/// Descriptors of each ring: few, so that they run out soon.
const SIZE: u16 = 16;
/// Time from frame to frame.
const PERIOD: Duration = Duration::from_micros(1006);
/// The same while all buffers are being used up.
const SOON: Duration = Duration::from_micros(50);

/// A thread that plays the guest: it sends frames, and takes those that come back.
#[derive(Debug)]
pub struct StarvingGuest {
    is_starving: Arc<AtomicBool>,
    is_over: Arc<AtomicBool>,
    thread: Option<JoinHandle<()>>,
}

impl StarvingGuest {
    /// Connects to the daemon, and plays on this CPU.
    ///
    /// # Errors
    /// If the daemon does not serve it.
    pub fn connect(socket: &Path, cpu: usize) -> Result<Self, Failure> {
        let guest = Guest::connect(socket, GuestOptions::default().queue_size(SIZE))?;
        let [is_starving, is_over] = [(); 2].map(|()| Arc::new(AtomicBool::new(false)));
        let (starving, over) = (Arc::clone(&is_starving), Arc::clone(&is_over));
        let thread = spawn(move || {
            run_on(cpu);
            if let Err(error) = play(guest, &starving, &over) {
                eprintln!("the guest in software has ended: {error}");
            }
        });
        Ok(Self { is_starving, is_over, thread: Some(thread) })
    }

    /// Posts no buffers until it is undone.
    pub fn starve(&self) -> Undo {
        self.is_starving.store(true, Ordering::Relaxed);
        let is_starving = Arc::clone(&self.is_starving);
        Undo::new(move || {
            is_starving.store(false, Ordering::Relaxed);
            Ok(())
        })
    }
}

fn play(
    mut guest: Guest,
    is_starving: &AtomicBool,
    is_over: &AtomicBool,
) -> Result<(), frontend::Error> {
    let (pair, frame) = (guest.pair(0), frames::frame(0, 100));
    while !is_over.load(Ordering::Relaxed) {
        if is_starving.load(Ordering::Relaxed) {
            // One for each buffer, and one that waits. Frames on their way have buffers already: they are taken first.
            sleep(PERIOD);
            while pair.receive()?.is_some() {}
            for _ in 0..=SIZE {
                pair.reap()?;
                pair.send(&frame)?;
                sleep(SOON);
            }
            while is_starving.load(Ordering::Relaxed) {
                sleep(SOON);
            }
        }
        while pair.receive()?.is_some() {}
        pair.reap()?;
        pair.send(&frame)?;
        sleep(PERIOD);
    }
    Ok(())
}

impl Drop for StarvingGuest {
    fn drop(&mut self) {
        self.is_starving.store(false, Ordering::Relaxed);
        self.is_over.store(true, Ordering::Relaxed);
        // A panic there was reported.
        let _ = self.thread.take().map(JoinHandle::join);
    }
}
