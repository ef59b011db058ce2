//! An interface's settings for busy polling (kernel `Documentation/networking/napi.rst`, "Software IRQ coalescing"):
//! as long as a worker polls, the device's interrupts stay off.

use std::fs;
use std::io;
use std::path::{Path, PathBuf};

/// The files in `/sys/class/net/IF`, and what busy polling needs there: so often nothing is found before interrupts
/// are let in, and so many nanoseconds after the last poll the kernel itself looks.
const SETTINGS: [(&str, &str); 2] =
    [("napi_defer_hard_irqs", "2"), ("gro_flush_timeout", "200000")];

/// The settings as they were. They come back when this is dropped.
#[derive(Debug)]
pub struct NapiSettings {
    before: Vec<(PathBuf, String)>,
}

impl NapiSettings {
    /// Makes the settings for the interface `name`.
    ///
    /// # Errors
    /// What the system answers; what was changed before is changed back.
    pub fn make(name: &str) -> io::Result<Self> {
        let directory = Path::new("/sys/class/net").join(name);
        let mut settings = Self { before: Vec::new() };
        for (file, value) in SETTINGS {
            let path = directory.join(file);
            let before = fs::read_to_string(&path)?;
            fs::write(&path, value)?;
            settings.before.push((path, before));
        }
        Ok(settings)
    }
}

impl Drop for NapiSettings {
    fn drop(&mut self) {
        for (path, value) in &self.before {
            // An interface that is gone has no settings.
            if let Err(error) = fs::write(path, value)
                && error.kind() != io::ErrorKind::NotFound
            {
                log::warn!("{} stays changed; it was {}: {error}", path.display(), value.trim());
            }
        }
    }
}
