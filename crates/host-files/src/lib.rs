//! Opens files of the host safely: by their kind, and without following an unexpected link. Opening a file to read, or a
//! socket, never waits.
//!
//! A leaf crate. Four kinds of file, and what they have in common:
//!
//! - [`input`]: a regular file that is read. Anything else is refused, and opening it never waits.
//! - [`output`]: a file that a user's tool writes. A regular file is replaced whole at the end; a device or FIFO is
//!   written into.
//! - [`own`]: a file of the daemon's own, new each time, and the lock on its name.
//! - [`socket`]: the UNIX socket of another process, and that process.
//! - [`boot_id`]: the boot of the host, which a file may belong to.
//! - [`identity`]: the identity and the kind of a file; [`write_counted`]: a write that reports how far it got.
//!
//! All errors are [`std::io::Error`]s whose text follows "cannot write PATH: " or "cannot read PATH: ".

mod boot;
mod counted;
pub mod identity;
pub mod input;
pub mod output;
pub mod own;
pub mod socket;

pub use boot::boot_id;
pub use counted::write_counted;
pub use identity::FileId;
pub use input::open_regular;
pub use output::{Guard, Output, rewrite};
pub use own::{Lock, create_own};
