//! A worker's thread: started, spoken to, ended.

use std::io;
use std::sync::Arc;
use std::sync::mpsc::sync_channel;
use std::thread::{Builder, JoinHandle};
use std::time::Duration;

use burst_trace::Direction;
use confine::Role;
use datapath::{Datapath, Forward, FrameReader};

use crate::clock::Clock;
use crate::mailbox::{Inbox, Mailbox};
use crate::options::{GuestOptions, WorkerOptions};
use crate::pairs::Pairs;
use crate::topology::Topology;
use crate::topology::reflect::Reflected;
use crate::topology::switch::{Member, Switch};
use crate::topology::wire::Wire;
use crate::turn::Loop;

/// A worker's thread, from the outside. Ends the thread when dropped.
#[derive(Debug)]
pub struct Worker {
    inbox: Arc<Inbox>,
    /// One a guest.
    mailboxes: Vec<Arc<Mailbox>>,
    thread: Option<JoinHandle<()>>,
    tid: u32,
}

impl Worker {
    /// Starts a worker that serves `pairs` of one guest: queue pair numbers with their datapaths.
    ///
    /// # Errors
    /// When the system refuses the thread, its epoll instance, or its scheduling.
    pub fn spawn<D: Datapath>(
        options: WorkerOptions,
        mut guest: GuestOptions,
        pairs: Vec<(u16, D)>,
        clock: burst_trace::Clock,
    ) -> io::Result<Self> {
        let numbers = pairs.iter().map(|(number, _)| *number);
        let (served, wire) = (pairs_of(&guest, numbers), Wire::new(&mut guest, pairs));
        Self::spawn_joined(options, wire, vec![guest], served, clock.into())
    }

    /// Starts a worker that carries the frames of one guest back to it: queue pair numbers, each with what carries its
    /// frames.
    ///
    /// # Errors
    /// As [`spawn`](Self::spawn).
    pub fn spawn_reflect<F: Forward>(
        options: WorkerOptions,
        mut guest: GuestOptions,
        pairs: Vec<(u16, F)>,
        clock: burst_trace::Clock,
    ) -> io::Result<Self> {
        let numbers = pairs.iter().map(|(number, _)| *number);
        let (served, mirrors) = (pairs_of(&guest, numbers), Reflected::new(&mut guest, pairs));
        Self::spawn_joined(options, mirrors, vec![guest], served, clock.into())
    }

    /// Starts a worker that joins all queue pairs of several guests, and perhaps one queue of a datapath as their
    /// uplink, by a learning switch. Each guest is a port of it, in the order given. `is_heir`: all of that comes from another
    /// daemon, so nothing is carried before [`Mailbox::go_on`].
    ///
    /// # Errors
    /// As [`spawn`](Self::spawn).
    pub fn spawn_switch<U: FrameReader>(
        options: WorkerOptions,
        guests: Vec<(GuestOptions, Member)>,
        uplink: Option<U>,
        is_heir: bool,
        clock: burst_trace::Clock,
    ) -> io::Result<Self> {
        let clock = Clock::from(clock);
        let mut pairs = Pairs::default();
        for (number, (guest, member)) in guests.iter().enumerate() {
            (0..member.queue_pairs).for_each(|pair| push(&mut pairs, number, guest, pair));
        }
        let (guests, members): (Vec<_>, Vec<_>) = guests.into_iter().unzip();
        let switch = Switch::new(&members, uplink, &clock);
        let switch = if is_heir { switch.coming() } else { switch };
        Self::spawn_joined(options, switch, guests, pairs, clock)
    }

    pub(crate) fn spawn_joined<T: Topology>(
        options: WorkerOptions,
        topology: T,
        guests: Vec<GuestOptions>,
        pairs: Pairs,
        clock: Clock,
    ) -> io::Result<Self> {
        let inbox = Arc::new(Inbox::new()?);
        let mailbox = |guest| Arc::new(Mailbox::new(Arc::clone(&inbox), guest));
        let mailboxes = (0..guests.len()).map(mailbox).collect();
        let (ready, is_ready) = sync_channel(1);
        let inside = Arc::clone(&inbox);
        let name = format!("worker-{}", options.index);
        let thread = Builder::new().name(name).spawn(move || {
            let _watched = options.alarm.watch();
            let _closed_at_the_end = CloseAtTheEnd(Arc::clone(&inside));
            match Loop::new(&options, topology, guests, pairs, clock, inside) {
                Ok(mut work) => {
                    let _ = ready.send(Ok(rustix::thread::gettid()));
                    confine::enter(Role::Worker(options.wire));
                    work.run();
                }
                Err(error) => {
                    let _ = ready.send(Err(error));
                }
            }
        })?;
        let started = is_ready.recv().unwrap_or_else(|_| Err(io::ErrorKind::Other.into()));
        let mut worker = Self { inbox, mailboxes, thread: Some(thread), tid: 0 };
        started.map(|tid| {
            worker.tid = tid.as_raw_nonzero().get().unsigned_abs();
            worker
        })
    }

    /// The kernel's number of its thread, as in `gettid(2)`.
    #[must_use]
    pub const fn tid(&self) -> u32 {
        self.tid
    }

    /// The mailbox of guest number `guest`, in the order they were given.
    ///
    /// # Panics
    /// When there is no such guest.
    #[must_use]
    pub fn mailbox(&self, guest: usize) -> &Arc<Mailbox> {
        &self.mailboxes[guest]
    }
}

impl Drop for Worker {
    fn drop(&mut self) {
        self.inbox.end();
        while self.thread.as_ref().is_some_and(|thread| !thread.is_finished()) {
            self.inbox.interrupt();
            std::thread::sleep(Duration::from_millis(1));
        }
        if let Some(thread) = self.thread.take()
            && thread.join().is_err()
        {
            log::error!("a worker ended by a fault of its own; see the message above");
        }
    }
}

/// Closes the inbox however the worker's thread ends, so that nobody waits for it.
struct CloseAtTheEnd(Arc<Inbox>);

impl Drop for CloseAtTheEnd {
    fn drop(&mut self) {
        self.0.close();
    }
}

/// The queue pairs of one guest with these numbers.
pub(crate) fn pairs_of(guest: &GuestOptions, numbers: impl Iterator<Item = u16>) -> Pairs {
    let mut pairs = Pairs::default();
    numbers.for_each(|pair| push(&mut pairs, 0, guest, pair));
    pairs
}

/// Adds queue pair number `pair` of guest number `number`.
fn push(pairs: &mut Pairs, number: usize, guest: &GuestOptions, pair: u16) {
    pairs.push(number, &guest.log, &guest.probes, pair);
    let [to_guest, from_guest] = &guest.limits;
    pairs.set_limit(number, Direction::Rx, to_guest.as_ref());
    pairs.set_limit(number, Direction::Tx, from_guest.as_ref());
}
