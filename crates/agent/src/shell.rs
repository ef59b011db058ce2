//! `shell`: one command in a guest, from the host.

use crate::Error;
use crate::console::{self, Console};
use crate::progress::Progress;
use std::io::{ErrorKind, Write, stdout};
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

#[derive(Debug, clap::Args)]
pub struct Args {
    /// The console.sock that qemu-scripts/launch made.
    socket: PathBuf,
    /// The command, one line; without it, only wait for the guest.
    #[arg(trailing_var_arg = true, allow_hyphen_values = true)]
    command: Vec<String>,
    /// Time for the guest to answer (its socket need not be there yet), and again for the command to end.
    #[arg(long, value_name = "SECONDS", default_value_t = 60)]
    timeout: u64,
}

/// Silence that is reported.
const SILENCE: Duration = Duration::from_secs(2);
/// Time between two looks for the socket.
const LOOK_EVERY: Duration = Duration::from_millis(50);

pub fn run(args: &Args) -> Result<(), Error> {
    let limit = Duration::from_secs(args.timeout);
    let command = args.command.join(" ");
    if command.contains('\n') {
        let (expected, found) = ("one line".to_owned(), format!("{command:?}"));
        return Err(Error::Usage { flag: "COMMAND", expected, found });
    }
    let mut progress = Progress::new();
    let mut console = connect(&args.socket, limit, &mut progress)?;
    progress.show(|| format!("waiting for the guest to boot, {} s at most", args.timeout));
    await_boot(&mut console, limit, &mut progress)?;
    if command.is_empty() {
        return Ok(());
    }
    progress.show(|| format!("the guest runs `{command}`, {} s at most", args.timeout));
    let output = console.run(&command, limit)?;
    drop(progress);
    stdout().lock().write_all(output.text.as_bytes())?;
    match output.status {
        0 => Ok(()),
        status => Err(Error::Command { command, status }),
    }
}

/// Waits until the guest answers.
fn await_boot(
    console: &mut Console,
    limit: Duration,
    progress: &mut Progress,
) -> Result<(), console::Error> {
    match console.await_boot(limit.min(SILENCE)) {
        Err(console::Error::Timeout { .. }) if limit > SILENCE => {
            progress.say(&format!(
                "nothing from the guest's console for {} s: it may still boot; waiting {} s at most (--timeout)",
                SILENCE.as_secs(),
                limit.as_secs()
            ));
            console.await_boot(limit.saturating_sub(SILENCE))
        }
        other => other,
    }
}

/// Connects to the console as soon as somebody listens there: QEMU may have been started a moment ago.
fn connect(socket: &Path, limit: Duration, progress: &mut Progress) -> Result<Console, Error> {
    let (start, mut is_reported) = (Instant::now(), false);
    loop {
        let source = match Console::connect(socket) {
            Err(console::Error::Io { source, .. }) if is_early(&source) => source,
            other => return Ok(other?),
        };
        if start.elapsed() >= limit {
            return Err(console::Error::Io { path: socket.into(), source }.into());
        }
        if start.elapsed() >= SILENCE && !std::mem::replace(&mut is_reported, true) {
            progress.say(&format!(
                "nobody listens on {} for {} s: does the guest run? Waiting {} s at most (--timeout)",
                socket.display(),
                SILENCE.as_secs(),
                limit.as_secs()
            ));
        }
        std::thread::sleep(LOOK_EVERY);
    }
}

/// Whether the socket is not there, or nobody listens on it yet.
fn is_early(error: &std::io::Error) -> bool {
    matches!(error.kind(), ErrorKind::NotFound | ErrorKind::ConnectionRefused)
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::os::unix::net::UnixListener;

    #[test]
    fn a_guest_that_does_not_answer_or_is_gone_is_an_error_within_the_limit() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("console.sock");
        let listener = UnixListener::bind(&path).unwrap();
        let (limit, mut progress) = (Duration::from_millis(100), Progress::new());
        let mut console = connect(&path, limit, &mut progress).unwrap();
        let silent = await_boot(&mut console, limit, &mut progress);
        assert!(matches!(silent, Err(console::Error::Timeout { .. })), "{silent:?}");
        drop(listener);
        let gone = await_boot(&mut console, Duration::from_secs(60), &mut progress);
        assert!(matches!(gone, Err(console::Error::Io { .. })), "{gone:?}");
    }

    #[test]
    fn a_socket_that_comes_later_is_waited_for_and_one_that_does_not_is_reported() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("console.sock");
        let (limit, mut progress) = (Duration::from_millis(100), Progress::new());
        let error = connect(&path, limit, &mut progress).unwrap_err();
        assert!(error.to_string().contains("console.sock"), "{error}");
        let later = path.clone();
        let listener = std::thread::spawn(move || {
            std::thread::sleep(limit);
            UnixListener::bind(later).unwrap()
        });
        connect(&path, Duration::from_secs(10), &mut progress).unwrap();
        listener.join().unwrap();
    }
}
