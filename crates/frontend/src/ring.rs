//! One ring of a pair: driver, kick and call, counters.

use std::collections::VecDeque;
use std::time::{Duration, Instant};

use virtio_net::Negotiated;
use virtqueue::driver::{Buffer, Driver, Returned, RingOptions};
use virtqueue::layout::DESCRIPTOR_LEN;
use vmm_sys_util::eventfd::EventFd;

use crate::buffers::Buffers;
use crate::memory::SharedMemory;
use crate::signal::{Signal, eventfd};
use crate::{Error, GuestOptions};

/// The most descriptors of an indirect table; longer chains are direct.
const TABLE_MAX: usize = 64;
/// Longest delivery time of a signal.
const GRACE: Duration = Duration::from_millis(50);

/// Counts of events on a ring.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Counters {
    /// Chains offered.
    pub offered: u64,
    /// Chains that came back.
    pub used: u64,
    /// Writable chains that came back with length 0.
    pub unwritten: u64,
    /// Times the back end was kicked.
    pub kicks: u64,
    /// Times a kick was not needed.
    pub kicks_saved: u64,
    /// Signals that came.
    pub calls: u64,
    /// Waits that timed out although chains had come back: a signal was due and did not come.
    pub calls_missed: u64,
}

/// A chain that came back.
#[derive(Debug)]
pub struct UsedChain {
    /// Its buffers.
    pub buffers: Vec<Buffer>,
    /// How many bytes the back end wrote.
    pub len: u32,
    table: Option<u64>,
}

#[derive(Debug, Default)]
struct Offered {
    buffers: Vec<Buffer>,
    table: Option<u64>,
}

/// One ring of a pair.
#[derive(Debug)]
pub struct Ring {
    index: u16,
    driver: Driver,
    /// Place and format of the driver, to lay it out again.
    address: u64,
    options: RingOptions,
    start: u16,
    base: u16,
    buffers: Buffers,
    /// Indirect tables that are not in use; none without the feature.
    tables: Vec<u64>,
    /// By id: chains that the back end has.
    offered: Vec<Offered>,
    /// By id: chains of buffers that are not the ring's own.
    foreign: Vec<u16>,
    foreign_used: Vec<Returned>,
    /// Chains that had come back when the back end disconnected, and were not taken yet.
    left_over: VecDeque<Result<UsedChain, Error>>,
    /// Chains were published since the last check whether the back end needs a kick.
    unannounced: bool,
    pub(crate) kick: EventFd,
    pub(crate) call: Signal,
    pub(crate) err: Signal,
    counters: Counters,
}

impl Ring {
    /// Bytes of guest memory that a ring with these options needs, without its buffers.
    pub(crate) fn bytes(options: &GuestOptions, features: Negotiated) -> u64 {
        Driver::bytes(&options.ring(features))
            + u64::from(options.queue_size) * (TABLE_MAX * DESCRIPTOR_LEN) as u64
    }

    pub(crate) fn new(
        index: u16,
        memory: &mut SharedMemory,
        guest: &GuestOptions,
        features: Negotiated,
    ) -> Result<Self, Error> {
        let (options, start) = (guest.ring(features), guest.start_position(features));
        let size = options.size;
        let address = memory.allocate(Driver::bytes(&options))?;
        let mut tables = Vec::new();
        if options.indirect {
            let len = (TABLE_MAX * DESCRIPTOR_LEN) as u64;
            let base = memory.allocate(u64::from(size) * len)?;
            tables = (0..u64::from(size)).rev().map(|n| base + n * len).collect();
        }
        Ok(Self {
            index,
            driver: Driver::new(memory.guest(), address, options, start),
            address,
            options,
            start,
            base: start,
            buffers: Buffers::new(memory, size.into(), guest.buffer_len, guest.canary_len)?,
            tables,
            offered: (0..size).map(|_| Offered::default()).collect(),
            foreign: Vec::new(),
            foreign_used: Vec::new(),
            left_over: VecDeque::new(),
            unannounced: false,
            kick: eventfd()?,
            call: Signal::new()?,
            err: Signal::new()?,
            counters: Counters::default(),
        })
    }

