//! What the programs tell becomes records of the guests that it is about.

use burst_trace::{Clock, KernelStage, Writer};
use kernel_stages::{Event, Scribe, Span, ThreadEvent, Whose};

/// The recorders of guests, and their workers' threads.
#[derive(Default)]
pub struct Records {
    /// The writer of each guest, and what converts to its clock; `None` until its workers run.
    guests: Vec<Option<(Scribe, Writer)>>,
    /// The guests of each worker's thread, with its number there. Guests of a switch share one worker.
    threads: Vec<Vec<(usize, u32)>>,
}

impl Records {
    /// The number of the next guest, whose writer follows.
    pub fn add_guest(&mut self) -> usize {
        self.guests.push(None);
        self.guests.len() - 1
    }

    /// The guest's times go to `writer` from now on.
    pub fn set_writer(&mut self, guest: usize, writer: Writer, clock: Clock) {
        self.guests[guest] = Some((Scribe::new(clock), writer));
    }

    /// A worker's thread that is followed serves a guest, where it is the worker of this number. Returns the thread's own number;
    /// `thread`: the same, if it serves another guest already.
    pub fn add_thread(&mut self, guest: usize, worker: u32, thread: Option<usize>) -> usize {
        let number = thread.unwrap_or(self.threads.len());
        if number == self.threads.len() {
            self.threads.push(Vec::new());
        }
        self.threads[number].push((guest, worker));
        number
    }

    /// Stores what the programs told.
    pub fn write(&mut self, event: Event) {
        match event {
            Event::Span(span) => self.write_span(span),
            Event::Thread(event) => self.write_interruption(&event),
        }
    }

    fn write_span(&mut self, span: Span) {
        let whose = match span.stage {
            // Of no worker: it ends before a worker has the frame, or begins after a worker's signal.
            KernelStage::HostRx | KernelStage::Inject => Whose::FrontEnd(span.about),
            _ => Whose::Worker(span.about),
        };
        self.each(whose, |scribe, writer, worker| writer.kernel(&scribe.span(span, worker)));
    }

    fn write_interruption(&mut self, event: &ThreadEvent) {
        self.each(event.whose, |scribe, writer, worker| {
            writer.interruption(&scribe.interruption(event, worker));
        });
    }

    /// Calls `write` for each guest that it is about, with the worker's number there; 0 if it is about no worker.
    fn each(&mut self, whose: Whose, mut write: impl FnMut(&mut Scribe, &mut Writer, u32)) {
        let Self { guests, threads } = self;
        let mut one = |guest: usize, worker| {
            if let Some((scribe, writer)) = guests.get_mut(guest).and_then(Option::as_mut) {
                write(scribe, writer, worker);
            }
        };
        match whose {
            Whose::FrontEnd(guest) => one(guest as usize, 0),
            Whose::Worker(number) => {
                let owners = threads.get(number as usize).into_iter().flatten();
                owners.for_each(|&(guest, worker)| one(guest, worker));
            }
            // Nobody names such a program to the daemon.
            Whose::FarEnd => {}
        }
    }
}
