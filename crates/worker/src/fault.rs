//! PlantedDelay delays and panics, for tests. A delay in one stage proves that it shows in that stage and in no other.

use std::fmt;
use std::str::FromStr;
use std::time::Duration;

use burst_trace::{Direction, Stage};

use crate::clock::{Clock, Deadline};

/// One delay: `delay:STAGE=USEC[,every=N]`. STAGE may have a direction: `tx.signal`.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Delay {
    /// The direction; both directions if `None`.
    pub direction: Option<Direction>,
    /// The stage that is delayed.
    pub stage: Stage,
    /// Length of the delay.
    pub time: Duration,
    /// One in this many bursts is delayed.
    pub every: u32,
}

impl FromStr for Delay {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, Self::Err> {
        let form = "expected delay:STAGE=USEC[,every=N]";
        let wrong = || format!("{form}, found '{text}'");
        let mut parts = text.strip_prefix("delay:").ok_or_else(wrong)?.split(',');
        let (name, time) = parts.next().and_then(|part| part.split_once('=')).ok_or_else(wrong)?;
        let (direction, name) = match name.split_once('.') {
            None => (None, name),
            Some(("tx", stage)) => (Some(Direction::Tx), stage),
            Some(("rx", stage)) => (Some(Direction::Rx), stage),
            Some(_) => return Err(wrong()),
        };
        let known = |stage: &Stage| match direction {
            Some(direction) => direction.stages().contains(stage),
            None => true,
        };
        let stage = Stage::from_name(name).filter(known).ok_or_else(|| {
            let names: Vec<_> = Stage::ALL.iter().map(|stage| stage.name()).collect();
            format!("expected one of the stages {}, found '{name}'", names.join(", "))
        })?;
        let microseconds: u64 = time.parse().map_err(|_| wrong())?;
        if microseconds > 1_000_000 {
            return Err(format!("expected a delay of at most 1000000 us, found {microseconds}"));
        }
        let every = match parts.next() {
            None => 1,
            Some(part) => part
                .strip_prefix("every=")
                .and_then(|number| number.parse().ok())
                .filter(|&every| every > 0)
                .ok_or_else(wrong)?,
        };
        if parts.next().is_some() {
            return Err(wrong());
        }
        Ok(Self { direction, stage, time: Duration::from_micros(microseconds), every })
    }
}

/// As it is read.
impl fmt::Display for Delay {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let direction = self.direction.map_or(String::new(), |it| format!("{}.", it.name()));
        write!(f, "delay:{direction}{}={}", self.stage.name(), self.time.as_micros())?;
        if self.every > 1 { write!(f, ",every={}", self.every) } else { Ok(()) }
    }
}

/// One panic: `panic:tx|rx[,after=N]`, after N bursts. Tests use it to show that the daemon ends in order after a
/// panic.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Crash {
    /// The direction of the bursts that count.
    pub direction: Direction,
    /// Number of bursts of that direction before the panic.
    pub after: u32,
}

impl FromStr for Crash {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, Self::Err> {
        let wrong = || format!("expected panic:tx|rx[,after=N], found '{text}'");
        let mut parts = text.strip_prefix("panic:").ok_or_else(wrong)?.split(',');
        let direction = match parts.next() {
            Some("tx") => Direction::Tx,
            Some("rx") => Direction::Rx,
            _ => return Err(wrong()),
        };
        let after = match parts.next() {
            None => 0,
            Some(part) => part
                .strip_prefix("after=")
                .and_then(|number| number.parse().ok())
                .ok_or_else(wrong)?,
        };
        if parts.next().is_some() {
            return Err(wrong());
        }
        Ok(Self { direction, after })
    }
}

/// The planted faults of one worker for one guest, and how far they have counted.
#[derive(Clone, Debug, Default)]
pub(crate) struct Fault {
    planted: Vec<PlantedDelay>,
    crashes: Vec<Crash>,
}

#[derive(Clone, Debug)]
struct PlantedDelay {
    delay: Delay,
    ticks: u64,
    bursts: u32,
}

