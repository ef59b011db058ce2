//! Runs: the bytes of several buffers, one after the other.

use guest_memory::{GuestSlice, Sum};

/// Writes `bytes` at `offset` of the run `slices`.
#[inline]
pub fn write_at(slices: &[GuestSlice<'_>], mut offset: usize, mut bytes: &[u8]) {
    for slice in slices {
        if bytes.is_empty() {
            return;
        }
        if offset >= slice.len() {
            offset -= slice.len();
            continue;
        }
        bytes = &bytes[slice.write(offset, bytes)..];
        offset = 0;
    }
}

/// Fills `bytes` from the front of the run `slices`.
pub fn read_front(slices: &[GuestSlice<'_>], bytes: &mut [u8]) {
    read_at(slices, 0, bytes);
}

/// Fills `bytes` from `offset` of the run `slices`. Returns the number of bytes read: fewer if the run ends.
#[inline]
pub fn read_at(slices: &[GuestSlice<'_>], mut offset: usize, bytes: &mut [u8]) -> usize {
    let mut read = 0;
    for slice in slices {
        if read == bytes.len() {
            break;
        }
        if offset >= slice.len() {
            offset -= slice.len();
            continue;
        }
        read += slice.read(offset, &mut bytes[read..]);
        offset = 0;
    }
    read
}

/// Length of the run `slices`, bytes.
#[inline]
pub fn len_of(slices: &[GuestSlice<'_>]) -> usize {
    slices.iter().map(GuestSlice::len).sum()
}

/// Copies the run `from`, without its first `skip` bytes, to `offset` of the run `to`.
#[inline]
pub fn copy_run(to: &[GuestSlice<'_>], offset: usize, from: &[GuestSlice<'_>], skip: usize) {
    if let ([to], [from]) = (to, from) {
        to.copy_from(offset, from, skip);
        return;
    }
    Copying { to, at: Place::of(to, offset), from, from_at: Place::of(from, skip) }
        .copy(usize::MAX);
}

/// A position in a run: a slice, and an offset in it. It is valid as long as the slices stay the same, so that a copy
/// can continue without counting from the front again.
#[derive(Clone, Copy, Debug, Default)]
pub struct Place {
    slice: usize,
    offset: usize,
}

impl Place {
    /// Byte `offset` of the run `slices`.
    #[inline]
    pub fn of(slices: &[GuestSlice<'_>], offset: usize) -> Self {
        Self { slice: 0, offset }.settled(slices)
    }

    /// The position `count` bytes later.
    #[inline]
    pub fn forward(self, slices: &[GuestSlice<'_>], count: usize) -> Self {
        Self { offset: self.offset.saturating_add(count), ..self }.settled(slices)
    }

    /// The `len` bytes from this position of the run `slices` on.
    #[inline]
    pub fn run<'m>(
        self,
        slices: &[GuestSlice<'m>],
        len: usize,
    ) -> impl Iterator<Item = GuestSlice<'m>> {
        let (mut offset, mut left) = (self.offset, len);
        let parts = slices[self.slice.min(slices.len())..].iter().map(move |slice| {
            let part = slice.part(std::mem::take(&mut offset), left);
            left -= part.len();
            part
        });
        parts.filter(|part| !part.is_empty())
    }

    /// The same position, with `offset` inside its slice.
    #[inline]
    fn settled(mut self, slices: &[GuestSlice<'_>]) -> Self {
        while let Some(slice) = slices.get(self.slice)
            && self.offset >= slice.len()
        {
            self.offset -= slice.len();
            self.slice += 1;
        }
        self
    }
}

/// A copy from one run to another that can be done in several steps.
#[derive(Debug)]
pub struct Copying<'r, 't, 'f> {
    /// The run to write.
    pub to: &'r [GuestSlice<'t>],
    /// Position of the next write.
    pub at: Place,
    /// The run to read.
    pub from: &'r [GuestSlice<'f>],
    /// Position of the next read.
    pub from_at: Place,
}

impl Copying<'_, '_, '_> {
    /// Copies `len` bytes, or fewer if one of the runs ends.
    #[inline]
    pub fn copy(&mut self, len: usize) {
        self.by_pieces(len, |to, offset, piece| to.copy_from(offset, piece, 0));
    }

    /// As [`copy`](Self::copy), and appends the bytes to `sum`.
    #[inline]
    pub fn copy_summing(&mut self, len: usize, sum: &mut Sum) {
        self.by_pieces(len, |to, offset, piece| to.copy_from_summing(offset, piece, 0, sum));
    }

    #[inline]
    fn by_pieces(
        &mut self,
        len: usize,
        mut copy: impl FnMut(&GuestSlice<'_>, usize, &GuestSlice<'_>) -> usize,
    ) {
        let mut left = len;
        while left > 0
            && let Some(to) = self.to.get(self.at.slice)
            && let Some(from) = self.from.get(self.from_at.slice)
        {
            let count = copy(to, self.at.offset, &from.part(self.from_at.offset, left));
            left -= count;
            self.at = self.at.forward(self.to, count);
            self.from_at = self.from_at.forward(self.from, count);
        }
    }
}
