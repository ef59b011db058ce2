//! Packets of every shape, built from nothing, with checksums added up word by word.

use proptest::collection::vec;
use proptest::prelude::*;
use virtio_net::NetHeader;
use virtio_net::header::{GSO_ECN, GSO_TCPV4, GSO_TCPV6, GSO_UDP_L4, NEEDS_CSUM};

pub const FIN: u8 = 0x01;
pub const PSH: u8 = 0x08;
pub const CWR: u8 = 0x80;

/// What is in a checksum field.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Checksum {
    /// The pseudo header's sum.
    Partial,
    /// Everything's.
    Complete,
}

/// A TCP or UDP packet over IPv4 or IPv6.
#[derive(Clone, Debug)]
pub struct Shape {
    pub is_v6: bool,
    pub is_tcp: bool,
    /// Ethernet types of VLAN tags.
    pub tags: Vec<u16>,
    /// IPv4 options, in words of 4 bytes.
    pub ip_options: usize,
    /// IPv6 extension headers: which, and how long, in words of 8 bytes.
    pub extensions: Vec<(u8, u8)>,
    pub tcp_options: usize,
    pub id: u16,
    pub sequence: u32,
    pub flags: u8,
    pub addresses: [u8; 32],
}

pub fn shape() -> impl Strategy<Value = Shape> {
    let tags = vec(prop_oneof![Just(0x8100), Just(0x88a8)], 0..3);
    let extensions = vec((prop_oneof![Just(0), Just(43), Just(60)], 0..2_u8), 0..3);
    (
        any::<[bool; 2]>(),
        tags,
        0..=10_usize,
        extensions,
        0..=10_usize,
        any::<(u16, u32, u8)>(),
        any::<[u8; 32]>(),
    )
        .prop_map(
            |([is_v6, is_tcp], tags, ip_options, extensions, tcp_options, numbers, addresses)| {
                let (id, sequence, flags) = numbers;
                let extensions = if is_v6 { extensions } else { Vec::new() };
                Shape {
                    is_v6,
                    is_tcp,
                    tags,
                    ip_options,
                    extensions,
                    tcp_options,
                    id,
                    sequence,
                    flags,
                    addresses,
                }
            },
        )
}

/// TCP over IPv4 with time stamps.
pub fn tcp4() -> Shape {
    Shape {
        is_v6: false,
        is_tcp: true,
        tags: Vec::new(),
        ip_options: 0,
        extensions: Vec::new(),
        tcp_options: 3,
        id: 7,
        sequence: 0xffff_f000,
        flags: PSH | 0x10,
        addresses: [10; 32],
    }
}

/// UDP without anything more.
pub fn udp(is_v6: bool) -> Shape {
    Shape { is_v6, is_tcp: false, ..tcp4() }
}

impl Shape {
    /// Where the IP header begins.
    pub fn network_at(&self) -> usize {
        14 + 4 * self.tags.len()
    }

    /// Where the TCP or UDP header begins.
    pub fn transport_at(&self) -> usize {
        let extensions: usize =
            self.extensions.iter().map(|(_, words)| 8 + 8 * usize::from(*words)).sum();
        self.network_at() + if self.is_v6 { 40 + extensions } else { 20 + 4 * self.ip_options }
    }

    pub fn payload_at(&self) -> usize {
        self.transport_at() + if self.is_tcp { 20 + 4 * self.tcp_options } else { 8 }
    }

    pub fn checksum_offset(&self) -> usize {
        if self.is_tcp { 16 } else { 6 }
    }

    /// The frame.
    pub fn with(&self, payload: &[u8], checksum: Checksum) -> Vec<u8> {
        let mut frame = vec![0x52; 12];
        for (tag, id) in self.tags.iter().zip(1_u16..) {
            frame.extend(tag.to_be_bytes());
            frame.extend(id.to_be_bytes());
        }
        frame.extend(if self.is_v6 { [0x86, 0xdd] } else { [0x08, 0x00] });
        let transport = self.transport(payload, checksum);
        frame.extend(self.network(transport.len()));
        frame.extend(transport);
        frame
    }

    fn protocol(&self) -> u8 {
        if self.is_tcp { 6 } else { 17 }
    }

    fn network(&self, transport_len: usize) -> Vec<u8> {
        let len = u16::try_from(self.transport_at() - self.network_at() + transport_len).unwrap();
        if self.is_v6 {
            let first = self.extensions.first().map_or(self.protocol(), |(first, _)| *first);
            let mut header = vec![0x60, 0, 0, 7];
            header.extend((len - 40).to_be_bytes());
            header.extend([first, 64]);
            header.extend(self.addresses);
            for (n, (_, words)) in self.extensions.iter().enumerate() {
                let next = self.extensions.get(n + 1).map_or(self.protocol(), |(next, _)| *next);
                header.extend([next, *words, 0, 0]);
                header.extend(vec![1; 4 + 8 * usize::from(*words)]);
            }
            return header;
        }
        let mut header = vec![0x45 + self.ip_options as u8, 0];
        header.extend(len.to_be_bytes());
        header.extend(self.id.to_be_bytes());
        // Don't fragment.
        header.extend([0x40, 0, 63, self.protocol(), 0, 0]);
        header.extend(&self.addresses[..8]);
        header.extend(vec![1; 4 * self.ip_options]);
        let checksum = !slow_sum(&header);
        header[10..12].copy_from_slice(&checksum.to_be_bytes());
        header
    }

