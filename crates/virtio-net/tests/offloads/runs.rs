//! Host memory cut into slices, with a canary around each.

use guest_memory::{GuestSlice, Spare};
use proptest::collection::vec;
use proptest::prelude::*;

const CANARY: u8 = 0xa5;
const MARGIN: usize = 8;

/// Bytes in pieces.
pub struct Run {
    spare: Spare,
    lens: Vec<usize>,
}

/// Lengths of pieces, over and over.
pub fn cuts() -> impl Strategy<Value = Vec<usize>> {
    prop_oneof![
        Just(vec![100_000]),
        Just(vec![4096]),
        Just(vec![1]),
        vec(1..60_usize, 1..6),
        vec(0..3000_usize, 1..5).prop_map(|cuts| [cuts, vec![1]].concat()),
    ]
}

impl Run {
    /// `len` canary bytes in pieces of these lengths, over and over.
    pub fn new(len: usize, cuts: &[usize]) -> Self {
        let mut lens = Vec::new();
        let mut left = len;
        while left > 0 {
            let next = cuts[lens.len() % cuts.len()].min(left);
            lens.push(next);
            left -= next;
        }
        let spare = Spare::new(len + MARGIN * (lens.len() + 1));
        spare.slice().write(0, &vec![CANARY; spare.slice().len()]);
        Self { spare, lens }
    }

    /// The same of these bytes.
    pub fn of(bytes: &[u8], cuts: &[usize]) -> Self {
        let run = Self::new(bytes.len(), cuts);
        let mut left = bytes;
        for slice in run.slices() {
            left = &left[slice.write(0, left)..];
        }
        run
    }

    pub fn slices(&self) -> Vec<GuestSlice<'_>> {
        let mut at = MARGIN;
        let mut slices = Vec::new();
        for len in &self.lens {
            slices.push(self.spare.slice().part(at, *len));
            at += len + MARGIN;
        }
        slices
    }

    pub fn bytes(&self) -> Vec<u8> {
        let mut bytes = Vec::new();
        for slice in self.slices() {
            let mut piece = vec![0; slice.len()];
            slice.read(0, &mut piece);
            bytes.extend(piece);
        }
        bytes
    }

    /// Whether what lies between the pieces is as it was.
    pub fn is_sound(&self) -> bool {
        let mut all = vec![0; self.spare.slice().len()];
        self.spare.slice().read(0, &mut all);
        let mut at = 0;
        self.lens.iter().chain([&0]).all(|len| {
            let margin = &all[at..at + MARGIN];
            at += MARGIN + len;
            margin == [CANARY; MARGIN]
        })
    }

    /// Bytes of the run but for `before` and `after` ones, which have to be as they were.
    pub fn between(&self, before: usize, after: usize) -> Vec<u8> {
        assert!(self.is_sound());
        let mut bytes = self.bytes();
        let end = bytes.split_off(bytes.len() - after);
        let middle = bytes.split_off(before);
        assert!(bytes.into_iter().chain(end).all(|byte| byte == CANARY));
        middle
    }
}
