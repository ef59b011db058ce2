//! Kernel stages that the operator begins and ends while the guest is served (`ringscope ctl NAME kernel-stages`). The client loads
//! the programs, and hands them over with its request: the daemon has given up the privileges for that.

use std::io::{self, PipeReader, PipeWriter};
use std::path::PathBuf;
use std::process;
use std::sync::mpsc::{Receiver, RecvTimeoutError, Sender, TryRecvError, channel};
use std::sync::{Arc, Mutex, PoisonError};
use std::thread::{Builder, JoinHandle};
use std::time::{Duration, SystemTime};

use burst_trace::file::FACTS_BYTES_MAX;
use burst_trace::{Clock, Participants, Writer};
use confine::Role;
use kernel_stages::{Attached, KernelStages, is_on};
use log_limit::LogLimit;
use serde_json::{Map, Value};

use super::front_end::FrontEnd;
use super::records::Records;
use super::{drain, follow_tap, states};
use crate::facts::{Window, facts};
use crate::plan::GuestPlan;

/// Longest wait for the begin or the end of a measurement. It takes a few milliseconds.
const PATIENCE: Duration = Duration::from_secs(1);
/// Most measurements whose begin and end are known.
const WINDOWS_MAX: usize = 16;

/// A guest whose kernel stages can be measured for a time, and the thread that records them.
#[derive(Debug)]
pub struct OnRequest {
    plan: GuestPlan,
    /// The workers' threads.
    threads: Vec<u32>,
    front_end: FrontEnd,
    participants: Participants,
    clock: Clock,
    control_at: Option<PathBuf>,
    state: Mutex<State>,
    /// The thread ends when this is closed.
    jobs: Option<Sender<Job>>,
    thread: Option<JoinHandle<()>>,
}

#[derive(Debug, Default)]
struct State {
    running: Option<Running>,
    /// When it was measured, as far as that is still known.
    windows: Vec<Window>,
}

/// A measurement that was begun.
#[derive(Debug)]
struct Running {
    /// It ends when this is closed.
    alive: Option<PipeWriter>,
    /// Closed when it has ended.
    ended: Receiver<()>,
    /// What is measured.
    states: Map<String, Value>,
}

impl Running {
    fn has_ended(&self) -> bool {
        self.ended.try_recv() == Err(TryRecvError::Disconnected)
    }
}

/// A measurement for the thread.
struct Job {
    stages: KernelStages,
    stop: PipeReader,
    /// Gets a word when nothing is missed any more.
    begun: Sender<()>,
    /// Closed when the programs are gone.
    ended: Sender<()>,
}

/// A guest that can be measured.
pub struct Measurable {
    /// Its plan.
    pub plan: GuestPlan,
    /// Its workers' threads, in their order.
    pub threads: Vec<u32>,
    /// Its recorder's writer for times in the host kernel, and the clock.
    pub writer: (Writer, Clock),
    /// Its recorder.
    pub participants: Participants,
    /// The control socket.
    pub control_at: Option<PathBuf>,
}

impl OnRequest {
    /// Starts the thread, which has nothing to do yet. `log` is the guest's.
    ///
    /// # Errors
    /// When the system refuses it.
    pub fn start(guest: Measurable, log: &Arc<LogLimit>) -> io::Result<Self> {
        let Measurable { plan, threads, writer: (writer, clock), participants, control_at } = guest;
        let mut records = Records::default();
        let guest = records.add_guest();
        records.set_writer(guest, writer, clock);
        for (worker, _) in (0..).zip(&threads) {
            records.add_thread(guest, worker, None);
        }
        let (jobs, receiver) = channel();
        let run = move || {
            confine::enter(Role::KernelStages);
            for Job { stages, stop, begun, ended } in receiver {
                drain(&stages, &stop, || _ = begun.send(()), &mut records);
                drop(stages);
                drop(ended);
            }
        };
        let thread = Builder::new().name("kernel-stages".into()).spawn(run)?;
        Ok(Self {
            plan,
            threads,
            front_end: FrontEnd::new(0, log),
            participants,
            clock,
            control_at,
            state: Mutex::default(),
            jobs: Some(jobs),
            thread: Some(thread),
        })
    }

    /// What makes the guest's front end known.
    pub const fn witness(&self) -> &FrontEnd {
        &self.front_end
    }

