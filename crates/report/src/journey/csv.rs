//! Joined round trips as comma-separated values.

use std::io::{self, Write};

use super::Journeys;

/// Writes a line for each round trip: the probe, when it was sent (nanoseconds of its sender's clock), the round trip,
/// the error of what lies between two clocks, and each part as `SIDE.STAGE_ns`, empty if it was not measured.
///
/// # Errors
/// If writing to `out` fails.
pub fn write_csv(out: &mut impl Write, joined: &Journeys) -> io::Result<()> {
    write!(out, "run,sequence,sent_ns,round_trip_ns,bound_ns")?;
    for part in &joined.parts {
        write!(out, ",{}.{}_ns", part.side.name(), part.stage)?;
    }
    writeln!(out)?;
    for journey in &joined.journeys {
        let (id, round_trip_ns) = (journey.id, journey.round_trip_ns);
        write!(out, "{},{},{},{round_trip_ns}", id.run, id.sequence, journey.sent_ns)?;
        write!(out, ",{}", journey.bound_ns)?;
        for part in &journey.parts {
            match part {
                Some(ns) => write!(out, ",{ns}")?,
                None => write!(out, ",")?,
            }
        }
        writeln!(out)?;
    }
    Ok(())
}
