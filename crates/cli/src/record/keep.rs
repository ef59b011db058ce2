//! Which records of a recorder are kept, and where.

use std::io;
use std::path::{Path, PathBuf};
use std::time::Duration;

use burst_trace::{Clock, Gap, Reader, Record, Recording, RecordingWriter};
use host_files::Output;
use report::figures::TickRate;
use report::recent::Recent;
use report::trigger::Trigger;
use report::units::{grouped, time};
use serde_json::Value;

use crate::{clocks, doctor};

/// Most records kept in memory: 480 MiB.
const RECENT_MAX: usize = 1 << 22;

/// A record may come this long after its end, from a worker that lost its CPU.
const LATE: Duration = Duration::from_millis(100);

/// Which records to keep.
#[derive(Clone, Copy, Debug)]
pub enum Until {
    /// All of them.
    All,
    /// Those that ended within this time before the end.
    Last(Duration),
    /// Those within these times before and after the first burst that meets the condition.
    Met(Trigger, Duration, Duration),
}

/// The recording could not be written.
#[derive(Debug, thiserror::Error)]
pub enum KeepError {
    /// Nothing of it was written.
    #[error("cannot write the recording {path}: {source}; choose another -o, or make room there")]
    Nothing {
        /// Its path.
        path: PathBuf,
        /// The system's error.
        source: io::Error,
    },
    /// Its end is missing. The rest is there and can be read.
    #[error(
        "cannot write all of the recording {path}: {source}; what fitted is in {kept}; make room there, or choose \
         another -o"
    )]
    Cut {
        /// Its path.
        path: PathBuf,
        /// Where the rest is, and how much it is.
        kept: String,
        /// The system's error.
        source: io::Error,
    },
}

/// A recording that is being written. It has another name until it is complete; if dropped before, it leaves no file.
pub struct Keeper {
    writer: RecordingWriter,
    output: Output,
    path: PathBuf,
    rate: TickRate,
    until: Until,
    recent: Option<Recent>,
    clock: Clock,
    /// Time of the start. Bursts that ended before it do not meet a condition.
    started: u64,
    met: Option<Record>,
    /// Whether another guest's record met the condition.
    has_joined: bool,
    /// Records that end later are not kept.
    end: u64,
    is_done: bool,
    first: u64,
    newest: u64,
}

impl Keeper {
    /// `output` is the file at `path`, `facts` are the recording's [facts], and `clock` is the recorder's.
    pub fn create(
        output: Output,
        path: &Path,
        of: &Reader,
        facts: &str,
        until: Until,
        clock: Clock,
    ) -> Result<Self, KeepError> {
        let writer = output
            .file()
            .try_clone()
            .and_then(|file| RecordingWriter::begin(file, output.part().is_some(), of, facts));
        let writer = writer.map_err(|source| KeepError::Nothing { path: path.into(), source })?;
        let rate = TickRate::new(of.ticks_per_second());
        let recent = match until {
            Until::All => None,
            Until::Last(time) | Until::Met(_, time, _) => {
                Some(Recent::new(rate.ticks(time.as_secs_f64()), RECENT_MAX))
            }
        };
        Ok(Self {
            writer,
            output,
            path: path.into(),
            rate,
            until,
            recent,
            clock,
            started: clock.now(),
            met: None,
            has_joined: false,
            end: u64::MAX,
            is_done: false,
            first: u64::MAX,
            newest: 0,
        })
    }

    /// Whether records that are in the recorder already are wanted, too.
    pub const fn wants_the_past(&self) -> bool {
        !matches!(self.until, Until::All)
    }

    /// Whether all wanted records were taken. Of a guest at rest none comes that shows it, but time passes.
    pub fn is_done(&self) -> bool {
        let late = self.end.saturating_add(self.rate.ticks(LATE.as_secs_f64()));
        self.is_done || self.end != u64::MAX && self.clock.now() > late
    }

    /// When the condition was met, ticks.
    pub fn met_at(&self) -> Option<u64> {
        self.met.map(|met| met.last())
    }

    /// Keeps the records around `at`, ticks, when another guest met the condition.
    pub fn join(&mut self, at: u64) -> io::Result<()> {
        let Until::Met(_, _, after) = self.until else { return Ok(()) };
        if self.met.is_some() || std::mem::replace(&mut self.has_joined, true) {
            return Ok(());
        }
        self.end = at.saturating_add(self.rate.ticks(after.as_secs_f64()));
        self.write_recent()
    }

    /// Takes a record, and keeps it if it is wanted.
    pub fn take(&mut self, record: &Record) -> io::Result<()> {
        self.newest = self.newest.max(record.last());
        if record.last() > self.end {
            self.is_done = true;
            return Ok(());
        }
        if let Until::Met(trigger, _, after) = self.until
            && self.met.is_none()
            && !self.has_joined
            && record.last() >= self.started
            && trigger.is_met_by(record, self.rate)
        {
            self.met = Some(*record);
            self.end = record.last().saturating_add(self.rate.ticks(after.as_secs_f64()));
            // This also removes the records that are too old by this record's time.
            self.put(*record)?;
            return self.write_recent();
        }
        self.put(*record)
    }

    /// Keeps a gap, unless no records are missing in it.
    pub fn lost(&mut self, gap: Gap) -> io::Result<()> {
        if gap.records == 0 { Ok(()) } else { self.put(Record::Gap(gap)) }
    }

