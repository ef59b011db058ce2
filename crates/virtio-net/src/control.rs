//! Commands of the control queue (virtio 1.2, 5.1.6.5).

use virtio_bindings::bindings::virtio_net::{
    VIRTIO_NET_CTRL_ANNOUNCE, VIRTIO_NET_CTRL_ANNOUNCE_ACK, VIRTIO_NET_CTRL_GUEST_OFFLOADS,
    VIRTIO_NET_CTRL_GUEST_OFFLOADS_SET, VIRTIO_NET_CTRL_MAC, VIRTIO_NET_CTRL_MAC_ADDR_SET,
    VIRTIO_NET_CTRL_MQ, VIRTIO_NET_CTRL_MQ_VQ_PAIRS_SET,
};

use crate::MacAddress;
use crate::features::{
    CTRL_GUEST_OFFLOADS, CTRL_MAC_ADDR, CTRL_VQ, GUEST_ANNOUNCE, MULTI_QUEUE, Negotiated, Offloads,
    VERSION_1, without,
};

/// Longest command that is accepted, bytes: class, command, and a value of 8 bytes.
pub const COMMAND_LEN_MAX: usize = 2 + 8;

/// Answer to a command that was carried out: `VIRTIO_NET_OK`.
pub const OK: u8 = 0;
/// Answer to any other command: `VIRTIO_NET_ERR`.
pub const ERR: u8 = 1;

/// A command that the negotiated features allow, with values that they allow.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Command {
    /// `MQ_VQ_PAIRS_SET`: the device uses this many queue pairs (5.1.6.5.5).
    SetPairs(u16),
    /// `GUEST_OFFLOADS_SET`: of the negotiated `GUEST_*` features, these are off (5.1.6.5.6).
    SwitchOff(u64),
    /// `MAC_ADDR_SET`: the guest has this address (5.1.6.5.2).
    SetAddress(MacAddress),
    /// `ANNOUNCE_ACK`: the guest has announced itself (5.1.6.5.4).
    Announced,
}

impl Command {
    /// Reads a command, class and number included, of a guest with these features, whose device has `queue_pairs`. `None`
    /// if it is malformed, unknown, not negotiated, or has a value that is not allowed. Bytes after it are ignored, as
    /// QEMU's device does.
    #[must_use]
    pub fn read(bytes: &[u8], negotiated: Negotiated, queue_pairs: u16) -> Option<Self> {
        let (&[class, number], value) = bytes.split_first_chunk()?;
        let (feature, command) = match (u32::from(class), u32::from(number)) {
            (VIRTIO_NET_CTRL_MQ, VIRTIO_NET_CTRL_MQ_VQ_PAIRS_SET) => {
                let pairs = u16::from_le_bytes(*value.first_chunk()?);
                let is_allowed = (1..=queue_pairs).contains(&pairs);
                (MULTI_QUEUE, is_allowed.then_some(Self::SetPairs(pairs))?)
            }
            (VIRTIO_NET_CTRL_GUEST_OFFLOADS, VIRTIO_NET_CTRL_GUEST_OFFLOADS_SET) => {
                let wanted = u64::from_le_bytes(*value.first_chunk()?);
                let offered = Offloads::ALL.to_guest() & negotiated.0;
                // Segmentation without checksums is none (5.1.3.1).
                let on = without(wanted | VERSION_1, 0);
                let off = Self::SwitchOff(offered & !on);
                (CTRL_GUEST_OFFLOADS, (wanted & !offered == 0).then_some(off)?)
            }
            (VIRTIO_NET_CTRL_MAC, VIRTIO_NET_CTRL_MAC_ADDR_SET) => {
                let address = MacAddress(*value.first_chunk()?);
                (CTRL_MAC_ADDR, address.is_station().then_some(Self::SetAddress(address))?)
            }
            (VIRTIO_NET_CTRL_ANNOUNCE, VIRTIO_NET_CTRL_ANNOUNCE_ACK) => {
                (GUEST_ANNOUNCE, Self::Announced)
            }
            _ => return None,
        };
        negotiated.has(feature).then_some(command)
    }
}

/// The index of the control queue, if the guest negotiated one (5.1.2).
#[must_use]
pub const fn control_queue(negotiated: Negotiated, queue_pairs: u16) -> Option<u16> {
    if !negotiated.has(CTRL_VQ) {
        return None;
    }
    Some(if negotiated.has(MULTI_QUEUE) { 2 * queue_pairs } else { 2 })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_not_allowed_is_no_command() {
        let offloads = Offloads { checksum: true, tso4: true, ..Offloads::default() };
        let all = Negotiated(
            CTRL_VQ | MULTI_QUEUE | CTRL_MAC_ADDR | CTRL_GUEST_OFFLOADS | GUEST_ANNOUNCE,
        );
        let all = Negotiated(all.0 | offloads.to_guest());
        let read = |bytes: &[u8]| Command::read(bytes, all, 4);
        assert_eq!(read(&[4, 0, 1, 0]), Some(Command::SetPairs(1)));
        assert_eq!(read(&[4, 0, 4, 0, 9, 9]), Some(Command::SetPairs(4)));
        for wrong in [&[4, 0, 0, 0][..], &[4, 0, 5, 0], &[4, 0, 1], &[4, 1, 1, 0], &[4], &[]] {
            assert_eq!(read(wrong), None, "{wrong:?}");
        }
        let set = |wanted: u64| read(&[&[5, 0][..], &wanted.to_le_bytes()].concat());
        assert_eq!(set(offloads.to_guest()), Some(Command::SwitchOff(0)));
        assert_eq!(set(0), Some(Command::SwitchOff(offloads.to_guest())));
        assert_eq!(set(1 << 7), Some(Command::SwitchOff(offloads.to_guest())), "no checksum");
        assert_eq!(set(1 << 8), None, "TSO6 was not negotiated");
        assert_eq!(set(1 << 15), None, "no offload");
        let address = [2, 0, 0, 0, 0, 1];
        let command = [&[1, 1][..], &address].concat();
        assert_eq!(read(&command), Some(Command::SetAddress(MacAddress(address))));
        assert_eq!(read(&command[..7]), None);
        assert_eq!(read(&[1, 1, 3, 0, 0, 0, 0, 1]), None, "a group");
        assert_eq!(read(&[1, 1, 0, 0, 0, 0, 0, 0]), None, "no address");
        assert_eq!(read(&[3, 0]), Some(Command::Announced));
        for (bytes, feature) in [
            (&[4, 0, 1, 0][..], MULTI_QUEUE),
            (&command, CTRL_MAC_ADDR),
            (&[5, 0, 0, 0, 0, 0, 0, 0, 0, 0], CTRL_GUEST_OFFLOADS),
            (&[3, 0], GUEST_ANNOUNCE),
        ] {
            assert_eq!(Command::read(bytes, Negotiated(all.0 & !feature), 4), None);
        }
    }

    #[test]
    fn the_control_queue_follows_the_pairs_that_may_be_used() {
        assert_eq!(control_queue(Negotiated(MULTI_QUEUE), 4), None);
        assert_eq!(control_queue(Negotiated(CTRL_VQ), 4), Some(2));
        assert_eq!(control_queue(Negotiated(CTRL_VQ | MULTI_QUEUE), 4), Some(8));
    }
}
