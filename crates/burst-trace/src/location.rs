//! Where recorders are: `RUN_DIR/NAME.trace`. The daemon and the tools both take it from here.

use std::path::{Path, PathBuf};

/// The extension of a recorder's file name.
pub const EXTENSION: &str = "trace";
const RUN_DIR_OF_ROOT: &str = "/run/ringscope";

/// The default run directory: `/run/ringscope` for root, `$XDG_RUNTIME_DIR/ringscope` for others, `None` if that variable
/// is not set.
#[must_use]
pub fn default_run_dir() -> Option<PathBuf> {
    if rustix::process::geteuid().is_root() {
        return Some(RUN_DIR_OF_ROOT.into());
    }
    let base = std::env::var_os("XDG_RUNTIME_DIR").filter(|base| !base.is_empty())?;
    Some(PathBuf::from(base).join("ringscope"))
}

/// The recorder of the daemon `name`.
#[must_use]
pub fn recorder_path(run_dir: &Path, name: &str) -> PathBuf {
    run_dir.join(format!("{name}.{EXTENSION}"))
}
