//! What the control plane asks of a worker: rings start and stop, and their memory changes.

use std::io;
use std::ops::ControlFlow;
use std::sync::Arc;
use std::time::Instant;

use burst_trace::{DropCause, DropCounts, Step};
use guest_memory::GuestMemory;
use virtio_net::{MacAddress, Negotiated};

use crate::heritage::Heritage;
use crate::mailbox::{Announced, Command, Released, RingStart, StartError};
use crate::ring::Ring;
use crate::topology::Topology;
use crate::turn::Loop;
use crate::view::View;

impl<T: Topology> Loop<T> {
    /// Does what the control plane asked for. Breaks when the worker is to end.
    #[cold]
    pub(crate) fn obey(&mut self) -> ControlFlow<()> {
        for (guest, command) in self.inbox.take() {
            match command {
                Command::Start { ring, start, done } => {
                    let at = self.pairs.find(guest, ring);
                    let started = at.ok_or(StartError::WorkerGone);
                    let _ = done.send(started.and_then(|at| self.start(at, ring, *start)));
                    self.rings_changed(at);
                }
                Command::Stop { ring, done } => {
                    let at = self.pairs.find(guest, ring);
                    let _ = done.send(at.and_then(|at| self.stop(at, ring)));
                    self.rings_changed(at);
                }
                Command::Release { ring, done } => {
                    let at = self.pairs.find(guest, ring);
                    let _ = done.send(at.map(|at| self.release(at, ring)));
                    self.rings_changed(at);
                }
                Command::Inherit { ring, heritage, done } => {
                    self.inherit(guest, ring, heritage);
                    let _ = done.send(());
                }
                Command::GoOn { is_over } => self.go_on(is_over),
                Command::Enable { ring, enabled, done } => {
                    let at = self.pairs.find(guest, ring);
                    at.into_iter().for_each(|at| self.enable(at, ring, enabled));
                    let _ = done.send(());
                    self.rings_changed(at);
                }
                Command::Renegotiate { ring, negotiated, done } => {
                    let at = self.pairs.find(guest, ring);
                    let _ = done.send(at.map_or(Ok(()), |at| self.renegotiate(at, negotiated)));
                    self.rings_changed(at);
                }
                Command::Call { ring, call, done } => {
                    if let Some(changed) = self.ring(guest, ring) {
                        let called = changed.change_call(call);
                        self.tracers[guest].notified(ring, called);
                    }
                    let _ = done.send(());
                }
                Command::Error { ring, error, done } => {
                    if let Some(ring) = self.ring(guest, ring) {
                        ring.set_error(error);
                    }
                    let _ = done.send(());
                }
                Command::DirtyLog { ring, dirty, done } => {
                    if let Some(ring) = self.ring(guest, ring) {
                        ring.set_dirty_log(dirty);
                    }
                    let _ = done.send(());
                }
                Command::Note { step } => self.tracers[guest].happened(step),
                Command::Announce { address, done } => {
                    let _ = done.send(self.announce(guest, address));
                }
                Command::Memory { memory, done } => {
                    let its = self.change_memory(guest, &memory);
                    let _ = done.send(());
                    its.into_iter().for_each(|at| self.rings_changed(Some(at)));
                }
                Command::Operator(request) => self.serve_operator(guest, request),
                Command::End => return ControlFlow::Break(()),
            }
        }
        self.check_mappings_if_torn();
        ControlFlow::Continue(())
    }

    /// A ring may have been started in memory that is torn already.
    fn check_mappings_if_torn(&mut self) {
        if self.generation > 0 {
            self.check_mappings();
        }
    }

    /// Checks all mappings after one was torn: guest memory, and recorders.
    #[cold]
    pub(crate) fn check_mappings(&mut self) {
        self.generation = guest_memory::generation();
        for at in 0..self.pairs.len() {
            let tracer = &mut self.tracers[self.pairs.guest(at)];
            let (tx, rx) = self.pairs.pair_mut(at);
            tracer.look_at_recorder(rx.log().prefix());
            if rx.break_if_torn(tracer) | tx.break_if_torn() {
                self.rings_changed(Some(at));
            }
        }
    }

    fn rings_changed(&mut self, at: Option<usize>) {
        if let Some(at) = at {
            let now = self.shared.clock.now();
            self.topology.rings_changed(at, &mut self.pairs, now);
        }
    }

