//! `--isolate process`: a process for each guest or switch, under this one.
//!
//! The supervisor opens nothing of a guest's, and reads nothing that a guest or its front end wrote. It starts the processes, which are
//! this program again with the same flags and `--part`, and starts one again when it was killed or ended by a fault: the
//! guest goes on where it was, by the journal of its rings. It keeps the privileges with which it was started, because
//! each process begins with them and gives up what it does not need.
//!
//! The standard input of a process is a socket to the supervisor. On it the process says what others say to a service manager: that it
//! serves, and, if the service manager has a watchdog, that its workers answer. One that no longer says so is killed.
//!
//! A process gets SIGTERM from the kernel when the supervisor ends in any way.

mod process;

use std::sync::Arc;
use std::time::{Duration, Instant};

use rustix::event::{PollFd, PollFlags, Timespec, poll};
use rustix::net::SendFlags;
use rustix::process::{Signal, set_parent_process_death_signal};
use signal_hook::consts::SIGCHLD;

use self::process::{Ended, Process};
use crate::error::Error;
use crate::manager::{self, Manager};
use crate::part::Part;
use crate::plan::Plan;
use crate::stop::Stop;

/// A failure after this time does not count as one soon after a start.
const STEADY: Duration = Duration::from_secs(10);
/// The pause before a process that failed again is started: twice as long after each failure, up to [`PAUSE_MAX`].
const PAUSE: Duration = Duration::from_millis(100);
/// The longest pause.
const PAUSE_MAX: Duration = Duration::from_secs(5);
/// Longest time for an orderly end.
const ENDS: Duration = Duration::from_secs(4);

/// In a process of a supervisor: it has this program's name, and ends when the supervisor does, however that ends. To be called when
/// the process has become its user, because the kernel then forgets the second.
pub fn end_with_it() {
    let _ = rustix::thread::set_name(c"ringscoped");
    if let Err(error) = set_parent_process_death_signal(Some(Signal::TERM)) {
        log::warn!("this process does not end when its supervisor is killed: {error}");
    }
    // If it has ended already, no signal comes, and nobody is at the other end.
    if rustix::net::send(std::io::stdin(), &[], SendFlags::NOSIGNAL).is_err() {
        std::process::exit(0);
    }
}

/// Serves the plan until `stop`.
///
/// # Errors
/// When a process does not come up at the start. Then all have ended.
pub fn run(plan: &Plan, stop: &Stop) -> Result<(), Error> {
    if !manager::listening().is_empty() {
        return Err(Error::Activated);
    }
    let manager = Manager::find(false);
    let watchdog = manager.as_ref().and_then(Manager::watchdog);
    let parts = plan.parts().unwrap_or_default();
    let (metrics, guests): (Vec<_>, Vec<_>) =
        parts.into_iter().partition(|part| *part == Part::Metrics);
    let hangups = stop.hangups().map_err(Error::Descriptors)?;
    // If its parent had it ignored, the end of a process could not be heard of.
    signal_hook::flag::register(SIGCHLD, Arc::default()).map_err(Error::Signals)?;
    let mut wards = Wards { all: Vec::new(), watchdog };
    wards.start(guests)?;
    let (mut is_up, mut metrics, processes) = (false, Some(metrics), wards.all.len());
    let mut told = Instant::now();
    loop {
        let mut polled = vec![PollFd::new(stop, PollFlags::IN)];
        polled.extend(hangups.as_ref().map(|hangups| PollFd::new(hangups, PollFlags::IN)));
        let own = polled.len();
        polled.extend(wards.running().flat_map(Process::ends));
        let pause = wards.next_look(Instant::now());
        let pause = pause.and_then(|pause| Timespec::try_from(pause).ok());
        match poll(&mut polled, pause.as_ref()) {
            Ok(_) | Err(rustix::io::Errno::INTR) => {}
            Err(error) => return Err(Error::Signals(error.into())),
        }
        let is_ready = |n: usize| polled.get(n).is_some_and(|it| !it.revents().is_empty());
        let (is_asked, is_hung_up) = (is_ready(0), own > 1 && is_ready(1));
        drop(polled);
        if is_asked {
            break;
        }
        if let Some(hangups) = hangups.as_ref().filter(|_| is_hung_up) {
            // Signals that came meanwhile are one.
            let _ = std::io::Read::read(&mut &*hangups, &mut [0; 64]);
            wards.hang_up();
        }
        wards.look(is_up)?;
        // The recorders are there when the guests are served.
        if wards.all_serve()
            && let Some(metrics) = metrics.take()
        {
            wards.start(metrics)?;
        }
        if !is_up && metrics.is_none() && wards.all_serve() {
            is_up = true;
            log::info!("{} guests are served, in {processes} processes", plan.guests.len());
            manager.iter().for_each(|manager| manager.ready(plan.guests.len()));
        }
        if let Some((manager, interval)) = manager.as_ref().zip(watchdog)
            && told.elapsed() >= interval / 2
        {
            manager.is_well();
            told = Instant::now();
        }
        if wards.serve_nobody() {
            log::info!("no guest is to be served any more");
            break;
        }
    }
    manager.iter().for_each(Manager::stopping);
    wards.end();
    Ok(())
}

