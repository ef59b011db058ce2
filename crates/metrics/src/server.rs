//! The server of the metrics: HTTP/1.1, `GET /metrics`, one response per connection.
//!
//! While idle, no thread here wakes up. Each request reads the records. After it, as long as new records arrive, they
//! are read often enough that none is overwritten unread. So records are lost only when they fill a whole recorder
//! after an idle time and before the next request.

use std::fs;
use std::io::{self, Read, Write};
use std::net::{Shutdown, TcpListener, TcpStream};
use std::os::fd::{AsFd, OwnedFd};
use std::os::unix::fs::{FileTypeExt, PermissionsExt};
use std::os::unix::net::{UnixListener, UnixStream};
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::sync::{Arc, Condvar, Mutex, MutexGuard, PoisonError};
use std::thread::{Builder, JoinHandle};
use std::time::{Duration, Instant};

use burst_trace::ReadError;
use confine::Role;
use host_files::socket::is_listened_at;

use crate::accept::Format;
use crate::address::Address;
use crate::exposition::{to_plain, to_text};
use crate::guest::Guest;

/// Longest request that is read, in bytes.
const REQUEST_MAX: usize = 8192;
/// Longest time that a connection may take for its request, and again for its response.
const PATIENCE: Duration = Duration::from_secs(2);
/// Most connections answered at a time; further ones are closed.
const CONNECTIONS_MAX: usize = 8;
/// Interval between two reads while new records arrive; shorter where a recorder fills fast.
const FOLLOW_EVERY: Duration = Duration::from_millis(100);

/// Why metrics cannot be served.
#[derive(Debug, thiserror::Error)]
pub enum MetricsError {
    /// The address cannot be bound.
    #[error("cannot serve metrics at {address}: {source}, or choose another --metrics")]
    Bind {
        /// The address.
        address: Address,
        /// The error of the system.
        source: io::Error,
    },
    /// A recorder cannot be read.
    #[error(transparent)]
    Recorder(#[from] ReadError),
    /// A thread could not be started.
    #[error("cannot start a thread for metrics: {0}")]
    Thread(io::Error),
}

/// The endpoint. Dropping it ends its threads and removes its unix socket.
#[derive(Debug)]
pub struct Metrics {
    shared: Arc<Shared>,
    listener: OwnedFd,
    socket: Option<PathBuf>,
    threads: Vec<JoinHandle<()>>,
}

#[derive(Debug)]
struct Shared {
    guests: Mutex<Vec<Guest>>,
    /// Notified after each request, because records may be arriving; and at the end.
    asked: Condvar,
    is_over: AtomicBool,
    connections: AtomicUsize,
}

impl Metrics {
    /// Serves the metrics of `guests` at `address`.
    ///
    /// # Errors
    /// See [`MetricsError`].
    pub fn serve(address: &Address, guests: Vec<Guest>) -> Result<Self, MetricsError> {
        let bind = |source| MetricsError::Bind { address: address.clone(), source };
        let shared = Arc::new(Shared {
            guests: Mutex::new(guests),
            asked: Condvar::new(),
            is_over: AtomicBool::new(false),
            connections: AtomicUsize::new(0),
        });
        let mut metrics = match address {
            Address::Unix(path) => {
                let listener = bind_unix(path).map_err(bind)?;
                let handle = listener.as_fd().try_clone_to_owned().map_err(bind)?;
                let mut metrics = Self {
                    shared,
                    listener: handle,
                    socket: Some(path.clone()),
                    threads: Vec::new(),
                };
                metrics.accept(move || listener.accept().map(|(stream, _)| stream))?;
                metrics
            }
            Address::Loopback(address) => {
                let listener = TcpListener::bind(address).map_err(bind)?;
                let handle = listener.as_fd().try_clone_to_owned().map_err(bind)?;
                let mut metrics =
                    Self { shared, listener: handle, socket: None, threads: Vec::new() };
                metrics.accept(move || listener.accept().map(|(stream, _)| stream))?;
                metrics
            }
        };
        let shared = Arc::clone(&metrics.shared);
        metrics.spawn("metrics-follow", move || shared.follow())?;
        Ok(metrics)
    }

    fn accept<S: Stream>(
        &mut self,
        next: impl Fn() -> io::Result<S> + Send + 'static,
    ) -> Result<(), MetricsError> {
        let shared = Arc::clone(&self.shared);
        self.spawn("metrics", move || {
            while !shared.is_over.load(Ordering::Acquire) {
                match next() {
                    Ok(stream) => Shared::answer_apart(&shared, stream),
                    // For example without a free descriptor: the pause keeps this loop from spinning.
                    Err(_) => std::thread::sleep(Duration::from_millis(10)),
                }
            }
        })
    }

