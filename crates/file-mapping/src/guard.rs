//! The registration of one mapping.
#![allow(unsafe_code, reason = "a mapping is registered by address")]

use std::io;

use crate::{signal, table};

/// A registered mapping. While this lives, a page that the file does not have is replaced with zeroes.
#[derive(Debug)]
pub struct Guard {
    slot: usize,
}

impl Guard {
    /// Registers the `len` bytes at `start`, and installs the signal handler if this is the first mapping.
    ///
    /// # Errors
    /// When more mappings are registered than the table holds, or the handler cannot be installed.
    ///
    /// # Safety
    /// The bytes are one mapping, which stays until this is dropped. References into it are to atomics only, because
    /// its bytes may change at any time. `protection` is the mapping's own (`PROT_READ`, `PROT_WRITE`).
    pub unsafe fn new(start: *const u8, len: usize, protection: i32) -> io::Result<Self> {
        signal::install()?;
        let slot = table::register(start.addr(), len, protection).ok_or_else(|| {
            let text = format!("more than {} files are mapped", table::SLOTS_MAX);
            io::Error::new(io::ErrorKind::OutOfMemory, text)
        })?;
        Ok(Self { slot })
    }

    /// Whether a part of the mapping was replaced with zeroes.
    #[inline]
    #[must_use]
    pub fn is_torn(&self) -> bool {
        table::is_torn(self.slot)
    }
}

impl Drop for Guard {
    fn drop(&mut self) {
        table::remove(self.slot);
    }
}
