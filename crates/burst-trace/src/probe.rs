//! Probe packets: UDP payloads with a number of their own. It identifies the packet in the time stamps of every process
//! that the packet passes.

/// Length of a probe in a payload, bytes; longer packets are padded.
pub const PROBE_BYTES: usize = 32;

/// "RSCP": distinguishes a probe from other packets on the same port.
const MAGIC: u32 = 0x5253_4350;

/// What a probe packet carries, big endian in this order: magic, run, sequence, intended send
/// time, actual send time.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Probe {
    /// Distinguishes the packets of one run from late ones of the run before.
    pub run: u32,
    /// Counts from 0, including the warm-up.
    pub sequence: u64,
    /// When it was due, nanoseconds of the sender's `CLOCK_MONOTONIC`.
    pub intended_ns: u64,
    /// When it was sent, on the same clock.
    pub sent_ns: u64,
}

impl Probe {
    /// Writes the probe to the start of a packet.
    ///
    /// # Panics
    /// When the packet is shorter than [`PROBE_BYTES`].
    pub fn write(&self, packet: &mut [u8]) {
        packet[0..4].copy_from_slice(&MAGIC.to_be_bytes());
        packet[4..8].copy_from_slice(&self.run.to_be_bytes());
        packet[8..16].copy_from_slice(&self.sequence.to_be_bytes());
        packet[16..24].copy_from_slice(&self.intended_ns.to_be_bytes());
        packet[24..32].copy_from_slice(&self.sent_ns.to_be_bytes());
    }

    /// Reads a probe; `None` when the payload is too short or is something else.
    #[must_use]
    #[expect(
        clippy::cast_possible_truncation,
        reason = "the run is the lower half of the first word"
    )]
    pub fn read(payload: &[u8]) -> Option<Self> {
        let word = |at: usize| {
            let bytes = payload.get(at..at + 8)?;
            Some(u64::from_be_bytes(bytes.try_into().ok()?))
        };
        let head = word(0)?;
        if (head >> 32) as u32 != MAGIC {
            return None;
        }
        Some(Self {
            run: head as u32,
            sequence: word(8)?,
            intended_ns: word(16)?,
            sent_ns: word(24)?,
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_probe_survives_the_wire() {
        let probe = Probe { run: 7, sequence: 1 << 40, intended_ns: 3, sent_ns: u64::MAX };
        let mut packet = [0; 64];
        probe.write(&mut packet);
        assert_eq!(Probe::read(&packet), Some(probe));
        assert_eq!(Probe::read(&packet[..31]), None);
        packet[0] ^= 1;
        assert_eq!(Probe::read(&packet), None);
    }
}