    fn ring(&mut self, guest: usize, ring: u16) -> Option<&mut Ring> {
        let at = self.pairs.find(guest, ring)?;
        self.pairs.ring(at, ring).as_deref_mut()
    }

    fn is_transmit(&self, at: usize, ring: u16) -> bool {
        ring == self.pairs.transmitter(at).index()
    }

    /// Starts virtqueue `ring` of pair `at`.
    fn start(&mut self, at: usize, ring: u16, start: RingStart) -> Result<(), StartError> {
        self.stop(at, ring);
        self.topology.configure(at, start.negotiated).map_err(StartError::System)?;
        let (guest, alarm) = (self.pairs.guest(at), self.shared.sleeper.alarm());
        let (log, now) = (self.pairs.transmitter(at).log(), self.tracers[guest].stamp());
        let mut started = Ring::start(log, ring, start, alarm, now).map_err(StartError::Config)?;
        // The process that served the ring before may have ended between publishing and signalling.
        let called = started.signal();
        self.tracers[guest].notified(ring, called);
        let transmits = self.is_transmit(at, ring);
        if transmits {
            self.topology.attach(at, started.memory()).map_err(StartError::System)?;
        }
        // Last: the kick of a ring that is not served would keep waking the worker up, as long as any process has the
        // descriptor open.
        if let Err(error) = started.listen(guest, &self.shared.sleeper) {
            if transmits {
                self.topology.detach(at);
            }
            return Err(StartError::System(error));
        }
        let first = self.tracers[guest].ring_started(ring, started.again());
        self.pairs.count_from(at, ring, first);
        *self.pairs.ring(at, ring) = Some(Box::new(started));
        self.activate(at);
        Ok(())
    }

    /// Stops virtqueue `ring` of pair `at`. Returns the available index to go on from, if it was served.
    fn stop(&mut self, at: usize, ring: u16) -> Option<u16> {
        let stopped = if self.is_transmit(at, ring) {
            self.stop_transmitter(at)?
        } else {
            let tracer = &mut self.tracers[self.pairs.guest(at)];
            let stopped = self.pairs.receiver_mut(at).stop(&self.shared.sleeper, tracer)?;
            self.activate(at);
            stopped
        };
        self.tracers[self.pairs.guest(at)].happened(Step::RingStopped(ring));
        Some(stopped)
    }

    fn stop_transmitter(&mut self, at: usize) -> Option<u16> {
        let mut view = View { tracers: &mut self.tracers, shared: &self.shared };
        self.topology.settle(at, &mut self.pairs, &mut view);
        let stopped = self.pairs.transmitter_mut(at).stop(&self.shared.sleeper)?;
        self.topology.detach(at);
        Some(stopped)
    }

    /// All that comes from the daemon before is there.
    fn go_on(&mut self, is_over: bool) {
        let now = self.shared.clock.now();
        self.topology.go_on(is_over, &mut self.pairs, now);
    }

    /// What a ring that starts next had in the daemon before.
    fn inherit(&mut self, guest: usize, ring: u16, heritage: Heritage) {
        let Heritage { frames, addresses, uplink } = heritage;
        if let Some(at) = self.pairs.find(guest, ring) {
            self.pairs.receiver_mut(at).hold(frames);
            self.topology.inherit(at, &addresses, uplink, self.shared.clock.now());
        }
    }

    /// Stops virtqueue `ring` of pair `at`, which another daemon goes on with. The datapath stays active: its frames wait.
    fn release(&mut self, at: usize, ring: u16) -> Released {
        let mut heritage = self.topology.part(at, self.shared.clock.now());
        if self.is_transmit(at, ring) {
            // They are for the other ring.
            heritage.frames.clear();
            return Released { next_available: self.stop_transmitter(at), heritage };
        }
        let released = self.pairs.receiver_mut(at).release(&self.shared.sleeper);
        let (next_available, held) = released.unzip();
        // Those that were held came first.
        heritage.frames.splice(0..0, held.unwrap_or_default());
        Released { next_available, heritage }
    }

