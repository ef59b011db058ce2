//! The plan of a daemon: flags that were checked against each other. Nothing is opened yet.

mod confinement;
mod cpus;
mod error;
mod faults;
mod name;
mod parts;
mod switches;

use std::os::fd::RawFd;
use std::path::{Path, PathBuf};

use burst_trace::cyclic::CYCLIC_MAX;
use burst_trace::location;
use datapath::Planted;
use virtio_net::MacAddress;
use worker::{Crash, Delay, Limit, PollPolicy, Scheduling};

use crate::args::{Args, Isolation, OnOff};
use crate::config::Config;
use crate::logging::{LogFormat, LogLevel};
use crate::part::Part;
use crate::probes::ProbeSpec;
use crate::spec::DatapathSpec;
use crate::takeover::Predecessor;

pub use confinement::Confinement;
use cpus::cpus;
pub use error::PlanError;
pub use faults::sort_faults;
use name::name;
use switches::switches;

/// The plan of a daemon.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Plan {
    /// Its guests, at least one.
    pub guests: Vec<GuestPlan>,
    /// The switches between them.
    pub switches: Vec<SwitchPlan>,
    /// The address where metrics of all guests are served.
    pub metrics: Option<metrics::Address>,
    /// The socket where the daemon is asked how it stands, and told other settings.
    pub control: Option<PathBuf>,
    /// The daemon to take over from.
    pub take_over: Option<Predecessor>,
    /// The form of its log.
    pub log_format: LogFormat,
    /// What it logs, if the command line says so.
    pub log_level: Option<LogLevel>,
    /// What it logs, if the file says so.
    pub config_log_level: Option<LogLevel>,
    /// The file of its guests.
    pub config: Option<PathBuf>,
    /// The run directory of the command line.
    pub run_dir: Option<PathBuf>,
    /// Whether each guest or switch has a process of its own.
    pub is_isolated: bool,
    /// What this process is for, if it is one of those.
    pub part: Option<Part>,
    /// What the daemon may do.
    pub confinement: Confinement,
}

/// A switch between guests. One worker serves all of them.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct SwitchPlan {
    /// Its name.
    pub name: String,
    /// Its guests by their index in the plan, at least one.
    pub guests: Vec<usize>,
    /// The datapath that connects it to other networks.
    pub uplink: Option<DatapathSpec>,
}

/// The plan of a guest.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct GuestPlan {
    /// Log prefix: its name, if the daemon has several guests.
    pub log_prefix: String,
    /// The place where front ends connect.
    pub endpoint: EndpointPlan,
    /// The device's name.
    pub name: String,
    /// Where frames go and come from.
    pub datapath: DatapathSpec,
    /// Queue pairs.
    pub queue_pairs: u16,
    /// The largest ring.
    pub queue_size: u16,
    /// The device's address.
    pub mac: Option<MacAddress>,
    /// Whether it may send from this address only. For guests of a switch.
    pub mac_locked: bool,
    /// Virtio features that are not offered.
    pub withheld: u64,
    /// The MTU that the guest is given, bytes; that of the datapath's interface if not set.
    pub mtu: Option<u16>,
    /// What its workers do when idle.
    pub poll: PollPolicy,
    /// The CPU and the scheduling class of each worker, at least one.
    pub workers: Vec<Scheduling>,
    /// The recorder's file.
    pub recorder: PathBuf,
    /// Whether bursts are recorded.
    pub trace: bool,
    /// Whether kernel stages are recorded too.
    pub kernel_stages: bool,
    /// Whether its records move with it.
    pub device_state: bool,
    /// Packets that are recorded one by one.
    pub probes: Vec<ProbeSpec>,
    /// Its limits: to it, from it.
    pub limits: [Option<Limit>; 2],
    /// Delays to plant.
    pub delays: Vec<Delay>,
    /// Panics to plant.
    pub crashes: Vec<Crash>,
    /// Faults of the wire to plant.
    pub faults: Vec<Planted>,
    /// The file to which packets are copied.
    pub capture: Option<PathBuf>,
}

/// The place where front ends connect.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum EndpointPlan {
    /// Listen at this path.
    Listen(PathBuf),
    /// Connect to this path.
    Connect(PathBuf),
    /// Listen on this descriptor.
    Descriptor(RawFd),
}

