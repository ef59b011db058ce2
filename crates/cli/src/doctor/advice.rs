//! What to change on an interface for AF_XDP, decided from its facts alone.

use host_links::ethtool::{GRO_HW, LRO, RX_VLAN, TX_CHECKSUM, TX_VLAN};
use host_links::holder::Holder;
use serde::Serialize;

use super::iface::Interface;

/// Largest MTU that ringscoped's AF_XDP takes, bytes.
const MTU_MAX: u32 = 9000;
/// Receive rings below this size overrun in a burst of a fast NIC while the reader is interrupted.
const RX_RING_SMALL: u32 = 1024;
/// Recommended size of a receive ring: larger ones only take more cache.
const RX_RING_LARGE: u32 = 2048;
/// Recommended settings for busy polling (`Documentation/networking/napi.rst`).
const DEFER_HARD_IRQS: u32 = 2;
const GRO_FLUSH_TIMEOUT_NS: u64 = 200_000;

/// One thing to change.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct Advice {
    /// The reason.
    pub why: String,
    /// The command that changes it; `None` where there is none.
    pub command: Option<String>,
}

impl Advice {
    #[expect(clippy::unnecessary_wraps, reason = "what a rule returns")]
    fn new(why: impl Into<String>, command: impl Into<String>) -> Option<Self> {
        Some(Self { why: why.into(), command: Some(command.into()) })
    }

    #[expect(clippy::unnecessary_wraps, reason = "what a rule returns")]
    fn without_command(why: impl Into<String>) -> Option<Self> {
        Some(Self { why: why.into(), command: None })
    }
}

/// Decides one thing about an interface. The second argument is its name, quoted for a shell.
type Rule = fn(&Interface, &str) -> Option<Advice>;

/// All rules, most important first: what prevents AF_XDP, then what loses frames, then what costs time.
const RULES: [Rule; 14] = [
    ethernet,
    bond,
    link_up,
    program,
    master,
    mtu,
    |interface, name| device_merges(interface, name, LRO),
    |interface, name| device_merges(interface, name, GRO_HW),
    memlock,
    queues,
    receive_ring,
    busy_polling,
    vlan,
    checksums,
];

/// What to change, most important first.
pub fn advice(interface: &Interface) -> Vec<Advice> {
    let name = shell_word(&interface.name);
    RULES.iter().filter_map(|rule| rule(interface, &name)).collect()
}

/// The `--datapath` of `ringscoped` that fits. It names a mode only where ringscoped would not find it out itself.
pub fn datapath(interface: &Interface) -> String {
    let mode = if interface.is_native() == Some(false) { ",mode=generic" } else { "" };
    let (name, mode) = match &interface.bond_members {
        None => (interface.name.as_str(), mode),
        Some(members) => (members.first().map_or("MEMBER", String::as_str), ""),
    };
    let datapath = format!("af-xdp:ifname={name}{mode}");
    format!("--datapath {}", shell_word(&datapath))
}

/// `word`, quoted for a POSIX shell: the kernel allows nearly every character in an interface's name.
pub fn shell_word(word: &str) -> String {
    let is_plain = |byte: u8| byte.is_ascii_alphanumeric() || b"-_.,:=@/".contains(&byte);
    if word.bytes().all(is_plain) {
        word.to_owned()
    } else {
        format!("'{}'", word.replace('\'', r"'\''"))
    }
}

fn ethernet(interface: &Interface, _: &str) -> Option<Advice> {
    let why = "it carries no Ethernet frames, which a guest's network card sends and receives: ringscoped refuses it; use an \
               Ethernet interface, or a tap (--datapath tap:ifname=NAME)";
    if interface.lacks_ethernet { Advice::without_command(why) } else { None }
}

fn link_up(interface: &Interface, name: &str) -> Option<Advice> {
    if !interface.is_up {
        let why = "the interface is down: AF_XDP sockets on it neither send nor receive";
        Advice::new(why, format!("ip link set dev {name} up"))
    } else if !interface.has_carrier {
        Advice::without_command("no carrier: the cable or the other end is missing or down")
    } else {
        None
    }
}

