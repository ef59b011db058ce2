//! A ring as the framework sees it. Every setter goes on to our [`RingControl`]. The framework's own state (a
//! `virtio-queue` queue) only gets what the framework needs for its answers.

use std::cell::RefCell;
use std::collections::VecDeque;
use std::fs::File;
use std::io;
use std::sync::{Arc, MutexGuard};

use vhost_user_backend::{VringMutex, VringState, VringStateGuard, VringStateMutGuard, VringT};
use virtio_queue::Error;
use vm_memory::{GuestMemoryAtomic, GuestMemoryMmap};

use crate::ring::RingControl;

/// The framework's memory, without dirty tracking.
pub type Memory = GuestMemoryAtomic<GuestMemoryMmap<()>>;

thread_local! {
    /// The rings of the connection that this thread is setting up. The framework makes one [`Vring`] for each, in this
    /// order, but does not say for which ring. So each [`Vring`] takes the next ring of this list.
    static NEXT: RefCell<VecDeque<Arc<RingControl>>> = const { RefCell::new(VecDeque::new()) };
}

/// Hands `rings` over to the framework, which makes one [`Vring`] for each of them within `make`.
pub fn with_rings<T>(rings: &[Arc<RingControl>], make: impl FnOnce() -> T) -> T {
    NEXT.with_borrow_mut(|next| *next = rings.iter().cloned().collect());
    let made = make();
    NEXT.with_borrow_mut(VecDeque::clear);
    made
}

/// A ring as the framework sees it.
#[derive(Clone)]
pub struct Vring {
    state: VringMutex<Memory>,
    control: Arc<RingControl>,
}

impl<'a> VringStateGuard<'a, Memory> for Vring {
    type G = MutexGuard<'a, VringState<Memory>>;
}

impl<'a> VringStateMutGuard<'a, Memory> for Vring {
    type G = MutexGuard<'a, VringState<Memory>>;
}

impl VringT<Memory> for Vring {
    fn new(memory: Memory, max_queue_size: u16) -> Result<Self, Error> {
        let control = NEXT.with_borrow_mut(VecDeque::pop_front);
        Ok(Self {
            state: VringMutex::new(memory, max_queue_size)?,
            control: control.ok_or(Error::QueueNotReady)?,
        })
    }

    fn get_ref(&self) -> <Self as VringStateGuard<'_, Memory>>::G {
        self.state.get_ref()
    }

    fn get_mut(&self) -> <Self as VringStateMutGuard<'_, Memory>>::G {
        self.state.get_mut()
    }

    // The worker adds used entries, signals, and enables notifications. The framework never does.

    fn add_used(&self, _: u16, _: u32) -> Result<(), Error> {
        Err(Error::QueueNotReady)
    }

    fn signal_used_queue(&self) -> io::Result<()> {
        Err(io::ErrorKind::Unsupported.into())
    }

    fn enable_notification(&self) -> Result<bool, Error> {
        Err(Error::QueueNotReady)
    }

    fn disable_notification(&self) -> Result<(), Error> {
        Err(Error::QueueNotReady)
    }

    fn needs_notification(&self) -> Result<bool, Error> {
        Err(Error::QueueNotReady)
    }

    fn read_kick(&self) -> io::Result<bool> {
        Ok(false)
    }

    fn set_enabled(&self, enabled: bool) {
        self.state.set_enabled(enabled);
        self.control.set_enabled(enabled);
    }

    fn set_queue_info(&self, desc_table: u64, avail: u64, used: u64) -> Result<(), Error> {
        self.state.set_queue_info(desc_table, avail, used)?;
        self.control.set_addresses([desc_table, avail, used]);
        Ok(())
    }

    fn queue_next_avail(&self) -> u16 {
        self.control.next_available()
    }

    fn set_queue_next_avail(&self, base: u16) {
        self.control.set_next_available(base);
    }

    fn set_queue_next_used(&self, _: u16) {
        // When the ring starts, the engine reads the used index from guest memory.
    }

    fn queue_used_idx(&self) -> Result<u16, Error> {
        self.state.queue_used_idx()
    }

    fn set_queue_size(&self, num: u16) {
        if num.is_power_of_two() {
            // The framework's own queue is a split ring, which has no other size.
            self.state.set_queue_size(num);
        }
        self.control.set_size(num);
    }

    fn set_queue_event_idx(&self, enabled: bool) {
        self.state.set_queue_event_idx(enabled);
    }

    fn set_queue_ready(&self, ready: bool) {
        if !ready {
            self.control.stop();
        }
    }

    fn set_kick(&self, file: Option<File>) {
        self.control.set_kick(file);
    }

    fn set_call(&self, file: Option<File>) {
        self.control.set_call(file);
    }

    fn set_err(&self, file: Option<File>) {
        self.control.set_error(file);
    }
}
