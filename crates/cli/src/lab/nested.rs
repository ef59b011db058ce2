//! `ringscope lab --nested`: the part that runs in an emulated machine.

use std::path::Path;

use lab::command::Stop;
use lab::experiment::ExperimentError;
use lab::nested::{Nested, VARIANTS};

use super::{Experiment, Switch};
use crate::Outcome;

/// Probes of a measurement there, and the time between two, microseconds: everything is slower there.
const PROBES: u64 = 500;
const PROBES_QUICK: u64 = 200;
const INTERVAL_US: u64 = 20_011;

/// Runs the lab in the machine, over the variants of --variants or those that need it. Its lines are given to `tell`.
///
/// # Errors
/// If the machine cannot be started or measures nothing; and after a signal.
pub fn run(
    stop: &Stop,
    flags: &Experiment,
    ringscope: &Path,
    kept: &Path,
    mut tell: impl FnMut(&str),
) -> Outcome {
    let variants = match &flags.variants[..] {
        [] => VARIANTS.map(str::to_owned).to_vec(),
        named => named.to_vec(),
    };
    let count = flags.count.unwrap_or(if flags.quick { PROBES_QUICK } else { PROBES });
    let number = |number: u64| number.to_string();
    let mut arguments: Vec<String> = [
        ("--loads", "none".to_owned()),
        ("--capacity", "off".to_owned()),
        ("--untraced", "off".to_owned()),
        ("--repeats", number(flags.repeats.map_or(1, |it| it.get() as u64))),
        ("--count", number(count)),
        ("--interval-us", number(flags.interval_us.unwrap_or(INTERVAL_US))),
        ("--size", number(flags.size)),
    ]
    .into_iter()
    .flat_map(|(name, value)| [name.to_owned(), value])
    .collect();
    for (name, is_off) in [
        ("--pin", flags.pin == Switch::Off),
        ("--kernel-stages", flags.kernel_stages == Switch::Off),
    ] {
        if is_off {
            arguments.extend([name.to_owned(), "off".to_owned()]);
        }
    }
    let nested = Nested { stop, ringscope, variants: &variants, flags: &arguments, kept };
    match nested.run(|line| tell(without_time(line))) {
        Err(error) if error.is_interruption() => Err(ExperimentError::Interrupted.into()),
        other => Ok(other?),
    }
}

/// A line of the machine's lab without its time, which counts from the machine's start.
fn without_time(line: &str) -> &str {
    let after = line.strip_prefix('[').and_then(|it| it.split_once("s] "));
    after.map_or(line, |(_, after)| after)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn lines_lose_the_machines_time_only() {
        assert_eq!(without_time("[  12 s] vfio: building it"), "vfio: building it");
        assert_eq!(without_time("nested: unpacking the kernel"), "nested: unpacking the kernel");
    }
}