fn program(interface: &Interface, name: &str) -> Option<Advice> {
    let attached = interface.xdp_program?;
    let id = attached.id.map(|id| format!(" (number {id})")).unwrap_or_default();
    match interface.xdp_program_holders.first() {
        Some(Holder { process, name }) if name == "ringscoped" => Advice::without_command(format!(
            "{name} serves this interface already: its process {process} has attached the XDP program{id}, and a second \
             one is refused"
        )),
        Some(Holder { process, name }) => {
            let why = format!(
                "process {process} ({name}) has attached an XDP program{id}, so the kernel would refuse ringscoped's own; \
                 it leaves with that process"
            );
            Advice::new(why, format!("kill {process}"))
        }
        None => {
            let why = format!(
                "an XDP program is attached{id}, so the kernel would refuse ringscoped's own, and no process that can be \
                 seen here holds it; if the kernel refuses the following, remove the program's file below /sys/fs/bpf"
            );
            Advice::new(why, format!("ip link set dev {name} {}", attached.mode.off()))
        }
    }
}

fn bond(interface: &Interface, _: &str) -> Option<Advice> {
    let members = interface.bond_members.as_ref()?;
    let why = "it is a bond, and AF_XDP sockets on a bond receive nothing in native mode: use one of its members";
    match members.first() {
        Some(member) => {
            let member = shell_word(member);
            Advice::new(
                format!("{why}, and take it out of the bond"),
                format!("ip link set dev {member} nomaster"),
            )
        }
        None => Advice::without_command(format!("{why}; it has none yet")),
    }
}

fn master(interface: &Interface, name: &str) -> Option<Advice> {
    let master = shell_word(interface.master.as_ref()?);
    let why = format!(
        "it belongs to {master}, which sees none of the frames that an AF_XDP socket takes"
    );
    Advice::new(why, format!("ip link set dev {name} nomaster"))
}

fn mtu(interface: &Interface, name: &str) -> Option<Advice> {
    let single = interface.mtu_max_single_buffer;
    let features = interface.xdp_features.as_ref();
    let zero_copy_segments = features
        .filter(|features| features.is_zero_copy())
        .map(|features| features.zero_copy_segments_max.unwrap_or(1));
    let (limit, why) = if features.is_none() {
        (
            single,
            "the kernel does not report whether the driver takes frames over several buffers; up to about this MTU \
             frames fit one",
        )
    } else if !interface.takes_several_buffers() {
        (
            single,
            "the driver takes XDP frames in one buffer only: above about this MTU it refuses the program, or drops \
             longer frames",
        )
    } else if interface.mtu <= MTU_MAX && zero_copy_segments == Some(1) {
        (
            single,
            "zero copy takes frames in one buffer only, up to about this MTU; above it they are copied",
        )
    } else {
        (MTU_MAX, "ringscoped takes frames over several buffers up to this MTU")
    };
    if interface.mtu <= limit {
        return None;
    }
    Advice::new(why, format!("ip link set dev {name} mtu {limit}"))
}

/// The device merges received frames of a flow, by LRO or hardware GRO.
fn device_merges(interface: &Interface, name: &str, offload: &str) -> Option<Advice> {
    let found = interface.offload(offload).filter(|found| found.on)?;
    let why = format!("{offload} merges received frames, which many drivers refuse under XDP");
    if found.fixed {
        return Advice::without_command(format!(
            "{why}; it cannot be changed here: if a native program is refused, use mode=generic"
        ));
    }
    Advice::new(why, format!("ethtool -K {name} {offload} off"))
}

fn memlock(interface: &Interface, _: &str) -> Option<Advice> {
    let memlock = interface.memlock;
    if memlock.is_enough() {
        return None;
    }
    let why = format!(
        "a UMEM is locked memory, and the limit is {}; as root, in the shell that starts ringscoped \
         (systemd: LimitMEMLOCK=infinity)",
        memlock.text()
    );
    Advice::new(why, "ulimit -l unlimited")
}

