//! Requests of the control plane to a worker, for one guest each.
//!
//! A request returns only after the worker has carried it out, between two bursts. When `stop` returns, the worker no
//! longer touches the ring, and the ring's position is exact.

use std::collections::VecDeque;
use std::io;
use std::sync::atomic::{AtomicBool, AtomicI32, Ordering};
use std::sync::mpsc::{RecvTimeoutError, SyncSender, sync_channel};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use burst_trace::Step;
use guest_memory::GuestMemory;
use ring_journal::Slot;
use virtio_net::{MacAddress, Negotiated};
use virtqueue::{ConfigError, QueueSetup, RingLog};
use vmm_sys_util::eventfd::EventFd;

use crate::alarm::PERIOD;
use crate::custody::Foreign;
use crate::heritage::Heritage;
use crate::operator::{Request, Setting, Standing};
use crate::sys;

/// Longest wait for an answer. A worker answers between two bursts, so only a worker that hangs takes longer.
const PATIENCE: Duration = Duration::from_secs(10);
/// Longest wait for an answer after the daemon was asked to end.
const PATIENCE_AT_THE_END: Duration = Duration::from_millis(200);
/// Longest wait for an answer to the operator, whose next request waits meanwhile.
const PATIENCE_OF_THE_OPERATOR: Duration = Duration::from_secs(1);

/// What a worker needs to serve a ring.
#[derive(Debug)]
pub struct RingStart {
    /// The ring's addresses in memory, and the available index from which it goes on.
    pub setup: QueueSetup,
    /// The guest's memory.
    pub memory: Arc<GuestMemory>,
    /// Where pages that it writes are marked, if the front end logs.
    pub dirty: Option<RingLog>,
    /// The negotiated features.
    pub negotiated: Negotiated,
    /// Readable when the guest added chains; `None` when the front end asks for polling.
    pub kick: Option<Arc<Foreign>>,
    /// Written to signal the guest that chains are used; `None` when the guest polls.
    pub call: Option<Arc<Foreign>>,
    /// Written to report that the guest broke the ring.
    pub error: Option<Arc<Foreign>>,
    /// Whether the ring is enabled, so that frames flow.
    pub enabled: bool,
    /// Where the ring notes its position, and where the daemon before noted it; `None`: nowhere.
    pub journal: Option<Slot>,
}

/// Where a ring stands that another daemon goes on with.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Released {
    /// The available index from which it goes on; `None` if it was not served.
    pub next_available: Option<u16>,
    /// What else it leaves.
    pub heritage: Heritage,
}

/// Why a ring could not be started.
#[derive(Debug)]
pub enum StartError {
    /// The ring's setup is wrong.
    Config(ConfigError),
    /// The system refused the datapath's configuration, or epoll.
    System(io::Error),
    /// The worker has ended.
    WorkerGone,
}

impl std::fmt::Display for StartError {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        match self {
            Self::Config(error) => write!(f, "{error}"),
            Self::System(error) => write!(f, "{error}"),
            Self::WorkerGone => write!(f, "{WorkerGone}"),
        }
    }
}

impl std::error::Error for StartError {}

/// The worker has ended, or hangs, so it cannot answer.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct WorkerGone;

impl std::fmt::Display for WorkerGone {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "the worker of this queue has ended, or does not answer")
    }
}

impl std::error::Error for WorkerGone {}

/// What became of a frame that says where a guest is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Announced {
    /// It was carried.
    Carried,
    /// No ring of the guest that sends is served now.
    NotServed,
    /// Nothing carries frames of this guest to others now.
    NotCarried,
    /// It was not sent, because its front end asks for too many.
    TooMany,
}

