//! Messages about the state that moves with a guest. They are always answered (vhost-user, "Migrating back-end state").

use worker::Foreign;

use super::{ACCEPTED, Held, Judge, NOT_ACCEPTED, reply};
use crate::message::request::Request;

/// In an answer to `SET_DEVICE_STATE_FD`: no descriptor comes with it, so the front end uses its own.
const NO_DESCRIPTOR: u64 = 1 << 8;

impl Judge {
    /// `SET_DEVICE_STATE_FD`, with direction and phase. Returns the answer.
    pub(super) fn begin_transfer(
        &mut self,
        request: &Request,
        way: [u32; 2],
        descriptors: &mut Vec<Foreign>,
        rings_run: bool,
    ) -> Held {
        let begun = self.transfers.begin(way, descriptors, rings_run, &self.custody);
        self.answer_transfer(request, begun, NO_DESCRIPTOR)
    }

    /// `CHECK_DEVICE_STATE`. Returns the answer.
    pub(super) fn end_transfer(&mut self, request: &Request) -> Held {
        let ended = self.transfers.end();
        self.answer_transfer(request, ended, 0)
    }

    fn answer_transfer(&self, request: &Request, done: Result<(), String>, flags: u64) -> Held {
        let result = match done {
            Ok(()) => ACCEPTED,
            Err(why) => {
                self.log(request, &why);
                NOT_ACCEPTED
            }
        };
        Held::Answered(Some(reply(request.code, &(result | flags).to_ne_bytes())))
    }
}
