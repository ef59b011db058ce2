//! What the daemon writes, captures and recorders: files of its own, at no link, device or other user's file, and a full
//! disk or a limit ends a capture or recording and nothing else.

use std::fs;
use std::io::Read as _;
use std::os::unix::fs::{FileTypeExt as _, MetadataExt as _, PermissionsExt as _, symlink};
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::time::Duration;

use burst_trace::{Reader, Source};
use frontend::{Guest, GuestOptions};
use ringscope_tests::daemon::{Daemon, program};
use ringscope_tests::eventually::{eventually, when};
use ringscope_tests::frames;
use ringscope_tests::pcapng::Capture;
use rustix::fs::{CWD, FileType, Gid, Mode, Uid, chown, makedev, mkfifoat, mknodat};
use rustix::process::{Pid, Resource, Rlimit, Signal, prlimit};

const SOON: Duration = Duration::from_secs(10);

/// A process that is killed in the end.
struct Running(Child);

impl Running {
    /// Waits for its end. Returns whether it succeeded, and what it said.
    fn end(&mut self) -> (bool, String) {
        let status =
            eventually(SOON, "it to end", || self.0.try_wait().unwrap().ok_or("that it runs"));
        let mut said = String::new();
        self.0.stderr.take().unwrap().read_to_string(&mut said).unwrap();
        (status.success(), said)
    }
}

impl Drop for Running {
    fn drop(&mut self) {
        let _ = self.0.kill();
        let _ = self.0.wait();
    }
}

/// A small disk of memory. It is taken away in the end.
struct Disk(PathBuf);

impl Disk {
    fn new(at: &Path, bytes: u32) -> Self {
        fs::create_dir(at).unwrap();
        let size = format!("size={bytes}");
        let mount =
            Command::new("mount").args(["-t", "tmpfs", "-o", &size, "none"]).arg(at).status();
        assert!(mount.unwrap().success(), "a tmpfs can be mounted (root)");
        Self(at.into())
    }
}

impl Drop for Disk {
    fn drop(&mut self) {
        let _ = Command::new("umount").arg("-l").arg(&self.0).status();
    }
}

/// A daemon that is to fail at its start. Returns what it says.
fn refused(directory: &Path, arguments: &[&str]) -> String {
    let mut command = Command::new(program("ringscoped").unwrap());
    command.arg("--socket-path").arg(directory.join("refused.sock")).arg("--run-dir");
    command.arg(directory).args(["--datapath", "reflect"]).args(arguments);
    let child = command.stdin(Stdio::null()).stdout(Stdio::null()).stderr(Stdio::piped()).spawn();
    let (has_started, said) = Running(child.unwrap()).end();
    assert!(!has_started, "{said}");
    assert!(!directory.join("refused.sock").exists());
    said
}

#[test]
fn a_capture_is_made_at_no_link_device_or_other_users_file() {
    let directory = tempfile::tempdir().unwrap();
    let path = |name: &str| directory.path().join(name);
    let device = |name| {
        let null = makedev(1, 3);
        mknodat(CWD, path(name), FileType::CharacterDevice, Mode::RWXU, null).unwrap();
    };
    fs::write(path("target"), "precious").unwrap();
    symlink("target", path("link")).unwrap();
    symlink("nowhere", path("dangling")).unwrap();
    mkfifoat(CWD, path("fifo"), Mode::RWXU).unwrap();
    device("device");
    fs::write(path("others"), "theirs").unwrap();
    fs::set_permissions(path("others"), fs::Permissions::from_mode(0o666)).unwrap();
    let nobody = 65534;
    chown(path("others"), Some(Uid::from_raw(nobody)), Some(Gid::from_raw(nobody))).unwrap();
    for (name, part) in [
        ("link", "found a symbolic link"),
        ("dangling", "found a symbolic link"),
        ("fifo", "found a FIFO"),
        ("device", "found a device"),
        ("others", "another user's"),
        (".", "found a directory"),
    ] {
        let said = refused(directory.path(), &["--pcap", path(name).to_str().unwrap()]);
        assert!(said.contains("cannot write the capture") && said.contains(part), "{name}: {said}");
        assert!(said.contains("--pcap"), "{said}");
    }
    assert_eq!(fs::read(path("target")).unwrap(), b"precious");
    assert_eq!(fs::read(path("others")).unwrap(), b"theirs");
    assert!(!path("nowhere").exists());
    assert!(fs::metadata(path("device")).unwrap().file_type().is_char_device());
}

#[test]
fn a_capture_replaces_its_own_file_and_no_recorder() {
    let directory = tempfile::tempdir().unwrap();
    let file = directory.path().join("capture");
    fs::write(&file, "older").unwrap();
    fs::set_permissions(&file, fs::Permissions::from_mode(0o666)).unwrap();
    let inode = fs::metadata(&file).unwrap().ino();
    let arguments = ["--datapath", "reflect", "--pcap", file.to_str().unwrap()];
    let daemon = Daemon::start(directory.path(), "vm0", &arguments).unwrap();
    let found = fs::metadata(&file).unwrap();
    assert_eq!(found.permissions().mode() & 0o777, 0o600);
    assert_ne!(found.ino(), inode);
    assert_eq!(Capture::read(&file).interface, "vm0");
    // A running daemon's recorder, and its own.
    for (name, part) in
        [("vm0", "it is a flight recorder"), ("refused", "is the path of a flight recorder")]
    {
        let trace = directory.path().join(format!("{name}.trace"));
        let pcap = ["--pcap", trace.to_str().unwrap()];
        let said = refused(directory.path(), &[&["--name", "refused"], &pcap[..]].concat());
        assert!(said.contains(part), "{said}");
    }
    assert!(daemon.reader().unwrap().is_running());
    let mut guest = Guest::connect(daemon.socket(), GuestOptions::default()).unwrap();
    frames::come_back(&mut guest).unwrap();
}

