//! Why front ends cannot be served.

use std::io;

use crate::sharing::PrivateMemory;

/// Why front ends, or one of them, cannot be served.
#[derive(Debug, thiserror::Error)]
pub enum ServeError {
    /// The guest's memory is not shared.
    #[error("{0}")]
    PrivateMemory(#[from] PrivateMemory),
    /// The system refused.
    #[error("{step} failed: {source}")]
    System {
        /// What was tried.
        step: &'static str,
        /// What the system answered.
        source: io::Error,
    },
}

/// Makes an error of the system's answer to `step`, for `map_err`.
pub fn system(step: &'static str) -> impl Fn(io::Error) -> ServeError {
    move |source| ServeError::System { step, source }
}
