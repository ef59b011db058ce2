//! A guest whose device writes while nobody else does, and what must be marked in its dirty log then.

use std::collections::BTreeSet;
use std::io::Read as _;
use std::thread::sleep;
use std::time::Duration;

use frontend::raw::{self, request};
use frontend::{DirtyFile, Guest, RegionOptions};

use crate::eventually::{SOON, eventually, when};

/// Bytes of guest memory for each bit of a log.
pub const PAGE: u64 = 4096;
/// Nothing has changed for so long: the device has done what there was to do.
const QUIET: Duration = Duration::from_millis(100);

/// A guest's whole memory at one time, region by region: guest-physical address and bytes.
#[derive(PartialEq, Eq)]
pub struct Snapshot(Vec<(u64, Vec<u8>)>);

impl Snapshot {
    /// Takes one of a guest.
    ///
    /// # Panics
    /// When its memory cannot be read.
    #[must_use]
    pub fn of(guest: &Guest) -> Self {
        let memory = guest.memory();
        let region = |RegionOptions { address, len }| {
            let mut bytes = vec![0; usize::try_from(len).unwrap()];
            memory.guest().read(address, &mut bytes).unwrap();
            (address, bytes)
        };
        Self(memory.spans().into_iter().map(region).collect())
    }

    /// The pages that are other ones in `after`.
    #[must_use]
    pub fn changed(&self, after: &Self) -> BTreeSet<u64> {
        let mut changed = BTreeSet::new();
        for ((start, before), (_, after)) in self.0.iter().zip(&after.0) {
            let pages = before.chunks(4096).zip(after.chunks(4096)).zip(start / PAGE..);
            changed.extend(pages.filter(|((one, two), _)| one != two).map(|(_, page)| page));
        }
        changed
    }
}

/// The end of the guest's memory, guest-physical.
#[must_use]
pub fn end_of_memory(guest: &Guest) -> u64 {
    let ends = guest.memory().spans().into_iter().map(|it| it.address + it.len);
    ends.max().unwrap_or(0)
}

/// A log for all of the guest's memory, which its back end has.
///
/// # Panics
/// When the back end refuses it.
#[must_use]
pub fn log_for(guest: &mut Guest) -> DirtyFile {
    let log = DirtyFile::new(end_of_memory(guest)).unwrap();
    guest.link().unwrap().set_log(log.file(), log.len(), 0).unwrap();
    log
}

/// Sends `SEND_RARP` for `address`. Returns whether it was accepted.
///
/// # Panics
/// When it is not answered.
pub fn announce(guest: &mut Guest, address: [u8; 6]) -> bool {
    let mut stream = guest.link().unwrap().stream();
    let payload = [&address[..], &[0; 2]].concat();
    raw::send(stream, request::SEND_RARP, &payload, &[]).unwrap();
    // Header and one word.
    let mut answer = [0; 20];
    stream.read_exact(&mut answer).unwrap();
    answer[12..] == [0; 8]
}

/// Starts the stopped rings of a guest, which does nothing from then on, and waits until the device has nothing more to do.
/// Stops the rings. Returns the pages that changed, which only the device can have written.
///
/// # Panics
/// When the back end refuses, or goes on writing for ever.
pub fn written_by_device(guest: &mut Guest) -> BTreeSet<u64> {
    let before = Snapshot::of(guest);
    // The ring that receives first: frames that come back must find it.
    for ring in 0..2 {
        guest.start_ring(ring).unwrap();
    }
    let mut last = Snapshot::of(guest);
    eventually(SOON, "the device to have done all", || {
        sleep(QUIET);
        let now = Snapshot::of(guest);
        let is_quiet = now == last && now != before;
        last = now;
        when(is_quiet, "memory changes")
    });
    for ring in 0..2 {
        guest.stop_ring(ring).unwrap();
    }
    before.changed(&Snapshot::of(guest))
}
