//! What the device has that moves with its guest (vhost-user, "Migrating back-end state"), through a pipe of the front end.
//!
//! A call at a pipe of the front end may wait without a limit, so a helper process reads or writes it ([`foreign_files`]). Until the
//! front end asks how that ended, nobody waits for the helper. What comes goes to memory first, and to its place only when it is
//! whole: a transfer that is given up leaves what was there before.

use std::io;
use std::os::fd::{AsFd as _, OwnedFd};
use std::sync::Arc;
use std::sync::mpsc::sync_channel;
use std::thread::Builder;
use std::time::Duration;

use confine::Role;
use foreign_files::{Copying, Helper};
use rustix::fs::{MemfdFlags, memfd_create};
use vhost::vhost_user::message::{VhostTransferStateDirection, VhostTransferStatePhase};
use worker::{Custody, Foreign};

use super::descriptor::{Kind, expect_kinds};
use crate::device::DeviceState;

/// Most helpers of one connection.
const HELPERS_MAX: usize = 4;
/// Longest wait for the end of a copy when the front end asks for it: it has closed its end of the pipe then.
const PATIENCE: Duration = Duration::from_millis(500);

/// The transfers of one connection.
#[derive(Debug)]
pub struct Transfers {
    /// `None`: nothing moves.
    state: Option<Arc<dyn DeviceState>>,
    /// Whether `VHOST_USER_PROTOCOL_F_DEVICE_STATE` was negotiated.
    is_negotiated: bool,
    last: Option<Transfer>,
    /// The thread of each helper holds a reference.
    alive: Arc<()>,
}

/// A transfer whose end the front end has not asked for.
#[derive(Debug)]
struct Transfer {
    copying: Copying,
    /// What has come; `None` if the state goes.
    came: Option<OwnedFd>,
}

impl Transfers {
    /// Of a device with this state.
    #[must_use]
    pub fn of(state: Option<Arc<dyn DeviceState>>) -> Self {
        Self { state, is_negotiated: false, last: None, alive: Arc::default() }
    }

    /// Whether the feature was negotiated.
    pub const fn set_negotiated(&mut self, is_negotiated: bool) {
        self.is_negotiated = is_negotiated;
    }

    /// `SET_DEVICE_STATE_FD`. A transfer that is under way is given up.
    ///
    /// # Errors
    /// Why nothing is transferred.
    pub fn begin(
        &mut self,
        way: [u32; 2],
        descriptors: &mut Vec<Foreign>,
        rings_run: bool,
        custody: &Arc<Custody>,
    ) -> Result<(), String> {
        self.last = None;
        let state = self.state()?;
        let [direction, phase] = way;
        let is_load = direction == VhostTransferStateDirection::LOAD as u32;
        if direction > VhostTransferStateDirection::LOAD as u32
            || phase != VhostTransferStatePhase::STOPPED as u32
        {
            return Err(format!(
                "direction {direction} in phase {phase}; expected direction 0 or 1, in phase 0 (stopped)"
            ));
        }
        if rings_run {
            return Err("rings run; expected all of them to be stopped".into());
        }
        let count = descriptors.len();
        let (Some(pipe), 1) = (descriptors.pop(), count) else {
            return Err(format!("it has {count} file descriptors; expected one"));
        };
        expect_kinds(&pipe, &[Kind::Pipe])?;
        // The count includes our own reference.
        if Arc::strong_count(&self.alive) > HELPERS_MAX {
            return Err(format!("the processes for {HELPERS_MAX} transfers before it are stuck"));
        }
        let waits = (Arc::clone(&self.alive), Arc::clone(custody));
        let transfer = start(&*state, pipe, is_load, waits).map_err(|error| error.to_string())?;
        self.last = Some(transfer);
        Ok(())
    }

    /// `CHECK_DEVICE_STATE`: waits for the end.
    ///
    /// # Errors
    /// Why the state is not whole at the other end.
    pub fn end(&mut self) -> Result<(), String> {
        let state = self.state()?;
        let Transfer { copying, came } = self.last.take().ok_or("there is no transfer")?;
        let bytes = copying.wait(PATIENCE).map_err(|error| match error.kind() {
            io::ErrorKind::TimedOut => {
                format!("the front end's pipe has no end after {} ms", PATIENCE.as_millis())
            }
            _ => format!("the state cannot be copied: {error}"),
        })?;
        match came {
            // The guest has moved, whatever becomes of what it brought.
            Some(came) => state.has_come(put(&*state, &came, PATIENCE)),
            None => state.has_gone(bytes),
        }
        Ok(())
    }

