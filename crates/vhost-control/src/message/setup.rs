//! What a front end has set up, as the messages that another daemon needs to go on with it.
//!
//! Of each kind of message only the last one counts, and of the memory the regions that are left. A front end's own order
//! does not matter: the messages are repeated in the order in which each is accepted ([`Part`]). The kicks come last,
//! because they start the rings.

use std::collections::{BTreeMap, BTreeSet};
use std::io;
use std::os::fd::{AsFd as _, OwnedFd};

use vhost::vhost_user::message::{FrontendReq, VhostUserVirtioFeatures};
use worker::Foreign;

use super::stream::{HEADER_LEN, Message};
use crate::limits::DESCRIPTORS_MAX;

/// Bytes of a region in a message (vhost-user, "Memory region description").
const REGION_LEN: usize = 32;
/// Version of the protocol, as flags of a header without `NEED_REPLY`.
const FLAGS: u32 = 1;

/// A message that is repeated, in the order of this list. Those of rings are repeated for one ring after the other.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
enum Part {
    Owner,
    Protocol,
    Features,
    /// The regions of memory have this place.
    Memory,
    Log,
    Channel,
    Size,
    Addresses,
    Call,
    Error,
    Enable,
    Kick,
}

/// A message of a front end, for another daemon.
#[derive(Debug)]
pub struct SetupMessage {
    /// Header and payload.
    pub bytes: Vec<u8>,
    /// Its descriptors.
    pub descriptors: Vec<OwnedFd>,
}

/// What a front end has set up.
#[derive(Debug, Default)]
pub struct Setup {
    /// By ring (0 for all), and part.
    parts: BTreeMap<(usize, Part), Message>,
    /// The regions as they are in messages, each with its file.
    regions: Vec<([u8; REGION_LEN], Foreign)>,
    /// Rings whose call descriptor is a pipe.
    pipes: BTreeSet<usize>,
}

impl Setup {
    /// Notes a message that was accepted. `has_pipe`: one of its descriptors was a pipe.
    pub fn note(&mut self, message: Message, has_pipe: bool) {
        let number = |at: usize| {
            let word = message.bytes.get(at..at + 4).and_then(|word| word.try_into().ok());
            word.map_or(0, u32::from_ne_bytes)
        };
        let Ok(request) = FrontendReq::try_from(number(0)) else { return };
        let (state_of, descriptor_of) =
            (number(HEADER_LEN) as usize, (number(HEADER_LEN) & 0xff) as usize);
        let (ring, part) = match request {
            FrontendReq::SET_OWNER => (0, Part::Owner),
            FrontendReq::SET_PROTOCOL_FEATURES => (0, Part::Protocol),
            FrontendReq::SET_FEATURES => {
                let protocol = VhostUserVirtioFeatures::PROTOCOL_FEATURES.bits();
                let low = u64::from(number(HEADER_LEN));
                if low & protocol == 0 {
                    // They enable all rings, and nothing disables one any more.
                    self.parts.retain(|(_, part), _| *part != Part::Enable);
                }
                (0, Part::Features)
            }
            FrontendReq::SET_LOG_BASE => (0, Part::Log),
            FrontendReq::SET_VRING_NUM => (state_of, Part::Size),
            FrontendReq::SET_VRING_ADDR => (state_of, Part::Addresses),
            FrontendReq::SET_VRING_ENABLE => (state_of, Part::Enable),
            FrontendReq::SET_VRING_KICK => (descriptor_of, Part::Kick),
            FrontendReq::SET_VRING_ERR => (descriptor_of, Part::Error),
            FrontendReq::SET_VRING_CALL => {
                self.pipes.remove(&descriptor_of);
                if has_pipe {
                    self.pipes.insert(descriptor_of);
                }
                (descriptor_of, Part::Call)
            }
            other => return self.forget(other, message, state_of),
        };
        self.parts.insert((ring, part), message);
    }

    /// Notes a message that changes the memory, or after which an earlier one does not count any more.
    fn forget(&mut self, request: FrontendReq, message: Message, ring: usize) {
        let Message { bytes, descriptors } = message;
        let regions = |at| bytes.get(at..).unwrap_or_default().chunks_exact(REGION_LEN);
        let region = |chunk: &[u8]| chunk.try_into().unwrap_or([0; REGION_LEN]);
        match request {
            FrontendReq::SET_MEM_TABLE => {
                let all = regions(HEADER_LEN + 8).map(region).zip(descriptors);
                self.regions = all.collect();
            }
            FrontendReq::ADD_MEM_REG => {
                self.regions.extend(regions(HEADER_LEN + 8).map(region).zip(descriptors));
            }
            FrontendReq::REM_MEM_REG => {
                // Guest address and length.
                for removed in regions(HEADER_LEN + 8) {
                    self.regions.retain(|(region, _)| region[..16] != removed[..16]);
                }
            }
            // The framework forgets kick and call, too.
            FrontendReq::GET_VRING_BASE => {
                self.parts.remove(&(ring, Part::Kick));
                self.parts.remove(&(ring, Part::Call));
                self.pipes.remove(&ring);
            }
            FrontendReq::RESET_OWNER => {
                let ended = [Part::Owner, Part::Protocol, Part::Features];
                self.parts.retain(|(_, part), _| !ended.contains(part));
            }
            FrontendReq::RESET_DEVICE => {
                self.parts.retain(|(_, part), _| *part < Part::Size && *part != Part::Features);
                self.pipes.clear();
            }
            _ => {}
        }
    }

