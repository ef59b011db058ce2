//! Which CPU of the host each part of a variant has.

use std::fs;

use serde::{Deserialize, Serialize};

/// CPUs with consecutive numbers.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Range {
    /// The first one.
    pub first: usize,
    /// The last one.
    pub last: usize,
}

/// The CPUs of a host, dealt out.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Cpus {
    /// The back end's, for itself.
    pub worker: usize,
    /// Of guests, and of a responder without a guest.
    pub guests: Range,
    /// Of the talker, and of the load.
    pub talker: Range,
}

impl Range {
    /// As taskset writes it, as in `0-2`.
    #[must_use]
    pub fn list(self) -> String {
        let Self { first, last } = self;
        if first == last { first.to_string() } else { format!("{first}-{last}") }
    }
}

impl Cpus {
    /// The back end has the last of `cpus` CPUs, nobody those before it that are `reserved`; guests and talker share the
    /// others. With `apart`, the talker has the first one for itself, if there are two of them. `None` if there is none.
    #[must_use]
    pub fn deal(cpus: usize, reserved: usize, apart: bool) -> Option<Self> {
        let worker = cpus.checked_sub(1)?;
        let last = worker.checked_sub(reserved + 1)?;
        let others = Range { first: 0, last };
        Some(if apart && last > 0 {
            let [talker, guests] = [Range { first: 0, last: 0 }, Range { first: 1, last }];
            Self { worker, guests, talker }
        } else {
            Self { worker, guests: others, talker: others }
        })
    }
}

/// The size of the largest cache of this CPU, bytes; `None` if the kernel does not know it.
#[must_use]
pub fn last_level_cache_bytes(cpu: usize) -> Option<u64> {
    let caches = fs::read_dir(format!("/sys/devices/system/cpu/cpu{cpu}/cache")).ok()?;
    let size = |cache: fs::DirEntry| bytes(&fs::read_to_string(cache.path().join("size")).ok()?);
    caches.flatten().filter_map(size).max()
}

/// Bytes of `32768K`.
fn bytes(text: &str) -> Option<u64> {
    text.trim().strip_suffix('K')?.parse::<u64>().ok()?.checked_mul(1024)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_last_cpu_is_the_back_ends_and_the_first_one_the_talkers() {
        assert_eq!(Cpus::deal(1, 0, true), None);
        for apart in [false, true] {
            let two = Cpus::deal(2, 0, apart).unwrap();
            assert_eq!((two.worker, two.guests.list(), two.talker), (1, "0".into(), two.guests));
        }
        let four = Cpus::deal(4, 0, false).unwrap();
        assert_eq!((four.worker, four.guests.list(), four.talker), (3, "0-2".into(), four.guests));
        let four = Cpus::deal(4, 0, true).unwrap();
        assert_eq!((four.guests.list(), four.talker.list()), ("1-2".into(), "0".into()));
        let four = Cpus::deal(4, 1, true).unwrap();
        assert_eq!(
            (four.worker, four.guests.list(), four.talker.list()),
            (3, "1".into(), "0".into())
        );
        assert_eq!((Cpus::deal(0, 0, true), Cpus::deal(2, 1, false)), (None, None));
    }

    #[test]
    fn a_cache_size_is_read() {
        assert_eq!(bytes("32768K\n"), Some(32 << 20));
        assert_eq!((bytes("x"), bytes("9999999999999999999K"), bytes("")), (None, None, None));
    }
}
