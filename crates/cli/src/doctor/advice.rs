//! What to change on an interface for AF_XDP, decided from its facts alone.

use serde::Serialize;

use super::iface::Interface;
use host_links::ethtool::{GRO_HW, LRO, RX_VLAN, TX_VLAN};
use host_links::link::XdpMode;

/// The largest MTU that ringscoped's AF_XDP takes.
const MTU_MAX: u32 = 9000;
/// Below it a burst of a fast NIC overruns a receive ring while the reader is away for a moment.
const RX_RING_SMALL: u32 = 1024;
/// As large as helps; larger rings only take more cache.
const RX_RING_LARGE: u32 = 2048;
/// What `Documentation/networking/napi.rst` and the busy polling of AF_XDP go by.
const DEFER_HARD_IRQS: u32 = 2;
const GRO_FLUSH_TIMEOUT_NS: u64 = 200_000;

/// One thing to change.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct Advice {
    /// What is the matter with it as it is.
    pub why: String,
    /// The command that changes it; nothing where there is none.
    pub command: Option<String>,
}

impl Advice {
    fn new(why: impl Into<String>, command: impl Into<String>) -> Self {
        Self { why: why.into(), command: Some(command.into()) }
    }

    fn without_command(why: impl Into<String>) -> Self {
        Self { why: why.into(), command: None }
    }
}

/// What to change, in the order of weight: first what keeps AF_XDP from working, then what costs frames,
/// then what costs time.
pub fn advice(interface: &Interface) -> Vec<Advice> {
    let rules: [fn(&Interface) -> Vec<Advice>; 9] =
        [link_up, program, master, mtu, merging, memlock, queues, speed, vlan];
    rules.iter().flat_map(|rule| rule(interface)).collect()
}

/// The flag of `ringscoped` that fits. Modes that it finds out itself are left to it.
pub fn datapath(interface: &Interface) -> String {
    let mode = if interface.is_native() == Some(false) { ",mode=generic" } else { "" };
    let datapath = format!("af-xdp:ifname={}{mode}", interface.name);
    format!("--datapath {}", shell_word(&datapath))
}

/// `word` as a POSIX shell takes it for itself: the kernel allows nearly every character in a name.
fn shell_word(word: &str) -> String {
    let is_plain = |byte: u8| byte.is_ascii_alphanumeric() || b"-_.,:=@/".contains(&byte);
    if word.bytes().all(is_plain) {
        word.to_owned()
    } else {
        format!("'{}'", word.replace('\'', r"'\''"))
    }
}

fn link_up(interface: &Interface) -> Vec<Advice> {
    let name = shell_word(&interface.name);
    if !interface.is_up {
        let why = "the interface is down: AF_XDP sockets on it neither send nor receive";
        vec![Advice::new(why, format!("ip link set dev {name} up"))]
    } else if !interface.has_carrier {
        vec![Advice::without_command("no carrier: cable, or the other end, is missing or down")]
    } else {
        Vec::new()
    }
}

fn program(interface: &Interface) -> Vec<Advice> {
    let Some(attached) = interface.xdp_program else { return Vec::new() };
    let name = shell_word(&interface.name);
    let off = match attached.mode {
        XdpMode::Generic => "xdpgeneric off",
        XdpMode::Native => "xdpdrv off",
        XdpMode::Hardware => "xdpoffload off",
        XdpMode::Several => "xdp off",
    };
    let id = attached.id.map(|id| format!(" (program {id})")).unwrap_or_default();
    let why = format!(
        "an XDP program is attached{id}, and ringscoped's own would be refused: end its owner, or"
    );
    vec![Advice::new(why, format!("ip link set dev {name} {off}"))]
}

fn master(interface: &Interface) -> Vec<Advice> {
    let Some(master) = &interface.master else { return Vec::new() };
    let why = format!(
        "it belongs to {}, which sees none of the frames that an AF_XDP socket takes",
        shell_word(master)
    );
    vec![Advice::new(why, format!("ip link set dev {} nomaster", shell_word(&interface.name)))]
}

