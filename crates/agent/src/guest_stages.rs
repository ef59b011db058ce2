//! `--guest-stages`: the way of received probes through this machine's kernel, if it can be stamped.

use std::io;
use std::net::UdpSocket;
use std::num::NonZeroU64;

use burst_trace::Probe;
use kernel_stages::{GuestStages, GuestStamps};
use rustix::thread::gettid;

use crate::progress::Progress;

/// Columns of a stamps file with these stamps, after the others.
const COLUMNS: &str = ",interrupt_ns,softirq_ns,woken_ns,running_ns";

#[derive(Debug, Clone, Copy, clap::Args)]
pub struct GuestStagesArgs {
    /// With --stamps, in a guest: also stamp in its kernel how it receives each probe. The report then has guest-interrupt,
    /// guest-softirq, guest-driver, guest-stack, guest-wakeup and guest-receive. Needs root and a kernel with BTF; without
    /// them, one line says so, and the other stamps are taken.
    #[arg(long, requires = "stamps")]
    guest_stages: bool,
}

/// Stamps the way of received probes, if that is wanted and this kernel can.
#[derive(Debug)]
pub enum Reception {
    NotWanted,
    Stamped(GuestStages),
    /// Why it is not stamped.
    NotAvailable(String),
}

impl Reception {
    /// Attaches the programs if they are wanted. If this kernel does not run them, that is said.
    pub fn set_up(args: GuestStagesArgs) -> Self {
        if !args.guest_stages {
            return Self::NotWanted;
        }
        match GuestStages::attach() {
            Ok(stages) => Self::Stamped(stages),
            Err(reason) => {
                Progress::new()
                    .say(&format!("guest stages n/a: {reason}; the other stamps are taken"));
                Self::NotAvailable(reason)
            }
        }
    }

    /// Follows the probes that this thread receives from the socket.
    pub fn follow(&self, socket: &UdpSocket) -> io::Result<()> {
        let Self::Stamped(stages) = self else { return Ok(()) };
        let port = socket.local_addr()?.port();
        stages
            .follow(port, gettid().as_raw_nonzero().get().cast_unsigned())
            .map_err(io::Error::other)
    }

    /// The stamps of a probe that the application received at this time. It takes a system call, so it comes after whatever
    /// is timed.
    pub fn stamps(&self, probe: Probe, received_ns: u64) -> GuestStamps {
        match self {
            Self::Stamped(stages) => stages.stamps(probe.run, probe.sequence).until(received_ns),
            Self::NotWanted | Self::NotAvailable(_) => GuestStamps::default(),
        }
    }

    /// What a stamps file has after its other columns, and the line after them if there is one.
    pub fn columns(&self) -> String {
        match self {
            Self::NotWanted => String::new(),
            Self::Stamped(_) => COLUMNS.into(),
            Self::NotAvailable(reason) => {
                format!("\n# guest-stages: n/a: {}", reason.replace('\n', " "))
            }
        }
    }
}

/// The fields of these columns.
pub fn fields(stamps: GuestStamps) -> String {
    let GuestStamps { interrupt_ns, softirq_ns, woken_ns, running_ns } = stamps;
    let field = |ns: Option<NonZeroU64>| ns.map_or_else(|| ",".into(), |ns| format!(",{ns}"));
    [interrupt_ns, softirq_ns, woken_ns, running_ns].map(field).concat()
}