impl Plan {
    /// Checks the flags of all guests against each other, and derives the values that are not given.
    ///
    /// # Errors
    /// See [`PlanError`].
    pub fn new(guests: Vec<Args>, run_dir: Option<PathBuf>) -> Result<Self, PlanError> {
        let run_dir = run_dir.or_else(location::default_run_dir).ok_or(PlanError::NoRunDir)?;
        let has_several = guests.len() > 1;
        let plan = |args: Args| {
            if !has_several {
                return GuestPlan::new(args, &run_dir);
            }
            let name = args
                .name
                .clone()
                .or_else(|| Some(args.socket_path.as_ref()?.display().to_string()));
            let mut plan = GuestPlan::new(args, &run_dir).map_err(|source| PlanError::Guest {
                name: name.unwrap_or_default(),
                source: Box::new(source),
            })?;
            plan.log_prefix = format!("{}: ", plan.name);
            Ok(plan)
        };
        let guests = guests.into_iter().map(plan).collect::<Result<Vec<_>, _>>()?;
        for (n, guest) in guests.iter().enumerate() {
            let mut others = guests[..n].iter();
            if others.clone().any(|other| other.name == guest.name) {
                return Err(PlanError::SameName(guest.name.clone()));
            }
            if let EndpointPlan::Listen(path) | EndpointPlan::Connect(path) = &guest.endpoint
                && others.clone().any(|other| other.endpoint == guest.endpoint)
            {
                return Err(PlanError::SameSocket(path.clone()));
            }
            if let Some(path) = &guest.capture
                && others.any(|other| other.capture == guest.capture)
            {
                return Err(PlanError::SameCapture(path.clone()));
            }
            if let Some(path) = &guest.capture
                && guests.iter().any(|other| other.recorder == *path)
            {
                return Err(PlanError::CaptureIsRecorder(path.clone()));
            }
        }
        let switches = switches(&guests)?;
        let plan = Self { guests, switches, ..Self::default() };
        match plan.same_descriptor() {
            Some(fd) => Err(PlanError::SameDescriptor(fd)),
            None => Ok(plan),
        }
    }

    /// The same with what the command line and the file say of the daemon itself. The command line comes first.
    #[must_use]
    pub fn with(self, args: Args, config: Config) -> Self {
        Self {
            metrics: args.metrics.or(config.metrics),
            control: args.control.or(config.control),
            take_over: args.take_over,
            log_format: args.log_format.or(config.log_format).unwrap_or_default(),
            log_level: args.log_level,
            config_log_level: config.log_level,
            config: args.config,
            run_dir: args.run_dir,
            is_isolated: args.isolate.or(config.isolate) == Some(Isolation::Process),
            ..self
        }
    }

    /// The datapaths that are opened: each guest's own, and the switches' uplinks.
    pub fn wires(&self) -> impl Iterator<Item = &DatapathSpec> {
        let own = self.guests.iter().map(|guest| &guest.datapath);
        own.chain(self.switches.iter().filter_map(|switch| switch.uplink.as_ref()))
    }

    /// A descriptor that is named twice.
    fn same_descriptor(&self) -> Option<RawFd> {
        let socket = |guest: &GuestPlan| match guest.endpoint {
            EndpointPlan::Descriptor(fd) => Some(fd),
            EndpointPlan::Listen(_) | EndpointPlan::Connect(_) => None,
        };
        let sockets = self.guests.iter().filter_map(socket);
        let all: Vec<_> =
            sockets.chain(self.wires().filter_map(DatapathSpec::descriptor)).collect();
        (1..all.len()).find(|&n| all[..n].contains(&all[n])).map(|n| all[n])
    }
}