    /// Lets frames flow through virtqueue `ring` of pair `at`, or no longer.
    fn enable(&mut self, at: usize, ring: u16, enabled: bool) {
        let transmits = self.is_transmit(at, ring);
        if transmits && !enabled {
            let mut view = View { tracers: &mut self.tracers, shared: &self.shared };
            // The frames that are left are not sent any more. The datapath is needed again when the ring is enabled.
            if self.topology.settle(at, &mut self.pairs, &mut view) {
                self.attach_again(at);
            }
        }
        if let Some(ring) = self.pairs.ring(at, ring) {
            ring.set_enabled(enabled);
        }
        if !transmits && !enabled {
            let tracer = &mut self.tracers[self.pairs.guest(at)];
            self.pairs.receiver_mut(at).forget(tracer);
        }
        self.activate(at);
    }

    /// Changes the offloads that the guest of pair `at` takes. A frame that waits for buffers is dropped, because it may have
    /// an offload pending that the guest no longer takes.
    fn renegotiate(&mut self, at: usize, negotiated: Negotiated) -> io::Result<()> {
        if self.pairs.receiver(at).started().is_none() {
            return Ok(());
        }
        self.topology.configure(at, negotiated)?;
        let tracer = &mut self.tracers[self.pairs.guest(at)];
        let rx = self.pairs.receiver_mut(at);
        rx.forget(tracer);
        if let Some(ring) = rx.ring() {
            ring.set_negotiated(negotiated);
        }
        Ok(())
    }

    /// Moves all rings of `guest` to a new memory table. Returns its pairs.
    fn change_memory(&mut self, guest: usize, memory: &Arc<GuestMemory>) -> Vec<usize> {
        let its = |at: &usize| self.pairs.guest(*at) == guest;
        let its: Vec<_> = (0..self.pairs.len()).filter(its).collect();
        self.tracers[guest].memory_changed();
        its.iter().for_each(|&at| self.set_memory(at, memory));
        its
    }

    /// Moves the rings of pair `at` to a new memory table.
    fn set_memory(&mut self, at: usize, memory: &Arc<GuestMemory>) {
        let mut view = View { tracers: &mut self.tracers, shared: &self.shared };
        self.topology.settle(at, &mut self.pairs, &mut view);
        let (tx, rx) = self.pairs.pair_mut(at);
        rx.set_memory(memory);
        tx.set_memory(memory);
        if let Some(tx) = tx.ring() {
            self.topology.detach(at);
            if let Err(error) = self.topology.attach(at, memory) {
                tx.stop_broken(format_args!("its memory is new: {error}"));
            }
            self.activate(at);
        }
    }

    /// Has the guest's first pair that has a transmit ring send a frame that says where its address is now, unless many
    /// were sent just before.
    fn announce(&mut self, guest: usize, address: MacAddress) -> Announced {
        let can =
            |at: &usize| self.pairs.guest(*at) == guest && self.pairs.transmitter(*at).is_served();
        let Some(at) = (0..self.pairs.len()).find(can) else { return Announced::NotServed };
        if !self.paces[guest].pass(Instant::now()) {
            let drops = DropCounts::only(DropCause::TxFloodLimit, 1);
            self.tracers[guest].dropped(self.pairs.transmitter(at).index(), &drops);
            return Announced::TooMany;
        }
        let mut view = View { tracers: &mut self.tracers, shared: &self.shared };
        match self.topology.announce(at, address, &mut self.pairs, &mut view) {
            true => Announced::Carried,
            false => Announced::NotCarried,
        }
    }

    /// Attaches the datapath of pair `at` again, which was detached because frames could not be sent in time.
    fn attach_again(&mut self, at: usize) {
        let Some(tx) = self.pairs.transmitter_mut(at).ring() else { return };
        if let Err(error) = self.topology.attach(at, tx.memory()) {
            tx.stop_broken(format_args!("its frames could not be sent in time: {error}"));
        }
    }

    /// Reports to the topology whether the guest takes frames.
    fn activate(&mut self, at: usize) {
        let rx = self.pairs.receiver(at);
        let active = rx.is_served();
        if let Err(error) = self.topology.set_active(at, active) {
            let (pair, wanted) = (rx.index() / 2, if active { "attach" } else { "detach" });
            log_limit::warn!(rx.log(), "queue pair {pair}: the datapath did not {wanted}: {error}");
        }
    }
}
