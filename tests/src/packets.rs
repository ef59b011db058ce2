//! Packets that a kernel answers: ARP and ICMP echo (RFC 826, RFC 792).

use std::net::Ipv4Addr;

/// An Ethernet address.
pub type Mac = [u8; 6];

const ARP: [u8; 2] = [0x08, 0x06];
const IPV4: [u8; 2] = [0x08, 0x00];

/// Asks who has `target`.
#[must_use]
pub fn arp_request(mac: Mac, own: Ipv4Addr, target: Ipv4Addr) -> Vec<u8> {
    // Ethernet, IPv4, lengths of their addresses, request.
    let fixed = [0, 1, 8, 0, 6, 4, 0, 1];
    let sender = [&mac[..], &own.octets()].concat();
    let body = [&fixed[..], &sender, &[0; 6], &target.octets()].concat();
    [&[0xff; 6], &mac[..], &ARP, &body].concat()
}

/// The address that an ARP reply tells.
#[must_use]
pub fn arp_reply(frame: &[u8]) -> Option<Mac> {
    (frame.get(12..14)? == ARP && frame.get(20..22)? == [0, 2])
        .then(|| frame.get(22..28)?.try_into().ok())?
}

/// The answer of the station `mac` with the address `own` to an ARP request for it; `None` if the frame is no such request.
#[must_use]
pub fn arp_answer(frame: &[u8], mac: Mac, own: Ipv4Addr) -> Option<Vec<u8>> {
    let is_request = frame.get(12..14)? == ARP && frame.get(20..22)? == [0, 1];
    let (asking, is_own) = (frame.get(22..32)?, frame.get(38..42)? == own.octets());
    let answered = || {
        // Ethernet, IPv4, lengths of their addresses, reply.
        let fixed = [0, 1, 8, 0, 6, 4, 0, 2];
        [&asking[..6], &mac, &ARP, &fixed, &mac, &own.octets(), asking].concat()
    };
    (is_request && is_own).then(answered)
}

/// An echo request with this sequence number and payload.
#[must_use]
pub fn echo_request(
    macs: (Mac, Mac),
    addresses: (Ipv4Addr, Ipv4Addr),
    sequence: u16,
    payload: &[u8],
) -> Vec<u8> {
    let mut icmp = vec![8, 0, 0, 0, 0x52, 0x53];
    icmp.extend(sequence.to_be_bytes());
    icmp.extend(payload);
    let sum = checksum(&icmp);
    icmp[2..4].copy_from_slice(&sum);
    let len = u16::try_from(20 + icmp.len()).unwrap_or(u16::MAX).to_be_bytes();
    // Version and header length, no service class, length; not to be fragmented; 64 hops, ICMP.
    let mut ip = vec![0x45, 0, len[0], len[1], 0, 0, 0x40, 0, 64, 1, 0, 0];
    ip.extend(addresses.0.octets());
    ip.extend(addresses.1.octets());
    let sum = checksum(&ip);
    ip[10..12].copy_from_slice(&sum);
    [&macs.1[..], &macs.0, &IPV4, &ip, &icmp].concat()
}

/// The sequence number and payload of an echo reply.
#[must_use]
pub fn echo_reply(frame: &[u8]) -> Option<(u16, &[u8])> {
    let icmp = frame.get(34..)?;
    if frame[12..14] != IPV4 || frame[23] != 1 || icmp.first() != Some(&0) {
        return None;
    }
    let len = usize::from(u16::from_be_bytes([frame[16], frame[17]]));
    let sequence = u16::from_be_bytes([*icmp.get(6)?, *icmp.get(7)?]);
    Some((sequence, frame.get(42..14 + len)?))
}

/// A TCP segment over IPv4 whose checksum is left to do: its field has the pseudo header's sum (virtio 1.2, 5.1.6.2).
/// It begins after 34 bytes; its field is 16 further on.
#[must_use]
pub fn tcp_unsummed(macs: (Mac, Mac), payload: &[u8]) -> Vec<u8> {
    let addresses = [10, 0, 0, 1, 10, 0, 0, 2];
    let tcp_len = u16::try_from(20 + payload.len()).unwrap_or(u16::MAX);
    let len = (tcp_len + 20).to_be_bytes();
    let mut ip = vec![0x45, 0, len[0], len[1], 0, 0, 0x40, 0, 64, 6, 0, 0];
    ip.extend(addresses);
    let sum = checksum(&ip);
    ip[10..12].copy_from_slice(&sum);
    let pseudo = [&addresses[..], &[0, 6], &tcp_len.to_be_bytes()].concat();
    let [high, low] = checksum(&pseudo).map(|byte| !byte);
    // Ports, sequence numbers; header length, ACK and PSH, window; checksum.
    let tcp = [0, 80, 0, 81, 0, 0, 0, 1, 0, 0, 0, 1, 0x50, 0x18, 1, 0, high, low, 0, 0];
    [&macs.1[..], &macs.0, &IPV4, &ip, &tcp, payload].concat()
}

/// The net header of a frame of [`tcp_unsummed`] that is to be cut into segments of `gso_size`; 0: not to be cut.
#[must_use]
pub const fn gso_header(gso_size: u16) -> [u8; 12] {
    let gso_type = (gso_size > 0) as u8;
    let [low, high] = gso_size.to_le_bytes();
    // NEEDS_CSUM, TCPV4 or none, header length 54, size; checksum from 34 on, at 16.
    [1, gso_type, 54, 0, low, high, 34, 0, 16, 0, 0, 0]
}

/// The sequence number and payload of a TCP segment over IPv4, if its lengths and checksums are right.
#[must_use]
pub fn tcp_checked(frame: &[u8]) -> Option<(u32, &[u8])> {
    let (ip, tcp) = (frame.get(14..34)?, frame.get(34..)?);
    let len = usize::from(u16::from_be_bytes([ip[2], ip[3]]));
    let tcp_len = u16::try_from(tcp.len()).ok()?.to_be_bytes();
    let summed = [&ip[12..20], &[0, 6], &tcp_len, tcp].concat();
    let is_right = frame[12..14] == IPV4 && len == frame.len() - 14;
    let is_summed = checksum(ip) == [0; 2] && checksum(&summed) == [0; 2];
    let sequence = u32::from_be_bytes(tcp.get(4..8)?.try_into().ok()?);
    (is_right && is_summed).then_some((sequence, tcp.get(20..)?))
}

/// The Internet checksum of RFC 1071.
#[must_use]
pub fn checksum(bytes: &[u8]) -> [u8; 2] {
    let pairs = bytes.chunks(2).map(|pair| {
        let low = pair.get(1).copied().unwrap_or(0);
        u32::from(u16::from_be_bytes([pair[0], low]))
    });
    let mut sum: u32 = pairs.sum();
    while sum > 0xffff {
        sum = (sum & 0xffff) + (sum >> 16);
    }
    let [.., high, low] = (!sum).to_be_bytes();
    [high, low]
}
