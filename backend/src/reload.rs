//! SIGHUP: the daemon reads its `--config` again, and follows what can change while it runs: log level and limits.

use std::io::Read as _;
use std::os::unix::net::UnixStream;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::thread::{Builder, JoinHandle, sleep};
use std::time::Duration;

use burst_trace::{Clock, Direction};
use confine::Role;
use rustix::event::{PollFd, PollFlags, poll};
use worker::{Bucket, Limit, Setting};

use crate::config::Config;
use crate::control::Ways;
use crate::error::Error;
use crate::logging;
use crate::plan::{GuestPlan, Plan};

/// The thread that reads the file again. Dropping it ends the thread.
#[derive(Debug)]
pub struct Reload {
    thread: Option<JoinHandle<()>>,
    /// The thread ends when this is closed.
    end: Option<UnixStream>,
}

/// What the daemon follows now.
struct Followed {
    /// The file.
    config: PathBuf,
    plan: Plan,
    ways: Ways,
    clock: Clock,
}

impl Reload {
    /// Reads `config` again whenever `asked` gets a byte. The plan was made from it.
    ///
    /// # Errors
    /// When the system refuses the thread.
    pub fn on(
        asked: UnixStream,
        config: &Path,
        plan: &Plan,
        ways: &Ways,
        clock: Clock,
    ) -> Result<Self, Error> {
        let (end, ended) = UnixStream::pair().map_err(Error::Signals)?;
        let config = config.to_path_buf();
        let mut followed = Followed { config, plan: plan.clone(), ways: ways.clone(), clock };
        let follow = move || {
            confine::enter(Role::Reload);
            while is_asked(&asked, &ended) {
                if let Err(why) = followed.reload() {
                    log::error!("nothing has changed by SIGHUP: {why}");
                }
            }
        };
        let thread = Builder::new().name("reload".into()).spawn(follow).map_err(Error::Signals)?;
        Ok(Self { thread: Some(thread), end: Some(end) })
    }
}

impl Drop for Reload {
    fn drop(&mut self) {
        self.end = None;
        if self.thread.take().is_some_and(|thread| thread.join().is_err()) {
            log::error!("the thread for SIGHUP ended by a fault; see the message above");
        }
    }
}

/// Waits for a signal. Returns whether there was one; `false` at the end.
fn is_asked(mut asked: &UnixStream, ended: &UnixStream) -> bool {
    loop {
        let mut polled = [PollFd::new(asked, PollFlags::IN), PollFd::new(ended, PollFlags::IN)];
        if poll(&mut polled, None).is_err() {
            // Interrupted, or short of memory.
            sleep(Duration::from_millis(1));
            continue;
        }
        if !polled[1].revents().is_empty() {
            return false;
        }
        // Signals that came meanwhile are one.
        if asked.read(&mut [0; 64]).is_ok_and(|len| len > 0) {
            return true;
        }
    }
}

impl Followed {
    fn reload(&mut self) -> Result<(), String> {
        let path = &self.config;
        let Config { run_dir, log_level, guests, .. } = Config::read(path)?;
        let run_dir = run_dir.or_else(|| self.plan.run_dir.clone());
        let mut plan =
            Plan::new(guests, run_dir).map_err(|error| format!("{}: {error}", path.display()))?;
        if let Some(part) = &self.plan.part {
            plan.guests.retain(|guest| part.serves(&guest.name));
        }
        // The command line's comes first, as at the start.
        // A level that the file has as before stays as the control socket set it, as limits do.
        if self.plan.log_level.is_none() && self.plan.config_log_level != log_level {
            logging::set_level(log_level.as_ref());
            self.plan.config_log_level = log_level;
        }
        for guest in &mut self.plan.guests {
            match plan.guests.iter().find(|new| new.name == guest.name) {
                Some(new) => {
                    if let Err(why) = follow(guest, new, &self.ways, &self.clock) {
                        log::error!("{}: its limits are not followed: {why}", guest.name);
                    }
                }
                None => log::warn!(
                    "{}: it is no longer in {}, and is served on",
                    guest.name,
                    path.display()
                ),
            }
        }
        let is_known = |new: &&GuestPlan| self.plan.guests.iter().any(|old| old.name == new.name);
        for new in plan.guests.iter().filter(|new| !is_known(new)) {
            log::warn!("{}: a guest that is new is served after a restart", new.name);
        }
        log::info!("SIGHUP: {} was read again", path.display());
        Ok(())
    }
}

/// Has the guest of `old` follow what of `new` can change.
fn follow(old: &mut GuestPlan, new: &GuestPlan, ways: &Ways, clock: &Clock) -> Result<(), String> {
    for (n, direction) in [Direction::Rx, Direction::Tx].into_iter().enumerate() {
        if old.limits[n] != new.limits[n] {
            set_limit(&old.name, direction, new.limits[n], ways, clock)?;
            old.limits[n] = new.limits[n];
        }
    }
    if old != new {
        log::warn!("{}: other keys have changed, and are followed after a restart", old.name);
    }
    Ok(())
}

fn set_limit(
    name: &str,
    direction: Direction,
    limit: Option<Limit>,
    ways: &Ways,
    clock: &Clock,
) -> Result<(), String> {
    let bucket = limit.map(|limit| Arc::new(Bucket::new(limit, clock)));
    for mailbox in ways.get(name).into_iter().flat_map(|way| &way.workers) {
        let setting = Setting::Limit(direction, bucket.clone());
        mailbox.set(setting).map_err(|gone| format!("guest '{name}': {gone}"))?;
    }
    let limit = limit.map_or("off".into(), |limit| limit.to_string());
    log::info!("{name}: limit-{} is {limit} now", direction.name());
    Ok(())
}
