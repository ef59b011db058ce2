//! Frames of every shape, right and wrong, and a checksum computed as in RFC 1071.

use arbitrary::Arbitrary;
use virtio_net::NetHeader;

/// The contents of a checksum field.
#[derive(Arbitrary, Clone, Copy, Debug, PartialEq, Eq)]
pub enum Checksum {
    /// The sum of everything it covers.
    Complete,
    /// The sum of the pseudo header.
    Partial,
    /// Any value.
    Wrong(u16),
}

/// A frame, or several that belong together.
#[derive(Arbitrary, Clone, Debug)]
pub enum Source {
    /// Segments of one flow, each continuing where the one before ends.
    Train {
        /// The first segment.
        shape: Shape,
        /// Number of further segments.
        more: u8,
        /// Step of the identification.
        id_step: u8,
        /// Length of the last segment's payload.
        tail: u16,
        /// Whether the last segment has PSH.
        pushes: bool,
        /// Changes: index of the frame, offset and new value.
        pokes: Vec<(u8, u8, u8)>,
    },
    /// Any bytes.
    Raw(Vec<u8>),
}

/// A TCP or UDP packet over IPv4 or IPv6.
#[derive(Arbitrary, Clone, Debug)]
pub struct Shape {
    /// IPv6 in place of IPv4.
    pub is_v6: bool,
    /// UDP in place of TCP.
    pub is_udp: bool,
    /// Number of VLAN tags, modulo 3.
    pub tags: u8,
    /// Words of options: of IPv4 modulo 11, of IPv6 as an extension header modulo 3.
    pub ip_options: u8,
    /// Words of TCP's options, modulo 11.
    pub tcp_options: u8,
    /// Whether IPv4's DF is set.
    pub is_atomic: bool,
    /// Identification of IPv4.
    pub id: u16,
    /// Sequence number of TCP.
    pub sequence: u32,
    /// Flags of TCP.
    pub flags: u8,
    /// Length of the payload in bytes.
    pub payload: u16,
    /// The payload's first byte, and the step from byte to byte.
    pub bytes: (u8, u8),
    /// The contents of the checksum field.
    pub checksum: Checksum,
    /// Number of padding bytes, modulo 32.
    pub padding: u8,
}

const PSH: u8 = 0x08;
const ACK: u8 = 0x10;

impl Source {
    /// The frames, at most `max`.
    #[must_use]
    pub fn frames(&self, max: usize) -> Vec<Vec<u8>> {
        match self {
            Self::Raw(bytes) => vec![bytes.clone()],
            Self::Train { shape, more, id_step, tail, pushes, pokes } => {
                let count = (usize::from(*more) % 24 + 1).min(max);
                let mut shape = shape.clone();
                if count > 1 {
                    (shape.flags, shape.payload) = (shape.flags & !PSH | ACK, shape.payload % 9000);
                }
                let mut frames = Vec::new();
                for n in 0..count {
                    if n > 0 && n + 1 == count {
                        shape.payload = tail % (shape.payload + 1);
                        shape.flags |= if *pushes { PSH } else { 0 };
                    }
                    frames.push(shape.frame());
                    shape.sequence = shape.sequence.wrapping_add(shape.payload.into());
                    shape.id = shape.id.wrapping_add((id_step % 3).into());
                }
                for &(frame, at, value) in pokes.iter().take(8) {
                    let frame = &mut frames[usize::from(frame) % count];
                    if let Some(byte) = frame.get_mut(usize::from(at)) {
                        *byte = value;
                    }
                }
                frames
            }
        }
    }
}

impl Shape {
    /// Where the IP header begins.
    #[must_use]
    pub fn network_at(&self) -> usize {
        14 + 4 * usize::from(self.tags % 3)
    }

    /// Where the TCP or UDP header begins.
    #[must_use]
    pub fn transport_at(&self) -> usize {
        let options = usize::from(self.ip_options);
        self.network_at()
            + if self.is_v6 { 40 + 8 * (options % 3) } else { 20 + 4 * (options % 11) }
    }

    fn transport_len(&self) -> usize {
        if self.is_udp { 8 } else { 20 + 4 * usize::from(self.tcp_options % 11) }
    }

    const fn protocol(&self) -> u8 {
        if self.is_udp { 17 } else { 6 }
    }

