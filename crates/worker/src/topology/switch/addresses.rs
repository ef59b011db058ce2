//! The address table of a learning switch: which port has an address, and so to which port a frame goes (IEEE 802.1D,
//! clause 7).
//!
//! The harm that a guest can do to the others here is bounded. The table never grows, and each port has its own share
//! of it. A guest that makes up source addresses fills its own share and displaces no entries of other ports. Frames to
//! everyone are limited to [`FLOOD_RATE`] a second for each port.
//!
//! # Which port has an address
//!
//! 1. `mac=` pins an address to a guest's port. The address stays there, whatever any port sends. `mac-locked` is then
//!    the default: the guest may send from this address only.
//! 2. Any other address is at the port that sent from it first. This port owns it. An address is forgotten when no
//!    frame came from it for [`AGEING`], or when its guest's rings stop.
//! 3. When another port sends from the address, it stays where it is while it is in use there: a guest's address for
//!    [`MOVE_AFTER`] after its last frame, the uplink's for [`AGEING`]. So no guest takes its gateway's address, and an
//!    address that fails over from one guest to another (VRRP) moves once the first guest is silent.
//! 4. An owner that sends again has its address back at once. Each time this happens, the silence after which a guest's
//!    address may move doubles, up to [`AGEING`]. It is [`MOVE_AFTER`] again when no other port has sent from the
//!    address for [`AGEING`]. So a guest that takes its neighbour's address keeps it only until the neighbour's next
//!    frame, and cannot take it again soon.
//! 5. A port that has had the address for [`AGEING`], without a frame from its owner, becomes the owner.
//! 6. The uplink takes an address from a guest that still uses it when the uplink sends from it to single stations in
//!    [`CLAIMS`] different seconds. So a guest that sends from the gateway's address before the gateway does cannot
//!    keep it. Frames to groups do not count: some networks return a guest's own broadcasts.
//! 7. A port may take over [`MOVES_BURST`] addresses at once, and then [`MOVES_RATE`] a second. Moves are counted.
//! 8. A guest's frame from an address that the guest may not have is dropped and counted (`tx_spoofed_source`). If it
//!    were sent on, the next switch outside would learn that the address is here. The same holds for a frame from a
//!    group address or from zero, which no station can have. Such frames from the uplink are passed on, but nothing is
//!    learned from them.
//!
//! A guest that migrates away stops its rings, so its address is learned at the uplink with the first frame from there.
//! For a guest that migrates here, the uplink keeps its address until the uplink has been silent for [`AGEING`]. So
//! such guests need `mac=`, which pins the address from the start.

mod moves;
mod table;

use std::time::Duration;

use virtio_net::{FRAME_LEN_MAX, MacAddress};

use self::table::{Dispute, Entry, Table};

pub use moves::{CLAIMS, MOVES_BURST, MOVES_RATE};

/// The most ports.
pub const PORTS_MAX: usize = 64;
/// Most addresses learned at a guest's port.
pub const GUEST_ADDRESSES_MAX: usize = 64;
/// Most addresses learned at the port of the uplink.
pub const UPLINK_ADDRESSES_MAX: usize = 1024;
/// Time of silence after which an address is forgotten (802.1D, 7.9.2: the recommended ageing time).
pub const AGEING: Duration = Duration::from_secs(300);
/// Time of silence after which a guest's address may move to another port.
pub const MOVE_AFTER: Duration = Duration::from_secs(1);
/// Most frames a second that a port may send to everyone: to groups, or to unknown addresses. Frames longer than
/// [`FLOOD_UNIT`] bytes count as several.
pub const FLOOD_RATE: u64 = 10_000;
/// Most frames to everyone at once, after a quiet time.
pub const FLOOD_BURST: u64 = 512;

/// Length of the longest frame that counts as one, in bytes: a full Ethernet frame.
pub const FLOOD_UNIT: usize = 1514;
/// Largest number that one frame counts as, at [`FRAME_LEN_MAX`].
const FRAME_UNITS_MAX: u64 = (FRAME_LEN_MAX / FLOOD_UNIT) as u64 + 1;

/// Length of the part of a frame that decides where it goes, in bytes: destination and source address.
pub const ADDRESSES_LEN: usize = 12;

/// The group bit of an address read as a little-endian number (802.3, 3.2.3: the first bit on the wire).
const GROUP: u64 = 1;

/// Where a frame goes.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Verdict {
    /// To this port.
    Port(u8),
    /// To every port except the one it came from.
    Everyone,
    /// Dropped: it would go to everyone, but this port has sent too many such frames.
    FloodLimit,
    /// Dropped: its destination is at the port that it came from.
    Nowhere,
    /// Dropped: its sender may not send from this address.
    Spoofed,
}

