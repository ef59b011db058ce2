//! What another user of this host may try, with a daemon that runs and before one starts. Nothing of root's is read, written or
//! removed, and nobody waits. (`confined.rs` has what the daemon's group may do, `take_over.rs` who may take over.)

use std::fs::{self, File, Permissions};
use std::io;
use std::os::linux::net::SocketAddrExt as _;
use std::os::unix::fs::{FileTypeExt as _, MetadataExt as _, PermissionsExt as _, symlink};
use std::os::unix::net::{SocketAddr, UnixListener, UnixStream};
use std::path::{Path, PathBuf};
use std::process::Command;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{Duration, Instant};

use frontend::{Guest, GuestOptions};
use ringscope_tests::cable::ip;
use ringscope_tests::daemon::{Daemon, program};
use ringscope_tests::eventually::{SetOnDrop, eventually, when};
use ringscope_tests::frames;
use rustix::fs::{CWD, Mode, mkfifoat};
use rustix::process::{Gid, Uid};
use rustix::thread::{set_thread_groups, set_thread_res_gid, set_thread_res_uid};
use tempfile::TempDir;

const SOON: Duration = Duration::from_secs(5);
const STRANGER: u32 = 65534;
/// The daemon's own names in its directory.
const NAMES: [&str; 7] =
    ["vm0.sock", "vm0.trace", "vm0.lock", "vm0.rings", "vm0.take-over", "control", "metrics"];

/// Runs `attempt` as another user. The kernel keeps the user for each thread, so only this one is another.
fn as_stranger<T: Send>(attempt: impl FnOnce() -> T + Send) -> T {
    std::thread::scope(|scope| {
        let tried = scope.spawn(|| {
            let (user, group) = (Uid::from_raw(STRANGER), Gid::from_raw(STRANGER));
            set_thread_groups(&[]).unwrap();
            set_thread_res_gid(group, group, group).unwrap();
            set_thread_res_uid(user, user, user).unwrap();
            attempt()
        });
        tried.join().unwrap()
    })
}

/// A directory as /tmp is: everybody may make files in it, and remove their own.
fn shared() -> TempDir {
    let directory = tempfile::tempdir().unwrap();
    fs::set_permissions(directory.path(), Permissions::from_mode(0o1777)).unwrap();
    directory
}

/// A file of root's that nobody else may read.
struct Precious {
    _directory: TempDir,
    path: PathBuf,
    nowhere: PathBuf,
}

impl Precious {
    fn new() -> Self {
        let directory = shared();
        let path = directory.path().join("precious");
        fs::write(&path, "precious").unwrap();
        fs::set_permissions(&path, Permissions::from_mode(0o600)).unwrap();
        let nowhere = directory.path().join("nowhere");
        Self { _directory: directory, path, nowhere }
    }

    fn expect_untouched(&self, after: &str) {
        let found = fs::symlink_metadata(&self.path).unwrap();
        assert_eq!((found.mode() & 0o7777, found.uid(), found.len()), (0o600, 0, 8), "{after}");
        assert_eq!(fs::read(&self.path).unwrap(), b"precious", "{after}");
        assert!(!self.nowhere.exists(), "{after}: a link that led nowhere was followed");
    }
}

fn start(directory: &Path) -> io::Result<Daemon> {
    let control = directory.join("control").display().to_string();
    let metrics = format!("unix:{}", directory.join("metrics").display());
    let arguments = ["--datapath", "reflect", "--control", &control, "--metrics", &metrics];
    Daemon::start(directory, "vm0", &arguments)
}

