//! Captures as pcapng files (IETF draft-ietf-opsawg-pcapng): the blocks that a capture of one interface needs, and the
//! [comment](mod@comment) that a packet has about its burst. Captures of the daemon and reports both write them.
//!
//! All numbers are little-endian.

pub mod comment;

use burst_trace::Direction;

/// Section Header Block (4.1).
const SECTION_HEADER: u32 = 0x0A0D_0D0A;
/// Interface Description Block (4.2).
const INTERFACE_DESCRIPTION: u32 = 1;
/// Interface Statistics Block (4.6).
const INTERFACE_STATISTICS: u32 = 5;
/// Enhanced Packet Block (4.3).
const ENHANCED_PACKET: u32 = 6;

const BYTE_ORDER_MAGIC: u32 = 0x1A2B_3C4D;
/// `LINKTYPE_ETHERNET`.
const ETHERNET: u16 = 1;
/// Time stamps count 10^-9 seconds (`if_tsresol`).
const NANOSECONDS: u8 = 9;

/// The options' codes (3.5, 4.1 to 4.6).
mod option {
    pub const END: u16 = 0;
    pub const COMMENT: u16 = 1;
    pub const SHB_USERAPPL: u16 = 4;
    pub const IF_NAME: u16 = 2;
    pub const IF_DESCRIPTION: u16 = 3;
    pub const IF_TSRESOL: u16 = 9;
    pub const EPB_FLAGS: u16 = 2;
    pub const EPB_QUEUE: u16 = 6;
    pub const ISB_IFRECV: u16 = 4;
    pub const ISB_IFDROP: u16 = 5;
}

/// Direction of a packet, as seen from the interface, as in `epb_flags` (4.3.1).
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[repr(u32)]
pub enum PacketDirection {
    /// The interface received it.
    Inbound = 1,
    /// The interface sent it.
    Outbound = 2,
}

impl PacketDirection {
    /// The direction of a burst: the guest's interface sent what the guest sent.
    #[must_use]
    pub const fn of(direction: Direction) -> Self {
        match direction {
            Direction::Tx => Self::Outbound,
            Direction::Rx => Self::Inbound,
        }
    }
}

/// A packet, for an Enhanced Packet Block.
#[derive(Clone, Copy, Debug)]
pub struct Packet<'p> {
    /// Nanoseconds since 1970.
    pub time_ns: u64,
    /// The queue of the interface that it went through, if known.
    pub queue: Option<u16>,
    /// Its direction, if known.
    pub direction: Option<PacketDirection>,
    /// The captured bytes.
    pub bytes: &'p [u8],
    /// Its length, bytes.
    pub original_len: u32,
    /// Text about it.
    pub comment: &'p str,
}

/// Totals of a capture, for an Interface Statistics Block.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Totals {
    /// Packets that the interface saw.
    pub seen: u64,
    /// Packets of those that are not in the file.
    pub left_out: u64,
}

/// Appends the beginning of a file: a section with one Ethernet interface.
pub fn begin(out: &mut Vec<u8>, application: &str, name: &str, description: &str) {
    block(out, SECTION_HEADER, |out| {
        out.extend(BYTE_ORDER_MAGIC.to_le_bytes());
        // Version 1.0.
        out.extend([1, 0, 0, 0]);
        // The section's length is not known.
        out.extend(u64::MAX.to_le_bytes());
        put(out, option::SHB_USERAPPL, application.as_bytes());
        put(out, option::END, &[]);
    });
    block(out, INTERFACE_DESCRIPTION, |out| {
        out.extend(ETHERNET.to_le_bytes());
        // Reserved; no limit to a packet's length.
        out.extend([0; 2 + 4]);
        put(out, option::IF_NAME, name.as_bytes());
        put(out, option::IF_DESCRIPTION, description.as_bytes());
        put(out, option::IF_TSRESOL, &[NANOSECONDS]);
        put(out, option::END, &[]);
    });
}

/// Appends a packet.
pub fn packet(out: &mut Vec<u8>, packet: &Packet<'_>) {
    block(out, ENHANCED_PACKET, |out| {
        out.extend(0_u32.to_le_bytes());
        time(out, packet.time_ns);
        out.extend(length(packet.bytes.len()).to_le_bytes());
        out.extend(packet.original_len.to_le_bytes());
        padded(out, packet.bytes);
        if let Some(direction) = packet.direction {
            put(out, option::EPB_FLAGS, &(direction as u32).to_le_bytes());
        }
        if let Some(queue) = packet.queue {
            put(out, option::EPB_QUEUE, &u32::from(queue).to_le_bytes());
        }
        put(out, option::COMMENT, packet.comment.as_bytes());
        put(out, option::END, &[]);
    });
}

/// Appends the totals until `time_ns`.
pub fn statistics(out: &mut Vec<u8>, time_ns: u64, totals: Totals) {
    block(out, INTERFACE_STATISTICS, |out| {
        out.extend(0_u32.to_le_bytes());
        time(out, time_ns);
        put(out, option::ISB_IFRECV, &totals.seen.to_le_bytes());
        put(out, option::ISB_IFDROP, &totals.left_out.to_le_bytes());
        put(out, option::END, &[]);
    });
}