fn mtu(interface: &Interface) -> Vec<Advice> {
    let single = interface.mtu_max_single_buffer;
    let zero_copy_segments = interface
        .xdp_features
        .as_ref()
        .filter(|features| features.is_zero_copy())
        .map(|features| features.zero_copy_segments_max.unwrap_or(1));
    let (limit, why) = if interface.xdp_features.is_none() {
        (
            single,
            "whether the driver takes frames over several buffers is not told; up to about this MTU \
                  it need not",
        )
    } else if !interface.takes_several_buffers() {
        (
            single,
            "the driver takes XDP frames in one buffer only: it refuses the program above about \
                  this MTU, or drops what is longer",
        )
    } else if interface.mtu <= MTU_MAX && zero_copy_segments == Some(1) {
        (
            single,
            "zero copy takes frames in one buffer only, up to about this MTU; above it they are copied",
        )
    } else {
        (MTU_MAX, "frames over several buffers are taken up to this MTU")
    };
    if interface.mtu <= limit {
        return Vec::new();
    }
    let name = shell_word(&interface.name);
    vec![Advice::new(why, format!("ip link set dev {name} mtu {limit}"))]
}

/// The device's own merging of received frames.
fn merging(interface: &Interface) -> Vec<Advice> {
    let name = shell_word(&interface.name);
    let on = |offload: &&str| interface.offload(offload).is_some_and(|it| it.on);
    let merging = [LRO, GRO_HW].into_iter().filter(on);
    let advice = merging.map(|offload| {
        let why = format!("{offload} makes several frames one, which many drivers refuse under XDP");
        match interface.offload(offload) {
            Some(it) if it.fixed => Advice::without_command(format!(
                "{why}; it cannot be changed here: if a native program is refused, take mode=generic"
            )),
            _ => Advice::new(why, format!("ethtool -K {name} {offload} off")),
        }
    });
    advice.collect()
}

fn memlock(interface: &Interface) -> Vec<Advice> {
    let memlock = interface.memlock;
    if memlock.is_enough() {
        return Vec::new();
    }
    let why = format!(
        "a UMEM is locked memory, of which {} are allowed; as root, in the shell that starts ringscoped \
         (systemd: LimitMEMLOCK=infinity)",
        memlock.text()
    );
    vec![Advice::new(why, "ulimit -l unlimited")]
}

fn queues(interface: &Interface) -> Vec<Advice> {
    let Some(queues @ 2..) = interface.rx_queues else { return Vec::new() };
    let Some(channels) = interface.channels else { return Vec::new() };
    let one = if channels.combined.is_some() {
        "combined 1"
    } else if channels.rx.is_some() && channels.tx.is_some() {
        "rx 1 tx 1"
    } else {
        return Vec::new();
    };
    let why = format!(
        "frames are spread over {queues} receive queues by their hash, and only sockets on every queue \
         see all of them: ringscoped binds all; with one queue pair a guest, one queue costs less"
    );
    vec![Advice::new(why, format!("ethtool -L {} {one}", shell_word(&interface.name)))]
}

/// Ring size and interrupts of a device.
fn speed(interface: &Interface) -> Vec<Advice> {
    let name = shell_word(&interface.name);
    let mut advice = Vec::new();
    if let Some(rx) = interface.rings.and_then(|rings| rings.rx)
        && rx.now < RX_RING_SMALL.min(rx.max)
    {
        let why = format!("{} receive descriptors a queue are few for a burst", rx.now);
        let size = rx.max.min(RX_RING_LARGE);
        advice.push(Advice::new(why, format!("ethtool -G {name} rx {size}")));
    }
    // Without a device there are no interrupts to keep off.
    if !interface.is_virtual {
        let napi = interface.napi;
        let defers = napi.napi_defer_hard_irqs.is_none_or(|polls| polls > 0)
            && napi.gro_flush_timeout.is_none_or(|time| time > 0);
        if !defers {
            let why = "busy polling: the device interrupts between the polls unless both of these are set";
            let command = format!(
                "echo {DEFER_HARD_IRQS} > /sys/class/net/{name}/napi_defer_hard_irqs; \
                 echo {GRO_FLUSH_TIMEOUT_NS} > /sys/class/net/{name}/gro_flush_timeout"
            );
            advice.push(Advice::new(why, command));
        }
    }
    advice
}