impl GuestPlan {
    fn new(args: Args, run_dir: &Path) -> Result<Self, PlanError> {
        let endpoint = match (args.socket_path, args.fd) {
            (Some(path), _) if args.client => EndpointPlan::Connect(path),
            (Some(path), _) => EndpointPlan::Listen(path),
            (None, Some(fd)) => EndpointPlan::Descriptor(fd),
            (None, None) => return Err(PlanError::NoName),
        };
        let name = name(args.name, endpoint.socket())?;
        let fifo = args.sched.map(|sched| sched.0);
        let cpus = cpus(args.cpus, args.queue_pairs)?;
        let datapath = args.datapath.unwrap_or(DatapathSpec::Null { receive: 0 });
        if datapath.descriptor().is_some() && args.queue_pairs > 1 {
            return Err(PlanError::OneDescriptor { datapath, queue_pairs: args.queue_pairs });
        }
        if args.pcap.is_some() && args.trace == OnOff::Off {
            return Err(PlanError::CaptureWithoutTrace);
        }
        if args.kernel_stages && args.trace == OnOff::Off {
            return Err(PlanError::KernelStagesWithoutTrace);
        }
        if !args.trace_probe.is_empty() && args.trace == OnOff::Off {
            return Err(PlanError::ProbesWithoutTrace);
        }
        if args.trace_probe.len() > CYCLIC_MAX {
            let found = args.trace_probe.len();
            return Err(PlanError::TooManyProbes { found, max: CYCLIC_MAX });
        }
        let on_switch = matches!(datapath, DatapathSpec::Switch { .. });
        if on_switch && args.pcap.is_some() {
            return Err(PlanError::NoWire("--pcap"));
        }
        if args.limit_rx.is_some() && (on_switch || datapath == DatapathSpec::Reflect) {
            return Err(PlanError::LimitWithoutWire);
        }
        let mac_locked = mac_locked(args.mac_locked, args.mac, on_switch)?;
        let (delays, crashes, faults) = sort_faults(args.fault, on_switch)?;
        Ok(Self {
            log_prefix: String::new(),
            endpoint,
            recorder: location::recorder_path(run_dir, &name),
            name,
            datapath,
            queue_pairs: args.queue_pairs,
            queue_size: args.queue_size,
            mac: args.mac,
            mac_locked,
            mtu: args.mtu,
            withheld: args.features.unwrap_or_default().0,
            poll: args.poll,
            workers: cpus.into_iter().map(|cpu| Scheduling { cpu, fifo }).collect(),
            trace: args.trace == OnOff::On,
            kernel_stages: args.kernel_stages,
            device_state: args.device_state == OnOff::On,
            probes: args.trace_probe,
            limits: [args.limit_rx, args.limit_tx],
            delays,
            crashes,
            faults,
            capture: args.pcap,
        })
    }
}

/// Whether a guest may send from its own address only, given the flag, its address, and whether it is on a switch.
fn mac_locked(
    flag: Option<OnOff>,
    mac: Option<MacAddress>,
    on_switch: bool,
) -> Result<bool, PlanError> {
    match flag {
        Some(_) if !on_switch => Err(PlanError::LockWithoutSwitch),
        Some(OnOff::On) if mac.is_none() => Err(PlanError::LockWithoutMac),
        Some(OnOff::Off) => Ok(false),
        Some(OnOff::On) | None => Ok(on_switch && mac.is_some()),
    }
}

