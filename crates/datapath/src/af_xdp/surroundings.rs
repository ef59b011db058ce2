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

/// Switches segmentation off at the other end of a veth in generic mode. Returns that, and what may be lost or changed on
/// the way to the guest.
pub fn prepare(device: &Device, program: &Program) -> (Option<Segmentation>, Option<Losses>) {
    let link = Link::numbered(device.index).ok().flatten().unwrap_or_default();
    if link.kind.as_deref() != Some("veth") {
        return (None, None);
    }
    let peer = link.peer.and_then(|index| Link::numbered(index).ok().flatten());
    // An error shows in the losses.
    let segmentation = peer
        .as_ref()
        .filter(|_| program.mode() == XdpMode::Generic)
        .and_then(|peer| Segmentation::switch_off(peer.index, &peer.name).ok());
    let offloads = peer.as_ref().and_then(|peer| ethtool::offloads(peer.index).ok().flatten());
    let reported = XdpFeatures::of(device.index).ok().flatten();
    let has_tags = program.puts_tags_back()
        && reported.is_some_and(|features| features.receive_metadata.contains(&VLAN_TAG));
    let name = peer.as_ref().map_or("PEER", |peer| peer.name.as_str());
    (segmentation, Losses::find(program.mode(), has_tags, offloads.as_ref(), name))
}

/// What may be lost or changed on the way to the guest, with the commands that help.
#[derive(Debug)]
pub struct Losses {
    text: String,
    /// Ordinary traffic may meet it. Otherwise only tunnels of unusual kinds do.
    is_ordinary: bool,
}

impl Losses {
    /// Logs them in one line.
    pub fn log(&self, device: &str) {
        let level = if self.is_ordinary { log::Level::Warn } else { log::Level::Info };
        log::log!(
            level,
            "{device}: the sender at the other end leaves work to a device, so frames may reach the guest {}",
            self.text
        );
    }

    /// What a veth may lose. `offloads`: those of its peer, which is called `peer`, if it can be reached.
    fn find(
        mode: XdpMode,
        has_tags: bool,
        offloads: Option<&OffloadSettings>,
        peer: &str,
    ) -> Option<Self> {
        let is_on = |name| offloads.is_none_or(|all| all.get(name).is_some_and(|it| it.on));
        let segmentation = ["tx-tcp-segmentation", "tx-udp-segmentation"];
        let mut losses = Vec::new();
        if mode == XdpMode::Generic && segmentation.into_iter().any(is_on) {
            losses.push(format!(
                "as joined datagrams, or TCP segments of another size (use mode=native, or ethtool -K {peer} tso off gso \
                 off tx-udp-segmentation off)"
            ));
        }
        if !has_tags && is_on(TX_VLAN) {
            losses.push(format!("without their VLAN tags (ethtool -K {peer} {TX_VLAN} off)"));
        }
        let is_ordinary = !losses.is_empty();
        if is_on(TX_CHECKSUM) {
            losses.push(format!(
                "with pending checksums in tunnels other than VXLAN, Geneve, GRE, IP in IP and PPPoE (ethtool -K {peer} \
                 {TX_CHECKSUM} off)"
            ));
        }
        (!losses.is_empty()).then(|| Self { text: losses.join("; "), is_ordinary })
    }
}

#[cfg(test)]
mod tests {
    use host_links::ethtool::Offload;

    use super::*;

    #[test]
    fn what_the_other_end_leaves_to_this_one_is_said_with_the_command() {
        let on = Offload { on: true, fixed: false };
        let all = OffloadSettings::from([("tx-tcp-segmentation", on), (TX_VLAN, on)]);
        let of = |mode, has_tags, offloads| Losses::find(mode, has_tags, offloads, "veth1");
        let text = |mode, has_tags, offloads| of(mode, has_tags, offloads).unwrap().text;
        let generic = text(XdpMode::Generic, false, Some(&all));
        assert!(generic.contains("ethtool -K veth1 tso off"), "{generic}");
        assert!(generic.ends_with("(ethtool -K veth1 tx-vlan-hw-insert off)"), "{generic}");
        // A peer in another namespace may have them on.
        let unknown = text(XdpMode::Generic, false, None);
        assert!(unknown.starts_with(&generic), "{unknown}");
        assert!(unknown.ends_with("(ethtool -K veth1 tx-checksum-ip-generic off)"), "{unknown}");
        let native = text(XdpMode::Native, false, Some(&all));
        assert_eq!(native, "without their VLAN tags (ethtool -K veth1 tx-vlan-hw-insert off)");
        assert!(of(XdpMode::Native, true, Some(&all)).is_none());
        assert!(of(XdpMode::Generic, false, Some(&OffloadSettings::new())).is_none());
    }

    #[test]
    fn pending_checksums_in_unusual_tunnels_alone_are_no_warning() {
        let on = Offload { on: true, fixed: false };
        let mut all = OffloadSettings::from([(TX_CHECKSUM, on)]);
        let is_ordinary =
            |all: &_| Losses::find(XdpMode::Native, false, Some(all), "veth1").unwrap().is_ordinary;
        assert!(!is_ordinary(&all));
        all.insert(TX_VLAN, on);
        assert!(is_ordinary(&all));
    }
}
