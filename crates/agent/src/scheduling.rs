//! How the kernel schedules a program that sends.

use rustix::thread::{CpuSet, sched_setaffinity};

use crate::Error;
use crate::sys::{lock_memory, run_in_real_time};

#[derive(Debug, Clone, Default, clap::Args)]
pub struct Scheduling {
    /// Run on this CPU only.
    #[arg(long, value_name = "CPU", value_parser = clap::value_parser!(u16).range(..CpuSet::MAX_CPU as i64))]
    cpu: Option<u16>,
    /// Run in the real-time class SCHED_FIFO with this priority, 1 to 99, and lock all memory.
    #[arg(long, value_name = "PRIORITY", value_parser = clap::value_parser!(u8).range(1..=99))]
    realtime: Option<u8>,
}

impl Scheduling {
    /// Applies it to the calling thread. Threads that it starts later inherit it.
    ///
    /// # Errors
    /// If the CPU is not there, or the process may not do this.
    pub fn apply(&self) -> Result<(), Error> {
        let refused = |flag, expected: &str| {
            let expected = expected.to_owned();
            move |found: std::io::Error| Error::Usage { flag, expected, found: found.to_string() }
        };
        if let Some(cpu) = self.cpu {
            let mut cpus = CpuSet::new();
            cpus.set(cpu.into());
            sched_setaffinity(None, &cpus).map_err(|error| {
                refused("--cpu", "the number of a CPU that this process may use")(error.into())
            })?;
        }
        if let Some(priority) = self.realtime {
            let expected = "the right to lock memory and to run in real time (root, or CAP_IPC_LOCK and CAP_SYS_NICE)";
            lock_memory().map_err(refused("--realtime", expected))?;
            run_in_real_time(priority).map_err(refused("--realtime", expected))?;
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use rustix::thread::sched_getaffinity;

    use super::*;

    #[test]
    fn threads_that_are_started_later_run_on_the_chosen_cpu() {
        let own = sched_getaffinity(None).unwrap();
        let cpu = (0..CpuSet::MAX_CPU).find(|&cpu| own.is_set(cpu)).unwrap();
        // A thread of its own: the other tests keep their CPUs.
        let inherited = std::thread::spawn(move || {
            let chosen = Scheduling { cpu: Some(cpu as u16), realtime: None };
            chosen.apply().unwrap();
            std::thread::spawn(|| sched_getaffinity(None).unwrap()).join().unwrap()
        });
        let inherited = inherited.join().unwrap();
        assert_eq!((inherited.count(), inherited.is_set(cpu)), (1, true));
    }

    #[test]
    fn a_cpu_that_is_not_there_is_refused_with_its_flag() {
        let missing = Scheduling { cpu: Some(CpuSet::MAX_CPU as u16 - 1), realtime: None };
        let error = missing.apply().unwrap_err().to_string();
        assert!(error.starts_with("--cpu: expected the number of a CPU"), "{error}");
    }
}
