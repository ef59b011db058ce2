//! Mapped files that somebody else may shorten.
//!
//! Reading a page of a mapped file that the file does not have (any more) is SIGBUS, which ends the process: the
//! file was truncated, its file system is full, or the page's memory is faulty. Whoever may open the file can do
//! that to us. So such mappings are registered here, and a signal handler replaces what is missing of a registered
//! mapping by pages of zeroes, marks the mapping as torn, and lets the program go on. Owners look at the mark.
//!
//! - [`FileMapping`]: a whole file, mapped shared and registered.
//! - [`Guard`]: the registration of a mapping that somebody else made.
//! - [`generation`]: one number to look at, for those who own many mappings.
//! - `table`: the registered mappings; `signal`: the handler.

mod guard;
mod mapping;
mod signal;
mod table;

pub use guard::Guard;
pub use mapping::FileMapping;
pub use table::generation;
