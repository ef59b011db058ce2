//! What a running daemon may still do: no thread has a capability that it does not need, none can get one, and each has a filter of
//! its system calls.

use std::collections::BTreeMap;
use std::fs;
use std::path::Path;
use std::process::{Command, Output};

use frontend::{Guest, GuestOptions};
use ringscope_tests::cable::Cable;
use ringscope_tests::daemon::{Daemon, program};
use ringscope_tests::eventually::{SOON, eventually, when};
use ringscope_tests::frames;

/// Numbers of capabilities (`linux/capability.h`).
const NET_ADMIN: u32 = 12;
const NET_RAW: u32 = 13;
const IPC_LOCK: u32 = 14;
const PERFMON: u32 = 38;
const BPF: u32 = 39;

/// The lines of `/proc/PID/task/TID/status`.
type Status = BTreeMap<String, String>;

fn threads(daemon: &Daemon) -> Vec<Status> {
    let tasks = fs::read_dir(format!("/proc/{}/task", daemon.pid())).unwrap().flatten();
    let status = |task: fs::DirEntry| fs::read_to_string(task.path().join("status")).ok();
    let lines = |text: String| {
        let pairs = text.lines().filter_map(|line| line.split_once(':'));
        pairs.map(|(key, value)| (key.into(), value.trim().into())).collect()
    };
    tasks.filter_map(status).map(lines).collect()
}

/// Checks every thread. `kept`: the capabilities that a thread of this name keeps.
fn expect_confined(daemon: &Daemon, kept: &[(&str, &[u32])]) {
    let threads = threads(daemon);
    assert!(threads.len() >= 4, "main, worker, control, take-over: {threads:?}");
    for thread in threads {
        let name = thread["Name"].as_str();
        let allowed = kept.iter().find(|(of, _)| *of == name).map_or(&[][..], |(_, all)| *all);
        let expected = allowed.iter().fold(0_u64, |set, bit| set | 1 << bit);
        for set in ["CapEff", "CapPrm", "CapBnd"] {
            let found = u64::from_str_radix(&thread[set], 16).unwrap();
            assert_eq!(found, expected, "{set} of the thread {name}");
        }
        for set in ["CapInh", "CapAmb"] {
            assert_eq!(u64::from_str_radix(&thread[set], 16), Ok(0), "{set} of the thread {name}");
        }
        assert_eq!(thread["NoNewPrivs"], "1", "{name}");
        assert_eq!(thread["Seccomp"], "2", "{name}");
    }
}

