//! What runs beside the probes, and after them: `--loads` and `--others`.

use clap::ValueEnum;
use lab::plan::{Load, OtherProbe};

#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
pub(super) enum LoadName {
    /// Nothing
    None,
    /// Three TCP streams from the talker to the responder
    Streams,
    /// Three TCP streams of iperf3
    Iperf3,
    /// A busy program on the CPU of the back end
    CpuWorker,
    /// A busy program on each CPU of the guests
    CpuGuest,
    /// A busy program on each CPU of the talker
    CpuOther,
    /// A program on a CPU of the talker that writes to twice the memory of the last-level cache
    Cache,
}

impl From<LoadName> for Load {
    fn from(name: LoadName) -> Self {
        match name {
            LoadName::None => Self::None,
            LoadName::Streams => Self::Streams,
            LoadName::Iperf3 => Self::Iperf3,
            LoadName::CpuWorker => Self::CpuWorker,
            LoadName::CpuGuest => Self::CpuGuest,
            LoadName::CpuOther => Self::CpuOther,
            LoadName::Cache => Self::Cache,
        }
    }
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
pub(super) enum OtherName {
    /// No other program
    None,
    /// ICMP echo, which the responder's kernel answers
    Ping,
    /// UDP packets, measured one way: without a guest, and in User Mode Linux
    Isochron,
}

impl OtherName {
    const fn probe(self) -> Option<OtherProbe> {
        match self {
            Self::None => None,
            Self::Ping => Some(OtherProbe::Ping),
            Self::Isochron => Some(OtherProbe::Isochron),
        }
    }
}

/// The other programs, each once. Without names, those of a quick run or of a full one.
pub(super) fn probes(names: &[OtherName], is_quick: bool) -> Vec<OtherProbe> {
    let names = match names {
        [] if is_quick => &[OtherName::Ping][..],
        [] => &[OtherName::Ping, OtherName::Isochron],
        given => given,
    };
    let mut probes = Vec::new();
    for probe in names.iter().filter_map(|it| it.probe()) {
        if !probes.contains(&probe) {
            probes.push(probe);
        }
    }
    probes
}
