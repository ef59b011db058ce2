//! A learning switch between the guests of one daemon (IEEE 802.1D, clause 7): to which port a frame goes.
//!
//! This is the decision only. The worker that serves all the switch's guests carries the frames, from the ring
//! of one straight into that of another (`worker::fabric`).
//!
//! What a guest can do to the others here is bounded. The table never grows, and each port has its own share of
//! it: who makes up source addresses uses up its own share, and evicts nobody. An address in use moves to another
//! port only when it was silent for [`MOVE_AFTER`]; the address that the operator gave a guest never does. Frames
//! for everyone are limited to [`FLOOD_RATE`] a second and port.

mod port;

use std::collections::hash_map::RandomState;
use std::hash::{BuildHasher as _, Hasher as _};
use std::time::Duration;

use virtio_net::MacAddress;

pub use port::{Port, capabilities};

/// The most ports.
pub const PORTS_MAX: usize = 64;
/// How many addresses are learned at a guest's port.
pub const GUEST_ADDRESSES_MAX: usize = 64;
/// How many addresses are learned at the port to the uplink.
pub const UPLINK_ADDRESSES_MAX: usize = 1024;
/// An address that was silent for so long is forgotten (802.1D, 7.9.2: the recommended ageing time).
pub const AGEING: Duration = Duration::from_secs(300);
/// How long an address must have been silent at its port before it is believed at another one.
pub const MOVE_AFTER: Duration = Duration::from_secs(1);
/// How many frames a second a port may send to everyone: to groups, or to where nobody knows. Longer ones than
/// [`FLOOD_UNIT`] bytes count as several.
pub const FLOOD_RATE: u64 = 10_000;
/// How many of them at once, after a rest.
pub const FLOOD_BURST: u64 = 512;

/// The longest frame that counts as one: a full Ethernet frame.
pub const FLOOD_UNIT: usize = 1514;

/// How much of a frame decides where it goes: destination and source address.
pub const ADDRESSES_LEN: usize = 12;

/// Entries of a bucket: all that one address can be in. 128 bytes, two cache lines.
const WAYS: usize = 8;
/// A bucket has no more than so many entries on average, should every port use up its share. Then about one address
/// in five thousand finds no room, and frames for it go to everyone.
const LOAD_MAX: usize = 2;

/// Where a frame goes.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Verdict {
    /// To this port.
    Port(u8),
    /// To every port but the one it came from.
    Everyone,
    /// To everyone, but there were too many such frames from this port.
    FloodLimit,
    /// Back to where it came from: nobody else is to have it.
    Nowhere,
}

/// The addresses of the switch, and what its ports have learned and sent. Times are ticks of one clock.
#[derive(Debug)]
pub struct Switch {
    buckets: Box<[[Entry; WAYS]]>,
    /// An odd number that no guest knows, or it could choose addresses that all fall into one bucket.
    hash: u64,
    ports: Vec<PortState>,
    ageing: u64,
    move_after: u64,
    second: u64,
    moves: u64,
}

#[derive(Clone, Copy, Debug, Default)]
struct Entry {
    /// [`USED`], perhaps [`PINNED`], the port, and the address in the lower 48 bits; 0 for none.
    key: u64,
    /// When the address was last heard.
    seen: u64,
}

/// 2^64 divided by the golden ratio.
const SPREAD: u64 = 0x9e37_79b9_7f4a_7c15;

const USED: u64 = 1 << 63;
const PINNED: u64 = 1 << 62;
const PORT_SHIFT: u32 = 48;
const ADDRESS: u64 = (1 << PORT_SHIFT) - 1;
/// The group bit of an address read as a little-endian number (802.3, 3.2.3: the first bit on the wire).
const GROUP: u64 = 1;

impl Entry {
    const fn new(address: u64, port: u8, flags: u64, seen: u64) -> Self {
        Self { key: USED | flags | (port as u64) << PORT_SHIFT | address, seen }
    }

    const fn is(&self, address: u64) -> bool {
        self.key & (USED | ADDRESS) == USED | address
    }

    #[expect(clippy::cast_possible_truncation, reason = "the lowest byte is the port")]
    const fn port(&self) -> u8 {
        (self.key >> PORT_SHIFT) as u8 & (PORTS_MAX as u8 - 1)
    }

    const fn is_pinned(&self) -> bool {
        self.key & PINNED != 0
    }

    /// Whether it counts: it is there and was heard not too long ago.
    const fn is_live(&self, now: u64, ageing: u64) -> bool {
        self.is_pinned() || (self.key & USED != 0 && now.saturating_sub(self.seen) < ageing)
    }
}

#[derive(Clone, Copy, Debug)]
struct PortState {
    /// How many addresses may be learned here, and how many are.
    addresses_max: usize,
    addresses: usize,
    /// When the next frame to everyone would be due, were they sent evenly.
    flood_due: u64,
    /// When addresses of this port that have aged were last looked for.
    swept: u64,
}