#[test]
fn a_full_disk_or_a_limit_ends_a_capture_and_not_the_traffic() {
    let directory = tempfile::tempdir().unwrap();
    let disk = Disk::new(&directory.path().join("disk"), 64 << 10);
    let on_disk = disk.0.join("capture");
    let beside = directory.path().join("capture");
    for (file, error) in [(&on_disk, "No space left"), (&beside, "File too large")] {
        let arguments = ["--datapath", "reflect", "--pcap", file.to_str().unwrap()];
        let mut daemon = Daemon::start(directory.path(), "full", &arguments).unwrap();
        if file == &beside {
            let limit = Some(64 << 10);
            let limit = Rlimit { current: limit, maximum: limit };
            let pid = Pid::from_raw(daemon.pid().cast_signed());
            prlimit(pid, Resource::Fsize, limit).unwrap();
        }
        let mut guest = Guest::connect(daemon.socket(), GuestOptions::default()).unwrap();
        eventually(SOON, &format!("{error:?} in the log"), || {
            frames::come_back(&mut guest).unwrap();
            let log = daemon.log();
            when(log.contains(error), log)
        });
        frames::come_back(&mut guest).unwrap();
        assert!(daemon.terminate(Duration::from_secs(2)).unwrap().success(), "{}", daemon.log());
        let log = daemon.log();
        assert_eq!(log.matches(" ends, traffic goes on").count(), 1, "{log}");
        assert!(log.contains(&format!("frames are not in {}", file.display())), "{log}");
        // Whole blocks, and nothing else.
        assert!(!Capture::read(file).packets.is_empty());
    }
}

#[test]
fn a_fifo_in_a_recorders_place_is_refused_at_once() {
    let directory = tempfile::tempdir().unwrap();
    mkfifoat(CWD, directory.path().join("refused.trace"), Mode::RWXU).unwrap();
    let said = refused(directory.path(), &["--name", "refused"]);
    assert!(said.contains("refused.trace") && said.contains("found a FIFO"), "{said}");
    mkfifoat(CWD, directory.path().join("other.lock"), Mode::RWXU).unwrap();
    let said = refused(directory.path(), &["--name", "other"]);
    assert!(said.contains("other.lock") && said.contains("found a FIFO"), "{said}");
}

#[test]
fn a_readers_lock_holds_up_no_daemon_and_a_daemons_lock_does() {
    let directory = tempfile::tempdir().unwrap();
    let mut daemon = Daemon::start(directory.path(), "vm0", &["--datapath", "reflect"]).unwrap();
    let said = refused(directory.path(), &["--name", "vm0"]);
    assert!(said.contains(&format!("written by process {}", daemon.pid())), "{said}");
    let reader = fs::File::open(daemon.recorder()).unwrap();
    daemon.signal(Signal::KILL).unwrap();
    daemon.wait(SOON).unwrap();
    rustix::fs::flock(&reader, rustix::fs::FlockOperation::NonBlockingLockExclusive).unwrap();
    let daemon = Daemon::start(directory.path(), "vm0", &["--datapath", "reflect"]).unwrap();
    let mode = fs::metadata(daemon.recorder()).unwrap().permissions().mode();
    assert_eq!(mode & 0o777, 0o640);
}

#[test]
fn a_recording_on_a_full_disk_is_kept_as_far_as_it_goes() {
    let directory = tempfile::tempdir().unwrap();
    let disk = Disk::new(&directory.path().join("disk"), 32 << 10);
    let file = disk.0.join("some.rec");
    let daemon = Daemon::start(directory.path(), "vm0", &["--datapath", "reflect"]).unwrap();
    let mut guest = Guest::connect(daemon.socket(), GuestOptions::default()).unwrap();
    let mut command = Command::new(program("ringscope").unwrap());
    command.arg("record").arg("--run-dir").arg(directory.path()).arg("-o").arg(&file);
    let child = command.stdin(Stdio::null()).stderr(Stdio::piped()).spawn().unwrap();
    let mut recording = Running(child);
    eventually(SOON, "the recording to end", || {
        frames::come_back(&mut guest).unwrap();
        when(recording.0.try_wait().unwrap().is_some(), "that it runs")
    });
    let (is_whole, said) = recording.end();
    assert!(!is_whole && said.contains("No space left"), "{said}");
    assert!(said.contains(&format!("what fitted is in {}", file.display())), "{said}");
    let source = Source::open(&file).unwrap();
    let mut records = 0_u64;
    source.read(|_| records += 1);
    assert!(records > 200 && said.contains("records"), "{records}: {said}");
    frames::come_back(&mut guest).unwrap();
    assert!(Reader::open(daemon.recorder()).unwrap().is_running());
    let left = || disk.0.read_dir().unwrap().map(|file| file.unwrap().file_name()).collect();
    let left: [Vec<_>; 2] = [left(), {
        // The disk is full, so a report does not fit at all. What was written of it is removed.
        let mut report = Command::new(program("ringscope").unwrap());
        report
            .arg("report")
            .arg(&file)
            .args(["--format", "csv", "-o"])
            .arg(disk.0.join("some.csv"));
        let output = report.stdin(Stdio::null()).output().unwrap();
        let said = String::from_utf8_lossy(&output.stderr);
        assert!(!output.status.success() && said.contains("No space left"), "{said}");
        left()
    }];
    assert_eq!(left, [["some.rec"], ["some.rec"]], "nothing else is left there");
}
