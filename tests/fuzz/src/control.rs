//! Target `control`: a front end and its guest do anything, in any order, to the daemon's own parts.
//!
//! Gate, relay, framework, device and workers are those of the daemon. They run in this process and stay from input to
//! input. A panic on any thread ends the process. After each input, the conversation must end, and descriptors and a
//! well-behaved front end must show that nothing was left behind.
//!
//! - [`world`]: the devices, their workers, and the neighbour.
//! - `check`: whether they still serve a well-behaved front end.
//! - [`front`]: the socket, messages and descriptors.
//! - [`guest`]: the guest's memory and its rings.

mod check;
pub mod front;
pub mod guest;
pub mod world;

use std::time::Duration;

use arbitrary::Arbitrary;

use crate::frames::packets::{Header, Source};
use front::{Descriptor, Front, Message, request};
use guest::{Guest, Region, RingShape};
use virtio_net::Negotiated;
use world::World;

const STEPS_MAX: usize = 64;
/// Most connections of an input: more make a run too slow.
const CONNECTIONS_MAX: usize = 4;

/// What a front end does to a device.
#[derive(Arbitrary, Debug)]
pub struct Story {
    device: u8,
    begin: Begin,
    steps: Vec<Step>,
}

/// How each connection begins.
#[derive(Arbitrary, Debug)]
enum Begin {
    /// Without any message.
    Unknown,
    /// As every front end begins.
    Hello { features: Features, answers: bool },
    /// With rings that are served, and with buffers offered.
    Served {
        features: Features,
        answers: bool,
        shape: RingShape,
        pairs: u8,
        lens: Vec<u16>,
        more: u8,
    },
}

/// What the front end or its guest does next.
#[derive(Arbitrary, Debug)]
enum Step {
    /// Any bytes on the socket.
    Bytes(Vec<u8>),
    /// Any message, with a wrong length in its header: the difference in bytes.
    Any { request: u8, flags: u8, lie: i8, payload: Vec<u8>, descriptors: Vec<Descriptor> },
    /// Sends the next message in two pieces, cut here.
    Halves(u8),
    /// Sends what every front end begins with.
    Hello { features: Features, answers: bool },
    /// `SET_FEATURES`.
    Features(Features),
    /// `SET_MEM_TABLE`.
    Table(Vec<Region>),
    /// `ADD_MEM_REG`.
    AddRegion(Region),
    /// `REM_MEM_REG`.
    RemoveRegion(Region),
    /// `SET_VRING_NUM`.
    Size { ring: u8, size: u16 },
    /// `SET_VRING_BASE`.
    Base { ring: u8, base: u32 },
    /// `SET_VRING_ADDR`.
    Addresses { ring: u8, parts: [u16; 3] },
    /// `SET_VRING_KICK`, `SET_VRING_CALL` or `SET_VRING_ERR`.
    Give { what: u8, ring: u8, descriptor: Option<Descriptor> },
    /// `SET_VRING_ENABLE`.
    Enable { ring: u8, on: bool },
    /// `GET_VRING_BASE`.
    Stop(u8),
    /// `RESET_OWNER` or `RESET_DEVICE`.
    Reset(bool),
    /// Sets a ring up as it should be and starts it.
    Start { ring: u8, shape: RingShape },
    /// The guest sends frames.
    Send { ring: u8, source: Source, header: Header, cuts: Vec<u16> },
    /// The guest offers buffers.
    Offer { ring: u8, lens: Vec<u16>, more: u8, indirect: bool },
    /// The guest writes to its rings: two bytes, repeatedly.
    Scribble { at: u16, value: u16, more: u8 },
    /// The guest takes back used buffers.
    Take(u8),
    /// The guest kicks.
    Kick(u8),
    /// Fills the call's counter, so that the next writer waits.
    FillCall(u8),
    /// Waits, in units of 16 us, while both sides go on.
    Pause(u8),
    /// The front end disconnects, and the next one connects.
    Reconnect,
}