impl EndpointPlan {
    fn socket(&self) -> Option<&Path> {
        match self {
            Self::Listen(path) | Self::Connect(path) => Some(path),
            Self::Descriptor(_) => None,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use clap::Parser as _;
    use worker::SWITCH_PAIRS_MAX;

    fn daemon(guests: &[&str]) -> Result<Plan, PlanError> {
        let args = |flags: &&str| {
            let line = format!("ringscoped {flags}");
            Args::try_parse_from(line.split_whitespace()).expect("flags of the right form")
        };
        Plan::new(guests.iter().map(args).collect(), Some("/r".into()))
    }

    fn plan(flags: &str) -> Result<GuestPlan, PlanError> {
        daemon(&[flags]).map(|plan| plan.guests.into_iter().next().expect("a guest"))
    }

    #[test]
    fn defaults_follow_from_the_socket() {
        let plan = plan("--socket-path /tmp/vm0.sock --datapath reflect").unwrap();
        assert_eq!(plan.endpoint, EndpointPlan::Listen("/tmp/vm0.sock".into()));
        assert_eq!((plan.name.as_str(), plan.recorder), ("vm0", "/r/vm0.trace".into()));
        assert_eq!((plan.queue_pairs, plan.queue_size, plan.trace), (1, 1024, true));
        assert_eq!(plan.workers, [Scheduling::default()]);
    }

    #[test]
    fn each_cpu_has_a_worker() {
        let flags = "--socket-path /s --datapath reflect --queue-pairs 2 --cpus 3,1 --sched fifo:5";
        let fifo = Some(5);
        let expected = [3, 1].map(|cpu| Scheduling { cpu: Some(cpu), fifo });
        assert_eq!(plan(flags).unwrap().workers, expected);
    }

    #[test]
    fn delays_and_faults_of_the_wire_are_told_apart() {
        let flags = "--socket-path /s --datapath reflect --fault delay:egress=5 --fault drop:tx=0.5 \
                     --fault error:rx.EIO,every=3";
        let plan = plan(flags).unwrap();
        assert_eq!((plan.delays.len(), plan.faults.len(), plan.capture), (1, 2, None));
    }

    #[test]
    fn flags_that_exclude_each_other_are_refused() {
        let base = "--socket-path /tmp/vm0.sock --datapath reflect";
        let too_many = PlanError::TooManyCpus { cpus: 2, queue_pairs: 1 };
        assert_eq!(plan(&format!("{base} --cpus 0-1")), Err(too_many));
        assert_eq!(plan(&format!("{base} --queue-pairs 2 --cpus 1,1")), Err(PlanError::SameCpu(1)));
        assert_eq!(plan("--fd 5 --datapath reflect"), Err(PlanError::NoName));
        let same = plan("--fd 5 --name a --datapath tap:fd=5");
        assert_eq!(same, Err(PlanError::SameDescriptor(5)));
        let one = plan("--socket-path /s --datapath macvtap:fd=5 --queue-pairs 2");
        assert!(matches!(one, Err(PlanError::OneDescriptor { queue_pairs: 2, .. })));
        let without_trace = plan(&format!("{base} --pcap /f --trace off"));
        assert_eq!(without_trace, Err(PlanError::CaptureWithoutTrace));
        let without_trace = plan(&format!("{base} --kernel-stages --trace off"));
        assert_eq!(without_trace, Err(PlanError::KernelStagesWithoutTrace));
        let without_trace = plan(&format!("{base} --trace-probe 7 --trace off"));
        assert_eq!(without_trace, Err(PlanError::ProbesWithoutTrace));
        let many = PlanError::TooManyProbes { found: 17, max: 16 };
        assert_eq!(plan(&format!("{base}{}", " --trace-probe 7".repeat(17))), Err(many));
        let name = PlanError::BadName("a/b".into());
        assert_eq!(plan(&format!("{base} --name a/b")), Err(name));
    }

    #[test]
    fn guests_of_one_switch_share_a_worker() {
        let vm0 = "--socket-path /tmp/vm0.sock --datapath switch:lan";
        let vm1 = "--socket-path /tmp/vm1.sock --datapath switch:lan,uplink=tap:ifname=t0";
        let vm2 = "--socket-path /tmp/vm2.sock --datapath reflect --poll never";
        let plan = daemon(&[vm0, vm1, vm2]).unwrap();
        let uplink = Some("tap:ifname=t0".parse().unwrap());
        let switch = SwitchPlan { name: "lan".into(), guests: vec![0, 1], uplink };
        assert_eq!(plan.switches, [switch]);
        let prefixes = plan.guests.iter().map(|guest| guest.log_prefix.as_str());
        assert_eq!(prefixes.collect::<Vec<_>>(), ["vm0: ", "vm1: ", "vm2: "]);
        let differs = |guest: &str, key, values: [&str; 2]| {
            let [found, other] = values.map(str::to_owned);
            let expected = PlanError::Differs { switch: "lan".into(), key, found, other };
            assert_eq!(daemon(&[vm0, vm1, guest]), Err(expected));
        };
        let base = "--socket-path /tmp/vm3.sock --datapath switch:lan";
        differs(&format!("{base} --poll never"), "poll", ["adaptive:200", "never"]);
        differs(&format!("{base} --cpus 1"), "cpus", ["any", "1"]);
        differs(&format!("{base} --sched fifo:5"), "sched", ["none", "fifo:5"]);
        differs(&format!("{base},uplink=null"), "uplink", ["tap:ifname=t0", "null"]);
    }

    #[test]
    fn guests_do_not_share_a_name_or_a_socket() {
        let guest = |path: &str, name: &str| {
            format!("--socket-path /tmp/{path} --name {name} --datapath reflect")
        };
        let both = |one: String, other: String| daemon(&[&one, &other]).map(|_| ());
        assert_eq!(both(guest("a", "x"), guest("b", "x")), Err(PlanError::SameName("x".into())));
        let same = PlanError::SameSocket("/tmp/a".into());
        assert_eq!(both(guest("a", "x"), guest("a", "y")), Err(same));
        let captured = |guest: String| format!("{guest} --pcap /f");
        let same = PlanError::SameCapture("/f".into());
        assert_eq!(both(captured(guest("a", "x")), captured(guest("b", "y"))), Err(same));
        let trace = both(guest("a", "x"), format!("{} --pcap /r/x.trace", guest("b", "y")));
        assert_eq!(trace, Err(PlanError::CaptureIsRecorder("/r/x.trace".into())));
        let error = both(guest("a", "x"), guest("b", "b/c")).unwrap_err().to_string();
        assert!(error.starts_with("guest 'b/c': --name 'b/c' is not a file name"), "{error}");
    }

    #[test]
    fn a_descriptor_is_named_once() {
        let guest = |n: usize, datapath: &str| format!("--socket-path /{n} --datapath {datapath}");
        let both = |one: &str, other: &str| {
            daemon(&[&guest(1, one), &guest(2, other)]).map(|plan| plan.wires().count())
        };
        let same = Err(PlanError::SameDescriptor(5));
        assert_eq!(both("tap:fd=5", "macvtap:fd=6"), Ok(2));
        assert_eq!(both("tap:fd=5", "macvtap:fd=5"), same);
        assert_eq!(both("switch:lan,uplink=tap:fd=5", "tap:fd=5"), same);
        assert_eq!(both("switch:lan,uplink=tap:fd=5", "switch:wan,uplink=tap:fd=5"), same);
        // One uplink, which both name.
        assert_eq!(both("switch:lan,uplink=tap:fd=5", "switch:lan,uplink=tap:fd=5"), Ok(3));
    }

    #[test]
    fn a_guest_of_a_switch_with_an_address_sends_from_it_only() {
        let vm0 = "--socket-path /tmp/vm0.sock --datapath switch:lan";
        let locked = |flags: &str| plan(&format!("{vm0} {flags}")).map(|plan| plan.mac_locked);
        let mac = "--mac 52:54:00:00:00:01";
        assert_eq!(locked(""), Ok(false));
        assert_eq!(locked(mac), Ok(true));
        assert_eq!(locked(&format!("{mac} --mac-locked on")), Ok(true));
        assert_eq!(locked(&format!("{mac} --mac-locked off")), Ok(false));
        assert_eq!(locked("--mac-locked off"), Ok(false));
        assert_eq!(locked("--mac-locked on"), Err(PlanError::LockWithoutMac));
        let apart = format!("--socket-path /tmp/vm0.sock --datapath reflect {mac}");
        assert_eq!(plan(&apart).map(|plan| plan.mac_locked), Ok(false));
        for state in ["on", "off"] {
            let apart = plan(&format!("{apart} --mac-locked {state}"));
            assert_eq!(apart, Err(PlanError::LockWithoutSwitch));
        }
        let both = |datapath: &str| {
            let vm1 = format!("--socket-path /tmp/vm1.sock --datapath {datapath} {mac}");
            daemon(&[&format!("{vm0} {mac}"), &vm1]).map(|_| ())
        };
        let mac = "52:54:00:00:00:01".parse().unwrap();
        assert_eq!(both("switch:lan"), Err(PlanError::SameMac { switch: "lan".into(), mac }));
        assert_eq!(both("switch:wan"), Ok(()));
    }

    #[test]
    fn a_switch_has_one_worker_and_a_limited_number_of_queue_pairs() {
        let vm0 = "--socket-path /tmp/vm0.sock --datapath switch:lan";
        let cpus = PlanError::SwitchCpus { switch: "lan".into(), cpus: 2 };
        assert_eq!(plan(&format!("{vm0} --queue-pairs 2 --cpus 1,2")), Err(cpus));
        assert_eq!(plan(&format!("{vm0} --pcap /f")), Err(PlanError::NoWire("--pcap")));
        let (pairs, max) = (SWITCH_PAIRS_MAX + 1, SWITCH_PAIRS_MAX);
        let error = PlanError::SwitchPairs { switch: "lan".into(), pairs, max };
        assert_eq!(plan(&format!("{vm0} --queue-pairs {pairs}")), Err(error));
    }
}
