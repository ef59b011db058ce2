//! The records of several hosts as those of one guest, which moved from one to the next.
//!
//! A recorder has milestones: from the connection of one front end to that of the next is a stay of the guest. The stays of
//! all files in the order of time are the guest's way, and between two that are not of the same file it migrated. Files
//! without milestones, of older daemons, have one stay.
//!
//! All records get the clock of the newest file. Within one boot of one host that is the clock they have. Otherwise they are
//! placed by `CLOCK_REALTIME`, whose error each daemon has written to its header ([`Header::realtime_error_us`]).

use std::collections::HashSet;
use std::path::PathBuf;

use crate::clock::Anchor;
use crate::header::Header;
use crate::migration::{Clocks, Migration};
use crate::milestone::{Milestone, Step};
use crate::record::{BurstRecord, BurstTimes, Record};
use crate::recording::Recording;
use crate::single::Single;
use crate::stage::Direction;

/// Feature bits that the front end adds to those of the guest: `VHOST_F_LOG_ALL`, while it logs, and
/// `VHOST_USER_F_PROTOCOL_FEATURES`.
const OF_THE_FRONT_END: u64 = 1 << 26 | 1 << 30;

/// Why files cannot be those of one guest.
#[derive(Debug, thiserror::Error)]
pub enum NotOneGuest {
    /// A file has no bursts.
    #[error("{0} has no bursts: nothing passed there, so no guest moved to it or from it")]
    Empty(PathBuf),
    /// A file was given twice.
    #[error("{0} was given twice: give one recording of each host")]
    Twice(PathBuf),
    /// Their guests negotiated other features.
    #[error(
        "{0} and {1} are not of one guest: the guests negotiated other features, {2:#x} and {3:#x}, and a guest that moves keeps \
         its own; report each by itself"
    )]
    Features(PathBuf, PathBuf, u64, u64),
    /// Their guests were announced with other addresses.
    #[error(
        "{0} and {1} are not of one guest: {2} was announced in one and {3} in the other; report each by itself"
    )]
    Addresses(PathBuf, PathBuf, String, String),
    /// Frames passed at both at the same time.
    #[error(
        "{0} and {1} are not of one guest that moved: both have bursts of the same {2} ms, so either two guests ran, or one file \
         has records of the other; report each by itself"
    )]
    SameTime(PathBuf, PathBuf, u64),
}

/// Recorders or recordings of one guest.
#[derive(Debug)]
pub struct Joined {
    parts: Vec<Part>,
    newest: usize,
    migrations: Vec<Migration>,
}

#[derive(Debug)]
struct Part {
    source: Single,
    path: PathBuf,
    /// How its clock becomes that of the newest part; `None` if it is that.
    clock: Option<Rescale>,
}

impl Joined {
    /// Joins them. Their order does not matter.
    ///
    /// # Errors
    /// When they cannot be of one guest.
    ///
    /// # Panics
    /// When there are none.
    pub(crate) fn new(sources: Vec<(Single, PathBuf)>) -> Result<Self, NotOneGuest> {
        let twice = |n: usize| sources[..n].iter().any(|it| it.0.file() == sources[n].0.file());
        if let Some(n) = (1..sources.len()).find(|&n| twice(n)) {
            return Err(NotOneGuest::Twice(sources[n].1.clone()));
        }
        let mut lasts = Vec::new();
        for (source, path) in &sources {
            let last = last_burst(source).ok_or_else(|| NotOneGuest::Empty(path.clone()))?;
            lasts.push(realtime_ns(source, last));
        }
        let newest = (0..lasts.len()).max_by_key(|&n| lasts[n]).expect("at least one source");
        let clocks: Vec<_> =
            sources.iter().map(|it| Rescale::between(&it.0, &sources[newest].0)).collect();
        let parts = sources.into_iter().zip(clocks);
        let parts = parts.map(|((source, path), clock)| Part { source, path, clock }).collect();
        let mut joined = Self { parts, newest, migrations: Vec::new() };
        joined.migrations = joined.find_migrations()?;
        Ok(joined)
    }

    /// The header of the part that ends last.
    pub(crate) fn header(&self) -> &Header {
        &self.parts[self.newest].source
    }

    /// The guest's moves, in the order of time.
    #[must_use]
    pub fn migrations(&self) -> &[Migration] {
        &self.migrations
    }

    /// The files.
    pub(crate) fn files(&self) -> impl Iterator<Item = &Header> {
        self.parts.iter().map(|part| &*part.source)
    }

    pub(crate) fn into_files(self) -> impl Iterator<Item = (Single, PathBuf)> {
        self.parts.into_iter().map(|part| (part.source, part.path))
    }

