//! A Linux guest in QEMU, on `ringscoped` with a tap or an end of a wire, and the outside host that it is to reach:
//!
//! ```text
//! outside 10.77.0.1 - bridge - tap - ringscoped === vhost-user === QEMU guest 10.77.0.2
//! outside 10.77.0.1 - veth - ringscoped === vhost-user === QEMU guest 10.77.0.2
//! ```

use std::error::Error;
use std::io;
use std::path::{Path, PathBuf};
use std::process::{Command, Output};
use std::sync::{Mutex, MutexGuard, OnceLock, PoisonError};
use std::time::Duration;

use burst_trace::{DropCause, Reader};
use lab::guest::{Attachment, Guest, GuestOptions, Machine, scripts};
use lab::outside::Outside;
use serde_json::Value;
use tempfile::TempDir;

use crate::daemon::{Daemon, program};

/// What a story may end with, besides well.
pub type Failure = Box<dyn Error>;

/// The daemon's name, and so its socket's, its log's and its recorder's.
const NAME: &str = "vm0";

/// The guest's address.
pub const GUEST: &str = "10.77.0.2";

/// Where a guest is to live: an outside host and a tap. What was started in it ends with it, the guest
/// first.
///
/// One at a time is there in a test program: guests that share the CPUs would slow each other down.
#[derive(Debug)]
pub struct Place {
    /// The guest, if one was attached.
    pub guest: Option<Guest>,
    /// The daemon, if one was spawned.
    pub daemon: Option<Daemon>,
    /// The outside host.
    pub outside: Outside,
    datapath: String,
    queue_pairs: u16,
    directory: TempDir,
    _alone: MutexGuard<'static, ()>,
}

impl Place {
    /// Makes the outside host and a tap with so many queues.
    ///
    /// # Errors
    /// Without root or iproute2; the message says which.
    pub fn new(queue_pairs: u16) -> Result<Self, Failure> {
        Self::on_tap(queue_pairs, "")
    }

    /// The same with these further `keys` of the tap.
    ///
    /// # Errors
    /// As [`new`](Self::new).
    pub fn on_tap(queue_pairs: u16, keys: &str) -> Result<Self, Failure> {
        Self::make(queue_pairs, || {
            let mut outside = Outside::new("test")?;
            let tap = outside.add_tap(queue_pairs)?;
            Ok((outside, format!("tap:ifname={tap}{keys}")))
        })
    }

    /// Makes the outside host and a wire with so many queues, for AF_XDP with these further `keys`.
    ///
    /// # Errors
    /// As [`new`](Self::new).
    pub fn on_wire(queue_pairs: u16, keys: &str) -> Result<Self, Failure> {
        Self::make(queue_pairs, || {
            let outside = Outside::on_wire("test", queue_pairs)?;
            let datapath = format!("af-xdp:ifname={}{keys}", outside.wire());
            Ok((outside, datapath))
        })
    }

    /// Makes the outside host and a wire, for a macvtap over it that the daemon makes.
    ///
    /// # Errors
    /// As [`new`](Self::new).
    pub fn on_macvtap(queue_pairs: u16) -> Result<Self, Failure> {
        Self::make(queue_pairs, || {
            let outside = Outside::on_wire("test", queue_pairs)?;
            let wire = outside.wire();
            // As unique as the wire's.
            let name = wire.replacen("rv", "rm", 1);
            let datapath = format!("macvtap:ifname={name},over={wire}");
            Ok((outside, datapath))
        })
    }

    fn make(
        queue_pairs: u16,
        build: impl FnOnce() -> Result<(Outside, String), Failure>,
    ) -> Result<Self, Failure> {
        static ALONE: Mutex<()> = Mutex::new(());
        let _alone = ALONE.lock().unwrap_or_else(PoisonError::into_inner);
        let (outside, datapath) = build()?;
        let directory = tempfile::Builder::new().prefix("ringscope-test-").tempdir()?;
        Ok(Self { guest: None, daemon: None, outside, datapath, queue_pairs, directory, _alone })
    }

