//! A breakdown as the one object that `ringscope stats --json` prints.
//!
//! A stage or total has figures if and only if its `count` is above 0: one that is not measured has
//! `"count": null`, one without packets has `"count": 0`, and neither has any figure.

use serde::Serialize;
use serde::ser::{SerializeMap, Serializer};

use burst_trace::DropCause;

use crate::breakdown::Breakdown;
use crate::collect::DirectionBreakdown;
use crate::stages::StageRow;

#[derive(Serialize)]
struct Object<'a> {
    name: &'a str,
    window_s: f64,
    clock: &'a str,
    tx: Way<'a>,
    rx: Way<'a>,
}

#[derive(Serialize)]
struct Way<'a> {
    packets: u64,
    bytes: u64,
    bursts: u64,
    drops: Drops<'a>,
    stages: &'a [StageRow],
    total: &'a StageRow,
}

struct Drops<'a>(&'a [(DropCause, u64)]);

impl Serialize for Drops<'_> {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        let mut map = serializer.serialize_map(Some(self.0.len()))?;
        for (cause, count) in self.0 {
            map.serialize_entry(cause.name(), count)?;
        }
        map.end()
    }
}

impl<'a> From<&'a DirectionBreakdown> for Way<'a> {
    fn from(way: &'a DirectionBreakdown) -> Self {
        Self {
            packets: way.packets,
            bytes: way.bytes,
            bursts: way.bursts,
            drops: Drops(&way.drops),
            stages: &way.stages,
            total: &way.total,
        }
    }
}

/// The object, indented.
///
/// # Panics
/// Never: all keys are strings.
#[must_use]
pub fn to_json(breakdown: &Breakdown) -> String {
    let object = Object {
        name: &breakdown.name,
        window_s: breakdown.window_s,
        clock: breakdown.clock,
        tx: (&breakdown.tx).into(),
        rx: (&breakdown.rx).into(),
    };
    serde_json::to_string_pretty(&object).expect("an object with string keys")
}
