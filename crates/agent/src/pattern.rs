//! Bytes made from a seed, and the comparison of received bytes with them.
//!
//! They are fast to make, also in an emulated guest, and different at every position: bytes that are lost, doubled or
//! swapped on their way differ even where a checksum would not notice.

/// Bytes in a block, which is what is made at once.
pub const BLOCK_BYTES: usize = 256 << 10;

/// An endless stream of bytes. Word `i` of block `n` is word `i` of a table, which is random, with all bits flipped that
/// are set in the random key of block `n`. That is two loads and a store for several words at once, where a random number
/// for each word is two multiplications.
#[derive(Debug, Clone)]
pub struct Pattern {
    table: Vec<u64>,
    keys: SplitMix,
}

impl Pattern {
    pub fn new(seed: u64) -> Self {
        let mut random = SplitMix(seed);
        let table = (0..BLOCK_BYTES / size_of::<u64>()).map(|_| random.next()).collect();
        Self { table, keys: random }
    }

    /// Fills `block` with the next block, or with its beginning. Only a whole block is followed by the bytes after it.
    ///
    /// # Panics
    ///
    /// When it is longer than `BLOCK_BYTES`, or its length is no multiple of 8.
    pub fn fill(&mut self, block: &mut [u8]) {
        let length = block.len();
        assert!(length <= BLOCK_BYTES && length.is_multiple_of(size_of::<u64>()), "{length} bytes");
        let key = self.keys.next();
        for (word, entry) in block.chunks_exact_mut(size_of::<u64>()).zip(&self.table) {
            word.copy_from_slice(&(entry ^ key).to_le_bytes());
        }
    }
}

/// The splitmix64 random number generator.
#[derive(Debug, Clone)]
struct SplitMix(u64);

impl SplitMix {
    /// 2^64 divided by the golden ratio.
    const STEP: u64 = 0x9e37_79b9_7f4a_7c15;

    fn next(&mut self) -> u64 {
        self.0 = self.0.wrapping_add(Self::STEP);
        let mut mix = self.0;
        mix = (mix ^ (mix >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        mix = (mix ^ (mix >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
        mix ^ (mix >> 31)
    }
}

/// Compares a stream of bytes with a pattern, until the first byte that differs.
#[derive(Debug)]
pub struct Comparison {
    pattern: Pattern,
    expected: Vec<u8>,
    /// Position in `expected` of the next byte.
    next: usize,
    equal_bytes: u64,
    differs: bool,
}

impl Comparison {
    pub fn new(seed: u64) -> Self {
        let mut pattern = Pattern::new(seed);
        let mut expected = vec![0; BLOCK_BYTES];
        pattern.fill(&mut expected);
        Self { pattern, expected, next: 0, equal_bytes: 0, differs: false }
    }

    /// Compares the next bytes of the stream.
    pub fn take(&mut self, mut bytes: &[u8]) {
        while !bytes.is_empty() && !self.differs {
            if self.next == BLOCK_BYTES {
                self.pattern.fill(&mut self.expected);
                self.next = 0;
            }
            let expected = &self.expected[self.next..];
            let (part, rest) = bytes.split_at(bytes.len().min(expected.len()));
            let equal = match *part == expected[..part.len()] {
                true => part.len(),
                false => part.iter().zip(expected).take_while(|(is, should)| is == should).count(),
            };
            self.differs = equal < part.len();
            self.equal_bytes += equal as u64;
            self.next += equal;
            bytes = rest;
        }
    }

    /// Number of bytes before the first that differs, or of all that were taken.
    pub fn equal_bytes(&self) -> u64 {
        self.equal_bytes
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// The first blocks of a pattern.
    fn blocks<const N: usize>(seed: u64) -> [Vec<u8>; N] {
        let mut pattern = Pattern::new(seed);
        std::array::from_fn(|_| {
            let mut block = vec![0; BLOCK_BYTES];
            pattern.fill(&mut block);
            block
        })
    }

    #[test]
    fn no_word_is_where_another_is_in_its_block_or_the_next() {
        let [first, second] = blocks(1);
        let mut words: Vec<&[u8]> = first.chunks_exact(8).chain(second.chunks_exact(8)).collect();
        words.sort_unstable();
        words.dedup();
        assert_eq!(words.len(), 2 * BLOCK_BYTES / 8);
        assert_ne!(first, blocks::<1>(2)[0]);
        let mut beginning = vec![0; 64];
        Pattern::new(1).fill(&mut beginning);
        assert_eq!(beginning, first[..64]);
    }

    #[test]
    fn matches_the_published_splitmix64() {
        // The first two outputs for seed 0, as in the reference implementation.
        let mut random = SplitMix(0);
        assert_eq!(random.next(), 0xe220_a839_7b1d_cdaf);
        assert_eq!(random.next(), 0x6e78_9e6a_a1b9_65f4);
    }

    #[test]
    fn the_first_byte_that_differs_is_found_however_the_stream_is_cut() {
        let stream = blocks::<3>(7).concat();
        for part in [1000, BLOCK_BYTES - 1, BLOCK_BYTES, 2 * BLOCK_BYTES + 1] {
            for wrong in [0, 1, BLOCK_BYTES - 1, BLOCK_BYTES, stream.len() - 1, stream.len()] {
                let mut came = stream.clone();
                if let Some(byte) = came.get_mut(wrong) {
                    *byte ^= 1;
                }
                let mut comparison = Comparison::new(7);
                came.chunks(part).for_each(|bytes| comparison.take(bytes));
                assert_eq!(comparison.equal_bytes(), wrong as u64, "in parts of {part}");
            }
        }
    }

    #[test]
    fn lost_doubled_and_swapped_words_differ() {
        let [first, second] = blocks(3);
        let lost = [&first[..4096], &first[4104..]].concat();
        let doubled = [&first[..4096], &first[4088..]].concat();
        let swapped = [&first[..4096], &first[4104..4112], &first[4096..4104]].concat();
        for came in [lost, doubled, swapped] {
            let mut comparison = Comparison::new(3);
            comparison.take(&came);
            assert!((4096..4104).contains(&comparison.equal_bytes()));
        }
        let mut comparison = Comparison::new(3);
        comparison.take(&second);
        assert!(comparison.equal_bytes() < 8);
    }
}