    /// The ring's index in vhost-user messages.
    #[must_use]
    pub const fn index(&self) -> u16 {
        self.index
    }

    /// The counts so far.
    #[must_use]
    pub const fn counters(&self) -> Counters {
        self.counters
    }

    /// The position where the back end continues: the available index of a split ring, slot and wrap counter (bit 15) of a
    /// packed one.
    #[must_use]
    pub const fn base(&self) -> u16 {
        self.base
    }

    /// The ring's buffers.
    #[must_use]
    pub const fn buffers(&self) -> &Buffers {
        &self.buffers
    }

    /// The driver itself, for hostile guests. Chains that are offered through it also come back through it.
    pub const fn driver(&mut self) -> &mut Driver {
        &mut self.driver
    }

    /// Whether there is room for a chain of this many buffers.
    #[must_use]
    pub fn has_room(&self, buffers: usize) -> bool {
        let descriptors = if self.goes_indirect(buffers) { 1 } else { buffers };
        self.driver.free() >= descriptors && self.buffers.free() >= buffers
    }

    /// Takes one of the ring's buffers, for `len` bytes.
    pub(crate) fn take_buffer(&mut self, len: u32, writable: bool) -> Option<Buffer> {
        self.buffers.take(len, writable)
    }

    /// Offers a chain. The caller has checked that there is room; [`publish`](Self::publish) publishes it.
    pub(crate) fn offer(&mut self, buffers: Vec<Buffer>) {
        let table = if self.goes_indirect(buffers.len()) { self.tables.pop() } else { None };
        let id = match table {
            Some(table) => self.driver.add_indirect(&buffers, table),
            None => self.driver.add(&buffers),
        };
        let id = id.expect("room for the chain");
        self.offered[usize::from(id)] = Offered { buffers, table };
        self.counters.offered += 1;
    }

    /// Offers a chain of any buffers, as a hostile guest does. Such chains come back in
    /// [`foreign_used`](Self::foreign_used). Returns whether there was room.
    pub fn offer_foreign(&mut self, buffers: &[Buffer]) -> bool {
        let id = self.driver.add(buffers);
        self.foreign.extend(id);
        id.is_some()
    }

    /// Takes the chains of foreign buffers that have come back.
    pub fn foreign_used(&mut self) -> Vec<Returned> {
        std::mem::take(&mut self.foreign_used)
    }

    /// Publishes the offered chains.
    pub fn publish(&mut self) {
        self.driver.publish();
        self.unannounced = true;
    }

    /// Kicks the back end if chains were published since the last kick and it needs one.
    ///
    /// # Errors
    /// When the system refuses.
    pub fn kick(&mut self) -> Result<(), Error> {
        if std::mem::take(&mut self.unannounced) {
            if self.driver.needs_notification() {
                self.kick_anyway()?;
            } else {
                self.counters.kicks_saved += 1;
            }
        }
        Ok(())
    }

    /// Kicks the back end, needed or not.
    ///
    /// # Errors
    /// When the system refuses.
    pub fn kick_anyway(&mut self) -> Result<(), Error> {
        self.counters.kicks += 1;
        self.kick.write(1).map_err(Error::system("kicking the back end"))
    }

    /// Takes the next chain that came back. Give it back to the ring when done, with
    /// [`recycle`](Self::recycle).
    ///
    /// # Errors
    /// When the back end returns a chain that it does not have.
    pub(crate) fn next_used(&mut self) -> Result<Option<UsedChain>, Error> {
        match self.left_over.pop_front() {
            Some(chain) => chain.map(Some),
            None => self.take_used(),
        }
    }

