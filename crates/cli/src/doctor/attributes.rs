//! Netlink attributes: a length, a type and a payload each, nested in one another
//! (`include/uapi/linux/netlink.h`, `struct nlattr`).

/// Length and type.
const HEADER_BYTES: usize = 4;
/// Attributes begin at multiples of this (`NLA_ALIGNTO`).
const ALIGNMENT: usize = 4;
/// The bits of a type that say what its payload is: `NLA_F_NESTED`, `NLA_F_NET_BYTEORDER`.
const FLAGS: u16 = 1 << 15 | 1 << 14;

/// The attributes of a message, or in another attribute. What is cut short ends them.
#[derive(Clone, Copy, Debug, Default)]
pub struct Attributes<'a>(pub &'a [u8]);

impl<'a> Iterator for Attributes<'a> {
    type Item = (u16, &'a [u8]);

    fn next(&mut self) -> Option<Self::Item> {
        let header = self.0.first_chunk::<HEADER_BYTES>()?;
        let length = usize::from(u16::from_ne_bytes([header[0], header[1]]));
        let kind = u16::from_ne_bytes([header[2], header[3]]) & !FLAGS;
        let payload = self.0.get(HEADER_BYTES..length)?;
        let next = length.next_multiple_of(ALIGNMENT).min(self.0.len());
        self.0 = &self.0[next..];
        Some((kind, payload))
    }
}

impl<'a> Attributes<'a> {
    /// The payload of the first attribute of this type.
    pub fn get(mut self, kind: u16) -> Option<&'a [u8]> {
        self.find(|(found, _)| *found == kind).map(|(_, payload)| payload)
    }

    /// Those nested in the first attribute of this type; none where there is no such attribute.
    pub fn nested(self, kind: u16) -> Self {
        Self(self.get(kind).unwrap_or_default())
    }

    /// The same as a byte.
    pub fn u8(self, kind: u16) -> Option<u8> {
        self.get(kind)?.first().copied()
    }

    /// The same as a 16-bit number.
    pub fn u16(self, kind: u16) -> Option<u16> {
        self.get(kind)?.first_chunk().map(|bytes| u16::from_ne_bytes(*bytes))
    }

    /// The same as a 32-bit number.
    pub fn u32(self, kind: u16) -> Option<u32> {
        self.get(kind)?.first_chunk().map(|bytes| u32::from_ne_bytes(*bytes))
    }

    /// The same as a 64-bit number.
    pub fn u64(self, kind: u16) -> Option<u64> {
        self.get(kind)?.first_chunk().map(|bytes| u64::from_ne_bytes(*bytes))
    }

    /// The same as text, which a zero byte ends.
    pub fn text(self, kind: u16) -> Option<String> {
        let bytes = self.get(kind)?.split(|&byte| byte == 0).next()?;
        Some(String::from_utf8_lossy(bytes).into_owned())
    }
}

/// An attribute, with what fills it up to where the next one may begin.
///
/// # Panics
/// When the payload is longer than an attribute may be, 64 KiB.
pub fn attribute(kind: u16, payload: &[u8]) -> Vec<u8> {
    let length = u16::try_from(HEADER_BYTES + payload.len()).expect("a short attribute");
    let mut bytes = [length.to_ne_bytes(), kind.to_ne_bytes()].concat();
    bytes.extend(payload);
    bytes.resize(bytes.len().next_multiple_of(ALIGNMENT), 0);
    bytes
}

/// The same with attributes as its payload.
pub fn nest(kind: u16, attributes: &[u8]) -> Vec<u8> {
    attribute(kind | 1 << 15, attributes)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_written_is_read() {
        let inner = [attribute(1, b"veth\0"), attribute(2, &7u64.to_ne_bytes())].concat();
        let bytes = [attribute(4, &1500u32.to_ne_bytes()), nest(18, &inner)].concat();
        let all = Attributes(&bytes);
        assert_eq!(all.u32(4), Some(1500));
        assert_eq!(all.nested(18).text(1).as_deref(), Some("veth"));
        assert_eq!(all.nested(18).u64(2), Some(7));
        assert_eq!((all.u32(5), all.nested(5).text(1)), (None, None));
        // Shorter than asked for.
        assert_eq!((all.u64(4), all.u8(4), all.u16(4)), (None, Some(220), Some(1500)));
    }

    #[test]
    fn no_bytes_make_it_go_wrong() {
        let good = attribute(1, b"abcde");
        for length in 0..good.len() {
            assert!(Attributes(&good[..length]).count() <= 1, "{length}");
        }
        for length in [0u16, 3, 13, u16::MAX] {
            let mut bad = good.clone();
            bad[..2].copy_from_slice(&length.to_ne_bytes());
            assert_eq!(Attributes(&bad).count(), 0, "{length}");
        }
        assert_eq!(Attributes(&attribute(1, b"")).text(1).as_deref(), Some(""));
    }
}
