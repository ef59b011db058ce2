//! Settings of an interface for busy polling (kernel `Documentation/networking/napi.rst`, "Software IRQ coalescing").
//! With them the device's interrupts stay off as long as a worker polls.

use std::fs::{self, OpenOptions};
use std::io::{self, Write as _};
use std::path::{Path, PathBuf};

/// Files in `/sys/class/net/IF`, and their values for busy polling: the number of polls without frames before
/// interrupts are enabled again, and the time after the last poll at which the kernel itself polls, in nanoseconds.
const SETTINGS: [(&str, &str); 2] =
    [("napi_defer_hard_irqs", "2"), ("gro_flush_timeout", "200000")];

/// Writes to a file that is there. `fs::write` would make one, which no thread may do after set-up.
fn write(path: &Path, value: &str) -> io::Result<()> {
    OpenOptions::new().write(true).open(path)?.write_all(value.as_bytes())
}

/// The previous settings. They are restored on drop.
#[derive(Debug)]
pub struct NapiSettings {
    before: Vec<(PathBuf, String)>,
}

impl NapiSettings {
    /// Changes the settings of the interface `name` for busy polling.
    ///
    /// # Errors
    /// The system's error. Settings that were changed already are restored.
    pub fn make(name: &str) -> io::Result<Self> {
        let directory = Path::new("/sys/class/net").join(name);
        let mut settings = Self { before: Vec::new() };
        for (file, value) in SETTINGS {
            let path = directory.join(file);
            let before = fs::read_to_string(&path)?;
            write(&path, value)?;
            settings.before.push((path, before));
        }
        Ok(settings)
    }
}

impl NapiSettings {
    /// Those that another daemon has changed for the interface `name`: what they were before, in the order of [`SETTINGS`].
    pub fn changed_before(name: &str, before: &[u64]) -> Option<Self> {
        let directory = Path::new("/sys/class/net").join(name);
        let of =
            |((file, _), value): (&(&str, &str), &u64)| (directory.join(file), value.to_string());
        let before: Vec<_> = SETTINGS.iter().zip(before).map(of).collect();
        (!before.is_empty()).then_some(Self { before })
    }

    /// What they were before.
    pub fn before(&self) -> Vec<u64> {
        self.before.iter().filter_map(|(_, value)| value.trim().parse().ok()).collect()
    }

    /// They stay as they are.
    pub fn leave(&mut self) {
        self.before.clear();
    }
}

impl Drop for NapiSettings {
    fn drop(&mut self) {
        for (path, value) in &self.before {
            // NotFound: the interface is gone, and its settings with it.
            if let Err(error) = write(path, value)
                && error.kind() != io::ErrorKind::NotFound
            {
                log::warn!("{} stays changed; it was {}: {error}", path.display(), value.trim());
            }
        }
    }
}
