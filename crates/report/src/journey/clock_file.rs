//! The files of `ringscope agent clock`, as bounds of the guest's clock.
//!
//! There are three kinds. Bounds by a clock page are those of the host's `CLOCK_MONOTONIC` already. Bounds by `ptp_kvm` are
//! those of the host's `CLOCK_REALTIME`. And the guest's counter beside its clock says nothing of the host by itself: with
//! the offset that KVM adds to the counter, the host's counter at that time is known, and so is the host's clock.

use std::fs::File;
use std::io::{self, Read as _};
use std::path::{Path, PathBuf};

use serde::Deserialize;
use serde_json::{Deserializer, Value};

use super::host_clocks::HostClocks;
use super::known_clock::{ClockBound, ClockBounds, Means};

/// Most bounds, or readings of a counter, in a file.
const BOUNDS_MAX: usize = 10_000;
/// Most bytes of a file with bounds.
const FILE_BYTES_MAX: u64 = 4 << 20;
/// The counter of which KVM says the offset.
const TSC: &str = "tsc";

/// Why a file cannot be used.
#[derive(Debug, thiserror::Error)]
pub enum ClockFileError {
    /// The file could not be read.
    #[error("cannot read the clock file {path}: {source}; make it with `ringscope agent clock`")]
    Io {
        /// Its path.
        path: PathBuf,
        /// The system's error.
        source: io::Error,
    },
    /// The file is something else.
    #[error(
        "{path} is no clock file: expected what `ringscope agent clock` prints, 1 to {BOUNDS_MAX} bounds or the guest's \
         counter, found {found}"
    )]
    Format {
        /// Its path.
        path: PathBuf,
        /// What was found instead.
        found: String,
    },
    /// It does not say how the guest's clock relates to the host's.
    #[error("{path} bounds no clock: {reason}")]
    Unrelated {
        /// Its path.
        path: PathBuf,
        /// What is missing.
        reason: String,
    },
}

/// One object of a file.
#[derive(Debug)]
enum Object {
    Bounds(Measured),
    Pairs(CounterPairs),
}

/// What `ringscope agent clock --page` or `--ptp` prints. By `ptp_kvm`, the host's clock is `CLOCK_REALTIME`.
#[derive(Debug, Deserialize)]
struct Measured {
    relation: Means,
    bounds: Vec<ClockBound>,
}

/// What `ringscope agent clock` prints in the guest.
#[derive(Debug, Deserialize)]
struct CounterPairs {
    counter: String,
    pairs: [CounterPair; 2],
}

/// The guest's `CLOCK_MONOTONIC`, nanoseconds, read between two readings of its counter, ticks.
#[derive(Clone, Copy, Debug, Deserialize)]
struct CounterPair {
    before: u64,
    monotonic_ns: i64,
    after: u64,
}

impl ClockBounds {
    /// Reads a file of `ringscope agent clock`: one JSON object of bounds, or one object for each time that the agent has read
    /// the guest's counter. `host`: the clocks of the guest's host.
    ///
    /// # Errors
    /// If the file cannot be read, is something else, has a bound whose lower end is above its upper one, or needs more than
    /// is known of the host.
    pub fn read(path: &Path, host: &HostClocks) -> Result<Self, ClockFileError> {
        let io = |source| ClockFileError::Io { path: path.into(), source };
        let mut text = String::new();
        let file = File::open(path).map_err(io)?;
        file.take(FILE_BYTES_MAX + 1).read_to_string(&mut text).map_err(io)?;
        let found = if text.len() as u64 > FILE_BYTES_MAX {
            Err(format!("more than {FILE_BYTES_MAX} bytes"))
        } else {
            parse(&text)
        };
        let objects = found.map_err(|found| ClockFileError::Format { path: path.into(), found })?;
        let unrelated = |reason| ClockFileError::Unrelated { path: path.into(), reason };
        related(objects, host).map_err(unrelated)
    }
}

