//! A far host as the talker: what its clock and that of this host follow.
//!
//! The stamps of both hosts are of their own `CLOCK_MONOTONIC`, which no protocol sets. PTP and NTP discipline other clocks:
//! that of a network card, and `CLOCK_REALTIME`. So times of one way are left out, whatever they say. What they say is
//! shown, for a person who compares other stamps.

use std::fmt::Write as _;
use std::fs;
use std::io;

use serde::{Deserialize, Serialize};

use crate::command::{CommandError, Stop};
use crate::end::End;
use crate::far_host::Peer;
use crate::kept::{Host, Kept, KeptError, PEER};

/// Why what is known of a far host could not be kept.
#[derive(Debug, thiserror::Error)]
pub enum PeerError {
    /// A host does not answer.
    #[error(transparent)]
    Command(#[from] CommandError),
    /// The file cannot be written.
    #[error(transparent)]
    Kept(#[from] KeptError),
}

/// A far host that was the talker, and the clocks of both.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct PeerFacts {
    /// The far host, and the wire.
    #[serde(flatten)]
    pub wire: Peer,
    /// The far host.
    pub talker: EndFacts,
    /// This host.
    pub responder: EndFacts,
}

/// A host, and what its clock follows.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
pub struct EndFacts {
    /// The host.
    pub host: Host,
    /// The counter that its clocks are made from, as in `tsc`.
    pub source: String,
    /// Programs that set its clocks, as in `ptp4l`.
    pub daemons: Vec<String>,
    /// What ptp4l says, if it runs and its tool `pmc` is there.
    pub ptp: Option<Ptp>,
    /// What `CLOCK_REALTIME` is off from NTP's time, seconds, by chronyd, if that runs.
    pub ntp_offset_s: Option<f64>,
}

/// The state of ptp4l.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Ptp {
    /// State of its first port, as in `SLAVE`.
    pub port: Option<String>,
    /// The grandmaster's identity.
    pub grandmaster: Option<String>,
    /// What the disciplined clock is off from its master, nanoseconds.
    pub offset_ns: Option<i64>,
}

impl PeerFacts {
    /// Asks both hosts, unless an earlier build has done so, and keeps the answers.
    ///
    /// # Errors
    /// If a host does not answer, or the file cannot be written.
    pub(crate) fn keep(
        stop: &Stop,
        peer: &Peer,
        talker: &End,
        responder: &End,
        kept: &Kept,
    ) -> Result<(), PeerError> {
        let path = kept.dir().join(PEER);
        if path.exists() {
            return Ok(());
        }
        let facts = Self {
            wire: peer.clone(),
            talker: EndFacts::parse(&talker.clock_facts(stop)?),
            responder: EndFacts::parse(&responder.clock_facts(stop)?),
        };
        let text = serde_json::to_string_pretty(&facts).expect("an object with string keys");
        fs::write(&path, text).map_err(|source| KeptError::Io { path, source }.into())
    }

    /// What was kept; `None` if there was no far host.
    ///
    /// # Errors
    /// If the file cannot be read, or is not what `ringscope lab` writes.
    pub(crate) fn read(kept: &Kept) -> Result<Option<Self>, KeptError> {
        let path = kept.dir().join(PEER);
        match fs::read_to_string(&path) {
            Ok(text) => serde_json::from_str(&text)
                .map(Some)
                .map_err(|error| KeptError::Format { path, why: error.to_string() }),
            Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(None),
            Err(source) => Err(KeptError::Io { path, source }),
        }
    }

    /// For a person: both hosts, and how their clocks are related.
    pub(crate) fn to_text(&self) -> String {
        let Self { wire: Peer { host, iface, peer_iface }, talker, responder } = self;
        let mut text = format!(
            "\nClocks. The talker is {host}, on its {peer_iface}; this host is on {iface}.\n\n"
        );
        for (name, end) in [("talker", talker), ("this host", responder)] {
            let _ = writeln!(text, "  {name}: {}", end.to_text());
        }
        let _ = writeln!(
            text,
            "\n{}\nEach host's stamps are of its CLOCK_MONOTONIC, which neither PTP nor NTP sets. So times of one way are left\nout, and the wire is in `between`.",
            self.relation()
        );
        text
    }

    /// How the clocks are related, in one sentence.
    fn relation(&self) -> String {
        let (talker, responder) = (&self.talker, &self.responder);
        let of = |end: &EndFacts| end.ptp.as_ref().and_then(|it| it.grandmaster.clone());
        match (of(talker), of(responder)) {
            (Some(one), Some(other)) if one == other => {
                format!("Both hosts follow the PTP grandmaster {one}.")
            }
            (Some(one), Some(other)) => format!(
                "The hosts follow different PTP grandmasters: the talker {one}, this host {other}."
            ),
            _ => "No relation is known: PTP does not run on both hosts, or `pmc` does not answer there.".into(),
        }
    }
}

