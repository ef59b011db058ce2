//! The guest's memory as the front end's messages describe it: which regions are admitted, and which were left out.

use std::iter;
use std::os::fd::{AsFd, BorrowedFd};
use std::sync::Arc;

use worker::Foreign;

use crate::limits::REGIONS_MAX;
use crate::message::descriptor::{Kind, expect_kinds};
use crate::message::regions::{self, Limits, Region};
use crate::sharing::{PrivateMemory, Sharing};

/// The regions of one front end.
#[derive(Debug)]
pub struct Memory {
    limits: Limits,
    sharing: Arc<Sharing>,
    regions: Vec<Region>,
    /// Regions that were refused while rings ran, because they are private ([`Memory::add`]).
    left_out: Vec<Region>,
}

impl Memory {
    /// Without regions.
    #[must_use]
    pub const fn new(limits: Limits, sharing: Arc<Sharing>) -> Self {
        Self { limits, sharing, regions: Vec::new(), left_out: Vec::new() }
    }

    /// Replaces all regions. `rings_run`: whether any ring runs.
    ///
    /// # Errors
    /// Why a region is refused; then all stay as they are.
    pub fn set(
        &mut self,
        new: &[Region],
        descriptors: &[Foreign],
        rings_run: bool,
    ) -> Result<(), String> {
        self.admit(&[], new, descriptors, rings_run)?;
        self.left_out.clear();
        Ok(())
    }

    /// Adds a region. While rings run, a private region is refused, and the rings continue with the memory
    /// that they have. QEMU continues too, but sends the same region again before every later change, and
    /// when its guest reboots. If it is refused again, QEMU gives the device up (`send_add_regions`,
    /// hw/virtio/vhost-user.c). So from the second time on the region is accepted, but still left out.
    /// Returns whether it is left out.
    ///
    /// # Errors
    /// Why it is refused.
    pub fn add(
        &mut self,
        new: Region,
        descriptors: &mut Vec<Foreign>,
        rings_run: bool,
    ) -> Result<bool, String> {
        if self.left_out.contains(&new) {
            descriptors.clear();
            return Ok(true);
        }
        let present = self.regions.clone();
        self.admit(&present, &[new], descriptors, rings_run)?;
        Ok(false)
    }

    /// Removes a region. The framework would end the connection if it does not have the region, so a region
    /// that was left out is removed only here. Returns whether it was left out.
    ///
    /// # Errors
    /// When there is no such region.
    pub fn remove(
        &mut self,
        removed: Region,
        descriptors: &mut Vec<Foreign>,
    ) -> Result<bool, String> {
        // Older front ends send a descriptor, which must be ignored (vhost-user, "VHOST_USER_REM_MEM_REG").
        descriptors.clear();
        let is_it = |region: &Region| {
            (region.guest_address, region.len) == (removed.guest_address, removed.len)
        };
        if let Some(at) = self.left_out.iter().position(is_it) {
            self.left_out.swap_remove(at);
            return Ok(true);
        }
        let at = self.regions.iter().position(is_it).ok_or_else(|| {
            format!("there is no region of {} bytes at {:#x}", removed.len, removed.guest_address)
        })?;
        self.regions.remove(at);
        Ok(false)
    }

    /// The regions that were left out.
    pub fn left_out(&self) -> &[Region] {
        &self.left_out
    }

    /// These regions were left out by the daemon before.
    pub fn leave_out(&mut self, mut regions: Vec<Region>) {
        regions.truncate(REGIONS_MAX);
        self.left_out = regions;
    }

    /// All regions.
    pub fn all(&self) -> &[Region] {
        &self.regions
    }

    /// Checks that the `len` bytes at `address` of the front end's own memory lie in one region.
    ///
    /// # Errors
    /// Completes a sentence about what lies there.
    pub fn expect_within(&self, address: u64, len: u64) -> Result<(), &'static str> {
        let are_in = |regions: &[Region]| regions.iter().any(|region| region.holds(address, len));
        match are_in(&self.regions) {
            true => Ok(()),
            false if are_in(&self.left_out) => Err(
                "is not in one region of guest memory, but in memory that was left out because it is private: unplug that",
            ),
            false => Err("is not in one region of guest memory"),
        }
    }

    /// Checks the regions `new`, which are added to those in `present`, and keeps all of them.
    fn admit(
        &mut self,
        present: &[Region],
        new: &[Region],
        descriptors: &[Foreign],
        rings_run: bool,
    ) -> Result<(), String> {
        for descriptor in descriptors {
            expect_kinds(descriptor, &[Kind::File])?;
        }
        let files: Vec<_> = descriptors.iter().map(AsFd::as_fd).collect();
        regions::check(present, new, &files, &self.limits)?;
        // Before the first ring starts, the connection of a front end with private memory is refused
        // (`Session::update_memory`).
        if rings_run {
            self.expect_shared(present.len(), new, &files)?;
        }
        descriptors.iter().for_each(Foreign::mark_harmless);
        self.regions = [present, new].concat();
        Ok(())
    }

    /// Checks that none of the regions `new` is private. The first of them has number `first`.
    fn expect_shared(
        &mut self,
        first: usize,
        new: &[Region],
        files: &[BorrowedFd<'_>],
    ) -> Result<(), String> {
        for (n, (region, file)) in new.iter().zip(files).enumerate() {
            let Some(PrivateMemory { pid }) = self.sharing.find_private(iter::once(file)) else {
                continue;
            };
            if self.left_out.len() < REGIONS_MAX {
                self.left_out.push(*region);
            }
            return Err(format!(
                "region {}, {} MiB at {:#x}, is private to process {pid}: nothing that the guest writes there arrives here, \
                 and frames in it are dropped as unmapped buffers; unplug it, and plug in memory with share=on, as in \
                 object_add memory-backend-memfd,id=m1,size=SIZE,share=on",
                first + n,
                region.len >> 20,
                region.guest_address
            ));
        }
        Ok(())
    }
}

#[cfg(test)]
impl Memory {
    /// Number of regions that are admitted.
    pub fn regions(&self) -> usize {
        self.regions.len()
    }
}