/// The objects of a file: one with bounds, or some with a counter.
fn parse(text: &str) -> Result<Vec<Object>, String> {
    let mut objects = Vec::new();
    for value in Deserializer::from_str(text).into_iter::<Value>() {
        let value = value.map_err(|error| error.to_string())?;
        let is_bounds = value.get("relation").is_some();
        // The error of the kind that it is meant to be.
        let object = match is_bounds {
            true => serde_json::from_value(value).map(Object::Bounds),
            false => serde_json::from_value(value).map(Object::Pairs),
        };
        objects.push(object.map_err(|error| error.to_string())?);
    }
    let bounds = objects.iter().find_map(|object| match object {
        Object::Bounds(measured) => Some(measured),
        Object::Pairs(_) => None,
    });
    match bounds {
        None if objects.is_empty() => Err("nothing".into()),
        None if objects.len() > BOUNDS_MAX => Err(format!("{} objects", objects.len())),
        None => Ok(objects),
        Some(_) if objects.len() > 1 => Err(format!("{} objects", objects.len())),
        Some(Measured { bounds, .. }) if bounds.is_empty() || bounds.len() > BOUNDS_MAX => {
            Err(format!("{} bounds", bounds.len()))
        }
        Some(Measured { bounds, .. }) => {
            match bounds.iter().find(|bound| bound.low_ns > bound.high_ns) {
                None => Ok(objects),
                Some(ClockBound { low_ns, high_ns, .. }) => {
                    Err(format!("an offset of at least {low_ns} ns and at most {high_ns} ns"))
                }
            }
        }
    }
}

/// The bounds by the host's `CLOCK_MONOTONIC`.
fn related(objects: Vec<Object>, host: &HostClocks) -> Result<ClockBounds, String> {
    let (mut means, mut bounds) = (Means::KvmTsc, Vec::new());
    for object in objects {
        match object {
            Object::Bounds(measured) => {
                means = measured.relation;
                bounds = measured.bounds;
            }
            Object::Pairs(CounterPairs { counter, .. }) if counter != TSC => {
                return Err(format!("KVM says the offset of the counter {TSC}, found {counter}"));
            }
            Object::Pairs(CounterPairs { pairs, .. }) => {
                for pair in pairs {
                    bounds.push(by_counter(pair, host)?);
                }
            }
        }
    }
    if means == Means::PtpKvm {
        for bound in &mut bounds {
            *bound = by_monotonic(*bound, host)?;
        }
    }
    Ok(ClockBounds { means, bounds })
}

/// The bound that a reading of the guest's counter gives.
fn by_counter(pair: CounterPair, host: &HostClocks) -> Result<ClockBound, String> {
    let CounterPair { before, monotonic_ns, after } = pair;
    let ([from_ns, _], [_, to_ns]) =
        (host.at_guest_counter(before)?, host.at_guest_counter(after)?);
    if to_ns < from_ns {
        return Err(format!("the guest's counter went back from {before} to {after}"));
    }
    Ok(ClockBound {
        host_ns: from_ns + (to_ns - from_ns) / 2,
        low_ns: monotonic_ns.saturating_sub(to_ns),
        // Clocks are read without the fractions of their nanoseconds.
        high_ns: monotonic_ns.saturating_add(1).saturating_sub(from_ns),
    })
}

/// The same bound by the host's `CLOCK_MONOTONIC` in place of its `CLOCK_REALTIME`.
fn by_monotonic(bound: ClockBound, host: &HostClocks) -> Result<ClockBound, String> {
    let [low, high] = host.realtime_ahead_ns()?;
    Ok(ClockBound {
        host_ns: bound.host_ns.saturating_sub(low),
        low_ns: bound.low_ns.saturating_add(low),
        high_ns: bound.high_ns.saturating_add(high),
    })
}

#[cfg(test)]
mod tests {
    use super::super::host_clocks::tests::{host, plain};
    use super::*;

    fn read(text: &str, host: &HostClocks) -> Result<ClockBounds, String> {
        parse(text).and_then(|objects| related(objects, host))
    }

