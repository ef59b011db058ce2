//! Flows of TCP and UDP, whose frames a guest sends one after the other.

use crate::lan::station;
use crate::packets::checksum;

/// A flow from the first station of a [`lan`](crate::lan) to the second.
#[derive(Clone, Debug)]
pub struct Flow {
    /// Or UDP.
    pub is_tcp: bool,
    /// Or IPv4.
    pub is_v6: bool,
    /// Its frames have a VLAN tag.
    pub is_tagged: bool,
    /// IPv4: its packets must not be fragmented, and all have the same identification.
    pub is_atomic: bool,
    /// The destination port, and the last byte of the source's address.
    pub number: u8,
    /// The identification of the next packet.
    pub id: u16,
    /// The sequence number of the next segment.
    pub sequence: u32,
}

/// A frame that a guest sends.
#[derive(Clone, Debug)]
pub struct Sent {
    /// Its net header.
    pub header: [u8; 12],
    /// As it is sent.
    pub bytes: Vec<u8>,
    /// As it is on the wire: with its checksum.
    pub whole: Vec<u8>,
    /// Where its TCP or UDP header begins.
    transport_at: usize,
    /// Where its IPv4 header is, if its identification says nothing.
    atomic_at: Option<usize>,
}

impl Flow {
    /// UDP over IPv4.
    #[must_use]
    pub const fn udp(number: u8) -> Self {
        let (is_tcp, is_v6, is_tagged, is_atomic) = (false, false, false, false);
        Self { is_tcp, is_v6, is_tagged, is_atomic, number, id: 0xffe0, sequence: u32::MAX - 9999 }
    }

    /// TCP over IPv4.
    #[must_use]
    pub const fn tcp(number: u8) -> Self {
        Self { is_tcp: true, ..Self::udp(number) }
    }

    /// The next frame. `is_partial`: its checksum is left to the device.
    ///
    /// # Panics
    /// When the payload is too long for a packet.
    #[must_use]
    pub fn next(&mut self, payload: &[u8], is_partial: bool) -> Sent {
        let transport = self.transport(payload);
        let network = self.network(transport.len());
        let mut front = [station(2), station(1)].concat();
        if self.is_tagged {
            front.extend([0x81, 0, 0, 5]);
        }
        front.extend(if self.is_v6 { [0x86, 0xdd] } else { [8, 0] });
        let network_at = front.len();
        front.extend(&network);
        let (start, offset) = (front.len(), if self.is_tcp { 16 } else { 6 });
        let mut whole = [front, transport].concat();
        let addresses = if self.is_v6 { &network[8..40] } else { &network[12..20] };
        let len = u32::try_from(whole.len() - start).expect("a packet").to_be_bytes();
        let pseudo = [addresses, &len, &[0, 0, 0, if self.is_tcp { 6 } else { 17 }]].concat();
        let field = start + offset..start + offset + 2;
        let mut bytes = whole.clone();
        bytes[field.clone()].copy_from_slice(&checksum(&pseudo).map(|byte| !byte));
        let sum = match checksum(&[&pseudo[..], &whole[start..]].concat()) {
            [0, 0] if !self.is_tcp => [0xff, 0xff],
            sum => sum,
        };
        whole[field].copy_from_slice(&sum);
        let mut header = [0; 12];
        if is_partial {
            // NEEDS_CSUM, from where and to where (virtio 1.2, 5.1.6).
            header[0] = 1;
            header[6] = u8::try_from(start).expect("headers are short");
            header[8] = if self.is_tcp { 16 } else { 6 };
        } else {
            bytes.clone_from(&whole);
        }
        self.id = self.id.wrapping_add(u16::from(!self.is_atomic));
        self.sequence = self.sequence.wrapping_add(u32::try_from(payload.len()).expect("a packet"));
        let atomic_at = (self.is_atomic && !self.is_v6).then_some(network_at);
        Sent { header, bytes, whole, transport_at: start, atomic_at }
    }

    fn transport(&self, payload: &[u8]) -> Vec<u8> {
        let mut bytes = vec![0x30, 0x39, 0x20, self.number];
        if self.is_tcp {
            bytes.extend(self.sequence.to_be_bytes());
            // Acknowledged: 1; header length, ACK, window.
            bytes.extend([0, 0, 0, 1, 0x50, 0x10, 1, 0, 0, 0, 0, 0]);
        } else {
            let len = u16::try_from(8 + payload.len()).expect("a packet");
            bytes.extend(len.to_be_bytes());
            bytes.extend([0, 0]);
        }
        bytes.extend(payload);
        bytes
    }

    fn network(&self, len: usize) -> Vec<u8> {
        let protocol = if self.is_tcp { 6 } else { 17 };
        let len = u16::try_from(len).expect("a packet");
        if self.is_v6 {
            let mut header = vec![0x60, 0, 0, 0];
            header.extend(len.to_be_bytes());
            header.extend([protocol, 64]);
            for last in [self.number, 200] {
                header.extend([0xfd; 15]);
                header.push(last);
            }
            return header;
        }
        let mut header = vec![0x45, 0];
        header.extend((len + 20).to_be_bytes());
        header.extend(self.id.to_be_bytes());
        header.extend([if self.is_atomic { 0x40 } else { 0 }, 0, 64, protocol, 0, 0]);
        header.extend([10, 77, 1, self.number, 10, 77, 1, 200]);
        let sum = checksum(&header);
        header[10..12].copy_from_slice(&sum);
        header
    }
}

impl Sent {
    /// The frame with a bit of it changed, after its IP header: it goes on as it is. (A bridge may drop frames with a wrong IP
    /// header.) Its checksum is not left to the device.
    #[must_use]
    pub fn spoilt(self, random: &mut fastrand::Rng) -> Self {
        let Self { mut whole, transport_at, .. } = self;
        let at = random.usize(transport_at..whole.len());
        whole[at] ^= 1 << random.u8(..8);
        Self { header: [0; 12], bytes: whole.clone(), whole, transport_at, atomic_at: None }
    }

    /// `frame`, without what may differ from what was sent: the identification of a packet that must not be fragmented.
    #[must_use]
    pub fn comparable(&self, frame: &[u8]) -> Vec<u8> {
        let mut frame = frame.to_vec();
        if let Some(at) = self.atomic_at
            && frame.len() > at + 12
        {
            frame[at + 4..at + 6].fill(0);
            frame[at + 10..at + 12].fill(0);
        }
        frame
    }
}

/// The flow of a frame, as a receiver tells them apart: protocol, addresses and ports of TCP and UDP. `None` if it may be of any, such as
/// a fragment or a frame with a VLAN tag.
#[must_use]
pub fn flow_of(frame: &[u8]) -> Option<Vec<u8>> {
    let is_known = |protocol: u8| [6, 17].contains(&protocol);
    match frame.get(12..15)? {
        [0x08, 0x00, 0x45] if frame.len() >= 38 && is_known(frame[23]) => {
            let is_fragment = frame[20] & 0x3f != 0 || frame[21] != 0;
            (!is_fragment).then(|| [&frame[23..24], &frame[26..38]].concat())
        }
        [0x86, 0xdd, _] if frame.len() >= 58 && is_known(frame[20]) => {
            Some([&frame[20..21], &frame[22..58]].concat())
        }
        _ => None,
    }
}
