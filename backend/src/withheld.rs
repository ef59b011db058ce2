//! `--features`: virtio features that are withheld from the guest.

use std::str::FromStr;

use virtio_net::features::{OFFERED_MAX, by_name, names};

/// `--features`: a set of features, as bits.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Withheld(pub u64);

impl FromStr for Withheld {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, Self::Err> {
        let known = || names(OFFERED_MAX).join(", ");
        let feature = |name: &str| match name.strip_prefix('-') {
            None => Err(format!(
                "expected a '-' before each name, as in -packed, found '{name}': features can only be withheld; all others \
                 that the datapath allows are offered"
            )),
            Some(bare) => by_name(bare)
                .filter(|feature| feature & OFFERED_MAX != 0)
                .ok_or_else(|| format!("expected '-' and one of {}, found '{name}'", known())),
        };
        let mut all = text.split(',').map(feature);
        Ok(Self(all.try_fold(0, |set, feature| Ok::<_, String>(set | feature?))?))
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use virtio_net::features::{EVENT_IDX, RING_PACKED, VERSION_1};

    #[test]
    fn names_are_withheld_and_others_refused() {
        assert_eq!("-packed".parse(), Ok(Withheld(RING_PACKED)));
        assert_eq!("-packed,-event_idx".parse(), Ok(Withheld(RING_PACKED | EVENT_IDX)));
        assert_eq!("-version_1".parse(), Ok(Withheld(VERSION_1)));
        for bare in ["packed", "+packed", "-packed,event_idx", ""] {
            let error = bare.parse::<Withheld>().unwrap_err();
            assert!(error.starts_with("expected a '-' before each name"), "{bare}: {error}");
        }
        // `rss` is a known feature that is never offered.
        for unknown in ["-paked", "-rss", "-packed,", "-packed, -event_idx", "-"] {
            let error = unknown.parse::<Withheld>().unwrap_err();
            assert!(error.starts_with("expected "), "{unknown}: {error}");
        }
        let error = "-paked".parse::<Withheld>().unwrap_err();
        assert!(error.contains("event_idx, version_1"), "{error}");
        assert!(error.ends_with("found '-paked'"), "{error}");
    }
}
