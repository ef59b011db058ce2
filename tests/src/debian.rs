//! Programs from Debian's packages that tests run without installing them: their services would start.

use std::fs;
use std::io;
use std::path::{Path, PathBuf};
use std::process::Command;

/// The files of `package`, unpacked, fetched once.
///
/// # Errors
/// When apt-get or dpkg-deb fail; the message has what they said.
pub fn unpacked(package: &str) -> io::Result<PathBuf> {
    let cache = Path::new(env!("CARGO_MANIFEST_DIR")).join("../target/packages");
    let root = cache.join(package);
    if root.exists() {
        return Ok(root);
    }
    fs::create_dir_all(&cache)?;
    let part = tempfile::tempdir_in(&cache)?;
    // As root it would want to fetch as another user, who may not write here.
    run(Command::new("apt-get")
        .args(["download", "-q", "-o", "APT::Sandbox::User=root", package])
        .current_dir(part.path()))?;
    let archive =
        fs::read_dir(part.path())?.next().ok_or_else(|| io::Error::other("no package"))??;
    let files = part.path().join("files");
    run(Command::new("dpkg-deb").arg("-x").arg(archive.path()).arg(&files))?;
    fs::rename(&files, &root)?;
    Ok(root)
}

fn run(command: &mut Command) -> io::Result<()> {
    let output = command.output()?;
    if output.status.success() {
        return Ok(());
    }
    let said = String::from_utf8_lossy(&output.stderr).into_owned();
    Err(io::Error::other(format!("{command:?}: {said}")))
}
