//! How the talker is scheduled: its program by the CPU scheduler, its packets by a queueing discipline.
//!
//! The kernel of this host may lack the disciplines. Then the talker is a User Mode Linux guest, whose kernel has them.

use std::path::Path;
use std::process::{Command, Stdio};
use std::time::Duration;

use serde::{Deserialize, Serialize};

use crate::command::{CommandError, Stop};
use crate::end::End;
use crate::guest::scripts;

/// Priority in the real-time class: above programs of this host, below its kernel threads for interrupts, which have 50.
const REALTIME: u8 = 40;
/// The packets' priority, by which `qemu-scripts/talker` sorts them into the class with launch times.
const PRIORITY: u8 = 3;
/// From when the program passes a packet on until it should be sent, microseconds. A program in User Mode Linux is woken up
/// 3 ms late, and later on a busy host.
const LEAD_US: u64 = 20_000;
/// Within this time, the discipline has to send a packet, microseconds.
const DELTA_US: u64 = 5000;
/// The cycle of taprio, and the part of it in which probes may be sent, microseconds.
const CYCLE_US: u64 = 20_000;
const OPEN_US: u64 = 10_000;
/// Longest time to change a discipline: each program takes long to start in User Mode Linux.
const CHANGE_LIMIT: Duration = Duration::from_secs(120);

/// How the talker is scheduled.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Talker {
    /// As any program.
    #[default]
    Default,
    /// On a CPU of its own, if there is one.
    Pinned,
    /// In the real-time class, with all memory locked.
    Realtime,
    /// As any program, in User Mode Linux: the neighbour of the next two.
    Uml,
    /// Packets have launch times, kept by mqprio and etf.
    Etf,
    /// Packets have launch times within a gate, kept by taprio and etf.
    Taprio,
}

/// Where the talker runs.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Home {
    /// Where the variant has it: in a network namespace of this host, or in a guest.
    #[default]
    Variant,
    /// In a User Mode Linux guest.
    Uml,
}

/// The CPU of a pinned talker.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct TalkerCpu {
    /// Its number.
    pub cpu: usize,
    /// Whether nothing else of the lab runs there.
    pub is_own: bool,
}

impl Talker {
    /// Its name on the command line and in tables.
    #[must_use]
    pub const fn name(self) -> &'static str {
        match self {
            Self::Default => "default",
            Self::Pinned => "pinned",
            Self::Realtime => "realtime",
            Self::Uml => "uml",
            Self::Etf => "etf",
            Self::Taprio => "taprio",
        }
    }

    /// Whether packets have launch times. Then the talker sends a packet when the kernel does, not its program.
    #[must_use]
    pub const fn has_launch_times(self) -> bool {
        matches!(self, Self::Etf | Self::Taprio)
    }

    /// Where it runs; `has_disciplines` is whether this host's kernel has the queueing disciplines.
    #[must_use]
    pub const fn home(self, has_disciplines: bool) -> Home {
        match self {
            Self::Default | Self::Pinned | Self::Realtime => Home::Variant,
            Self::Etf | Self::Taprio if has_disciplines => Home::Variant,
            Self::Uml | Self::Etf | Self::Taprio => Home::Uml,
        }
    }

    /// Further flags of udp-ping, each after a space.
    pub(crate) fn flags(self, cpu: usize) -> String {
        let launch = format!(" --priority {PRIORITY} --txtime {LEAD_US} --delta-us {DELTA_US}");
        match self {
            Self::Default | Self::Uml => String::new(),
            Self::Pinned => format!(" --cpu {cpu}"),
            Self::Realtime => format!(" --realtime {REALTIME}"),
            Self::Etf => launch,
            Self::Taprio => format!("{launch} --gate {CYCLE_US}:0-{OPEN_US}"),
        }
    }

    /// The discipline that it needs at the talker, as `qemu-scripts/talker` takes it.
    fn discipline(self) -> String {
        match self {
            Self::Etf => format!("etf --delta-us {DELTA_US}"),
            Self::Taprio => {
                format!("taprio --delta-us {DELTA_US} --cycle-us {CYCLE_US} --open-us {OPEN_US}")
            }
            _ => "none".into(),
        }
    }

    /// Gives the talker this discipline.
    ///
    /// # Errors
    /// If its kernel has none, or `stop` is set.
    pub(crate) fn set_up(self, stop: &Stop, talker: &End) -> Result<(), CommandError> {
        script(stop, talker, &self.discipline()).map(drop)
    }

    /// What the talker's disciplines have counted since they were set up, as `tc -s -j` prints it.
    ///
    /// # Errors
    /// If they cannot be read, or `stop` is set.
    pub(crate) fn counters(stop: &Stop, talker: &End) -> Result<String, CommandError> {
        script(stop, talker, "counters")
    }
}

fn script(stop: &Stop, talker: &End, order: &str) -> Result<String, CommandError> {
    let script = scripts().join("talker");
    let script = script.canonicalize().unwrap_or(script);
    talker.shell(stop, &format!("'{}' {order}", script.display()), CHANGE_LIMIT)
}

/// Whether this host's kernel has the queueing disciplines, built in or as modules.
#[must_use]
pub fn has_disciplines() -> bool {
    ["sch_mqprio", "sch_etf", "sch_taprio"].into_iter().all(|name| {
        let loaded = Path::new("/sys/module").join(name).exists();
        let mut find = Command::new("modprobe");
        find.args(["-q", "-n", name])
            .stdin(Stdio::null())
            .stdout(Stdio::null())
            .stderr(Stdio::null());
        loaded || find.status().is_ok_and(|it| it.success())
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_disciplines_that_the_host_lacks_need_another_kernel() {
        for has_disciplines in [false, true] {
            let home = |talker: Talker| talker.home(has_disciplines);
            for talker in [Talker::Default, Talker::Pinned, Talker::Realtime] {
                assert_eq!(home(talker), Home::Variant);
            }
            assert_eq!(home(Talker::Uml), Home::Uml);
            let expected = if has_disciplines { Home::Variant } else { Home::Uml };
            assert_eq!([home(Talker::Etf), home(Talker::Taprio)], [expected; 2]);
        }
    }

    #[test]
    fn each_name_is_the_one_that_is_kept() {
        let all = [
            Talker::Default,
            Talker::Pinned,
            Talker::Realtime,
            Talker::Uml,
            Talker::Etf,
            Talker::Taprio,
        ];
        for talker in all {
            assert_eq!(serde_json::to_value(talker).unwrap(), talker.name());
        }
    }

    #[test]
    fn the_gate_of_the_program_is_that_of_the_discipline() {
        assert!(Talker::Taprio.flags(0).ends_with(&format!("--gate {CYCLE_US}:0-{OPEN_US}")));
        assert!(
            Talker::Taprio
                .discipline()
                .ends_with(&format!("--cycle-us {CYCLE_US} --open-us {OPEN_US}"))
        );
        assert_eq!(Talker::Pinned.flags(7), " --cpu 7");
        assert_eq!(Talker::Default.flags(7), "");
    }
}