/// Returns the end of the last block that is whole within the first `len` bytes of `blocks`, and the number of packets
/// after it.
#[must_use]
pub fn whole_blocks(blocks: &[u8], len: usize) -> (usize, u64) {
    let number = |at: usize| {
        let bytes = blocks.get(at..at + 4)?;
        Some(u32::from_le_bytes(bytes.try_into().ok()?))
    };
    let (mut at, mut whole, mut missing) = (0, 0, 0);
    // Block type and total length.
    while let (Some(kind), Some(block_len)) = (number(at), number(at + 4)) {
        at += (block_len as usize).max(8);
        if at <= len {
            whole = at;
        } else if kind == ENHANCED_PACKET {
            missing += 1;
        }
    }
    (whole, missing)
}

/// The high half of a stamp comes first (4.3).
#[expect(clippy::cast_possible_truncation, reason = "two halves")]
fn time(out: &mut Vec<u8>, time_ns: u64) {
    out.extend(((time_ns >> 32) as u32).to_le_bytes());
    out.extend((time_ns as u32).to_le_bytes());
}

/// Appends a block. Its length stands before and after what `body` appends (3.1).
fn block(out: &mut Vec<u8>, kind: u32, body: impl FnOnce(&mut Vec<u8>)) {
    let start = out.len();
    out.extend(kind.to_le_bytes());
    out.extend([0; 4]);
    body(out);
    let len = length(out.len() - start + 4).to_le_bytes();
    out[start + 4..start + 8].copy_from_slice(&len);
    out.extend(len);
}

/// Appends an option (3.5), cut to the longest that an option can be.
fn put(out: &mut Vec<u8>, code: u16, value: &[u8]) {
    let len = u16::try_from(value.len()).unwrap_or(u16::MAX);
    out.extend(code.to_le_bytes());
    out.extend(len.to_le_bytes());
    padded(out, &value[..len.into()]);
}

fn padded(out: &mut Vec<u8>, bytes: &[u8]) {
    out.extend_from_slice(bytes);
    out.extend(std::iter::repeat_n(0, bytes.len().next_multiple_of(4) - bytes.len()));
}

#[expect(
    clippy::cast_possible_truncation,
    reason = "a frame is below 2^17 bytes, its comment 2^16"
)]
const fn length(len: usize) -> u32 {
    len as u32
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_packet_is_laid_out_as_the_draft_says() {
        let mut out = Vec::new();
        let (time_ns, direction) = (0x0123_4567_89ab_cdef, Some(PacketDirection::Outbound));
        let (bytes, original_len) = (&[9; 5], 7);
        packet(
            &mut out,
            &Packet { time_ns, queue: Some(3), direction, bytes, original_len, comment: "abc" },
        );
        let expected = [
            &[6, 0, 0, 0, 68, 0, 0, 0, 0, 0, 0, 0][..],
            &[0x67, 0x45, 0x23, 0x01, 0xef, 0xcd, 0xab, 0x89, 5, 0, 0, 0, 7, 0, 0, 0],
            &[9, 9, 9, 9, 9, 0, 0, 0],
            &[2, 0, 4, 0, 2, 0, 0, 0],
            &[6, 0, 4, 0, 3, 0, 0, 0],
            &[1, 0, 3, 0, b'a', b'b', b'c', 0],
            &[0, 0, 0, 0],
            &[68, 0, 0, 0],
        ];
        assert_eq!(out, expected.concat());
    }

    #[test]
    fn blocks_are_whole_or_missing() {
        let mut out = Vec::new();
        begin(&mut out, "a", "b", "c");
        let start = out.len();
        let (time_ns, queue, direction, comment) = (1, None, None, "");
        for _ in 0..3 {
            let bytes = &[7; 100];
            packet(
                &mut out,
                &Packet { time_ns, queue, direction, bytes, original_len: 100, comment },
            );
        }
        let each = (out.len() - start) / 3;
        assert_eq!(whole_blocks(&out, out.len()), (out.len(), 0));
        assert_eq!(whole_blocks(&out, start + each), (start + each, 2));
        assert_eq!(whole_blocks(&out, start + 2 * each - 1), (start + each, 2));
        assert_eq!(whole_blocks(&out, start), (start, 3));
        assert!(whole_blocks(&out, 5).0 == 0 && whole_blocks(&[], 0) == (0, 0));
    }

    #[test]
    fn every_block_says_its_length_at_both_ends() {
        let mut out = Vec::new();
        begin(&mut out, "test", "vm0", "a guest");
        statistics(&mut out, 1, Totals { seen: 2, left_out: 1 });
        let word = |at: usize| {
            u32::from_le_bytes(out[at..at + 4].try_into().expect("four bytes")) as usize
        };
        let (mut at, mut kinds) = (0, Vec::new());
        while at < out.len() {
            let len = word(at + 4);
            assert!(len % 4 == 0 && word(at + len - 4) == len);
            kinds.push(word(at));
            at += len;
        }
        assert_eq!(kinds, [0x0A0D_0D0A, 1, 5]);
    }
}
