//! Reads captures back: as much of pcapng as `ringscoped --pcap` writes, and strict about it.

use std::path::Path;

/// A packet of a capture.
#[derive(Clone, Debug)]
pub struct Packet {
    /// Nanoseconds since 1970.
    pub time_ns: u64,
    /// Whether the guest sent it.
    pub outbound: bool,
    /// The queue pair.
    pub queue: u32,
    /// The frame.
    pub bytes: Vec<u8>,
    /// What is said of it.
    pub comment: String,
}

impl Packet {
    /// The value of `key` in the comment; 0 for `limited`, which is left out then.
    ///
    /// # Panics
    /// When there is none that is a number.
    #[must_use]
    pub fn number(&self, key: &str) -> u64 {
        let words = self.comment.split(' ');
        let value = words.filter_map(|word| word.split_once('=')).find(|(known, _)| *known == key);
        let value = value.map(|(_, value)| value.trim_end_matches("ns"));
        let value = value.or((key == "limited").then_some("0"));
        value.and_then(|value| value.parse().ok()).unwrap_or_else(|| panic!("{key}: {self:?}"))
    }
}

/// A capture, as far as it is there.
#[derive(Clone, Debug, Default)]
pub struct Capture {
    /// The name of its interface.
    pub interface: String,
    /// Its packets, in the file's order.
    pub packets: Vec<Packet>,
    /// What its last statistics say: packets seen, packets left out.
    pub totals: Option<(u64, u64)>,
}

impl Capture {
    /// Reads `path`, which may still be written.
    ///
    /// # Panics
    /// When it is no capture, or a block is not as it should be.
    #[must_use]
    pub fn read(path: &Path) -> Self {
        let file = std::fs::read(path).expect("a capture");
        let mut capture = Self::default();
        let mut rest = file.as_slice();
        while let Some(len) = rest.get(4..8).map(number) {
            // The last block of a file that is being written may be on its way.
            let Some(block) = rest.get(..usize::try_from(len).unwrap()) else { break };
            assert_eq!(number(&block[block.len() - 4..]), len, "both lengths of a block");
            capture.take(number(block), &block[8..block.len() - 4]);
            rest = &rest[block.len()..];
        }
        capture
    }

    /// Those that the guest sent, or those that it received.
    #[must_use]
    pub fn way(&self, outbound: bool) -> Vec<&Packet> {
        self.packets.iter().filter(|packet| packet.outbound == outbound).collect()
    }

    fn take(&mut self, kind: u32, body: &[u8]) {
        let text = |bytes: &[u8]| String::from_utf8(bytes.to_vec()).expect("UTF-8");
        match kind {
            0x0A0D_0D0A => {
                assert_eq!(body[..6], [0x4d, 0x3c, 0x2b, 0x1a, 1, 0], "byte order and version");
            }
            1 => {
                assert_eq!(body[..2], [1, 0], "Ethernet");
                let options = options(&body[8..]);
                self.interface = text(option(&options, 2).expect("if_name"));
                assert_eq!(option(&options, 9), Some(&[9][..]), "nanoseconds");
            }
            5 => {
                let options = options(&body[12..]);
                let total = |code| {
                    let bytes = option(&options, code).expect("isb_ifrecv and isb_ifdrop");
                    u64::from_le_bytes(bytes.try_into().unwrap())
                };
                self.totals = Some((total(4), total(5)));
            }
            6 => {
                let (len, whole) = (number(&body[12..]), number(&body[16..]));
                assert_eq!(len, whole, "nothing is cut");
                let bytes = &body[20..][..len as usize];
                let options = options(&body[20 + len.next_multiple_of(4) as usize..]);
                self.packets.push(Packet {
                    time_ns: u64::from(number(&body[4..])) << 32 | u64::from(number(&body[8..])),
                    outbound: match option(&options, 2).map(number) {
                        Some(1) => false,
                        Some(2) => true,
                        other => panic!("epb_flags {other:?}"),
                    },
                    queue: option(&options, 6).map(number).expect("epb_queue"),
                    bytes: bytes.to_vec(),
                    comment: text(option(&options, 1).expect("a comment")),
                });
            }
            other => panic!("a block of kind {other}"),
        }
    }
}

fn options(mut bytes: &[u8]) -> Vec<(u16, &[u8])> {
    let mut options = Vec::new();
    loop {
        let half = |at: usize| u16::from_le_bytes([bytes[at], bytes[at + 1]]);
        let (code, len) = (half(0), usize::from(half(2)));
        if code == 0 {
            assert_eq!(bytes.len(), 4, "the end of the options is the end of the block");
            return options;
        }
        options.push((code, &bytes[4..4 + len]));
        bytes = &bytes[4 + len.next_multiple_of(4)..];
    }
}

fn option<'o>(options: &[(u16, &'o [u8])], code: u16) -> Option<&'o [u8]> {
    options.iter().find(|(known, _)| *known == code).map(|(_, value)| *value)
}

fn number(bytes: &[u8]) -> u32 {
    u32::from_le_bytes(bytes[..4].try_into().expect("four bytes"))
}
