//! Raw flags, as they stand on the command line. Each is checked for its form only; what they mean
//! together is `plan`'s business.

use std::os::fd::RawFd;
use std::path::PathBuf;
use std::str::FromStr;

use clap::builder::TypedValueParser as _;
use clap::{ArgGroup, Parser, ValueEnum};
use virtio_net::MacAddress;
use worker::PollPolicy;

use crate::spec::{DatapathSpec, FaultSpec};

const EXAMPLES: &str = "\
Examples:
  ip tuntap add dev tap0 mode tap vnet_hdr && ip link set tap0 up
  ringscoped --socket-path /tmp/vm0.sock --datapath tap:ifname=tap0
  ringscope top --name vm0

  and the guest on it (share=on matters: without it nothing arrives):
  qemu-system-x86_64 ... -object memory-backend-memfd,id=m,size=512M,share=on -numa node,memdev=m \\
    -chardev socket,id=c,path=/tmp/vm0.sock,reconnect-ms=1000 -netdev vhost-user,id=n,chardev=c \\
    -device virtio-net-pci,netdev=n

Exit code: 0, or 1 with one sentence on standard error, or 2 for wrong flags.
Messages go to standard error; RUST_LOG=debug shows more of the conversation with the front end.";

/// vhost-user network back end that shows where every packet's time goes.
#[derive(Clone, Debug, Parser)]
#[command(name = "ringscoped", version, after_help = EXAMPLES)]
#[command(group(ArgGroup::new("endpoint").required(true)
    .args(["socket_path", "fd", "config", "print_capabilities"])))]
pub struct Args {
    /// The vhost-user socket: made here for front ends to connect to
    #[arg(long, value_name = "PATH")]
    pub socket_path: Option<PathBuf>,

    /// Connect to --socket-path, where the front end listens, instead of making it; again when it ends
    #[arg(long, requires = "socket_path")]
    pub client: bool,

    /// A unix socket that was handed over as this file descriptor: listening, or connected to a front end
    #[arg(long, value_name = "N", value_parser = clap::value_parser!(RawFd).range(3..))]
    pub fd: Option<RawFd>,

    /// Several guests: a TOML file with a table [[guest]] for each, whose keys are the flags below
    #[arg(long, value_name = "FILE", conflicts_with_all = ["datapath", "name", "queue_pairs", "queue_size", "mac", "mac_locked", "pcap",
          "poll", "cpus", "sched", "trace", "kernel_stages", "trace_probe", "fault"])]
    pub config: Option<PathBuf>,

    /// Print what this program can do, as JSON for management tools, and end
    #[arg(long)]
    pub print_capabilities: bool,

    /// Where frames go to and come from: tap:ifname=NAME[,napi=on][,engine=uring], tap:fd=N,
    /// macvtap:ifname=NAME[,over=NAME[,mode=MODE]], macvtap:fd=N, af-xdp:ifname=NAME, switch:NAME[,uplink=SPEC],
    /// reflect, or null[:rx=BYTES]
    #[arg(long, value_name = "SPEC", required_unless_present_any = ["print_capabilities", "config"])]
    pub datapath: Option<DatapathSpec>,

    /// The name of this device: of its recorder, and in reports [default: the socket's file stem]
    #[arg(long)]
    pub name: Option<String>,

    /// Queue pairs; a tap needs as many queues
    #[arg(long, value_name = "N", default_value_t = 1,
          value_parser = clap::value_parser!(u16).range(1..=128))]
    pub queue_pairs: u16,

    /// The largest ring that the guest may choose: a power of two
    #[arg(long, value_name = "N", default_value = "1024",
          value_parser = clap::value_parser!(u16).range(2..=1024).try_map(power_of_two))]
    pub queue_size: u16,

    /// The device's address, for front ends that ask for it (QEMU has its own option)
    #[arg(long)]
    pub mac: Option<MacAddress>,

    /// On a switch: drop the guest's frames whose source is not --mac [default: on with --mac]
    #[arg(long, value_enum)]
    pub mac_locked: Option<Switch>,

    /// What to do without work: sleep at once; poll a while first (USEC, 200 if not given), and again when the
    /// next packet of a beat is due; or never sleep
    #[arg(long, value_name = "never|adaptive[:USEC]|always", default_value_t)]
    pub poll: PollPolicy,

    /// One worker on each of these CPUs, as in 2,4-5; queue pairs are dealt out among them
    /// [default: one worker, on any CPU]
    #[arg(long, value_name = "LIST")]
    pub cpus: Option<CpuList>,

    /// Run the workers in the real-time class, with this priority from 1 to 99
    #[arg(long, value_name = "fifo:PRIO")]
    pub sched: Option<Fifo>,

    /// Where the recorder is [default: /run/ringscope, without root $XDG_RUNTIME_DIR/ringscope]
    #[arg(long, value_name = "DIR")]
    pub run_dir: Option<PathBuf>,

    /// Serve counters and stage histograms to Prometheus (OpenMetrics, GET /metrics): unix:/PATH, or a loopback
    /// address such as 127.0.0.1:9101
    #[arg(long, value_name = "ADDR")]
    pub metrics: Option<metrics::Address>,

    /// Record every burst; off keeps only the counters
    #[arg(long, value_enum, default_value_t = Switch::On)]
    pub trace: Switch,

    /// Measure in the host kernel too, by BPF programs that are there as long as this is: how long a worker's thread
    /// takes to run (wakeup), and frames between a tap given by its name and the next device (host-tx, host-rx);
    /// needs root
    #[arg(long)]
    pub kernel_stages: bool,

    /// Record every probe packet by its number, too: those of ringscope agent udp-ping to or from this UDP port, for
    /// ringscope stats --probes
    #[arg(long, value_name = "PORT", value_parser = clap::value_parser!(u16).range(1..))]
    pub trace_probe: Option<u16>,

    /// Plant a fault, to see what becomes of it: delay:STAGE=USEC[,every=N], drop[:tx|rx][=P][,every=N][,seed=N],
    /// error:[tx.|rx.]ERRNO[=P][,every=N][,seed=N] or panic:tx|rx[,after=N]; may be repeated
    #[arg(long, value_name = "SPEC")]
    pub fault: Vec<FaultSpec>,

    /// Write a copy of every packet to this file (pcapng), with its burst's stages as a comment. The file is new each time,
    /// mode 0600; only a regular file of the same user is replaced
    #[arg(long, value_name = "FILE")]
    pub pcap: Option<PathBuf>,
}

