//! Guests in software on one switch.

use std::path::Path;
use std::time::Duration;

use burst_trace::DropCause;
use frontend::{Frame, Guest, GuestOptions, Pair};
use tempfile::TempDir;

use crate::daemon::Daemon;
use crate::eventually::{eventually, when};
use crate::frames;
use crate::trace::Trace;

const SOON: Duration = Duration::from_secs(5);
/// Long enough for a frame that must not come.
const NEVER: Duration = Duration::from_millis(50);

/// The address for everyone.
pub const EVERYONE: [u8; 6] = [0xff; 6];

/// The address of guest number `n`.
#[must_use]
#[expect(clippy::cast_possible_truncation, reason = "few guests")]
pub const fn station(n: usize) -> [u8; 6] {
    [0x52, 0x54, 0, 0, 0, n as u8]
}

/// A frame of `len` bytes, 14 at least, whose payload says where it belongs.
#[must_use]
pub fn frame(to: [u8; 6], from: [u8; 6], seed: usize, len: usize) -> Vec<u8> {
    // Local experimental EtherType (IEEE 802).
    [&to[..], &from, &[0x88, 0xb5], &frames::frame(seed, len - 14)].concat()
}

/// A daemon with a switch, and its guests.
#[derive(Debug)]
pub struct Lan {
    /// Guests by number, called `vm0` and so on.
    pub guests: Vec<Guest>,
    /// The daemon.
    pub daemon: Daemon,
    directory: TempDir,
}

impl Lan {
    /// A switch with a guest for each of `options`. `keys`: further lines for each guest's table.
    ///
    /// # Panics
    /// When the daemon does not start, or refuses a guest.
    #[must_use]
    pub fn new(options: &[GuestOptions], keys: &str) -> Self {
        Self::with_datapath("switch:lan", options, keys)
    }

    /// The same with this datapath for all: a switch with an uplink.
    ///
    /// # Panics
    /// As [`new`](Self::new).
    #[must_use]
    pub fn with_datapath(datapath: &str, options: &[GuestOptions], keys: &str) -> Self {
        Self::with_keys(options, |_| format!("datapath = '{datapath}'\n{keys}"))
    }

    /// The same with these lines, `datapath` among them, for guest number `n`.
    ///
    /// # Panics
    /// As [`new`](Self::new).
    #[must_use]
    pub fn with_keys(options: &[GuestOptions], keys: impl Fn(usize) -> String) -> Self {
        let directory = tempfile::tempdir().unwrap();
        let table = |n| guest_table(directory.path(), n, &keys(n));
        let config: String = (0..options.len()).map(table).collect();
        let daemon = Daemon::start_with_config(directory.path(), "vm0", &config).unwrap();
        let mut lan = Self { guests: Vec::new(), daemon, directory };
        for options in options {
            lan.join(options.clone());
        }
        lan
    }

    /// The next guest attaches.
    ///
    /// # Panics
    /// When it is refused.
    pub fn join(&mut self, options: GuestOptions) {
        let path = self.directory.path().join(format!("vm{}.sock", self.guests.len()));
        self.guests.push(Guest::connect(path, options).unwrap());
    }

    /// The only queue pair of guest number `n`.
    pub fn pair(&mut self, n: usize) -> &mut Pair {
        self.guests[n].pair(0)
    }

    /// Guest `from` sends one frame.
    ///
    /// # Panics
    /// When it has no room for it.
    pub fn send(&mut self, from: usize, frame: &[u8]) {
        assert!(self.pair(from).send(frame).unwrap(), "room for a frame");
    }

    /// The next frame that guest `n` receives is this one.
    ///
    /// # Panics
    /// When it is another one, or none.
    pub fn expect(&mut self, n: usize, frame: &[u8]) -> Frame {
        let log = self.daemon.log();
        let came = self.pair(n).receive_within(SOON).unwrap();
        let came = came.unwrap_or_else(|| panic!("guest {n} receives nothing: {log}"));
        assert!(came.bytes == frame, "guest {n} received another frame: {:02x?}", came.bytes);
        came
    }

    /// Guest `n` receives nothing.
    ///
    /// # Panics
    /// When it does.
    pub fn expect_nothing(&mut self, n: usize) {
        let came = self.pair(n).receive_within(NEVER).unwrap();
        assert!(came.is_none(), "guest {n} received {came:02x?}");
    }

    /// Every guest says where it is, and all hear it.
    ///
    /// # Panics
    /// When one does not.
    pub fn introduce(&mut self) {
        for from in 0..self.guests.len() {
            let hello = frame(EVERYONE, station(from), from, 60);
            self.send(from, &hello);
            for to in (0..self.guests.len()).filter(|to| *to != from) {
                self.expect(to, &hello);
            }
        }
    }

    /// What the daemon recorded of guest number `n`.
    #[must_use]
    pub fn trace(&self, n: usize) -> Trace {
        Trace::open(self.directory.path(), &format!("vm{n}"))
    }

    /// Waits until so many frames of guest `n` were dropped on virtqueue `ring` for this reason.
    ///
    /// # Panics
    /// When they were not in time, or more of them.
    pub fn expect_drops(&self, n: usize, ring: u16, cause: DropCause, count: u64) {
        eventually(SOON, &format!("{count} drops by {cause:?} of guest {n}"), || {
            let found = self.trace(n).drops(ring, cause);
            when(found >= count, found)
        });
        assert_eq!(self.trace(n).drops(ring, cause), count, "{cause:?} of guest {n}");
    }

    /// Where the daemon's files are.
    #[must_use]
    pub fn directory(&self) -> &Path {
        self.directory.path()
    }
}

/// The table of guest number `n`, with the lines `keys`.
#[must_use]
pub fn guest_table(directory: &Path, n: usize, keys: &str) -> String {
    let socket = directory.join(format!("vm{n}.sock"));
    format!("[[guest]]\nsocket-path = '{}'\n{keys}\n", socket.display())
}