    fn spawn(
        &mut self,
        name: &str,
        work: impl FnOnce() + Send + 'static,
    ) -> Result<(), MetricsError> {
        let thread = Builder::new().name(name.into()).spawn(move || {
            confine::enter(Role::Metrics);
            work();
        });
        let thread = thread.map_err(MetricsError::Thread)?;
        self.threads.push(thread);
        Ok(())
    }
}

impl Drop for Metrics {
    fn drop(&mut self) {
        self.shared.is_over.store(true, Ordering::Release);
        // A thread that blocks in accept(2) returns with an error (Linux: EINVAL).
        let _ = rustix::net::shutdown(&self.listener, rustix::net::Shutdown::Both);
        drop(self.shared.guests());
        self.shared.asked.notify_all();
        for thread in self.threads.drain(..) {
            let _ = thread.join();
        }
        if let Some(path) = &self.socket {
            let _ = fs::remove_file(path);
        }
    }
}

impl Shared {
    fn guests(&self) -> MutexGuard<'_, Vec<Guest>> {
        self.guests.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Reads records as long as new ones arrive, then waits for the next request.
    fn follow(&self) {
        let mut guests = self.guests();
        while !self.is_over.load(Ordering::Acquire) {
            let fill = guests.iter_mut().map(Guest::follow).fold(0.0, f64::max);
            guests = if fill == 0.0 {
                self.asked.wait(guests).unwrap_or_else(PoisonError::into_inner)
            } else {
                // To read a quarter of a recorder at a time leaves room for a rate that doubles.
                let pause = FOLLOW_EVERY.mul_f64((0.25 / fill).min(1.0));
                let waited = self.asked.wait_timeout(guests, pause.max(Duration::from_millis(2)));
                waited.unwrap_or_else(PoisonError::into_inner).0
            };
        }
    }

    fn text(&self) -> String {
        let mut guests = self.guests();
        guests.iter_mut().for_each(|guest| _ = guest.follow());
        let text = to_text(&guests).unwrap_or_default();
        drop(guests);
        self.asked.notify_all();
        text
    }

    /// Answers on a separate thread, so that a slow client delays no other client.
    fn answer_apart<S: Stream>(shared: &Arc<Self>, stream: S) {
        if shared.connections.fetch_add(1, Ordering::AcqRel) >= CONNECTIONS_MAX {
            shared.connections.fetch_sub(1, Ordering::AcqRel);
            return;
        }
        let inside = Arc::clone(shared);
        let answer = move || {
            let _ = inside.answer(stream);
            inside.connections.fetch_sub(1, Ordering::AcqRel);
        };
        if Builder::new().name("metrics-answer".into()).spawn(answer).is_err() {
            shared.connections.fetch_sub(1, Ordering::AcqRel);
        }
    }

    fn answer(&self, mut stream: impl Stream) -> io::Result<()> {
        stream.limit(PATIENCE)?;
        let request = read_request(&mut stream)?;
        let (status, body) = match request {
            Request::Metrics(Format::OpenMetrics) => ("200 OK", self.text()),
            Request::Metrics(Format::Text) => ("200 OK", to_plain(&self.text())),
            Request::OtherPath => ("404 Not Found", "expected GET /metrics\n".into()),
            Request::OtherMethod => ("405 Method Not Allowed", "expected GET /metrics\n".into()),
            Request::Malformed => ("400 Bad Request", "expected an HTTP request\n".into()),
        };
        let kind = match request {
            Request::Metrics(format) => format.media_type(),
            _ => "text/plain; charset=utf-8",
        };
        let length = body.len();
        write!(
            stream,
            "HTTP/1.1 {status}\r\nContent-Type: {kind}\r\nContent-Length: {length}\r\nConnection: close\r\n\r\n{body}"
        )?;
        stream.flush()?;
        stream.end()
    }
}

/// What a client requests.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Request {
    Metrics(Format),
    OtherPath,
    OtherMethod,
    Malformed,
}

