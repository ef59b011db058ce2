//! Why flags make no plan.

use std::os::fd::RawFd;
use std::path::PathBuf;

use virtio_net::MacAddress;

use crate::spec::DatapathSpec;

/// Flags that exclude each other, or a flag that is missing and cannot be derived.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum PlanError {
    /// More workers than queue pairs.
    #[error(
        "--cpus names {cpus} CPUs for {queue_pairs} queue pair(s); expected at most one CPU per queue \
         pair: name fewer, or raise --queue-pairs"
    )]
    TooManyCpus {
        /// CPUs named.
        cpus: usize,
        /// Queue pairs asked for.
        queue_pairs: u16,
    },
    /// A CPU twice.
    #[error(
        "--cpus names CPU {0} twice; expected different CPUs, because two workers on one CPU take turns"
    )]
    SameCpu(usize),
    /// No name can be derived.
    #[error(
        "--name is missing; expected it with --fd, where there is no socket path to take the name from"
    )]
    NoName,
    /// The name cannot be a file name.
    #[error("--name '{0}' is not a file name; expected letters, digits, '-', '_' or '.'")]
    BadName(String),
    /// The name is too long for the names of its files.
    #[error("expected a --name (or the socket's file name) of at most {max} bytes, found {found}")]
    LongName {
        /// Its length, bytes.
        found: usize,
        /// The longest, bytes.
        max: usize,
    },
    /// No run directory can be derived.
    #[error(
        "--run-dir is missing; expected it, because this user is not root and $XDG_RUNTIME_DIR is not set"
    )]
    NoRunDir,
    /// One descriptor for several queues.
    #[error(
        "--datapath {datapath} has one queue, but --queue-pairs is {queue_pairs}; give the interface by name, \
         or use --queue-pairs 1"
    )]
    OneDescriptor {
        /// The datapath.
        datapath: DatapathSpec,
        /// Queue pairs asked for.
        queue_pairs: u16,
    },
    /// One descriptor twice.
    #[error(
        "descriptor {0} is named twice; expected a different one for each socket, tap and macvtap"
    )]
    SameDescriptor(RawFd),
    /// A plan that cannot be split.
    #[error(
        "--isolate process cannot be used with {0}: each guest has a process of its own, which opens everything by its name"
    )]
    Isolated(&'static str),
    /// The file has changed under a supervisor.
    #[error("the file no longer has the guests {0}; start the daemon again to serve others")]
    NoPart(String),
    /// A capture without time stamps.
    #[error(
        "--pcap needs the time stamps of every burst, but --trace off leaves them out; drop one of the two"
    )]
    CaptureWithoutTrace,
    /// Kernel stages without bursts.
    #[error(
        "--kernel-stages adds to the records of bursts, but --trace off leaves them out; drop one of the two"
    )]
    KernelStagesWithoutTrace,
    /// Probes without bursts.
    #[error(
        "--trace-probe adds to the records of bursts, but --trace off leaves them out; drop one of the two"
    )]
    ProbesWithoutTrace,
    /// More probes than a record can distinguish.
    #[error("--trace-probe is given {found} times; expected it at most {max} times for one guest")]
    TooManyProbes {
        /// How often it is given.
        found: usize,
        /// The limit.
        max: usize,
    },
    /// A capture or fault of a wire, where there is none.
    #[error(
        "{0} needs a wire, but a guest of a switch has none; drop it, or give the guest a datapath of its own"
    )]
    NoWire(&'static str),
    /// Frames to the guest would wait in another guest's ring.
    #[error(
        "--limit-rx needs a wire whose queue the frames wait in, and a guest of a switch, or of reflect, has none; limit who \
         sends: --limit-tx"
    )]
    LimitWithoutWire,
    /// The lock is for switches only.
    #[error(
        "--mac-locked is for guests of a switch, where another guest could send from the same address; expected \
         --datapath switch:NAME; drop the flag"
    )]
    LockWithoutSwitch,
    /// A lock without an address.
    #[error(
        "--mac-locked on restricts the guest to the address of --mac, but --mac is missing; add it"
    )]
    LockWithoutMac,
    /// Two guests of one switch with one address.
    #[error(
        "two guests of switch '{switch}' have the address {mac}; expected a different one for each"
    )]
    SameMac {
        /// The switch's name.
        switch: String,
        /// The address.
        mac: MacAddress,
    },
    /// An error in the flags of one of several guests.
    #[error("guest '{name}': {source}")]
    Guest {
        /// Its name.
        name: String,
        /// The error.
        source: Box<PlanError>,
    },
    /// Two guests of one name.
    #[error("two guests have the name '{0}'; expected a different one for each")]
    SameName(String),
    /// Two guests at one socket.
    #[error("two guests have the socket {}; expected a different one for each", .0.display())]
    SameSocket(PathBuf),
    /// Two guests captured in one file.
    #[error("two guests have the capture {}; expected a different one for each", .0.display())]
    SameCapture(PathBuf),
    /// A capture at the path of a recorder.
    #[error("--pcap {} is the path of a flight recorder; choose another file", .0.display())]
    CaptureIsRecorder(PathBuf),
    /// Different values for one worker.
    #[error(
        "one worker serves all guests of switch '{switch}': expected the same {key} for all of them, found '{found}' \
         and '{other}'"
    )]
    Differs {
        /// The switch's name.
        switch: String,
        /// The key.
        key: &'static str,
        /// The value of one guest.
        found: String,
        /// The value of another guest.
        other: String,
    },
    /// Several workers for a switch.
    #[error(
        "--cpus names {cpus} CPUs for switch '{switch}'; expected one, because one worker serves a switch"
    )]
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
        /// The limit.
        max: usize,
    },
}
