//! Several buffers as one run of bytes.

use guest_memory::GuestSlice;

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
    let mut read = 0;
    for slice in slices {
        read += slice.read(0, &mut bytes[read..]);
    }
}

/// Copies the run that `from` makes, from its `skip` on, to `offset` of the run that `to` makes.
pub fn copy_run(
    to: &[GuestSlice<'_>],
    mut offset: usize,
    from: &[GuestSlice<'_>],
    mut skip: usize,
) {
    for from in from {
        while skip < from.len() {
            let Some((at, slice)) = slice_at(to, offset) else { return };
            let count = slice.copy_from(at, from, skip);
            offset += count;
            skip += count;
        }
        skip -= from.len();
    }
}

/// The slice that holds byte `offset` of the run that `slices` make together, and where in it.
fn slice_at<'s, 'm>(
    slices: &'s [GuestSlice<'m>],
    mut offset: usize,
) -> Option<(usize, &'s GuestSlice<'m>)> {
    for slice in slices {
        if offset < slice.len() {
            return Some((offset, slice));
        }
        offset -= slice.len();
    }
    None
}