impl Switch {
    /// A switch whose ports may learn so many addresses each; `second` is a second in ticks.
    ///
    /// # Panics
    /// With more than [`PORTS_MAX`] ports.
    #[must_use]
    pub fn new(addresses_max: &[usize], second: u64) -> Self {
        assert!(addresses_max.len() <= PORTS_MAX, "at most {PORTS_MAX} ports");
        // One more each: the pinned one.
        let all = addresses_max.iter().map(|max| max + 1).sum::<usize>();
        let buckets = all.div_ceil(LOAD_MAX).next_power_of_two().max(2);
        let port =
            |&addresses_max| PortState { addresses_max, addresses: 0, flood_due: 0, swept: 0 };
        Self {
            buckets: vec![[Entry::default(); WAYS]; buckets].into_boxed_slice(),
            hash: RandomState::new().build_hasher().finish() | 1,
            ports: addresses_max.iter().map(port).collect(),
            ageing: second * AGEING.as_secs(),
            move_after: second * MOVE_AFTER.as_secs(),
            second,
            moves: 0,
        }
    }

    /// `address` is at `port`, whatever anybody says.
    pub fn pin(&mut self, port: u8, address: MacAddress) {
        let address = number(address.0);
        let bucket = self.bucket(address);
        if let Some(entry) = self.buckets[bucket].iter_mut().find(|entry| entry.key == 0) {
            *entry = Entry::new(address, port, PINNED, 0);
        }
    }

    /// Where a frame of `len` bytes with these addresses goes that came from `port` at `now`. Learns where its sender
    /// is.
    #[inline]
    pub fn route(
        &mut self,
        port: u8,
        addresses: [u8; ADDRESSES_LEN],
        len: usize,
        now: u64,
    ) -> Verdict {
        let [d0, d1, d2, d3, d4, d5, s0, s1, s2, s3, s4, s5] = addresses;
        let source = number([s0, s1, s2, s3, s4, s5]);
        if source & GROUP == 0 && source != 0 {
            self.learn(port, source, now);
        }
        let destination = number([d0, d1, d2, d3, d4, d5]);
        if destination & GROUP == 0 {
            let ageing = self.ageing;
            let bucket = &self.buckets[self.bucket(destination)];
            if let Some(entry) = bucket.iter().find(|entry| entry.is(destination))
                && entry.is_live(now, ageing)
            {
                let to = entry.port();
                return if to == port { Verdict::Nowhere } else { Verdict::Port(to) };
            }
        }
        self.flood(port, len, now)
    }

    /// Forgets what was learned at `port`: nobody is there any more.
    pub fn unplug(&mut self, port: u8) {
        self.forget(port, |_| true);
    }

    /// How often an address moved from port to port.
    #[must_use]
    pub const fn moves(&self) -> u64 {
        self.moves
    }

    /// How many addresses are learned at `port`.
    #[must_use]
    pub fn addresses(&self, port: u8) -> usize {
        self.ports[usize::from(port)].addresses
    }

    #[inline]
    fn learn(&mut self, port: u8, source: u64, now: u64) {
        let bucket = self.bucket(source);
        match self.buckets[bucket].iter_mut().find(|entry| entry.is(source)) {
            Some(entry) if entry.port() == port => entry.seen = now,
            Some(_) => self.learn_elsewhere(bucket, port, source, now),
            None => self.learn_new(bucket, port, source, now),
        }
    }

    /// An address that is known at another port.
    #[cold]
    fn learn_elsewhere(&mut self, bucket: usize, port: u8, source: u64, now: u64) {
        let (ageing, move_after) = (self.ageing, self.move_after);
        let Some(way) = self.buckets[bucket].iter().position(|entry| entry.is(source)) else {
            return;
        };
        let entry = self.buckets[bucket][way];
        let is_silent = now.saturating_sub(entry.seen) >= move_after;
        if entry.is_pinned() || !is_silent || !self.has_share(port, now) {
            return;
        }
        self.ports[usize::from(entry.port())].addresses -= 1;
        self.ports[usize::from(port)].addresses += 1;
        self.moves += u64::from(entry.is_live(now, ageing));
        self.buckets[bucket][way] = Entry::new(source, port, 0, now);
    }

    #[cold]
    fn learn_new(&mut self, bucket: usize, port: u8, source: u64, now: u64) {
        if !self.has_share(port, now) {
            return;
        }
        let ageing = self.ageing;
        let free = self.buckets[bucket].iter_mut().find(|entry| !entry.is_live(now, ageing));
        let Some(entry) = free else { return };
        if entry.key != 0 {
            self.ports[usize::from(entry.port())].addresses -= 1;
        }
        *entry = Entry::new(source, port, 0, now);
        self.ports[usize::from(port)].addresses += 1;
    }

