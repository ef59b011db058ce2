//! QEMU's monitor (QMP, docs/interop/qmp-spec.rst): one line of JSON for each command, answer and event.

use std::io::{BufRead as _, BufReader, Write as _};
use std::os::unix::net::UnixStream;
use std::path::Path;

use serde_json::{Value, json};

use crate::qemu::{Failure, Place, SOON};

/// A connection to the monitor of a guest's QEMU.
#[derive(Debug)]
pub struct Monitor(BufReader<UnixStream>);

impl Monitor {
    /// Connects to the monitor of the guest that lives in `place`.
    ///
    /// # Errors
    /// When QEMU does not answer.
    pub fn connect(place: &Place) -> Result<Self, Failure> {
        Self::at(&place.directory().join("guest/monitor.sock"))
    }

    /// Connects to the monitor at this socket.
    ///
    /// # Errors
    /// As [`connect`](Self::connect).
    pub fn at(socket: &Path) -> Result<Self, Failure> {
        let stream = UnixStream::connect(socket)?;
        stream.set_read_timeout(Some(SOON))?;
        let mut monitor = Self(BufReader::new(stream));
        // Its greeting. It takes no other command before this one.
        monitor.read()?;
        monitor.execute("qmp_capabilities", &json!({}))?;
        Ok(monitor)
    }

    /// Executes a command, and returns its answer.
    ///
    /// # Errors
    /// When QEMU refuses it; the message is QEMU's.
    pub fn execute(&mut self, command: &str, arguments: &Value) -> Result<Value, Failure> {
        let line = json!({"execute": command, "arguments": arguments});
        writeln!(self.0.get_mut(), "{line}")?;
        loop {
            let mut answer = self.read()?;
            if let Some(error) = answer.get("error") {
                return Err(format!("{line}: {error}").into());
            }
            // Others are events.
            if let Some(found) = answer.get_mut("return") {
                return Ok(found.take());
            }
        }
    }

    fn read(&mut self) -> Result<Value, Failure> {
        let mut line = String::new();
        if self.0.read_line(&mut line)? == 0 {
            return Err("expected a line of QEMU's monitor, found its end".into());
        }
        Ok(serde_json::from_str(&line)?)
    }
}
