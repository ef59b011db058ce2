//! What a judge passes on to the one of another daemon, which goes on with the front end.

use worker::Foreign;

use super::{Held, Judge, Way};
use crate::handover::Manner;
use crate::message::regions::Region;
use crate::message::request::Request;

impl Judge {
    /// Judges a message that the daemon before had accepted. Returns whether it is to be passed on.
    ///
    /// # Errors
    /// Why it is refused here.
    pub fn judge_again(
        &mut self,
        message: &mut Vec<u8>,
        descriptors: &mut Vec<Foreign>,
    ) -> Result<bool, String> {
        let request = Request::read(message)?;
        match self.verdict(&request, descriptors) {
            Ok(Ok(way)) => Ok(way == Way::Further),
            Ok(Err(why)) | Err(Held::Connection(why)) => Err(format!("{}: {why}", request.name())),
            Err(Held::Answered(_)) => Ok(false),
        }
    }

    /// What is known of the front end besides its messages; the settings of its guest are not.
    #[must_use]
    pub fn manner(&self) -> Manner {
        let left_out = self.memory.left_out().iter().map(Region::words).collect();
        let Self { asked_first, counts_pairs, .. } = *self;
        Manner { asked_first, counts_pairs, left_out, ..Manner::default() }
    }

    /// What was known of it in the daemon before.
    pub fn set_manner(&mut self, manner: &Manner) {
        (self.asked_first, self.counts_pairs) = (manner.asked_first, manner.counts_pairs);
        self.memory.leave_out(manner.left_out.iter().copied().map(Region::from_words).collect());
    }

    /// The front end's channel for requests of the back end.
    #[must_use]
    pub const fn channel(&self) -> Option<&Foreign> {
        self.channel.as_ref()
    }

    /// Whether the last message set a dirty log, which was taken.
    #[must_use]
    pub const fn has_taken_log(&mut self) -> bool {
        std::mem::replace(&mut self.log_taken, false)
    }
}
