//! Cyclic frames: layer-2 frames that carry a counter of their own, as PROFINET, AVTP and test talkers send them. The
//! counter identifies the frame, so a talker need not be changed to have its frames followed.

use std::fmt;
use std::str::FromStr;

/// Most descriptions of cyclic frames for one guest. A record has four bits for their number.
pub const CYCLIC_MAX: usize = 16;
/// Longest counter, bytes.
const COUNTER_LEN_MAX: u8 = 8;
/// Longest stream identifier, bytes: all its fields together. A record has 32 bits for it.
const STREAM_LEN_MAX: u8 = 4;
/// Smallest EtherType (IEEE 802.3, 3.2.6); smaller values are lengths.
const ETHERTYPE_MIN: u16 = 0x600;
/// EtherTypes of VLAN tags (IEEE 802.1Q), which are skipped.
const TAGS: [u16; 2] = [0x8100, 0x88a8];
/// Largest VLAN identifier of a frame (IEEE 802.1Q, table 9-2).
const VLAN_MAX: u16 = 4094;

/// The frames that RTC-Testbench sends (`src/net_def.h` there): the identifier of the traffic class (2 bytes), the frame's
/// number in its cycle (4 bytes), the cycle (4 bytes). Each frame of a cycle is a stream, which counts cycles.
const RTC_TESTBENCH: (&str, &str) =
    ("rtc-testbench", "ethertype:0x8892,counter@6/4,stream@0/2,stream@4/2");

/// The form of a description, for messages after "expected".
const FORM: &str = "ethertype:0xNNNN,counter@OFFSET/LEN[,step=N][,stream@OFFSET/LEN][,vlan=ID][,le], or rtc-testbench";

/// A field of a frame's payload: of the bytes after the EtherType, so that VLAN tags do not move it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Field {
    offset: u16,
    len: u8,
}

impl Field {
    /// Where it begins, bytes from the start of the payload.
    #[must_use]
    pub const fn offset(self) -> usize {
        self.offset as usize
    }

    /// Its length, 1 to 8 bytes.
    #[must_use]
    #[expect(clippy::len_without_is_empty, reason = "a field is never empty")]
    pub const fn len(self) -> usize {
        self.len as usize
    }

    fn parse(text: &str, len_max: u8) -> Result<Self, String> {
        let wrong =
            || format!("expected OFFSET/LEN with a LEN of 1 to {len_max} bytes, found '{text}'");
        let (offset, len) = text.split_once('/').ok_or_else(wrong)?;
        let len = len.parse().ok().filter(|len| (1..=len_max).contains(len)).ok_or_else(wrong)?;
        let offset: u16 = offset.parse().map_err(|_| wrong())?;
        Ok(Self { offset, len })
    }

    /// Its value. `read` copies bytes of the payload from an offset, and returns whether all were there.
    #[inline]
    fn value(self, little: bool, read: &mut impl FnMut(usize, &mut [u8]) -> bool) -> Option<u64> {
        let mut bytes = [0; COUNTER_LEN_MAX as usize];
        if !read(self.offset(), &mut bytes[..self.len()]) {
            return None;
        }
        Some(if little {
            u64::from_le_bytes(bytes)
        } else {
            u64::from_be_bytes(bytes) >> (8 * (bytes.len() - self.len()))
        })
    }
}

impl fmt::Display for Field {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}/{}", self.offset, self.len)
    }
}

/// A description of cyclic frames: how they are recognised, and where their counter is.
///
/// ```
/// use burst_trace::CyclicFrames;
///
/// let frames: CyclicFrames = "ethertype:0x8892,counter@2/4".parse()?;
/// let payload = [0x80, 0, 0, 0, 1, 0xff];
/// let read = |at: usize, to: &mut [u8]| match payload.get(at..at + to.len()) {
///     Some(bytes) => {
///         to.copy_from_slice(bytes);
///         true
///     }
///     None => false,
/// };
/// assert_eq!(frames.find(0, 0x8892, None, read).map(|frame| frame.counter), Some(0x1ff));
/// assert_eq!(frames.find(0, 0x0800, None, read), None);
/// # Ok::<(), String>(())
/// ```
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct CyclicFrames {
    ethertype: u16,
    counter: Field,
    /// How much the counter grows from frame to frame.
    step: u64,
    /// Frames that differ in these fields belong to different streams.
    streams: [Option<Field>; 2],
    /// Only frames whose innermost VLAN tag has this identifier.
    vlan: Option<u16>,
    /// The fields are little endian.
    little: bool,
}

/// A frame that a description fits.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct CyclicFrame {
    /// Number of the description: below [`CYCLIC_MAX`].
    pub description: u8,
    /// Length of its counter, 1 to 8 bytes.
    pub counter_len: u8,
    /// Its stream: the stream fields one after the other; 0 without such fields.
    pub stream: u32,
    /// Its counter.
    pub counter: u64,
}

impl CyclicFrames {
    /// The EtherType of the frames.
    #[must_use]
    pub const fn ethertype(&self) -> u16 {
        self.ethertype
    }

