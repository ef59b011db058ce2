//! The way of the programs from the process that loaded them, which has the privileges for that, to another one, which has none: by
//! descriptors of their maps and links, and words that say what these are. Maps and links that are handed over need no privilege
//! to be used (Linux 5.19, `__sys_bpf` in kernel/bpf/syscall.c).

use std::io;
use std::os::fd::{AsFd as _, BorrowedFd, OwnedFd};

use burst_trace::KernelStage;
use serde::{Deserialize, Serialize};

use crate::object::{is_in_own_pid_namespace, log_messages};
use crate::programs::{Links, Maps, Programs};
use crate::sys::is_link;
use crate::{Attached, KernelStages};

/// Most descriptors that go along: twice as many as there are today.
pub const DESCRIPTORS_MAX: usize = 64;
/// Longest reason, bytes.
const REASON_MAX: usize = 200;

/// What the descriptors are.
#[derive(Clone, Debug, Deserialize, Serialize)]
#[serde(deny_unknown_fields)]
pub struct Handed {
    /// The names of stages, and why each is not measured, if it is not.
    stages: Vec<(String, Option<String>)>,
    groups: Vec<Group>,
}

#[derive(Clone, Debug, Deserialize, Serialize)]
#[serde(deny_unknown_fields)]
struct Group {
    /// Number of its links, which come after its maps.
    links: usize,
    sees_threads: bool,
    is_whole: bool,
    /// Why exits of KVM are not seen, if they are not.
    no_kvm: Option<String>,
}

/// Why programs that came from another process are not used.
#[derive(Debug, thiserror::Error)]
pub enum HandedError {
    /// This process does not see the host's threads.
    #[error(transparent)]
    Attach(#[from] crate::Error),
    /// The words and the descriptors do not belong together.
    #[error("expected {expected} with the request, found {found}")]
    Other {
        /// What was expected.
        expected: String,
        /// What was found.
        found: String,
    },
    /// A descriptor is something else.
    #[error("a map of the kernel's programs cannot be used: {0}{hint}", hint = hint(.0))]
    Map(#[from] io::Error),
}

/// What a refusal of the kernel comes from.
fn hint(error: &io::Error) -> &'static str {
    match error.kind() {
        io::ErrorKind::PermissionDenied => {
            "; that needs Linux 5.19, or kernel.unprivileged_bpf_disabled=0"
        }
        _ => "",
    }
}

impl KernelStages {
    /// What another process needs to go on with the programs: the words for it, and the descriptors.
    #[must_use]
    pub fn hand_over(&self, attached: &[Attached]) -> (Handed, Vec<BorrowedFd<'_>>) {
        let reason = |result: &Result<(), String>| {
            let cut = |reason: &String| reason.chars().take(REASON_MAX / 4).collect::<String>();
            result.as_ref().err().map(cut).map(|reason| reason.replace(char::is_control, " "))
        };
        let stages = attached.iter().map(|(stage, it)| (stage.name().to_owned(), reason(it)));
        let (mut groups, mut descriptors) = (Vec::new(), Vec::new());
        for Programs { attached, maps, sees_threads, is_whole, kvm } in &self.groups {
            let Maps { events, lost, workers, taps, processes } = maps;
            descriptors.push(events.as_fd());
            descriptors.extend([lost.as_fd(), workers.as_fd(), taps.as_fd(), processes.as_fd()]);
            let links: Vec<_> = match attached {
                Links::Loaded(links, _) => links.iter().map(|link| link.as_fd()).collect(),
                Links::Handed(links) => links.iter().map(|link| link.as_fd()).collect(),
            };
            groups.push(Group {
                links: links.len(),
                sees_threads: *sees_threads,
                is_whole: *is_whole,
                no_kvm: reason(kvm),
            });
            descriptors.extend(links);
        }
        (Handed { stages: stages.collect(), groups }, descriptors)
    }

    /// Leaves the programs attached as long as the other process wants them.
    pub fn leave(self) {
        for group in self.groups {
            if let Links::Loaded(links, _) = group.attached {
                links.into_iter().for_each(|mut link| link.disconnect());
            }
        }
    }

    /// The programs that another process has handed over.
    ///
    /// # Errors
    /// When the descriptors are not what `handed` says.
    pub fn take(
        handed: Handed,
        descriptors: Vec<OwnedFd>,
    ) -> Result<(Self, Vec<Attached>), HandedError> {
        log_messages();
        if is_in_own_pid_namespace() {
            return Err(crate::Error::PidNamespace.into());
        }
        let other = |expected: String, found: String| HandedError::Other { expected, found };
        let reasons = handed.stages.iter().filter_map(|(_, reason)| reason.as_ref());
        let reasons = reasons.chain(handed.groups.iter().filter_map(|group| group.no_kvm.as_ref()));
        let is_odd = |it: &&String| it.len() > REASON_MAX || it.contains(char::is_control);
        if let Some(odd) = reasons.clone().find(is_odd) {
            return Err(other(
                format!("reasons of at most {REASON_MAX} bytes, without control characters"),
                format!("{odd:?}"),
            ));
        }
        let mut names: Vec<_> = handed.stages.iter().map(|(name, _)| name).collect();
        names.sort_unstable();
        names.dedup();
        if names.len() != handed.stages.len() {
            return Err(other("each stage once".into(), format!("{} stages", handed.stages.len())));
        }
        let each = handed.groups.iter().map(|group| group.links.saturating_add(Maps::COUNT));
        let expected = each.fold(0_usize, usize::saturating_add);
        if expected != descriptors.len() {
            let found = descriptors.len().to_string();
            return Err(other(format!("{expected} descriptors of maps and links"), found));
        }
        let stage = |(name, reason): (String, Option<String>)| {
            let stage = KernelStage::ALL.into_iter().find(|stage| stage.name() == name);
            let stage = stage.ok_or_else(|| other("a stage of the kernel".into(), name))?;
            Ok((stage, reason.map_or(Ok(()), Err)))
        };
        let attached: Result<Vec<_>, HandedError> = handed.stages.into_iter().map(stage).collect();
        let attached = attached?;
        let mut descriptors = descriptors.into_iter();
        let mut groups = Vec::new();
        for Group { links, sees_threads, is_whole, no_kvm } in handed.groups {
            let maps = Maps::new(|_| Ok(descriptors.next().expect("they were counted")))?;
            let links: Vec<_> = descriptors.by_ref().take(links).collect();
            if !links.iter().all(|link| is_link(link.as_fd())) {
                return Err(other("links of programs".into(), "another descriptor".into()));
            }
            let (attached, kvm) = (Links::Handed(links), no_kvm.map_or(Ok(()), Err));
            groups.push(Programs { attached, maps, sees_threads, is_whole, kvm });
        }
        Ok((Self { groups }, attached))
    }
}
