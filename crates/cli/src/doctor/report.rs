//! Findings and advice as text for a terminal.

use std::fmt::Write;

use super::NOT_AVAILABLE;
use super::advice::Advice;
use super::checks::Check;
use super::iface::Interface;
use host_links::ethtool::{Amount, Channels, OffloadSettings, Rings};
use host_links::xdp::XdpFeatures;

/// A socket in the daemon's own directory, which it makes.
const SOCKET_PATH: &str = "/run/ringscope/vm0.sock";
/// Space between columns.
const GAP: &str = "  ";

/// One line for each check of the host, and below it the command that changes it.
pub fn host(checks: &[Check]) -> String {
    let width = checks.iter().map(|check| check.check.len()).max().unwrap_or(0);
    let mut text = String::new();
    for check in checks {
        let (name, verdict) = (check.check, check.verdict.name());
        let _ = writeln!(text, "{verdict:<7}{GAP}{name:<width$}{GAP}{}", check.found);
        if let Some(command) = &check.change {
            let _ = writeln!(text, "{:<7}{GAP}{:<width$}{GAP}  {command}", "", "");
        }
    }
    text
}

/// An interface: its facts, the advice, and the flag of ringscoped.
pub fn interface(interface: &Interface, advice: &[Advice], datapath: &str) -> String {
    let facts = facts(interface);
    let width = facts.iter().map(|(name, _)| name.len()).max().unwrap_or(0);
    let mut text = String::new();
    for (name, found) in facts {
        let _ = writeln!(text, "{name:<width$}{GAP}{found}");
    }
    if advice.is_empty() {
        text += "\nNothing to change for AF_XDP.\n";
    } else {
        text += "\nTo change for AF_XDP, most important first:\n";
    }
    for (n, Advice { why, command }) in advice.iter().enumerate() {
        let _ = writeln!(text, "{:>2}. {why}", n + 1);
        if let Some(command) = command {
            let _ = writeln!(text, "      {command}");
        }
    }
    let _ = writeln!(text, "\nThen: ringscoped --socket-path {SOCKET_PATH} {datapath}");
    text
}

fn facts(interface: &Interface) -> Vec<(&'static str, String)> {
    let it = interface;
    vec![
        ("interface", format!("{} (number {})", it.name, it.index)),
        ("driver", driver(it)),
        ("link", link(it)),
        ("MTU", mtu(it)),
        ("queues", queues(it)),
        ("rings", it.rings.map_or_else(unknown, rings)),
        ("offloads", it.offloads.as_ref().map_or_else(unknown, offloads)),
        ("XDP", xdp(it.xdp_features.as_ref())),
        ("zero copy", zero_copy(it.xdp_features.as_ref())),
        ("metadata", it.xdp_features.as_ref().map_or_else(unknown, metadata)),
        ("program", program(it)),
        ("NAPI", napi(it)),
        ("locked memory", it.memlock.text()),
    ]
}

fn unknown() -> String {
    NOT_AVAILABLE.into()
}

fn joined(words: &[&str]) -> String {
    if words.is_empty() { "none".into() } else { words.join(" ") }
}

fn driver(interface: &Interface) -> String {
    let name = interface.driver.as_deref().unwrap_or("none");
    match &interface.device {
        Some(device) => format!("{name}, {} on {}", device.name, device.bus),
        None if interface.is_virtual => {
            format!("{name}; virtual: frames may have partial checksums, or be several in one")
        }
        None => name.into(),
    }
}

fn link(interface: &Interface) -> String {
    let state = match (interface.is_up, interface.has_carrier) {
        (false, _) => "down",
        (true, false) => "up, no carrier",
        (true, true) => "up",
    };
    let speed = interface.speed_mbit.map(|speed| format!(", {speed} Mbit/s")).unwrap_or_default();
    let master = interface.master.as_ref().map(|name| format!(", in {name}")).unwrap_or_default();
    let peer = interface.peer.as_ref().map(|name| format!(", peer {name}"));
    format!("{state}{speed}{master}{}", peer.unwrap_or_default())
}

