//! The records that move with a guest from host to host: those of its recorder go, those of the host before come, beside the
//! recorder.

use std::fs::File;
use std::io::{self, Write as _};
use std::os::fd::OwnedFd;
use std::path::PathBuf;
use std::sync::Arc;

use burst_trace::location::moved_path;
use burst_trace::{Reader, Recorder};
use host_files::FileId;
use host_files::own::{new_file, open_own};
use log_limit::LogLimit;
use rustix::fs::{MemfdFlags, memfd_create};
use vhost_control::DeviceState;

use crate::error::Error;
use crate::plan::GuestPlan;

/// Most records that move: 1 MiB, because the guest stands still meanwhile.
const RECORDS: usize = 16_384;
/// File mode, as that of a recorder.
const MODE: u32 = 0o640;

/// The records that move with a guest.
#[derive(Debug)]
pub struct Moved {
    log: Arc<LogLimit>,
    /// Of this host.
    recorder: File,
    recorder_path: PathBuf,
    /// Those of the host before.
    place: File,
    place_path: PathBuf,
}

/// What moves with the guest of this plan, if that is asked for. A file of a daemon before is used again.
pub fn of(
    plan: &GuestPlan,
    recorder: &Recorder,
    log: &Arc<LogLimit>,
) -> Result<Option<Arc<dyn DeviceState>>, Error> {
    if !plan.device_state {
        return Ok(None);
    }
    let place_path = moved_path(&plan.recorder);
    let place = open_own(&place_path)
        .and_then(|found| found.map_or_else(|| new_file(&place_path, MODE), Ok))
        .map_err(|source| Error::DeviceState { path: place_path.clone(), source })?;
    let (log, recorder_path) = (Arc::clone(log), plan.recorder.clone());
    let recorder = recorder.share().map_err(Error::Descriptors)?;
    Ok(Some(Arc::new(Moved { log, recorder, recorder_path, place, place_path })))
}

impl DeviceState for Moved {
    fn save(&self) -> io::Result<OwnedFd> {
        let reader = Reader::of(&self.recorder, &self.recorder_path).map_err(io::Error::other)?;
        let mut file = File::from(memfd_create("ringscope-state", MemfdFlags::CLOEXEC)?);
        file.write_all(&reader.tail(RECORDS))?;
        Ok(file.into())
    }

    fn place(&self) -> io::Result<OwnedFd> {
        Ok(self.place.try_clone()?.into())
    }

    fn has_come(&self, put: io::Result<u64>) {
        let path = self.place_path.display();
        match put {
            Ok(_) if FileId::of_path(&self.place_path) != FileId::of_file(&self.place).ok() => {
                log_limit::warn!(
                    self.log,
                    "the records that the guest brought are lost, because {path} was removed or replaced since this daemon \
                     started; let the daemon make it, by starting it again"
                );
            }
            Ok(bytes) => log_limit::info!(
                self.log,
                "the guest brought its records from the host before, {bytes} bytes: {path}; ringscope report shows both"
            ),
            Err(error) => log_limit::warn!(
                self.log,
                "the records that the guest brought are lost, because {path} cannot be written: {error}"
            ),
        }
    }

    fn has_gone(&self, bytes: u64) {
        log_limit::info!(self.log, "the guest took its newest records along, {bytes} bytes");
    }
}
