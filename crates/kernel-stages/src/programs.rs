//! Loads and attaches the programs of `bpf/stages.bpf.c`.

use burst_trace::KernelStage;
use std::ffi::OsStr;
use std::os::fd::AsFd as _;
use std::path::Path;

use libbpf_rs::btf::{Btf, BtfType};
use libbpf_rs::{Link, Map, MapCore, MapFlags, Object, ObjectBuilder, OpenObject, Program};

use crate::kvm::{FIELDS, Fields};
use crate::object::Aligned;

/// The map of processes whose threads are followed.
pub const PROCESSES: &str = "processes";

/// Whose process it is: `struct process` of the programs.
#[derive(Clone, Copy, Debug)]
pub enum Process {
    /// The daemon that has the workers.
    Daemon,
    /// The front end with this number.
    FrontEnd(u32),
    /// A program at the far end.
    FarEnd,
}

impl Process {
    /// As the programs read it.
    pub fn bytes(self) -> [u8; 8] {
        let [subject, number] = match self {
            Self::Daemon => [1, 0],
            Self::FrontEnd(number) => [2, number],
            Self::FarEnd => [3, 0],
        };
        let mut bytes = [0; 8];
        bytes[..4].copy_from_slice(&u32::to_ne_bytes(subject));
        bytes[4..].copy_from_slice(&u32::to_ne_bytes(number));
        bytes
    }
}

static OBJECT: &Aligned<[u8]> =
    &Aligned(*include_bytes!(concat!(env!("OUT_DIR"), "/stages.bpf.o")));

/// Programs that are loaded together, and the stages that they measure.
pub struct Group {
    names: &'static [&'static str],
    /// Programs without which the others measure less.
    optional: &'static [&'static str],
    /// Programs on tracepoints of KVM.
    kvm: &'static [&'static str],
    /// The stages.
    pub stages: &'static [KernelStage],
    /// Whether they have nothing to measure without a tap.
    pub needs_taps: bool,
}

/// All programs. Each group works without the other.
pub const GROUPS: [Group; 2] = [
    Group {
        names: &["waking", "switching"],
        optional: &[
            "device_begins",
            "device_ends",
            "timer_begins",
            "timer_ends",
            "reschedule_begins",
            "reschedule_ends",
            "call_begins",
            "call_ends",
            "single_call_begins",
            "single_call_ends",
            "softirq_begins",
            "softirq_ends",
            "printing",
        ],
        kvm: &["leaving_guest", "entering_guest", "ending_halt"],
        stages: &[KernelStage::Wakeup, KernelStage::Inject],
        needs_taps: false,
    },
    Group {
        names: &["receiving", "transmitting"],
        optional: &[],
        kvm: &[],
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
    is_whole: bool,
    kvm: Result<(), String>,
}

impl Programs {
    /// Loads and attaches all programs of the group, or those that this kernel accepts: first KVM's are left out, then all
    /// that are optional.
    pub fn load(group: &Group) -> libbpf_rs::Result<Self> {
        let fields = match group.kvm {
            [] => Err("they are not asked for".to_owned()),
            _ => Fields::find(Path::new("/")),
        };
        let all = Self::load_some(group, true, fields.clone());
        let rest = match (all, fields) {
            (Err(error), Ok(_)) => Self::load_some(
                group,
                true,
                Err(format!("this kernel refuses their programs: {error}")),
            ),
            (all, _) => all,
        };
        if group.optional.is_empty() || rest.is_ok() {
            return rest;
        }
        Self::load_some(group, false, Err("this kernel refuses optional programs".to_owned()))
    }

    /// `kvm`: the fields for KVM's programs, or why they are left out.
    fn load_some(
        group: &Group,
        wants_optional: bool,
        kvm: Result<Fields, String>,
    ) -> libbpf_rs::Result<Self> {
        let mut object = ObjectBuilder::default().open_memory(&OBJECT.0)?;
        if let Ok(fields) = &kvm {
            set_fields(&mut object, fields)?;
        }
        let kernel = Btf::from_vmlinux()?;
        let mut is_whole = true;
        for mut program in object.progs_mut() {
            let is_in = |names: &[&str]| names.iter().any(|ours| program.name() == *ours);
            let is_optional = is_in(group.optional);
            let is_wanted = is_in(group.names)
                || is_optional && wants_optional && has_tracepoint(&kernel, program.section())
                || is_in(group.kvm) && kvm.is_ok();
            is_whole &= is_wanted || !is_optional;
            program.set_autoload(is_wanted);
        }
        let object = object.load()?;
        let links = (object.progs_mut())
            .filter(|program| program.autoload())
            .map(|program| program.attach())
            .collect::<libbpf_rs::Result<_>>()?;
        Ok(Self {
            _links: links,
            object,
            sees_threads: group.stages.contains(&KernelStage::Wakeup),
            is_whole,
            kvm: kvm.map(|_| ()),
        })
    }

    /// Whether exits of KVM are seen, or why not.
    pub const fn kvm(&self) -> &Result<(), String> {
        &self.kvm
    }

    /// Whether its optional programs are attached, too.
    pub const fn is_whole(&self) -> bool {
        self.is_whole
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

    /// Has the threads of `process` followed as those of `of`, in all their number; for the daemon, only its workers'.
    pub fn follow(&self, process: u32, of: Process) -> libbpf_rs::Result<()> {
        let Some(map) = self.map(PROCESSES) else { return Ok(()) };
        map.update(&process.to_ne_bytes(), &of.bytes(), MapFlags::ANY)
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

/// Sets where the fields of KVM's tracepoints are.
fn set_fields(object: &mut OpenObject, fields: &Fields) -> libbpf_rs::Result<()> {
    let mut maps = object.maps_mut();
    let mut map = maps.find(|map| map.name() == FIELDS).expect("a map of the programs");
    map.set_initial_value(&fields.bytes())
}

/// Whether the kernel has the tracepoint of a program's section: x86 has some for interrupts that others lack.
fn has_tracepoint(kernel: &Btf<'_>, section: &OsStr) -> bool {
    let name = section.to_str().and_then(|section| section.strip_prefix("tp_btf/"));
    name.is_some_and(|name| {
        kernel.type_by_name::<BtfType<'_>>(&format!("btf_trace_{name}")).is_some()
    })
}

#[cfg(test)]
mod tests;
