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

/// Where tools look for recorders: in the default run directory, and if there is none, in that of root, which the members of
/// its group may read.
#[must_use]
pub fn run_dir_to_read() -> Option<PathBuf> {
    let own = default_run_dir();
    let has_own = own.as_ref().is_some_and(|own| own.exists());
    let of_root = Path::new(RUN_DIR_OF_ROOT);
    if !has_own && of_root.read_dir().is_ok() { Some(of_root.into()) } else { own }
}

/// The records that came with a guest from the host that it was on before, beside the recorder of the daemon here.
#[must_use]
pub fn moved_path(recorder: &Path) -> PathBuf {
    recorder.with_extension("moved")
}

/// The recorder of the daemon `name`.
#[must_use]
pub fn recorder_path(run_dir: &Path, name: &str) -> PathBuf {
    run_dir.join(format!("{name}.{EXTENSION}"))
}