    #[test]
    fn a_file_of_bounds_is_read_and_what_is_wrong_is_said() {
        let good = r#"{"relation":"clock-page","exchanges":9,"shortest_ns":50,"more":1,
            "bounds":[{"host_ns":1000,"low_ns":-7,"high_ns":5}]}"#;
        let page = read(good, &plain()).unwrap();
        assert_eq!(page.bounds, [ClockBound { host_ns: 1000, low_ns: -7, high_ns: 5 }]);
        assert_eq!(page.means, Means::ClockPage);
        for (from, to, found) in [
            ("clock-page", "guess", "guess"),
            (r#"{"host_ns":1000,"low_ns":-7,"high_ns":5}"#, "", "0 bounds"),
            ("-7", "6", "at least 6 ns and at most 5 ns"),
            ("1000", "1e30", "invalid"),
            ("bounds", "x", "missing field"),
            ("relation", "counter", "missing field"),
        ] {
            let error = read(&good.replacen(from, to, 1), &plain()).unwrap_err();
            assert!(error.contains(found), "{error}");
        }
        assert!(read(&(good.to_owned() + good), &plain()).unwrap_err().contains("2 objects"));
        assert_eq!(read(" ", &plain()).unwrap_err(), "nothing");
        let directory = tempfile::tempdir().unwrap();
        let error = ClockBounds::read(directory.path(), &plain()).unwrap_err().to_string();
        assert!(error.contains("ringscope agent clock"), "{error}");
    }

    #[test]
    fn the_guests_counter_is_the_hosts_with_the_offset_of_kvm() {
        // A tick is a nanosecond, and the host's clock is 0 at its counter's 0. The guest's counter is 10,000 ticks behind, and
        // its clock 700 ns ahead of that.
        let host =
            host(r#"{"guest_counter":{"tsc_offset":-10000,"scaling_ratio":1,"fraction_bits":0}}"#);
        let pair = |at: i64| {
            let (before, clock, after) = (at - 40 - 10_000, at - 10_000 + 700, at + 60 - 10_000);
            format!(r#"{{"before":{before},"monotonic_ns":{clock},"after":{after}}}"#)
        };
        let line = |at: i64| {
            format!(
                r#"{{"counter":"tsc","pairs":[{},{}],"tai":null}}{}"#,
                pair(at),
                pair(at + 1_000_000),
                "\n"
            )
        };
        let found = read(&(line(50_000) + &line(900_000_000)), &host).unwrap();
        assert_eq!((found.means.name(), found.bounds.len()), ("kvm-tsc", 4));
        for (bound, at) in found.bounds.iter().zip([50_000, 1_050_000, 900_000_000, 901_000_000]) {
            let ahead = -10_000 + 700;
            assert!(bound.low_ns <= ahead && ahead <= bound.high_ns, "{bound:?}");
            assert!(bound.high_ns - bound.low_ns < 110, "{bound:?}");
            assert!((at - 40..at + 62).contains(&bound.host_ns), "{bound:?}");
        }
        let other = line(50_000).replace("tsc", "cntvct");
        assert!(read(&other, &host).unwrap_err().contains("found cntvct"));
        let back = line(50_000).replacen("39960", "99999999", 1);
        assert!(read(&back, &host).unwrap_err().contains("went back"), "{back}");
        let error = read(&line(50_000), &plain()).unwrap_err();
        assert!(error.contains("ringscope record"), "{error}");
    }

    #[test]
    fn bounds_by_the_time_of_day_become_those_of_the_monotonic_clock() {
        let day = 1_790_000_000_000_000_000_i64;
        let (host_ns, ahead) = (day + 5_000, -day + 300);
        let text = format!(
            r#"{{"relation":"ptp-kvm","exchanges":1,"shortest_ns":9,"bounds":[{{"host_ns":{host_ns},"low_ns":{},"high_ns":{}}}]}}"#,
            ahead - 4,
            ahead + 5
        );
        let [low, high] = [day - 20, day + 30];
        let host = host(&format!(r#"{{"realtime_ahead_ns":[{low},{high}]}}"#));
        let found = read(&text, &host).unwrap();
        assert_eq!(found.means.name(), "ptp-kvm");
        let [ClockBound { host_ns, low_ns, high_ns }] = found.bounds[..] else { panic!() };
        assert_eq!((host_ns, low_ns, high_ns), (5_020, 300 - 4 - 20, 300 + 5 + 30));
        assert!(read(&text, &plain()).unwrap_err().contains("CLOCK_REALTIME"));
    }
}
