//! What is around an interface that AF_XDP cannot see in a frame: what the sender leaves to the device. It is said at the
//! start, with the command that changes it.
//!
//! On a virtual interface the sender's own stack leaves segmentation, checksums and VLAN tags to a device that is not
//! there. A frame does not say so.

use host_links::ethtool::{self, OffloadSettings, TX_CHECKSUM, TX_VLAN};
use host_links::link::Link;
use host_links::xdp::XdpFeatures;

use super::XdpMode;
use super::device::Device;
use super::program::Program;
use super::segmentation::Segmentation;

/// The driver reports the VLAN tag of a received frame (`xdp-rx-metadata` of the kernel's `netdev` family).
const VLAN_TAG: &str = "vlan-tag";

/// Switches segmentation off at the other end of a veth in generic mode, and warns of what may be lost or changed on the
/// way to the guest.
pub fn prepare(device: &Device, program: &Program) -> Option<Segmentation> {
    let link = Link::numbered(device.index).ok().flatten().unwrap_or_default();
    if link.kind.as_deref() != Some("veth") {
        return None;
    }
    let peer = link.peer.and_then(|index| Link::numbered(index).ok().flatten());
    let segmentation = peer.as_ref().filter(|_| program.mode() == XdpMode::Generic).map(|peer| {
        Segmentation::switch_off(peer.index, &peer.name)
            .inspect(|_| log::info!("{}: segmentation is off at {}", device.name, peer.name))
    });
    // An error shows as the warning that follows.
    let segmentation = segmentation.and_then(Result::ok);
    let offloads = peer.as_ref().and_then(|peer| ethtool::offloads(peer.index).ok().flatten());
    let reported = XdpFeatures::of(device.index).ok().flatten();
    let has_tags = program.puts_tags_back()
        && reported.is_some_and(|features| features.receive_metadata.contains(&VLAN_TAG));
    let name = peer.as_ref().map_or("PEER", |peer| peer.name.as_str());
    if is_on(offloads.as_ref(), TX_CHECKSUM) {
        log::info!(
            "{}: the other end leaves checksums unfinished: those of TCP, UDP and SCTP are completed, also within VXLAN, \
             Geneve, GRE, IP in IP and PPPoE; for other tunnels: ethtool -K {name} {TX_CHECKSUM} off",
            device.name
        );
    }
    for warning in warnings(program.mode(), has_tags, offloads.as_ref(), name) {
        log::warn!("{}: {warning}", device.name);
    }
    segmentation
}

/// Whether an offload is on, or its settings are out of reach.
fn is_on(offloads: Option<&OffloadSettings>, name: &str) -> bool {
    offloads.is_none_or(|all| all.get(name).is_some_and(|it| it.on))
}

/// The warnings for a veth. `offloads`: those of its peer, which is called `peer`, if it can be reached.
fn warnings(
    mode: XdpMode,
    has_tags: bool,
    offloads: Option<&OffloadSettings>,
    peer: &str,
) -> Vec<String> {
    let is_on = |name| is_on(offloads, name);
    let segmentation = ["tx-tcp-segmentation", "tx-udp-segmentation"];
    let mut warnings = Vec::new();
    if mode == XdpMode::Generic && segmentation.iter().any(|name| is_on(name)) {
        warnings.push(format!(
            "in generic mode the other end leaves segmentation to this one, which cannot know the size of the segments: \
             datagrams may arrive joined, and TCP segments with another size; use mode=native, or: ethtool -K {peer} tso off gso off \
             tx-udp-segmentation off"
        ));
    }
    if !has_tags && is_on(TX_VLAN) {
        warnings.push(format!(
            "VLAN tags of frames to the guest are lost: the other end sends them beside the frame; if tagged frames matter: \
             ethtool -K {peer} {TX_VLAN} off"
        ));
    }
    warnings
}

#[cfg(test)]
mod tests {
    use host_links::ethtool::Offload;

    use super::*;

    #[test]
    fn what_the_other_end_leaves_to_this_one_is_said_with_the_command() {
        let on = Offload { on: true, fixed: false };
        let all = OffloadSettings::from([("tx-tcp-segmentation", on), (TX_VLAN, on)]);
        let of = |mode, has_tags, offloads| warnings(mode, has_tags, offloads, "veth1");
        let generic = of(XdpMode::Generic, false, Some(&all));
        assert_eq!(generic.len(), 2);
        assert!(generic[0].contains("ethtool -K veth1 tso off"), "{generic:?}");
        assert!(generic[1].ends_with("ethtool -K veth1 tx-vlan-hw-insert off"), "{generic:?}");
        // A peer in another namespace may have them on.
        assert_eq!(of(XdpMode::Generic, false, None).len(), 2);
        assert_eq!(of(XdpMode::Native, false, Some(&all)).len(), 1);
        assert_eq!(of(XdpMode::Native, true, Some(&all)), [""; 0]);
        assert_eq!(of(XdpMode::Generic, false, Some(&OffloadSettings::new())), [""; 0]);
    }
}
