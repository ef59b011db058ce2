//! The log on standard error: its form, and a level that can change while the daemon runs.

use std::fmt;
use std::io::{self, Write};
use std::str::FromStr;
use std::sync::{PoisonError, RwLock};

use env_filter::{Builder, Filter};
use env_logger::fmt::Formatter;
use log::{Level, LevelFilter, Log, Metadata, Record};
use log_limit::LimitedLogger;

/// The level if none is given.
const DEFAULT: &str = "info";

/// Crates that limit the log lines of guests and front ends themselves. [`LimitedLogger`] limits the lines of all others.
const OWN_CRATES: &[&str] = &[
    "ringscoped",
    "burst_trace",
    "datapath",
    "guest_memory",
    "kernel_stages",
    "log_limit",
    "metrics",
    "vhost_control",
    "virtio_net",
    "virtqueue",
    "worker",
];

/// The levels that are written; `None` until the log begins.
static FILTER: RwLock<Option<(LogLevel, Filter)>> = RwLock::new(None);

/// `--log-format`.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, clap::ValueEnum)]
pub enum LogFormat {
    /// A line to read.
    #[default]
    Text,
    /// A JSON object in each line.
    Json,
    /// A line for the journal, which has the time itself: its priority, and the message (sd-daemon(3)).
    Journal,
}

/// `--log-level`: a level, or one for each module, in the form of `RUST_LOG`.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct LogLevel(String);

impl FromStr for LogLevel {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, Self::Err> {
        // Other words would be names of modules, whose lines are all written then.
        let is_level = |part: &str| {
            let level = part.rsplit_once('=').map_or(part, |(_, level)| level);
            !part.is_empty() && level.parse::<LevelFilter>().is_ok()
        };
        match text.split(',').all(is_level) && Builder::new().try_parse(text).is_ok() {
            true => Ok(Self(text.into())),
            false => Err(format!(
                "expected error, warn, info, debug, trace or off, or a list such as info,vhost_control=debug, found '{text}'"
            )),
        }
    }
}

impl fmt::Display for LogLevel {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0)
    }
}

/// Writes what [`FILTER`] lets through.
#[derive(Debug)]
struct Filtered(env_logger::Logger);

impl Log for Filtered {
    fn enabled(&self, metadata: &Metadata<'_>) -> bool {
        let filter = FILTER.read().unwrap_or_else(PoisonError::into_inner);
        filter.as_ref().is_some_and(|(_, filter)| filter.enabled(metadata))
    }

    fn log(&self, record: &Record<'_>) {
        if self.enabled(record.metadata()) {
            self.0.log(record);
        }
    }

    fn flush(&self) {
        self.0.flush();
    }
}

/// Begins the log. Without a level it is that of `RUST_LOG`.
pub fn start(format: LogFormat, level: Option<&LogLevel>) {
    set_level(level);
    let mut builder = env_logger::Builder::new();
    builder.filter_level(LevelFilter::Trace).parse_write_style("auto");
    match format {
        LogFormat::Text => builder.format_target(false),
        LogFormat::Json => builder.format(write_json),
        LogFormat::Journal => builder.format(write_for_journal),
    };
    // Fails only if there is a logger already.
    let logger = LimitedLogger::new(Filtered(builder.build()), OWN_CRATES);
    let _ = log::set_boxed_logger(Box::new(logger));
}

/// From now on, writes lines of these levels. Without any, those of `RUST_LOG`.
pub fn set_level(level: Option<&LogLevel>) {
    let text = level.map(|level| level.0.clone());
    let text = text.or_else(|| std::env::var("RUST_LOG").ok().filter(|text| !text.is_empty()));
    let text = text.unwrap_or_else(|| DEFAULT.into());
    let filter = Builder::new().parse(&text).build();
    log::set_max_level(filter.filter());
    *FILTER.write().unwrap_or_else(PoisonError::into_inner) = Some((LogLevel(text), filter));
}

/// The levels that are written.
pub fn level() -> Option<LogLevel> {
    let filter = FILTER.read().unwrap_or_else(PoisonError::into_inner);
    filter.as_ref().map(|(level, _)| level.clone())
}

fn write_json(out: &mut Formatter, record: &Record<'_>) -> io::Result<()> {
    let line = serde_json::json!({
        "time": out.timestamp_micros().to_string(),
        "level": record.level().as_str().to_lowercase(),
        "target": record.target(),
        "message": record.args().to_string(),
    });
    writeln!(out, "{line}")
}

fn write_for_journal(out: &mut Formatter, record: &Record<'_>) -> io::Result<()> {
    let priority = match record.level() {
        Level::Error => 3,
        Level::Warn => 4,
        Level::Info => 6,
        Level::Debug | Level::Trace => 7,
    };
    // A message of several lines would be several messages.
    writeln!(out, "<{priority}>{}", record.args().to_string().replace('\n', " "))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn levels_are_read() {
        for text in [
            "info",
            "debug",
            "off",
            "info,vhost_control=debug",
            "warn,worker=trace,log_limit=debug",
        ] {
            assert_eq!(text.parse::<LogLevel>().unwrap().to_string(), text);
        }
        for wrong in ["", "loud", "info,", "vhost_control", "worker=loud", "=", "info;debug"] {
            assert!(wrong.parse::<LogLevel>().is_err(), "{wrong}");
        }
    }
}
