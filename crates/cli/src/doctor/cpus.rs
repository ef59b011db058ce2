//! Sets of CPUs, as the kernel prints them.

use std::collections::BTreeSet;

/// The kernel's own limit is 8192 (`NR_CPUS`).
const CPUS_MAX: u32 = 8192;

/// A set of CPUs.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Cpus(BTreeSet<u32>);

impl Cpus {
    /// From a list such as `0-3,8`; `None` if it is no list.
    pub fn from_list(list: &str) -> Option<Self> {
        let mut cpus = BTreeSet::new();
        for part in list.trim().split(',').filter(|part| !part.is_empty()) {
            let (first, last) = part.split_once('-').unwrap_or((part, part));
            let (first, last): (u32, u32) = (first.parse().ok()?, last.parse().ok()?);
            cpus.extend(first..=last.min(CPUS_MAX));
        }
        Some(Self(cpus))
    }

    /// From a mask such as `00000001,000000ff`; `None` if it is no mask.
    pub fn from_mask(mask: &str) -> Option<Self> {
        let mut cpus = BTreeSet::new();
        for (word, base) in mask.trim().rsplit(',').zip((0..CPUS_MAX).step_by(32)) {
            let bits = u32::from_str_radix(word, 16).ok()?;
            cpus.extend((0..32).filter(|bit| bits >> bit & 1 == 1).map(|bit| base + bit));
        }
        Some(Self(cpus))
    }

    /// Whether a CPU is in both.
    pub fn overlaps(&self, other: &Self) -> bool {
        !self.0.is_disjoint(&other.0)
    }

    /// Those of `self` that are not in `other`.
    pub fn without(&self, other: &Self) -> Self {
        Self(self.0.difference(&other.0).copied().collect())
    }

    /// Those of both.
    pub fn and(&self, other: &Self) -> Self {
        Self(self.0.union(&other.0).copied().collect())
    }

    /// Whether there are none.
    pub fn is_empty(&self) -> bool {
        self.0.is_empty()
    }

    /// As a list: `0-3,8`.
    pub fn list(&self) -> String {
        let mut ranges: Vec<(u32, u32)> = Vec::new();
        for &cpu in &self.0 {
            match ranges.last_mut() {
                Some((_, last)) if *last + 1 == cpu => *last = cpu,
                _ => ranges.push((cpu, cpu)),
            }
        }
        let range = |&(first, last): &(u32, u32)| match first == last {
            true => first.to_string(),
            false => format!("{first}-{last}"),
        };
        ranges.iter().map(range).collect::<Vec<_>>().join(",")
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn lists_and_masks_are_read_and_printed() {
        for list in ["", "3", "0-3,8", "0,2,4-5"] {
            assert_eq!(Cpus::from_list(list).unwrap().list(), list);
        }
        assert_eq!(Cpus::from_list("0-4294967295").unwrap().list(), "0-8192");
        assert_eq!(Cpus::from_mask("3\n").unwrap().list(), "0-1");
        assert_eq!(Cpus::from_mask("00000001,80000000,00000005").unwrap().list(), "0,2,63-64");
        assert_eq!(Cpus::from_mask("0"), Some(Cpus::default()));
        for wrong in ["a", "1-", "-1"] {
            assert_eq!(Cpus::from_list(wrong), None, "{wrong}");
        }
        assert_eq!(Cpus::from_mask("x"), None);
    }

    #[test]
    fn sets_are_compared() {
        let of = |list| Cpus::from_list(list).unwrap();
        assert!(of("0-3").overlaps(&of("3-5")) && !of("0-2").overlaps(&of("3")));
        assert_eq!(of("0-3").without(&of("1-2")), of("0,3"));
        assert_eq!(of("0").and(&of("2")), of("0,2"));
        assert!(of("1").without(&of("0-3")).is_empty());
    }
}
