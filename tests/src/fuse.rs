//! A file whose contents never come: the server of its file system answers no read.
//!
//! The server is a separate process (`src/bin/never-comes.rs`), which ends with this one. A server in a thread could not be
//! ended with a test that hangs: the process would wait for its own answer.

use std::fs::File;
use std::io::{self, Read as _, Write as _};
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};

/// The file and its server. When it is dropped, all calls that wait for the file fail.
#[derive(Debug)]
pub struct NeverComes {
    path: PathBuf,
    server: Child,
    is_mounted: bool,
}

impl NeverComes {
    /// Puts the file at `path`, served by the program `server`. Requires root.
    ///
    /// # Errors
    /// When it cannot be mounted.
    pub fn new(path: &Path, server: &str) -> io::Result<Self> {
        File::create(path)?;
        let device = File::options().read(true).write(true).open("/dev/fuse")?;
        let mut mount = Command::new("mount");
        let options = "fd=0,rootmode=100600,user_id=0,group_id=0";
        // Without the helper of libfuse, which would be the server.
        mount.args(["-i", "-t", "fuse", "-o", options, "never"]).arg(path);
        // The kernel's first request comes with the mount.
        let mut command = Command::new(server);
        command.stdin(Stdio::piped()).stdout(Stdio::piped()).stderr(device.try_clone()?);
        let mut never = Self { path: path.into(), server: command.spawn()?, is_mounted: false };
        never.is_mounted = mount.stdin(device).status()?.success();
        if never.is_mounted {
            return Ok(never);
        }
        Err(io::Error::other("a FUSE file system cannot be mounted"))
    }

    /// The file, open.
    ///
    /// # Errors
    /// What the system answers.
    pub fn open(&self) -> io::Result<File> {
        let file = File::options().read(true).write(true).open(&self.path)?;
        // The kernel takes it for empty until it has asked.
        file.metadata()?;
        Ok(file)
    }

    /// Takes it out of the mount table. Files that are open stay as they are.
    ///
    /// # Panics
    /// When `umount` fails.
    pub fn detach(&mut self) {
        self.unmount();
        assert!(!self.is_mounted, "umount failed");
    }

    /// From now on `statfs` waits too.
    ///
    /// # Panics
    /// When the server has ended.
    pub fn silence(&mut self) {
        let stdin = self.server.stdin.as_mut().expect("a pipe");
        stdin.write_all(b"s").expect("the server");
        // It confirms.
        self.expect_read();
    }

    /// Waits until one more read waits for an answer.
    ///
    /// # Panics
    /// When the server has ended.
    pub fn expect_read(&mut self) {
        let stdout = self.server.stdout.as_mut().expect("a pipe");
        stdout.read_exact(&mut [0]).expect("a word of the server");
    }

    fn unmount(&mut self) {
        if self.is_mounted {
            let status = Command::new("umount").arg("-l").arg(&self.path).status();
            self.is_mounted = !status.is_ok_and(|status| status.success());
        }
    }
}

impl Drop for NeverComes {
    fn drop(&mut self) {
        let _ = self.server.kill();
        let _ = self.server.wait();
        self.unmount();
    }
}
