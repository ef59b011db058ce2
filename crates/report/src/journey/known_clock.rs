//! What is known of the guest's clock before its probes are looked at.

use serde::Deserialize;

use super::one_clock::Bounds;

/// The relation between the guest's `CLOCK_MONOTONIC` and the host's.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Relation {
    /// They are the same clock.
    Same,
    /// The guest's is the host's plus a constant, as that of User Mode Linux is.
    Constant,
    /// They drift apart at a constant rate.
    #[default]
    Drifting,
}

impl Relation {
    /// `same`, `constant` or `drifting`.
    #[must_use]
    pub const fn name(self) -> &'static str {
        match self {
            Self::Same => "same",
            Self::Constant => "constant",
            Self::Drifting => "drifting",
        }
    }
}

/// What is known of the guest's clock.
#[derive(Clone, Debug, Default)]
pub struct KnownClock {
    /// Its relation to the host's.
    pub relation: Relation,
    /// Measured bounds of its offset.
    pub bounds: Option<ClockBounds>,
}

/// Measured bounds of the offset between both clocks.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct ClockBounds {
    /// How they were measured.
    pub means: Means,
    /// The bounds.
    pub bounds: Vec<ClockBound>,
}

/// How bounds were measured.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Means {
    /// By a page of memory that guest and host share.
    ClockPage,
    /// By the guest's clock device of the driver `ptp_kvm`: the host reads its own clock for the guest.
    PtpKvm,
    /// By the guest's counter, of which KVM says how it relates to the host's.
    KvmTsc,
}

impl Means {
    /// `clock-page`, `ptp-kvm` or `kvm-tsc`.
    #[must_use]
    pub const fn name(self) -> &'static str {
        match self {
            Self::ClockPage => "clock-page",
            Self::PtpKvm => "ptp-kvm",
            Self::KvmTsc => "kvm-tsc",
        }
    }
}

/// A bound of the guest's `CLOCK_MONOTONIC` minus the host's, at a time.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Deserialize)]
pub struct ClockBound {
    /// The host's `CLOCK_MONOTONIC`, nanoseconds.
    pub host_ns: i64,
    /// The offset is at least this, nanoseconds.
    pub low_ns: i64,
    /// The offset is at most this, nanoseconds.
    pub high_ns: i64,
}

impl ClockBounds {
    /// Adds them to others, which are by the recorder's clock. `error_ns`: by how much that is from the host's
    /// `CLOCK_MONOTONIC`.
    pub(super) fn add_to(&self, bounds: &mut Bounds, error_ns: u64) {
        for &ClockBound { host_ns, low_ns, high_ns } in &self.bounds {
            bounds.at_least(host_ns, low_ns.saturating_sub_unsigned(error_ns));
            bounds.at_most(host_ns, high_ns.saturating_add_unsigned(error_ns));
        }
    }
}
