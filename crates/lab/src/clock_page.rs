//! The offset of a QEMU guest's clock, bounded before and after a measurement by the page that it shares with this host
//! (`ringscope agent clock`).

use std::fs;
use std::io;
use std::path::{Path, PathBuf};
use std::time::Duration;

use agent::clock_page::{ClockBounds, EXCHANGES, bound_clock};

use crate::command::{Stop, patient};
use crate::end::{End, EndError};
use crate::kept::{CLOCK, NO_CLOCK};
use crate::variant::Built;

/// The page in the directory of a variant (`start_guest_in` of qemu-scripts/variants/common.sh).
const PAGE: &str = "guest/clock";
/// Time for some milliseconds of work in a guest on a busy host.
const WITHIN: Duration = Duration::from_secs(5);
/// Time after which the agent in the guest has ended by itself, seconds.
const LIFETIME_S: u64 = 30;

/// What is known of the responder's clock by its page.
#[derive(Debug, Default)]
pub(crate) struct PagedClock {
    /// `None` if the responder has no page.
    page: Option<PathBuf>,
    bounds: Option<ClockBounds>,
    /// Why bounds are missing.
    trouble: Option<String>,
}

impl PagedClock {
    /// The clock of the variant's responder, of which nothing is known yet.
    pub(crate) fn of(built: &Built) -> Self {
        let page = built.directory().join(PAGE);
        Self { page: page.exists().then_some(page), ..Self::default() }
    }

    /// Bounds the offset now. If that fails, the measurement has no such bounds, and goes on.
    ///
    /// # Errors
    /// If the responder does not answer on its console.
    pub(crate) fn bound(&mut self, stop: &Stop, responder: &End) -> Result<(), EndError> {
        let Some(page) = &self.page else { return Ok(()) };
        let pid = responder.start_agent(stop, &format!("clock --guest --timeout {LIFETIME_S}"))?;
        match bound_clock(page, EXCHANGES, patient(WITHIN)) {
            Ok(found) => match &mut self.bounds {
                Some(bounds) => bounds.add(found),
                none => *none = Some(found),
            },
            Err(error) => self.trouble = Some(error.to_string()),
        }
        Ok(responder.end_process(stop, pid)?)
    }

    /// Keeps the bounds in the directory of the measurement, or why there are none.
    ///
    /// # Errors
    /// If the file cannot be written.
    pub(crate) fn keep(&self, into: &Path) -> Result<(), (PathBuf, io::Error)> {
        let write = |name: &str, text: &str| {
            let path = into.join(name);
            fs::write(&path, text).map_err(|source| (path, source))
        };
        if let Some(bounds) = &self.bounds {
            let text = serde_json::to_string_pretty(bounds).expect("an object with string keys");
            write(CLOCK, &text)?;
        }
        self.trouble.as_ref().map_or(Ok(()), |trouble| write(NO_CLOCK, trouble))
    }
}

#[cfg(test)]
mod tests {
    use agent::clock_page::ClockBound;

    use super::*;

    #[test]
    fn bounds_and_troubles_are_kept_and_nothing_without_a_page() {
        let dir = tempfile::tempdir().unwrap();
        let kept = || {
            let names = fs::read_dir(dir.path()).unwrap().map(|it| it.unwrap().file_name());
            let mut names: Vec<_> = names.collect();
            names.sort();
            names
        };
        PagedClock::default().keep(dir.path()).unwrap();
        assert!(kept().is_empty());
        let bounds = ClockBounds {
            relation: "clock-page".into(),
            exchanges: 3,
            shortest_ns: 50,
            bounds: vec![ClockBound { host_ns: 7, low_ns: -5, high_ns: 6 }],
        };
        let clock = PagedClock {
            page: None,
            bounds: Some(bounds.clone()),
            trouble: Some("the second time".into()),
        };
        clock.keep(dir.path()).unwrap();
        assert_eq!(kept(), [CLOCK, NO_CLOCK]);
        let text = fs::read_to_string(dir.path().join(CLOCK)).unwrap();
        assert_eq!(serde_json::from_str::<ClockBounds>(&text).unwrap(), bounds);
    }
}