impl Fault {
    /// Plants `delays` and `crashes`.
    pub(crate) fn new(delays: &[Delay], crashes: &[Crash], clock: &Clock) -> Self {
        let plant = |delay: &Delay| PlantedDelay {
            delay: *delay,
            ticks: clock.ticks_in(delay.time),
            bursts: 0,
        };
        Self { planted: delays.iter().map(plant).collect(), crashes: crashes.to_vec() }
    }

    /// Plants `delays` in place of those that are planted. Panics stay.
    pub(crate) fn set_delays(&mut self, delays: &[Delay], clock: &Clock) {
        self.planted = Self::new(delays, &[], clock).planted;
    }

    /// The delays that are planted.
    pub(crate) fn delays(&self) -> Vec<Delay> {
        self.planted.iter().map(|planted| planted.delay).collect()
    }

    /// Whether nothing is planted.
    pub(crate) const fn is_empty(&self) -> bool {
        self.planted.is_empty() && self.crashes.is_empty()
    }

    /// Waits if a delay is due in this stage now. Returns whether this stage has any delays.
    ///
    /// # Panics
    /// When a panic is planted here.
    pub(crate) fn wait(&mut self, direction: Direction, stage: Stage, clock: &Clock) -> bool {
        if stage == Stage::Notice {
            self.begin_burst(direction);
        }
        let mut here = false;
        for planted in &mut self.planted {
            let Delay { direction: only, stage: at, every, .. } = planted.delay;
            if at != stage || only.is_some_and(|only| only != direction) {
                continue;
            }
            here = true;
            planted.bursts += 1;
            if planted.bursts == every {
                planted.bursts = 0;
                let end = Deadline::after(clock.now(), planted.ticks);
                while !end.is_due(clock.now()) {
                    std::hint::spin_loop();
                }
            }
        }
        here
    }

    fn begin_burst(&mut self, direction: Direction) {
        for crash in self.crashes.iter_mut().filter(|crash| crash.direction == direction) {
            assert!(crash.after > 0, "planted by --fault panic");
            crash.after -= 1;
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn delays_are_read() {
        let delay: Delay = "delay:egress=200,every=10".parse().unwrap();
        let expected = Delay {
            direction: None,
            stage: Stage::Egress,
            time: Duration::from_micros(200),
            every: 10,
        };
        assert_eq!(delay, expected);
        let delay: Delay = "delay:rx.signal=5".parse().unwrap();
        assert_eq!((delay.direction, delay.every), (Some(Direction::Rx), 1));
        for text in ["delay:egress=200,every=10", "delay:rx.signal=5"] {
            assert_eq!(text.parse::<Delay>().unwrap().to_string(), text);
        }
        for wrong in [
            "egress=5",
            "delay:egress",
            "delay:egress=x",
            "delay:wakeup=5",
            "delay:rx.egress=5",
            "delay:egress=5,every=0",
            "delay:egress=5,every=2,every=3",
            "delay:egress=2000000",
        ] {
            assert!(wrong.parse::<Delay>().is_err(), "{wrong}");
        }
    }

    #[test]
    fn panics_are_read() {
        let crash: Crash = "panic:tx,after=3".parse().unwrap();
        assert_eq!(crash, Crash { direction: Direction::Tx, after: 3 });
        assert_eq!("panic:rx".parse(), Ok(Crash { direction: Direction::Rx, after: 0 }));
        for wrong in ["panic", "panic:", "panic:both", "panic:tx,after=", "panic:tx,every=2"] {
            assert!(wrong.parse::<Crash>().is_err(), "{wrong}");
        }
    }

    #[test]
    fn a_delay_is_due_every_so_many_bursts() {
        let clock = Clock::from(burst_trace::Clock::new());
        let delay: Delay = "delay:tx.notice=2000,every=3".parse().unwrap();
        let mut fault = Fault::new(&[delay], &[], &clock);
        let limit = clock.ticks_in(Duration::from_micros(2000));
        let mut delayed = Vec::new();
        for _ in 0..6 {
            let before = clock.now();
            assert!(fault.wait(Direction::Tx, Stage::Notice, &clock));
            delayed.push(clock.now() - before >= limit);
        }
        assert_eq!(delayed, [false, false, true, false, false, true]);
        assert!(!fault.wait(Direction::Rx, Stage::Notice, &clock));
        assert!(!fault.wait(Direction::Tx, Stage::Signal, &clock));
    }
}
