//! The program behind `tests/bench/attribution`, which describes it.
//!
//!     planted FAULTS SEED GUEST text|json KINDS [DIR]
//!
//! KINDS are names of kinds, separated by commas; empty: all.

use std::path::PathBuf;
use std::process::ExitCode;
use std::time::Instant;

use agent::Progress;
use lab::command::Stop;
use ringscope_tests::planted::{GuestKind, Kind, Plan, Score, run};
use signal_hook::consts::{SIGINT, SIGTERM};
use signal_hook::flag::register;

fn main() -> ExitCode {
    let arguments: Vec<String> = std::env::args().skip(1).collect();
    let Some((plan, is_json)) = parse(&arguments) else {
        eprintln!(
            "planted: expected FAULTS SEED uml|qemu text|json KINDS [DIR], found {arguments:?}"
        );
        return ExitCode::from(2);
    };
    let stop = Stop::default();
    for signal in [SIGINT, SIGTERM] {
        if let Err(error) = register(signal, stop.flag()) {
            eprintln!("attribution: signals cannot be received: {error}");
            return ExitCode::FAILURE;
        }
    }
    let begun = Instant::now();
    let mut progress = Progress::new();
    progress.show(|| "starting the guest".to_owned());
    let score = run(&plan, &stop, |score, all| {
        progress.show(|| so_far(score, all, begun.elapsed().as_secs_f64()));
    });
    drop(progress);
    match score {
        Ok(score) if is_json => println!("{:#}", score.to_json()),
        Ok(score) => print!("{}", score.to_text()),
        Err(error) => {
            eprintln!("attribution: {error}");
            return ExitCode::FAILURE;
        }
    }
    ExitCode::SUCCESS
}

fn parse(arguments: &[String]) -> Option<(Plan, bool)> {
    let (arguments, keep) = arguments.split_at_checked(5)?;
    let [faults, seed, guest, form, kinds] = arguments else { return None };
    let plan = Plan {
        faults: faults.parse().ok().filter(|&faults| faults > 0)?,
        seed: seed.parse().ok()?,
        guest: GuestKind::named(guest)?,
        kinds: kinds
            .split(',')
            .filter(|name| !name.is_empty())
            .map(Kind::named)
            .collect::<Option<_>>()?,
        disturbed_max: u64::MAX,
        keep: keep.first().map(PathBuf::from),
    };
    let is_json = match form.as_str() {
        "text" => false,
        "json" => true,
        _ => return None,
    };
    Some((plan, is_json))
}

/// The state of the run, and when it ends at this pace.
fn so_far(score: &Score, all: usize, seconds: f64) -> String {
    let done = score.outcomes.len();
    let left = seconds / done.max(1) as f64 * (all - done) as f64;
    let (right, faults, alarms) = (score.right(), score.faults(), score.false_alarms());
    format!(
        "{done} of {all} recordings: {right} of {faults} faults named, {alarms} false alarms; \
         about {left:.0} s left"
    )
}