    /// Where sockets, logs and the recorder are.
    #[must_use]
    pub fn directory(&self) -> &Path {
        self.directory.path()
    }

    /// The vhost-user socket.
    #[must_use]
    pub fn socket(&self) -> PathBuf {
        self.directory().join(format!("{NAME}.sock"))
    }

    /// Spawns the daemon on the tap.
    ///
    /// # Errors
    /// As [`Daemon::start`].
    pub fn spawn(&mut self, arguments: &[&str]) -> Result<(), Failure> {
        self.spawn_by(Daemon::start, arguments)
    }

    /// Has a new daemon take over from the one that was spawned, which must end in order.
    ///
    /// # Errors
    /// As [`Daemon::successor`].
    pub fn take_over(&mut self, arguments: &[&str]) -> Result<(), Failure> {
        let queue_pairs = self.queue_pairs.to_string();
        let own = ["--datapath", &self.datapath, "--queue-pairs", &queue_pairs];
        let mut before = self.daemon.take().ok_or("no daemon was spawned")?;
        self.daemon = Some(before.successor(&[&own, arguments].concat())?);
        let status = before.wait(SOON)?;
        if !status.success() {
            return Err(format!("it ended with {status}: {}", before.log()).into());
        }
        Ok(())
    }

    /// Spawns the daemon as a client of the socket that QEMU makes.
    ///
    /// # Errors
    /// As [`Daemon::start_as_client`].
    pub fn spawn_client(&mut self, arguments: &[&str]) -> Result<(), Failure> {
        self.spawn_by(Daemon::start_as_client, arguments)
    }

    fn spawn_by(
        &mut self,
        start: impl Fn(&Path, &str, &[&str]) -> io::Result<Daemon>,
        arguments: &[&str],
    ) -> Result<(), Failure> {
        let queue_pairs = self.queue_pairs.to_string();
        let own = ["--datapath", &self.datapath, "--queue-pairs", &queue_pairs];
        self.daemon = Some(start(self.directory(), NAME, &[&own, arguments].concat())?);
        Ok(())
    }

    /// Guests as they attach here, to be changed at will.
    ///
    /// # Errors
    /// Without the guest's image.
    pub fn options(&self) -> Result<GuestOptions, Failure> {
        let attachment = Attachment::Socket(self.socket());
        let mut options = GuestOptions::new(attachment, self.directory().join("guest"));
        options.queue_pairs = self.queue_pairs;
        options.image = Some(image()?.clone());
        Ok(options)
    }

    /// The same for a User Mode Linux guest.
    ///
    /// # Errors
    /// Without the program `ringscope`.
    pub fn uml_options(&self) -> Result<GuestOptions, Failure> {
        let attachment = Attachment::Socket(self.socket());
        let mut options = GuestOptions::new(attachment, self.directory().join("guest"));
        options.machine = Machine::Uml { agent: program("ringscope")? };
        options.memory_mib = 128;
        Ok(options)
    }

    /// Attaches a guest, and waits until it has booted.
    ///
    /// # Errors
    /// When it does not boot; the message has the end of its logs.
    pub fn attach(&mut self, options: GuestOptions) -> Result<(), Failure> {
        self.guest = None;
        self.guest = Some(Guest::launch(options)?);
        Ok(())
    }

    /// The name of the tap that it was made with; otherwise empty.
    #[must_use]
    pub fn tap(&self) -> &str {
        let keys = self.datapath.strip_prefix("tap:ifname=").unwrap_or_default();
        keys.split(',').next().unwrap_or_default()
    }

    /// The guest.
    ///
    /// # Panics
    /// When none was attached.
    pub fn guest(&mut self) -> &mut Guest {
        self.guest.as_mut().expect("a guest was attached")
    }

    /// The daemon.
    ///
    /// # Panics
    /// When none was spawned.
    pub fn daemon(&mut self) -> &mut Daemon {
        self.daemon.as_mut().expect("a daemon was spawned")
    }

    /// What the daemon has logged; nothing without one.
    #[must_use]
    pub fn log(&self) -> String {
        self.daemon.as_ref().map(Daemon::log).unwrap_or_default()
    }

