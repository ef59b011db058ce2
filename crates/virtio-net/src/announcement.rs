//! The frame that says where a guest's address is now, after a live migration.
//!
//! Switches learn from its source address. It is a request of RARP (RFC 903) to everyone, as QEMU itself sends it for its
//! own devices (`announce_self_create`, net/announce.c): nobody answers, because nobody has to know the guest's IP address.

use guest_memory::Spare;
use virtqueue::Chains;

use crate::MacAddress;
use crate::transmit::{Frames, TransmitBurst};

/// Length of the frame in bytes: the least of Ethernet.
const LEN: usize = 60;
/// Ethertype of RARP (RFC 903).
const RARP: [u8; 2] = [0x80, 0x35];
/// Hardware type Ethernet, protocol type IPv4, their address lengths, and "request reverse" (RFC 903).
const REQUEST: [u8; 8] = [0, 1, 8, 0, 6, 4, 0, 3];

/// A frame of the daemon's own, with its net header.
#[derive(Debug)]
pub struct Announcement {
    bytes: Spare,
    header_len: usize,
}

impl Announcement {
    /// For the guest's `address`, after a net header of `header_len` bytes.
    #[must_use]
    pub fn new(address: MacAddress, header_len: usize) -> Self {
        let bytes = Spare::new(header_len + LEN);
        bytes.slice().write(header_len, &rarp(address));
        Self { bytes, header_len }
    }

    /// Calls `with` with the frame, as one for a datapath.
    pub fn with<T>(&self, with: impl FnOnce(Frames<'_, '_>) -> T) -> T {
        let chains = Chains::of_own(self.bytes.slice());
        with(TransmitBurst::of_own(&chains, self.header_len).frames())
    }
}

fn rarp(MacAddress(address): MacAddress) -> [u8; LEN] {
    let mut frame = [0; LEN];
    // The IP addresses are unknown.
    let parts: [&[u8]; 6] = [&[0xff; 6], &address, &RARP, &REQUEST, &address, &[0; 4]];
    let bytes = [&parts.concat()[..], &address].concat();
    frame[..bytes.len()].copy_from_slice(&bytes);
    frame
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::header::NetHeader;

    #[test]
    fn the_frame_is_a_request_to_everyone_from_the_address() {
        let address = [0x52, 0x54, 0, 1, 2, 3];
        for header_len in [10, 12] {
            Announcement::new(MacAddress(address), header_len).with(|frames| {
                let all: Vec<_> = frames.iter().collect();
                assert_eq!((all.len(), all[0].len(), frames.len()), (1, LEN, 1));
                assert!(all[0].header() == NetHeader { num_buffers: 0, ..NetHeader::PLAIN });
                let frame = all[0].front::<LEN>().unwrap();
                assert_eq!(frame[..6], [0xff; 6]);
                assert_eq!(frame[6..12], address);
                assert_eq!(frame[12..22], [0x80, 0x35, 0, 1, 8, 0, 6, 4, 0, 3]);
                assert_eq!(frame[22..28], address);
                assert_eq!(frame[28..32], [0; 4]);
                assert_eq!(frame[32..38], address);
                assert_eq!(frame[38..], [0; 22]);
            });
        }
    }
}
