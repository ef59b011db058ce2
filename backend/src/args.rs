//! Raw flags, as they stand on the command line. Each is checked for its form only; `plan` checks them together.
//!
//! The first paragraph of a flag's text is for `-h`, all of it for `--help`. Both are 80 columns wide.

use std::os::fd::RawFd;
use std::path::PathBuf;
use std::str::FromStr;

use clap::builder::TypedValueParser as _;
use clap::{ArgGroup, Parser, ValueEnum};
use clap_complete::Shell;
use confine::Account;
use virtio_net::MacAddress;
use worker::{Limit, PollPolicy};

use crate::logging::{LogFormat, LogLevel};
use crate::part::Part;
use crate::probes::ProbeSpec;
use crate::spec::{DatapathSpec, FaultSpec};
use crate::takeover::Predecessor;
use crate::withheld::Withheld;

/// Width of the help texts, in columns. No line of the texts below is longer, so that none is broken.
const COLUMNS: usize = 80;

const USAGE: &str = "\
ringscoped [OPTIONS] --socket-path <PATH> --datapath <SPEC>
       ringscoped [OPTIONS] --fd <N> --name <NAME> --datapath <SPEC>
       ringscoped [OPTIONS] --config <FILE>
       ringscoped --print-capabilities";

const EXAMPLES: &str = "\
Examples:
  ip tuntap add dev tap0 mode tap vnet_hdr && ip link set tap0 up
  ringscoped --socket-path /tmp/vm0.sock --datapath tap:ifname=tap0
  ringscope top --name vm0

  The guest for it. Without share=on nothing that it writes arrives:
  qemu-system-x86_64 ... \\
    -object memory-backend-memfd,id=m,size=512M,share=on -numa node,memdev=m \\
    -chardev socket,id=c,path=/tmp/vm0.sock,reconnect-ms=1000 \\
    -netdev vhost-user,id=n,chardev=c -device virtio-net-pci,netdev=n

Exit code: 0; 1 with one sentence on standard error; 2 for wrong flags;
70 for a fault of the daemon itself, which should then be started again.
Messages go to standard error. --log-level debug shows the messages of the front
end in more detail.";

const DATAPATHS: &str = "\
Where frames go and come from, one of:
  tap:ifname=NAME[,napi=on][,engine=uring][,gro=off]
  tap:fd=N[,engine=uring][,gro=off]
  macvtap:ifname=NAME[,over=NAME[,mode=MODE]][,gro=off]
  macvtap:fd=N[,gro=off]
  af-xdp:ifname=NAME[,KEY=VALUE...]
  switch:NAME[,uplink=SPEC]
  reflect
  null[:rx=BYTES]
backend/README.md describes each of them, and the keys of af-xdp.";

const FEATURES: &str = "\
Withhold features from the guest, as in -packed,-event_idx: to find
one that causes trouble, or to offer what another datapath offers.
  rings    packed event_idx indirect_desc in_order ring_reset
  sending  csum host_tso4 host_tso6 host_ecn host_ufo host_uso
  receipt  mrg_rxbuf guest_csum guest_tso4 guest_tso6 guest_ecn
           guest_ufo guest_uso4 guest_uso6
  device   mac mtu mq status speed_duplex version_1
           access_platform
  commands ctrl_vq ctrl_mac_addr ctrl_guest_offloads guest_announce
A feature that needs a withheld one is withheld too. Without version_1
only drivers of virtio 0.9 work.";

const FAULTS: &str = "\
Plant a fault, to see its effect; may be repeated. One of:
  delay:STAGE=USEC[,every=N]
  drop[:tx|rx][=P][,every=N][,seed=N]
  error:[tx.|rx.]ERRNO[=P][,every=N][,seed=N]
  panic:tx|rx[,after=N]
backend/README.md describes each of them.";

const PROBES: &str = "\
Also record single packets; may be repeated. One of:
  PORT
      probe packets to or from this UDP port, which \"ringscope agent
      udp-ping\" sends and \"ringscope stats --probes\" reports
  ethertype:0xNNNN,counter@OFFSET/LEN[,KEY...]
      layer-2 frames with a counter of LEN bytes (1 to 8), OFFSET
      bytes after the EtherType; VLAN tags do not count. \"ringscope
      report\" shows their period, lost counters, stages and slowest
      frames. Keys:
        step=N             the counter grows by N from frame to frame
        stream@OFFSET/LEN  frames that differ here are of different
                           streams; twice at most, 4 bytes together
        vlan=ID            only frames whose innermost VLAN tag has it
        le                 counter and streams are little endian
  rtc-testbench
      the frames that RTC-Testbench sends";

