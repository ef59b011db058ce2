//! Kernel stages that the operator begins and ends while the guest is served (`ringscope ctl NAME kernel-stages`). The client loads
//! the programs, and hands them over with its request: the daemon has given up the privileges for that.

use std::io::{self, PipeReader, PipeWriter};
use std::path::PathBuf;
use std::process;
use std::sync::mpsc::{Receiver, RecvTimeoutError, Sender, TryRecvError, channel};
use std::sync::{Arc, Mutex, PoisonError};
use std::thread::{Builder, JoinHandle};
use std::time::{Duration, SystemTime};

use burst_trace::{Clock, Participants, Writer};
use confine::Role;
use kernel_stages::{Attached, KernelStages, is_on};
use log_limit::LogLimit;
use serde_json::{Map, Value};

use super::front_end::FrontEnd;
use super::records::Records;
use super::{drain, follow_tap, states};
use crate::facts::facts;
use crate::plan::GuestPlan;

/// Longest wait for the end of a measurement. It takes a few milliseconds.
const END_TIME: Duration = Duration::from_secs(1);

/// A guest whose kernel stages can be measured for a time, and the thread that records them.
#[derive(Debug)]
pub struct OnRequest {
    plan: GuestPlan,
    /// The workers' threads.
    threads: Vec<u32>,
    front_end: FrontEnd,
    participants: Participants,
    control_at: Option<PathBuf>,
    running: Mutex<Option<Running>>,
    /// The thread ends when this is closed.
    jobs: Option<Sender<Job>>,
    thread: Option<JoinHandle<()>>,
}

/// A measurement that was begun.
#[derive(Debug)]
struct Running {
    /// It ends when this is closed.
    alive: PipeWriter,
    /// Closed when it has ended.
    ended: Receiver<()>,
    /// What is measured.
    states: Map<String, Value>,
}

/// A measurement for the thread.
struct Job {
    stages: KernelStages,
    stop: PipeReader,
    /// Closed when the programs are gone.
    ended: Sender<()>,
}

/// What the measurements of a guest need.
pub struct Whose {
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
    pub fn start(whose: Whose, log: &Arc<LogLimit>) -> io::Result<Self> {
        let Whose { plan, threads, writer: (writer, clock), participants, control_at } = whose;
        let mut records = Records::default();
        let guest = records.add_guest();
        records.set_writer(guest, writer, clock);
        for (worker, _) in (0..).zip(&threads) {
            records.add_thread(guest, worker, None);
        }
        let (jobs, receiver) = channel();
        let run = move || {
            confine::enter(Role::KernelStages);
            for Job { stages, stop, ended } in receiver {
                drain(&stages, &stop, &mut records);
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
            control_at,
            running: Mutex::new(None),
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
        let mut running = self.running.lock().unwrap_or_else(PoisonError::into_inner);
        if running.as_ref().is_some_and(|it| it.ended.try_recv() == Err(TryRecvError::Empty)) {
            return Err("expected no kernel stages, found that they are measured; \
                        kernel-stages off ends that"
                .into());
        }
        for (number, &thread) in (0..).zip(&self.threads) {
            let added = stages.add_worker(process::id(), thread, number);
            added.map_err(|why| why.to_string())?;
        }
        let followed = follow_tap(&stages, &self.plan, 0);
        let states = states(&self.plan, &stages, attached, &followed);
        let (stop, alive) = io::pipe().map_err(|why| why.to_string())?;
        let (ends, ended) = channel();
        self.front_end.follow(stages.front_ends());
        let sent = self.jobs.as_ref().map(|jobs| jobs.send(Job { stages, stop, ended: ends }));
        if sent.is_none_or(|sent| sent.is_err()) {
            self.front_end.follow(None);
            return Err("the thread that records kernel stages is gone; see the log".into());
        }
        self.note(&states);
        let answer = states.clone().into();
        *running = Some(Running { alive, ended, states });
        Ok(answer)
    }

    /// Ends the measurement, if there is one. The programs are gone then.
    ///
    /// # Errors
    /// When it does not end.
    pub fn end(&self) -> Result<(), String> {
        let running = self.running.lock().unwrap_or_else(PoisonError::into_inner).take();
        let Some(Running { alive, ended, states }) = running else { return Ok(()) };
        self.front_end.follow(None);
        drop(alive);
        let is_late = ended.recv_timeout(END_TIME) == Err(RecvTimeoutError::Timeout);
        let until = format!("on until {}", time_of_day());
        let now = |state: Value| match state.as_str() {
            Some(state) if is_on(state) => state.replacen("on", &until, 1).into(),
            _ => state,
        };
        self.note(&states.into_iter().map(|(name, state)| (name, now(state))).collect());
        match is_late {
            true => Err(format!("kernel stages were told to end, and did not within {END_TIME:?}")),
            false => Ok(()),
        }
    }

    /// What is measured now.
    pub fn states(&self) -> Option<Value> {
        let running = self.running.lock().unwrap_or_else(PoisonError::into_inner);
        running.as_ref().map(|it| it.states.clone().into())
    }

    /// Stores in the recorder what is measured.
    fn note(&self, states: &Map<String, Value>) {
        let states = states.clone().into();
        self.participants.set_facts(&facts(&self.plan, Some(&states), self.control_at.as_deref()));
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
