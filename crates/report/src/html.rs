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
use serde::ser::Error as _;
use serde::{Serialize, Serializer};
use serde_json::Value;

use crate::breakdown::Breakdown;
use crate::cyclic::CyclicTraffic;
use crate::interruption::InterruptionRow;
use crate::journey::Journeys;
use crate::migration::MigrationRow;
use crate::restart::RestartRow;
use gather::DirectionCharts;
use trips::Trips;

pub use trips::SLOWEST as SLOWEST_PROBES;

const PAGE: &str = include_str!("html/page.html");
const STYLE: &str = include_str!("html/style.css");
const COMMON: &str = include_str!("html/common.js");

/// Placeholders of a page, each with what takes its place.
const COMMON_PLACES: [(&str, &str); 2] = [("/* style.css */\n", STYLE), ("// common.js\n", COMMON)];
/// The placeholder for the data in a page.
const PLACE: &str = "\"DATA\"";

/// A page made from its template: `/* style.css */` becomes the style of all pages, `// common.js` what their scripts have
/// in common, and `"DATA"` this data, as JSON that cannot end the script that it is in.
///
/// # Errors
/// If the data has keys that are no strings.
pub fn fill(template: &str, data: &impl Serialize) -> serde_json::Result<String> {
    let data = inert(&serde_json::to_string(data)?);
    let page = COMMON_PLACES
        .iter()
        .fold(template.to_owned(), |page, (place, text)| page.replacen(place, text, 1));
    let (head, tail) = page.split_once(PLACE).unwrap_or((&page, ""));
    Ok([head, &data, tail].concat())
}

/// The data of the page.
#[derive(Serialize)]
struct Page {
    name: String,
    /// The facts of the daemon and of the recording: JSON.
    facts: Value,
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
    #[serde(serialize_with = "with_exact_counters")]
    cyclic: CyclicTraffic,
    interruptions: Option<Vec<InterruptionRow>>,
    migrations: Vec<MigrationRow>,
    restarts: Vec<RestartRow>,
    restarted: u64,
    sent_twice_max: u64,
}

/// Counters of frames as text: they may have 64 bits, and the numbers of a script are exact up to 2^53.
fn with_exact_counters<S: Serializer>(cyclic: &CyclicTraffic, to: S) -> Result<S::Ok, S::Error> {
    let mut value = serde_json::to_value(cyclic).map_err(S::Error::custom)?;
    write_counters_as_text(&mut value);
    value.serialize(to)
}

fn write_counters_as_text(value: &mut Value) {
    match value {
        Value::Array(all) => all.iter_mut().for_each(write_counters_as_text),
        Value::Object(fields) => {
            for (name, field) in fields {
                match field {
                    Value::Number(counter) if name == "counter" => {
                        *field = Value::String(counter.to_string());
                    }
                    _ => write_counters_as_text(field),
                }
            }
        }
        _ => {}
    }
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
    let mut page = Page::read(source, before, name, &mut each);
    page.trips = journeys.map(Trips::new);
    out.write_all(fill(PAGE, &page)?.as_bytes())
}

/// Writes the page for `source` with its joined probes, under this title in place of the daemon's name.
///
/// # Errors
/// What `out` answers.
pub fn write_titled_html(
    out: &mut impl Write,
    source: &Source,
    journeys: &Journeys,
    title: &str,
    mut each: impl FnMut(),
) -> io::Result<()> {
    let mut page = Page::read(source, None, title, &mut each);
    page.name = title.into();
    page.trips = Some(Trips::new(journeys));
    out.write_all(fill(PAGE, &page)?.as_bytes())
}

impl Page {
    fn read(
        source: &Source,
        before: Option<(&Source, &str)>,
        name: &str,
        each: &mut impl FnMut(),
    ) -> Self {
        let (breakdown, ways, start_ns) = gather::ways(source, name, each);
        let before = before.map(|(before, file)| {
            let (breakdown, ways, start_ns) = gather::ways(before, "before", each);
            let Breakdown { name, window_s, .. } = breakdown;
            Box::new(Before { name, file: file.into(), start_ns, window_s, ways })
        });
        Self {
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
            trips: None,
            cyclic: breakdown.cyclic,
            interruptions: breakdown.interruptions,
            migrations: breakdown.migrations,
            restarts: breakdown.restarts,
            restarted: breakdown.restarted,
            sent_twice_max: breakdown.sent_twice_max,
        }
    }
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

    #[test]
    fn a_page_is_filled_with_what_pages_have_in_common_and_with_its_data() {
        // Data that looks like a placeholder stays data.
        let page = fill(PAGE, &"\"DATA\" // common.js\n").unwrap();
        for (place, text) in COMMON_PLACES {
            assert!(page.contains(text) && !page.contains(place), "{place}");
        }
        assert!(!page.contains(&format!(">{PLACE}<")));
    }
}
