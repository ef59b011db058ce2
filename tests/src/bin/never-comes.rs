//! Serves the file of `ringscope_tests::fuse` (`linux/fuse.h`): it answers what size and mode the file has, and no read.
//!
//! Its standard error is /dev/fuse. For each read that it does not answer, it prints a byte. After a byte on its standard
//! input it does not answer `statfs` either, and prints a byte to confirm that. It ends with its standard input.

use std::fs::File;
use std::io::{self, Read as _, Write as _};
use std::os::fd::AsFd as _;
use std::time::Duration;

use rustix::event::{PollFd, PollFlags, poll};
use rustix::process::{Signal, set_parent_process_death_signal};

/// The file's size, bytes.
const SIZE: u64 = 1 << 20;
/// The file: a regular one, that may be read and written by root.
const MODE: u32 = 0o100_600;

const GETATTR: u32 = 3;
const OPEN: u32 = 14;
const READ: u32 = 15;
const STATFS: u32 = 17;
const RELEASE: u32 = 18;
const FLUSH: u32 = 25;
const INIT: u32 = 26;
const FORGET: u32 = 2;
const INTERRUPT: u32 = 36;
const BATCH_FORGET: u32 = 42;
/// Error number: the request is not known.
const ENOSYS: i32 = 38;

fn main() -> io::Result<()> {
    // However the test ends: calls that wait for the file fail when nobody has /dev/fuse open.
    set_parent_process_death_signal(Some(Signal::KILL))?;
    let device = File::from(io::stderr().as_fd().try_clone_to_owned()?);
    let (mut stdin, mut stdout) = (io::stdin(), io::stdout());
    let mut is_silent = false;
    let mut request = vec![0; 1 << 17];
    loop {
        let mut polled = [PollFd::new(&device, PollFlags::IN), PollFd::new(&stdin, PollFlags::IN)];
        poll(&mut polled, None)?;
        let [has_request, is_told] = polled.map(|fd| !fd.revents().is_empty());
        if is_told {
            if stdin.read(&mut [0])? == 0 {
                return Ok(());
            }
            is_silent = true;
            stdout.write_all(b"s")?;
            stdout.flush()?;
        }
        if has_request {
            let Ok(len) = (&device).read(&mut request) else {
                // It is not mounted yet.
                std::thread::sleep(Duration::from_millis(1));
                continue;
            };
            if is_read(&request[..len]) {
                stdout.write_all(b"r")?;
                stdout.flush()?;
            }
            if let Some(answer) = answer(&request[..len], is_silent) {
                let _ = (&device).write(&answer);
            }
        }
    }
}

fn code(request: &[u8]) -> u32 {
    request.get(4..8).and_then(|code| code.try_into().ok()).map_or(0, u32::from_ne_bytes)
}

fn is_read(request: &[u8]) -> bool {
    code(request) == READ
}

/// The answer to a request, if there is one.
fn answer(request: &[u8], is_silent: bool) -> Option<Vec<u8>> {
    let unique = request.get(8..16)?;
    let (error, payload) = match code(request) {
        STATFS if !is_silent => (0, vec![0; 80]),
        READ | STATFS | FORGET | INTERRUPT | BATCH_FORGET => return None,
        INIT => (0, init()),
        GETATTR => (0, attributes()),
        OPEN => (0, vec![0; 16]),
        FLUSH | RELEASE => (0, Vec::new()),
        _ => (-ENOSYS, Vec::new()),
    };
    let len = u32::try_from(16 + payload.len()).ok()?;
    Some([&len.to_ne_bytes()[..], &error.to_ne_bytes(), unique, &payload].concat())
}

/// `struct fuse_init_out`: version 7.31, no flags, the rest as small as it may be.
fn init() -> Vec<u8> {
    let mut answer = [7, 31, 0, 0, 0, 1 << 16].map(u32::to_ne_bytes).concat();
    answer.resize(64, 0);
    answer
}

/// `struct fuse_attr_out`, valid for an hour.
fn attributes() -> Vec<u8> {
    let words = [3600, 0, 1, SIZE, SIZE / 512, 0, 0, 0].map(u64::to_ne_bytes).concat();
    // Nanoseconds, mode, links, owner, group, device, block size, flags.
    let rest = [0, 0, 0, MODE, 1, 0, 0, 0, 4096, 0].map(u32::to_ne_bytes).concat();
    [words, rest].concat()
}
