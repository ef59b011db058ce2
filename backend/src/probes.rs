//! `--trace-probe`: packets that are recorded one by one.

use std::fmt;
use std::str::FromStr;

use burst_trace::CyclicFrames;
use worker::ProbeTargets;

/// `--trace-probe`: packets that are recorded one by one.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum ProbeSpec {
    /// Probe packets to or from a UDP port.
    Udp(u16),
    /// Layer-2 frames with a counter.
    Cyclic(CyclicFrames),
}

impl ProbeSpec {
    /// What workers look for.
    pub fn targets(specs: &[Self]) -> ProbeTargets {
        let mut targets = ProbeTargets::default();
        for spec in specs {
            match spec {
                Self::Udp(port) => targets.udp_ports.push(*port),
                Self::Cyclic(frames) => targets.cyclic.push(*frames),
            }
        }
        targets
    }
}

impl FromStr for ProbeSpec {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, Self::Err> {
        if text.starts_with("ethertype:") || text.starts_with("rtc-") {
            return text.parse().map(Self::Cyclic);
        }
        let port = text.parse().ok().filter(|port| *port > 0);
        port.map(Self::Udp).ok_or_else(|| {
            format!(
                "expected a UDP port of 1 to 65535, ethertype:0xNNNN,counter@OFFSET/LEN or rtc-testbench, found \
                 '{text}'"
            )
        })
    }
}

impl fmt::Display for ProbeSpec {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Udp(port) => port.fmt(f),
            Self::Cyclic(frames) => frames.fmt(f),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn ports_and_frames_are_read_as_they_are_written() {
        let texts = ["7010", "ethertype:0x8892,counter@2/4,vlan=0", "1"];
        let specs = texts.map(|text| text.parse::<ProbeSpec>().unwrap());
        assert_eq!(specs.map(|spec| spec.to_string()), texts);
        let targets = ProbeSpec::targets(&specs);
        assert_eq!((targets.udp_ports, targets.cyclic.len()), (vec![7010, 1], 1));
        assert!(matches!("rtc-testbench".parse(), Ok(ProbeSpec::Cyclic(_))));
        for wrong in ["0", "65536", "", "udp", "rtc-", "ethertype:0x8892"] {
            assert!(wrong.parse::<ProbeSpec>().unwrap_err().contains("expected "), "{wrong}");
        }
    }
}