/// vhost-user network back end that shows where every packet's time goes.
#[derive(Clone, Debug, Parser)]
#[command(name = "ringscoped", version, override_usage = USAGE, after_long_help = EXAMPLES, term_width = COLUMNS)]
#[command(group(ArgGroup::new("endpoint").required(true)
    .args(["socket_path", "fd", "config", "print_capabilities", "print_man", "print_completions"])))]
pub struct Args {
    /// Make the vhost-user socket PATH, for front ends to connect to
    #[arg(long, value_name = "PATH")]
    pub socket_path: Option<PathBuf>,

    /// Connect to --socket-path instead of making it
    ///
    /// The front end listens there. When the connection ends, the daemon connects again.
    #[arg(long, requires = "socket_path")]
    pub client: bool,

    /// Use the unix socket that was handed over as descriptor N
    ///
    /// It listens, or it is connected to a front end.
    #[arg(long, value_name = "N", value_parser = clap::value_parser!(RawFd).range(3..))]
    pub fd: Option<RawFd>,

    /// Serve the guests of this TOML file
    ///
    /// The file has a table [[guest]] for each guest. Its keys are the flags of one guest.
    #[arg(long, value_name = "FILE", conflicts_with_all = ["datapath", "name", "queue_pairs", "queue_size", "mac", "mac_locked", "mtu", "features", "pcap",
          "poll", "cpus", "sched", "trace", "kernel_stages", "device_state", "trace_probe", "fault", "limit_tx", "limit_rx"])]
    pub config: Option<PathBuf>,

    /// Give each guest of --config a process of its own: process, or none [default: none]
    ///
    /// With process, this one starts a process for each guest, or for the guests of a switch, and starts it again if it is killed or
    /// ends by a fault. Its guest goes on where it was; the others notice nothing. With --control PATH, the socket of each
    /// process is PATH-NAME, with the name of its first guest.
    #[arg(
        long,
        value_enum,
        value_name = "ISOLATION",
        hide_possible_values = true,
        requires = "config"
    )]
    pub isolate: Option<Isolation>,

    /// Be one of these processes; its standard input is a socket to the one that started it
    #[arg(long, value_name = "PART", hide = true, requires = "config")]
    pub part: Option<Part>,

    /// Print the capabilities as JSON for management tools, and exit
    #[arg(long)]
    pub print_capabilities: bool,

    /// Print which capabilities a run with these flags needs, and why, and exit
    #[arg(long)]
    pub print_privileges: bool,

    /// Print the manual page for man(1), and exit
    #[arg(long, hide_short_help = true)]
    pub print_man: bool,

    /// Print what SHELL reads to complete the flags, and exit
    #[arg(long, value_name = "SHELL", hide_short_help = true)]
    pub print_completions: Option<Shell>,

    /// Where frames go and come from, such as tap:ifname=tap0
    #[arg(long, value_name = "SPEC", required_unless_present_any = ["print_capabilities", "print_man", "print_completions", "config"], long_help = DATAPATHS)]
    pub datapath: Option<DatapathSpec>,

    /// Name of the device, its recorder and its reports [default: stem of the socket's file name]
    #[arg(long)]
    pub name: Option<String>,

    /// Number of queue pairs
    ///
    /// A tap needs the same number of queues.
    #[arg(long, value_name = "N", default_value_t = 1,
          value_parser = clap::value_parser!(u16).range(1..=128))]
    pub queue_pairs: u16,

    /// Largest ring that the guest may choose, a power of two
    #[arg(long, value_name = "N", default_value = "1024",
          value_parser = clap::value_parser!(u16).range(2..=1024).try_map(power_of_two))]
    pub queue_size: u16,

    /// MAC address of the device
    ///
    /// Front ends that ask for the address get it; QEMU has its own option (-device virtio-net-pci,mac=). On a switch the
    /// address belongs to this guest. A macvtap that is made (over=) gets it.
    #[arg(long)]
    pub mac: Option<MacAddress>,

    /// On a switch, drop frames whose source is not --mac: on or off [default: on with --mac]
    #[arg(long, value_enum, value_name = "STATE", hide_possible_values = true)]
    pub mac_locked: Option<OnOff>,

    /// MTU that the guest is given, bytes [default: the interface's]
    ///
    /// With QEMU use its own option too (-device virtio-net-pci,host_mtu=). Without an interface there is no default.
    #[arg(long, value_name = "BYTES", value_parser = clap::value_parser!(u16).range(68..))]
    pub mtu: Option<u16>,

    /// Withhold features from the guest, as in -packed,-event_idx
    #[arg(long, value_name = "-NAME,...", allow_hyphen_values = true, long_help = FEATURES)]
    pub features: Option<Withheld>,

    /// What a worker does when idle: never, adaptive[:USEC] or always
    ///
    /// When idle: sleep at once (never); poll for USEC [200], and again when periodic traffic is due (adaptive); or never
    /// sleep (always).
    #[arg(long, value_name = "POLICY", default_value_t)]
    pub poll: PollPolicy,

    /// Run one worker on each of these CPUs, as in 2,4-5 [default: one worker, on any CPU]
    ///
    /// The queue pairs are distributed among the workers.
    #[arg(long, value_name = "LIST")]
    pub cpus: Option<CpuList>,

    /// Run the workers in the real-time class, with priority PRIO (1 to 99)
    #[arg(long, value_name = "fifo:PRIO")]
    pub sched: Option<Fifo>,

    /// Directory of the recorder [default: /run/ringscope, or $XDG_RUNTIME_DIR/ringscope without root]
    #[arg(long, value_name = "DIR")]
    pub run_dir: Option<PathBuf>,

    /// Run as this user; set-up needs root
    ///
    /// NAME[:GROUP], names or numbers. The daemon becomes this user before it opens anything, so all its files are that user's.
    /// Interfaces are still opened with the privileges of root. Without this flag the daemon stays the user that it is.
    #[arg(long, value_name = "NAME")]
    pub user: Option<Account>,

    /// Owner of the vhost-user sockets that the daemon makes: the user that runs QEMU
    ///
    /// NAME or number; needs root. That user can attach guests, and with --socket-mode 0600 nobody else. All other files stay the
    /// daemon's own.
    #[arg(long, value_name = "NAME")]
    pub socket_user: Option<String>,

    /// Group of the sockets, the recorder and the run directory
    ///
    /// NAME or number; needs root. Users in this group can attach guests, look with ringscope top and record. The sockets have
    /// mode 0660 then, or --socket-mode. A run directory that the daemon makes has mode 0750.
    #[arg(long, value_name = "NAME")]
    pub socket_group: Option<String>,

    /// Mode of the vhost-user sockets that the daemon makes, in octal, as in 0660
    ///
    /// The recorder is readable only for those who may read by this mode, and never for others. Without this flag and
    /// --socket-group the umask decides.
    #[arg(long, value_name = "MODE", value_parser = mode)]
    pub socket_mode: Option<u32>,

    /// Whether the daemon gives up what it does not need: on, or none for debugging
    ///
    /// When everything is set up, each thread gives up its capabilities, can get no new privileges, and may only make the
    /// system calls that it needs. With none the daemon keeps all that its user may do; the guest is hostile, so that is for
    /// debugging only.
    #[arg(long, value_enum, value_name = "on|none", hide_possible_values = true, default_value_t = Sandbox::On)]
    pub sandbox: Sandbox,

    /// What happens when a thread makes a system call that it does not need: kill, log or off
    ///
    /// With kill the daemon ends, with a message that names the call. With log the kernel logs the call and makes it. With off
    /// nothing is checked, and a panic shows a backtrace if RUST_BACKTRACE=1 is set.
    #[arg(long, value_enum, value_name = "ACTION", hide_possible_values = true, default_value_t = OnSystemCall::Kill)]
    pub seccomp: OnSystemCall,

    /// Take all guests over from a running daemon, which then ends
    ///
    /// PROCESS is its process number, or the path of its socket RUN_DIR/NAME.take-over. All other flags are those of the
    /// running daemon; only what does not concern guests and interfaces may differ. The front ends notice nothing: their
    /// connections stay, and a frame waits some milliseconds at most. Until the new daemon serves all guests, the running one
    /// goes on if anything fails. Guests on af-xdp with umem=guest cannot be taken over.
    #[arg(long, value_name = "PROCESS")]
    pub take_over: Option<Predecessor>,

    /// Serve metrics to Prometheus at ADDR
    ///
    /// GET /metrics returns counters and stage histograms as OpenMetrics text. ADDR is unix:/PATH, or a loopback address
    /// such as 127.0.0.1:9101.
    #[arg(long, value_name = "ADDR")]
    pub metrics: Option<metrics::Address>,

    /// Make the socket PATH, where the running daemon takes commands
    ///
    /// "ringscope ctl NAME status" says how each ring stands, and "ringscope ctl NAME help" lists the commands: polling, tracing,
    /// probes, faults, captures. The socket has mode 0600.
    #[arg(long, value_name = "PATH")]
    pub control: Option<PathBuf>,

    /// What to log: error, warn, info, debug, or a list [default: RUST_LOG, or info]
    ///
    /// A list has levels of modules, as in info,vhost_control=debug. "ringscope ctl NAME log debug" changes it at run time.
    #[arg(long, value_name = "LEVEL")]
    pub log_level: Option<LogLevel>,

    /// Form of the log on standard error: text, json or journal [default: text]
    ///
    /// json is an object in each line, with time, level, target and message. journal has the priority in front and no time
    /// (sd-daemon(3)).
    #[arg(long, value_enum, value_name = "FORM", hide_possible_values = true)]
    pub log_format: Option<LogFormat>,

    /// Record every burst; off keeps only the counters
    #[arg(long, value_enum, value_name = "on|off", hide_possible_values = true, default_value_t = OnOff::On)]
    pub trace: OnOff,

    /// Also measure in the host kernel; needs root
    ///
    /// BPF programs, attached as long as the daemon runs, measure how long a thread takes to run after it was woken up, a
    /// worker's (wakeup) or the front end's (inject), and the way of frames between a tap that is given by its name and the
    /// next device (host-tx, host-rx).
    #[arg(long)]
    pub kernel_stages: bool,

    /// Let the newest records move with the guest to another host: on or off
    ///
    /// At a live migration they go through QEMU (VHOST_USER_PROTOCOL_F_DEVICE_STATE) to the daemon there, beside whose recorder they
    /// are then (RUN_DIR/NAME.moved): "ringscope report" shows one guest with its move. With QEMU 10.0 and newer, a guest can then
    /// move only to a daemon that has the flag, too.
    #[arg(long, value_enum, value_name = "STATE", hide_possible_values = true, default_value_t = OnOff::Off)]
    pub device_state: OnOff,

    /// Also record each probe packet, or each layer-2 frame with a counter; may be repeated
    #[arg(long, value_name = "SPEC", long_help = PROBES)]
    pub trace_probe: Vec<ProbeSpec>,

    /// Plant a fault, to see its effect; may be repeated
    #[arg(long, value_name = "SPEC", long_help = FAULTS)]
    pub fault: Vec<FaultSpec>,

    /// Limit what the guest sends, as in 100Mbit or 12MB,50kpps
    ///
    /// Bytes of frames (bit or B) and packets (pps) a second, with k, M or G. The guest's ring waits; no frame is dropped.
    /// burst=MS is how long an idle guest may save up [10]. The waiting is the stage "limited".
    #[arg(long, value_name = "RATE,...")]
    pub limit_tx: Option<Limit>,

    /// Limit what the guest receives, as --limit-tx does
    ///
    /// Frames wait in the wire's queue, which drops what does not fit. Not on a switch: limit who sends.
    #[arg(long, value_name = "RATE,...")]
    pub limit_rx: Option<Limit>,

    /// Write a copy of every packet to FILE (pcapng)
    ///
    /// The comment of a packet has the stages of its burst. FILE is new each time, with mode 0600. Only a regular file of
    /// the same user is replaced.
    #[arg(long, value_name = "FILE")]
    pub pcap: Option<PathBuf>,
}

