//! How a worker answers its operator.

use crate::idle::{IdleGap, PollPolicy};
use crate::operator::{Request, RingStanding, Setting, Standing, StartedRing};
use crate::ring::{Ring, RingState};
use crate::topology::Topology;
use crate::turn::Loop;

impl<T: Topology> Loop<T> {
    /// Answers a request of the operator about `guest`.
    #[cold]
    pub(crate) fn serve_operator(&mut self, guest: usize, request: Request) {
        // Who asked may have gone.
        match request {
            Request::Look(done) => _ = done.send(self.standing(guest)),
            Request::Set(setting, done) => {
                self.set(guest, setting);
                let _ = done.send(());
            }
        }
    }

    fn standing(&self, guest: usize) -> Standing {
        let tracer = &self.tracers[guest];
        let its = self.pairs.iter().filter(|(tx, _)| tx.guest() == guest);
        let rings = its.flat_map(|(tx, rx)| {
            let [to_guest, from_guest] = [rx.waits_for_limit(), tx.waits_for_limit()];
            let starved = rx.is_starved().then_some("buffers").or(to_guest.then_some("limit"));
            let blocked = tx.is_blocked().then_some("datapath");
            let blocked = blocked.or(from_guest.then_some("limit"));
            [
                standing_of(rx.index(), rx.started(), starved),
                standing_of(tx.index(), tx.started(), blocked),
            ]
        });
        Standing {
            poll: self.idle.policy(),
            trace: tracer.records(),
            delays: tracer.delays(),
            faults: self.topology.planted(),
            capture: self.topology.captured(),
            probes: self.pairs.probe_targets(guest),
            limits: self.pairs.limits(guest),
            rings: rings.collect(),
        }
    }

    fn set(&mut self, guest: usize, setting: Setting) {
        match setting {
            Setting::Poll(policy) => self.poll(policy),
            Setting::Trace(records) => {
                let was = self.tracers[guest].set_records(records);
                if records && !was {
                    self.pairs.see_again(guest, self.shared.clock.now());
                }
            }
            Setting::Limit(direction, bucket) => {
                self.pairs.set_limit(guest, direction, bucket.as_ref());
            }
            Setting::Faults(delays, planted) => {
                self.tracers[guest].set_delays(&delays);
                self.topology.plant(&planted);
            }
            Setting::Capture(mut lanes) => {
                for at in 0..self.pairs.len() {
                    let pair = self.pairs.rings(at)[0] / 2;
                    let its = lanes.iter().position(|(number, _)| *number == pair);
                    self.topology.capture(at, its.map(|its| lanes.swap_remove(its).1));
                }
            }
            Setting::Probes(targets) => self.pairs.set_probe_targets(guest, &targets),
        }
    }

    fn poll(&mut self, policy: PollPolicy) {
        self.idle = IdleGap::new(policy, self.shared.clock, self.pairs.len());
        self.shared.polling = policy != PollPolicy::Never;
        // A worker that polls need not have noted that a datapath is readable. Listening again reports it.
        if std::mem::take(&mut self.listens) {
            self.topology.ignore(&self.shared.sleeper);
        }
    }
}

fn standing_of(index: u16, ring: Option<&Ring>, waits_for: Option<&'static str>) -> RingStanding {
    let state = match ring.map(Ring::state) {
        None => "stopped",
        Some(RingState::Waiting) => "waiting",
        Some(RingState::Enabled) => "enabled",
        Some(RingState::Disabled) => "disabled",
        Some(RingState::Broken) => "broken",
    };
    let started = ring.map(|ring| StartedRing { waits_for, ..ring.standing() });
    RingStanding { ring: index, state, started }
}
