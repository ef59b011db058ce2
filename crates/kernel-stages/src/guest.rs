//! The way of received probes through a guest's kernel, by the programs of `bpf/guest.bpf.c`.

use std::num::NonZeroU64;
use std::path::Path;

use libbpf_rs::{Link, Map, MapCore as _, MapFlags, Object, ObjectBuilder};

use crate::object::{Aligned, is_in_own_pid_namespace, is_not_allowed, log_messages, refusal};

static OBJECT: &Aligned<[u8]> = &Aligned(*include_bytes!(concat!(env!("OUT_DIR"), "/guest.bpf.o")));

/// The kernel's description of its own types, in which the programs find what they read.
const BTF: &str = "/sys/kernel/btf/vmlinux";

/// Where a received probe was at which time, nanoseconds of `CLOCK_MONOTONIC`; `None` if it was not seen there.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct GuestStamps {
    /// The device's hard interrupt began. It raised the network softirq in which the probe was received. `None` if no
    /// interrupt did: another one polled the driver.
    pub interrupt_ns: Option<NonZeroU64>,
    /// That softirq began: NAPI polls the driver. `None` if a thread polls it (threaded NAPI).
    pub softirq_ns: Option<NonZeroU64>,
    /// The stack woke up the receiving thread for the probe. `None` if the thread did not sleep.
    pub woken_ns: Option<NonZeroU64>,
    /// That thread ran.
    pub running_ns: Option<NonZeroU64>,
}

/// The loaded programs. Dropping this removes them from the kernel.
#[derive(Debug)]
pub struct GuestStages {
    // Field order is drop order: the links, then the object that has the programs.
    _links: Vec<Link>,
    object: Object,
}

impl GuestStages {
    /// Attaches the programs. They stamp nothing until [`follow`](Self::follow).
    ///
    /// # Errors
    /// The reason why this kernel does not run them, in words.
    pub fn attach() -> Result<Self, String> {
        log_messages();
        if is_in_own_pid_namespace() {
            return Err("the kernel's programs do not know threads of this PID namespace".into());
        }
        if !Path::new(BTF).exists() {
            return Err(format!("this kernel has no BTF ({BTF})"));
        }
        Self::load().map_err(|error| {
            if is_not_allowed(&error) {
                "this process may not trace the kernel: run it as root".into()
            } else {
                refusal(&error)
            }
        })
    }

    fn load() -> libbpf_rs::Result<Self> {
        let object = ObjectBuilder::default().open_memory(&OBJECT.0)?.load()?;
        let links = object.progs_mut().map(|program| program.attach());
        Ok(Self { _links: links.collect::<libbpf_rs::Result<_>>()?, object })
    }

    /// Follows probes to the UDP port `port`, which the thread `thread` receives, and no others.
    ///
    /// # Errors
    /// If the kernel refuses the map's new entry.
    pub fn follow(&self, port: u16, thread: u32) -> libbpf_rs::Result<()> {
        let reader = [thread, port.into()].map(u32::to_ne_bytes).concat();
        self.map("readers").update(&0_u32.to_ne_bytes(), &reader, MapFlags::ANY)
    }

    /// The stamps of a probe that the thread has received. It takes a system call.
    #[must_use]
    pub fn stamps(&self, run: u32, sequence: u64) -> GuestStamps {
        let mut stamps = [0; 32];
        // A probe that was not seen, or that thousands of others followed, has none.
        match self.map("probes").lookup_into(&key(run, sequence), &mut stamps, MapFlags::ANY) {
            Ok(true) => GuestStamps::read(&stamps),
            Ok(false) | Err(_) => GuestStamps::default(),
        }
    }

    fn map(&self, name: &str) -> Map<'_> {
        self.object.maps().find(|map| map.name() == name).expect("a map of guest.bpf.c")
    }
}

/// A `struct probe` of the programs.
fn key(run: u32, sequence: u64) -> [u8; 16] {
    let mut key = [0; 16];
    key[..8].copy_from_slice(&sequence.to_ne_bytes());
    key[8..12].copy_from_slice(&run.to_ne_bytes());
    key[12..].copy_from_slice(&1_u32.to_ne_bytes());
    key
}

impl GuestStamps {
    /// Reads a `struct stamps` of the programs.
    fn read(bytes: &[u8; 32]) -> Self {
        let (words, _) = bytes.as_chunks();
        let word = |at: usize| NonZeroU64::new(u64::from_ne_bytes(words[at]));
        Self { interrupt_ns: word(0), softirq_ns: word(1), woken_ns: word(2), running_ns: word(3) }
    }

    /// The same without what is later than `received_ns`, when the application had the probe: a thread that had not yet
    /// fallen asleep when it was woken up may be chosen to run later, for something else.
    #[must_use]
    pub fn until(self, received_ns: u64) -> Self {
        let running_ns = self.running_ns.filter(|ns| ns.get() <= received_ns);
        Self { running_ns, ..self }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn stamps_are_read_as_the_programs_write_them() {
        let bytes = [5_u64, 0, 7, 9].map(u64::to_ne_bytes);
        let stamps = GuestStamps::read(bytes.as_flattened().try_into().unwrap());
        let expected = GuestStamps {
            interrupt_ns: NonZeroU64::new(5),
            softirq_ns: None,
            woken_ns: NonZeroU64::new(7),
            running_ns: NonZeroU64::new(9),
        };
        assert_eq!((stamps, stamps.until(9)), (expected, expected));
        assert_eq!(stamps.until(8), GuestStamps { running_ns: None, ..expected });
    }
}