/// Everything that the supervisor watches over.
struct Wards {
    all: Vec<Ward>,
    watchdog: Option<Duration>,
}

/// A part, and its process.
struct Ward {
    part: Part,
    state: State,
    /// Failures in a row, each soon after a start.
    failures: u32,
}

enum State {
    Runs(Process),
    /// It is started again then.
    Waits(Instant),
    /// It has ended in order.
    Over,
}

impl Wards {
    /// Starts processes for these.
    fn start(&mut self, parts: Vec<Part>) -> Result<(), Error> {
        for part in parts {
            let process = Process::start(&part, self.watchdog)
                .map_err(|source| Error::Start { part: part.clone(), source })?;
            self.all.push(Ward { part, state: State::Runs(process), failures: 0 });
        }
        Ok(())
    }

    fn running(&self) -> impl Iterator<Item = &Process> {
        self.all.iter().filter_map(|ward| match &ward.state {
            State::Runs(process) => Some(process),
            State::Waits(_) | State::Over => None,
        })
    }

    /// Whether every process serves that has not ended in order.
    fn all_serve(&self) -> bool {
        self.all.iter().all(|ward| match &ward.state {
            State::Runs(process) => process.serves(),
            State::Waits(_) => false,
            State::Over => true,
        })
    }

    /// Whether all processes of guests have ended in order.
    fn serve_nobody(&self) -> bool {
        let mut guests = self.all.iter().filter(|ward| ward.part != Part::Metrics);
        guests.all(|ward| matches!(ward.state, State::Over))
    }

    /// When something is to be done although nothing happens: a start, or a look at one that may hang.
    fn next_look(&self, now: Instant) -> Option<Duration> {
        let looks = self.all.iter().filter_map(|ward| match &ward.state {
            State::Waits(until) => Some(until.saturating_duration_since(now)),
            State::Runs(process) => process.next_look(),
            State::Over => None,
        });
        // A little sooner than the half, so that nothing is said late.
        looks.chain(self.watchdog.map(|interval| interval / 4)).min()
    }

    /// Passes a SIGHUP on.
    fn hang_up(&mut self) {
        for ward in &mut self.all {
            if let State::Runs(process) = &mut ward.state {
                process.hang_up();
            }
        }
    }

    /// Hears what processes say, starts those again that failed, and kills those that hang.
    ///
    /// # Errors
    /// When one ends before all are up.
    fn look(&mut self, is_up: bool) -> Result<(), Error> {
        for ward in &mut self.all {
            match &mut ward.state {
                State::Runs(process) => {
                    if let Some(ended) = process.look() {
                        ward.has_ended(&ended, is_up)?;
                    }
                }
                State::Waits(until) if *until <= Instant::now() => {
                    match Process::start(&ward.part, self.watchdog) {
                        Ok(process) => ward.state = State::Runs(process),
                        Err(error) => {
                            log::error!(
                                "the process of '{}' cannot be started: {error}",
                                ward.part
                            );
                            ward.wait();
                        }
                    }
                }
                State::Waits(_) | State::Over => {}
            }
        }
        Ok(())
    }

    /// Ends all processes, and waits for that.
    fn end(&mut self) {
        self.running().for_each(|process| process.signal(Signal::TERM));
        let until = Instant::now() + ENDS;
        for ward in &mut self.all {
            if let State::Runs(process) = &mut ward.state {
                process.end(until);
            }
        }
    }
}

/// However this ends, no process is left.
impl Drop for Wards {
    fn drop(&mut self) {
        self.end();
    }
}

impl Ward {
    fn has_ended(&mut self, ended: &Ended, is_up: bool) -> Result<(), Error> {
        let part = &self.part;
        if ended.is_success {
            log::info!(
                "the process of '{part}' has ended as it was asked to, and is not started again"
            );
            self.state = State::Over;
            return Ok(());
        }
        if !is_up {
            return Err(Error::NotUp { part: part.clone(), ended: ended.how.clone() });
        }
        if ended.after >= STEADY {
            self.failures = 0;
        }
        log::error!("the process of '{part}' {}; it is started again", ended.how);
        self.wait();
        Ok(())
    }

    /// Waits before the next start: not at all after the first failure.
    fn wait(&mut self) {
        let pause = match self.failures.checked_sub(1) {
            None => Duration::ZERO,
            Some(more) => PAUSE.saturating_mul(1 << more.min(10)).min(PAUSE_MAX),
        };
        self.failures = self.failures.saturating_add(1);
        self.state = State::Waits(Instant::now() + pause);
    }
}