/// The acknowledged features: few, all usual ones, or any bits.
#[derive(Arbitrary, Clone, Copy, Debug)]
enum Features {
    Some { packed: bool, in_order: bool, event_index: bool, mergeable: bool, offloads: bool },
    Any(u64),
}

impl Features {
    /// The features acknowledged of those `offered`. If any bits are sent, also features not offered.
    fn bits(self, offered: u64) -> u64 {
        match self {
            Self::Any(bits) => bits,
            Self::Some { packed, in_order, event_index, mergeable, offloads } => {
                let bit = |on: bool, number: u32| u64::from(on) << number;
                let offloads =
                    if offloads { virtio_net::Offloads::ALL } else { Default::default() };
                // VERSION_1, PROTOCOL_FEATURES, INDIRECT_DESC; then as named (virtio 1.2, 6 and 5.1.3).
                let wanted = 1 << 32
                    | 1 << 30
                    | 1 << 28
                    | bit(packed, 34)
                    | bit(in_order, 35)
                    | bit(event_index, 29)
                    | bit(mergeable, 15)
                    | offloads.to_guest()
                    | offloads.from_guest();
                wanted & offered
            }
        }
    }
}

/// Plays `story`, and checks afterwards that everything works.
pub fn play(story: &Story) {
    let world = World::get();
    let device = usize::from(story.device) % world.devices();
    let mut guest = Guest::new();
    let mut front = Front::connect(world, device);
    begin(&story.begin, &mut guest, &mut front);
    let mut connections = 1;
    for step in story.steps.iter().take(STEPS_MAX) {
        if let Step::Reconnect = step {
            if connections == CONNECTIONS_MAX {
                break;
            }
            connections += 1;
            front.end();
            front = Front::connect(world, device);
            begin(&story.begin, &mut guest, &mut front);
            continue;
        }
        if !do_as_guest(step, &mut guest, &mut front) {
            do_as_front_end(step, &mut guest, &mut front);
        }
        front.drain();
    }
    front.end();
    world.check(device);
}

fn begin(begin: &Begin, guest: &mut Guest, front: &mut Front) {
    match begin {
        Begin::Unknown => {}
        Begin::Hello { features, answers } => hello(*features, *answers, guest, front),
        Begin::Served { features, answers, shape, pairs, lens, more } => {
            hello(*features, *answers, guest, front);
            for pair in 0..=pairs % 2 {
                start(2 * pair, shape, guest, front);
                start(2 * pair + 1, shape, guest, front);
                guest.offer(2 * pair, lens, *more, false);
            }
        }
    }
}

/// Performs a step of the guest. Returns whether it was one.
fn do_as_guest(step: &Step, guest: &mut Guest, front: &mut Front) -> bool {
    match step {
        Step::Send { ring, source, header, cuts } => {
            front.sync();
            guest.send(*ring, source, header, cuts);
        }
        Step::Offer { ring, lens, more, indirect } => {
            front.sync();
            guest.offer(*ring, lens, *more, *indirect);
        }
        Step::Scribble { at, value, more } => guest.scribble(*at, *value, *more),
        Step::Take(ring) => guest.take(*ring),
        Step::Kick(ring) => {
            front.sync();
            guest.kick(*ring);
        }
        // A worker with a single guest waits as long as it gets no requests. That makes an input take too long.
        Step::FillCall(ring) if front.is_at_switch() => guest.fill_call(*ring),
        Step::Pause(times) => std::thread::sleep(Duration::from_micros(16 * u64::from(*times))),
        _ => return false,
    }
    true
}