    /// What `ringscope stats --json` says of the last `seconds`, or of all that the recorder holds.
    ///
    /// # Errors
    /// When it fails; the message is its own.
    pub fn stats(&self, seconds: Option<u32>) -> Result<Value, Failure> {
        let mut command = Command::new(program("ringscope")?);
        command.args(["stats", "--json", "--name", NAME, "--run-dir"]).arg(self.directory());
        if let Some(seconds) = seconds {
            command.args(["--last", &seconds.to_string()]);
        }
        Ok(serde_json::from_str(&said(&mut command)?)?)
    }

    /// The daemon's flight recorder.
    ///
    /// # Errors
    /// When it cannot be read.
    pub fn reader(&self) -> Result<Reader, Failure> {
        let daemon = self.daemon.as_ref().ok_or("no daemon was spawned")?;
        Ok(daemon.reader()?)
    }

    /// How many packets went through each virtqueue since the daemon started.
    ///
    /// # Errors
    /// When the recorder cannot be read.
    pub fn packets(&self) -> Result<Vec<u64>, Failure> {
        let reader = self.reader()?;
        let rings = 0..usize::from(self.queue_pairs) * 2;
        Ok(rings.map(|ring| reader.totals(ring).packets).collect())
    }

    /// Every packet that was dropped since the daemon started: virtqueue, cause, how many.
    ///
    /// # Errors
    /// When the recorder cannot be read.
    pub fn drops(&self) -> Result<Vec<(usize, &'static str, u64)>, Failure> {
        let reader = self.reader()?;
        let of_ring = |ring| {
            let of = |&cause: &DropCause| (ring, cause.name(), reader.drops(ring, cause));
            DropCause::ALL.iter().map(of).collect::<Vec<_>>()
        };
        let all = (0..usize::from(self.queue_pairs) * 2).flat_map(of_ring);
        Ok(all.filter(|(.., count)| *count > 0).collect())
    }
}

/// What a program printed on standard output.
///
/// # Errors
/// When it fails; the message is what it said.
pub fn said(command: &mut Command) -> Result<String, Failure> {
    let Output { status, stdout, stderr } = command.output()?;
    let text = String::from_utf8_lossy(&stdout).into_owned();
    if status.success() {
        return Ok(text);
    }
    let errors = String::from_utf8_lossy(&stderr);
    Err(format!("{command:?} ended with {status}:\n{text}{errors}").into())
}

/// The guest's kernel and initramfs: of `RINGSCOPE_IMAGE`, or built, once, by `qemu-scripts/guest-image`.
///
/// # Errors
/// When it cannot be built; the message says why.
pub fn image() -> Result<&'static PathBuf, Failure> {
    static IMAGE: OnceLock<Result<PathBuf, String>> = OnceLock::new();
    let build =
        || said(&mut Command::new(scripts().join("guest-image"))).map_err(|it| it.to_string());
    let find = || match std::env::var_os("RINGSCOPE_IMAGE") {
        Some(image) => Ok(image.into()),
        None => build().map(|line| line.trim().into()),
    };
    IMAGE.get_or_init(find).as_ref().map_err(|error| error.clone().into())
}

/// Plays a story in which the memory map of an emulated guest changes, because a back end goes or comes. Then QEMU before
/// 8.1 rarely ends by a fault of its own: a virtual CPU uses the new map with an old index into it, and `iotlb_to_section`
/// asserts (QEMU's issue 1826, mended by "softmmu: Use async_run_on_cpu in tcg_commit"). Then the story is played again.
///
/// # Errors
/// As the story; also when QEMU ends so three times.
pub fn despite_qemu(story: impl Fn() -> Result<(), Failure>) -> Result<(), Failure> {
    for _ in 0..2 {
        match story() {
            Err(failure) if failure.to_string().contains("iotlb_to_section") => {
                eprintln!("QEMU failed by itself, and the story is played again: {failure}");
            }
            result => return result,
        }
    }
    story()
}

/// Long enough for anything that is not a bulk transfer.
pub const SOON: Duration = Duration::from_secs(30);