fn mtu(interface: &Interface) -> String {
    let range = match (interface.mtu_min, interface.mtu_max) {
        (Some(min), Some(max)) => format!(" (from {min} to {max})"),
        _ => String::new(),
    };
    let single = interface.mtu_max_single_buffer;
    let several = if interface.xdp_features.is_none() {
        "above it the driver has to take several"
    } else if interface.takes_several_buffers() {
        "in several up to 9000"
    } else {
        "not above it"
    };
    format!("{}{range}; AF_XDP: in one buffer up to about {single}, {several}", interface.mtu)
}

fn queues(interface: &Interface) -> String {
    let (Some(rx), Some(tx)) = (interface.rx_queues, interface.tx_queues) else {
        return interface.channels.map_or_else(unknown, channels);
    };
    let channels = interface.channels.map(|told| format!("; {}", channels(told)));
    format!("{rx} receive, {tx} transmit{}", channels.unwrap_or_default())
}

fn channels(channels: Channels) -> String {
    let Channels { combined, rx, tx } = channels;
    format!("channels: {}", amounts(&[("combined", combined), ("rx", rx), ("tx", tx)]))
}

fn rings(rings: Rings) -> String {
    amounts(&[("rx", rings.rx), ("tx", rings.tx)])
}

fn amounts(amounts: &[(&str, Option<Amount>)]) -> String {
    let of = |(name, amount): &(&str, Option<Amount>)| {
        amount.map(|Amount { now, max }| format!("{name} {now} of {max}"))
    };
    let words: Vec<_> = amounts.iter().filter_map(of).collect();
    if words.is_empty() { unknown() } else { words.join(", ") }
}

/// The offloads that are on, and those that could be.
fn offloads(offloads: &OffloadSettings) -> String {
    let named = |wanted: bool| {
        let chosen = offloads.iter().filter(|(_, offload)| offload.on == wanted);
        let names: Vec<_> = chosen
            .map(|(name, offload)| format!("{name}{}", if offload.fixed { " (fixed)" } else { "" }))
            .collect();
        if names.is_empty() { "none".into() } else { names.join(" ") }
    };
    format!("on: {}; off: {}", named(true), named(false))
}

fn xdp(features: Option<&XdpFeatures>) -> String {
    match features {
        None => format!("{NOT_AVAILABLE}: the kernel reports it from 6.3 on"),
        Some(features) if features.actions.is_empty() => {
            "generic only: the driver has no XDP of its own".into()
        }
        Some(features) => {
            let mode = if features.is_native() { "native" } else { "generic, without redirect" };
            format!("{mode}: {}", joined(&features.actions))
        }
    }
}

fn zero_copy(features: Option<&XdpFeatures>) -> String {
    match features {
        None => unknown(),
        Some(features) if !features.is_zero_copy() => "no: every frame is copied once".into(),
        Some(features) => match features.zero_copy_segments_max {
            Some(segments @ 2..) => format!("yes, frames over up to {segments} buffers"),
            _ => "yes, frames in one buffer".into(),
        },
    }
}

fn metadata(features: &XdpFeatures) -> String {
    let (receive, transmit) = (&features.receive_metadata, &features.transmit_metadata);
    format!("receive: {}; transmit: {}", joined(receive), joined(transmit))
}

fn program(interface: &Interface) -> String {
    match interface.xdp_program {
        None => "none".into(),
        Some(attached) => {
            let id = attached.id.map(|id| format!(", number {id}")).unwrap_or_default();
            format!("attached, {}{id}", attached.mode.name())
        }
    }
}

fn napi(interface: &Interface) -> String {
    let napi = interface.napi;
    let settings = [
        ("gro_flush_timeout", napi.gro_flush_timeout),
        ("napi_defer_hard_irqs", napi.napi_defer_hard_irqs.map(Into::into)),
        ("threaded", napi.threaded.map(Into::into)),
    ];
    let of = |(name, value): (&str, Option<u64>)| value.map(|value| format!("{name} {value}"));
    let words: Vec<_> = settings.into_iter().filter_map(of).collect();
    if words.is_empty() { unknown() } else { words.join(", ") }
}

