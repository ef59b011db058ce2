//! Log lines of third-party crates.

use log::{Log, Metadata, Record};

use crate::limit::LogLimit;

/// A logger that limits the lines of third-party crates: they log each fault of a front end's messages at level `error`.
#[derive(Debug)]
pub struct LimitedLogger<L> {
    logger: L,
    own: &'static [&'static str],
    limit: LogLimit,
}

impl<L: Log> LimitedLogger<L> {
    /// Writes through `logger`. The crates in `own` limit their lines themselves.
    pub fn new(logger: L, own: &'static [&'static str]) -> Self {
        Self { logger, own, limit: LogLimit::new("") }
    }
}

impl<L: Log> Log for LimitedLogger<L> {
    fn enabled(&self, metadata: &Metadata<'_>) -> bool {
        self.logger.enabled(metadata)
    }

    fn log(&self, record: &Record<'_>) {
        let from = record.target().split("::").next().unwrap_or_default();
        if self.own.contains(&from) {
            self.logger.log(record);
        } else if self.enabled(record.metadata())
            && let Some(left_out) = self.limit.pass()
        {
            self.logger.log(
                &Record::builder()
                    .metadata(record.metadata().clone())
                    .module_path(record.module_path())
                    .file(record.file())
                    .line(record.line())
                    .args(format_args!("{}{left_out}", record.args()))
                    .build(),
            );
        }
    }

    fn flush(&self) {
        self.logger.flush();
    }
}

#[cfg(test)]
mod tests {
    use std::sync::Mutex;

    use log::Level;

    use super::*;
    use crate::limit::LINES_AT_ONCE;

    #[derive(Default)]
    struct Lines(Mutex<Vec<String>>);

    impl Log for Lines {
        fn enabled(&self, metadata: &Metadata<'_>) -> bool {
            metadata.level() <= Level::Info
        }

        fn log(&self, record: &Record<'_>) {
            self.0.lock().unwrap().push(record.args().to_string());
        }

        fn flush(&self) {}
    }

    #[test]
    fn only_the_lines_of_other_crates_are_limited() {
        let logger = LimitedLogger::new(Lines::default(), &["ours"]);
        let log = |target: &str, level| {
            let record = Record::builder().target(target).level(level).build();
            logger.log(&record);
        };
        (0..100).for_each(|_| log("ours::module", Level::Info));
        assert_eq!(logger.logger.0.lock().unwrap().len(), 100);
        (0..100).for_each(|_| log("theirs::ours", Level::Debug));
        (0..100).for_each(|_| log("theirs::ours", Level::Error));
        assert_eq!(logger.logger.0.lock().unwrap().len(), 100 + LINES_AT_ONCE as usize);
    }
}
