//! One HTML file that shows where the time goes. It needs nothing from a network, and holds nothing but what is in the
//! recording.
//!
//! Three passes over the records, none of which keeps them: first figures; then the tail, the time line and the slowest
//! bursts; then what their workers and the host kernel did around them. The page is `page.html`: its script draws the
//! data that is inserted into it as JSON.

mod gather;
mod kernel;
mod trips;
mod words;

use std::io::{self, Write};

use burst_trace::Source;
use serde::Serialize;

use crate::breakdown::Breakdown;
use crate::journey::Journeys;
use gather::DirectionCharts;
use trips::Trips;

const PAGE: &str = include_str!("html/page.html");
/// The placeholder for the data in the page.
const PLACE: &str = "\"DATA\"";

/// The data of the page.
#[derive(Serialize)]
struct Page {
    name: String,
    /// The facts of the daemon and of the recording: JSON.
    facts: serde_json::Value,
    features: Vec<String>,
    clock: &'static str,
    ticks_per_second: u64,
    /// `CLOCK_REALTIME` at the start of the time line, ns.
    start_ns: u64,
    window_s: f64,
    lost: u64,
    ways: Vec<DirectionCharts>,
    before: Option<Box<Before>>,
    trips: Option<Trips>,
}

/// The recording that it is compared with.
#[derive(Serialize)]
struct Before {
    name: String,
    file: String,
    start_ns: u64,
    window_s: f64,
    ways: Vec<DirectionCharts>,
}

/// Writes the page for `source`, compared with `before` (and its file's name) and with the joined probes in `journeys` if given. `name` is used
/// if the daemon's facts have none. `each` is called for every record in each of the [`PASSES`] of a source, to show
/// progress.
///
/// # Errors
/// What `out` answers.
pub fn write_html(
    out: &mut impl Write,
    source: &Source,
    before: Option<(&Source, &str)>,
    journeys: Option<&Journeys>,
    name: &str,
    mut each: impl FnMut(),
) -> io::Result<()> {
    let (breakdown, ways, start_ns) = gather::ways(source, name, &mut each);
    let before = before.map(|(before, file)| {
        let (breakdown, ways, start_ns) = gather::ways(before, "before", &mut each);
        let Breakdown { name, window_s, .. } = breakdown;
        Box::new(Before { name, file: file.into(), start_ns, window_s, ways })
    });
    let page = Page {
        facts: serde_json::from_str(&source.facts()).unwrap_or_default(),
        features: breakdown.features,
        clock: breakdown.clock,
        ticks_per_second: breakdown.ticks_per_second,
        start_ns,
        window_s: breakdown.window_s,
        lost: breakdown.lost_records,
        name: breakdown.name,
        ways,
        before,
        trips: journeys.map(Trips::new),
    };
    let data = inert(&serde_json::to_string(&page)?);
    let (head, tail) = PAGE.split_once(PLACE).unwrap_or((PAGE, ""));
    for part in [head, &data, tail] {
        out.write_all(part.as_bytes())?;
    }
    Ok(())
}

/// The same JSON without characters that could end its script or begin a comment in the page: `</script>` ends a script,
/// and after `<!--<script>` the page's own end tag does not (HTML, 13.2.5.20, script data double escaped state). They
/// occur in strings only, where JSON has an escape for each.
fn inert(json: &str) -> String {
    let mut text = String::with_capacity(json.len());
    for character in json.chars() {
        match character {
            '<' => text.push_str("\\u003c"),
            '>' => text.push_str("\\u003e"),
            '&' => text.push_str("\\u0026"),
            '\u{2028}' => text.push_str("\\u2028"),
            '\u{2029}' => text.push_str("\\u2029"),
            other => text.push(other),
        }
    }
    text
}

/// Number of times the records of a source are read.
pub const PASSES: usize = 3;

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn nothing_in_the_data_is_markup_and_it_says_the_same() {
        let said = "<!--<script></script>]]>&amp;\u{2028}\u{2029}<\\/";
        let json = serde_json::to_string(&serde_json::json!({ said: [said, 1.5] })).unwrap();
        let inert = inert(&json);
        assert!(!inert.contains(['<', '>', '&', '\u{2028}', '\u{2029}']), "{inert}");
        let value = |text: &str| serde_json::from_str::<serde_json::Value>(text).unwrap();
        assert_eq!(value(&inert), value(&json));
    }
}