/// Tags travel beside a frame where an offload takes them out, and an AF_XDP socket gets the frame alone.
fn vlan(interface: &Interface) -> Vec<Advice> {
    let why = "VLAN tags of received frames are taken out, and lost to an AF_XDP socket; if tagged frames \
               matter";
    if interface.driver.as_deref() == Some("veth") {
        // Its sender decides.
        if interface.peer_offloads_vlan == Some(false) {
            return Vec::new();
        }
        let peer = interface.peer.as_deref().map_or("PEER".into(), shell_word);
        return vec![Advice::new(why, format!("ethtool -K {peer} {TX_VLAN} off"))];
    }
    match interface.offload(RX_VLAN) {
        Some(it) if it.on && it.fixed => vec![Advice::without_command(format!(
            "{why}: this cannot be changed here, so take another interface"
        ))],
        Some(it) if it.on => {
            let name = shell_word(&interface.name);
            vec![Advice::new(why, format!("ethtool -K {name} {RX_VLAN} off"))]
        }
        _ => Vec::new(),
    }
}

#[cfg(test)]
mod tests {
    use super::super::host::Memlock;
    use super::super::iface::Napi;
    use super::*;
    use host_links::ethtool::{Amount, Channels, Offload, Offloads, Rings};
    use host_links::link::Attached;
    use host_links::xdp::XdpFeatures;

    fn features(actions: &[&'static str]) -> Option<XdpFeatures> {
        Some(XdpFeatures { actions: actions.to_vec(), ..XdpFeatures::default() })
    }

    /// A NIC on which nothing is to be changed.
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
            xdp_program: Some(Attached { mode: XdpMode::Native, id: Some(3) }),
            rx_queues: Some(4),
            channels: Some(Channels { combined: amount(4, 8), ..Channels::default() }),
            rings: Some(Rings { rx: amount(512, 4096), tx: None }),
            offloads: Some(Offloads::from([(LRO, on), (RX_VLAN, on)])),
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
    }

    #[test]
    fn the_mtu_may_be_large_where_frames_may_lie_in_several_buffers() {
        let with = |xdp_features, mtu| commands(&Interface { xdp_features, mtu, ..nic() });
        let several = features(&["basic", "redirect", "rx-sg"]);
        assert_eq!(with(several.clone(), 9000), [""; 0]);
        assert_eq!(with(several, 9001), ["ip link set dev eth0 mtu 9000"]);
        // One buffer, and not told.
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
        // A kernel that does not tell leaves it to be tried.
        let interface = Interface { xdp_features: None, ..nic() };
        assert_eq!(datapath(&interface), "--datapath af-xdp:ifname=eth0");
    }

    #[test]
    fn on_a_veth_the_sender_keeps_the_tags() {
        let veth = |peer: Option<&str>| Interface {
            driver: Some("veth".into()),
            is_virtual: true,
            peer: peer.map(Into::into),
            napi: Napi { gro_flush_timeout: Some(0), ..nic().napi },
            ..nic()
        };
        assert_eq!(commands(&veth(Some("veth1"))), ["ethtool -K veth1 tx-vlan-hw-insert off"]);
        assert_eq!(commands(&veth(None)), ["ethtool -K PEER tx-vlan-hw-insert off"]);
        let kept = Interface { peer_offloads_vlan: Some(false), ..veth(Some("veth1")) };
        assert_eq!(commands(&kept), [""; 0]);
    }

    #[test]
    fn what_is_fixed_has_no_command() {
        let fixed = Offload { on: true, fixed: true };
        let offloads = Some(Offloads::from([(GRO_HW, fixed), (RX_VLAN, fixed)]));
        assert_eq!(commands(&Interface { offloads, ..nic() }), ["", ""]);
        assert_eq!(commands(&Interface { has_carrier: false, ..nic() }), [""]);
    }

    #[test]
    fn names_reach_the_shell_as_they_are() {
        assert_eq!(shell_word("eth0.7"), "eth0.7");
        assert_eq!(shell_word("a;b"), "'a;b'");
        assert_eq!(shell_word("a'b"), r"'a'\''b'");
    }
}