    /// Whether all were written on one host, in one boot.
    #[must_use]
    pub fn has_one_clock(&self) -> bool {
        self.parts.iter().all(|part| part.clock.is_none())
    }

    /// Upper bound of the number of records.
    pub(crate) fn records_max(&self) -> usize {
        self.parts.iter().map(|part| part.source.records_max()).sum()
    }

    /// Hands all records to `each`, roughly in the order of time, with the migrations.
    pub(crate) fn read(&self, mut each: impl FnMut(&Record)) -> u64 {
        let mut lost = 0_u64;
        let mut ways: Vec<_> = self.parts.iter().map(|part| part.records(&mut lost)).collect();
        let migrations: Vec<_> = self.migrations.iter().copied().map(Record::Migration).collect();
        ways.push(Way { rest: Rest::Memory(migrations.into_iter()), clock: None, next: None });
        ways.iter_mut().for_each(|way| way.step(&mut lost));
        let last = |way: &Way<'_>| way.next.map_or(u64::MAX, |record| record.last());
        while let Some(way) = ways.iter_mut().min_by_key(|way| (way.next.is_none(), last(way)))
            && let Some(record) = way.next
        {
            each(&record);
            way.step(&mut lost);
        }
        lost
    }

    fn find_migrations(&self) -> Result<Vec<Migration>, NotOneGuest> {
        let of_parts: Vec<_> = self.parts.iter().map(Stay::all).collect();
        for (n, part) in self.parts.iter().enumerate().skip(1) {
            part.is_of_guest_of(&self.parts[0], &of_parts[n], &of_parts[0])?;
        }
        let stays = of_parts.into_iter().enumerate();
        let mut stays: Vec<_> =
            stays.flat_map(|(n, stays)| stays.into_iter().map(move |stay| (n, stay))).collect();
        stays.retain(|(_, stay)| stay.first_burst.is_some());
        stays.sort_by_key(|(_, stay)| stay.first_burst);
        let moves = stays.windows(2).filter(|two| two[0].0 != two[1].0);
        moves.map(|two| self.migration((two[0].0, &two[0].1), (two[1].0, &two[1].1))).collect()
    }

    /// The move from one stay to the next.
    fn migration(
        &self,
        (from, old): (usize, &Stay),
        (to, new): (usize, &Stay),
    ) -> Result<Migration, NotOneGuest> {
        let (first, after) = new.first_burst.unwrap_or_default();
        let clocks = self.clocks(from, to, old.last_burst, first);
        let ms = |ticks: u64| {
            u64::try_from(u128::from(ticks) * 1000 / u128::from(self.header().ticks_per_second()))
                .unwrap_or(u64::MAX)
        };
        let both = old.last_burst.saturating_sub(first);
        let within_ms = match clocks {
            Clocks::Same => Some(0),
            Clocks::Within(us) => Some(u64::from(us) / 1000),
            Clocks::Unknown => None,
        };
        if within_ms.is_some_and(|within| both > 0 && ms(both) >= within) {
            let [from, to] = [from, to].map(|n| self.parts[n].path.clone());
            return Err(NotOneGuest::SameTime(from, to, ms(both).max(1)));
        }
        Ok(Migration {
            before: old.last_burst,
            stopped: old.stopped,
            left: old.left,
            connected: new.connected,
            started: new.started,
            announced: new.announced.map_or(0, |it| it.0),
            after,
            sent: new.first_sent,
            clocks,
            writer: 0,
        })
    }

    /// How the clocks of two parts are related, at these times.
    fn clocks(&self, from: usize, to: usize, before: u64, after: u64) -> Clocks {
        let [old, new] = [from, to].map(|n| &self.parts[n]);
        if Rescale::between(&old.source, &new.source).is_none() {
            return Clocks::Same;
        }
        let error = |part: &Part, at: u64| {
            part.source.realtime_error_us(part.clock.as_ref().map_or(at, |it| it.back(at)))
        };
        match error(old, before).zip(error(new, after)) {
            Some((old, new)) => {
                Clocks::Within(u32::try_from(old.saturating_add(new)).unwrap_or(u32::MAX))
            }
            None => Clocks::Unknown,
        }
    }
}

