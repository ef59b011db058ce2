//! A new daemon takes every guest over from a running one, without the front ends' knowledge (`--take-over`).
//!
//! Both speak on `RUN_DIR/NAME.take-over`, a socket of the running daemon with mode 0600, where NAME is that of its first
//! guest. It is handed over with everything else, so the next daemon can be taken over from, too.
//!
//! ```text
//! the new daemon                                    the running daemon
//! connects                                          checks the other's user
//! Hello: its version, its guests --------------->   compares them with its own; stops reading its front ends' messages
//! maps memory, opens nothing,     <--------------   Estate: for each guest, what its front end has sent, with all
//! repeats the messages                              descriptors: connection, memory, kicks, calls, datapath, sockets
//! Ready ---------------------------------------->   stops the rings; the kernel keeps the frames that come meanwhile
//! starts the rings                <--------------   Start: where each ring stands
//! Done ----------------------------------------->   ends with status 0, without a word to the front ends
//! ```
//!
//! Frames flow on in the running daemon until `Ready`. If anything fails before `Done`, even if the new daemon is killed
//! then, the running one starts its rings again and reads its front ends' messages: nothing has happened. Only a new daemon
//! that got `Start`, lives on and says nothing for [`PATIENCE`] keeps the guests: two daemons must not serve a ring.
//!
//! Of a message, only the header is the same in all versions ([`channel`]). A daemon refuses another version in a sentence
//! with both numbers. The numbers change whenever an older daemon would misread a message.
//!
//! What cannot be handed over is refused before anything changes ([`give`]).

pub mod channel;
pub mod give;
pub mod take;
mod words;

use std::path::{Path, PathBuf};
use std::str::FromStr;
use std::time::Duration;

/// Version of the messages.
pub const VERSION: u32 = 2;
/// Longest wait for the other daemon, which may have to map much memory.
pub const PATIENCE: Duration = Duration::from_secs(10);

/// `--take-over`: the daemon to take over from.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Predecessor {
    /// This process.
    Process(u32),
    /// The one that listens here.
    Socket(PathBuf),
}

impl FromStr for Predecessor {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, Self::Err> {
        match text.parse() {
            Ok(process @ 1..) => Ok(Self::Process(process)),
            Ok(0) => Err("expected a process number or the path of a socket, found 0".into()),
            Err(_) => Ok(Self::Socket(text.into())),
        }
    }
}

/// The socket of a daemon whose first guest has this recorder.
pub fn socket_of(recorder: &Path) -> PathBuf {
    recorder.with_extension("take-over")
}