    /// Whether `port` may learn one more address.
    fn has_share(&mut self, port: u8, now: u64) -> bool {
        let state = &mut self.ports[usize::from(port)];
        if state.addresses >= state.addresses_max && now.saturating_sub(state.swept) >= self.second
        {
            // The whole table is looked at: not for each of the addresses that a guest makes up.
            state.swept = now;
            let ageing = self.ageing;
            self.forget(port, |entry| !entry.is_live(now, ageing));
        }
        let state = &self.ports[usize::from(port)];
        state.addresses < state.addresses_max
    }

    #[cold]
    fn forget(&mut self, port: u8, which: impl Fn(&Entry) -> bool) {
        for entry in self.buckets.iter_mut().flatten() {
            if entry.key != 0 && !entry.is_pinned() && entry.port() == port && which(entry) {
                *entry = Entry::default();
                self.ports[usize::from(port)].addresses -= 1;
            }
        }
    }

    /// One more frame to everyone, if that is not too many.
    fn flood(&mut self, port: u8, len: usize, now: u64) -> Verdict {
        let gap = (self.second / FLOOD_RATE).max(1);
        let units = len.div_ceil(FLOOD_UNIT).max(1) as u64;
        let state = &mut self.ports[usize::from(port)];
        let due = state.flood_due.max(now);
        if due - now > gap * FLOOD_BURST {
            return Verdict::FloodLimit;
        }
        state.flood_due = due + units * gap;
        Verdict::Everyone
    }

    /// Multiplicative hashing (Knuth, TAOCP 3, 6.4), twice: the upper bits of the product. Addresses that were given out one
    /// after the other differ in their last byte, which is the uppermost here: as many as a bucket holds, and more, would
    /// fall into one with one secret in a thousand, were that byte not spread over all the others first.
    #[inline]
    const fn bucket(&self, address: u64) -> usize {
        let bits = self.buckets.len().trailing_zeros();
        let spread = address.wrapping_mul(SPREAD);
        let spread = spread ^ spread >> 32;
        #[expect(clippy::cast_possible_truncation, reason = "fewer bits than there are buckets")]
        {
            (spread.wrapping_mul(self.hash) >> (u64::BITS - bits)) as usize
        }
    }
}

#[inline]
const fn number(address: [u8; 6]) -> u64 {
    let [a, b, c, d, e, f] = address;
    u64::from_le_bytes([a, b, c, d, e, f, 0, 0])
}

#[cfg(test)]
mod tests {
    use super::*;

    const SECOND: u64 = 1_000_000_000;

    fn addresses(to: u16, from: u16) -> [u8; ADDRESSES_LEN] {
        let mut bytes = [0; ADDRESSES_LEN];
        for (at, station) in [(0, to), (6, from)] {
            bytes[at] = 0x52;
            bytes[at + 4..at + 6].copy_from_slice(&station.to_be_bytes());
        }
        bytes
    }

    fn to_everyone(from: u16) -> [u8; ADDRESSES_LEN] {
        let mut bytes = addresses(0, from);
        bytes[..6].fill(0xff);
        bytes
    }

    fn switch(ports: usize) -> Switch {
        Switch::new(&vec![GUEST_ADDRESSES_MAX; ports], SECOND)
    }

    #[test]
    fn an_address_is_learned_where_it_was_heard_and_forgotten_when_silent() {
        let mut switch = switch(3);
        assert_eq!(switch.route(0, addresses(2, 1), 60, 0), Verdict::Everyone);
        assert_eq!(switch.route(1, addresses(1, 2), 60, 10), Verdict::Port(0));
        assert_eq!(switch.route(0, addresses(2, 1), 60, 20), Verdict::Port(1));
        assert_eq!(switch.route(0, addresses(1, 1), 60, 30), Verdict::Nowhere);
        let late = 20 + 300 * SECOND;
        assert_eq!(switch.route(2, addresses(2, 3), 60, late), Verdict::Everyone);
        assert_eq!(switch.route(2, addresses(1, 3), 60, late), Verdict::Port(0), "heard at 30");
    }

    #[test]
    fn groups_are_flooded_and_never_learned() {
        let mut switch = switch(2);
        assert_eq!(switch.route(0, to_everyone(1), 60, 0), Verdict::Everyone);
        let mut from_group = addresses(1, 9);
        from_group[6] |= 1;
        assert_eq!(switch.route(1, from_group, 60, 0), Verdict::Port(0));
        assert_eq!((switch.addresses(0), switch.addresses(1)), (1, 0));
    }

