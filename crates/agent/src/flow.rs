//! What `udp-send` and `udp-count` send to each other.

/// Length of a message, bytes; counted packets are padded.
pub const MESSAGE_BYTES: usize = 40;

/// "RSFL": distinguishes a message from other packets on the same port.
const MAGIC: u32 = 0x5253_464c;

/// A message. Big endian in this order: magic, run (32 bits each), kind, and three numbers (64 bits each).
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Message {
    /// A packet of a run, which is counted.
    Packet { run: u32, sequence: u64 },
    /// The question how many packets of the run have come. The first question starts a run.
    Ask { run: u32, question: u64 },
    /// The answer to this question.
    Answer { run: u32, question: u64, counted: Counted },
}

/// Packets of a run that have come.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Counted {
    /// Each counted once.
    pub received: u64,
    /// Packets that came again.
    pub duplicates: u64,
}

impl Message {
    /// Writes the message to the start of a packet.
    ///
    /// # Panics
    /// When the packet is shorter than [`MESSAGE_BYTES`].
    pub fn write(&self, packet: &mut [u8]) {
        let (run, words) = match *self {
            Self::Packet { run, sequence } => (run, [0, sequence, 0, 0]),
            Self::Ask { run, question } => (run, [1, question, 0, 0]),
            Self::Answer { run, question, counted } => {
                (run, [2, question, counted.received, counted.duplicates])
            }
        };
        packet[0..4].copy_from_slice(&MAGIC.to_be_bytes());
        packet[4..8].copy_from_slice(&run.to_be_bytes());
        for (to, word) in packet[8..MESSAGE_BYTES].chunks_exact_mut(8).zip(words) {
            to.copy_from_slice(&word.to_be_bytes());
        }
    }

    /// Reads a message; `None` when the payload is too short or is something else.
    pub fn read(payload: &[u8]) -> Option<Self> {
        let word = |n: usize| {
            let bytes = payload.get(n * 8..n * 8 + 8)?;
            Some(u64::from_be_bytes(bytes.try_into().ok()?))
        };
        let head = word(0)?;
        if (head >> 32) as u32 != MAGIC {
            return None;
        }
        let (run, question) = (head as u32, word(2)?);
        let counted = Counted { received: word(3)?, duplicates: word(4)? };
        match word(1)? {
            0 => Some(Self::Packet { run, sequence: question }),
            1 => Some(Self::Ask { run, question }),
            2 => Some(Self::Answer { run, question, counted }),
            _ => None,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_message_survives_the_wire() {
        let counted = Counted { received: u64::MAX, duplicates: 3 };
        for message in [
            Message::Packet { run: 7, sequence: 1 << 40 },
            Message::Ask { run: u32::MAX, question: 2 },
            Message::Answer { run: 1, question: 5, counted },
        ] {
            let mut packet = [0xff; MESSAGE_BYTES + 1];
            message.write(&mut packet);
            assert_eq!(Message::read(&packet), Some(message));
            assert_eq!(Message::read(&packet[..MESSAGE_BYTES - 1]), None);
            packet[15] = 9;
            assert_eq!(Message::read(&packet), None, "an unknown kind");
            packet[0] ^= 1;
            assert_eq!(Message::read(&packet), None, "another magic");
        }
    }
}
