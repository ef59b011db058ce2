//! A limit for log lines: lines that a guest or its front end causes must not fill the log.
//!
//! Each guest has one [`LogLimit`] for every line that it or its front end can cause. So one guest's lines never
//! suppress a line about another guest. Write through the macros [`error!`], [`warn!`], [`info!`] and [`debug!`]: a line over the
//! limit is not even formatted.
//!
//! ```
//! let limit = log_limit::LogLimit::new("vm0: ");
//! for queue in 0..1000 {
//!     log_limit::warn!(limit, "queue {queue} stops");
//! }
//! ```
//!
//! writes 10 lines. The next line that passes ends with `(990 lines left out)`.
//!
//! - `limit`: the limit and its clock; `foreign`: the same for the lines of third-party crates.

mod foreign;
mod limit;

pub use foreign::LimitedLogger;
pub use limit::{LINES_AT_ONCE, LeftOut, LogLimit};

/// Used by the macros.
#[doc(hidden)]
pub use log as log_crate;

/// Logs an error through a [`LogLimit`].
#[macro_export]
macro_rules! error {
    ($limit:expr, $($line:tt)+) => { $crate::line!($limit, Error, $($line)+) };
}

/// Logs a warning through a [`LogLimit`].
#[macro_export]
macro_rules! warn {
    ($limit:expr, $($line:tt)+) => { $crate::line!($limit, Warn, $($line)+) };
}

/// Logs information through a [`LogLimit`].
#[macro_export]
macro_rules! info {
    ($limit:expr, $($line:tt)+) => { $crate::line!($limit, Info, $($line)+) };
}

/// Logs a line for who looks for a fault, through a [`LogLimit`].
#[macro_export]
macro_rules! debug {
    ($limit:expr, $($line:tt)+) => { $crate::line!($limit, Debug, $($line)+) };
}

/// Logs a line of any level through a [`LogLimit`].
#[doc(hidden)]
#[macro_export]
macro_rules! line {
    ($limit:expr, $level:ident, $($line:tt)+) => {{
        let limit: &$crate::LogLimit = &$limit;
        let level = $crate::log_crate::Level::$level;
        // A line that nobody reads must not use up the limit.
        if $crate::log_crate::log_enabled!(level)
            && let Some(left_out) = limit.pass()
        {
            $crate::log_crate::log!(
                level,
                "{}{}{left_out}",
                limit.prefix(),
                ::core::format_args!($($line)+)
            );
        }
    }};
}