    /// Measures by these programs. Returns what is measured.
    ///
    /// # Errors
    /// Why not.
    pub fn begin(&self, stages: KernelStages, attached: &[Attached]) -> Result<Value, String> {
        let mut state = self.state.lock().unwrap_or_else(PoisonError::into_inner);
        if state.running.as_ref().is_some_and(|it| !it.has_ended()) {
            return Err("expected no kernel stages, found that they are measured; \
                        kernel-stages off ends that"
                .into());
        }
        for (number, &thread) in (0..).zip(&self.threads) {
            let added = stages.add_worker(process::id(), thread, number);
            added.map_err(|why| why.to_string())?;
        }
        let followed = follow_tap(&stages, &self.plan, 0);
        let states = states(&stages, attached, &followed);
        let mut windows = state.windows.clone();
        windows.drain(..windows.len().saturating_sub(WINDOWS_MAX - 1));
        windows.push((self.clock.now(), None));
        let facts = self.facts(&states, &windows);
        if facts.len() > FACTS_BYTES_MAX {
            let found = facts.len();
            return Err(format!(
                "expected facts of at most {FACTS_BYTES_MAX} bytes, found {found}"
            ));
        }
        let (stop, alive) = io::pipe().map_err(|why| why.to_string())?;
        let (begins, begun) = channel();
        let (ends, ended) = channel();
        self.front_end.follow(stages.front_ends());
        let job = Job { stages, stop, begun: begins, ended: ends };
        let is_sent = self.jobs.as_ref().is_some_and(|jobs| jobs.send(job).is_ok());
        if !is_sent || begun.recv_timeout(PATIENCE).is_err() {
            self.front_end.follow(None);
            return Err("the thread that records kernel stages cannot begin; see the log".into());
        }
        self.participants.set_facts(&facts);
        let answer = states.clone().into();
        let running = Some(Running { alive: Some(alive), ended, states });
        *state = State { running, windows };
        Ok(answer)
    }

    /// Ends the measurement, if there is one. The programs are gone then.
    ///
    /// # Errors
    /// When it does not end.
    pub fn end(&self) -> Result<(), String> {
        let mut state = self.state.lock().unwrap_or_else(PoisonError::into_inner);
        let State { running, windows } = &mut *state;
        let Some(it) = running else { return Ok(()) };
        self.front_end.follow(None);
        it.alive = None;
        let is_late = it.ended.recv_timeout(PATIENCE) == Err(RecvTimeoutError::Timeout);
        let until = format!("on until {}", time_of_day());
        let now = |state: &Value| match state.as_str() {
            Some(state) if is_on(state) => state.replacen("on", &until, 1).into(),
            _ => state.clone(),
        };
        let states = it.states.iter().map(|(name, state)| (name.clone(), now(state))).collect();
        if let Some((_, end)) = windows.last_mut() {
            end.get_or_insert(self.clock.now());
        }
        self.participants.set_facts(&self.facts(&states, windows));
        if is_late {
            return Err(format!("kernel stages were told to end, and did not within {PATIENCE:?}"));
        }
        *running = None;
        Ok(())
    }

    /// What is measured now.
    pub fn states(&self) -> Option<Value> {
        let state = self.state.lock().unwrap_or_else(PoisonError::into_inner);
        let running = state.running.as_ref().filter(|it| !it.has_ended());
        running.map(|it| it.states.clone().into())
    }

    /// The facts for the recorder, with what is measured.
    fn facts(&self, states: &Map<String, Value>, windows: &[Window]) -> String {
        let states = states.clone().into();
        facts(&self.plan, (Some(&states), Some(windows)), self.control_at.as_deref())
    }
}

impl Drop for OnRequest {
    fn drop(&mut self) {
        if let Err(why) = self.end() {
            log::error!("{why}");
        }
        self.jobs = None;
        if self.thread.take().is_some_and(|thread| thread.join().is_err()) {
            log::error!("the thread that records kernel stages panicked; see the message above");
        }
    }
}

fn time_of_day() -> String {
    let since = SystemTime::now().duration_since(SystemTime::UNIX_EPOCH).unwrap_or_default();
    let seconds = since.as_secs() % 86_400;
    format!("{:02}:{:02}:{:02} UTC", seconds / 3600, seconds / 60 % 60, seconds % 60)
}
