//! One way at a time: from the talker to the responder, and back, where both clocks can be compared with the host's.

use std::collections::HashMap;

use report::journey::stamps::Stamps;

use crate::clock_offset::Clocks;
use crate::samples::Sample;

/// The times of both ways, nanoseconds; a probe that was lost has none.
#[derive(Clone, Debug, Default)]
pub struct OneWay {
    /// From the intended time to the responder's program.
    pub to_responder: Vec<u64>,
    /// From the responder's program to the talker's.
    pub to_talker: Vec<u64>,
    /// By how much each of them may be wrong, nanoseconds.
    pub bound_ns: u64,
}

impl OneWay {
    /// The times of one measurement. `None` if a clock cannot be compared.
    #[must_use]
    pub fn of(clocks: &Clocks, samples: &[Sample], sent: &Stamps, turned: &Stamps) -> Option<Self> {
        let (talker, responder) = (clocks.talker?, clocks.responder?);
        // A probe's stamps and its sample have the time of sending in common.
        let ids: HashMap<_, _> = sent.probes.iter().map(|(id, stamp)| (stamp.sent, id)).collect();
        let mut ways = Self { bound_ns: talker.bound_ns + responder.bound_ns, ..Self::default() };
        for sample in samples {
            let turn = ids.get(&sample.sent).and_then(|id| turned.probes.get(id));
            let Some((turn, (received, arrived))) =
                turn.and_then(|turn| Some((turn, sample.received.zip(turn.received)?)))
            else {
                continue;
            };
            let times = [
                talker.on_host(sample.intended),
                responder.on_host(arrived),
                responder.on_host(turn.sent),
                talker.on_host(received),
            ];
            if let [Some(intended), Some(arrived), Some(returned), Some(received)] = times {
                ways.to_responder.push(arrived.saturating_sub(intended));
                ways.to_talker.push(received.saturating_sub(returned));
            }
        }
        Some(ways)
    }

    /// Adds the times of another measurement.
    pub(crate) fn add(&mut self, more: Self) {
        self.to_responder.extend(more.to_responder);
        self.to_talker.extend(more.to_talker);
        self.bound_ns = self.bound_ns.max(more.bound_ns);
    }
}

#[cfg(test)]
mod tests {
    use report::journey::stamps::{ProbeId, Stamp};

    use super::*;
    use crate::clock_offset::ClockOffset;

    #[test]
    fn both_ways_are_on_the_hosts_clock() {
        let id = ProbeId { run: 1, sequence: 0 };
        let stamps = |stamp| Stamps { probes: [(id, stamp)].into(), ..Stamps::default() };
        let sent = stamps(Stamp { sent: 110, received: Some(200), ..Stamp::default() });
        let turned = stamps(Stamp { received: Some(1140), sent: 1150, ..Stamp::default() });
        let samples = [
            Sample { intended: 100, sent: 110, received: Some(200) },
            Sample { intended: 300, sent: 310, received: None },
        ];
        let mut clocks = Clocks {
            talker: Some(ClockOffset::NONE),
            responder: Some(ClockOffset { ahead_ns: 1000, bound_ns: 3 }),
            ..Clocks::default()
        };
        let ways = OneWay::of(&clocks, &samples, &sent, &turned).unwrap();
        assert_eq!((ways.to_responder, ways.to_talker, ways.bound_ns), (vec![40], vec![50], 3));
        clocks.responder = None;
        assert!(OneWay::of(&clocks, &samples, &sent, &turned).is_none());
    }
}
