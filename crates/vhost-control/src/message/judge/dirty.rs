//! The dirty log of a live migration as the front end's messages set it up (vhost-user, "Migration").
//!
//! QEMU sends a log (`SET_LOG_BASE`), then `SET_FEATURES` with `VHOST_F_LOG_ALL`, then the addresses of the rings again, with
//! the flag that their used rings are to be logged (`vhost_migration_log`, hw/virtio/vhost.c). Before it shares more memory
//! it sends a longer log (`vhost_commit`). If a device starts while a migration is under way, the log comes last, when the
//! rings have their kicks already (`vhost_dev_start`). Then the rings wait for it ([`crate::ring`]).
//!
//! The framework could map a log, too, and mark pages in a bitmap of each of its own memory regions. But the workers write
//! to guest memory, not the framework. So `SET_LOG_BASE` ends here.

use std::os::fd::AsFd as _;
use std::sync::Arc;

use guest_memory::DirtyLog;
use virtqueue::layout::part_lens;
use worker::Foreign;

use crate::message::descriptor::{Kind, expect_kinds};
use crate::message::regions::{self, Limits, Region};
use crate::message::request::{LogPart, RingParts};

/// Most bytes of a log: one bit for each page below 2^52, the highest address of any guest.
const LEN_MAX: u64 = 1 << 37;

/// What the front end said of its log.
#[derive(Debug, Default)]
pub struct Dirty {
    log: Option<Arc<DirtyLog>>,
    /// Whether `VHOST_USER_PROTOCOL_F_LOG_SHMFD` was negotiated.
    shared: bool,
    /// Whether `VHOST_F_LOG_ALL` was negotiated.
    all: bool,
    /// Of each ring, where its used ring is to be logged, and its length in bytes.
    device_areas: Vec<Option<(u64, u64)>>,
}

impl Dirty {
    /// For a device with this many rings.
    pub fn new(rings: usize) -> Self {
        Self { device_areas: vec![None; rings], ..Self::default() }
    }

    /// `SET_PROTOCOL_FEATURES`. `shared`: whether `VHOST_USER_PROTOCOL_F_LOG_SHMFD` was negotiated.
    pub const fn set_shared(&mut self, shared: bool) {
        self.shared = shared;
    }

    /// Whether `SET_LOG_BASE` is always answered.
    pub const fn is_shared(&self) -> bool {
        self.shared
    }

    /// `SET_FEATURES`. `all`: whether it has `VHOST_F_LOG_ALL`; `rings_run`: whether any ring runs.
    ///
    /// # Errors
    /// When pages are to be logged, and there is no log for all of `memory`.
    pub fn set_all(&mut self, all: bool, memory: &[Region], rings_run: bool) -> Result<(), String> {
        if all && !self.shared {
            return Err("pages are to be logged (VHOST_F_LOG_ALL), but the log cannot be shared; \
                        expected VHOST_USER_PROTOCOL_F_LOG_SHMFD as well"
                .into());
        }
        if all {
            match &self.log {
                Some(log) => expect_covered(log, memory)?,
                None if rings_run => {
                    return Err("pages are to be logged (VHOST_F_LOG_ALL), but there is no log; \
                                expected SET_LOG_BASE before it"
                        .into());
                }
                None => {}
            }
        }
        self.all = all;
        Ok(())
    }

    /// `SET_LOG_BASE`. Returns the log.
    ///
    /// # Errors
    /// When it cannot be a log for all of `memory`, or cannot be mapped.
    pub fn set_log(
        &mut self,
        part: LogPart,
        descriptors: &[Foreign],
        memory: &[Region],
        limits: &Limits,
    ) -> Result<Arc<DirtyLog>, String> {
        if !self.shared {
            return Err("a log without VHOST_USER_PROTOCOL_F_LOG_SHMFD negotiated".into());
        }
        let [file] = descriptors else {
            return Err(format!("it has {} file descriptors; expected one", descriptors.len()));
        };
        expect_kinds(file, &[Kind::File])?;
        let LogPart { len, offset } = part;
        if len == 0 || len > LEN_MAX || !offset.is_multiple_of(4096) {
            return Err(format!(
                "a log of {len} bytes from byte {offset} of its file on; expected 1 to {LEN_MAX}, from a multiple of 4096 on"
            ));
        }
        regions::check_log(len, offset, file.as_fd(), limits)?;
        #[expect(clippy::cast_possible_truncation, reason = "at most LEN_MAX")]
        let log = DirtyLog::map(file.as_fd(), offset, len as usize)
            .map_err(|error| format!("its log cannot be mapped: {error}"))?;
        file.mark_harmless();
        expect_covered(&log, memory)?;
        for (ring, area) in self.device_areas.iter().enumerate() {
            expect_area(&log, ring, *area)?;
        }
        let log = Arc::new(log);
        self.log = Some(Arc::clone(&log));
        Ok(log)
    }

    /// Checks that all of `memory` can be logged, if it is to be.
    ///
    /// # Errors
    /// When the log is too short.
    pub fn expect_covered(&self, memory: &[Region]) -> Result<(), String> {
        match &self.log {
            Some(log) if self.all => expect_covered(log, memory),
            _ => Ok(()),
        }
    }

    /// `SET_VRING_ADDR` for a ring of `size`. Returns where its device area is to be logged.
    ///
    /// # Errors
    /// When the log is too short for that.
    pub fn set_area(
        &mut self,
        parts: &RingParts,
        packed: bool,
        size: u16,
    ) -> Result<Option<u64>, String> {
        let [.., (len, _)] = part_lens(packed, size);
        let area = parts.log.map(|address| (address, len as u64));
        if let Some(log) = &self.log {
            expect_area(log, parts.ring, area)?;
        }
        if let Some(known) = self.device_areas.get_mut(parts.ring) {
            *known = area;
        }
        Ok(parts.log)
    }
}

fn expect_covered(log: &DirtyLog, memory: &[Region]) -> Result<(), String> {
    let is_left_out = |region: &&Region| !log.covers(region.guest_address, region.len);
    memory.iter().find(is_left_out).map_or(Ok(()), |region| {
        let Region { guest_address, len, .. } = region;
        Err(format!(
            "the log is too short for the {len} bytes of memory at {guest_address:#x}; expected a bit for each page of \
             4096 bytes"
        ))
    })
}

fn expect_area(log: &DirtyLog, ring: usize, area: Option<(u64, u64)>) -> Result<(), String> {
    match area {
        Some((address, len)) if !log.covers(address, len) => Err(format!(
            "queue {ring}: its used ring is to be logged at {address:#x}, for which the log is too short"
        )),
        _ => Ok(()),
    }
}