fn do_as_front_end(step: &Step, guest: &mut Guest, front: &mut Front) {
    let ring_and = |ring: u8, number: u32| [u32::from(ring), number].map(u32::to_ne_bytes).concat();
    match step {
        Step::Bytes(bytes) => front.send_bytes(bytes),
        Step::Any { request, flags, lie, payload, descriptors } => {
            let message = Message::new((*request % 48).into(), payload.clone());
            front.send_lying(&message, *flags, *lie, descriptors);
        }
        Step::Halves(at) => front.cut_next(*at),
        Step::Hello { features, answers } => hello(*features, *answers, guest, front),
        Step::Features(features) => {
            front.send_number(request::SET_FEATURES, features.bits(front.offered()));
            guest.negotiated = Negotiated(features.bits(front.offered()));
        }
        Step::Table(regions) => {
            let (payload, files) = guest.table(regions, front.stream());
            front.send_with(&Message::new(request::SET_MEM_TABLE, payload), &files);
        }
        Step::AddRegion(region) => {
            let (payload, file) = guest.one_region(region, front.stream());
            front.send_with(&Message::new(request::ADD_MEM_REG, payload), &[file]);
        }
        Step::RemoveRegion(region) => {
            let (payload, _) = guest.one_region(region, front.stream());
            front.send(&Message::new(request::REM_MEM_REG, payload));
        }
        Step::Size { ring, size } => {
            front.send(&Message::new(request::SET_VRING_NUM, ring_and(*ring, (*size).into())));
        }
        Step::Base { ring, base } => {
            front.send(&Message::new(request::SET_VRING_BASE, ring_and(*ring, *base)));
        }
        Step::Addresses { ring, parts } => {
            let parts = parts.map(|part| guest.user_address(u64::from(part) * 16));
            front.send(&Message::addresses(*ring, parts));
        }
        Step::Give { what, ring, descriptor } => {
            let request = request::SET_VRING_KICK + u32::from(*what % 3);
            front.give(request, *ring, descriptor.as_ref());
        }
        Step::Enable { ring, on } => {
            front.send(&Message::new(request::SET_VRING_ENABLE, ring_and(*ring, (*on).into())));
        }
        Step::Stop(ring) => {
            front.send(&Message::new(request::GET_VRING_BASE, ring_and(*ring, 0)));
        }
        Step::Reset(all) => {
            let request = if *all { request::RESET_DEVICE } else { request::RESET_OWNER };
            front.send(&Message::new(request, Vec::new()));
        }
        Step::Start { ring, shape } => start(*ring, shape, guest, front),
        _ => {}
    }
}

fn hello(features: Features, answers: bool, guest: &mut Guest, front: &mut Front) {
    front.send(&Message::new(request::SET_OWNER, Vec::new()));
    front.send(&Message::new(request::GET_PROTOCOL_FEATURES, Vec::new()));
    // MQ, REPLY_ACK, CONFIG, CONFIGURE_MEM_SLOTS (vhost-user, "Protocol features").
    let protocol = 1 | u64::from(answers) << 3 | 1 << 9 | 1 << 15;
    front.send_number(request::SET_PROTOCOL_FEATURES, protocol);
    front.asks_for_answers(answers);
    front.send_number(request::SET_FEATURES, features.bits(front.offered()));
    guest.negotiated = Negotiated(features.bits(front.offered()));
    let (payload, files) = guest.table(&Region::ALL, front.stream());
    front.send_with(&Message::new(request::SET_MEM_TABLE, payload), &files);
}

fn start(ring: u8, shape: &RingShape, guest: &mut Guest, front: &mut Front) {
    let (setup, kick, call) = guest.lay_out(ring, shape);
    let ring = ring % guest::RINGS;
    let words = |number: u32| [u32::from(ring), number].map(u32::to_ne_bytes).concat();
    front.send(&Message::new(request::SET_VRING_NUM, words(setup.size.into())));
    front.send(&Message::new(request::SET_VRING_BASE, words(setup.next_available.into())));
    let parts = [setup.descriptor_table, setup.driver_area, setup.device_area];
    front.send(&Message::addresses(ring, parts.map(|part| guest.user_address(part))));
    front.give_this(request::SET_VRING_CALL, ring, &call);
    front.give_this(request::SET_VRING_KICK, ring, &kick);
    front.send(&Message::new(request::SET_VRING_ENABLE, words(1)));
}