#[derive(Debug)]
pub(crate) enum Command {
    Start { ring: u16, start: Box<RingStart>, done: SyncSender<Result<(), StartError>> },
    Stop { ring: u16, done: SyncSender<Option<u16>> },
    Release { ring: u16, done: SyncSender<Option<Released>> },
    Inherit { ring: u16, heritage: Heritage, done: SyncSender<()> },
    GoOn { is_over: bool },
    Enable { ring: u16, enabled: bool, done: SyncSender<()> },
    Renegotiate { ring: u16, negotiated: Negotiated, done: SyncSender<io::Result<()>> },
    Call { ring: u16, call: Option<Arc<Foreign>>, done: SyncSender<()> },
    Error { ring: u16, error: Option<Arc<Foreign>>, done: SyncSender<()> },
    DirtyLog { ring: u16, dirty: Option<RingLog>, done: SyncSender<()> },
    Announce { address: MacAddress, done: SyncSender<Announced> },
    Note { step: Step },
    Memory { memory: Arc<GuestMemory>, done: SyncSender<()> },
    Operator(Request),
    End,
}

/// One guest's way to send requests to the worker that serves it. A ring is named by its virtqueue index.
#[derive(Debug)]
pub struct Mailbox {
    inbox: Arc<Inbox>,
    /// The guest's number among the worker's guests.
    guest: usize,
}

/// The requests of all guests of a worker.
#[derive(Debug)]
pub(crate) struct Inbox {
    /// Commands not yet taken, each with its guest; `None` after the worker has ended.
    waiting: Mutex<Option<VecDeque<(usize, Command)>>>,
    /// Whether `waiting` has commands. The worker checks this between bursts.
    pending: AtomicBool,
    wake: EventFd,
    /// The worker's thread; 0 until it runs.
    thread: AtomicI32,
    /// The daemon was asked to end.
    hurries: AtomicBool,
}

impl Mailbox {
    pub(crate) const fn new(inbox: Arc<Inbox>, guest: usize) -> Self {
        Self { inbox, guest }
    }

    /// Starts serving a ring.
    ///
    /// # Errors
    /// See [`StartError`]; the ring is not served then.
    pub fn start(&self, ring: u16, start: RingStart) -> Result<(), StartError> {
        let start = Box::new(start);
        self.ask(|done| Command::Start { ring, start, done }).unwrap_or_else(|WorkerGone| {
            // A worker that hangs may recover and carry out the start. Then nobody else would stop the ring.
            let (done, _) = sync_channel(1);
            self.inbox.post(self.guest, Command::Stop { ring, done });
            Err(StartError::WorkerGone)
        })
    }

    /// Stops serving a ring. Returns the available index from which to go on, or `None` when the ring was not being
    /// served.
    ///
    /// # Errors
    /// When the worker has ended.
    pub fn stop(&self, ring: u16) -> Result<Option<u16>, WorkerGone> {
        self.ask(|done| Command::Stop { ring, done })
    }

    /// Stops serving a ring that another daemon goes on with. Its datapath stays as it is, so that the kernel keeps the frames
    /// that come meanwhile; a switch carries nothing from then on until a ring is started again. Returns where the ring stands;
    /// `None` when the worker has no such ring.
    ///
    /// # Errors
    /// When the worker has ended.
    pub fn release(&self, ring: u16) -> Result<Option<Released>, WorkerGone> {
        self.ask(|done| Command::Release { ring, done })
    }

    /// Gives a ring that starts next what it had in the daemon before.
    ///
    /// # Errors
    /// When the worker has ended.
    pub fn inherit(&self, ring: u16, heritage: Heritage) -> Result<(), WorkerGone> {
        self.ask(|done| Command::Inherit { ring, heritage, done })
    }

    /// The rings of all guests that come from the daemon before are started: a switch carries frames from now on, unless the
    /// daemon before still uses its uplink, because none of its rings ran. `is_over`: that daemon has ended. Does not wait for
    /// the worker.
    pub fn go_on(&self, is_over: bool) {
        self.inbox.post(self.guest, Command::GoOn { is_over });
    }

