//! What the programs tell, and the records of it.

use std::time::Duration;

use burst_trace::{
    Anchor, Clock, Culprit, Interruption, InterruptionCause, KernelSpan, KernelStage, Subject,
};

/// What a program has measured.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Event {
    /// The time of a stage.
    Span(Span),
    /// A time in which a thread did not run.
    Thread(ThreadEvent),
}

/// A measured span.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Span {
    /// The stage that it measures.
    pub stage: KernelStage,
    /// The number of its object: for `host-rx` the number given to [`KernelStages::add_tap`](crate::KernelStages::add_tap),
    /// for `inject` the number given to [`FrontEnds::add`](crate::FrontEnds::add), for the other stages the number given to
    /// [`KernelStages::add_worker`](crate::KernelStages::add_worker).
    pub about: u32,
    /// Start on `CLOCK_MONOTONIC`, nanoseconds.
    pub start_ns: u64,
    /// End on `CLOCK_MONOTONIC`, nanoseconds.
    pub end_ns: u64,
}

/// A time in which a thread did not run.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct ThreadEvent {
    /// Whose thread it was.
    pub whose: Whose,
    /// The thread's id.
    pub thread: u32,
    /// Why it did not run.
    pub cause: InterruptionCause,
    /// Who or what was responsible.
    pub culprit: Culprit,
    /// As in [`Interruption::detail`], but of stolen time in nanoseconds.
    pub detail: u32,
    /// Its CPU.
    pub cpu: u16,
    /// Start on `CLOCK_MONOTONIC`, nanoseconds.
    pub start_ns: u64,
    /// End on `CLOCK_MONOTONIC`, nanoseconds.
    pub end_ns: u64,
}

/// Whose thread it was, by the numbers with which it was added.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Whose {
    /// A worker's.
    Worker(u32),
    /// A front end's.
    FrontEnd(u32),
    /// A program's at the far end.
    FarEnd,
}

/// `INTERRUPTION` of the programs.
const INTERRUPTION: u32 = 0x100;

impl Event {
    /// Reads a `struct event` or a `struct interruption` of the programs.
    pub(crate) fn read(bytes: &[u8]) -> Option<Self> {
        let long = |at: usize| Some(u64::from_ne_bytes(bytes.get(at..at + 8)?.try_into().ok()?));
        let short = |at: usize| Some(u32::from_ne_bytes(bytes.get(at..at + 4)?.try_into().ok()?));
        let (start_ns, end_ns, kind, about) = (long(0)?, long(8)?, short(16)?, short(20)?);
        let Some(cause) = kind.checked_sub(INTERRUPTION) else {
            let stage = KernelStage::from_number(u8::try_from(kind).ok()?)?;
            return Some(Self::Span(Span { stage, about, start_ns, end_ns }));
        };
        let whose = match short(24)? {
            1 => Whose::Worker(about),
            2 => Whose::FrontEnd(about),
            3 => Whose::FarEnd,
            _ => return None,
        };
        let byte = |at| short(at).map(|value| u8::try_from(value).unwrap_or(u8::MAX));
        let culprit = Culprit {
            process: short(40)?,
            thread: short(44)?,
            policy: byte(48)?,
            priority: byte(52)?,
            command: padded(bytes.get(56..72)?.try_into().ok()?),
        };
        Some(Self::Thread(ThreadEvent {
            whose,
            thread: short(28)?,
            cause: InterruptionCause::from_number(u8::try_from(cause).ok()?)?,
            culprit,
            detail: short(32)?,
            cpu: u16::try_from(short(36)?).unwrap_or(u16::MAX),
            start_ns,
            end_ns,
        }))
    }
}

/// Longest use of an anchor. The two clocks drift apart by a few nanoseconds in this time.
const ANCHORED: Duration = Duration::from_millis(10);

/// Converts what the programs tell to records.
#[derive(Debug)]
pub struct Scribe {
    clock: Clock,
    anchor: Anchor,
    /// [`ANCHORED`] in ticks.
    anchored: u64,
}