/// `--sandbox`.
#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
pub enum Sandbox {
    /// Threads give up what they do not need.
    On,
    /// They give up nothing.
    None,
}

/// `--seccomp`.
#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
pub enum OnSystemCall {
    /// The daemon ends.
    Kill,
    /// The kernel logs the call.
    Log,
    /// Nothing.
    Off,
}

/// `--isolate`.
#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
pub enum Isolation {
    /// Each guest or switch has a process of its own.
    Process,
    /// One process serves all guests.
    None,
}

/// On or off.
#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
pub enum OnOff {
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

fn mode(text: &str) -> Result<u32, String> {
    let wrong = || format!("expected an octal mode from 0600 to 0777, found '{text}'");
    let mode = u32::from_str_radix(text, 8).map_err(|_| wrong())?;
    if mode & !0o777 == 0 && mode & 0o600 == 0o600 { Ok(mode) } else { Err(wrong()) }
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
    fn modes_are_read() {
        assert_eq!((mode("0660"), mode("777")), (Ok(0o660), Ok(0o777)));
        for wrong in ["", "0888", "1660", "0060", "rw"] {
            assert!(mode(wrong).is_err(), "{wrong}");
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

    #[test]
    fn help_names_every_feature() {
        let named: Vec<_> = FEATURES.split_whitespace().collect();
        for name in virtio_net::features::names(virtio_net::features::OFFERED_MAX) {
            assert!(named.contains(&name.as_str()), "{name} is not in the help text");
        }
    }

    #[test]
    fn help_fits_80_columns_and_breaks_no_line_of_the_examples() {
        use clap::CommandFactory as _;
        let (short, long) = (Args::command().render_help(), Args::command().render_long_help());
        let (short, long) = (short.to_string(), long.to_string());
        for line in short.lines().chain(long.lines()) {
            assert!(line.chars().count() <= COLUMNS, "too long: {line}");
        }
        for text in [EXAMPLES, DATAPATHS, FEATURES, PROBES, FAULTS] {
            for line in text.lines() {
                assert!(long.contains(line), "broken: {line}");
            }
        }
        assert!(2 * short.lines().count() < long.lines().count(), "-h is the short one:\n{short}");
    }
}