impl Part {
    /// Its records, on its own clock, roughly in the order of time.
    fn records(&self, lost: &mut u64) -> Way<'_> {
        let rest = match &self.source {
            Single::Recording(recording) => Rest::File { recording, next: 0 },
            other @ Single::Recorder(_) => {
                let mut records = Vec::new();
                *lost = lost.saturating_add(other.read_by_time(|record| records.push(*record)));
                Rest::Memory(records.into_iter())
            }
        };
        Way { rest, clock: self.clock.as_ref(), next: None }
    }

    /// Whether its guest can be that of `other`.
    fn is_of_guest_of(
        &self,
        other: &Self,
        stays: &[Stay],
        of_other: &[Stay],
    ) -> Result<(), NotOneGuest> {
        let paths = || (other.path.clone(), self.path.clone());
        let [theirs, ours] = [other, self].map(|part| part.source.features() & !OF_THE_FRONT_END);
        if theirs != 0 && ours != 0 && theirs != ours {
            let (first, second) = paths();
            return Err(NotOneGuest::Features(first, second, theirs, ours));
        }
        let announced = |stays: &[Stay]| stays.iter().rev().find_map(|it| it.announced);
        if let Some(((_, theirs), (_, ours))) = announced(of_other).zip(announced(stays))
            && theirs != ours
        {
            let (first, second) = paths();
            return Err(NotOneGuest::Addresses(first, second, name(theirs), name(ours)));
        }
        Ok(())
    }
}

fn name(address: [u8; 6]) -> String {
    address.map(|byte| format!("{byte:02x}")).join(":")
}

/// The records of a part that are not read yet.
#[derive(Debug)]
struct Way<'p> {
    rest: Rest<'p>,
    clock: Option<&'p Rescale>,
    next: Option<Record>,
}

#[derive(Debug)]
enum Rest<'p> {
    Memory(std::vec::IntoIter<Record>),
    File { recording: &'p Recording, next: usize },
}

impl Way<'_> {
    /// Goes on to the next record that is no gap.
    fn step(&mut self, lost: &mut u64) {
        self.next = loop {
            let record = match &mut self.rest {
                Rest::Memory(records) => records.next(),
                Rest::File { recording, next } => {
                    *next += 1;
                    (*next <= recording.len()).then(|| recording.record(*next - 1))
                }
            };
            match record {
                Some(Record::Gap(gap)) => *lost = lost.saturating_add(gap.records),
                Some(record) => {
                    break Some(self.clock.map_or(record, |clock| clock.record(&record)));
                }
                None => break None,
            }
        };
    }
}

/// The time of one front end, on the clock of the newest part. What is not known is 0.
#[derive(Clone, Copy, Debug, Default)]
struct Stay {
    connected: u64,
    started: u64,
    /// Its two ends.
    first_burst: Option<(u64, u64)>,
    /// The end of the first burst that the guest sent.
    first_sent: u64,
    last_burst: u64,
    stopped: u64,
    left: u64,
    announced: Option<(u64, [u8; 6])>,
}

impl Stay {
    /// The stays in a part.
    fn all(part: &Part) -> Vec<Self> {
        // An announcement is recorded as a burst as well, but the guest did not send it.
        let mut announced = HashSet::new();
        part.source.read(|record| {
            if let Record::Milestone(Milestone { at, step: Step::Announced(_), writer }) = record {
                announced.insert((*writer, *at));
            }
        });
        let (mut stays, mut stay) = (Vec::new(), Self::default());
        part.source.read_by_time(|record| match record {
            Record::Burst(burst) if !announced.contains(&(burst.worker, burst.last)) => {
                stay.add_burst(burst, part.clock.as_ref());
            }
            Record::Milestone(milestone) => {
                if milestone.step == Step::FrontEndCame {
                    stays.push(std::mem::take(&mut stay));
                }
                stay.add_step(milestone, part.clock.as_ref());
            }
            _ => {}
        });
        stays.push(stay);
        stays
    }

    fn add_burst(&mut self, burst: &BurstRecord, clock: Option<&Rescale>) {
        let [first, last] =
            [burst.first, burst.last].map(|at| clock.map_or(at, |clock| clock.ticks(at)));
        let times = (first, last);
        self.first_burst = Some(self.first_burst.map_or(times, |first| first.min(times)));
        if burst.direction() == Direction::Tx && self.first_sent == 0 {
            self.first_sent = last;
        }
        self.last_burst = self.last_burst.max(last);
    }

    fn add_step(&mut self, milestone: &Milestone, clock: Option<&Rescale>) {
        let at = clock.map_or(milestone.at, |clock| clock.ticks(milestone.at));
        match milestone.step {
            Step::FrontEndCame => self.connected = at,
            Step::FrontEndLeft => self.left = at,
            Step::RingStarted(_) => {
                if self.started == 0 {
                    self.started = at;
                }
                // A guest that was stopped goes on here.
                self.stopped = 0;
            }
            // The last one counts: until then another ring may have a burst.
            Step::RingStopped(_) => self.stopped = at,
            Step::Announced(address) => self.announced = self.announced.or(Some((at, address))),
        }
    }
}

