//! `busy`: takes one CPU from everything else on it, and with `--memory` the caches, too. Measurements run beside it.

use std::hint::black_box;
use std::io;
use std::time::{Duration, Instant};

use rustix::io::Errno;
use rustix::thread::{CpuSet, sched_setaffinity};

use crate::{Error, print_json};

/// Bytes from one access to the next: a cache line.
const LINE_BYTES: usize = 64;
/// Accesses, or additions, between two looks at the clock: a fraction of a millisecond.
const STEPS: usize = 4096;

#[derive(Debug, clap::Args)]
pub struct Args {
    /// The CPU.
    #[arg(long, value_name = "N")]
    cpu: usize,
    /// Bytes of memory, of which it writes one in each cache line, again and again.
    #[arg(long, value_name = "BYTES", default_value_t = 0, value_parser = clap::value_parser!(u64).range(..=1 << 36))]
    memory: u64,
    /// Time after which it ends.
    #[arg(long, value_name = "SECONDS", default_value_t = 60, value_parser = clap::value_parser!(u64).range(1..=86_400))]
    timeout: u64,
}

pub fn run(args: &Args) -> Result<(), Error> {
    let end = Instant::now() + Duration::from_secs(args.timeout);
    move_to(args.cpu)?;
    let mut memory = Vec::new();
    let bytes = args.memory as usize;
    memory.try_reserve_exact(bytes).map_err(|_| io::Error::from(io::ErrorKind::OutOfMemory))?;
    memory.resize(bytes, 0_u8);
    let passes = if memory.is_empty() { add(end) } else { walk(&mut memory, end) };
    print_json(&serde_json::json!({ "cpu": args.cpu, "memory": bytes, "passes": passes }))
}

fn move_to(cpu: usize) -> Result<(), Error> {
    let refused = |found| Error::Usage {
        flag: "--cpu",
        expected: "the number of a CPU that this process may use".into(),
        found,
    };
    if cpu >= CpuSet::MAX_CPU {
        return Err(refused(cpu.to_string()));
    }
    let mut only = CpuSet::new();
    only.set(cpu);
    sched_setaffinity(None, &only).map_err(|error| match error {
        Errno::INVAL => refused(cpu.to_string()),
        other => io::Error::from(other).into(),
    })
}

/// Adds numbers until `end`; returns how often it looked at the clock.
fn add(end: Instant) -> u64 {
    let mut passes = 0;
    while Instant::now() < end {
        for step in 0..STEPS {
            black_box(step.wrapping_add(1));
        }
        passes += 1;
    }
    passes
}

/// Walks through the memory until `end`; returns how often it came to its end.
fn walk(memory: &mut [u8], end: Instant) -> u64 {
    let mut passes = 0;
    loop {
        for part in memory.chunks_mut(LINE_BYTES * STEPS) {
            if Instant::now() >= end {
                return passes;
            }
            for line in part.chunks_mut(LINE_BYTES) {
                line[0] = black_box(line[0].wrapping_add(1));
            }
        }
        passes += 1;
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn it_ends_in_time_with_and_without_memory() {
        let end = || Instant::now() + Duration::from_millis(20);
        assert!(add(end()) > 0);
        let mut memory = vec![0; 10 * LINE_BYTES + 1];
        assert!(walk(&mut memory, end()) > 0);
        // Nothing but the first byte of each line.
        assert!(memory.chunks(LINE_BYTES).all(|line| line[1..].iter().all(|&it| it == 0)));
    }

    #[test]
    fn a_cpu_that_is_not_there_is_refused() {
        for cpu in [CpuSet::MAX_CPU - 1, CpuSet::MAX_CPU] {
            let error = move_to(cpu).unwrap_err().to_string();
            assert!(error.contains("--cpu: expected the number of a CPU"), "{error}");
        }
    }
}