fn queues(interface: &Interface, name: &str) -> Option<Advice> {
    let queues = interface.rx_queues.filter(|&queues| queues > 1)?;
    let channels = interface.channels.filter(|_| interface.channels_can_be_set != Some(false))?;
    let one = if channels.combined.is_some() {
        "combined 1"
    } else if channels.rx.is_some() && channels.tx.is_some() {
        "rx 1 tx 1"
    } else {
        return None;
    };
    let why = format!(
        "frames are spread over {queues} receive queues by hash, and only a socket on every queue sees all of them. \
         ringscoped binds every queue; for a guest with one queue pair, one queue costs less"
    );
    Advice::new(why, format!("ethtool -L {name} {one}"))
}

fn receive_ring(interface: &Interface, name: &str) -> Option<Advice> {
    let rx = interface.rings?.rx.filter(|rx| rx.now < RX_RING_SMALL.min(rx.max))?;
    let why = format!("a receive ring of {} descriptors is small for a burst", rx.now);
    Advice::new(why, format!("ethtool -G {name} rx {}", rx.max.min(RX_RING_LARGE)))
}

/// Without a device there are no interrupts to avoid.
fn busy_polling(interface: &Interface, name: &str) -> Option<Advice> {
    let napi = interface.napi;
    let defers = napi.napi_defer_hard_irqs.is_none_or(|polls| polls > 0)
        && napi.gro_flush_timeout.is_none_or(|time| time > 0);
    if interface.is_virtual || defers {
        return None;
    }
    let why = "busy polling: the device interrupts between polls unless both of these are set";
    let command = format!(
        "echo {DEFER_HARD_IRQS} > /sys/class/net/{name}/napi_defer_hard_irqs; \
         echo {GRO_FLUSH_TIMEOUT_NS} > /sys/class/net/{name}/gro_flush_timeout"
    );
    Advice::new(why, command)
}

/// With this offload the tag is beside the frame, and an AF_XDP socket gets only the frame.
fn vlan(interface: &Interface, name: &str) -> Option<Advice> {
    let why = "an AF_XDP socket does not see VLAN tags, which are removed from received frames; if tagged frames \
               matter";
    if interface.is_native() == Some(true) && interface.reports("vlan-tag") {
        // The XDP program puts them back.
        return None;
    }
    if interface.driver.as_deref() == Some("veth") {
        // The sender decides.
        if interface.peer_offloads_vlan == Some(false) {
            return None;
        }
        let peer = interface.peer.as_deref().map_or("PEER".into(), shell_word);
        return Advice::new(why, format!("ethtool -K {peer} {TX_VLAN} off"));
    }
    let found = interface.offload(RX_VLAN).filter(|found| found.on)?;
    if found.fixed {
        return Advice::without_command(format!(
            "{why}, use another interface: it cannot be changed here"
        ));
    }
    Advice::new(why, format!("ethtool -K {name} {RX_VLAN} off"))
}

/// The sender's kernel leaves checksums to a device, and a veth has none.
fn checksums(interface: &Interface, _: &str) -> Option<Advice> {
    if interface.driver.as_deref() != Some("veth") || interface.peer_defers_checksums == Some(false)
    {
        return None;
    }
    let peer = interface.peer.as_deref().map_or("PEER".into(), shell_word);
    let why = "the other end leaves checksums unfinished. ringscoped completes those of TCP, UDP and SCTP, also within \
               VXLAN, Geneve, GRE, IP in IP and PPPoE; if its hosts use other tunnels";
    Advice::new(why, format!("ethtool -K {peer} {TX_CHECKSUM} off"))
}

#[cfg(test)]
mod tests {
    use super::super::host::Memlock;
    use super::super::iface::Napi;
    use super::*;
    use host_links::ethtool::{Amount, Channels, Offload, OffloadSettings, Rings};
    use host_links::link::{Attached, XdpAttachment};
    use host_links::xdp::XdpFeatures;