impl EndFacts {
    /// Reads the lines `NAME VALUE` of `qemu-scripts/variants/far.sh clocks`. What is not there is not known.
    fn parse(printed: &str) -> Self {
        let mut facts = Self::default();
        let mut ptp = Ptp::default();
        for (name, value) in printed.lines().filter_map(|line| line.split_once(' ')) {
            let value = value.trim();
            match name {
                "kernel" => facts.host.kernel = value.into(),
                "cpu" => facts.host.cpu = value.into(),
                "cpus" => facts.host.cpus = value.parse().unwrap_or(0),
                "source" => facts.source = value.into(),
                "daemon" => facts.daemons.push(value.into()),
                "ptp-port" => ptp.port = Some(value.into()),
                "ptp-grandmaster" => ptp.grandmaster = Some(value.into()),
                "ptp-offset-ns" => ptp.offset_ns = value.parse().ok(),
                "ntp-offset-s" => facts.ntp_offset_s = value.parse().ok(),
                _ => {}
            }
        }
        facts.ptp = (ptp != Ptp::default()).then_some(ptp);
        facts
    }

    fn to_text(&self) -> String {
        let Self { host, source, daemons, ptp, ntp_offset_s } = self;
        let mut text = format!(
            "{}, {} CPUs, Linux {}; clock source {source}; ",
            host.cpu, host.cpus, host.kernel
        );
        text += &match daemons.join(", ") {
            none if none.is_empty() => "no known program sets its clocks".into(),
            daemons => format!("its clocks are set by {daemons}"),
        };
        if let Some(Ptp { port, grandmaster, offset_ns }) = ptp {
            let or = |it: &Option<String>| it.clone().unwrap_or_else(|| "unknown".into());
            let _ = write!(text, "; PTP port {}, grandmaster {}", or(port), or(grandmaster));
            if let Some(ns) = offset_ns {
                let _ = write!(text, ", {ns} ns off its master");
            }
        }
        if let Some(seconds) = ntp_offset_s {
            let _ = write!(text, "; {:.1} us off NTP's time", seconds * 1e6);
        }
        text
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const PRINTED: &str = "kernel 6.1\ncpu Some CPU\ncpus 4\nsource tsc\ndaemon chronyd\ndaemon ptp4l\n\
        ptp-port SLAVE\nptp-offset-ns -12\nptp-grandmaster 001122.fffe.334455\nntp-offset-s -0.000001500\n";

    fn facts(talker: &str, responder: &str) -> PeerFacts {
        let wire = Peer { host: "ssh:far".into(), iface: "eth1".into(), peer_iface: "eth2".into() };
        let [talker, responder] = [talker, responder].map(EndFacts::parse);
        PeerFacts { wire, talker, responder }
    }

    #[test]
    fn what_both_hosts_say_is_shown_with_the_relation() {
        let both = facts(PRINTED, PRINTED);
        assert_eq!(both.talker.ptp.as_ref().unwrap().offset_ns, Some(-12));
        let text = both.to_text();
        for part in [
            "The talker is ssh:far, on its eth2; this host is on eth1",
            "its clocks are set by chronyd, ptp4l; PTP port SLAVE, grandmaster 001122.fffe.334455, -12 ns off its master; -1.5 us off NTP's time",
            "Both hosts follow the PTP grandmaster 001122.fffe.334455",
            "So times of one way are left\nout",
        ] {
            assert!(text.contains(part), "{part} is not in {text}");
        }
        let different = facts(PRINTED, &PRINTED.replace("001122", "aabbcc")).to_text();
        assert!(different.contains("different PTP grandmasters"), "{different}");
        let none = facts(PRINTED, "source hpet\n").to_text();
        assert!(
            none.contains("No relation is known") && none.contains("no known program sets"),
            "{none}"
        );
    }

    #[test]
    fn what_was_kept_is_read_again() {
        let dir = tempfile::tempdir().unwrap();
        let kept = Kept::create(dir.path()).unwrap();
        assert_eq!(PeerFacts::read(&kept).unwrap(), None);
        let facts = facts(PRINTED, "");
        fs::write(dir.path().join(PEER), serde_json::to_string(&facts).unwrap()).unwrap();
        assert_eq!(PeerFacts::read(&kept).unwrap(), Some(facts));
        fs::write(dir.path().join(PEER), "{").unwrap();
        assert!(matches!(PeerFacts::read(&kept), Err(KeptError::Format { .. })));
    }
}
