//! Loads and attaches the programs of `bpf/stages.bpf.c`.

use std::ffi::OsStr;
use std::io;
use std::os::fd::{AsFd as _, OwnedFd};
use std::path::Path;

use burst_trace::KernelStage;
use libbpf_rs::btf::{Btf, BtfType};
use libbpf_rs::{Link, MapCore as _, Object, ObjectBuilder, OpenObject, Program};

use crate::kvm::{FIELDS, Fields};
use crate::object::Aligned;
use crate::sys::{Table, ring_buffer};

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

/// A group that runs.
#[derive(Debug)]
pub struct Programs {
    // Field order is drop order: the links, then the maps.
    pub attached: Links,
    pub maps: Maps,
    /// Whether it measures wake-ups of threads.
    pub sees_threads: bool,
    /// Whether its optional programs are attached, too.
    pub is_whole: bool,
    /// Whether exits of KVM are seen, or why not.
    pub kvm: Result<(), String>,
}

/// What keeps programs attached to their tracepoints.
#[derive(Debug)]
pub enum Links {
    /// This process loaded them.
    // Field order is drop order: the links, then the object that has the programs.
    Loaded(Vec<Link>, Object),
    /// Another process did, and handed over the links.
    Handed(Vec<OwnedFd>),
}

/// The maps of a group.
#[derive(Debug)]
pub struct Maps {
    /// What the programs tell, a ring buffer.
    pub events: OwnedFd,
    /// How much of it found no room.
    pub lost: Table<4, 8>,
    /// From threads to numbers of workers.
    pub workers: Table<4, 4>,
    /// From indices of interfaces to numbers of taps.
    pub taps: Table<4, 4>,
    /// The processes whose threads are followed.
    pub processes: Table<4, 8>,
}

impl Maps {
    /// The number of maps.
    pub const COUNT: usize = 5;

    /// The maps of these names, in the order of the fields.
    pub fn new(mut map: impl FnMut(&str) -> io::Result<OwnedFd>) -> io::Result<Self> {
        Ok(Self {
            events: ring_buffer(map("events")?)?,
            lost: Table::new(map("lost")?)?,
            workers: Table::new(map("workers")?)?,
            taps: Table::new(map("taps")?)?,
            processes: Table::new(map("processes")?)?,
        })
    }

    fn of(object: &Object) -> io::Result<Self> {
        Self::new(|name| {
            let map = object.maps().find(|map| map.name() == name);
            map.expect("a map of stages.bpf.c").as_fd().try_clone_to_owned()
        })
    }

    /// Has the threads of `process` followed as those of `of`, in all their number; for the daemon, only its workers'.
    pub fn follow(&self, process: u32, of: Process) -> io::Result<()> {
        self.processes.set(process.to_ne_bytes(), of.bytes())
    }
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
            maps: Maps::of(&object)?,
            attached: Links::Loaded(links, object),
            sees_threads: group.stages.contains(&KernelStage::Wakeup),
            is_whole,
            kvm: kvm.map(|_| ()),
        })
    }

    /// The kernel's ids of the programs that this process loaded.
    pub fn ids(&self) -> Vec<u32> {
        let Links::Loaded(_, object) = &self.attached else { return Vec::new() };
        let loaded = object.progs().filter(Program::autoload);
        loaded.filter_map(|program| Program::id_from_fd(program.as_fd()).ok()).collect()
    }

    /// Number of events that found no room.
    pub fn lost(&self) -> u64 {
        self.maps.lost.get(0_u32.to_ne_bytes()).map_or(0, u64::from_ne_bytes)
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
