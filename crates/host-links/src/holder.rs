//! The processes that keep an XDP program on an interface, or use a tap (`/proc/PID/fdinfo`, see `proc(5)`).
//!
//! A program that was attached with a BPF link stays as long as a process has that link open, or a BPF file system has a
//! file for it. `ip link set dev NAME xdp off` cannot remove it. A program that was attached by netlink has no link.

use std::fs;
use std::path::{Path, PathBuf};

use serde::Serialize;

/// What the descriptor of a BPF link points to (`bpf_link_new_fd` of `kernel/bpf/syscall.c`), and that of a tap's queue.
const BPF_LINK: &str = "anon_inode:bpf_link";
const TUN: &str = "/dev/net/tun";

/// A process that holds an XDP program on an interface, or a queue of a tap.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct Holder {
    /// Its number.
    pub process: u32,
    /// Its name (`/proc/PID/comm`).
    pub name: String,
}

/// The processes that have a BPF link open with XDP program `program`, by number. Those of other users are missing
/// unless this process may look into them (`CAP_SYS_PTRACE`).
#[must_use]
pub fn holders(program: u32) -> Vec<Holder> {
    holders_below(Path::new("/proc"), program)
}

/// The processes that have a queue of the tap `name` open, by number. A tap of the same name in another network
/// namespace cannot be told apart.
#[must_use]
pub fn tap_users(name: &str) -> Vec<Holder> {
    tap_users_below(Path::new("/proc"), name)
}

fn holders_below(proc: &Path, program: u32) -> Vec<Holder> {
    let program = program.to_string();
    with_descriptor(proc, BPF_LINK, &[("link_type", "xdp"), ("prog_id", &program)])
}

fn tap_users_below(proc: &Path, name: &str) -> Vec<Holder> {
    // `tun_chr_show_fdinfo` of `drivers/net/tun.c`.
    with_descriptor(proc, TUN, &[("iff", name)])
}

/// The processes with a descriptor that points to `target`, of which the kernel says all of `facts`.
fn with_descriptor(proc: &Path, target: &str, facts: &[(&str, &str)]) -> Vec<Holder> {
    let mut found: Vec<_> = entries(proc)
        .into_iter()
        .filter_map(|path| {
            let process = path.file_name()?.to_str()?.parse().ok()?;
            let is_it = |fd: &PathBuf| has_facts(&path, fd, target, facts);
            entries(&path.join("fd")).iter().any(is_it).then(|| Holder {
                process,
                name: fs::read_to_string(path.join("comm")).unwrap_or_default().trim().to_owned(),
            })
        })
        .collect();
    found.sort_by_key(|holder| holder.process);
    found
}

/// Whether descriptor `fd` of the process at `path` points to `target`, and the kernel says all of `facts` of it.
fn has_facts(path: &Path, fd: &Path, target: &str, facts: &[(&str, &str)]) -> bool {
    // Reading the link first saves reading what the kernel says of every open file.
    if !fs::read_link(fd).is_ok_and(|found| found.as_os_str() == target) {
        return false;
    }
    let Some(number) = fd.file_name() else { return false };
    let text = fs::read_to_string(path.join("fdinfo").join(number)).unwrap_or_default();
    let lines: Vec<_> = text.lines().filter_map(|line| line.split_once(':')).collect();
    let says = |(key, value): &(&str, &str)| {
        lines.iter().any(|(found, text)| found == key && text.trim() == *value)
    };
    facts.iter().all(says)
}

fn entries(directory: &Path) -> Vec<PathBuf> {
    let entries = fs::read_dir(directory).into_iter().flatten().flatten();
    entries.map(|entry| entry.path()).collect()
}

#[cfg(test)]
mod tests {
    use std::os::unix::fs::symlink;

    use super::*;

    fn process(proc: &Path, number: u32, name: &str, target: &str, info: &str) {
        let path = proc.join(number.to_string());
        fs::create_dir_all(path.join("fd")).unwrap();
        fs::create_dir_all(path.join("fdinfo")).unwrap();
        fs::write(path.join("comm"), format!("{name}\n")).unwrap();
        symlink(target, path.join("fd/5")).unwrap();
        fs::write(path.join("fdinfo/5"), info).unwrap();
    }

    #[test]
    fn a_process_holds_a_program_by_a_link_of_it() {
        let directory = tempfile::tempdir().unwrap();
        let proc = directory.path();
        let info = "flags:\t02\nlink_type:\txdp\nlink_id:\t4\nprog_id:\t12\nifindex:\t7\n";
        process(proc, 30, "xdp-filter", BPF_LINK, info);
        process(proc, 9, "ringscoped", BPF_LINK, info);
        process(proc, 31, "file", "/tmp/file", info);
        process(proc, 32, "other", BPF_LINK, &info.replace("12", "1"));
        process(proc, 33, "tracer", BPF_LINK, &info.replace("xdp", "tracing"));
        fs::create_dir(proc.join("self")).unwrap();
        let names = |program| {
            let holder = |it: Holder| (it.process, it.name);
            holders_below(proc, program).into_iter().map(holder).collect::<Vec<_>>()
        };
        assert_eq!(names(12), [(9, "ringscoped".into()), (30, "xdp-filter".into())]);
        assert_eq!(names(13), []);
    }

    #[test]
    fn a_process_uses_a_tap_by_a_queue_of_it() {
        let directory = tempfile::tempdir().unwrap();
        let proc = directory.path();
        process(proc, 12, "qemu", TUN, "pos:\t0\niff:\ttap0\n");
        process(proc, 13, "other", TUN, "pos:\t0\niff:\ttap01\n");
        process(proc, 14, "reader", "/tmp/file", "iff:\ttap0\n");
        let expected = Holder { process: 12, name: "qemu".into() };
        assert_eq!(tap_users_below(proc, "tap0"), [expected]);
        assert_eq!(tap_users_below(proc, "tap1"), []);
    }
}
