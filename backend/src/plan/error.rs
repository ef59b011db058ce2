//! What is wrong with a plan.

use std::os::fd::RawFd;
use std::path::PathBuf;

use virtio_net::MacAddress;

use crate::spec::DatapathSpec;

/// Flags that do not go together, or that lack one that cannot be guessed.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum PlanError {
    /// More workers than work.
    #[error(
        "--cpus names {cpus} CPUs for {queue_pairs} queue pair(s); expected at most one CPU a queue \
         pair: name fewer, or raise --queue-pairs"
    )]
    TooManyCpus {
        /// CPUs named.
        cpus: usize,
        /// Queue pairs asked for.
        queue_pairs: u16,
    },
    /// A CPU twice.
    #[error("--cpus names CPU {0} twice; two workers on one CPU would take turns")]
    SameCpu(usize),
    /// No name can be derived.
    #[error("--name is missing: it cannot be taken from the socket's path here")]
    NoName,
    /// The name would be no file name.
    #[error("--name '{0}' is no file name; expected letters, digits, '-', '_' or '.'")]
    BadName(String),
    /// No run directory can be derived.
    #[error("--run-dir is missing, and neither root nor $XDG_RUNTIME_DIR tells where it could be")]
    NoRunDir,
    /// One descriptor for several queues.
    #[error(
        "--datapath {datapath} is one queue, but --queue-pairs asks for {queue_pairs}; have it opened by name, \
         or use --queue-pairs 1"
    )]
    OneDescriptor {
        /// The datapath.
        datapath: DatapathSpec,
        /// Queue pairs asked for.
        queue_pairs: u16,
    },
    /// One descriptor for two things.
    #[error(
        "descriptor {0} is named twice; expected one of its own for each socket, tap and macvtap"
    )]
    SameDescriptor(RawFd),
    /// A capture without stamps.
    #[error(
        "--pcap needs the stamps of every burst, which --trace off leaves out; drop one of the two"
    )]
    CaptureWithoutTrace,
    /// Times in the kernel without records.
    #[error(
        "--kernel-stages adds to the records of bursts, which --trace off leaves out; drop one of the two"
    )]
    KernelStagesWithoutTrace,
    /// Probes are recorded beside their bursts.
    #[error(
        "--trace-probe adds to the records of bursts, which --trace off leaves out; drop one of the two"
    )]
    ProbesWithoutTrace,
    /// What sits around a wire, where there is none.
    #[error(
        "{0} is around the wire of a guest, and a guest of a switch has none; drop it, or give the guest a datapath of \
         its own"
    )]
    NoWire(&'static str),
    /// Addresses are learned on switches only.
    #[error(
        "--mac-locked is for a guest of a switch, where another guest could send from its address; expected --datapath \
         switch:NAME with it: drop the flag"
    )]
    LockWithoutSwitch,
    /// A lock without an address.
    #[error(
        "--mac-locked on restricts the guest to the address of --mac, and there is no --mac; add it"
    )]
    LockWithoutMac,
    /// Two guests of one switch with one address.
    #[error(
        "two guests of switch '{switch}' have the address {mac}; expected an address of its own for each"
    )]
    SameMac {
        /// The switch's name.
        switch: String,
        /// The address.
        mac: MacAddress,
    },
    /// Something is wrong with one of several guests.
    #[error("guest '{name}': {source}")]
    Guest {
        /// Its name.
        name: String,
        /// What is wrong.
        source: Box<PlanError>,
    },
    /// Two guests of one name.
    #[error("two guests are called '{0}'; expected a name of its own for each")]
    SameName(String),
    /// Two guests at one socket.
    #[error("two guests have the socket {}; expected one of its own for each", .0.display())]
    SameSocket(PathBuf),
    /// Two guests captured in one file.
    #[error("two guests have the capture {}; expected a file of its own for each", .0.display())]
    SameCapture(PathBuf),
    /// A capture at the path of a recorder.
    #[error("--pcap {} is the path of a flight recorder; choose another file", .0.display())]
    CaptureIsRecorder(PathBuf),
    /// What one worker cannot do both ways.
    #[error(
        "the guests of switch '{switch}' are served by one worker: expected the same {key} for all of them, found \
         '{found}' and '{other}'"
    )]
    Differs {
        /// The switch's name.
        switch: String,
        /// The key.
        key: &'static str,
        /// What one of the guests has.
        found: String,
        /// What another one has.
        other: String,
    },
    /// More workers than one for a switch.
    #[error("--cpus names {cpus} CPUs for switch '{switch}', which one worker serves; name one")]
    SwitchCpus {
        /// The switch's name.
        switch: String,
        /// CPUs named.
        cpus: usize,
    },
    /// Too many queue pairs on one switch.
    #[error("the guests of switch '{switch}' have {pairs} queue pairs; expected at most {max}")]
    SwitchPairs {
        /// The switch's name.
        switch: String,
        /// Queue pairs of all its guests.
        pairs: usize,
        /// The most that there may be.
        max: usize,
    },
}
