//! Tests of learning, ageing and flooding.

use super::*;

pub const SECOND: u64 = 1_000_000_000;

pub fn addresses(to: u16, from: u16) -> [u8; ADDRESSES_LEN] {
    let mut bytes = [0; ADDRESSES_LEN];
    for (at, station) in [(0, to), (6, from)] {
        bytes[at] = 0x52;
        bytes[at + 4..at + 6].copy_from_slice(&station.to_be_bytes());
    }
    bytes
}

pub fn to_everyone(from: u16) -> [u8; ADDRESSES_LEN] {
    let mut bytes = addresses(0, from);
    bytes[..6].fill(0xff);
    bytes
}

pub fn switch(ports: usize) -> Addresses {
    Addresses::new(&vec![GUEST_ADDRESSES_MAX; ports], SECOND)
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
    // No station has a group address, or the address zero.
    let mut from_group = addresses(1, 9);
    from_group[6] |= 1;
    let mut from_nobody = from_group;
    from_nobody[6..].fill(0);
    switch.set_uplink(1);
    for source in [from_group, from_nobody] {
        assert_eq!(switch.route(0, source, 60, 0), Verdict::Spoofed);
        assert_eq!(switch.route(1, source, 60, 0), Verdict::Port(0));
    }
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
    // When they have aged, other addresses get their slots.
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
fn who_is_unplugged_is_forgotten() {
    let mut switch = switch(3);
    switch.route(0, to_everyone(1), 60, 0);
    switch.unplug(0, 0);
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
    let long = |_: &u64| switch.route(2, to_everyone(3), 10 * FLOOD_UNIT, 0) == Verdict::Everyone;
    assert_eq!((0..FLOOD_RATE).filter(long).count() as u64, FLOOD_BURST / 10 + 1);
}

proptest::proptest! {
    /// If each station stays at one port, the switch gives the same answers as a plain list of the last frames.
    #[test]
    fn it_knows_what_a_list_would(
        steps in proptest::collection::vec((0_u16..12, 0_u16..12, 0_u64..200), 0..300),
    ) {
        let mut switch = switch(4);
        let port_of = |station| u8::try_from(station % 4).unwrap();
        let mut heard = std::collections::HashMap::<u16, u64>::new();
        let mut now = 0;
        for (to, from, pause) in steps {
            // Up to 1 s, or much longer.
            now += if pause < 180 { pause * SECOND / 180 } else { (pause - 170) * 30 * SECOND };
            let found = switch.route(port_of(from), addresses(to, from), 60, now);
            heard.insert(from, now);
            let expected = match heard.get(&to) {
                Some(seen) if now - seen >= 300 * SECOND => Verdict::Everyone,
                Some(_) if port_of(to) == port_of(from) => Verdict::Nowhere,
                Some(_) => Verdict::Port(port_of(to)),
                None => Verdict::Everyone,
            };
            proptest::prop_assert_eq!(found, expected);
        }
        for port in 0..4 {
            let learned = heard.keys().filter(|from| port_of(**from) == port).count();
            proptest::prop_assert!(switch.addresses(port) <= learned);
        }
        proptest::prop_assert_eq!(switch.moves(), 0);
    }
}

#[test]
fn a_clock_that_goes_back_stops_no_flood_and_keeps_no_address() {
    let mut switch = switch(3);
    let late = 1_000_000 * SECOND;
    // Owner, flood limit and sweeps all have times from before the clock went back.
    for _ in 0..2 * FLOOD_RATE {
        switch.route(0, to_everyone(1), 60, late);
    }
    for station in 100..200 {
        switch.route(1, addresses(1, station), 60, late);
    }
    assert_eq!(switch.route(0, to_everyone(1), 60, late), Verdict::FloodLimit);
    assert_eq!(switch.route(0, to_everyone(9), 60, 5), Verdict::Everyone);
    assert_eq!(switch.route(2, to_everyone(1), 60, 5), Verdict::Everyone);
    assert_eq!(switch.route(0, addresses(1, 9), 60, 6), Verdict::Port(2), "nobody was heard since");
    switch.route(1, addresses(1, 7), 60, 7);
    assert_eq!(switch.route(0, addresses(7, 9), 60, 8), Verdict::Port(1), "what aged made room");
}

#[test]
fn another_switch_is_told_what_each_port_owns() {
    let mut before = switch(3);
    before.pin(0, MacAddress([0x52, 0, 0, 0, 0, 9]));
    for (port, station) in [(0, 1), (1, 2)] {
        before.route(port, to_everyone(station), 60, 0);
    }
    // The second guest is silent, and the third one sends from its address.
    let now = 2 * SECOND;
    before.route(2, to_everyone(2), 60, now);
    assert_eq!(before.route(0, addresses(2, 1), 60, now), Verdict::Port(2));
    let station = |n: u8| MacAddress([0x52, 0, 0, 0, 0, n]);
    let learned = [0, 1, 2].map(|port| before.learned(port, now));
    assert_eq!(learned, [vec![station(1)], vec![station(2)], vec![]]);
    let mut after = switch(3);
    for (port, all) in (0..).zip(learned) {
        all.into_iter().for_each(|address| after.teach(port, address, now));
    }
    assert_eq!(after.route(0, addresses(2, 1), 60, now), Verdict::Port(1));
    // What has aged is not said, and not what no station can have.
    assert_eq!(before.learned(0, now + 301 * SECOND), []);
    after.teach(0, MacAddress([0xff; 6]), now);
    after.teach(0, MacAddress([0; 6]), now);
    assert_eq!(after.addresses(0), 1);
}
