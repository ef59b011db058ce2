//! The comment on a burst, or on one of its frames: a line of text with the times in all stages.

use std::fmt::Write as _;

use burst_trace::{BurstRecord, Stage};

/// The frames of a burst that a comment is about.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Described {
    /// One frame.
    One {
        /// Its index in the burst.
        number: usize,
        /// Number of frames handed to the datapath; more than [`BurstRecord::packets`] when it lost some.
        handed: usize,
    },
    /// All frames that went through.
    All,
}

/// Appends `tx ring=1 burst=4711 frame=3/32 notice=812ns ...` to `text`; for [`Described::All`] with `frames=32` in place of
/// `frame=3/32`. `nanoseconds` converts the record's ticks.
pub fn describe(
    text: &mut String,
    record: &BurstRecord,
    frames: Described,
    nanoseconds: impl Fn(u64) -> u64,
) {
    let direction = record.direction();
    // Writing to a string does not fail.
    let _ = write!(text, "{} ring={} burst={}", direction.name(), record.ring, record.sequence);
    let packets = usize::from(record.packets);
    let _ = match frames {
        Described::One { number, handed } if handed == packets => {
            write!(text, " frame={}/{handed}", number + 1)
        }
        Described::One { number, handed } => {
            write!(text, " frame={}/{handed} carried={packets}", number + 1)
        }
        Described::All => write!(text, " frames={packets}"),
    };
    let stages = direction.stages().iter().zip(record.stages);
    // Most guests have no limit.
    for (stage, ticks) in stages.filter(|(stage, ticks)| **stage != Stage::Limited || *ticks > 0) {
        let _ = write!(text, " {}={}ns", stage.name(), nanoseconds(ticks));
    }
    if record.is_polled {
        text.push_str(" polled");
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_frame_and_a_whole_burst_have_the_same_comment() {
        let mut record = BurstRecord {
            sequence: 4711,
            stages: [1, 0, 0, 3, 4, 5, 6],
            packets: 31,
            ring: 1,
            ..BurstRecord::default()
        };
        let said = |record: &BurstRecord, frames| {
            let mut text = String::new();
            describe(&mut text, record, frames, |ticks| ticks * 10);
            text
        };
        let stages = "notice=10ns queued=0ns gather=30ns egress=40ns complete=50ns signal=60ns";
        assert_eq!(
            said(&record, Described::One { number: 2, handed: 31 }),
            format!("tx ring=1 burst=4711 frame=3/31 {stages}")
        );
        assert_eq!(
            said(&record, Described::One { number: 2, handed: 32 }),
            format!("tx ring=1 burst=4711 frame=3/32 carried=31 {stages}")
        );
        record.is_polled = true;
        assert_eq!(
            said(&record, Described::All),
            format!("tx ring=1 burst=4711 frames=31 {stages} polled")
        );
    }
}
