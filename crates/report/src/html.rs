//! One HTML file, without anything from a network, that shows where the time goes.
//!
//! Three passes over the records, none of which keeps them: figures; then what the tail consists of, the time line and the
//! slowest bursts; then what their workers, and the host kernel, did around them. The page is `page.html`: its script
//! draws the data that is put into it as JSON.

mod gather;
mod kernel;
mod trips;
mod words;

use std::io::{self, Write};

use burst_trace::{BurstRecord, Clock, Source};
use serde::Serialize;

use crate::figures::TickRate;
use crate::journey::Journeys;
use gather::Way;
use trips::Trips;

const PAGE: &str = include_str!("html/page.html");
/// What stands in the page for the data.
const PLACE: &str = "\"DATA\"";

/// All that the page shows.
#[derive(Serialize)]
struct Page {
    name: String,
    /// What the daemon and whoever recorded said: JSON.
    facts: serde_json::Value,
    clock: &'static str,
    ticks_per_second: u64,
    /// `CLOCK_REALTIME` where the time line begins, ns.
    start_ns: u64,
    window_s: f64,
    lost: u64,
    cost: Cost,
    ways: Vec<Way>,
    before: Option<Box<Before>>,
    trips: Option<Trips>,
}

/// What is compared with.
#[derive(Serialize)]
struct Before {
    name: String,
    ways: Vec<Way>,
}

/// What tracing a burst costs, as measured where the page was made.
#[derive(Serialize)]
struct Cost {
    clock_ns: f64,
    burst_ns: f64,
}

/// Writes the page for `source`, compared with `before` if there is one, and with probes that were joined if there are
/// `journeys`. `name` counts where the daemon's facts give none.
/// `each` is called for every record of each pass ([`PASSES`] a source), for whoever shows how far it is.
///
/// # Errors
/// What `out` answers.
pub fn write_html(
    out: &mut impl Write,
    source: &Source,
    before: Option<&Source>,
    journeys: Option<&Journeys>,
    name: &str,
    mut each: impl FnMut(),
) -> io::Result<()> {
    let (breakdown, ways, start_ns) = gather::ways(source, name, &mut each);
    let before = before.map(|before| {
        let (breakdown, ways, _) = gather::ways(before, "before", &mut each);
        Box::new(Before { name: breakdown.name, ways })
    });
    let page = Page {
        facts: serde_json::from_str(&source.facts()).unwrap_or_default(),
        clock: breakdown.clock,
        ticks_per_second: breakdown.ticks_per_second,
        start_ns,
        window_s: breakdown.window_s,
        lost: breakdown.lost_records,
        name: breakdown.name,
        cost: Cost::measure(),
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

/// How often the records of a source are read.
pub const PASSES: usize = 3;

impl Cost {
    /// A burst takes five reads of the clock, and one record to be written, which is about as much as to make one.
    fn measure() -> Self {
        const TIMES: u32 = 100_000;
        let clock = Clock::new();
        let rate = TickRate::new(clock.ticks_per_second());
        let mean = |ticks: u64| rate.mean_ns(ticks.into(), TIMES.into());
        let start = clock.now();
        (0..TIMES).for_each(|_| _ = std::hint::black_box(clock.now()));
        let clock_ns = mean(clock.now() - start);
        let mut place = [0; 8];
        let start = clock.now();
        for n in 0..TIMES {
            let record = BurstRecord { sequence: n.into(), ..BurstRecord::default() };
            place = std::hint::black_box(record.to_words());
        }
        std::hint::black_box(place);
        let record_ns = mean(clock.now() - start);
        Self { clock_ns, burst_ns: 5.0 * clock_ns + record_ns }
    }
}

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