/// On or off.
#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
pub enum Switch {
    /// On.
    On,
    /// Off.
    Off,
}

/// `--cpus`: CPU numbers in the order given.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct CpuList(pub Vec<usize>);

impl FromStr for CpuList {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, Self::Err> {
        let wrong = || format!("expected CPU numbers such as 2 or 2,4-5, found '{text}'");
        let number = |text: &str| text.parse::<usize>().ok().filter(|cpu| *cpu < 1024);
        let mut cpus = Vec::new();
        for part in text.split(',') {
            let (first, last) = part.split_once('-').unwrap_or((part, part));
            let (first, last) = (number(first).ok_or_else(wrong)?, number(last).ok_or_else(wrong)?);
            if first > last {
                return Err(wrong());
            }
            cpus.extend(first..=last);
        }
        Ok(Self(cpus))
    }
}

/// `--sched`.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Fifo(pub u8);

impl FromStr for Fifo {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, Self::Err> {
        text.strip_prefix("fifo:")
            .and_then(|number| number.parse().ok())
            .filter(|priority| (1..=99).contains(priority))
            .map(Self)
            .ok_or_else(|| format!("expected fifo:PRIO with PRIO from 1 to 99, found '{text}'"))
    }
}

fn power_of_two(size: u16) -> Result<u16, String> {
    if size.is_power_of_two() { Ok(size) } else { Err(format!("{size} is not a power of two")) }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn cpu_lists_are_read() {
        assert_eq!("2,4-6,1".parse(), Ok(CpuList(vec![2, 4, 5, 6, 1])));
        for wrong in ["", "a", "3-1", "1,", "4096"] {
            assert!(wrong.parse::<CpuList>().is_err(), "{wrong}");
        }
    }

    #[test]
    fn priorities_are_read() {
        assert_eq!("fifo:50".parse(), Ok(Fifo(50)));
        for wrong in ["", "fifo", "fifo:0", "fifo:100", "rr:5"] {
            assert!(wrong.parse::<Fifo>().is_err(), "{wrong}");
        }
    }

    #[test]
    fn the_flags_fit_together() {
        use clap::CommandFactory as _;
        Args::command().debug_assert();
    }
}