    /// The messages for another daemon, in the order in which they are to be repeated. `channel`: that for requests of the
    /// back end.
    ///
    /// # Errors
    /// Why another daemon cannot go on with it.
    pub fn share(&self, channel: Option<&Foreign>) -> Result<Vec<SetupMessage>, String> {
        if let Some(ring) = self.pipes.first() {
            return Err(format!(
                "the call descriptor of queue {ring} is a pipe, to which a process of this daemon writes"
            ));
        }
        let copy = |files: &[&Foreign]| {
            let copies = files.iter().map(|file| file.as_fd().try_clone_to_owned());
            copies.collect::<io::Result<Vec<_>>>().map_err(|error| error.to_string())
        };
        let mut all: Vec<((Part, usize, Part), SetupMessage)> = Vec::new();
        for ((ring, part), Message { bytes, descriptors }) in &self.parts {
            // A ring's messages are together, but kicks come after those of all rings.
            let stage = if *part == Part::Kick { Part::Kick } else { (*part).min(Part::Size) };
            let descriptors = copy(&descriptors.iter().collect::<Vec<_>>())?;
            all.push(((stage, *ring, *part), SetupMessage { bytes: quiet(bytes), descriptors }));
        }
        let (mut place, table) = (0, self.regions.chunks(DESCRIPTORS_MAX).next());
        for regions in table.into_iter().chain(self.regions.chunks(1).skip(DESCRIPTORS_MAX)) {
            let files: Vec<_> = regions.iter().map(|(_, file)| file).collect();
            let bytes = memory(regions, place == 0);
            let message = SetupMessage { bytes, descriptors: copy(&files)? };
            all.push(((Part::Memory, place, Part::Memory), message));
            place += 1;
        }
        if let Some(channel) = channel {
            let bytes = header(FrontendReq::SET_BACKEND_REQ_FD, 0);
            let message = SetupMessage { bytes, descriptors: copy(&[channel])? };
            all.push(((Part::Channel, 0, Part::Channel), message));
        }
        all.sort_by_key(|(place, _)| *place);
        Ok(all.into_iter().map(|(_, message)| message).collect())
    }
}

/// Whether it starts a ring.
pub fn is_kick(bytes: &[u8]) -> bool {
    bytes.starts_with(&(FrontendReq::SET_VRING_KICK as u32).to_ne_bytes())
}

/// `SET_VRING_BASE`: `ring` goes on at `position`.
pub fn base(ring: u32, position: u16) -> Vec<u8> {
    let payload = [ring, position.into()].map(u32::to_ne_bytes).concat();
    [header(FrontendReq::SET_VRING_BASE, 8), payload].concat()
}

/// Whether it is [`question`], or the answer.
pub fn is_question(bytes: &[u8]) -> bool {
    bytes.starts_with(&(FrontendReq::GET_FEATURES as u32).to_ne_bytes())
}

/// `GET_FEATURES`, which changes nothing and is always answered.
pub fn question() -> Vec<u8> {
    header(FrontendReq::GET_FEATURES, 0)
}

/// A message without the wish for an answer.
fn quiet(bytes: &[u8]) -> Vec<u8> {
    let mut quiet = bytes.to_vec();
    if let Some(flags) = quiet.get_mut(4..8) {
        flags.copy_from_slice(&FLAGS.to_ne_bytes());
    }
    quiet
}

/// `SET_MEM_TABLE` with these regions, or `ADD_MEM_REG` with the one there is.
fn memory(regions: &[([u8; REGION_LEN], Foreign)], is_table: bool) -> Vec<u8> {
    let all = regions.iter().flat_map(|(region, _)| *region);
    let (request, count) = if is_table {
        (FrontendReq::SET_MEM_TABLE, regions.len() as u64)
    } else {
        (FrontendReq::ADD_MEM_REG, 0)
    };
    let payload: Vec<u8> = count.to_ne_bytes().into_iter().chain(all).collect();
    [header(request, payload.len()), payload].concat()
}

#[expect(clippy::cast_possible_truncation, reason = "below the framework's limit")]
fn header(request: FrontendReq, len: usize) -> Vec<u8> {
    [request as u32, FLAGS, len as u32].map(u32::to_ne_bytes).concat()
}

#[cfg(test)]
mod tests;