impl Scribe {
    /// A scribe whose records have times of `clock`.
    #[must_use]
    pub fn new(clock: Clock) -> Self {
        Self { clock, anchor: clock.anchor(), anchored: clock.ticks_in(ANCHORED) }
    }

    /// The record of a span that has just ended. `worker` is the number of its worker, and used only for stages of a
    /// worker.
    pub fn span(&mut self, span: Span, worker: u32) -> KernelSpan {
        KernelSpan {
            stage: span.stage,
            start: self.ticks_at(span.start_ns),
            end: self.ticks_at(span.end_ns),
            worker: span.stage.is_of_a_worker().then_some(worker),
            writer: 0,
        }
    }

    /// The record of an interruption that has just ended. `worker` is the number of its worker, and used only for a
    /// worker's.
    pub fn interruption(&mut self, event: &ThreadEvent, worker: u32) -> Interruption {
        let &ThreadEvent { thread, cause, culprit, cpu, start_ns, end_ns, .. } = event;
        let detail = match cause {
            InterruptionCause::Hypervisor => {
                let stolen = Duration::from_nanos(event.detail.into());
                u32::try_from(self.clock.ticks_in(stolen)).unwrap_or(u32::MAX)
            }
            _ => event.detail,
        };
        let subject = match event.whose {
            Whose::Worker(_) => Subject::Worker(worker),
            Whose::FrontEnd(_) => Subject::FrontEnd,
            Whose::FarEnd => Subject::FarEnd,
        };
        let (start, end) = (self.ticks_at(start_ns), self.ticks_at(end_ns));
        Interruption { start, end, subject, thread, cause, culprit, detail, cpu, writer: 0 }
    }

    fn ticks_at(&mut self, ns: u64) -> u64 {
        if self.clock.now().abs_diff(self.anchor.ticks) > self.anchored {
            self.anchor = self.clock.anchor();
        }
        self.anchor.ticks_at(ns, &self.clock)
    }
}

/// A name without what lay in memory behind its end.
fn padded(mut name: [u8; 16]) -> [u8; 16] {
    let end = name.iter().position(|byte| *byte == 0).unwrap_or(name.len());
    name[end..].fill(0);
    name
}

#[cfg(test)]
mod tests {
    use super::*;

    fn bytes(words: &[u32]) -> Vec<u8> {
        words.iter().flat_map(|word| word.to_ne_bytes()).collect()
    }

    #[test]
    fn an_event_is_read_as_the_programs_write_it() {
        if cfg!(target_endian = "big") {
            return;
        }
        let span = bytes(&[7, 0, 9, 0, KernelStage::HostTx as u32, 3]);
        let expected = Span { stage: KernelStage::HostTx, about: 3, start_ns: 7, end_ns: 9 };
        assert_eq!(Event::read(&span), Some(Event::Span(expected)));
        assert_eq!(Event::read(&span[..20]), None, "half of one");
        assert_eq!(Event::read(&[0; 24]), None, "no stage");

        let kind = INTERRUPTION + InterruptionCause::Preempted as u32;
        let name = |at| u32::from_ne_bytes(b"hog\0\0\0\0\0"[at..at + 4].try_into().unwrap());
        let told =
            bytes(&[7, 0, 9, 0, kind, 3, 1, 21, 22, 1, 23, 24, 1, 50, name(0), name(4), 7, 0]);
        let mut command = [0; 16];
        command[..3].copy_from_slice(b"hog");
        let expected = ThreadEvent {
            whose: Whose::Worker(3),
            thread: 21,
            cause: InterruptionCause::Preempted,
            culprit: Culprit { process: 23, thread: 24, command, policy: 1, priority: 50 },
            detail: 22,
            cpu: 1,
            start_ns: 7,
            end_ns: 9,
        };
        assert_eq!(Event::read(&told), Some(Event::Thread(expected)));
        assert_eq!(Event::read(&told[..60]), None, "half of one");
        let of_nobody = bytes(&[7, 0, 9, 0, kind, 3, 4, 21, 22, 1, 23, 24, 1, 50, 0, 0, 0, 0]);
        assert_eq!(Event::read(&of_nobody), None);
    }
}
