//! Frames from guests and from the wire: targets `frames` and `joined`.
//!
//! - [`packets`]: frames of every shape, right and wrong, and a checksum computed as in RFC 1071.
//! - [`cut`]: software GSO and checksum offload, checked frame by frame.
//! - [`join`]: GRO from a guest to the wire.
//! - [`receive`]: GRO and the placement of frames in a guest's buffers, checked against what a wire would have carried.
//! - [`ring`]: the guest's receive ring and the sender's transmit ring.
//! - [`switch`]: the destinations that a switch chooses.

pub mod cut;
pub mod join;
pub mod packets;
pub mod receive;
pub mod ring;
pub mod switch;

use arbitrary::Arbitrary;
use burst_trace::Probe;
use burst_trace::probe::PROBE_BYTES;
use virtio_net::packet::Packet;

/// What is tested.
#[derive(Arbitrary, Debug)]
pub enum Story {
    /// Cuts one frame of a guest into finished frames.
    Cut(cut::Story),
    /// Places frames in a guest's buffers.
    Receive(receive::Story),
    /// Asks a switch for the destinations of frames.
    Switch(switch::Story),
    /// Searches arbitrary bytes for headers.
    Parse(Vec<u8>),
}

/// Plays `story`.
pub fn play(story: &Story) {
    match story {
        Story::Cut(story) => cut::play(story),
        Story::Receive(story) => receive::play(story),
        Story::Switch(story) => switch::play(story),
        Story::Parse(bytes) => parse(bytes),
    }
}

/// All headers before the payload must lie within the bytes, except for the options of TCP.
fn parse(bytes: &[u8]) {
    if let Some(packet) = Packet::find(bytes) {
        let Packet { network_at, transport_at, payload_at, end, .. } = packet;
        assert!(network_at >= 14 && transport_at >= network_at + 20);
        assert!(payload_at >= transport_at + 8 && transport_at + 8 <= bytes.len());
        assert!(end >= network_at);
        packet.pseudo_header(bytes);
        if let Some(probe) = bytes.get(payload_at..).and_then(Probe::read) {
            let mut written = [0; PROBE_BYTES];
            probe.write(&mut written);
            assert_eq!(written, bytes[payload_at..][..PROBE_BYTES]);
        }
    }
}
