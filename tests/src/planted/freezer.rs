//! A frozen process, by control groups of either version.

use super::groups::{Hierarchy, Version};
use super::undo::Undo;
use crate::qemu::Failure;

/// The hierarchies whose groups can be frozen: those of version 1 with the controller `freezer`, and that of version 2,
/// where every group can be.
#[must_use]
pub fn hierarchies() -> Vec<Hierarchy> {
    Hierarchy::all("freezer")
}

/// Freezes a process in a group of its own.
///
/// # Errors
/// What the system answers.
pub fn freeze(hierarchy: &Hierarchy, process: u32) -> Result<Undo, Failure> {
    let (file, frozen, thawed) = match hierarchy.version() {
        Version::One => ("freezer.state", "FROZEN", "THAWED"),
        Version::Two => ("cgroup.freeze", "1", "0"),
    };
    let group = hierarchy.make()?;
    let taken = hierarchy.take(process, group.clone())?;
    let of = group.clone();
    let undo = Undo::new(move || {
        of.set(file, thawed)?;
        taken.now()
    });
    group.set(file, frozen)?;
    Ok(undo)
}
