//! Attributes of the families that no crate knows: a length, a type and a payload each, nested in one another
//! (`include/uapi/linux/netlink.h`, `struct nlattr`).

use netlink_packet_core::{NlaBuffer, NlasIterator, parse_string, parse_u32, parse_u64};

/// All attributes in `bytes`. One that is cut short ends them.
pub fn all(bytes: &[u8]) -> impl Iterator<Item = NlaBuffer<&[u8]>> {
    NlasIterator::new(bytes).map_while(Result::ok)
}

/// The first attribute of a type.
pub fn first(bytes: &[u8], kind: u16) -> Option<NlaBuffer<&[u8]>> {
    all(bytes).find(|attribute| attribute.kind() == kind)
}

/// Its value, as a number of 32 bits.
pub fn u32(bytes: &[u8], kind: u16) -> Option<u32> {
    parse_u32(first(bytes, kind)?.value()).ok()
}

/// Its value, as a number of 64 bits.
pub fn u64(bytes: &[u8], kind: u16) -> Option<u64> {
    parse_u64(first(bytes, kind)?.value()).ok()
}

/// Its value, as text.
pub fn text(bytes: &[u8], kind: u16) -> Option<String> {
    parse_string(first(bytes, kind)?.value()).ok()
}

/// Answers as the kernel writes them, for tests.
#[cfg(test)]
pub mod fake {
    use netlink_packet_core::{DefaultNla, Emitable};

    /// An attribute.
    pub fn attribute(kind: u16, value: &[u8]) -> Vec<u8> {
        let attribute = DefaultNla::new(kind, value.to_vec());
        let mut bytes = vec![0; attribute.buffer_len()];
        attribute.emit(&mut bytes);
        bytes
    }

    /// An attribute that holds a number.
    pub fn number(kind: u16, value: u32) -> Vec<u8> {
        attribute(kind, &value.to_ne_bytes())
    }
}

#[cfg(test)]
mod tests {
    use super::fake::{attribute, number};
    use super::*;

    #[test]
    fn no_bytes_make_it_go_wrong() {
        let good = attribute(1, b"abcde\0");
        assert_eq!(text(&good, 1).as_deref(), Some("abcde"));
        for length in 0..good.len() - 2 {
            assert_eq!(all(&good[..length]).count(), 0, "{length}");
        }
        for length in [0u16, 3, 13, u16::MAX] {
            let mut bad = good.clone();
            bad[..2].copy_from_slice(&length.to_ne_bytes());
            assert_eq!(all(&bad).count(), 0, "{length}");
        }
        // Not as long as what is asked for.
        assert_eq!((u64(&number(4, 1500), 4), u32(&number(4, 1500), 4)), (None, Some(1500)));
    }
}
