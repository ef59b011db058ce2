//! What `/proc` says of processes.

use std::fs;
use std::io;

use rustix::io::Errno;

/// The children of all threads of a process (`proc_tid_children(5)`).
///
/// # Errors
/// If there is no such process, or the kernel does not tell its children.
pub fn children(process: u32) -> io::Result<Vec<u32>> {
    let mut found = Vec::new();
    for thread in fs::read_dir(format!("/proc/{process}/task"))? {
        let children = match fs::read_to_string(thread?.path().join("children")) {
            // The thread has ended meanwhile, before or after its file was opened.
            Err(error) if [Errno::NOENT, Errno::SRCH].contains(&errno(&error)) => continue,
            children => children?,
        };
        found.extend(children.split_ascii_whitespace().filter_map(|pid| pid.parse::<u32>().ok()));
    }
    Ok(found)
}

fn errno(error: &io::Error) -> Errno {
    Errno::from_io_error(error).unwrap_or(Errno::IO)
}

/// Field number `number`, from 3 on, of a `/proc/PID/stat` (`proc_pid_stat(5)`).
#[must_use]
pub fn stat_field(stat: &str, number: usize) -> Option<&str> {
    // The name before it may hold anything.
    let (_, fields) = stat.rsplit_once(") ")?;
    fields.trim_end().split(' ').nth(number.checked_sub(3)?)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn fields_are_counted_behind_any_name() {
        let stat = "7 (a) b) S 1 2\n";
        let found = [2, 3, 4, 5, 6].map(|number| stat_field(stat, number));
        assert_eq!(found, [None, Some("S"), Some("1"), Some("2"), None]);
        assert_eq!(stat_field("", 3), None);
    }
}
