//! The host's end: asks, and keeps what the guest has answered.

use std::fs::{File, OpenOptions};
use std::os::unix::fs::OpenOptionsExt as _;
use std::path::Path;
use std::thread::{sleep, yield_now};
use std::time::Duration;

use rustix::fs::{FlockOperation, OFlags, flock};

use super::bounds::{self, EXCHANGES_APART, Exchange, Taken};
use super::page::{PAGE_BYTES, Page, Question, Reading, Wanted};
use super::{ClockBounds, Error, RELATION};
use crate::clock::now_ns;

/// Looks at the answer between two looks at the clock.
const LOOKS: u64 = 1024;
/// Looks at an answer after which the guest is not there yet, or was interrupted.
const LOOKS_BUSY: u64 = 64 * LOOKS;
/// Rest between looks after that.
const REST: Duration = Duration::from_millis(1);

/// Bounds the offset of a guest's clock by its page. In the guest, `ringscope agent clock --guest` has to run, or to be started
/// within `limit`. Takes some milliseconds, and no longer than `limit`: exchanges that were made until then count.
///
/// # Errors
/// If `page` is no clock page, or the guest does not answer, or what it answers is no clock's time.
pub fn bound_clock(page: &Path, exchanges: u32, limit: Duration) -> Result<ClockBounds, Error> {
    let (page, _lock) = open(page)?;
    let taken = Asker::new(&page, limit).take(exchanges.max(1))?;
    bounds_of(&taken)
}

fn bounds_of(taken: &Taken) -> Result<ClockBounds, Error> {
    let shortest = taken.exchanges.iter().map(Exchange::duration_ns).min();
    Ok(ClockBounds {
        relation: RELATION.into(),
        exchanges: taken.exchanges.len() as u64,
        shortest_ns: shortest.unwrap_or(0),
        bounds: bounds::of(taken)?,
    })
}

/// Opens the page. Nobody else measures by it while the file is open.
fn open(path: &Path) -> Result<(Page, File), Error> {
    let failed = |source| Error::File { doing: "open the clock page", path: path.into(), source };
    let no_page = |found| Error::NoPage { path: path.into(), found };
    // A FIFO or a terminal is not waited for.
    let flags = (OFlags::NONBLOCK | OFlags::NOCTTY).bits().cast_signed();
    let file = OpenOptions::new().read(true).write(true).custom_flags(flags).open(path);
    let file = file.map_err(failed)?;
    let found = file.metadata().map_err(failed)?;
    if !found.is_file() {
        return Err(no_page(host_files::identity::kind(found.file_type()).into()));
    }
    if found.len() != PAGE_BYTES {
        return Err(no_page(format!("{} bytes", found.len())));
    }
    if flock(&file, FlockOperation::NonBlockingLockExclusive).is_err() {
        return Err(Error::Busy { path: path.into() });
    }
    let page = Page::map(&file).map_err(failed)?;
    if !page.mark() {
        return Err(no_page("other content, perhaps of a guest that has overwritten it".into()));
    }
    Ok((page, file))
}

/// Asks, within a limit of time.
struct Asker<'a> {
    page: &'a Page,
    last: Question,
    limit: Duration,
    ends_ns: u64,
}

/// An answer, and between which moments it was given.
struct Answer {
    before_ns: u64,
    reading: Reading,
    after_ns: u64,
}

impl<'a> Asker<'a> {
    fn new(page: &'a Page, limit: Duration) -> Self {
        let now_ns = now_ns();
        let limit_ns = u64::try_from(limit.as_nanos()).unwrap_or(u64::MAX);
        let ends_ns = now_ns.saturating_add(limit_ns);
        Self { page, last: Question::first(now_ns), limit, ends_ns }
    }

    /// Takes this number of exchanges, with pairs between them. If the time is over, those that were made until then.
    fn take(mut self, exchanges: u32) -> Result<Taken, Error> {
        let silent = self.page.answered();
        let mut taken = Taken::default();
        while self.take_some(&mut taken)? {
            if taken.exchanges.len() >= exchanges as usize {
                return Ok(taken);
            }
        }
        if self.page.is_torn() {
            return Err(Error::Torn);
        }
        // With two pairs there is a bound.
        if taken.pairs.len() >= 2 {
            return Ok(taken);
        }
        let answers = taken.pairs.len() + taken.exchanges.len();
        let found = match self.page.answered() {
            _ if answers > 0 => format!("that it stopped after {answers} answers"),
            answered if answered == silent => "no answer".into(),
            _ => "an answer to another question".into(),
        };
        Err(Error::Silent { limit: self.limit, found })
    }

    /// Takes a pair, if there is none yet, the exchanges that follow, and the next pair. Returns whether the time sufficed.
    fn take_some(&mut self, taken: &mut Taken) -> Result<bool, Error> {
        if taken.pairs.is_empty() {
            let Some(answer) = self.ask(Wanted::Pair) else { return Ok(false) };
            taken.add_pair(answer.reading)?;
        }
        for _ in 0..EXCHANGES_APART {
            let Some(answer) = self.ask(Wanted::Counter) else { return Ok(false) };
            let Answer { before_ns, reading, after_ns } = answer;
            taken.add_exchange(Exchange { before_ns, counter: reading.before, after_ns })?;
        }
        let Some(answer) = self.ask(Wanted::Pair) else { return Ok(false) };
        taken.add_pair(answer.reading)?;
        Ok(true)
    }

    /// `None` if the time is over.
    fn ask(&mut self, wanted: Wanted) -> Option<Answer> {
        self.last = self.last.next(wanted);
        let before_ns = now_ns();
        self.page.ask(self.last);
        let after_ns = self.await_answer()?;
        Some(Answer { before_ns, reading: self.page.reading(), after_ns })
    }

    /// Waits for the answer to the last question, and returns the time at which it was there.
    fn await_answer(&self) -> Option<u64> {
        let mut looks: u64 = 0;
        loop {
            if self.page.answered() == self.last {
                return Some(now_ns());
            }
            looks += 1;
            if looks.is_multiple_of(LOOKS) {
                if now_ns() >= self.ends_ns {
                    return None;
                }
                // The guest may need this CPU.
                if looks < LOOKS_BUSY { yield_now() } else { sleep(REST) }
            }
        }
    }
}

impl Drop for Asker<'_> {
    /// Whatever has happened, the agent in the guest need not wait for another question.
    fn drop(&mut self) {
        self.page.ask(self.last.next(Wanted::End));
    }
}