    fn state(&self) -> Result<Arc<dyn DeviceState>, String> {
        let state = self.state.as_ref().filter(|_| self.is_negotiated);
        state.map(Arc::clone).ok_or_else(|| "DEVICE_STATE was not negotiated".into())
    }
}

/// Puts what has come to its place, by a helper, because no thread of this process may change a file's length. Returns the number of
/// bytes.
fn put(state: &dyn DeviceState, came: &OwnedFd, patience: Duration) -> io::Result<u64> {
    let place = state.place()?;
    // The helper ends with its socket.
    let (_helper, copying) = Helper::copy(came.as_fd(), place.as_fd())?;
    copying.wait(patience)
}

/// Has a helper copy the state. `waits` counts the thread that waits for the helper.
fn start(
    state: &dyn DeviceState,
    pipe: Foreign,
    is_load: bool,
    waits: (Arc<()>, Arc<Custody>),
) -> io::Result<Transfer> {
    let file = match is_load {
        true => memfd_create("ringscope-state", MemfdFlags::CLOEXEC)?,
        false => state.save()?,
    };
    let came = if is_load { Some(file.try_clone()?) } else { None };
    let (started, is_started) = sync_channel(1);
    // Never joined: the helper may never end.
    Builder::new().name("state".into()).spawn(move || {
        confine::narrow(Role::Closer);
        let (file, waits) = (file, waits);
        let copy = match is_load {
            true => Helper::copy(pipe.as_fd(), file.as_fd()),
            false => Helper::copy(file.as_fd(), pipe.as_fd()),
        };
        // The helper has both. That of the front end is closed by another helper, because closing it may wait, too.
        drop((pipe, file));
        match copy {
            Ok((helper, copying)) => {
                let _ = started.send(Ok(copying));
                let _ = helper.wait();
            }
            Err(error) => {
                let _ = started.send(Err(error));
            }
        }
        drop(waits);
    })?;
    let copying = is_started.recv().unwrap_or_else(|_| Err(io::ErrorKind::BrokenPipe.into()))?;
    Ok(Transfer { copying, came })
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::fs::File;
    use std::io::{Read as _, Seek as _, Write as _};
    use std::sync::Mutex;
    use std::thread::sleep;
    use std::time::Instant;

    /// Longest wait for a helper, which is the test program and starts slowly.
    const LONG: Duration = Duration::from_secs(20);

    #[derive(Debug)]
    struct Kept {
        place: File,
        heard: Mutex<Vec<(bool, u64)>>,
    }

    fn wait_for(mut condition: impl FnMut() -> bool) {
        let until = Instant::now() + LONG;
        while !condition() {
            assert!(Instant::now() < until, "it does not happen");
            sleep(Duration::from_millis(1));
        }
    }

    fn memory() -> File {
        memfd_create("state", MemfdFlags::CLOEXEC).unwrap().into()
    }

    impl DeviceState for Kept {
        fn save(&self) -> io::Result<OwnedFd> {
            let mut file = memory();
            file.write_all(b"a state")?;
            Ok(file.into())
        }

        fn place(&self) -> io::Result<OwnedFd> {
            Ok(self.place.try_clone()?.into())
        }

        fn has_come(&self, put: io::Result<u64>) {
            self.heard.lock().unwrap().push((true, put.unwrap_or(u64::MAX)));
        }

        fn has_gone(&self, bytes: u64) {
            self.heard.lock().unwrap().push((false, bytes));
        }
    }

    struct Scene {
        state: Arc<Kept>,
        transfers: Transfers,
        custody: Arc<Custody>,
    }

    impl Scene {
        fn new() -> Self {
            crate::message::pipe::tests::prepare();
            let state = Arc::new(Kept { place: memory(), heard: Mutex::default() });
            let mut transfers = Transfers::of(Some(Arc::clone(&state) as Arc<dyn DeviceState>));
            transfers.set_negotiated(true);
            Self { state, transfers, custody: Custody::new(&Arc::default()).unwrap() }
        }

        /// Asks for the end of a load whose pipe is closed. The helpers, which are the test program, start slowly.
        fn finish(&mut self) {
            let Transfer { copying, came } = self.transfers.last.take().unwrap();
            copying.wait(LONG).unwrap();
            let put = put(&*self.state, &came.unwrap(), LONG);
            self.state.has_come(put);
        }

        fn placed(&self) -> String {
            let (mut placed, mut place) = (String::new(), self.state.place.try_clone().unwrap());
            place.rewind().unwrap();
            place.read_to_string(&mut placed).unwrap();
            placed
        }

        fn begin(&mut self, way: [u32; 2], file: OwnedFd) -> Result<(), String> {
            let mut files = vec![self.custody.take(file)];
            self.transfers.begin(way, &mut files, false, &self.custody)
        }
    }

    #[test]
    fn a_transfer_that_is_given_up_leaves_what_was_there() {
        let mut scene = Scene::new();
        let load = |scene: &mut Scene, state: &[u8]| {
            let (reader, mut writer) = io::pipe().unwrap();
            scene.begin([1, 0], reader.into()).unwrap();
            writer.write_all(state).unwrap();
            writer
        };
        drop(load(&mut scene, b"whole"));
        scene.finish();
        let _open = load(&mut scene, b"a part");
        assert!(scene.transfers.end().is_err());
        let _also = load(&mut scene, b"another part");
        let _last = load(&mut scene, b"the last part");
        assert_eq!(scene.placed(), "whole");
    }

    #[test]
    fn a_state_goes_and_comes_whole() {
        let mut scene = Scene::new();
        let (mut reader, writer) = io::pipe().unwrap();
        scene.begin([0, 0], writer.into()).unwrap();
        let mut gone = String::new();
        reader.read_to_string(&mut gone).unwrap();
        assert_eq!(gone, "a state");
        scene.transfers.end().unwrap();

        let (reader, mut writer) = io::pipe().unwrap();
        scene.begin([1, 0], reader.into()).unwrap();
        writer.write_all(b"another state").unwrap();
        drop(writer);
        scene.finish();
        assert_eq!(scene.placed(), "another state");
        assert_eq!(*scene.state.heard.lock().unwrap(), [(false, 7), (true, 13)]);
        assert_eq!(scene.transfers.end().unwrap_err(), "there is no transfer");
    }

    #[test]
    fn a_pipe_without_end_is_an_error() {
        let mut scene = Scene::new();
        let (reader, _writer) = io::pipe().unwrap();
        scene.begin([1, 0], reader.into()).unwrap();
        let why = scene.transfers.end().unwrap_err();
        assert_eq!(why, "the front end's pipe has no end after 500 ms");
        assert!(scene.state.heard.lock().unwrap().is_empty());
    }

    #[test]
    fn what_is_no_transfer_is_refused_in_one_sentence() {
        let mut scene = Scene::new();
        let pipe = || OwnedFd::from(io::pipe().unwrap().1);
        for (way, part) in [([2, 0], "direction 2"), ([0, 1], "in phase 1"), ([9, 9], "9")] {
            assert!(scene.begin(way, pipe()).unwrap_err().contains(part), "{way:?}");
        }
        assert!(scene.begin([0, 0], memory().into()).unwrap_err().contains("expected a pipe"));
        let begin = |scene: &mut Scene, files: usize, rings_run| {
            let mut files = (0..files).map(|_| scene.custody.take(pipe())).collect();
            scene.transfers.begin([0, 0], &mut files, rings_run, &scene.custody).unwrap_err()
        };
        assert!(begin(&mut scene, 0, false).contains("0 file descriptors"));
        assert!(begin(&mut scene, 2, false).contains("2 file descriptors"));
        assert!(begin(&mut scene, 1, true).contains("rings run"));
        scene.transfers.set_negotiated(false);
        assert!(begin(&mut scene, 1, false).contains("was not negotiated"));
        assert!(scene.transfers.end().unwrap_err().contains("was not negotiated"));
        let mut nothing = Transfers::of(None);
        nothing.set_negotiated(true);
        assert!(nothing.end().unwrap_err().contains("was not negotiated"));
    }

    #[test]
    fn a_connection_has_few_helpers_for_transfers() {
        let mut scene = Scene::new();
        let pipes: Vec<_> = (0..=HELPERS_MAX).map(|_| io::pipe().unwrap()).collect();
        // Helpers that are not given up: each transfer gives up the one before it.
        let held: Vec<_> = pipes[..HELPERS_MAX]
            .iter()
            .map(|(reader, _)| {
                scene.begin([1, 0], reader.try_clone().unwrap().into()).unwrap();
                scene.transfers.last.take().unwrap()
            })
            .collect();
        let more = || pipes[HELPERS_MAX].0.try_clone().unwrap().into();
        assert!(scene.begin([1, 0], more()).unwrap_err().contains("are stuck"));
        drop(held);
        wait_for(|| scene.begin([1, 0], more()).is_ok());
    }
}