#[cfg(test)]
mod tests {
    use super::super::checks::Verdict;
    use super::super::iface::Napi;
    use super::*;
    use host_links::ethtool::Offload;
    use host_links::link::{Attached, BusDevice, XdpAttachment};

    #[test]
    fn a_command_stands_below_what_it_changes() {
        let check = |check, found: &str, change: Option<&str>| Check {
            check,
            verdict: if change.is_some() { Verdict::Change } else { Verdict::Ok },
            found: found.into(),
            change: change.map(Into::into),
        };
        let text = host(&[check("kernel", "6.18", None), check("SMT", "on", Some("echo off"))]);
        let expected = "ok       kernel  6.18\nchange   SMT     on\n                   echo off\n";
        assert_eq!(text, expected);
    }

    #[test]
    fn a_nic_at_a_glance() {
        let amount = |now, max| Some(Amount { now, max });
        let offload = |on, fixed| Offload { on, fixed };
        let nic = Interface {
            name: "eth0".into(),
            index: 2,
            driver: Some("ixgbe".into()),
            device: Some(BusDevice { bus: "pci".into(), name: "0000:01:00.0".into() }),
            is_up: true,
            has_carrier: true,
            speed_mbit: Some(10_000),
            mtu: 1500,
            mtu_max_single_buffer: 3506,
            rx_queues: Some(4),
            tx_queues: Some(4),
            channels: Some(Channels { combined: amount(4, 63), ..Channels::default() }),
            rings: Some(Rings { rx: amount(512, 8192), tx: amount(512, 8192) }),
            offloads: Some(OffloadSettings::from([
                ("rx-gro", offload(true, false)),
                ("rx-lro", offload(false, false)),
                ("tx-checksum-ipv4", offload(true, true)),
            ])),
            xdp_features: Some(XdpFeatures {
                actions: vec!["basic", "redirect", "xsk-zerocopy"],
                zero_copy_segments_max: Some(1),
                receive_metadata: vec!["timestamp"],
                transmit_metadata: Vec::new(),
            }),
            xdp_program: Some(Attached { mode: XdpAttachment::Native, id: Some(12) }),
            napi: Napi { gro_flush_timeout: Some(0), ..Napi::default() },
            ..Interface::default()
        };
        let text = interface(&nic, &[], "--datapath af-xdp:ifname=eth0");
        let expected = "\
interface      eth0 (number 2)
driver         ixgbe, 0000:01:00.0 on pci
link           up, 10000 Mbit/s
MTU            1500; AF_XDP: in one buffer up to about 3506, not above it
queues         4 receive, 4 transmit; channels: combined 4 of 63
rings          rx 512 of 8192, tx 512 of 8192
offloads       on: rx-gro tx-checksum-ipv4 (fixed); off: rx-lro
XDP            native: basic redirect xsk-zerocopy
zero copy      yes, frames in one buffer
metadata       receive: timestamp; transmit: none
program        attached, native, number 12
NAPI           gro_flush_timeout 0
locked memory  no limit

Nothing to change for AF_XDP.

Then: ringscoped --socket-path /run/ringscope/vm0.sock --datapath af-xdp:ifname=eth0
";
        assert_eq!(text, expected);
    }

    #[test]
    fn what_the_kernel_does_not_report_is_not_available() {
        let text = interface(&Interface { is_virtual: true, ..Interface::default() }, &[], "");
        for line in [
            "driver         none; virtual",
            "queues         not available here",
            "offloads       not available here",
            "XDP            not available here",
            "NAPI           not available here",
        ] {
            assert!(text.contains(line), "no `{line}` in:\n{text}");
        }
    }

    #[test]
    fn advice_is_numbered() {
        let advice = [
            Advice { why: "the first".into(), command: Some("ip link".into()) },
            Advice { why: "the second".into(), command: None },
        ];
        let text = interface(&Interface::default(), &advice, "");
        assert!(text.contains(" 1. the first\n      ip link\n 2. the second\n"), "{text}");
    }
}
