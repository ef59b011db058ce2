//! The gate of a traffic class in a cyclic schedule (IEEE 802.1Q-2018, 8.6.8.4; `tc-taprio(8)`).

use std::str::FromStr;

/// Times of `CLOCK_TAI` at which frames of a class may leave: from `opens_ns` to `closes_ns` of each cycle.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Gate {
    /// The start of a cycle.
    base_ns: u64,
    cycle_ns: u64,
    opens_ns: u64,
    closes_ns: u64,
}

/// What a gate looks like on the command line.
const FORM: &str = "CYCLE:OPENS-CLOSES, or CYCLE:OPENS-CLOSES@BASE, as in 10000:0-4000; CYCLE, OPENS and CLOSES in us, \
                    OPENS < CLOSES <= CYCLE; BASE in ns of CLOCK_TAI";

impl FromStr for Gate {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        parse(text).ok_or_else(|| format!("expected {FORM}"))
    }
}

fn parse(text: &str) -> Option<Gate> {
    let (schedule, base) = text.split_once('@').unwrap_or((text, "0"));
    let (cycle, open) = schedule.split_once(':')?;
    let (opens, closes) = open.split_once('-')?;
    let ns = |us: &str| us.parse::<u64>().ok()?.checked_mul(1000);
    let gate = Gate {
        base_ns: base.parse().ok()?,
        cycle_ns: ns(cycle)?,
        opens_ns: ns(opens)?,
        closes_ns: ns(closes)?,
    };
    (gate.opens_ns < gate.closes_ns && gate.closes_ns <= gate.cycle_ns).then_some(gate)
}

impl Gate {
    /// The time from `tai_ns` until the gate is open, and stays open for `needed_ns`; 0 if it is open then. `None` if it
    /// is never open for so long.
    pub fn wait_ns(&self, tai_ns: u64, needed_ns: u64) -> Option<u64> {
        let last = self.closes_ns.checked_sub(needed_ns).filter(|&last| last >= self.opens_ns)?;
        let cycle = i128::from(self.cycle_ns);
        let phase = (i128::from(tai_ns) - i128::from(self.base_ns)).rem_euclid(cycle) as u64;
        Some(if phase < self.opens_ns {
            self.opens_ns - phase
        } else if phase <= last {
            0
        } else {
            self.cycle_ns - phase + self.opens_ns
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_gate_is_waited_for_until_it_opens_long_enough() {
        let gate: Gate = "10:2-6@7000".parse().unwrap();
        let base = 7000 + 3 * 10_000;
        // Phase in the cycle, time needed, wait.
        for (phase, needed, wait) in [
            (0, 0, 2000),
            (1999, 0, 1),
            (2000, 0, 0),
            (6000, 0, 0),
            (6001, 0, 5999),
            (5000, 1000, 0),
            (5001, 1000, 6999),
            (9999, 4000, 2001),
            (2000, 4000, 0),
            (2001, 4000, 9999),
        ] {
            assert_eq!(gate.wait_ns(base + phase, needed), Some(wait), "{phase} {needed}");
        }
        assert_eq!(gate.wait_ns(base, 4001), None);
        // Before the base time, too.
        assert_eq!(gate.wait_ns(6999, 0), Some(2001));
    }

    #[test]
    fn after_the_wait_the_gate_is_open() {
        let gate: Gate = "1000:100-400".parse().unwrap();
        for at in (0..3_000_000).step_by(997) {
            let open = at + gate.wait_ns(at, 50_000).unwrap();
            assert!((100_000..=350_000).contains(&(open % 1_000_000)), "{at}");
            assert_eq!(gate.wait_ns(open, 50_000), Some(0), "{at}");
        }
    }

    #[test]
    fn what_is_no_gate_is_refused() {
        for text in [
            "",
            "10",
            "10:2",
            "10:6-2",
            "10:2-2",
            "10:2-11",
            "0:0-0",
            "x:1-2",
            "10:1-2@x",
            "10:1-2@-1",
        ] {
            assert!(text.parse::<Gate>().is_err(), "{text}");
        }
        assert!(format!("{0}:0-{0}", u64::MAX).parse::<Gate>().is_err());
    }
}
