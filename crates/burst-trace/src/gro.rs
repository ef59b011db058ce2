//! Frames that were joined on their way.

/// Packets that were each made of several frames of the guest (GRO), on one virtqueue or several.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct GroCounts {
    /// Number of these packets.
    pub frames: u64,
    /// Number of the guest's frames in them.
    pub segments: u64,
}

impl GroCounts {
    /// Those of both.
    #[must_use]
    pub const fn plus(self, other: Self) -> Self {
        Self {
            frames: self.frames.saturating_add(other.frames),
            segments: self.segments.saturating_add(other.segments),
        }
    }

    /// What was counted since `before`.
    #[must_use]
    pub const fn since(self, before: Self) -> Self {
        Self {
            frames: self.frames.saturating_sub(before.frames),
            segments: self.segments.saturating_sub(before.segments),
        }
    }

    /// Mean number of the guest's frames in such a packet, if there were any.
    #[must_use]
    pub fn mean_segments(self) -> Option<f64> {
        (self.frames > 0).then(|| self.segments as f64 / self.frames as f64)
    }
}