    /// The frame. Lengths that do not fit their field are truncated.
    #[must_use]
    pub fn frame(&self) -> Vec<u8> {
        let mut frame = vec![0x52; 12];
        for tag in 0..self.tags % 3 {
            frame.extend([0x81, 0, 0, tag]);
        }
        frame.extend(if self.is_v6 { [0x86, 0xdd] } else { [0x08, 0x00] });
        let transport = self.transport();
        let len = self.transport_at() - self.network_at() + transport.len();
        if self.is_v6 {
            let extensions = self.ip_options % 3;
            frame.extend([0x60, 0, 0, 7]);
            frame.extend(((len - 40) as u16).to_be_bytes());
            frame.extend([if extensions > 0 { 60 } else { self.protocol() }, 64]);
            frame.extend([0x20; 32]);
            for n in 0..extensions {
                let next = if n + 1 < extensions { 60 } else { self.protocol() };
                frame.extend([next, 0, 1, 4, 0, 0, 0, 0]);
            }
        } else {
            let words = self.ip_options % 11;
            let mut header = vec![0x45 + words, 0];
            header.extend((len as u16).to_be_bytes());
            header.extend(self.id.to_be_bytes());
            header.extend([if self.is_atomic { 0x40 } else { 0 }, 0, 63, self.protocol(), 0, 0]);
            header.extend([10, 0, 0, 1, 10, 0, 0, 2]);
            header.extend(vec![1; 4 * usize::from(words)]);
            let checksum = !sum(&[&header]);
            header[10..12].copy_from_slice(&checksum.to_be_bytes());
            frame.extend(header);
        }
        frame.extend(transport);
        frame.extend(vec![0; usize::from(self.padding % 32)]);
        frame
    }

    fn transport(&self) -> Vec<u8> {
        let mut bytes = vec![0x30, 0x39, 0x00, 0x35];
        let field = if self.is_udp {
            bytes.extend(self.payload.wrapping_add(8).to_be_bytes());
            bytes.extend([0, 0]);
            6
        } else {
            let words = self.tcp_options % 11;
            bytes.extend(self.sequence.to_be_bytes());
            bytes.extend([1, 2, 3, 4, 0x50 + 0x10 * words, self.flags, 5, 6, 0, 0, 0, 0]);
            bytes.extend(vec![1; 4 * usize::from(words)]);
            16
        };
        debug_assert_eq!(bytes.len(), self.transport_len());
        let (first, step) = self.bytes;
        let byte = |n: u16| first.wrapping_add(step.wrapping_mul(n as u8)) ^ (n >> 8) as u8;
        bytes.extend((0..self.payload).map(byte));
        let mut pseudo = if self.is_v6 { vec![0x20; 32] } else { vec![10, 0, 0, 1, 10, 0, 0, 2] };
        pseudo.extend((bytes.len() as u32).to_be_bytes());
        pseudo.extend([0, 0, 0, self.protocol()]);
        let value = match self.checksum {
            Checksum::Wrong(value) => value,
            Checksum::Partial => sum(&[&pseudo]),
            Checksum::Complete => match !sum(&[&pseudo, &bytes]) {
                0 if self.is_udp => 0xffff,
                value => value,
            },
        };
        bytes[field..field + 2].copy_from_slice(&value.to_be_bytes());
        bytes
    }
}

/// A net header: arbitrary bytes, or one that fits the shape of the frame, possibly changed.
#[derive(Arbitrary, Clone, Debug)]
pub enum Header {
    /// Any bytes.
    Raw([u8; 12]),
    /// No work is left.
    Plain,
    /// The checksum is left to compute.
    Checksum,
    /// The frame is left to cut into segments of this length.
    Segments {
        /// Payload of a segment in bytes.
        size: u16,
        /// Whether the header says that the checksum is left, too.
        has_checksum: bool,
        /// The header's value for the length of all headers.
        hdr_len: u16,
    },
}

impl Header {
    /// The net header for the first frame of `source`.
    #[must_use]
    pub fn of(&self, source: &Source) -> NetHeader {
        let shape = match (self, source) {
            (Self::Raw(bytes), _) => return NetHeader::from_bytes(bytes),
            (Self::Plain, _) | (_, Source::Raw(_)) => return NetHeader::PLAIN,
            (_, Source::Train { shape, .. }) => shape,
        };
        let checksum = NetHeader {
            flags: 1,
            csum_start: shape.transport_at() as u16,
            csum_offset: if shape.is_udp { 6 } else { 16 },
            ..NetHeader::PLAIN
        };
        let &Self::Segments { size, has_checksum, hdr_len } = self else { return checksum };
        let has_cwr = !shape.is_udp && shape.flags & 0x80 != 0;
        let gso_type = match (shape.is_udp, shape.is_v6) {
            (true, _) => 5,
            (false, false) => 1,
            (false, true) => 4,
        };
        NetHeader {
            flags: has_checksum.into(),
            gso_type: gso_type | if has_cwr { 0x80 } else { 0 },
            gso_size: size,
            hdr_len,
            ..checksum
        }
    }
}

/// The sum of RFC 1071 over all `parts`, word by word. Each part but the last must have an even length.
#[must_use]
pub fn sum(parts: &[&[u8]]) -> u16 {
    let mut sum = 0_u32;
    for pair in parts.iter().flat_map(|part| part.chunks(2)) {
        sum += u32::from(pair[0]) << 8 | pair.get(1).map_or(0, |&low| u32::from(low));
        sum = (sum & 0xffff) + (sum >> 16);
    }
    sum as u16
}