    fn put(&mut self, record: Record) -> io::Result<()> {
        match &mut self.recent {
            Some(recent) => {
                recent.push(record);
                Ok(())
            }
            None => self.write(&record),
        }
    }

    fn write(&mut self, record: &Record) -> io::Result<()> {
        self.first = self.first.min(record.first());
        self.writer.push(record)
    }

    /// Writes the records that need not stay in memory until the end.
    pub fn flush(&mut self) -> io::Result<()> {
        self.writer.flush()
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

    /// The progress, in words.
    pub fn state(&self) -> String {
        let (written, lost) = self.writer.counts();
        let kept = self.recent.as_ref().map_or(written, |recent| recent.len() as u64);
        let what = match (self.until, &self.met) {
            (Until::Met(..), None) if !self.has_joined => "waiting, ",
            _ => "",
        };
        format!("{what}{} records kept, {} lost", grouped(kept), grouped(lost))
    }

    /// Writes the records still in memory and gives the file its name. Returns in words what the file holds, and nothing
    /// when nothing fulfilled the condition. `so_far` is the outcome until now: after a failed write, the part before it
    /// is kept.
    pub fn finish(
        mut self,
        of: &Reader,
        so_far: io::Result<()>,
    ) -> Result<Option<String>, KeepError> {
        let is_met = self.met.is_some() || self.has_joined;
        if matches!(self.until, Until::Met(..)) && !is_met && so_far.is_ok() {
            return Ok(None);
        }
        match so_far.and_then(|()| self.write_all()) {
            Ok(()) => {
                let path = self.path.clone();
                self.close(of).map(Some).map_err(|source| KeepError::Nothing { path, source })
            }
            Err(source) => Err(self.cut(of, source)),
        }
    }

    fn write_all(&mut self) -> io::Result<()> {
        if matches!(self.until, Until::Last(_)) {
            // Old records were removed by the newest record's time, although the time was requested by the clock. So
            // records that are too old only by the clock are written, too.
            self.write_recent()?;
        }
        self.writer.flush()
    }

    fn close(self, of: &Reader) -> io::Result<String> {
        let (records, lost) = self.writer.counts();
        self.writer.finish(of, matches!(self.until, Until::All))?;
        self.output.keep()?;
        let span = self.newest.min(self.end).saturating_sub(self.first.min(self.newest));
        let path = match self.path.to_str() {
            Some("-") => "standard output".into(),
            _ => self.path.display().to_string(),
        };
        let mut text = format!(
            "{path}: {}, {} records, {} lost",
            time(self.rate.ns(span) as f64),
            grouped(records),
            grouped(lost)
        );
        match self.met {
            Some(Record::Burst(met)) => {
                let total = time(self.rate.ns(met.total()) as f64);
                let (direction, sequence) = (met.direction().name(), met.sequence);
                let queue = met.ring;
                text +=
                    &format!("; the burst: {direction} queue {queue} packet {sequence}, {total}");
            }
            Some(Record::KernelSpan(met)) => {
                let took = time(self.rate.ns(met.end.saturating_sub(met.start)) as f64);
                text += &format!("; the time in the host kernel: {}, {took}", met.stage.name());
            }
            _ => {}
        }
        Ok(text)
    }

    /// Ends the recording where the write failed with `source`.
    fn cut(self, of: &Reader, source: io::Error) -> KeepError {
        let Self { writer, output, path, rate, .. } = self;
        let part = output.part().map(ToOwned::to_owned);
        let held = writer.cut(of).ok().zip(part).and_then(|((), part)| held(&part));
        match held {
            Some((records, span)) if records > 0 => {
                let (span, records) = (time(rate.ns(span) as f64), grouped(records));
                let kept = match output.keep() {
                    Ok(()) => format!("{}: {span}, {records} records", path.display()),
                    // The error says where the part stays.
                    Err(error) => format!("{}: {span}, {records} records, {error}", path.display()),
                };
                KeepError::Cut { path, kept, source }
            }
            _ => KeepError::Nothing { path, source },
        }
    }
}

/// Number of records in a recording, and the number of ticks they span.
fn held(path: &Path) -> Option<(u64, u64)> {
    let recording = Recording::open(path).ok()?;
    let (mut records, mut first, mut last) = (0, u64::MAX, 0);
    for record in (0..recording.len()).map(|n| recording.record(n)) {
        if !matches!(record, Record::Gap(_)) {
            records += 1;
            (first, last) = (first.min(record.first()), last.max(record.last()));
        }
    }
    Some((records, last.saturating_sub(first)))
}

/// The recorder's facts about its run, a summary of this host, and its clocks. `kernel`: the state of each of the kernel's stages,
/// if they are measured for this recording.
pub fn facts(of: &Reader, kernel: Option<&Value>) -> String {
    let mut facts: Value = serde_json::from_str(&of.facts()).unwrap_or_default();
    if !facts.is_object() {
        facts = serde_json::json!({});
    }
    facts["host"] = doctor::summary();
    facts["clocks"] = clocks::look(of.front_end());
    if let Some(kernel) = kernel {
        facts["kernel_stages"] = kernel.clone();
        // All the time.
        facts["kernel_windows"] = Value::Null;
    }
    facts.to_string()
}
