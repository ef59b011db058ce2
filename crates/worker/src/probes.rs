//! Finds the packets of a burst that are recorded one by one: UDP packets to or from a port, with a sequence number in the
//! payload ([`burst_trace::Probe`]), and layer-2 frames with a counter ([`burst_trace::CyclicFrames`]).

use burst_trace::probe::PROBE_BYTES;
use burst_trace::{BurstRecord, CyclicFrame, CyclicFrames, Probe};
use virtio_net::packet::{Ethernet, Packet, Transport};
use virtio_net::{BURST_MAX, Frame, GuestRoom};

use crate::probe_targets::ProbeTargets;
use crate::tracer::Tracer;

/// Longest headers, with the probe in the payload, in bytes: Ethernet with two VLAN tags, the longest IP header (RFC
/// 791), UDP.
const FRONT: usize = 14 + 8 + 60 + 8 + PROBE_BYTES;

/// The probes of one ring's bursts that are not recorded yet.
#[derive(Debug)]
pub struct ProbeFinder {
    targets: ProbeTargets,
    /// Those of the burst that is being moved. The burst before may not be recorded yet. At most one for each frame.
    found: Vec<Found>,
    published: Vec<Found>,
}

/// What identifies a packet.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Found {
    Probe { run: u32, sequence: u64 },
    Cyclic(CyclicFrame),
}

impl ProbeFinder {
    /// Looks for these packets.
    pub fn new(targets: &ProbeTargets) -> Self {
        let list = || Vec::with_capacity(BURST_MAX);
        Self { targets: targets.clone(), found: list(), published: list() }
    }

    /// The packets that it looks for.
    pub const fn targets(&self) -> &ProbeTargets {
        &self.targets
    }

    /// Looks for probes among the frames of a burst.
    pub fn look_at<'f, 'm: 'f>(&mut self, frames: impl Iterator<Item = Frame<'f, 'm>>) {
        look(&self.targets, frames, &mut self.found);
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
        for found in self.published.drain(..) {
            match found {
                Found::Probe { run, sequence } => tracer.probe(record, run, sequence),
                Found::Cyclic(frame) => tracer.cyclic(record, frame),
            }
        }
    }
}

fn look<'f, 'm: 'f>(
    targets: &ProbeTargets,
    frames: impl Iterator<Item = Frame<'f, 'm>>,
    found: &mut Vec<Found>,
) {
    found.clear();
    for frame in frames.take(BURST_MAX) {
        let cyclic = cyclic_frame(&targets.cyclic, &frame).map(Found::Cyclic);
        found.extend(cyclic.or_else(|| probe(&targets.udp_ports, &frame)));
    }
}

/// The frame's counter, if one of the descriptions fits it.
#[inline]
fn cyclic_frame(cyclic: &[CyclicFrames], frame: &Frame<'_, '_>) -> Option<CyclicFrame> {
    if cyclic.is_empty() {
        return None;
    }
    let mut front = [0; Ethernet::LEN_MAX];
    let len = frame.copy_from(0, &mut front);
    let Ethernet { ethertype, vlan, payload_at } = Ethernet::find(&front[..len])?;
    let read = |at: usize, to: &mut [u8]| frame.copy_from(payload_at + at, to) == to.len();
    (0..).zip(cyclic).find_map(|(number, frames)| frames.find(number, ethertype, vlan, read))
}

#[inline]
fn probe(ports: &[u16], frame: &Frame<'_, '_>) -> Option<Found> {
    if ports.is_empty() {
        return None;
    }
    let mut front = [0; FRONT];
    let len = frame.copy_from(0, &mut front);
    let Probe { run, sequence, .. } = payload(&front[..len], ports).and_then(Probe::read)?;
    Some(Found::Probe { run, sequence })
}

/// The payload of an Ethernet frame, if it is UDP to or from one of the ports and not a fragment.
fn payload<'f>(frame: &'f [u8], ports: &[u16]) -> Option<&'f [u8]> {
    let packet = Packet::find(frame).filter(|packet| packet.transport == Transport::Udp)?;
    // RFC 768: source port, destination port.
    let found = frame.get(packet.transport_at..packet.transport_at + 4)?;
    let mut found = found.chunks(2).map(|port| u16::from_be_bytes([port[0], port[1]]));
    found.any(|port| ports.contains(&port)).then(|| frame.get(packet.payload_at..))?
}

#[cfg(test)]
mod tests;
