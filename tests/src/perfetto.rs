//! Reads Perfetto traces back: as much of them as `ringscope report --format perfetto` writes. Numbers are those of
//! Perfetto's public definitions (<https://github.com/google/perfetto/tree/main/protos/perfetto/trace>), read field by field
//! without those that the writer was made with.

use std::collections::HashMap;

/// A slice, or an instant.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Slice {
    /// The name of its track.
    pub track: String,
    /// Its own.
    pub name: String,
    /// `CLOCK_MONOTONIC`, ns.
    pub start_ns: u64,
    /// The same; none for an instant.
    pub end_ns: Option<u64>,
    /// The slice around it, as a place in the list.
    pub parent: Option<usize>,
    /// What is said of it.
    pub notes: HashMap<String, u64>,
}

/// A whole trace.
#[derive(Clone, Debug, Default)]
pub struct Trace {
    /// Its slices and instants, by start.
    pub slices: Vec<Slice>,
    /// Tracks by number: the one they belong to, and their name.
    pub tracks: HashMap<u64, (u64, String)>,
}

impl Trace {
    /// Reads a trace, and makes slices of its events as the trace processor does: by time, what has one time in the order
    /// of the file, each track a stack.
    ///
    /// # Panics
    /// When it is no trace, or an event does not belong there.
    #[must_use]
    pub fn read(bytes: &[u8]) -> Self {
        let mut trace = Self::default();
        // By the field of InternedData: categories, names of events, of annotations.
        let mut names: HashMap<(u64, u64), String> = HashMap::new();
        let mut events = Vec::new();
        for packet in Message::read(bytes).messages(1) {
            // ClockSnapshot: the trace's own clock is CLOCK_MONOTONIC.
            for clocks in packet.messages(6) {
                assert_eq!(clocks.number(2), Some(3));
            }
            for interned in packet.messages(12) {
                for (kind, name) in [1, 2, 3]
                    .into_iter()
                    .flat_map(|kind| interned.messages(kind).into_iter().map(move |it| (kind, it)))
                {
                    let known = names.insert((kind, name.number(1).unwrap()), name.text(2));
                    assert_eq!(known, None, "each number names one thing");
                }
            }
            for track in packet.messages(60) {
                let parent = track.number(5).unwrap_or_default();
                trace.tracks.insert(track.number(1).unwrap(), (parent, track.text(2)));
            }
            for event in packet.messages(11) {
                assert_eq!(packet.number(58), Some(3), "CLOCK_MONOTONIC");
                events.push((packet.number(8).expect("a time"), event));
            }
        }
        events.sort_by_key(|(at, _)| *at);
        let mut open: HashMap<u64, Vec<usize>> = HashMap::new();
        for (at, event) in events {
            let track = event.number(11).expect("a track");
            let stack = open.entry(track).or_default();
            let kind = event.number(9).expect("a type");
            if kind == 2 {
                let slice = stack.pop().expect("a slice that is open");
                trace.slices[slice].end_ns = Some(at);
                continue;
            }
            let note = |note: Message<'_>| {
                let name = names[&(3, note.number(1).unwrap())].clone();
                (name, note.number(2).or(note.number(3)).expect("a value"))
            };
            trace.slices.push(Slice {
                track: trace.tracks[&track].1.clone(),
                // A number of a name that was given before, or the name itself.
                name: event
                    .number(10)
                    .map_or_else(|| event.text(23), |number| names[&(2, number)].clone()),
                start_ns: at,
                end_ns: None,
                parent: stack.last().copied(),
                notes: event.messages(4).into_iter().map(note).collect(),
            });
            match kind {
                1 => stack.push(trace.slices.len() - 1),
                3 => {}
                other => panic!("an event of type {other}"),
            }
        }
        assert!(open.values().all(Vec::is_empty), "every slice ends");
        trace
    }
}

/// A message of protobuf's wire format (<https://protobuf.dev/programming-guides/encoding/>).
struct Message<'b>(Vec<(u64, Field<'b>)>);

enum Field<'b> {
    Number(u64),
    Bytes(&'b [u8]),
}

impl<'b> Message<'b> {
    fn read(mut bytes: &'b [u8]) -> Self {
        let mut fields = Vec::new();
        while !bytes.is_empty() {
            let key = number(&mut bytes);
            let field = match key & 7 {
                0 => Field::Number(number(&mut bytes)),
                2 => {
                    let len = usize::try_from(number(&mut bytes)).unwrap();
                    let (field, rest) = bytes.split_at(len);
                    bytes = rest;
                    Field::Bytes(field)
                }
                other => panic!("a field of wire type {other}"),
            };
            fields.push((key >> 3, field));
        }
        Self(fields)
    }

    fn number(&self, field: u64) -> Option<u64> {
        self.0.iter().find_map(|(known, value)| match value {
            Field::Number(value) if *known == field => Some(*value),
            _ => None,
        })
    }

    fn bytes(&self, field: u64) -> impl Iterator<Item = &'b [u8]> + '_ {
        self.0.iter().filter_map(move |(known, value)| match value {
            Field::Bytes(value) if *known == field => Some(*value),
            _ => None,
        })
    }

    fn text(&self, field: u64) -> String {
        let bytes = self.bytes(field).next().unwrap_or_default();
        String::from_utf8(bytes.to_vec()).expect("UTF-8")
    }

    fn messages(&self, field: u64) -> Vec<Self> {
        self.bytes(field).map(Self::read).collect()
    }
}

fn number(bytes: &mut &[u8]) -> u64 {
    let (mut value, mut shift) = (0, 0);
    loop {
        let (first, rest) = bytes.split_first().expect("a whole number");
        *bytes = rest;
        value |= u64::from(first & 0x7f) << shift;
        shift += 7;
        if first & 0x80 == 0 {
            return value;
        }
    }
}