#[test]
fn no_thread_keeps_what_it_does_not_need_on_any_datapath() {
    let directory = tempfile::tempdir().unwrap();
    let cable = Cable::new();
    let (macvtap, _) = cable.add_macvtap();
    let (macvtap, interface) = (format!("macvtap:ifname={macvtap}"), cable.interface());
    let below = Cable::new();
    let made = format!("macvtap:ifname={},over={}", below.free_name(), below.interface());
    let capture = directory.path().join("capture.pcapng");
    let capture = capture.to_str().unwrap();
    let of_the_program = [NET_ADMIN, NET_RAW, IPC_LOCK, PERFMON, BPF];
    let (af_xdp, in_place) =
        (format!("af-xdp:ifname={interface}"), format!("af-xdp:ifname={interface},umem=guest"));
    type Kept<'k> = &'k [(&'k str, &'k [u32])];
    let cases: [(&str, &[&str], Kept<'_>); 7] = [
        ("null", &[], &[]),
        ("reflect", &["--metrics", "127.0.0.1:0"], &[]),
        ("reflect", &["--pcap", capture, "--kernel-stages"], &[]),
        (&macvtap, &[], &[]),
        (&made, &[], &[("link", &[NET_ADMIN])]),
        (&af_xdp, &[], &[("link", &of_the_program)]),
        (&in_place, &[], &[("link", &of_the_program), ("worker-0", &[NET_RAW, IPC_LOCK])]),
    ];
    for (datapath, more, kept) in cases {
        let arguments = [&["--datapath", datapath], more].concat();
        let mut daemon = Daemon::start(directory.path(), "vm0", &arguments).unwrap();
        let mut guest = Guest::connect(daemon.socket(), GuestOptions::default()).unwrap();
        if datapath == "reflect" {
            frames::come_back(&mut guest).unwrap();
        }
        expect_confined(&daemon, kept);
        guest.disconnect();
        let status = daemon.terminate(SOON).unwrap();
        assert!(status.success(), "{datapath}: {status}: {}", daemon.log());
    }
}

/// The name of a thread, its namespaces, and the number of files in its root directory; `None` if it is gone.
fn surroundings(task: &Path) -> Option<(String, [String; 3], usize)> {
    let of = |name| Some(fs::read_link(task.join("ns").join(name)).ok()?.display().to_string());
    let name = fs::read_to_string(task.join("comm")).ok()?.trim_end().to_owned();
    let files = fs::read_dir(task.join("root")).ok()?.count();
    Some((name, [of("mnt")?, of("net")?, of("ipc")?], files))
}

fn all_surroundings(daemon: &Daemon) -> Vec<(String, [String; 3], usize)> {
    let tasks = fs::read_dir(format!("/proc/{}/task", daemon.pid())).unwrap().flatten();
    tasks.filter_map(|task| surroundings(&task.path())).collect()
}

#[test]
fn a_worker_is_where_no_file_and_no_interface_is() {
    let cable = Cable::new();
    let made = Cable::new();
    let macvtap = format!("macvtap:ifname={},over={}", made.free_name(), made.interface());
    let af_xdp = format!("af-xdp:ifname={}", cable.interface());
    let in_place = format!("{af_xdp},umem=guest");
    let (_, host, files) = surroundings(Path::new("/proc/self")).unwrap();
    assert!(files > 0);
    for datapath in ["reflect", &macvtap, &af_xdp, &in_place] {
        let directory = tempfile::tempdir().unwrap();
        let socket = directory.path().join("control");
        let arguments = ["--datapath", datapath, "--control", socket.to_str().unwrap()];
        let daemon = Daemon::start(directory.path(), "vm0", &arguments).unwrap();
        let mut guest = Guest::connect(daemon.socket(), GuestOptions::default()).unwrap();
        if datapath == "reflect" {
            frames::come_back(&mut guest).unwrap();
        }
        // A thread may not have come so far yet, and the one that copies records goes.
        eventually(SOON, "the namespaces", || {
            let wrong = |(name, found, files): &(String, [String; 3], usize)| {
                let is_host = [0, 1, 2].map(|at| found[at] == host[at]);
                let expected = match name.as_str() {
                    "worker-0" => ([false, datapath == in_place, false], 0),
                    "capture" | "records" => ([false; 3], 0),
                    _ => ([true; 3], *files),
                };
                (is_host, *files) != expected
            };
            let found = all_surroundings(&daemon);
            let seen = |name| found.iter().any(|(other, ..)| other == name);
            let is_right = seen("worker-0") && seen("capture") && !found.iter().any(wrong);
            when(is_right, format!("{found:?}, beside {host:?}, {datapath}"))
        });
    }
}

#[test]
fn without_a_sandbox_nothing_is_given_up_and_that_is_said() {
    let directory = tempfile::tempdir().unwrap();
    let arguments = ["--datapath", "reflect", "--sandbox", "none"];
    let daemon = Daemon::start(directory.path(), "vm0", &arguments).unwrap();
    assert!(daemon.log().contains("NOT CONFINED, by --sandbox none"), "{}", daemon.log());
    for thread in threads(&daemon) {
        assert_eq!((thread["Seccomp"].as_str(), thread["NoNewPrivs"].as_str()), ("0", "0"));
        assert_ne!(thread["CapEff"], "0000000000000000");
    }
    let (_, host, files) = surroundings(Path::new("/proc/self")).unwrap();
    for (name, found, its) in all_surroundings(&daemon) {
        assert_eq!((&found, its), (&host, files), "{name}");
    }
}

#[test]
fn as_another_user_it_has_that_users_files_and_groups() {
    let directory = tempfile::tempdir().unwrap();
    let cable = Cable::new();
    let datapath = format!("af-xdp:ifname={}", cable.interface());
    let arguments = ["--datapath", &datapath, "--user", "4711:4712"];
    std::os::unix::fs::chown(directory.path(), Some(4711), Some(4712)).unwrap();
    let mut daemon = Daemon::start(directory.path(), "vm0", &arguments).unwrap();
    for thread in threads(&daemon) {
        let same = |id: &str| [id; 4].join("\t");
        assert_eq!((&thread["Uid"], &thread["Gid"]), (&same("4711"), &same("4712")));
        assert_eq!(thread["Groups"], "4712");
    }
    for file in ["vm0.sock", "vm0.trace", "vm0.rings", "vm0.take-over"] {
        use std::os::unix::fs::MetadataExt as _;
        let found = fs::symlink_metadata(directory.path().join(file)).unwrap();
        assert_eq!((found.uid(), found.gid()), (4711, 4712), "{file}");
    }
    let status = daemon.terminate(SOON).unwrap();
    assert!(status.success(), "{status}: {}", daemon.log());
    assert!(!directory.path().join("vm0.sock").exists(), "it is removed");
}

#[test]
fn a_user_that_there_is_not_is_refused() {
    let output = run(&["--user", "no-such-user-here"]);
    let text = String::from_utf8_lossy(&output.stderr);
    assert_eq!(output.status.code(), Some(1), "{text}");
    assert!(text.contains("there is no user 'no-such-user-here'"), "{text}");
}

fn run(arguments: &[&str]) -> Output {
    let mut command = Command::new(program("ringscoped").unwrap());
    command.args(["--socket-path", "/tmp/ringscope-none.sock", "--datapath", "null"]);
    command.args(arguments).output().unwrap()
}

/// A thread of a daemon has another one's descriptors, but it cannot be traced, and cannot see how others map their memory.
#[test]
fn the_helper_keeps_one_capability_and_the_daemon_none() {
    let directory = tempfile::tempdir().unwrap();
    let daemon = Daemon::start(directory.path(), "vm0", &["--datapath", "null"]).unwrap();
    let children =
        fs::read_to_string(format!("/proc/{0}/task/{0}/children", daemon.pid())).unwrap();
    let starter = children.trim();
    let status = fs::read_to_string(Path::new("/proc").join(starter).join("status")).unwrap();
    let line = |key: &str| {
        let found = status.lines().find_map(|line| line.strip_prefix(key)).unwrap();
        found.trim().to_owned()
    };
    assert_eq!(line("Name:"), "ringscoped-fork");
    // CAP_SYS_PTRACE is number 19.
    assert_eq!(line("CapEff:"), format!("{:016x}", 1_u64 << 19));
    assert_eq!(line("NoNewPrivs:"), "1");
}

/// A group may attach, look and record; others may not.
#[test]
fn a_group_may_connect_and_look_and_others_may_not() {
    use std::os::unix::fs::{MetadataExt as _, PermissionsExt as _};
    use std::os::unix::process::CommandExt as _;
    let directory = tempfile::tempdir().unwrap();
    fs::set_permissions(directory.path(), fs::Permissions::from_mode(0o755)).unwrap();
    // The test's own copy can be executed by any user.
    let tool = directory.path().join("ringscope");
    fs::copy(program("ringscope").unwrap(), &tool).unwrap();
    let run_dir = directory.path().join("run");
    let run_dir = run_dir.as_path();
    let mut command = Command::new(program("ringscoped").unwrap());
    command.args(["--name", "vm0", "--datapath", "reflect", "--socket-group", "4712"]);
    command.arg("--socket-path").arg(run_dir.join("vm0.sock")).arg("--run-dir").arg(run_dir);
    let mut daemon = command.spawn().unwrap();
    ringscope_tests::eventually::eventually(SOON, "the socket and the recorder", || {
        let is_there = |file: &str| run_dir.join(file).exists();
        ringscope_tests::eventually::when(
            is_there("vm0.sock") && is_there("vm0.trace") && is_there("vm0.take-over"),
            "they are not there",
        )
    });
    let found = |path: &Path| {
        let found = fs::symlink_metadata(path).unwrap();
        (found.mode() & 0o7777, found.gid())
    };
    assert_eq!(found(run_dir), (0o750, 4712));
    for (file, mode) in
        [("vm0.sock", 0o660), ("vm0.trace", 0o640), ("vm0.take-over", 0o600), ("vm0.rings", 0o600)]
    {
        assert_eq!(found(&run_dir.join(file)), (mode, 4712), "{file}");
    }
    let looks = |gid: u32| {
        let mut command = Command::new(&tool);
        command.args(["stats", "--json", "--name", "vm0", "--run-dir"]).arg(run_dir);
        command.uid(4711).gid(gid).output().unwrap()
    };
    let output = looks(4712);
    assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
    assert!(!looks(4713).status.success());
    rustix::process::kill_process(
        rustix::process::Pid::from_child(&daemon),
        rustix::process::Signal::TERM,
    )
    .unwrap();
    assert!(daemon.wait().unwrap().success());
    assert!(!run_dir.join("vm0.sock").exists());
}

/// One user may attach, and no other one.
#[test]
fn a_socket_is_the_users_that_it_is_given_to() {
    use std::os::unix::fs::{MetadataExt as _, PermissionsExt as _};
    use std::os::unix::net::UnixStream;
    let connects = |socket: &Path, user: u32| {
        let uid = rustix::process::Uid::from_raw(user);
        std::thread::scope(|scope| {
            // The kernel has a user for each thread.
            let connect = || {
                rustix::thread::set_thread_res_uid(uid, uid, uid).unwrap();
                UnixStream::connect(socket).is_ok()
            };
            scope.spawn(connect).join().unwrap()
        })
    };
    let given = ["--datapath", "reflect", "--socket-user", "4711", "--socket-mode", "0600"];
    for more in [&[][..], &["--user", "4712:4712"]] {
        let directory = tempfile::tempdir().unwrap();
        fs::set_permissions(directory.path(), fs::Permissions::from_mode(0o755)).unwrap();
        if !more.is_empty() {
            std::os::unix::fs::chown(directory.path(), Some(4712), None).unwrap();
        }
        let arguments = [&given[..], more].concat();
        let start = || Daemon::start(directory.path(), "vm0", &arguments).unwrap();
        let mut daemon = start();
        // The next one replaces what one that is killed leaves.
        daemon.signal(rustix::process::Signal::KILL).unwrap();
        daemon.wait(SOON).unwrap();
        let mut daemon = start();
        let found = fs::symlink_metadata(daemon.socket()).unwrap();
        assert_eq!((found.uid(), found.mode() & 0o777), (4711, 0o600));
        assert!(connects(daemon.socket(), 4711), "{}", daemon.log());
        assert!(!connects(daemon.socket(), 4713));
        assert!(daemon.terminate(SOON).unwrap().success(), "{}", daemon.log());
        assert!(!daemon.socket().exists());
    }
    let directory = tempfile::tempdir().unwrap();
    let unknown = ["--datapath", "reflect", "--socket-user", "no-such-user"];
    let refused = Daemon::start(directory.path(), "vm1", &unknown);
    let why = refused.unwrap_err().to_string();
    assert!(why.contains("--socket-user no-such-user: there is no user"), "{why}");
}
