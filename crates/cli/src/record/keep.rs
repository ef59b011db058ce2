//! What is kept of a recorder, and where.

use std::fs;
use std::io;
use std::path::{Path, PathBuf};
use std::time::Duration;

use burst_trace::{BurstRecord, Clock, Reader, RecordingWriter};
use report::figures::TickRate;
use report::recent::Recent;
use report::trigger::Trigger;
use report::units::{grouped, time};
use serde_json::Value;

use crate::doctor;

/// So many records are kept in memory at most: 480 MiB.
const RECENT_MAX: usize = 1 << 22;

/// What is wanted.
#[derive(Clone, Copy, Debug)]
pub enum Until {
    /// Everything.
    All,
    /// What ended in the last time before the end.
    Last(Duration),
    /// So much before and after the first burst of which it is true.
    Met(Trigger, Duration, Duration),
}

/// The file could not be written.
#[derive(Debug, thiserror::Error)]
#[error("cannot write the recording {path}: {source}; choose another -o, or make room there")]
pub struct KeepError {
    path: PathBuf,
    source: io::Error,
}

/// A recording in the making. It has another name until it is whole; dropped before, it leaves nothing.
pub struct Keeper {
    writer: Option<RecordingWriter>,
    path: PathBuf,
    part: PathBuf,
    rate: TickRate,
    until: Until,
    recent: Option<Recent>,
    /// Bursts that ended before do not fulfil a condition.
    started: u64,
    met: Option<BurstRecord>,
    /// What ends later is not kept.
    end: u64,
    is_done: bool,
    first: u64,
    newest: u64,
}

impl Keeper {
    /// `kernel`: what became of the kernel's stages, if they are measured for this recording.
    pub fn create(
        path: &Path,
        of: &Reader,
        kernel: Option<&Value>,
        until: Until,
    ) -> Result<Self, KeepError> {
        let mut part = path.as_os_str().to_owned();
        part.push(".part");
        let part = PathBuf::from(part);
        let writer = RecordingWriter::create(&part, of, &facts(of, kernel))
            .map_err(|source| KeepError { path: path.into(), source })?;
        let rate = TickRate::new(of.ticks_per_second());
        let recent = match until {
            Until::All => None,
            Until::Last(time) | Until::Met(_, time, _) => {
                Some(Recent::new(rate.ticks(time.as_secs_f64()), RECENT_MAX))
            }
        };
        Ok(Self {
            writer: Some(writer),
            path: path.into(),
            part,
            rate,
            until,
            recent,
            started: Clock::new().now(),
            met: None,
            end: u64::MAX,
            is_done: false,
            first: u64::MAX,
            newest: 0,
        })
    }

    /// Whether what is in the recorder already is wanted, too.
    pub const fn wants_the_past(&self) -> bool {
        !matches!(self.until, Until::All)
    }

    /// Whether all that is wanted was taken.
    pub const fn is_done(&self) -> bool {
        self.is_done
    }

    pub fn take(&mut self, record: &BurstRecord) -> io::Result<()> {
        self.newest = self.newest.max(record.last);
        if record.last > self.end {
            self.is_done = true;
            return Ok(());
        }
        if let Until::Met(trigger, _, after) = self.until
            && self.met.is_none()
            && record.last >= self.started
            && trigger.is_met_by(record, self.rate)
        {
            self.met = Some(*record);
            self.end = record.last.saturating_add(self.rate.ticks(after.as_secs_f64()));
            // With it, so that what is too old by it goes.
            self.put(*record)?;
            return self.write_recent();
        }
        self.put(*record)
    }

    /// So many records of `worker` were lost; the newest one that was read ended at `ticks`.
    pub fn lost(&mut self, worker: u8, records: u64, ticks: u64) -> io::Result<()> {
        if records == 0 {
            return Ok(());
        }
        self.put(BurstRecord::gap(worker, records, ticks))
    }

    fn put(&mut self, record: BurstRecord) -> io::Result<()> {
        match &mut self.recent {
            Some(recent) => {
                recent.push(record);
                Ok(())
            }
            None => self.write(&record),
        }
    }

    fn write(&mut self, record: &BurstRecord) -> io::Result<()> {
        self.first = self.first.min(record.first);
        match &mut self.writer {
            Some(writer) => writer.push(record),
            None => Ok(()),
        }
    }

    fn write_recent(&mut self) -> io::Result<()> {
        if let Some(mut recent) = self.recent.take() {
            for record in recent.drain() {
                self.write(&record)?;
            }
            if recent.crowded_out() > 0 {
                eprintln!(
                    "ringscope: {} older records were left out: {} are kept in memory at most",
                    grouped(recent.crowded_out()),
                    grouped(RECENT_MAX as u64)
                );
            }
        }
        Ok(())
    }

    /// How far it is.
    pub fn state(&self) -> String {
        let (written, lost) = self.writer.as_ref().map_or((0, 0), RecordingWriter::counts);
        let kept = self.recent.as_ref().map_or(written, |recent| recent.len() as u64);
        let what = match (self.until, &self.met) {
            (Until::Met(..), None) => "waiting, ",
            _ => "",
        };
        format!("{what}{} records kept, {} lost", grouped(kept), grouped(lost))
    }

    /// Writes what is still in memory and gives the file its name. Returns what it holds, in words.
    pub fn finish(mut self, of: &Reader) -> Result<String, KeepError> {
        let path = self.path.clone();
        self.close(of).map_err(|source| KeepError { path, source })
    }

    fn close(&mut self, of: &Reader) -> io::Result<String> {
        if matches!(self.until, Until::Last(_)) {
            // What is too old by now, not by the newest record, goes too; it was asked for by the clock.
            self.write_recent()?;
        }
        let waited_in_vain = matches!(self.until, Until::Met(..)) && self.met.is_none();
        if waited_in_vain {
            return Ok("no burst fulfilled the condition: nothing was recorded".into());
        }
        let Some(writer) = self.writer.take() else { return Ok(String::new()) };
        let (records, lost) = writer.counts();
        writer.finish(of, matches!(self.until, Until::All))?;
        fs::rename(&self.part, &self.path)?;
        let span = self.newest.min(self.end).saturating_sub(self.first.min(self.newest));
        let mut text = format!(
            "{}: {}, {} records, {} lost",
            self.path.display(),
            time(self.rate.ns(span) as f64),
            grouped(records),
            grouped(lost)
        );
        if let Some(met) = self.met {
            let total = time(self.rate.ns(met.total()) as f64);
            let (direction, sequence) = (met.direction().name(), met.sequence);
            text +=
                &format!("; the burst: {direction} queue {} packet {sequence}, {total}", met.ring);
        }
        Ok(text)
    }
}

impl Drop for Keeper {
    fn drop(&mut self) {
        let _ = fs::remove_file(&self.part);
    }
}

/// What the recorder says of its run, and what this host is.
fn facts(of: &Reader, kernel: Option<&Value>) -> String {
    let mut facts: Value = serde_json::from_str(&of.facts()).unwrap_or_default();
    if !facts.is_object() {
        facts = serde_json::json!({});
    }
    facts["host"] = doctor::summary();
    if let Some(kernel) = kernel {
        facts["kernel_stages"] = kernel.clone();
    }
    facts.to_string()
}
