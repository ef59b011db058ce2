//! The programs of `bpf/stages.bpf.c`, loaded and attached.

use burst_trace::KernelStage;
use std::os::fd::AsFd as _;

use libbpf_rs::{Link, Map, MapCore, MapFlags, Object, ObjectBuilder, Program};

/// The compiled programs, aligned as an ELF file has to be.
#[repr(align(8))]
struct Aligned<T: ?Sized>(T);

static OBJECT: &Aligned<[u8]> =
    &Aligned(*include_bytes!(concat!(env!("OUT_DIR"), "/stages.bpf.o")));

/// Programs that are loaded together, and the stages that they measure.
pub struct Group {
    names: &'static [&'static str],
    /// What they measure.
    pub stages: &'static [KernelStage],
    /// Whether there is nothing to measure without a tap.
    pub needs_taps: bool,
}

/// All programs. One group can be there without the other.
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

/// A group in the kernel.
#[derive(Debug)]
pub struct Programs {
    // Dropped in this order.
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

    /// Whether it sees threads being woken up.
    pub const fn sees_threads(&self) -> bool {
        self.sees_threads
    }

    /// The kernel's numbers of the programs.
    pub fn ids(&self) -> impl Iterator<Item = u32> + '_ {
        let loaded = self.object.progs().filter(Program::autoload);
        loaded.filter_map(|program| Program::id_from_fd(program.as_fd()).ok())
    }

    /// Enters `key` with `value` in the map called `name`.
    pub fn set(&self, name: &str, key: u32, value: u32) -> libbpf_rs::Result<()> {
        let Some(map) = self.map(name) else { return Ok(()) };
        map.update(&key.to_ne_bytes(), &value.to_ne_bytes(), MapFlags::ANY)
    }

    /// The number in the first place of the map called `name`.
    pub fn counter(&self, name: &str) -> Option<u64> {
        let bytes = self.map(name)?.lookup(&0_u32.to_ne_bytes(), MapFlags::ANY).ok()??;
        Some(u64::from_ne_bytes(bytes.try_into().ok()?))
    }

    pub fn map(&self, name: &str) -> Option<Map<'_>> {
        self.object.maps().find(|map| map.name() == name)
    }
}
