//! Loads and attaches the programs of `bpf/stages.bpf.c`.

use burst_trace::KernelStage;
use std::os::fd::AsFd as _;

use libbpf_rs::{Link, Map, MapCore, MapFlags, Object, ObjectBuilder, Program};

/// The compiled programs, with the alignment that an ELF file needs.
#[repr(align(8))]
struct Aligned<T: ?Sized>(T);

static OBJECT: &Aligned<[u8]> =
    &Aligned(*include_bytes!(concat!(env!("OUT_DIR"), "/stages.bpf.o")));

/// Programs that are loaded together, and the stages that they measure.
pub struct Group {
    names: &'static [&'static str],
    /// The stages.
    pub stages: &'static [KernelStage],
    /// Whether they have nothing to measure without a tap.
    pub needs_taps: bool,
}

/// All programs. Each group works without the other.
pub const GROUPS: [Group; 2] = [
    Group {
        names: &["waking", "switching"],
        stages: &[KernelStage::Wakeup, KernelStage::Inject],
        needs_taps: false,
    },
    Group {
        names: &["receiving", "transmitting"],
        stages: &[KernelStage::HostTx, KernelStage::HostRx],
        needs_taps: true,
    },
];

/// A loaded group.
#[derive(Debug)]
pub struct Programs {
    // Field order is drop order: the links, then the object that has the programs.
    _links: Vec<Link>,
    object: Object,
    sees_threads: bool,
}

impl Programs {
    pub fn load(group: &Group) -> libbpf_rs::Result<Self> {
        let mut object = ObjectBuilder::default().open_memory(&OBJECT.0)?;
        let is_ours = |name: &std::ffi::OsStr| group.names.iter().any(|ours| name == *ours);
        for mut program in object.progs_mut() {
            let is_wanted = is_ours(program.name());
            program.set_autoload(is_wanted);
        }
        let object = object.load()?;
        let links = (object.progs_mut())
            .filter(|program| is_ours(program.name()))
            .map(|program| program.attach())
            .collect::<libbpf_rs::Result<_>>()?;
        Ok(Self {
            _links: links,
            object,
            sees_threads: group.stages.contains(&KernelStage::Wakeup),
        })
    }

    /// Whether it measures wake-ups of threads.
    pub const fn sees_threads(&self) -> bool {
        self.sees_threads
    }

    /// The kernel's ids of the programs.
    pub fn ids(&self) -> impl Iterator<Item = u32> + '_ {
        let loaded = self.object.progs().filter(Program::autoload);
        loaded.filter_map(|program| Program::id_from_fd(program.as_fd()).ok())
    }

    /// Sets `key` to `value` in the map `name`, if there is such a map.
    pub fn set(&self, name: &str, key: u32, value: u32) -> libbpf_rs::Result<()> {
        let Some(map) = self.map(name) else { return Ok(()) };
        map.update(&key.to_ne_bytes(), &value.to_ne_bytes(), MapFlags::ANY)
    }

    /// The number at index 0 of the map `name`.
    pub fn counter(&self, name: &str) -> Option<u64> {
        let bytes = self.map(name)?.lookup(&0_u32.to_ne_bytes(), MapFlags::ANY).ok()??;
        Some(u64::from_ne_bytes(bytes.try_into().ok()?))
    }

    pub fn map(&self, name: &str) -> Option<Map<'_>> {
        self.object.maps().find(|map| map.name() == name)
    }
}
