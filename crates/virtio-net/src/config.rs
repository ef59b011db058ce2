//! The device configuration space (virtio 1.2, 5.1.4), for front ends that ask the back end for it.

use std::fmt;
use std::str::FromStr;

/// A 48-bit Ethernet address.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct MacAddress(pub [u8; 6]);

impl MacAddress {
    /// Whether one station can have it: it is no group address, and not all zero.
    #[must_use]
    pub const fn is_station(self) -> bool {
        self.0[0] & 1 == 0 && !matches!(self.0, [0, 0, 0, 0, 0, 0])
    }
}

impl FromStr for MacAddress {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, Self::Err> {
        let wrong = || format!("expected an address such as 52:54:00:12:34:56, found '{text}'");
        let mut bytes = [0; 6];
        let mut parts = text.split(':');
        for byte in &mut bytes {
            let part = parts.next().filter(|part| part.len() == 2).ok_or_else(wrong)?;
            *byte = u8::from_str_radix(part, 16).map_err(|_| wrong())?;
        }
        if parts.next().is_some() {
            return Err(wrong());
        }
        if bytes[0] & 1 != 0 {
            return Err(format!(
                "expected an address of one station, found the group address '{text}'"
            ));
        }
        Ok(Self(bytes))
    }
}

impl fmt::Display for MacAddress {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let [a, b, c, d, e, g] = self.0;
        write!(f, "{a:02x}:{b:02x}:{c:02x}:{d:02x}:{e:02x}:{g:02x}")
    }
}

/// Speed and duplex mode of a link, as fields of the configuration space.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct LinkSpeed {
    speed: u32,
    duplex: u8,
}

impl LinkSpeed {
    /// Neither is known.
    pub const UNKNOWN: Self = Self { speed: u32::MAX, duplex: u8::MAX };

    /// A link of `mbit` Mbit/s; more than 2^31 - 1 count as unknown (5.1.4).
    #[must_use]
    pub const fn new(mbit: u32, is_full_duplex: bool) -> Self {
        if mbit > i32::MAX as u32 {
            return Self::UNKNOWN;
        }
        Self { speed: mbit, duplex: is_full_duplex as u8 }
    }
}

/// `struct virtio_net_config`: the fields that a device of ours gives.
#[derive(Clone, Copy, Debug)]
pub struct ConfigSpace {
    bytes: [u8; Self::LEN],
}

impl ConfigSpace {
    /// Up to and with `duplex`.
    const LEN: usize = 17;

    /// The configuration of a device with these properties; the link is up, and `mtu` is in bytes.
    #[must_use]
    pub fn new(mac: Option<MacAddress>, queue_pairs: u16, mtu: u16, link: LinkSpeed) -> Self {
        let mut bytes = [0; Self::LEN];
        if let Some(MacAddress(mac)) = mac {
            bytes[..6].copy_from_slice(&mac);
        }
        bytes[6..8].copy_from_slice(&1_u16.to_le_bytes()); // status: VIRTIO_NET_S_LINK_UP
        bytes[8..10].copy_from_slice(&queue_pairs.to_le_bytes());
        bytes[10..12].copy_from_slice(&mtu.to_le_bytes());
        bytes[12..16].copy_from_slice(&link.speed.to_le_bytes());
        bytes[16] = link.duplex;
        Self { bytes }
    }

    /// The MTU, bytes.
    #[must_use]
    pub fn mtu(&self) -> u16 {
        u16::from_le_bytes([self.bytes[10], self.bytes[11]])
    }

    /// The same with another address.
    #[must_use]
    pub fn with_address(mut self, MacAddress(mac): MacAddress) -> Self {
        self.bytes[..6].copy_from_slice(&mac);
        self
    }

    /// `size` bytes from `offset` on; bytes past the fields we give are 0, as the protocol asks for an
    /// answer of exactly this length.
    #[must_use]
    pub fn read(&self, offset: usize, size: usize) -> Vec<u8> {
        (offset..offset.saturating_add(size))
            .map(|at| self.bytes.get(at).copied().unwrap_or(0))
            .collect()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn addresses_are_read_and_written() {
        let mac: MacAddress = "52:54:00:12:34:56".parse().unwrap();
        assert_eq!(mac.0, [0x52, 0x54, 0, 0x12, 0x34, 0x56]);
        assert_eq!(mac.to_string(), "52:54:00:12:34:56");
        for wrong in
            ["", "52:54:00:12:34", "52:54:00:12:34:56:78", "01:00:00:00:00:01", "5:5:5:5:5:5"]
        {
            assert!(wrong.parse::<MacAddress>().is_err(), "{wrong}");
        }
    }

    #[test]
    fn the_space_has_its_fields_where_the_specification_says() {
        let mac = "52:54:00:12:34:56".parse().ok();
        let config = ConfigSpace::new(mac, 4, 1500, LinkSpeed::new(25_000, true));
        assert_eq!(config.read(0, 12), [0x52, 0x54, 0, 0x12, 0x34, 0x56, 1, 0, 4, 0, 0xdc, 5]);
        assert_eq!(config.read(10, 8), [0xdc, 5, 0xa8, 0x61, 0, 0, 1, 0]);
        let config = ConfigSpace::new(None, 1, 65_535, LinkSpeed::UNKNOWN);
        assert_eq!(config.read(10, 9), [255, 255, 255, 255, 255, 255, 255, 0, 0]);
        assert_eq!(config.read(17, 3), [0; 3]);
        assert_eq!(LinkSpeed::new(u32::MAX - 1, false), LinkSpeed::UNKNOWN);
    }
}
