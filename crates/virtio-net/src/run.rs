//! Several buffers as one run of bytes.

use guest_memory::{GuestSlice, Sum};

/// Writes `bytes` at `offset` of the run that `slices` make together.
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

/// Fills `bytes` from the front of the run that `slices` make together.
pub fn read_front(slices: &[GuestSlice<'_>], bytes: &mut [u8]) {
    read_at(slices, 0, bytes);
}

/// Fills `bytes` from `offset` of the run that `slices` make together. Returns how many bytes there were.
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

/// How many bytes `slices` are together.
#[inline]
pub fn len_of(slices: &[GuestSlice<'_>]) -> usize {
    slices.iter().map(GuestSlice::len).sum()
}

/// Copies the run that `from` makes, from its `skip` on, to `offset` of the run that `to` makes.
#[inline]
pub fn copy_run(to: &[GuestSlice<'_>], offset: usize, from: &[GuestSlice<'_>], skip: usize) {
    if let ([to], [from]) = (to, from) {
        to.copy_from(offset, from, skip);
        return;
    }
    Copying { to, at: Place::of(to, offset), from, from_at: Place::of(from, skip) }
        .copy(usize::MAX);
}

/// Where a run goes on: which slice, and where in it. It stays good as long as the slices are the same, so that nobody
/// has to count from the front again.
#[derive(Clone, Copy, Debug, Default)]
pub struct Place {
    slice: usize,
    offset: usize,
}

impl Place {
    /// Byte `offset` of the run that `slices` make together.
    #[inline]
    pub fn of(slices: &[GuestSlice<'_>], offset: usize) -> Self {
        Self { slice: 0, offset }.settled(slices)
    }

    /// So many bytes further on.
    #[inline]
    pub fn forward(self, slices: &[GuestSlice<'_>], count: usize) -> Self {
        Self { offset: self.offset.saturating_add(count), ..self }.settled(slices)
    }

    /// With the offset in its slice.
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

/// A copy from one run to another that goes on from piece to piece.
#[derive(Debug)]
pub struct Copying<'r, 't, 'f> {
    /// The run that is written.
    pub to: &'r [GuestSlice<'t>],
    /// Where it is written next.
    pub at: Place,
    /// The run that is read.
    pub from: &'r [GuestSlice<'f>],
    /// Where it is read next.
    pub from_at: Place,
}

impl Copying<'_, '_, '_> {
    /// Copies `len` bytes, or as many as there are on both sides.
    #[inline]
    pub fn copy(&mut self, len: usize) {
        self.by_pieces(len, |to, offset, piece| to.copy_from(offset, piece, 0));
    }

    /// The same, and appends them to `sum`.
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
