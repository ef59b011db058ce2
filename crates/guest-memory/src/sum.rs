//! The Internet checksum (RFC 1071): a ones' complement sum of 16-bit words.

/// The Internet checksum of a run of bytes: a sum of 16-bit words in network order, the last one padded with a zero.
/// Bytes can be appended at odd positions, too.
///
/// Byte order does not matter until the end (RFC 1071, 2.B), so words are added in the machine's order, four at a time:
/// modulo 2^64 - 1, which is a multiple of 2^16 - 1.
#[derive(Clone, Copy, Debug, Default)]
pub struct Sum {
    total: u64,
    /// Whether the number of bytes so far is odd.
    is_odd: bool,
}

impl Sum {
    /// The sum of no bytes.
    #[inline]
    #[must_use]
    pub const fn new() -> Self {
        Self { total: 0, is_odd: false }
    }

    /// Appends bytes.
    #[inline]
    pub fn add_bytes(&mut self, bytes: &[u8]) {
        let (words, rest) = bytes.as_chunks::<8>();
        let (pairs, last) = rest.as_chunks::<2>();
        let words = words.iter().map(|word| u64::from_ne_bytes(*word));
        let pairs = pairs.iter().map(|pair| u16::from_ne_bytes(*pair).into());
        let last = last.iter().map(|byte| u16::from_ne_bytes([*byte, 0]).into());
        let total = words.chain(pairs).chain(last).fold(0, add);
        self.append(total, bytes.len() % 2 == 1);
    }

    /// Appends a 16-bit number, in network order.
    #[inline]
    pub fn add_u16(&mut self, number: u16) {
        self.append(u16::from_ne_bytes(number.to_be_bytes()).into(), false);
    }

    /// Appends all the bytes of `other`.
    #[inline]
    pub const fn add_sum(&mut self, other: Self) {
        self.append(other.total, other.is_odd);
    }

    /// Appends bytes whose words, in this machine's order, make `total` modulo 2^16 - 1.
    #[inline]
    pub(crate) const fn append(&mut self, total: u64, is_odd: bool) {
        // After an odd position each byte is in the other half of its word: multiply by 2^8 (RFC 1071, 2.B).
        let total = if self.is_odd { total.rotate_left(8) } else { total };
        self.total = add(self.total, total);
        self.is_odd ^= is_odd;
    }

    /// The sum as a 16-bit number, which goes to the wire in network order. It is 0 only if every byte was.
    #[inline]
    #[must_use]
    pub const fn fold(self) -> u16 {
        let halves = (self.total >> 32) + (self.total & 0xffff_ffff);
        let words = (halves >> 16) + (halves & 0xffff);
        let carried = (words >> 16) + (words & 0xffff);
        #[expect(clippy::cast_possible_truncation, reason = "the third fold leaves 16 bits")]
        u16::from_be(((carried >> 16) + (carried & 0xffff)) as u16)
    }

    /// The value of a checksum field: the complement of the sum.
    #[inline]
    #[must_use]
    pub const fn complement(self) -> u16 {
        !self.fold()
    }
}

/// Adds modulo 2^64 - 1, with an end-around carry.
#[inline]
pub(crate) const fn add(a: u64, b: u64) -> u64 {
    let (sum, carried) = a.overflowing_add(b);
    sum + carried as u64
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_example_of_the_rfc() {
        let mut sum = Sum::new();
        sum.add_bytes(&[0x00, 0x01, 0xf2, 0x03, 0xf4, 0xf5, 0xf6, 0xf7]);
        assert_eq!((sum.fold(), sum.complement()), (0xddf2, 0x220d));
    }

    #[test]
    fn only_zeroes_make_zero() {
        let mut sum = Sum::new();
        sum.add_bytes(&[0; 9]);
        assert_eq!(sum.fold(), 0);
        sum.add_bytes(&[0xff]);
        assert_eq!(sum.fold(), 0x00ff);
        sum.add_u16(0xff00);
        for number in [0xffff, 0, 0xffff] {
            assert_eq!(sum.fold(), 0xffff);
            sum.add_u16(number);
        }
    }
}
