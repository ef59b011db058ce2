//! Finds the probe packets of a burst: UDP packets to or from a port, with a sequence number in the payload
//! ([`burst_trace::Probe`]).

use burst_trace::probe::PROBE_BYTES;
use burst_trace::{BurstRecord, Probe};
use virtio_net::packet::{Packet, Transport};
use virtio_net::{BURST_MAX, Frame, GuestRoom};

use crate::tracer::Tracer;

/// Longest headers, with the probe in the payload, in bytes: Ethernet with two VLAN tags, the longest IP header (RFC
/// 791), UDP.
const FRONT: usize = 14 + 8 + 60 + 8 + PROBE_BYTES;

/// The probes of one ring's bursts that are not recorded yet.
#[derive(Debug)]
pub struct ProbeFinder {
    port: u16,
    /// ProbeFinder of the burst that is being moved. The burst before may not be recorded yet.
    found: Vec<Probe>,
    published: Vec<Probe>,
}

impl ProbeFinder {
    /// Looks for packets to or from UDP `port`.
    pub fn new(port: u16) -> Self {
        let list = || Vec::with_capacity(BURST_MAX);
        Self { port, found: list(), published: list() }
    }

    /// Looks for probes among the frames of a burst.
    pub fn look_at<'f, 'm: 'f>(&mut self, frames: impl Iterator<Item = Frame<'f, 'm>>) {
        look(self.port, frames, &mut self.found);
    }

    /// Calls `place` to place frames in the room, and looks for probes among them.
    pub fn watch<'m, T>(
        &mut self,
        room: &mut GuestRoom<'_, 'm>,
        place: impl FnOnce(&mut GuestRoom<'_, 'm>) -> T,
    ) -> T {
        room.keep();
        let mark = room.mark();
        let done = place(room);
        self.look_at(room.placed_since(mark));
        done
    }

    /// Called when the burst is published. It is recorded next.
    pub fn published(&mut self) {
        std::mem::swap(&mut self.found, &mut self.published);
    }

    /// Records the probes that the burst of `record` carried.
    pub fn recorded(&mut self, record: &BurstRecord, tracer: &mut Tracer) {
        for probe in self.published.drain(..) {
            tracer.probe(record, probe.run, probe.sequence);
        }
    }
}

fn look<'f, 'm: 'f>(
    port: u16,
    frames: impl Iterator<Item = Frame<'f, 'm>>,
    found: &mut Vec<Probe>,
) {
    found.clear();
    for frame in frames.take(BURST_MAX) {
        let mut front = [0; FRONT];
        let len = frame.copy_to(&mut front);
        found.extend(payload(&front[..len], port).and_then(Probe::read));
    }
}

/// The payload of an Ethernet frame, if it is UDP to or from `port` and not a fragment.
fn payload(frame: &[u8], port: u16) -> Option<&[u8]> {
    let packet = Packet::find(frame).filter(|packet| packet.transport == Transport::Udp)?;
    // RFC 768: source port, destination port.
    let ports = frame.get(packet.transport_at..packet.transport_at + 4)?;
    let mut ports = ports.chunks(2).map(|port| u16::from_be_bytes([port[0], port[1]]));
    ports.any(|it| it == port).then(|| frame.get(packet.payload_at..))?
}

#[cfg(test)]
mod tests {
    use super::*;

    const ETHERTYPE_IPV4: u16 = 0x0800;
    const ETHERTYPE_IPV6: u16 = 0x86dd;
    const UDP: u8 = 17;

    const PROBE: Probe = Probe { run: 5, sequence: 77, intended_ns: 1, sent_ns: 2 };

    /// A frame: Ethernet with `tags` VLAN tags, then `ip`, then UDP from port 1000 to 7007 with a probe.
    fn frame(tags: usize, ethertype: u16, ip: &[u8]) -> Vec<u8> {
        let mut frame = vec![0; 12];
        (0..tags).for_each(|_| frame.extend([0x81, 0, 0, 5]));
        frame.extend(ethertype.to_be_bytes());
        frame.extend(ip);
        frame.extend(1000u16.to_be_bytes());
        frame.extend(7007u16.to_be_bytes());
        frame.extend([0; 4]);
        let mut probe = [0; PROBE_BYTES];
        PROBE.write(&mut probe);
        frame.extend(probe);
        frame
    }

    fn ipv4(words: u8, protocol: u8, fragment: u16) -> Vec<u8> {
        let mut ip = vec![0; usize::from(words) * 4];
        (ip[0], ip[9]) = (0x40 | words, protocol);
        ip[6..8].copy_from_slice(&fragment.to_be_bytes());
        ip
    }

    fn ipv6() -> Vec<u8> {
        let mut ip = vec![0; 40];
        (ip[0], ip[6]) = (0x60, UDP);
        ip
    }

    fn probe_in(frame: &[u8], port: u16) -> Option<Probe> {
        payload(frame, port).and_then(Probe::read)
    }

    #[test]
    fn probes_are_found_behind_every_header() {
        for tags in 0..=2 {
            for words in [5, 15] {
                let frame = frame(tags, ETHERTYPE_IPV4, &ipv4(words, UDP, 0x4000));
                assert!(frame.len() <= FRONT);
                assert_eq!(probe_in(&frame, 7007), Some(PROBE), "{tags} {words}");
                assert_eq!(probe_in(&frame, 1000), Some(PROBE));
                assert_eq!(probe_in(&frame, 7008), None);
            }
            assert_eq!(probe_in(&frame(tags, ETHERTYPE_IPV6, &ipv6()), 7007), Some(PROBE));
        }
    }

    #[test]
    fn other_packets_are_none() {
        for ip in [ipv4(5, 6, 0), ipv4(5, UDP, 185)] {
            assert_eq!(probe_in(&frame(0, ETHERTYPE_IPV4, &ip), 7007), None);
        }
        assert_eq!(probe_in(&frame(0, 0x0806, &ipv4(5, UDP, 0)), 7007), None);
        assert_eq!(probe_in(&frame(3, ETHERTYPE_IPV4, &ipv4(5, UDP, 0)), 7007), None);
    }

    #[test]
    fn a_frame_that_ends_anywhere_is_no_probe() {
        for whole in
            [frame(2, ETHERTYPE_IPV4, &ipv4(15, UDP, 0)), frame(0, ETHERTYPE_IPV6, &ipv6())]
        {
            for len in 0..whole.len() {
                assert_eq!(probe_in(&whole[..len], 7007), None, "{len}");
            }
        }
    }
}