/// An event about an address that more than one port sends from, for the operator.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum News {
    /// An address moved.
    Moved {
        /// The address.
        address: MacAddress,
        /// The port it was at.
        from: u8,
        /// The port it is at.
        to: u8,
    },
    /// A frame from an address that its port may not send from.
    Refused {
        /// The address.
        address: MacAddress,
        /// The port that sent from it.
        port: u8,
        /// The port that the address is at; `None` if `port` is locked to another address, or no station can have the
        /// address.
        holder: Option<u8>,
    },
}

/// The addresses of the switch, and the state of its ports. Times are ticks of one clock, which may jump. A time that
/// is then in the future counts as long ago.
#[derive(Debug)]
pub struct Addresses {
    table: Table,
    ports: Vec<PortState>,
    /// The port that belongs to no guest.
    uplink: Option<u8>,
    ageing: u64,
    move_after: u64,
    second: u64,
    moves: u64,
    news: Option<News>,
}

#[derive(Clone, Copy, Debug)]
struct PortState {
    /// The only address that this port may send from, if it is locked.
    lock: Option<u64>,
    /// Most addresses that may be learned here, and the number that are at this port or owned by it.
    addresses_max: usize,
    addresses: usize,
    /// When the next frame to everyone would be due if they were sent evenly.
    flood_due: u64,
    /// When the next move would be due if moves came evenly.
    move_due: u64,
    /// Number of addresses that moved here from other ports, or from here to the uplink, since it was last taken.
    moves: u64,
    /// When this port's aged addresses were last removed.
    swept: u64,
}

impl Addresses {
    /// A switch. `addresses_max` has the most addresses that each port may learn; `second` is one second in ticks.
    ///
    /// # Panics
    /// With more than [`PORTS_MAX`] ports.
    #[must_use]
    pub fn new(addresses_max: &[usize], second: u64) -> Self {
        assert!(addresses_max.len() <= PORTS_MAX, "at most {PORTS_MAX} ports");
        // One more for each port: the pinned address.
        let all = addresses_max.iter().map(|max| max + 1).sum::<usize>();
        let port = |&addresses_max| PortState {
            lock: None,
            addresses_max,
            addresses: 0,
            flood_due: 0,
            move_due: 0,
            moves: 0,
            swept: 0,
        };
        Self {
            table: Table::new(all),
            ports: addresses_max.iter().map(port).collect(),
            uplink: None,
            ageing: second * AGEING.as_secs(),
            move_after: second * MOVE_AFTER.as_secs(),
            second,
            moves: 0,
            news: None,
        }
    }

    /// Makes `port` the uplink.
    pub const fn set_uplink(&mut self, port: u8) {
        self.uplink = Some(port);
    }

    /// Pins `address` to `port`: it never moves. Called before the first frame.
    pub fn pin(&mut self, port: u8, address: MacAddress) {
        let address = number(address.0);
        let slot = self.table.room(address, 0, 0).filter(|_| self.table.find(address).is_none());
        if let Some(slot) = slot {
            self.table.set(slot, Entry::pinned(address, port));
        }
    }

    /// Pins `address` to `port`, which may send from no other address.
    pub fn lock(&mut self, port: u8, address: MacAddress) {
        self.pin(port, address);
        self.ports[usize::from(port)].lock = Some(number(address.0));
    }

