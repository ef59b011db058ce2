//! Mapped files that another process may shorten.
//!
//! Access to a page that a mapped file does not have raises SIGBUS, which ends the process: the file was truncated, its
//! file system is full, or the page's memory is faulty. Any process that may write the file can cause this. So such
//! mappings are registered here. A signal handler replaces the missing pages of a registered mapping
//! with zeroes, marks the mapping as torn, and lets the program go on. Owners check the mark.
//!
//! - [`FileMapping`]: a whole file, mapped shared and registered; [`SharedWords`]: the same as words.
//! - [`Guard`]: the registration of a mapping that its caller made.
//! - [`generation`]: one counter to check, for owners of many mappings.
//! - `table`: the registered mappings; `signal`: the handler.

mod guard;
mod mapping;
mod signal;
mod table;

pub use guard::Guard;
pub use mapping::{FileMapping, SharedWords};
pub use table::generation;
