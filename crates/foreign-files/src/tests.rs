//! Helpers of this test program: it starts itself, with this one test.

use std::io::{ErrorKind, Read as _, Seek as _, Write as _};
use std::os::fd::AsFd as _;
use std::time::Duration;

use rustix::event::{EventfdFlags, eventfd};

use super::*;

const LONG: Duration = Duration::from_secs(20);

fn prepare() {
    let arguments = ["--exact", "tests::serves_as_a_helper", "--nocapture"];
    register(&Program::other(std::env::current_exe().unwrap(), &arguments)).unwrap();
}

/// Not a test by itself: the standard input of a helper is a socket.
#[test]
fn serves_as_a_helper() {
    if rustix::net::sockopt::socket_type(std::io::stdin()).is_ok() {
        run().unwrap();
    }
}

#[test]
fn signals_reach_the_pipe_until_the_socket_is_closed() {
    prepare();
    let (mut reader, writer) = std::io::pipe().unwrap();
    let call = eventfd(0, EventfdFlags::NONBLOCK | EventfdFlags::CLOEXEC).unwrap();
    let mut helper = Helper::forward(call.as_fd(), writer.as_fd(), LONG).unwrap();
    drop(writer);
    let mut signal = [0; 8];
    for _ in 0..3 {
        rustix::io::write(&call, &1_u64.to_ne_bytes()).unwrap();
        reader.read_exact(&mut signal).unwrap();
        assert_eq!(u64::from_ne_bytes(signal), 1);
    }
    drop(helper.take_socket().unwrap());
    helper.wait().unwrap();
    assert_eq!(reader.read(&mut signal).unwrap(), 0, "the helper had the last write end");
}

#[test]
fn a_pipe_that_cannot_be_written_is_refused() {
    prepare();
    let call = eventfd(0, EventfdFlags::CLOEXEC).unwrap();
    let watch = rustix::fs::inotify::init(rustix::fs::inotify::CreateFlags::CLOEXEC).unwrap();
    let (helper, error) = Helper::forward(call.as_fd(), watch.as_fd(), LONG).unwrap_err();
    assert!(error.raw_os_error().is_some(), "{error}");
    helper.unwrap().dismiss().unwrap();
}

#[test]
fn the_helper_closes_last_and_reports_it() {
    prepare();
    let mut closer = Closer::start().unwrap();
    let (mut reader, writer) = std::io::pipe().unwrap();
    (&writer).write_all(b"x").unwrap();
    closer.close(vec![writer.into()]).unwrap();
    let mut all = Vec::new();
    reader.read_to_end(&mut all).unwrap();
    assert_eq!(all, b"x");
    let until = std::time::Instant::now() + LONG;
    while closer.closed().unwrap() == 0 {
        assert!(std::time::Instant::now() < until, "it is not reported");
        std::thread::sleep(Duration::from_millis(1));
    }
    closer.finish().unwrap();
}

#[test]
fn a_copy_is_whole_and_ends_with_its_pipe() {
    prepare();
    let file = || std::fs::File::from(memory_file());
    // More than a pipe holds.
    let sent: Vec<u8> = (0..1_000_000_u32).map(|n| (n % 251) as u8).collect();
    let mut saved = file();
    saved.write_all(&sent).unwrap();
    let (mut reader, writer) = std::io::pipe().unwrap();
    let (helper, copying) = Helper::copy(saved.as_fd(), writer.as_fd()).unwrap();
    drop(writer);
    let mut came = Vec::new();
    reader.read_to_end(&mut came).unwrap();
    assert!(came == sent);
    assert_eq!(copying.wait(LONG).unwrap(), 1_000_000);
    helper.wait().unwrap();

    let mut loaded = file();
    loaded.write_all(&vec![7; 2_000_000]).unwrap();
    let (reader, mut writer) = std::io::pipe().unwrap();
    let (helper, copying) = Helper::copy(reader.as_fd(), loaded.as_fd()).unwrap();
    drop(reader);
    writer.write_all(&sent).unwrap();
    assert_eq!(copying.wait(Duration::from_millis(50)).unwrap_err().kind(), ErrorKind::TimedOut);
    drop(writer);
    assert_eq!(copying.wait(LONG).unwrap(), 1_000_000);
    helper.wait().unwrap();
    loaded.rewind().unwrap();
    came.clear();
    loaded.read_to_end(&mut came).unwrap();
    assert!(came == sent, "the file has nothing of what it was before");
}

