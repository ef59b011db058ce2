//! The thread that attaches queues again: a tap that was removed and made again is found in `/sys`, and a worker may not open
//! files.

use std::fmt;
use std::sync::mpsc::{Sender, channel};
use std::sync::{Mutex, PoisonError};
use std::thread::Builder;

use confine::Role;

/// What the thread does.
type Job = Box<dyn FnOnce() + Send>;

/// The thread, for all queues of an interface. It ends when this is dropped.
pub struct Finder {
    /// `None` if the system had no thread.
    jobs: Option<Mutex<Sender<Job>>>,
}

impl Finder {
    /// Starts the thread.
    pub fn start() -> Self {
        let (jobs, todo) = channel::<Job>();
        let run = move || {
            confine::enter(Role::TapAgain);
            todo.iter().for_each(|job| job());
        };
        let thread = Builder::new().name("tap".into()).spawn(run);
        Self { jobs: thread.ok().map(|_| Mutex::new(jobs)) }
    }

    /// Has the thread do `work`, and waits for that. Returns `None` if there is no such thread.
    pub fn run<T: Send + 'static>(&self, work: impl FnOnce() -> T + Send + 'static) -> Option<T> {
        let (done, result) = channel();
        let job: Job = Box::new(move || drop(done.send(work())));
        let jobs = self.jobs.as_ref()?.lock().unwrap_or_else(PoisonError::into_inner);
        jobs.send(job).ok()?;
        drop(jobs);
        result.recv().ok()
    }
}

impl fmt::Debug for Finder {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Finder").finish_non_exhaustive()
    }
}
