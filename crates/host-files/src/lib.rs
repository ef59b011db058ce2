//! How files of the host are opened: never through a link by mistake, never over a device, never waiting for one.
//!
//! A leaf crate, with three kinds of file:
//!
//! - [`input`]: a regular file that is read. Anything else is refused, and opening it never waits.
//! - [`output`]: a file that a user's tool writes. A regular file is replaced whole at the end; a device or FIFO is
//!   written into.
//! - [`own`]: a file of the daemon's own, new each time, and the lock that says whose a name is.
//! - [`identity`]: what tells one file from another, and what kind of file it is.
//!
//! All errors are [`std::io::Error`]s whose text goes after "cannot write PATH: ".

pub mod identity;
pub mod input;
pub mod output;
pub mod own;

pub use identity::FileId;
pub use input::open_regular;
pub use output::{Guard, Output, rewrite};
pub use own::{Lock, create_own};