fn read_request(stream: &mut impl Read) -> io::Result<Request> {
    let mut bytes = [0; REQUEST_MAX];
    let (mut filled, until) = (0, Instant::now() + PATIENCE);
    loop {
        let mut headers = [httparse::EMPTY_HEADER; 64];
        let mut request = httparse::Request::new(&mut headers);
        match request.parse(&bytes[..filled]) {
            Ok(httparse::Status::Complete(_)) => {
                let path = request.path.unwrap_or_default().split('?').next();
                return Ok(match (request.method, path) {
                    (Some("GET"), Some("/metrics")) => Request::Metrics(preferred(&request)),
                    (Some("GET"), _) => Request::OtherPath,
                    _ => Request::OtherMethod,
                });
            }
            Ok(httparse::Status::Partial) if filled < REQUEST_MAX && Instant::now() < until => {}
            _ => return Ok(Request::Malformed),
        }
        match stream.read(&mut bytes[filled..])? {
            0 => return Err(io::ErrorKind::UnexpectedEof.into()),
            count => filled += count,
        }
    }
}

/// The format that all the request's `Accept` headers together prefer.
fn preferred(request: &httparse::Request<'_, '_>) -> Format {
    let accepts = request.headers.iter().filter(|it| it.name.eq_ignore_ascii_case("accept"));
    let accepts: Vec<_> = accepts.map(|it| String::from_utf8_lossy(it.value)).collect();
    Format::preferred(&accepts.join(","))
}

/// A TCP or unix connection.
trait Stream: Read + Write + Send + 'static {
    fn limit(&self, time: Duration) -> io::Result<()>;
    fn end(&self) -> io::Result<()>;
}

macro_rules! stream {
    ($stream:ty) => {
        impl Stream for $stream {
            fn limit(&self, time: Duration) -> io::Result<()> {
                self.set_read_timeout(Some(time))?;
                self.set_write_timeout(Some(time))
            }

            fn end(&self) -> io::Result<()> {
                self.shutdown(Shutdown::Write)
            }
        }
    };
}

stream!(TcpStream);
stream!(UnixStream);

/// Binds a unix socket. A socket file that has no listener any more is replaced; anything else there is left alone, and
/// the error says what it is.
fn bind_unix(path: &Path) -> io::Result<UnixListener> {
    let in_the_way = |what: &str| Err(io::Error::new(io::ErrorKind::AddrInUse, what));
    if let Ok(there) = fs::symlink_metadata(path) {
        if !there.file_type().is_socket() {
            return in_the_way("it exists and is not a socket; remove it");
        }
        match is_listened_at(path) {
            Ok(false) => fs::remove_file(path)?,
            Ok(true) => return in_the_way("another process listens on it; end that one"),
            Err(_) => {}
        }
    } else if let Some(directory) = path.parent().filter(|it| !it.as_os_str().is_empty())
        && !directory.is_dir()
    {
        let what = format!("there is no directory {}; make it first", directory.display());
        return Err(io::Error::new(io::ErrorKind::NotFound, what));
    }
    let listener = UnixListener::bind(path)?;
    fs::set_permissions(path, fs::Permissions::from_mode(0o660))?;
    Ok(listener)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_path_in_use_is_explained() {
        let dir = tempfile::tempdir().unwrap();
        let said = |name: &str| bind_unix(&dir.path().join(name)).unwrap_err().to_string();
        fs::write(dir.path().join("file"), "x").unwrap();
        assert_eq!(said("file"), "it exists and is not a socket; remove it");
        let held = bind_unix(&dir.path().join("socket")).unwrap();
        assert_eq!(said("socket"), "another process listens on it; end that one");
        assert!(said("none/socket").contains("/none; make it first"));
        // Left by a process that was killed.
        drop(held);
        bind_unix(&dir.path().join("socket")).unwrap();
    }

    #[test]
    fn requests_are_told_apart() {
        for (text, expected) in [
            ("GET /metrics HTTP/1.1\r\nHost: a\r\n\r\n", Request::Metrics(Format::OpenMetrics)),
            ("GET /metrics?x=1 HTTP/1.0\r\n\r\n", Request::Metrics(Format::OpenMetrics)),
            ("GET /metrics HTTP/1.1\r\naccept: text/plain\r\n\r\n", Request::Metrics(Format::Text)),
            ("GET / HTTP/1.1\r\n\r\n", Request::OtherPath),
            ("POST /metrics HTTP/1.1\r\n\r\n", Request::OtherMethod),
            ("\x16\x03\x01\x02", Request::Malformed),
        ] {
            assert_eq!(read_request(&mut text.as_bytes()).unwrap(), expected, "{text}");
        }
        let endless = format!("GET /metrics HTTP/1.1\r\nA: {}", "a".repeat(2 * REQUEST_MAX));
        assert_eq!(read_request(&mut endless.as_bytes()).unwrap(), Request::Malformed);
        assert!(read_request(&mut "GET /metr".as_bytes()).is_err());
    }
}
