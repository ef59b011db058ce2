//! The roll-up: four spans of the way from the wire to the guest.

use crate::collect::DirectionBreakdown;

/// One of the four spans.
#[derive(Clone, Debug, PartialEq)]
pub struct Span {
    /// `a` to `d`.
    pub letter: char,
    /// Its start and its end.
    pub name: &'static str,
    /// The sum of its stages' means, if all of them are known.
    pub mean_ns: Option<f64>,
    /// Its stages with figures.
    pub known: Vec<&'static str>,
    /// The sum of those stages' means.
    pub known_ns: f64,
    /// Its stages without figures.
    pub missing: Vec<&'static str>,
}

type Definition = (char, &'static str, &'static [&'static str]);

/// `guest-receive` ends in the application, but (d) ends in the driver. So (d) needs a figure of its own: the first
/// part of `guest-receive`.
const SPANS: [Definition; 4] = [
    ('a', "NIC interrupt to handler", &["host-rx"]),
    ('b', "handler to back end awake", &["wakeup", "notice"]),
    (
        'c',
        "back end to guest interrupt",
        &["limited", "starved", "place", "publish", "signal", "inject"],
    ),
    ('d', "guest interrupt to guest driver", &["first part of guest-receive"]),
];

/// The four spans of the receive direction. Only means are added up, never percentiles.
#[must_use]
pub fn rollup(rx: &DirectionBreakdown) -> [Span; 4] {
    SPANS.map(|(letter, name, stages)| {
        let mut span = Span {
            letter,
            name,
            mean_ns: None,
            known: Vec::new(),
            known_ns: 0.0,
            missing: Vec::new(),
        };
        for &stage in stages {
            match rx.stage(stage).and_then(|row| row.figures) {
                Some(figures) => {
                    span.known.push(stage);
                    span.known_ns += figures.mean_ns;
                }
                None => span.missing.push(stage),
            }
        }
        span.mean_ns = span.missing.is_empty().then_some(span.known_ns);
        span
    })
}