#[test]
fn a_copy_without_end_is_given_up() {
    prepare();
    let loaded = memory_file();
    let (reader, mut writer) = std::io::pipe().unwrap();
    let (helper, copying) = Helper::copy(reader.as_fd(), loaded.as_fd()).unwrap();
    drop(reader);
    while writer.write_all(&[1; 1 << 16]).is_ok() {}
    assert_eq!(copying.wait(LONG).unwrap_err().kind(), ErrorKind::FileTooLarge);
    helper.wait().unwrap();
    // Nobody reads, and then nobody waits any more.
    let full = memory_file();
    rustix::fs::ftruncate(&full, 1 << 20).unwrap();
    let (_reader, writer) = std::io::pipe().unwrap();
    let (helper, copying) = Helper::copy(full.as_fd(), writer.as_fd()).unwrap();
    assert_eq!(copying.wait(Duration::from_millis(50)).unwrap_err().kind(), ErrorKind::TimedOut);
    drop(copying);
    helper.wait().unwrap();
}

#[test]
fn a_file_becomes_that_of_another_one_and_no_longer() {
    prepare();
    let [from, to] = [1_000_000, 2_000_000].map(|len: usize| {
        let mut file = std::fs::File::from(memory_file());
        file.write_all(&vec![len as u8; len]).unwrap();
        file
    });
    let (helper, copying) = Helper::copy(from.as_fd(), to.as_fd()).unwrap();
    assert_eq!(copying.wait(LONG).unwrap(), 1_000_000);
    helper.wait().unwrap();
    let (mut came, mut to) = (Vec::new(), to);
    to.rewind().unwrap();
    to.read_to_end(&mut came).unwrap();
    assert!(came == vec![1_000_000_u32 as u8; 1_000_000]);
}

fn memory_file() -> std::os::fd::OwnedFd {
    rustix::fs::memfd_create("test", rustix::fs::MemfdFlags::CLOEXEC).unwrap()
}

#[test]
fn a_file_system_is_found_by_its_number() {
    prepare();
    let file = std::fs::File::open("/proc/self/maps").unwrap();
    let (helper, number) = Helper::file_system(file.as_fd(), LONG).unwrap();
    assert_eq!(number, 0x9fa0, "PROC_SUPER_MAGIC");
    helper.dismiss().unwrap();
}

#[test]
fn the_maps_of_the_other_end_are_found_and_of_nobody_else() {
    prepare();
    let (one, _other) = std::os::unix::net::UnixStream::pair().unwrap();
    let mut maps = String::new();
    Helper::maps(one.as_fd(), LONG).unwrap().read_to_string(&mut maps).unwrap();
    let ours = std::fs::read_to_string("/proc/self/maps").unwrap();
    assert_eq!(maps.lines().next(), ours.lines().next(), "this process made the socket");
    let no_socket = std::fs::File::open("/proc/self/maps").unwrap();
    assert!(Helper::maps(no_socket.as_fd(), LONG).is_err());
}

#[test]
fn no_helper_is_left_as_a_zombie() {
    prepare();
    for _ in 0..3 {
        Closer::start().unwrap().finish().unwrap();
    }
    let children = || {
        let own = format!("/proc/self/task/{}/children", std::process::id());
        let starters = std::fs::read_to_string(own).unwrap();
        let of = |pid: &str| std::fs::read_to_string(format!("/proc/{pid}/task/{pid}/children"));
        starters.split_whitespace().filter_map(|pid| of(pid).ok()).collect::<String>()
    };
    let until = std::time::Instant::now() + LONG;
    while children().split_whitespace().any(|pid| {
        let stat = std::fs::read_to_string(format!("/proc/{pid}/stat")).unwrap_or_default();
        stat.contains(") Z ")
    }) {
        assert!(std::time::Instant::now() < until, "{}", children());
        std::thread::sleep(Duration::from_millis(1));
    }
}