    fn take_used(&mut self) -> Result<Option<UsedChain>, Error> {
        let used = loop {
            let Some(used) = self.driver.used() else { return Ok(None) };
            match self.foreign.iter().position(|id| *id == used.id) {
                Some(at) => {
                    self.foreign.swap_remove(at);
                    self.foreign_used.push(used);
                }
                None => break used,
            }
        };
        let not_offered = Error::NotOffered { ring: self.index, head: used.id };
        let offered = match self.offered.get_mut(usize::from(used.id)) {
            Some(offered) if !offered.buffers.is_empty() => std::mem::take(offered),
            _ => return Err(not_offered),
        };
        self.counters.used += 1;
        let room = offered.buffers.iter().filter(|b| b.writable).map(|b| b.len).sum();
        if used.len > room {
            return Err(Error::UsedTooLong { ring: self.index, len: used.len, room });
        }
        if used.len == 0 && room > 0 {
            self.counters.unwritten += 1;
        }
        Ok(Some(UsedChain { buffers: offered.buffers, len: used.len, table: offered.table }))
    }

    fn has_used(&self) -> bool {
        !self.left_over.is_empty() || self.driver.has_used()
    }

    /// Frees a chain's buffers.
    pub(crate) fn recycle(&mut self, chain: UsedChain) {
        chain.buffers.iter().for_each(|buffer| self.buffers.give_back(buffer));
        self.tables.extend(chain.table);
    }

    /// Sleeps until the back end signals that a chain has come back. Returns whether one has.
    ///
    /// # Errors
    /// When the system refuses.
    pub fn wait_call(&mut self, timeout: Duration) -> Result<bool, Error> {
        let until = Instant::now() + timeout;
        loop {
            self.driver.enable_notification();
            if self.has_used() {
                break;
            }
            let left = until.saturating_duration_since(Instant::now());
            let mut signalled = self.call.wait(left)?;
            if !signalled && self.has_used() {
                // It may have come at the very end: then its signal is under way.
                signalled = self.call.wait(GRACE)?;
                self.counters.calls_missed += u64::from(!signalled);
            }
            self.drain_calls();
            if self.has_used() || left.is_zero() {
                break;
            }
        }
        self.driver.disable_notification();
        Ok(self.has_used())
    }

    /// Counts the signals that nobody waited for. Returns the total number.
    pub fn drain_calls(&mut self) -> u64 {
        self.counters.calls += self.call.take();
        self.counters.calls
    }

    /// Whether the back end signals, within this time, that it stopped serving the ring (error descriptor).
    ///
    /// # Errors
    /// When the system refuses.
    pub fn gave_up(&self, timeout: Duration) -> Result<bool, Error> {
        Ok(self.err.wait(timeout)? && self.err.take() > 0)
    }

    /// The back end stopped at this position.
    pub(crate) const fn stopped_at(&mut self, base: u16) {
        self.base = base;
    }

    /// The back end disconnected without a message: it continues after the last used chain. Where that is, a
    /// packed ring shows only when all that came back was taken.
    pub(crate) fn abandoned(&mut self) {
        while let Some(chain) = self.take_used().transpose() {
            self.left_over.push_back(chain);
        }
        self.base = self.driver.position();
    }

    /// Says less than the guest knows ([`GuestOptions::forgetful`]).
    pub(crate) const fn forget_position(&mut self) {
        self.base = if self.options.packed { self.start } else { 0 };
    }

    /// Starts again, as after a reboot: no chain is offered, all buffers are free.
    pub(crate) fn reset(&mut self, memory: &SharedMemory) {
        self.driver = Driver::new(memory.guest(), self.address, self.options, self.start);
        self.base = self.start;
        self.unannounced = false;
        self.foreign.clear();
        for chain in std::mem::take(&mut self.left_over).into_iter().flatten() {
            self.recycle(chain);
        }
        for offered in &mut self.offered {
            let Offered { buffers, table } = std::mem::take(offered);
            buffers.iter().for_each(|buffer| self.buffers.give_back(buffer));
            self.tables.extend(table);
        }
    }

    fn goes_indirect(&self, buffers: usize) -> bool {
        buffers > 1 && buffers <= TABLE_MAX && !self.tables.is_empty()
    }
}
