//! What is to be done: flags checked against each other. Nothing of the system is touched yet.

use std::os::fd::RawFd;
use std::path::PathBuf;

use burst_trace::location;
use datapath::Planted;
use virtio_net::MacAddress;
use worker::{Delay, PollPolicy, Scheduling};

use crate::args::{Args, Switch};
use crate::spec::{DatapathSpec, FaultSpec};

/// A daemon to be.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Plan {
    /// Where front ends are met.
    pub endpoint: EndpointPlan,
    /// The device's name.
    pub name: String,
    /// Where frames go to and come from.
    pub datapath: DatapathSpec,
    /// Queue pairs.
    pub queue_pairs: u16,
    /// The largest ring.
    pub queue_size: u16,
    /// The device's address.
    pub mac: Option<MacAddress>,
    /// What workers do without work.
    pub poll: PollPolicy,
    /// Where each worker runs; at least one.
    pub workers: Vec<Scheduling>,
    /// The recorder's file.
    pub recorder: PathBuf,
    /// Whether bursts are recorded.
    pub trace: bool,
    /// Delays to plant.
    pub delays: Vec<Delay>,
    /// Faults of the wire to plant.
    pub faults: Vec<Planted>,
    /// The file that packets are copied to.
    pub capture: Option<PathBuf>,
}

/// Where front ends are met.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum EndpointPlan {
    /// Listen at this path.
    Listen(PathBuf),
    /// Connect to this path.
    Connect(PathBuf),
    /// Listen on this descriptor.
    Descriptor(RawFd),
}

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
    /// A capture without stamps.
    #[error(
        "--pcap needs the stamps of every burst, which --trace off leaves out; drop one of the two"
    )]
    CaptureWithoutTrace,
}

impl Plan {
    /// Checks the flags against each other and fills in what follows from others.
    ///
    /// # Errors
    /// See [`PlanError`].
    pub fn new(args: Args) -> Result<Self, PlanError> {
        let endpoint = match (args.socket_path, args.fd) {
            (Some(path), _) if args.client => EndpointPlan::Connect(path),
            (Some(path), _) => EndpointPlan::Listen(path),
            (None, Some(fd)) => EndpointPlan::Descriptor(fd),
            (None, None) => return Err(PlanError::NoName),
        };
        let name = name(args.name, &endpoint)?;
        let run_dir = args.run_dir.or_else(location::default_run_dir).ok_or(PlanError::NoRunDir)?;
        let fifo = args.sched.map(|sched| sched.0);
        let cpus: Vec<_> = match args.cpus {
            None => vec![None],
            Some(list) => list.0.into_iter().map(Some).collect(),
        };
        if cpus.len() > args.queue_pairs.into() {
            let queue_pairs = args.queue_pairs;
            return Err(PlanError::TooManyCpus { cpus: cpus.len(), queue_pairs });
        }
        for (n, cpu) in cpus.iter().enumerate() {
            if let Some(cpu) = cpu
                && cpus[..n].contains(&Some(*cpu))
            {
                return Err(PlanError::SameCpu(*cpu));
            }
        }
        if args.pcap.is_some() && args.trace == Switch::Off {
            return Err(PlanError::CaptureWithoutTrace);
        }
        let (mut delays, mut faults) = (Vec::new(), Vec::new());
        for fault in args.fault {
            match fault {
                FaultSpec::Delay(delay) => delays.push(delay),
                FaultSpec::Wire(planted) => faults.push(planted),
            }
        }
        Ok(Self {
            endpoint,
            recorder: location::recorder_path(&run_dir, &name),
            name,
            datapath: args.datapath.unwrap_or(DatapathSpec::Null { receive: 0 }),
            queue_pairs: args.queue_pairs,
            queue_size: args.queue_size,
            mac: args.mac,
            poll: args.poll,
            workers: cpus.into_iter().map(|cpu| Scheduling { cpu, fifo }).collect(),
            trace: args.trace == Switch::On,
            delays,
            faults,
            capture: args.pcap,
        })
    }
}

fn name(given: Option<String>, endpoint: &EndpointPlan) -> Result<String, PlanError> {
    let name = match (given, endpoint) {
        (Some(name), _) => name,
        (None, EndpointPlan::Listen(path) | EndpointPlan::Connect(path)) => {
            let stem = path.file_stem().ok_or(PlanError::NoName)?;
            stem.to_string_lossy().into_owned()
        }
        (None, EndpointPlan::Descriptor(_)) => return Err(PlanError::NoName),
    };
    let fits = |c: char| c.is_ascii_alphanumeric() || matches!(c, '-' | '_' | '.');
    if name.is_empty() || name.starts_with('.') || !name.chars().all(fits) {
        return Err(PlanError::BadName(name));
    }
    Ok(name)
}

#[cfg(test)]
mod tests {
    use super::*;
    use clap::Parser as _;

    fn plan(flags: &str) -> Result<Plan, PlanError> {
        let line = format!("ringscoped --run-dir /r {flags}");
        Plan::new(Args::try_parse_from(line.split_whitespace()).expect("flags of the right form"))
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
    fn delays_and_faults_of_the_wire_go_where_they_belong() {
        let flags = "--socket-path /s --datapath reflect --fault delay:egress=5 --fault drop:tx=0.5 \
                     --fault error:rx.EIO,every=3";
        let plan = plan(flags).unwrap();
        assert_eq!((plan.delays.len(), plan.faults.len(), plan.capture), (1, 2, None));
    }

    #[test]
    fn what_does_not_go_together_is_said() {
        let base = "--socket-path /tmp/vm0.sock --datapath reflect";
        let too_many = PlanError::TooManyCpus { cpus: 2, queue_pairs: 1 };
        assert_eq!(plan(&format!("{base} --cpus 0-1")), Err(too_many));
        assert_eq!(plan(&format!("{base} --queue-pairs 2 --cpus 1,1")), Err(PlanError::SameCpu(1)));
        assert_eq!(plan("--fd 5 --datapath reflect"), Err(PlanError::NoName));
        let without_trace = plan(&format!("{base} --pcap /f --trace off"));
        assert_eq!(without_trace, Err(PlanError::CaptureWithoutTrace));
        let name = PlanError::BadName("a/b".into());
        assert_eq!(plan(&format!("{base} --name a/b")), Err(name));
    }
}