    fn features(actions: &[&'static str]) -> Option<XdpFeatures> {
        Some(XdpFeatures { actions: actions.to_vec(), ..XdpFeatures::default() })
    }

    /// A NIC with nothing to change.
    fn nic() -> Interface {
        Interface {
            name: "eth0".into(),
            driver: Some("ixgbe".into()),
            is_up: true,
            has_carrier: true,
            mtu: 1500,
            mtu_max_single_buffer: 3506,
            rx_queues: Some(1),
            xdp_features: features(&["basic", "redirect", "xsk-zerocopy"]),
            napi: Napi {
                gro_flush_timeout: Some(200_000),
                napi_defer_hard_irqs: Some(2),
                threaded: Some(0),
            },
            memlock: Memlock { bytes: Some(8 << 20), exempt: true },
            ..Interface::default()
        }
    }

    fn commands(interface: &Interface) -> Vec<String> {
        advice(interface).into_iter().map(|advice| advice.command.unwrap_or_default()).collect()
    }

    #[test]
    fn a_nic_that_is_ready_needs_nothing() {
        assert_eq!(advice(&nic()), []);
        assert_eq!(datapath(&nic()), "--datapath af-xdp:ifname=eth0");
    }

    #[test]
    fn what_keeps_it_from_working_comes_before_what_costs_time() {
        let on = Offload { on: true, fixed: false };
        let amount = |now, max| Some(Amount { now, max });
        let interface = Interface {
            is_up: false,
            has_carrier: false,
            mtu: 9000,
            master: Some("br0".into()),
            xdp_program: Some(Attached { mode: XdpAttachment::Native, id: Some(3) }),
            rx_queues: Some(4),
            channels: Some(Channels { combined: amount(4, 8), ..Channels::default() }),
            rings: Some(Rings { rx: amount(512, 4096), tx: None }),
            offloads: Some(OffloadSettings::from([(LRO, on), (RX_VLAN, on)])),
            napi: Napi { napi_defer_hard_irqs: Some(0), ..nic().napi },
            memlock: Memlock { bytes: Some(8 << 20), exempt: false },
            ..nic()
        };
        let expected = [
            "ip link set dev eth0 up",
            "ip link set dev eth0 xdpdrv off",
            "ip link set dev eth0 nomaster",
            "ip link set dev eth0 mtu 3506",
            "ethtool -K eth0 rx-lro off",
            "ulimit -l unlimited",
            "ethtool -L eth0 combined 1",
            "ethtool -G eth0 rx 2048",
            "echo 2 > /sys/class/net/eth0/napi_defer_hard_irqs; \
             echo 200000 > /sys/class/net/eth0/gro_flush_timeout",
            "ethtool -K eth0 rx-vlan-hw-parse off",
        ];
        assert_eq!(commands(&interface), expected);
        // The driver counts its queues and cannot change them.
        let fixed = Interface { channels_can_be_set: Some(false), ..interface };
        let without: Vec<_> =
            expected.into_iter().filter(|it| !it.starts_with("ethtool -L")).collect();
        assert_eq!(commands(&fixed), without);
    }

    #[test]
    fn the_mtu_may_be_large_where_frames_may_lie_in_several_buffers() {
        let with = |xdp_features, mtu| commands(&Interface { xdp_features, mtu, ..nic() });
        let several = features(&["basic", "redirect", "rx-sg"]);
        assert_eq!(with(several.clone(), 9000), [""; 0]);
        assert_eq!(with(several, 9001), ["ip link set dev eth0 mtu 9000"]);
        // One buffer, and not reported.
        for features in [features(&["basic", "redirect"]), None] {
            assert_eq!(with(features.clone(), 3506), [""; 0]);
            assert_eq!(with(features, 3507), ["ip link set dev eth0 mtu 3506"]);
        }
        // Generic mode, as the driver has none of its own.
        assert_eq!(with(features(&[]), 9000), [""; 0]);
    }

    #[test]
    fn zero_copy_may_have_a_limit_of_its_own() {
        let with = |zero_copy_segments_max| {
            let actions = vec!["basic", "redirect", "rx-sg", "xsk-zerocopy"];
            let features =
                XdpFeatures { actions, zero_copy_segments_max, ..XdpFeatures::default() };
            commands(&Interface { xdp_features: Some(features), mtu: 9000, ..nic() })
        };
        assert_eq!(with(Some(1)), ["ip link set dev eth0 mtu 3506"]);
        assert_eq!(with(Some(17)), [""; 0]);
    }

    #[test]
    fn an_interface_without_xdp_of_its_own_takes_the_generic_mode() {
        for actions in [&[][..], &["basic"][..]] {
            let interface = Interface { xdp_features: features(actions), ..nic() };
            assert_eq!(datapath(&interface), "--datapath af-xdp:ifname=eth0,mode=generic");
        }
        // A kernel that does not report it leaves the mode to ringscoped.
        let interface = Interface { xdp_features: None, ..nic() };
        assert_eq!(datapath(&interface), "--datapath af-xdp:ifname=eth0");
    }

    #[test]
    fn in_place_of_a_bond_a_member_of_it_is_recommended() {
        let bond = |members: &[&str]| Interface {
            name: "bond0".into(),
            bond_members: Some(members.iter().map(|&name| name.into()).collect()),
            ..nic()
        };
        let with_members = bond(&["eth2", "eth3"]);
        assert_eq!(commands(&with_members), ["ip link set dev eth2 nomaster"]);
        assert_eq!(datapath(&with_members), "--datapath af-xdp:ifname=eth2");
        assert_eq!(commands(&bond(&[])), [""]);
        assert_eq!(datapath(&bond(&[])), "--datapath af-xdp:ifname=MEMBER");
    }

    #[test]
    fn a_program_leaves_with_the_process_that_holds_it() {
        let held = |name: &str| Interface {
            xdp_program: Some(Attached { mode: XdpAttachment::Native, id: Some(3) }),
            xdp_program_holders: vec![Holder { process: 12, name: name.into() }],
            ..nic()
        };
        assert_eq!(commands(&held("xdp-filter")), ["kill 12"]);
        assert_eq!(commands(&held("ringscoped")), [""]);
        assert!(advice(&held("ringscoped"))[0].why.contains("process 12"));
    }

    #[test]
    fn on_a_veth_the_sender_keeps_the_tags_and_completes_checksums() {
        let veth = |peer: Option<&str>| Interface {
            driver: Some("veth".into()),
            is_virtual: true,
            peer: peer.map(Into::into),
            peer_defers_checksums: Some(false),
            napi: Napi { gro_flush_timeout: Some(0), ..nic().napi },
            ..nic()
        };
        assert_eq!(commands(&veth(Some("veth1"))), ["ethtool -K veth1 tx-vlan-hw-insert off"]);
        assert_eq!(commands(&veth(None)), ["ethtool -K PEER tx-vlan-hw-insert off"]);
        let kept = Interface { peer_offloads_vlan: Some(false), ..veth(Some("veth1")) };
        assert_eq!(commands(&kept), [""; 0]);
        let unfinished = Interface { peer_defers_checksums: Some(true), ..kept };
        assert_eq!(commands(&unfinished), ["ethtool -K veth1 tx-checksum-ip-generic off"]);
        let mut reported = veth(Some("veth1"));
        reported.xdp_features.as_mut().unwrap().receive_metadata = vec!["vlan-tag"];
        assert_eq!(commands(&reported), [""; 0]);
    }

    #[test]
    fn an_interface_without_ethernet_frames_is_not_recommended() {
        let found = advice(&Interface { lacks_ethernet: true, ..nic() });
        assert!(found[0].why.contains("no Ethernet frames"), "{found:?}");
    }

    #[test]
    fn what_is_fixed_has_no_command() {
        let fixed = Offload { on: true, fixed: true };
        let offloads = Some(OffloadSettings::from([(GRO_HW, fixed), (RX_VLAN, fixed)]));
        assert_eq!(commands(&Interface { offloads, ..nic() }), ["", ""]);
        assert_eq!(commands(&Interface { has_carrier: false, ..nic() }), [""]);
    }

    #[test]
    fn names_are_quoted_for_the_shell() {
        assert_eq!(shell_word("eth0.7"), "eth0.7");
        assert_eq!(shell_word("a;b"), "'a;b'");
        assert_eq!(shell_word("a'b"), r"'a'\''b'");
    }
}
