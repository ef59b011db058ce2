//! What a client asks.

use kernel_stages::Handed;
use serde::Deserialize;
use serde_json::Value;

/// A request.
#[derive(Debug, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Request {
    /// What to do.
    pub command: String,
    /// The guest that it is about.
    pub guest: Option<String>,
    /// The command's value.
    pub value: Option<String>,
    /// Comes back with the answer.
    pub id: Option<Value>,
    /// `kernel-stages`: what the descriptors are that come along.
    pub programs: Option<Handed>,
    /// `capture`: the path of the file that comes along, for messages.
    pub file: Option<String>,
    /// `capture`: which frames are wanted, as instructions of classic BPF: code, jt, jf, k.
    pub filter: Option<Vec<(u16, u8, u8, u32)>>,
}