    #[test]
    fn made_up_sources_use_up_the_share_of_their_port_only() {
        let mut switch = switch(3);
        switch.route(1, to_everyone(1), 60, 0);
        for station in 100..40_000 {
            switch.route(0, addresses(1, station), 60, 1);
        }
        let learned = switch.addresses(0);
        assert!(learned <= GUEST_ADDRESSES_MAX && learned > GUEST_ADDRESSES_MAX / 2, "{learned}");
        assert_eq!(switch.route(2, addresses(1, 3), 60, 2), Verdict::Port(1));
        // Once they are silent, others have their places.
        let late = 301 * SECOND;
        switch.route(0, addresses(1, 50_000), 60, late);
        assert_eq!(switch.addresses(0), 1);
        assert_eq!(switch.route(2, addresses(50_000, 3), 60, late), Verdict::Port(0));
    }

    #[test]
    fn addresses_that_follow_one_another_are_found_whatever_the_secret() {
        for _ in 0..5000 {
            let mut switch = switch(4);
            for station in 0..16 {
                switch.route(0, to_everyone(station), 60, 0);
            }
            assert_eq!(switch.addresses(0), 16);
        }
    }

    #[test]
    fn an_address_in_use_does_not_move() {
        let mut switch = switch(3);
        switch.route(0, to_everyone(1), 60, 0);
        switch.route(1, to_everyone(1), 60, SECOND - 1);
        assert_eq!(switch.route(2, addresses(1, 3), 60, SECOND - 1), Verdict::Port(0));
        switch.route(1, to_everyone(1), 60, SECOND);
        assert_eq!(switch.route(2, addresses(1, 3), 60, SECOND), Verdict::Port(1));
        assert_eq!((switch.moves(), switch.addresses(0), switch.addresses(1)), (1, 0, 1));
    }

    #[test]
    fn an_address_that_was_given_to_a_guest_stays_there() {
        let mut switch = switch(2);
        switch.pin(0, MacAddress([0x52, 0, 0, 0, 0, 1]));
        let late = 1000 * SECOND;
        switch.route(1, to_everyone(1), 60, late);
        switch.unplug(0);
        assert_eq!(switch.route(1, addresses(1, 2), 60, late), Verdict::Port(0));
        assert_eq!(switch.moves(), 0);
    }

    #[test]
    fn who_is_unplugged_is_forgotten() {
        let mut switch = switch(3);
        switch.route(0, to_everyone(1), 60, 0);
        switch.unplug(0);
        assert_eq!(switch.addresses(0), 0);
        assert_eq!(switch.route(1, addresses(1, 2), 60, 1), Verdict::Everyone);
    }

    #[test]
    fn floods_are_limited_port_by_port() {
        let mut switch = switch(3);
        let mut flood = |port, from, now| {
            (0..2 * FLOOD_RATE)
                .filter(|_| switch.route(port, to_everyone(from), 60, now) == Verdict::Everyone)
                .count() as u64
        };
        assert_eq!(flood(0, 1, 0), FLOOD_BURST + 1);
        assert_eq!(flood(1, 2, 0), FLOOD_BURST + 1, "the other port has a limit of its own");
        assert_eq!(flood(0, 1, SECOND / 100), FLOOD_RATE / 100);
        assert_eq!(flood(0, 1, 10 * SECOND), FLOOD_BURST + 1);
        let long =
            |_: &u64| switch.route(2, to_everyone(3), 10 * FLOOD_UNIT, 0) == Verdict::Everyone;
        assert_eq!((0..FLOOD_RATE).filter(long).count() as u64, FLOOD_BURST / 10 + 1);
    }

    proptest::proptest! {
        /// Whatever is sent, the switch knows of each station what a plain list of what was heard says.
        #[test]
        fn it_knows_what_a_list_would(
            steps in proptest::collection::vec((0_u8..4, 0_u16..12, 0_u16..12, 0_u64..200), 0..300),
        ) {
            let mut switch = switch(4);
            let mut heard = std::collections::HashMap::<u16, (u8, u64)>::new();
            let mut now = 0;
            for (port, to, from, pause) in steps {
                // Up to 1 s, or much longer.
                now += if pause < 180 { pause * SECOND / 180 } else { (pause - 170) * 30 * SECOND };
                let found = switch.route(port, addresses(to, from), 60, now);
                let (at, seen) = heard.entry(from).or_insert((port, now));
                if *at == port || now - *seen >= SECOND {
                    (*at, *seen) = (port, now);
                }
                let expected = match heard.get(&to) {
                    Some((at, seen)) if now - seen < 300 * SECOND && *at == port => Verdict::Nowhere,
                    Some((at, seen)) if now - seen < 300 * SECOND => Verdict::Port(*at),
                    _ => Verdict::Everyone,
                };
                proptest::prop_assert_eq!(found, expected);
            }
            for port in 0..4 {
                let learned = heard.values().filter(|(at, _)| *at == port).count();
                proptest::prop_assert!(switch.addresses(port) <= learned);
            }
        }
    }
}