    /// Enables or disables a ring. Does nothing if the ring is not being served.
    ///
    /// # Errors
    /// When the worker has ended.
    pub fn enable(&self, ring: u16, enabled: bool) -> Result<(), WorkerGone> {
        self.ask(|done| Command::Enable { ring, enabled, done })
    }

    /// Changes the features of a receive ring that say which offloads its guest takes. Does nothing if the ring is not being
    /// served.
    ///
    /// # Errors
    /// What the system answers the datapath, or that the worker has ended. Then the features stay.
    pub fn renegotiate(&self, ring: u16, negotiated: Negotiated) -> io::Result<()> {
        let answer = self.ask(|done| Command::Renegotiate { ring, negotiated, done });
        answer.map_err(io::Error::other)?
    }

    /// Replaces the descriptor that is written to signal the guest.
    ///
    /// # Errors
    /// When the worker has ended.
    pub fn set_call(&self, ring: u16, call: Option<Arc<Foreign>>) -> Result<(), WorkerGone> {
        self.ask(|done| Command::Call { ring, call, done })
    }

    /// Replaces the descriptor that is written when the guest breaks the ring.
    ///
    /// # Errors
    /// When the worker has ended.
    pub fn set_error(&self, ring: u16, error: Option<Arc<Foreign>>) -> Result<(), WorkerGone> {
        self.ask(|done| Command::Error { ring, error, done })
    }

    /// From now on, the ring marks the pages that it writes in this log, or no longer. Does nothing if the ring is not being
    /// served.
    ///
    /// # Errors
    /// When the worker has ended.
    pub fn set_dirty_log(&self, ring: u16, dirty: Option<RingLog>) -> Result<(), WorkerGone> {
        self.ask(|done| Command::DirtyLog { ring, dirty, done })
    }

    /// Sends a frame to everyone that says that the guest's address is here now, unless many were sent just before.
    ///
    /// # Errors
    /// When the worker has ended.
    pub fn announce(&self, address: MacAddress) -> Result<Announced, WorkerGone> {
        self.ask(|done| Command::Announce { address, done })
    }

    /// Has the worker record that the guest's front end came. Does not wait for it.
    pub fn front_end_came(&self) {
        self.inbox.post(self.guest, Command::Note { step: Step::FrontEndCame });
    }

    /// Has the worker record that the guest's front end left. Does not wait for it.
    pub fn front_end_left(&self) {
        self.inbox.post(self.guest, Command::Note { step: Step::FrontEndLeft });
    }

    /// Moves every ring of the guest to a new memory table. When this returns, the worker has released the old table.
    ///
    /// # Errors
    /// When the worker has ended.
    pub fn set_memory(&self, memory: Arc<GuestMemory>) -> Result<(), WorkerGone> {
        self.ask(|done| Command::Memory { memory, done })
    }

    /// How the worker stands with the guest.
    ///
    /// # Errors
    /// When the worker has ended, or does not answer within a second.
    pub fn look(&self) -> Result<Standing, WorkerGone> {
        self.ask_soon(Request::Look)
    }

    /// Changes a setting. When this returns, it holds for the next burst.
    ///
    /// # Errors
    /// When the worker has ended, or does not answer within a second. If it answers later, the setting is changed then.
    pub fn set(&self, setting: Setting) -> Result<(), WorkerGone> {
        self.ask_soon(|done| Request::Set(setting, done))
    }

    /// Asks on behalf of the operator.
    fn ask_soon<T>(&self, request: impl FnOnce(SyncSender<T>) -> Request) -> Result<T, WorkerGone> {
        self.ask_within(PATIENCE_OF_THE_OPERATOR, |done| Command::Operator(request(done)))
    }

    fn ask<T>(&self, command: impl FnOnce(SyncSender<T>) -> Command) -> Result<T, WorkerGone> {
        self.ask_within(PATIENCE, command)
    }