#[test]
fn a_stranger_reaches_nothing_of_a_running_daemon() {
    let directory = shared();
    let daemon = start(directory.path()).unwrap();
    let mut guest = Guest::connect(daemon.socket(), GuestOptions::default()).unwrap();
    frames::come_back(&mut guest).unwrap();
    for name in NAMES {
        let path = directory.path().join(name);
        let kind = eventually(SOON, name, || fs::symlink_metadata(&path)).file_type();
        let tries = as_stranger(|| {
            let read = match kind.is_socket() {
                true => UnixStream::connect(&path).map(drop),
                false => File::open(&path).map(drop),
            };
            let write = File::options().append(true).open(&path).map(drop);
            let aside = directory.path().join("aside");
            let removed = fs::remove_file(&path);
            [
                ("use", read),
                ("write", write),
                ("move", fs::rename(&path, aside)),
                ("remove", removed),
            ]
        });
        for (what, tried) in tries {
            let kind = tried.as_ref().map_err(io::Error::kind);
            assert_eq!(kind, Err(io::ErrorKind::PermissionDenied), "{what} {name}: {tried:?}");
        }
    }
    frames::come_back(&mut guest).unwrap();
}

/// What the stranger puts in the way.
#[derive(Clone, Copy, Debug)]
enum Plant {
    Link,
    LinkToNowhere,
    Fifo,
    File,
    Directory,
    /// A socket at which somebody listens who accepts nobody.
    FullSocket,
}

impl Plant {
    /// Puts it there. What is returned keeps it alive.
    fn at(self, path: &Path, precious: &Precious) -> Option<(UnixListener, Vec<UnixStream>)> {
        match self {
            Self::Link => symlink(&precious.path, path).unwrap(),
            Self::LinkToNowhere => symlink(&precious.nowhere, path).unwrap(),
            Self::Fifo => mkfifoat(CWD, path, Mode::from_raw_mode(0o666)).unwrap(),
            Self::File => {
                fs::write(path, "theirs").unwrap();
                fs::set_permissions(path, Permissions::from_mode(0o666)).unwrap();
            }
            Self::Directory => fs::create_dir(path).unwrap(),
            Self::FullSocket => {
                let listener = UnixListener::bind(path).unwrap();
                rustix::net::listen(&listener, 0).unwrap();
                let waiting = std::iter::from_fn(|| host_files::socket::connect(path).ok());
                let waiting = waiting.collect();
                return Some((listener, waiting));
            }
        }
        None
    }
}

#[test]
fn what_a_stranger_puts_in_the_way_is_neither_followed_nor_waited_for() {
    let precious = Precious::new();
    for name in NAMES {
        for plant in [
            Plant::Link,
            Plant::LinkToNowhere,
            Plant::Fifo,
            Plant::File,
            Plant::Directory,
            Plant::FullSocket,
        ] {
            let directory = shared();
            let path = directory.path().join(name);
            let _kept = as_stranger(|| plant.at(&path, &precious));
            let case = format!("{plant:?} at {name}");
            let began = Instant::now();
            let started = start(directory.path());
            let took = began.elapsed();
            // A socket in the guest's place is there before the daemon is: it may end a little later.
            let served = started.and_then(|mut daemon| {
                let guest = Guest::connect(daemon.socket(), GuestOptions::default());
                let served = guest.is_ok_and(|mut guest| frames::come_back(&mut guest).is_ok());
                if served {
                    return Ok(());
                }
                daemon.wait(SOON)?;
                Err(io::Error::other(daemon.log()))
            });
            assert!(took < SOON, "{case}: it took {took:?}");
            precious.expect_untouched(&case);
            match served {
                // It is not used, or it was replaced by one of root's.
                Ok(()) => {
                    let found = fs::symlink_metadata(&path).unwrap();
                    let is_theirs = found.uid() == STRANGER;
                    let is_unused =
                        !matches!(plant, Plant::File) || fs::read(&path).unwrap() == b"theirs";
                    assert!(!is_theirs || is_unused, "{case}: {found:?}");
                }
                Err(error) => {
                    let said = error.to_string();
                    assert!(said.contains(name), "{case}: {said}");
                    assert!(!said.contains("panicked"), "{case}: {said}");
                }
            }
        }
    }
}

