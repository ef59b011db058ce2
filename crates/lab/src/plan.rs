//! What is measured: the probes, what runs beside them, and who else measures.

use std::time::Duration;

use serde::{Deserialize, Serialize};

/// The responder's address, in every variant.
pub const RESPONDER: &str = "10.77.0.2";
/// Packets sent first, and not counted.
pub const WARMUP: usize = 50;

/// What runs beside the probes.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Load {
    /// Nothing.
    None,
    /// Three TCP streams from the talker to the responder.
    Streams,
    /// Three TCP streams of iperf3, the same way.
    Iperf3,
    /// A busy program on the CPU of the back end.
    CpuWorker,
    /// A busy program on each CPU of the guests.
    CpuGuest,
    /// A busy program on each CPU of the talker.
    CpuOther,
    /// A program on a CPU of the talker that walks through more memory than the last-level cache holds.
    Cache,
}

impl Load {
    /// Its name on the command line and in tables.
    #[must_use]
    pub const fn name(self) -> &'static str {
        match self {
            Self::None => "none",
            Self::Streams => "streams",
            Self::Iperf3 => "iperf3",
            Self::CpuWorker => "cpu-worker",
            Self::CpuGuest => "cpu-guest",
            Self::CpuOther => "cpu-other",
            Self::Cache => "cache",
        }
    }

    /// Whether it is a busy program on a CPU of this host.
    #[must_use]
    pub const fn is_pressure(self) -> bool {
        matches!(self, Self::CpuWorker | Self::CpuGuest | Self::CpuOther | Self::Cache)
    }
}

/// Who sends when the capacity is measured.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Way {
    /// The responder: in most variants, the guest.
    FromResponder,
    /// The talker: in most variants, the host.
    ToResponder,
}

impl Way {
    /// Both, the one that people ask for first.
    pub const ALL: [Self; 2] = [Self::FromResponder, Self::ToResponder];

    /// Its name in files.
    #[must_use]
    pub const fn name(self) -> &'static str {
        match self {
            Self::FromResponder => "from-responder",
            Self::ToResponder => "to-responder",
        }
    }

    /// The end that sends, as tables name it.
    #[must_use]
    pub const fn sender(self) -> &'static str {
        match self {
            Self::FromResponder => "responder",
            Self::ToResponder => "talker",
        }
    }

    /// The file with all that was measured this way.
    #[must_use]
    pub fn file(self) -> String {
        format!("{}.json", self.name())
    }
}

/// Another program that sends probes.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum OtherProbe {
    /// ICMP echo, by `ping` of iputils or busybox.
    Ping,
    /// UDP packets of isochron, one way.
    Isochron,
}

impl OtherProbe {
    /// Its name on the command line and in tables.
    #[must_use]
    pub const fn name(self) -> &'static str {
        match self {
            Self::Ping => "ping",
            Self::Isochron => "isochron",
        }
    }

    /// What it measures otherwise than the agent does.
    #[must_use]
    pub const fn difference(self) -> &'static str {
        match self {
            Self::Ping => {
                "The responder's kernel answers a ping, so no program wakes up there; and ping counts from when it sent, \
                 the agent from when it was to send."
            }
            Self::Isochron => {
                "Both count from when a timer was to fire to when the receiver's program has the packet. The kernel may fire \
                 isochron's timer up to 50 us late (its timer slack), and the agent's on time. isochron's receiver only takes \
                 packets; the agent's also answers each, so in a slow or busy guest probes wait for the answers before them."
            }
        }
    }
}

/// How probes are sent.
#[derive(Clone, Copy, Debug, Serialize, Deserialize)]
pub struct Probes {
    /// Number of one measurement, without warm-up.
    pub count: u64,
    /// Time between two, microseconds.
    pub interval_us: u64,
    /// UDP payload, bytes.
    pub size: usize,
}

impl Probes {
    /// Time that they take.
    #[must_use]
    pub const fn duration(&self) -> Duration {
        Duration::from_micros((self.count + WARMUP as u64) * self.interval_us)
    }
}
