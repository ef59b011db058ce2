//! The journal of a guest's rings, beside its recorder.

use std::path::{Path, PathBuf};
use std::sync::Arc;

use ring_journal::{Found, Journal};

use crate::plan::GuestPlan;

/// `RUN_DIR/NAME.rings` of the recorder `RUN_DIR/NAME.trace`.
pub fn path(recorder: &Path) -> PathBuf {
    recorder.with_extension("rings")
}

/// Opens the guest's journal. Its recorder must be there, because that holds the lock on the name. Without a journal the
/// guest is served all the same. `is_in_use`: by the daemon that this one takes over from.
pub fn open(plan: &GuestPlan, is_in_use: bool) -> Option<Arc<Journal>> {
    let (path, prefix) = (path(&plan.recorder), &plan.log_prefix);
    let rings = plan.queue_pairs * 2;
    let opened = match is_in_use {
        false => Journal::open(&path, rings),
        true => Journal::open_beside(&path, rings),
    };
    match opened {
        Ok((journal, found)) => {
            if let Found::Unfit(why) = found {
                log::warn!(
                    "{prefix}the journal {} of the daemon before is not used, because {why}; packed rings go on as the front \
                     end says",
                    path.display()
                );
            }
            Some(journal)
        }
        Err(error) => {
            log::warn!(
                "{prefix}there is no journal {}: {error}; if this daemon is killed, packed rings of its guest stop until the \
                 guest's driver resets them",
                path.display()
            );
            None
        }
    }
}
