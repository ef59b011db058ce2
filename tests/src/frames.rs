//! Frames that say where they belong, sent in chains of all shapes.

use std::time::Duration;

use frontend::{Error, Guest, GuestOptions, Pair};

const SOON: Duration = Duration::from_secs(5);

/// Bytes that differ from frame to frame and from place to place.
#[must_use]
#[expect(clippy::cast_possible_truncation, reason = "a pattern of bytes")]
pub fn frame(seed: usize, len: usize) -> Vec<u8> {
    (0..len).map(|at| (seed * 37 + at * 5 + at / 253) as u8).collect()
}

/// Guests with every combination of event index, indirect descriptors, mergeable buffers and version 1,
/// close to the wrap of the rings' indices.
pub fn guests() -> impl Iterator<Item = GuestOptions> {
    (0..16).map(|bits| {
        let has = |bit: u32| bits & 1 << bit != 0;
        let options = GuestOptions { start_index: 65500, ..GuestOptions::default() };
        options.event_index(has(0)).indirect(has(1)).mergeable(has(2)).version_1(has(3))
    })
}

/// The formats of a ring, with and without completion in order: one guest of each.
#[must_use]
pub fn formats(options: &GuestOptions) -> [GuestOptions; 4] {
    [(false, false), (false, true), (true, false), (true, true)]
        .map(|(packed, in_order)| options.clone().packed(packed).in_order(in_order))
}

/// Sends frames of many lengths, in chains of many shapes, to a back end that reflects them. Each must
/// come back as it was, in order, and no byte may be written beside the buffers.
///
/// # Errors
/// When the back end misbehaves.
///
/// # Panics
/// When a frame does not come back as it was.
pub fn come_back(guest: &mut Guest) -> Result<(), Error> {
    for n in 0..guest.pairs().len() {
        come_back_on(guest, n)?;
    }
    guest.check_canaries()
}

/// The same on one queue pair only, canaries not looked at.
///
/// # Errors
/// When the back end misbehaves.
///
/// # Panics
/// As [`come_back`].
pub fn come_back_on(guest: &mut Guest, pair: usize) -> Result<(), Error> {
    let mergeable = guest.features().mergeable();
    let pair = guest.pair(pair);
    let setup = pair.transmit_ring().driver().setup();
    // A chain has four pieces more than its frame fills.
    let room = usize::from(setup.size) * pair.receive_ring().buffers().len() as usize / 3;
    let longest = if mergeable { 6000.min(room) } else { 1900 };
    one_by_one(pair, longest)?;
    all_at_once(pair, usize::from(setup.size - setup.size / 4).clamp(1, 100))?;
    assert_eq!(pair.receive_ring().counters().calls_missed, 0, "signals were due");
    Ok(())
}

fn one_by_one(pair: &mut Pair, longest: usize) -> Result<(), Error> {
    let header = vec![0; pair.header_len()];
    for (n, len) in [60, 61, 1000, 1514, 64, longest].into_iter().enumerate() {
        let sent = frame(n, len);
        let (head, tail) = sent.split_at(len / 3);
        let (byte, rest) = header.split_at(1);
        let queued = match n % 3 {
            0 => pair.send(&sent)?,
            1 => pair.send_chain(&header, &[head, tail])?,
            _ => pair.send_chain(byte, &[rest, &head[..1], &head[1..], tail])?,
        };
        assert!(queued, "no room for frame {n}");
        let came = pair.receive_within(SOON)?.expect("the frame comes back");
        assert!(came.bytes == sent, "frame {n} of {len} bytes: {} came", came.bytes.len());
        let room = pair.receive_ring().buffers().len() as usize;
        assert_eq!(usize::from(came.buffers), (len + header.len()).div_ceil(room));
    }
    Ok(())
}

fn all_at_once(pair: &mut Pair, count: usize) -> Result<(), Error> {
    for n in 0..count {
        assert!(pair.queue(&frame(n, 60 + 10 * n))?, "no room for frame {n}");
    }
    pair.flush()?;
    for n in 0..count {
        let came = pair.receive_within(SOON)?.expect("the frame comes back");
        assert!(came.bytes == frame(n, 60 + 10 * n), "frame {n} of a burst");
    }
    Ok(())
}