    fn ask_within<T>(
        &self,
        patience: Duration,
        command: impl FnOnce(SyncSender<T>) -> Command,
    ) -> Result<T, WorkerGone> {
        let (done, answer) = sync_channel(1);
        self.inbox.post(self.guest, command(done));
        let mut waited = Duration::ZERO;
        loop {
            // The wait is counted in steps, so that time in which this process is stopped does not count.
            match answer.recv_timeout(PERIOD) {
                Ok(answer) => return Ok(answer),
                Err(RecvTimeoutError::Disconnected) => return Err(WorkerGone),
                Err(RecvTimeoutError::Timeout) => waited += PERIOD,
            }
            let hurries = self.inbox.hurries.load(Ordering::Relaxed);
            if waited >= if hurries { PATIENCE_AT_THE_END } else { patience } {
                return Err(WorkerGone);
            }
            self.inbox.interrupt();
        }
    }

    /// Called when the daemon is about to end: from then on requests wait for the worker only briefly.
    pub fn hurry(&self) {
        self.inbox.hurries.store(true, Ordering::Relaxed);
    }
}

impl Inbox {
    pub(crate) fn new() -> io::Result<Self> {
        Ok(Self {
            waiting: Mutex::new(Some(VecDeque::new())),
            pending: AtomicBool::new(false),
            wake: EventFd::new(libc::EFD_NONBLOCK | libc::EFD_CLOEXEC)?,
            thread: AtomicI32::new(0),
            hurries: AtomicBool::new(false),
        })
    }

    /// Registers the calling thread as the worker's.
    pub(crate) fn open(&self) -> io::Result<()> {
        sys::accept_interruptions()?;
        let thread = rustix::thread::gettid().as_raw_nonzero().get();
        self.thread.store(thread, Ordering::Relaxed);
        Ok(())
    }

    /// Interrupts a system call in which the worker blocks: a write to a descriptor that its front end made blocking. A
    /// sleeping worker goes back to sleep.
    pub(crate) fn interrupt(&self) {
        let thread = self.thread.load(Ordering::Relaxed);
        if thread != 0 {
            sys::interrupt(thread);
        }
    }

    /// Asks the worker to end, without waiting for it.
    pub(crate) fn end(&self) {
        self.post(0, Command::End);
    }

    pub(crate) const fn wake(&self) -> &EventFd {
        &self.wake
    }

    #[inline]
    pub(crate) fn is_pending(&self) -> bool {
        self.pending.load(Ordering::Acquire)
    }

    pub(crate) fn take(&self) -> VecDeque<(usize, Command)> {
        // Cleared before the queue is taken, because a command posted after that sets it again.
        self.pending.store(false, Ordering::SeqCst);
        let _ = self.wake.read();
        self.waiting().as_mut().map(std::mem::take).unwrap_or_default()
    }

    /// Called when the worker has ended. Pending and later requests get [`WorkerGone`].
    pub(crate) fn close(&self) {
        *self.waiting() = None;
    }

    fn waiting(&self) -> MutexGuard<'_, Option<VecDeque<(usize, Command)>>> {
        self.waiting.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn post(&self, guest: usize, command: Command) {
        let Some(waiting) = &mut *self.waiting() else { return };
        waiting.push_back((guest, command));
        self.pending.store(true, Ordering::SeqCst);
        // If the counter is full, a wake-up is pending already.
        let _ = self.wake.write(1);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn nobody_waits_for_a_worker_that_has_ended() {
        let inbox = Arc::new(Inbox::new().unwrap());
        let mailbox = Mailbox::new(Arc::clone(&inbox), 0);
        std::thread::scope(|scope| {
            let before = scope.spawn(|| mailbox.stop(0));
            while !inbox.is_pending() {
                std::thread::yield_now();
            }
            inbox.close();
            assert_eq!(before.join().unwrap(), Err(WorkerGone));
        });
        assert_eq!(mailbox.enable(0, true), Err(WorkerGone));
    }
}
