//! Notifications between a guest and its device, counted for each virtqueue.

/// A notification, or one that was left out (virtio 1.2, 2.7.7 and 2.8.7: notification suppression).
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[repr(u8)]
pub enum Notification {
    /// The guest's kick woke the worker up. Kicks between two sleeps of the worker count once, and a worker that never
    /// sleeps counts none.
    Kick,
    /// The guest was signalled: its call descriptor took the write.
    CallSent,
    /// The guest was not signalled: it needs no notification (by flags or event index), or gave no call descriptor.
    CallSuppressed,
    /// The call descriptor did not take the write: the front end does not read it, or closed its other end.
    CallRefused,
}

impl Notification {
    /// Every kind, in the order of the numbers in the file.
    pub const ALL: [Self; 4] =
        [Self::Kick, Self::CallSent, Self::CallSuppressed, Self::CallRefused];

    /// The name in JSON.
    #[must_use]
    pub const fn name(self) -> &'static str {
        match self {
            Self::Kick => "kicks",
            Self::CallSent => "calls_sent",
            Self::CallSuppressed => "calls_suppressed",
            Self::CallRefused => "calls_refused",
        }
    }
}

/// The notifications of one virtqueue, by kind.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Notifications([u64; Notification::ALL.len()]);

impl Notifications {
    /// With this number of each kind.
    #[must_use]
    pub fn new(count: impl FnMut(Notification) -> u64) -> Self {
        Self(Notification::ALL.map(count))
    }

    /// The number of `kind`.
    #[must_use]
    pub const fn of(&self, kind: Notification) -> u64 {
        self.0[kind as usize]
    }

    /// Each kind with its number.
    pub fn iter(&self) -> impl Iterator<Item = (Notification, u64)> + use<> {
        Notification::ALL.into_iter().zip(self.0)
    }

    /// What was counted since `before`.
    #[must_use]
    pub fn since(&self, before: &Self) -> Self {
        Self::new(|kind| self.of(kind).saturating_sub(before.of(kind)))
    }

    /// Whether nothing was counted: the queue is not in use, or an older daemon wrote the file.
    #[must_use]
    pub fn is_empty(&self) -> bool {
        self.0.iter().all(|&count| count == 0)
    }
}