    /// How much the counter grows from frame to frame, at least 1.
    #[must_use]
    pub const fn step(&self) -> u64 {
        self.step
    }

    /// Where the counter is.
    #[must_use]
    pub const fn counter(&self) -> Field {
        self.counter
    }

    /// Whether the counter is little endian.
    #[must_use]
    pub const fn is_little_endian(&self) -> bool {
        self.little
    }

    /// The VLAN that the frames must belong to, if it is given.
    #[must_use]
    pub const fn vlan(&self) -> Option<u16> {
        self.vlan
    }

    /// Length of the stream's identifier, bytes; 0 if streams are not distinguished.
    #[must_use]
    pub fn stream_len(&self) -> usize {
        self.streams.iter().flatten().map(|field| field.len()).sum()
    }

    /// The frame with this EtherType and this identifier in its innermost VLAN tag, if this description, the one with this
    /// `number`, fits it. `read` copies bytes of its payload from an offset, and returns whether all were there. A frame
    /// that ends before a field does not fit.
    #[inline]
    #[must_use]
    pub fn find(
        &self,
        number: u8,
        ethertype: u16,
        vlan: Option<u16>,
        mut read: impl FnMut(usize, &mut [u8]) -> bool,
    ) -> Option<CyclicFrame> {
        if ethertype != self.ethertype || (self.vlan.is_some() && self.vlan != vlan) {
            return None;
        }
        let counter = self.counter.value(self.little, &mut read)?;
        let mut stream = 0;
        for field in self.streams.iter().flatten() {
            stream = stream << (8 * field.len()) | field.value(self.little, &mut read)?;
        }
        #[expect(clippy::cast_possible_truncation, reason = "at most STREAM_LEN_MAX bytes")]
        let stream = stream as u32;
        Some(CyclicFrame { description: number, counter_len: self.counter.len, stream, counter })
    }

    fn parse(text: &str) -> Result<Self, String> {
        let mut keys = text.split(',');
        let ethertype = keys.next().and_then(|first| first.strip_prefix("ethertype:"));
        let ethertype = ethertype.ok_or_else(|| format!("expected {FORM}, found '{text}'"))?;
        let ethertype = parse_ethertype(ethertype)?;
        let (mut counter, mut step, mut vlan, mut little) = (None, None, None, false);
        let mut streams = [None; 2];
        let twice = |key: &str| format!("{key} is given too often");
        for key in keys {
            if let Some(field) = key.strip_prefix("counter@") {
                let field = Field::parse(field, COUNTER_LEN_MAX)?;
                set_once(&mut counter, field).map_err(|()| twice("counter"))?;
            } else if let Some(field) = key.strip_prefix("stream@") {
                let field = Field::parse(field, STREAM_LEN_MAX)?;
                let free = streams.iter_mut().find(|field| field.is_none());
                *free.ok_or_else(|| twice("stream"))? = Some(field);
            } else if let Some(number) = key.strip_prefix("step=") {
                let number = number.parse().ok().filter(|number| *number > 0_u64);
                let number =
                    number.ok_or_else(|| format!("expected a step of 1 or more, found '{key}'"))?;
                set_once(&mut step, number).map_err(|()| twice("step"))?;
            } else if let Some(id) = key.strip_prefix("vlan=") {
                let id = id.parse().ok().filter(|id| *id <= VLAN_MAX);
                let id =
                    id.ok_or_else(|| format!("expected a VLAN of 0 to {VLAN_MAX}, found '{key}'"))?;
                set_once(&mut vlan, id).map_err(|()| twice("vlan"))?;
            } else if key == "le" {
                little = true;
            } else {
                return Err(format!("expected {FORM}, found '{key}'"));
            }
        }
        let counter = counter.ok_or_else(|| format!("expected counter@OFFSET/LEN in '{text}'"))?;
        let frames = Self { ethertype, counter, step: step.unwrap_or(1), streams, vlan, little };
        if frames.stream_len() > usize::from(STREAM_LEN_MAX) {
            let found = frames.stream_len();
            return Err(format!(
                "expected stream fields of at most {STREAM_LEN_MAX} bytes together, found {found}"
            ));
        }
        let step_max = 1_u64 << (8 * u32::from(counter.len) - 3);
        if frames.step > step_max {
            let (found, len) = (frames.step, counter.len);
            return Err(format!(
                "expected a step of at most {step_max} for a counter of {len} bytes, found {found}"
            ));
        }
        Ok(frames)
    }
}

fn parse_ethertype(text: &str) -> Result<u16, String> {
    let number = match text.strip_prefix("0x") {
        Some(digits) => u16::from_str_radix(digits, 16).ok(),
        None => text.parse().ok(),
    };
    let wrong = || {
        format!(
            "expected an EtherType of 0x{ETHERTYPE_MIN:04x} or more, such as 0x8892, found '{text}'"
        )
    };
    let number = number.filter(|number| *number >= ETHERTYPE_MIN).ok_or_else(wrong)?;
    if TAGS.contains(&number) {
        return Err(format!(
            "expected the EtherType after the VLAN tags, which are skipped, found that of a tag, '{text}'"
        ));
    }
    Ok(number)
}

