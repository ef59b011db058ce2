//! Frames of every shape, with and without what is looked for.

mod cyclic;

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
    payload(frame, &[port]).and_then(Probe::read)
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
fn probes_of_several_ports_are_found() {
    let frame = frame(0, ETHERTYPE_IPV4, &ipv4(5, UDP, 0));
    assert_eq!(payload(&frame, &[5, 7007]).and_then(Probe::read), Some(PROBE));
    assert_eq!(payload(&frame, &[]), None);
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
    for whole in [frame(2, ETHERTYPE_IPV4, &ipv4(15, UDP, 0)), frame(0, ETHERTYPE_IPV6, &ipv6())] {
        for len in 0..whole.len() {
            assert_eq!(probe_in(&whole[..len], 7007), None, "{len}");
        }
    }
}
