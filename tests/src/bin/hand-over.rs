//! How long a cache line takes from one CPU to another and back, in nanoseconds: the median of short
//! rounds. On a virtual machine it says whether the CPUs are neighbours just now; when it changes between
//! two measurements, they do not compare.
//!
//!     hand-over CPU CPU

use std::process::ExitCode;
use std::sync::atomic::{AtomicU32, Ordering};
use std::time::Instant;

use rustix::thread::{CpuSet, sched_setaffinity};

const ROUNDS: usize = 21;
const TURNS: u32 = 5000;
/// The value that ends it.
const END: u32 = u32::MAX;

/// A cache line of its own.
#[repr(align(128))]
struct Line(AtomicU32);

fn main() -> ExitCode {
    let cpus: Vec<usize> = std::env::args().skip(1).filter_map(|it| it.parse().ok()).collect();
    let [here, there] = cpus[..] else {
        eprintln!("hand-over: expected the numbers of two CPUs");
        return ExitCode::from(2);
    };
    let line = Line(AtomicU32::new(0));
    let median = std::thread::scope(|scope| {
        let other = scope.spawn(|| {
            let pinned = pin(there);
            answer(&line);
            pinned
        });
        let median = pin(here).map(|()| ask(&line));
        line.0.store(END, Ordering::Release);
        other.join().expect("the other side").and(median)
    });
    match median {
        Ok(median) => println!("{median}"),
        Err(error) => {
            eprintln!("hand-over: cannot run on CPUs {here} and {there}: {error}");
            return ExitCode::FAILURE;
        }
    }
    ExitCode::SUCCESS
}

fn pin(cpu: usize) -> std::io::Result<()> {
    let mut set = CpuSet::new();
    set.set(cpu);
    Ok(sched_setaffinity(None, &set)?)
}

/// Turns even numbers into odd ones until it is ended.
fn answer(line: &Line) {
    loop {
        match line.0.load(Ordering::Acquire) {
            END => return,
            even if even % 2 == 0 && even > 0 => line.0.store(even - 1, Ordering::Release),
            _ => std::hint::spin_loop(),
        }
    }
}

fn ask(line: &Line) -> u128 {
    let mut rounds: Vec<u128> = (0..ROUNDS)
        .map(|_| {
            let start = Instant::now();
            for turn in 1..=TURNS {
                line.0.store(2 * turn, Ordering::Release);
                while line.0.load(Ordering::Acquire) == 2 * turn {
                    std::hint::spin_loop();
                }
            }
            start.elapsed().as_nanos() / u128::from(TURNS)
        })
        .collect();
    rounds.sort_unstable();
    rounds[ROUNDS / 2]
}