fn set_once<T>(place: &mut Option<T>, value: T) -> Result<(), ()> {
    match place.replace(value) {
        None => Ok(()),
        Some(_) => Err(()),
    }
}

impl FromStr for CyclicFrames {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, Self::Err> {
        Self::parse(if text == RTC_TESTBENCH.0 { RTC_TESTBENCH.1 } else { text })
    }
}

impl fmt::Display for CyclicFrames {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "ethertype:0x{:04x},counter@{}", self.ethertype, self.counter)?;
        if self.step != 1 {
            write!(f, ",step={}", self.step)?;
        }
        for field in self.streams.iter().flatten() {
            write!(f, ",stream@{field}")?;
        }
        if let Some(vlan) = self.vlan {
            write!(f, ",vlan={vlan}")?;
        }
        if self.little {
            write!(f, ",le")?;
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn frames(text: &str) -> CyclicFrames {
        text.parse().unwrap()
    }

    fn find(text: &str, vlan: Option<u16>, payload: &[u8]) -> Option<(u32, u64)> {
        let read = |at: usize, to: &mut [u8]| {
            let there = payload.get(at..at + to.len());
            there.map(|bytes| to.copy_from_slice(bytes)).is_some()
        };
        let found = frames(text).find(3, 0x8892, vlan, read)?;
        assert_eq!(found.description, 3);
        Some((found.stream, found.counter))
    }

    #[test]
    fn a_description_is_read_and_written() {
        for text in [
            "ethertype:0x8892,counter@2/4",
            "ethertype:0x22f0,counter@2/1,stream@8/4",
            "ethertype:0x88b5,counter@65535/8,step=32,stream@0/2,stream@4/2,vlan=257,le",
        ] {
            assert_eq!(frames(text).to_string(), text);
        }
        assert_eq!(frames("rtc-testbench").to_string(), RTC_TESTBENCH.1);
        assert_eq!(frames("ethertype:34962,counter@0/1").ethertype(), 0x8892);
    }

    #[test]
    fn what_is_wrong_is_said() {
        let base = "ethertype:0x8892,counter@0/1";
        for (text, expected) in [
            (String::new(), "expected ethertype:0xNNNN"),
            ("7010".into(), "found '7010'"),
            ("ethertype:0x8892".into(), "expected counter@OFFSET/LEN in"),
            ("ethertype:0x5ff,counter@0/1".into(), "0x0600 or more"),
            ("ethertype:0x8100,counter@0/1".into(), "that of a tag"),
            ("ethertype:0x18892,counter@0/1".into(), "found '0x18892'"),
            ("ethertype:0x8892,counter@0/9".into(), "1 to 8 bytes, found '0/9'"),
            ("ethertype:0x8892,counter@0/0".into(), "found '0/0'"),
            ("ethertype:0x8892,counter@65536/1".into(), "found '65536/1'"),
            ("ethertype:0x8892,counter@4".into(), "found '4'"),
            (format!("{base},counter@0/1"), "counter is given too often"),
            (format!("{base},stream@0/5"), "1 to 4 bytes"),
            (format!("{base},stream@0/3,stream@0/2"), "at most 4 bytes together, found 5"),
            (format!("{base},stream@0/1,stream@1/1,stream@2/1"), "stream is given too often"),
            (format!("{base},vlan=4095"), "0 to 4094"),
            (format!("{base},step=0"), "1 or more"),
            (format!("{base},step=33"), "at most 32 for a counter of 1 bytes, found 33"),
            (format!("{base},big"), "found 'big'"),
        ] {
            let error = text.parse::<CyclicFrames>().unwrap_err();
            assert!(error.contains(expected), "{text}: {error}");
        }
    }

    #[test]
    fn fields_are_read_where_they_are() {
        let payload = [0x80, 0x01, 0, 0, 0, 7, 1, 2, 3, 4];
        let be = "ethertype:0x8892,counter@6/4";
        assert_eq!(find(be, None, &payload), Some((0, 0x0102_0304)));
        assert_eq!(find(&format!("{be},le"), None, &payload), Some((0, 0x0403_0201)));
        assert_eq!(find("rtc-testbench", None, &payload), Some((0x8001_0007, 0x0102_0304)));
        assert_eq!(find("ethertype:0x8892,counter@2/8", None, &payload), Some((0, 0x7_0102_0304)));
        for len in 0..payload.len() {
            assert_eq!(find("rtc-testbench", None, &payload[..len]), None, "{len}");
        }
        for (vlan, found) in [(None, false), (Some(1), false), (Some(5), true)] {
            assert_eq!(find(&format!("{be},vlan=5"), vlan, &payload).is_some(), found);
        }
        assert_eq!(frames(be).find(0, 0x8893, None, |_, _| true), None);
    }
}
