//! Guests whose memory became shorter: their rings stop, all others go on.

use burst_trace::DropCause;
use datapath::Datapath;

use crate::pair::Pair;
use crate::ring::{Ring, RingState};
use crate::trace::Tracer;

/// The reason in the log.
pub const TORN: &str =
    "a part of the guest's memory is missing (its file was truncated, or its file system is full)";

impl<D: Datapath> Pair<D> {
    /// Breaks the rings whose memory is torn. Returns whether there was one.
    #[cold]
    pub fn break_torn(&mut self, tracer: &mut Tracer) -> bool {
        let [rx, tx] =
            [&mut self.rx, &mut self.tx].map(|ring| ring.as_deref_mut().is_some_and(break_one));
        if tx {
            (self.backlog, self.blocked) = (None, false);
        }
        if rx {
            self.starved = None;
            self.drop_held(DropCause::RxStopped, tracer);
        }
        rx || tx
    }
}

fn break_one(ring: &mut Ring) -> bool {
    let is_torn = ring.state != RingState::Broken && ring.memory.is_torn();
    if is_torn {
        ring.stop_broken(format_args!("{TORN}"));
    }
    is_torn
}
