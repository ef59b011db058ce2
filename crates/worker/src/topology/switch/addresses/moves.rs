//! Decides which port has an address when a second port sends from it.

use virtio_net::MacAddress;

use super::table::{Dispute, Entry, Slot};
use super::{Addresses, News, address_of, due_after};

/// Number of addresses that a port may take over at once after a quiet time; then [`MOVES_RATE`] applies.
pub const MOVES_BURST: u64 = 16;
/// Number of addresses a second that a port may take over from other ports.
pub const MOVES_RATE: u64 = 1;
/// Number of different seconds in which the uplink must send from a guest's address to a single station, to take the
/// address over.
pub const CLAIMS: u8 = 5;

/// Most doublings: [`MOVE_AFTER`](super::MOVE_AFTER) doubled this many times exceeds [`AGEING`](super::AGEING).
const RETURNS_MAX: u8 = 9;

impl Dispute {
    /// Counts that the uplink sent from a guest's address, to one station (`to_one`) or to a group. Returns whether it
    /// has sent enough of them to get the address. A frame to a group does not count: some networks return a guest's own broadcasts.
    const fn insists(&mut self, to_one: bool, now: u64, second: u64) -> bool {
        if to_one && (self.claims == 0 || now.abs_diff(self.claimed) >= second) {
            self.claims = self.claims.saturating_add(1);
            self.claimed = now;
        }
        self.claims >= CLAIMS
    }
}

impl Addresses {
    /// Called when `port` sent from `address`, which is at another port; to one station (`to_one`) or to a group. Moves
    /// the address if it may move. Returns whether `port` may send from it.
    #[cold]
    pub(super) fn claim(&mut self, port: u8, address: u64, to_one: bool, now: u64) -> bool {
        let Some(slot) = self.table.slot(address) else { return true };
        let entry = self.table.entry(slot);
        let holder = entry.port();
        if entry.is_pinned() {
            return self.refuse(port, address, Some(holder));
        }
        self.settle(slot, now);
        let (ageing, move_after, second, uplink) =
            (self.ageing, self.move_after, self.second, self.uplink);
        let silent = now.abs_diff(entry.seen);
        let dispute = self.table.dispute_mut(slot);
        if now.abs_diff(dispute.tried) >= ageing {
            (dispute.returns, dispute.claims) = (0, 0);
        }
        dispute.tried = now;
        let Dispute { owner, returns, .. } = *dispute;
        if owner == port {
            dispute.returns = returns.saturating_add(1).min(RETURNS_MAX);
            self.move_to(slot, port, owner, now);
            self.note_move(address, holder, port);
            return true;
        }
        if silent >= ageing {
            // No port uses it any more. If the uplink owned it, it stays the owner: the address may be heard there
            // again.
            if self.has_share(port, now) {
                let owner = if uplink == Some(owner) { owner } else { port };
                self.move_to(slot, port, owner, now);
            }
            return true;
        }
        let insists = uplink == Some(port) && dispute.insists(to_one, now, second);
        let is_silent = uplink != Some(holder) && silent >= (move_after << returns).min(ageing);
        if !(insists || is_silent) || !self.has_share(port, now) || !self.may_move(port, now) {
            return self.refuse(port, address, Some(holder));
        }
        self.move_to(slot, port, if insists { port } else { owner }, now);
        self.note_move(address, holder, port);
        true
    }

    /// Reports that `port` may not send from `address`: the address is at port `holder`, `port` is locked, or no
    /// station can have the address. Returns false.
    #[cold]
    pub(super) fn refuse(&mut self, port: u8, address: u64, holder: Option<u8>) -> bool {
        self.news = Some(News::Refused { address: MacAddress(address_of(address)), port, holder });
        false
    }

    fn note_move(&mut self, address: u64, from: u8, to: u8) {
        self.moves += 1;
        let guest = if self.uplink == Some(to) { from } else { to };
        self.ports[usize::from(guest)].moves += 1;
        self.news = Some(News::Moved { address: MacAddress(address_of(address)), from, to });
    }

    /// Counts one more move to `port` if the rate limit allows it.
    fn may_move(&mut self, port: u8, now: u64) -> bool {
        let gap = self.second / MOVES_RATE;
        let state = &mut self.ports[usize::from(port)];
        let due = due_after(state.move_due, now, gap * (MOVES_BURST + 1));
        if due - now > gap * (MOVES_BURST - 1) {
            return false;
        }
        state.move_due = due + gap;
        true
    }

    /// Moves the address to `port`, owned by `owner`.
    fn move_to(&mut self, slot: Slot, port: u8, owner: u8, now: u64) {
        self.discount(slot);
        let address = self.table.entry(slot).address();
        self.table.set(slot, Entry::learned(address, port, now));
        let dispute = self.table.dispute_mut(slot);
        (dispute.owner, dispute.moved) = (owner, now);
        self.count(slot);
    }

    /// A port that has had the address for the ageing time, without a frame from its owner, becomes the owner.
    pub(super) fn settle(&mut self, slot: Slot, now: u64) {
        let port = self.table.entry(slot).port();
        let dispute = self.table.dispute_mut(slot);
        if dispute.owner != port && now.abs_diff(dispute.moved) >= self.ageing {
            let before = std::mem::replace(&mut dispute.owner, port);
            self.ports[usize::from(before)].addresses -= 1;
        }
    }

    /// Gives the address back to its owner, because the port that it is at has lost its guest. Returns whether the
    /// owner is another port.
    pub(super) fn give_back(&mut self, slot: Slot) -> bool {
        let port = self.table.entry(slot).port();
        let Dispute { owner, returns, moved, .. } = self.table.dispute(slot);
        if owner == port {
            return false;
        }
        self.table.dispute_mut(slot).returns = returns.saturating_add(1).min(RETURNS_MAX);
        self.move_to(slot, owner, owner, moved);
        true
    }

    /// Counts the entry for the port that the address is at, and for its owner. So the owner always has room for it.
    pub(super) fn count(&mut self, slot: Slot) {
        for port in self.ports_of(slot).into_iter().flatten() {
            self.ports[usize::from(port)].addresses += 1;
        }
    }

    pub(super) fn discount(&mut self, slot: Slot) {
        for port in self.ports_of(slot).into_iter().flatten() {
            self.ports[usize::from(port)].addresses -= 1;
        }
    }

    fn ports_of(&self, slot: Slot) -> [Option<u8>; 2] {
        let port = self.table.entry(slot).port();
        let owner = self.table.dispute(slot).owner;
        [Some(port), (owner != port).then_some(owner)]
    }
}