    /// Decides where a frame of `len` bytes with these addresses goes. It came from `port` at `now`. Learns the port of
    /// its source address.
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
        let destination = number([d0, d1, d2, d3, d4, d5]);
        if !self.admit(port, source, destination & GROUP == 0, now) {
            return Verdict::Spoofed;
        }
        if destination & GROUP == 0
            && let Some(entry) = self.table.find(destination)
            && entry.is_live(now, self.ageing)
        {
            let to = entry.port();
            return if to == port { Verdict::Nowhere } else { Verdict::Port(to) };
        }
        self.flood(port, len, now)
    }

    /// Forgets the addresses learned at `port`, which has no guest any more. An address that another port owns goes
    /// back to that port.
    pub fn unplug(&mut self, port: u8, now: u64) {
        if self.addresses(port) == 0 {
            return;
        }
        for slot in self.table.slots() {
            if !self.table.entry(slot).is_learned() {
                continue;
            }
            self.settle(slot, now);
            let at = self.table.entry(slot).port();
            if at == port && !self.give_back(slot) {
                self.forget(slot);
            } else if self.table.dispute(slot).owner == port {
                self.discount(slot);
                self.table.dispute_mut(slot).owner = at;
                self.count(slot);
            }
        }
    }

    /// The addresses that `port` owns, without pinned ones. Where another port has one of them for now, that is not said.
    pub fn learned(&mut self, port: u8, now: u64) -> Vec<MacAddress> {
        let mut found = Vec::new();
        for slot in self.table.slots() {
            let entry = self.table.entry(slot);
            if entry.is_learned() && entry.is_live(now, self.ageing) {
                self.settle(slot, now);
                if self.table.dispute(slot).owner == port {
                    found.push(MacAddress(address_of(entry.address())));
                }
            }
        }
        found
    }

    /// Learns that `address` is at `port`, as from a frame, unless it is known.
    pub fn teach(&mut self, port: u8, address: MacAddress, now: u64) {
        let address = number(address.0);
        let can_be = address & GROUP == 0 && address != 0;
        let is_locked = self.ports[usize::from(port)].lock.is_some();
        if can_be && !is_locked && self.table.find(address).is_none() {
            self.learn(port, address, now);
        }
    }

    /// Number of times that an address moved from port to port.
    #[must_use]
    pub const fn moves(&self) -> u64 {
        self.moves
    }

    /// Number of addresses that moved to `port` from another one, or from it to the uplink, since the last call.
    pub fn take_moves(&mut self, port: u8) -> u64 {
        std::mem::take(&mut self.ports[usize::from(port)].moves)
    }

    /// The latest event since the last call.
    #[inline]
    pub const fn take_news(&mut self) -> Option<News> {
        self.news.take()
    }

    /// Number of addresses that were learned at `port`, or that it owns.
    #[must_use]
    pub fn addresses(&self, port: u8) -> usize {
        self.ports[usize::from(port)].addresses
    }

    /// Whether `port` may send from `source`, to one station (`to_one`) or to a group. Learns that `source` is at
    /// `port`.
    #[inline]
    fn admit(&mut self, port: u8, source: u64, to_one: bool, now: u64) -> bool {
        if let Some(lock) = self.ports[usize::from(port)].lock {
            // The table has the pinned address, so there is nothing to learn.
            return source == lock || self.refuse(port, source, None);
        }
        if source & GROUP != 0 || source == 0 {
            return self.uplink == Some(port) || self.refuse(port, source, None);
        }
        match self.table.find_mut(source) {
            Some(entry) if entry.port() == port => {
                entry.seen = now;
                true
            }
            Some(_) => self.claim(port, source, to_one, now) || self.uplink == Some(port),
            None => {
                self.learn(port, source, now);
                true
            }
        }
    }

    /// Learns an unknown address.
    #[cold]
    fn learn(&mut self, port: u8, source: u64, now: u64) {
        if !self.has_share(port, now) {
            return;
        }
        let Some(slot) = self.table.room(source, now, self.ageing) else { return };
        self.forget(slot);
        self.table.set(slot, Entry::learned(source, port, now));
        *self.table.dispute_mut(slot) = Dispute { owner: port, ..Dispute::default() };
        self.count(slot);
    }

    /// Whether `port` may learn one more address.
    fn has_share(&mut self, port: u8, now: u64) -> bool {
        let PortState { addresses, addresses_max, swept, .. } = self.ports[usize::from(port)];
        if addresses >= addresses_max && now.abs_diff(swept) >= self.second {
            // A sweep reads the whole table, so it is not done for every address that a guest makes up.
            self.ports[usize::from(port)].swept = now;
            self.sweep(port, now);
        }
        self.addresses(port) < addresses_max
    }

    /// Forgets the aged addresses at `port`, and those elsewhere that it does not own any more.
    #[cold]
    fn sweep(&mut self, port: u8, now: u64) {
        for slot in self.table.slots() {
            let entry = self.table.entry(slot);
            if !entry.is_learned() {
                continue;
            }
            self.settle(slot, now);
            if entry.port() == port && !entry.is_live(now, self.ageing) {
                self.forget(slot);
            }
        }
    }

    /// Empties a slot of the table if it holds a learned address.
    fn forget(&mut self, slot: table::Slot) {
        if self.table.entry(slot).is_learned() {
            self.discount(slot);
            self.table.set(slot, Entry::default());
        }
    }

    /// Sends one more frame to everyone if the rate limit allows it.
    fn flood(&mut self, port: u8, len: usize, now: u64) -> Verdict {
        let gap = (self.second / FLOOD_RATE).max(1);
        let units = len.div_ceil(FLOOD_UNIT).max(1) as u64;
        let state = &mut self.ports[usize::from(port)];
        let due = due_after(state.flood_due, now, gap * (FLOOD_BURST + FRAME_UNITS_MAX));
        if due - now > gap * FLOOD_BURST {
            return Verdict::FloodLimit;
        }
        state.flood_due = due + units * gap;
        Verdict::Everyone
    }
}

/// The due time, but not before `now`. If `due` is more than `farthest` ahead, the clock went back, and the result is
/// `now`.
const fn due_after(due: u64, now: u64, farthest: u64) -> u64 {
    if due <= now || due - now > farthest { now } else { due }
}

#[inline]
const fn number(address: [u8; 6]) -> u64 {
    let [a, b, c, d, e, f] = address;
    u64::from_le_bytes([a, b, c, d, e, f, 0, 0])
}

const fn address_of(number: u64) -> [u8; 6] {
    let [a, b, c, d, e, f, ..] = number.to_le_bytes();
    [a, b, c, d, e, f]
}

#[cfg(test)]
mod tests;
#[cfg(test)]
mod thefts;
