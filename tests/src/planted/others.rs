//! Programs that have nothing to do with a recording, and the CPU time that they took meanwhile.
//!
//! The kernel accounts for it (`/proc/PID/task/TID/schedstat`, Documentation/scheduler/sched-stats.rst), independently of
//! everything that is tested.

use std::collections::HashMap;
use std::fs;
use std::path::Path;
use std::time::Duration;

/// A kernel thread that works for everybody.
const SOFTIRQS: &str = "ksoftirqd";

/// Time on the CPUs of each thread, of all processes but some.
#[derive(Debug)]
pub struct Others(HashMap<u32, (Duration, String)>);

impl Others {
    /// Now, without those of these processes.
    #[must_use]
    pub fn without(processes: &[u32]) -> Self {
        let numbers = |place: &Path| {
            let entries = fs::read_dir(place).into_iter().flatten().flatten();
            entries.filter_map(|entry| entry.file_name().to_str()?.parse::<u32>().ok())
        };
        let mut times = HashMap::new();
        for process in numbers(Path::new("/proc")).filter(|it| !processes.contains(it)) {
            let place = format!("/proc/{process}");
            let name = fs::read_to_string(format!("{place}/comm")).unwrap_or_default();
            if name.starts_with(SOFTIRQS) {
                continue;
            }
            for thread in numbers(Path::new(&format!("{place}/task"))) {
                let text = fs::read_to_string(format!("{place}/task/{thread}/schedstat"));
                // It may just have ended.
                if let Some(time) = text.ok().and_then(|text| time_on_cpu(&text)) {
                    times.insert(thread, (time, name.trim_end().to_owned()));
                }
            }
        }
        Self(times)
    }

    /// The thread that has used most since `before`: how much, and its process's name.
    #[must_use]
    pub fn most_since<'a>(&'a self, before: &Self) -> (Duration, &'a str) {
        let used = |(thread, (time, name)): (&u32, &'a (Duration, String))| {
            let before = before.0.get(thread).map_or(Duration::ZERO, |(time, _)| *time);
            (time.saturating_sub(before), name.as_str())
        };
        self.0.iter().map(used).max().unwrap_or_default()
    }
}

/// The first number: nanoseconds.
fn time_on_cpu(schedstat: &str) -> Option<Duration> {
    Some(Duration::from_nanos(schedstat.split_whitespace().next()?.parse().ok()?))
}

#[cfg(test)]
mod tests {
    use std::thread;
    use std::time::Instant;

    use super::*;

    #[test]
    fn a_thread_that_spins_is_seen_unless_its_process_is_left_out() {
        let own = std::process::id();
        let [all, left_out] = [&[][..], &[own]].map(|without| {
            let before = Others::without(without);
            let begun = Instant::now();
            while begun.elapsed() < Duration::from_millis(30) {
                thread::yield_now();
            }
            (Others::without(without), before)
        });
        assert!(all.0.most_since(&all.1).0 >= Duration::from_millis(5));
        let own = fs::read_dir(format!("/proc/{own}/task")).unwrap().flatten();
        let mut own = own.map(|it| it.file_name().to_str().unwrap().parse::<u32>().unwrap());
        assert!(own.all(|thread| !left_out.0.0.contains_key(&thread)));
    }

    #[test]
    fn the_time_is_the_first_number() {
        assert_eq!(time_on_cpu("1500 20 3\n"), Some(Duration::from_nanos(1500)));
        assert_eq!(time_on_cpu(""), None);
    }
}