#[test]
fn links_that_come_and_go_during_a_start_are_not_followed() {
    let (directory, precious) = (shared(), Precious::new());
    drop(start(directory.path()).expect("one that nobody disturbs"));
    let is_over = AtomicBool::new(false);
    let mut served = 0;
    std::thread::scope(|scope| {
        let _ends = SetOnDrop(&is_over);
        let (directory, precious, is_over) = (directory.path(), &precious, &is_over);
        scope.spawn(move || {
            as_stranger(|| {
                while !is_over.load(Ordering::Relaxed) {
                    for name in NAMES {
                        let path = directory.join(name);
                        let _ = symlink(&precious.path, &path);
                        std::thread::yield_now();
                        // Only what is the stranger's.
                        let _ = fs::remove_file(&path);
                    }
                }
            });
        });
        for _ in 0..30 {
            if let Ok(daemon) = start(directory) {
                served += 1;
                drop(daemon);
            }
        }
    });
    precious.expect_untouched("a race");
    println!("{served} of 30 daemons started");
}

#[test]
fn a_strangers_claim_on_an_interface_keeps_no_daemon_away() {
    let (directory, tap) = (tempfile::tempdir().unwrap(), format!("rsx{}", std::process::id()));
    ip(&format!("tuntap add dev {tap} mode tap multi_queue vnet_hdr"));
    let index = fs::read_to_string(format!("/sys/class/net/{tap}/ifindex")).unwrap();
    let name = format!("ringscope-interface-{}", index.trim());
    let address = SocketAddr::from_abstract_name(name.as_bytes()).unwrap();
    let _claim = as_stranger(|| UnixListener::bind_addr(&address).unwrap());
    let datapath = format!("tap:ifname={tap}");
    let started = Daemon::start(directory.path(), "vm0", &["--datapath", &datapath]);
    let said = started.map(|daemon| daemon.log());
    ip(&format!("link del {tap}"));
    let said = said.unwrap();
    assert!(said.contains(&format!("a process of user {STRANGER} holds it")), "{said}");
}

#[test]
fn foreign_files_cost_a_reader_neither_time_nor_memory() {
    let directory = shared();
    let in_it = |name: &str| directory.path().join(name);
    let daemon = Daemon::start(directory.path(), "vm0", &["--datapath", "reflect"]).unwrap();
    let whole = fs::read(daemon.recorder()).unwrap();
    drop(daemon);
    as_stranger(|| {
        mkfifoat(CWD, in_it("fifo"), Mode::from_raw_mode(0o666)).unwrap();
        fs::create_dir(in_it("directory")).unwrap();
        File::create(in_it("empty")).unwrap();
        File::create(in_it("zeroes")).unwrap().set_len(1 << 40).unwrap();
        // The head of a recorder with one word set to the largest number, in a sparse file of a tebibyte.
        for (name, word) in [("first", 0), ("second", 1), ("third", 2), ("fourth", 3), ("fifth", 4)]
        {
            let mut head = whole[..4096.min(whole.len())].to_vec();
            head[8 * (word + 1)..][..8].fill(0xff);
            fs::write(in_it(name), head).unwrap();
            File::options().write(true).open(in_it(name)).unwrap().set_len(1 << 40).unwrap();
        }
    });
    let own =
        ["fifo", "directory", "empty", "zeroes", "first", "second", "third", "fourth", "fifth"];
    let files = own.map(in_it).into_iter().chain(["/dev/zero", "/dev/full"].map(PathBuf::from));
    for file in files {
        for format in ["table", "json", "csv", "html"] {
            // Half a gigabyte of address space, and five seconds.
            let limits = "ulimit -v 524288; exec timeout 5 \"$@\"";
            let mut command = Command::new("sh");
            command.args(["-c", limits, "sh"]).arg(program("ringscope").unwrap());
            command.args(["report", "--format", format]).arg(&file);
            let output = command.output().unwrap();
            let said = String::from_utf8_lossy(&output.stderr);
            let case = format!("{} as {format}: {said}", file.display());
            assert!(matches!(output.status.code(), Some(1 | 2)), "{case}: {}", output.status);
            assert!(said.lines().count() == 1 && !said.contains("panicked"), "{case}");
        }
    }
    // Nothing is made beside them either.
    when(!in_it("report.html").exists(), "a page was made").unwrap();
}