/// The end of the last burst, on the source's own clock.
fn last_burst(source: &Single) -> Option<u64> {
    let mut last = None;
    source.read(|record| {
        if let Record::Burst(burst) = record {
            last = last.max(Some(burst.last));
        }
    });
    last
}

fn realtime_ns(header: &Header, ticks: u64) -> u64 {
    let anchor = header.anchor_latest();
    let since = i128::from(ticks) - i128::from(anchor.ticks);
    let ns = since * 1_000_000_000 / i128::from(header.ticks_per_second());
    bounded(i128::from(anchor.realtime_ns) + ns)
}

fn bounded(number: i128) -> u64 {
    u64::try_from(number.max(0)).unwrap_or(u64::MAX)
}

/// From the clock of one file to that of another, by `CLOCK_REALTIME`.
#[derive(Clone, Copy, Debug)]
struct Rescale {
    from: Anchor,
    from_rate: i128,
    to: Anchor,
    to_rate: i128,
}

impl Rescale {
    /// `None` if the files have one clock.
    fn between(from: &Header, to: &Header) -> Option<Self> {
        let is_same_boot = from.boot().is_some() && from.boot() == to.boot();
        (!is_same_boot || from.clock() != to.clock()).then(|| Self {
            from: from.anchor_latest(),
            from_rate: from.ticks_per_second().into(),
            to: to.anchor_latest(),
            to_rate: to.ticks_per_second().into(),
        })
    }

    fn ticks(&self, at: u64) -> u64 {
        let realtime = i128::from(self.from.realtime_ns) - i128::from(self.to.realtime_ns);
        let between = realtime.saturating_mul(self.to_rate) / 1_000_000_000;
        // Not by way of nanoseconds: each is several ticks.
        let since = i128::from(at) - i128::from(self.from.ticks);
        let since = since.saturating_mul(self.to_rate) / self.from_rate;
        bounded(between.saturating_add(since).saturating_add(self.to.ticks.into()))
    }

    /// The time on the other file's clock, of one on this.
    fn back(&self, at: u64) -> u64 {
        let Self { from, from_rate, to, to_rate } = *self;
        Self { from: to, from_rate: to_rate, to: from, to_rate: from_rate }.ticks(at)
    }

    fn span(&self, ticks: u64) -> u64 {
        bounded(i128::from(ticks).saturating_mul(self.to_rate) / self.from_rate)
    }

    fn times(&self, times: &BurstTimes) -> BurstTimes {
        let mut moved = *times;
        (moved.first, moved.last) = (self.ticks(times.first), self.ticks(times.last));
        // Boundaries are converted, not stages, so the stages add up to the total.
        let mut boundary = times.first;
        let mut before = moved.first;
        for (stage, ticks) in moved.stages.iter_mut().zip(times.stages) {
            boundary = boundary.saturating_add(ticks);
            let now = self.ticks(boundary).max(before);
            *stage = now - before;
            before = now;
        }
        moved.wakeup =
            times.wakeup.map(|ticks| u32::try_from(self.span(ticks.into())).unwrap_or(u32::MAX));
        moved
    }

    /// The same record on the other clock.
    fn record(&self, record: &Record) -> Record {
        let mut moved = *record;
        let known = |at: u64| if at == 0 { 0 } else { self.ticks(at) };
        match &mut moved {
            Record::Burst(burst) => {
                let BurstTimes { first, last, stages, wakeup, .. } = self.times(&burst.times());
                (burst.first, burst.last, burst.stages, burst.wakeup) =
                    (first, last, stages, wakeup);
            }
            Record::Probe(probe) => probe.times = self.times(&probe.times),
            Record::Cyclic(cyclic) => cyclic.times = self.times(&cyclic.times),
            Record::Drop(drop) => drop.at = self.ticks(drop.at),
            Record::Gap(gap) => gap.at = self.ticks(gap.at),
            Record::Milestone(milestone) => milestone.at = self.ticks(milestone.at),
            Record::KernelSpan(span) => {
                (span.start, span.end) = (self.ticks(span.start), self.ticks(span.end));
            }
            Record::Interruption(it) => {
                (it.start, it.end) = (self.ticks(it.start), self.ticks(it.end));
            }
            Record::Restart(it) => {
                [it.before, it.listening, it.started, it.after] =
                    [it.before, it.listening, it.started, it.after].map(|at| self.ticks(at));
            }
            Record::Migration(it) => {
                (it.before, it.after) = (self.ticks(it.before), self.ticks(it.after));
                for at in [
                    &mut it.stopped,
                    &mut it.left,
                    &mut it.connected,
                    &mut it.started,
                    &mut it.announced,
                    &mut it.sent,
                ] {
                    *at = known(*at);
                }
            }
            Record::Unknown(_) => {}
        }
        moved
    }
}