    fn transport(&self, payload: &[u8], checksum: Checksum) -> Vec<u8> {
        let mut bytes = vec![0x30, 0x39, 0x00, 0x35];
        if self.is_tcp {
            bytes.extend(self.sequence.to_be_bytes());
            bytes.extend([
                1,
                2,
                3,
                4,
                0x50 + 0x10 * self.tcp_options as u8,
                self.flags,
                5,
                6,
                0,
                0,
                7,
                8,
            ]);
            bytes.extend(vec![1; 4 * self.tcp_options]);
        } else {
            bytes.extend(u16::try_from(8 + payload.len()).unwrap().to_be_bytes());
            bytes.extend([0, 0]);
        }
        bytes.extend(payload);
        let mut pseudo = self.addresses[..if self.is_v6 { 32 } else { 8 }].to_vec();
        pseudo.extend(u32::try_from(bytes.len()).unwrap().to_be_bytes());
        pseudo.extend([0, 0, 0, self.protocol()]);
        let sum = match checksum {
            Checksum::Partial => slow_sum(&pseudo),
            Checksum::Complete => match !slow_sum(&[&pseudo[..], &bytes].concat()) {
                0 if !self.is_tcp => 0xffff,
                sum => sum,
            },
        };
        let at = self.checksum_offset();
        bytes[at..at + 2].copy_from_slice(&sum.to_be_bytes());
        bytes
    }

    /// The net header that says that the checksum is left to do.
    pub fn needs_checksum(&self) -> NetHeader {
        NetHeader {
            flags: NEEDS_CSUM,
            csum_start: self.transport_at() as u16,
            csum_offset: self.checksum_offset() as u16,
            ..NetHeader::PLAIN
        }
    }

    /// The net header that says that segments of `gso_size` bytes are left to cut.
    pub fn needs_segments(&self, gso_size: u16) -> NetHeader {
        let has_cwr = self.is_tcp && self.flags & CWR != 0;
        let gso_type = match (self.is_tcp, self.is_v6) {
            (false, _) => GSO_UDP_L4,
            (true, false) => GSO_TCPV4,
            (true, true) => GSO_TCPV6,
        };
        NetHeader {
            gso_type: gso_type | if has_cwr { GSO_ECN } else { 0 },
            gso_size,
            hdr_len: self.payload_at() as u16,
            ..self.needs_checksum()
        }
    }

    /// The segments of `gso_size` bytes, each built anew.
    pub fn segments(&self, payload: &[u8], gso_size: u16) -> Vec<Vec<u8>> {
        let mut pieces: Vec<&[u8]> = payload.chunks(gso_size.into()).collect();
        if pieces.is_empty() {
            pieces.push(&[]);
        }
        let last = pieces.len() - 1;
        let mut shape = self.clone();
        let mut segments = Vec::new();
        for (n, piece) in pieces.into_iter().enumerate() {
            shape.flags = self.flags;
            if n > 0 {
                shape.flags &= !CWR;
            }
            if n < last {
                shape.flags &= !(FIN | PSH);
            }
            segments.push(shape.with(piece, Checksum::Complete));
            shape.id = shape.id.wrapping_add(1);
            shape.sequence = shape.sequence.wrapping_add(piece.len() as u32);
        }
        segments
    }
}

/// Makes the checksums of a frame of this shape right again.
pub fn right_again(shape: &Shape, frame: &mut [u8]) {
    let (network_at, transport_at) = (shape.network_at(), shape.transport_at());
    if !shape.is_v6 {
        frame[network_at + 10..network_at + 12].fill(0);
        let checksum = !slow_sum(&frame[network_at..transport_at]);
        frame[network_at + 10..network_at + 12].copy_from_slice(&checksum.to_be_bytes());
    }
    let addresses = if shape.is_v6 { network_at + 8 } else { network_at + 12 };
    let addresses = &frame[addresses..addresses + if shape.is_v6 { 32 } else { 8 }];
    let len = u32::try_from(frame.len() - transport_at).unwrap().to_be_bytes();
    let pseudo = [addresses, &len, &[0, 0, 0, shape.protocol()]].concat();
    let field = transport_at + shape.checksum_offset();
    frame[field..field + 2].fill(0);
    let checksum = match !slow_sum(&[&pseudo, &frame[transport_at..]].concat()) {
        0 if !shape.is_tcp => 0xffff,
        checksum => checksum,
    };
    frame[field..field + 2].copy_from_slice(&checksum.to_be_bytes());
}

/// The sum of RFC 1071, word by word.
pub fn slow_sum(bytes: &[u8]) -> u16 {
    let mut sum = 0_u32;
    for pair in bytes.chunks(2) {
        sum += u32::from(pair[0]) << 8 | pair.get(1).map_or(0, |&low| u32::from(low));
        sum = (sum & 0xffff) + (sum >> 16);
    }
    sum as u16
}

/// Payloads: any bytes, and such as make every sum the same.
pub fn payload(len: std::ops::Range<usize>) -> impl Strategy<Value = Vec<u8>> {
    let counted = (len.clone(), any::<u8>())
        .prop_map(|(len, first)| (0..len).map(|n| (n * 31 + n / 251) as u8 ^ first).collect());
    let same = (len, prop_oneof![Just(0), Just(0xff)]).prop_map(|(len, byte)| vec![byte; len]);
    prop_oneof![4 => counted, 1 => same]
}
