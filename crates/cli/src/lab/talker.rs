//! The flag of `ringscope lab` for the talker's scheduling.

use clap::{Args, ValueEnum};
use lab::kept::Host;
use lab::talker::{Home, Talker, TalkerCpu};

#[derive(Debug, Args)]
pub struct TalkerFlags {
    /// How the talker is scheduled, each in turn
    #[arg(long, value_name = "LIST", value_delimiter = ',', value_enum, default_value = "default")]
    talker: Vec<TalkerName>,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
enum TalkerName {
    /// As any program
    Default,
    /// On a CPU of its own, if there is one
    Pinned,
    /// In the real-time class, with all memory locked
    Realtime,
    /// In User Mode Linux: the neighbour of the next two
    Uml,
    /// With launch times (SO_TXTIME), kept by mqprio and etf
    Etf,
    /// With launch times within a gate, kept by taprio and etf
    Taprio,
}

/// A talker that a far host cannot be.
#[derive(Debug, thiserror::Error)]
#[error("--talker: expected default, pinned or realtime with --peer, whose host sends, found {0}")]
pub struct FarTalker(&'static str);

impl TalkerFlags {
    /// Each that is named, once.
    pub fn talkers(&self) -> Vec<Talker> {
        let mut talkers = Vec::new();
        for name in &self.talker {
            let talker = match name {
                TalkerName::Default => Talker::Default,
                TalkerName::Pinned => Talker::Pinned,
                TalkerName::Realtime => Talker::Realtime,
                TalkerName::Uml => Talker::Uml,
                TalkerName::Etf => Talker::Etf,
                TalkerName::Taprio => Talker::Taprio,
            };
            if !talkers.contains(&talker) {
                talkers.push(talker);
            }
        }
        talkers
    }

    /// Refuses talkers that need a kernel or a script of this host.
    pub fn check(&self, is_far: bool) -> Result<(), FarTalker> {
        let is_elsewhere = |it: &Talker| it.home(false) == Home::Uml;
        match self.talkers().into_iter().find(is_elsewhere) {
            Some(talker) if is_far => Err(FarTalker(talker.name())),
            _ => Ok(()),
        }
    }

    /// The CPU of a pinned talker: the one before the back end's, if others have one, too. A far host has no back end.
    pub fn cpu(&self, has_back_end_cpu: bool, is_far: bool) -> Option<TalkerCpu> {
        if !self.talkers().contains(&Talker::Pinned) {
            return None;
        }
        if is_far {
            return Some(TalkerCpu { cpu: 0, is_own: true });
        }
        let cpu = Host::here().cpus.saturating_sub(1 + usize::from(has_back_end_cpu));
        Some(TalkerCpu { cpu, is_own: has_back_end_cpu && cpu > 0 })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_far_host_is_no_talker_with_launch_times() {
        let named = |talker| TalkerFlags { talker: vec![talker, talker] };
        assert_eq!(named(TalkerName::Etf).talkers(), [Talker::Etf]);
        assert!(named(TalkerName::Etf).check(false).is_ok());
        assert!(named(TalkerName::Realtime).check(true).is_ok());
        let error = named(TalkerName::Etf).check(true).unwrap_err().to_string();
        assert!(error.ends_with("found etf"), "{error}");
    }
}
