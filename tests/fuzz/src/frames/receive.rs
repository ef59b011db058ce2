//! GRO, and the placement of frames in a guest's buffers, checked against what a wire would have carried. The guest's
//! frames, cut and finished as for a wire, must be the frames sent, in the same order, except for dropped ones.

use arbitrary::Arbitrary;
use guest_memory::{GuestSlice, Spare};
use virtio_net::features::{BASE, HEADER_LEN};
use virtio_net::header::NEEDS_CSUM;
use virtio_net::packet::{Packet, Transport, Version};
use virtio_net::receive::Received;
use virtio_net::{
    BURST_MAX, FRAME_LEN_MAX, Frames, GuestRoom, Link, Negotiated, NetHeader, Offloads, Placed,
    SegmentProgress, SoftwareOffload, arrival,
};

use super::cut::{SEGMENTS_MAX, on_the_wire};
use super::packets::{Header, Source};
use super::ring::{Offer, Ring};

const FRAMES_MAX: usize = 96;
const BURSTS_MAX: usize = 64;

/// Frames, their source, and the guest that receives them.
#[derive(Arbitrary, Debug)]
pub struct Story {
    sources: Vec<(Source, Header)>,
    carrier: Carrier,
    guest: Guest,
    position: u16,
    offers: Vec<Vec<Offer>>,
}

/// The source of frames.
#[derive(Arbitrary, Debug)]
enum Carrier {
    /// A network card or a virtual link, through AF_XDP.
    Link { mtu: u16, leaves_offloads: bool, apart: bool },
    /// A tap: frames are read into the guest's buffers, with a net header.
    Tap,
    /// Another guest, through a switch.
    Guest { cuts: Vec<u16> },
}

/// The features that the guest negotiated.
#[derive(Arbitrary, Debug)]
struct Guest {
    packed: bool,
    in_order: bool,
    is_mergeable: bool,
    is_legacy: bool,
    checksum: bool,
    tso4: bool,
    tso6: bool,
    ecn: bool,
    uso: bool,
}

impl Guest {
    const fn negotiated(&self) -> Negotiated {
        let &Self { checksum, tso4, tso6, ecn, uso, .. } = self;
        let offloads = Offloads { checksum, tso4, tso6, ecn, ufo: false, uso };
        let mut bits = BASE | offloads.to_guest();
        // RING_PACKED, IN_ORDER, MRG_RXBUF, VERSION_1 (virtio 1.2, 5.1.3 and 6).
        let off = [!self.packed, !self.in_order, !self.is_mergeable, self.is_legacy];
        let mut n = 0;
        while n < 4 {
            if off[n] {
                bits &= !(1 << [34, 35, 15, 32][n]);
            }
            n += 1;
        }
        // Features that the rings of this target do not have.
        Negotiated(bits & !(1 << 28 | 1 << 29))
    }
}

/// Frames with their net headers.
type Sent = Vec<(NetHeader, Vec<u8>)>;

/// Plays `story`.
pub fn play(story: &Story) {
    let mut sent = Sent::new();
    for (source, header) in story.sources.iter().take(16) {
        let header = header.of(source);
        let frames = source.frames(FRAMES_MAX - sent.len().min(FRAMES_MAX - 1));
        let usable = |it: &Vec<u8>| !it.is_empty() && it.len() <= FRAME_LEN_MAX;
        sent.extend(frames.into_iter().filter(usable).map(|frame| (header, frame)));
        if sent.len() >= FRAMES_MAX {
            break;
        }
    }
    let negotiated = story.guest.negotiated();
    let mut ring = Ring::new(negotiated, false, story.position);
    let mut delivery = Delivery::default();
    // If the ring is given up, nothing more is expected of it.
    let _ = match &story.carrier {
        Carrier::Link { mtu, leaves_offloads, apart } => {
            let link = Link { mtu: (*mtu).max(576), leaves_offloads: *leaves_offloads };
            by_link(story, &sent, link, *apart, &mut ring, &mut delivery)
        }
        Carrier::Tap => by_tap(story, &sent, &mut ring, &mut delivery),
        Carrier::Guest { cuts } => by_guest(story, &sent, cuts, &mut ring, &mut delivery),
    };
    delivery.check(negotiated);
}

/// The frames sent and the frames received.
#[derive(Default)]
struct Delivery {
    /// What a wire would have carried, in order; no frame that is refused.
    expected: Vec<Vec<u8>>,
    /// Net header and bytes, as the guest received them.
    came: Sent,
    /// Whether frames are compared as they are, not as on a wire.
    is_raw: bool,
    drops: usize,
    packets: usize,
    /// Whether every frame was accepted.
    is_all: bool,
}

impl Delivery {
    fn take(&mut self, ring: &mut Ring, received: &Received) {
        self.drops += received.drops.iter().map(|(_, count)| usize::from(count)).sum::<usize>();
        self.packets += usize::from(received.packets);
        assert!(usize::from(received.packets) <= BURST_MAX);
        let before = self.came.len();
        self.came.extend(std::iter::from_fn(|| ring.came()));
        assert_eq!(self.came.len() - before, usize::from(received.packets));
        let bytes: usize = self.came[before..].iter().map(|(_, frame)| frame.len()).sum();
        assert_eq!(bytes, received.bytes as usize);
    }

    fn check(&self, negotiated: Negotiated) {
        let mut got = Vec::new();
        for (header, frame) in &self.came {
            if self.is_raw {
                got.push(frame.clone());
                continue;
            }
            assert!(header.is_for(negotiated.guest_offloads()), "{header:?} is not for this guest");
            got.extend(on_the_wire(header, frame).expect("a net header that fits its frame"));
        }
        // In order, and each unchanged.
        let mut left = self.expected.iter();
        for (n, frame) in got.iter().enumerate() {
            assert!(left.any(|it| is_same(it, frame)), "frame {n} of {} is not one", got.len());
        }
        if self.is_all && self.drops == 0 {
            assert_eq!(got.len(), self.expected.len(), "none was dropped");
        }
    }
}

/// Whether two frames are the same to their receiver. In a ones' complement sum, 0xffff equals 0 (RFC 1071). In an IPv4
/// packet that nobody fragments, the identification has no meaning (RFC 6864).
pub fn is_same(one: &[u8], other: &[u8]) -> bool {
    one == other || normal(one) == normal(other)
}

fn normal(frame: &[u8]) -> Vec<u8> {
    let mut frame = frame.to_vec();
    let Some(packet) = Packet::find(&frame[..frame.len().min(256)]) else { return frame };
    let Packet { version, transport, network_at, transport_at, .. } = packet;
    let mut zero = |at: usize| {
        if frame[at..at + 2] == [0xff; 2] {
            frame[at..at + 2].fill(0);
        }
    };
    if transport == Transport::Tcp {
        zero(transport_at + 16);
    }
    if version == Version::V4 {
        zero(network_at + 10);
        if frame[network_at + 6] & 0x40 != 0 {
            // The header's checksum covers it.
            frame[network_at + 4..network_at + 6].fill(0);
            frame[network_at + 10..network_at + 12].fill(0);
        }
    }
    frame
}

/// Our memory with frames in it.
fn received(sent: &Sent) -> (Spare, Vec<(usize, usize)>) {
    let len: usize = sent.iter().map(|(_, frame)| frame.len()).sum();
    let spare = Spare::new(len.max(1));
    let mut at = 0;
    let mut places = Vec::new();
    for (_, frame) in sent {
        spare.slice().write(at, frame);
        places.push((at, frame.len()));
        at += frame.len();
    }
    (spare, places)
}

/// Receives as `datapath::af_xdp` does.
fn by_link(
    story: &Story,
    sent: &Sent,
    link: Link,
    apart: bool,
    ring: &mut Ring,
    delivery: &mut Delivery,
) -> Result<(), virtqueue::RingError> {
    let (spare, places) = received(sent);
    let frames: Vec<_> = places.iter().map(|&(at, len)| spare.slice().part(at, len)).collect();
    let told = |frame: &GuestSlice<'_>| match link.leaves_offloads {
        true => arrival::header_of(&[*frame], 0, frame.len(), link.mtu),
        false => NetHeader::PLAIN,
    };
    for frame in &frames {
        let header = told(frame);
        // It may have the CRC of SCTP now.
        let mut bytes = vec![0; frame.len()];
        frame.read(0, &mut bytes);
        delivery.expected.extend(on_the_wire(&header, &bytes).unwrap_or_default());
    }
    let (mut done, mut progress) = (0, SegmentProgress::default());
    for burst in 0..BURSTS_MAX {
        let more = ring.offer(story.offers.get(burst).map_or(&[][..], |it| it));
        let (taken, received) = ring.with_room(|room| {
            if apart {
                room.disable_gro();
            }
            room.expect((frames.len() - done).min(BURST_MAX));
            let first = done;
            while done < frames.len() {
                let mut count = 0;
                if progress == SegmentProgress::default()
                    && room.takes_gro()
                    && frames.len() - done > 1
                {
                    count = room.place_gro(link, frames[done..].iter().copied());
                    assert!(count != 1 && count <= BURST_MAX);
                }
                if count == 0 {
                    let header = told(&frames[done]);
                    if place_one(&header, &[frames[done]], 0, &mut progress, room) == Placed::NoRoom
                    {
                        break;
                    }
                    count = 1;
                }
                done += count;
            }
            done - first
        })?;
        delivery.take(ring, &received);
        if !more && taken == 0 && received.packets == 0 && received.drops.is_empty() {
            break;
        }
    }
    delivery.is_all = done == frames.len();
    Ok(())
}

/// Places a frame as it is if the guest accepts that, otherwise after software offload. `progress`: through its segments.
fn place_one(
    header: &NetHeader,
    from: &[GuestSlice<'_>],
    skip: usize,
    progress: &mut SegmentProgress,
    room: &mut GuestRoom<'_, '_>,
) -> Placed {
    if header.is_for(room.guest_offloads()) {
        return room.place_run(header, from, skip);
    }
    let len = from.iter().map(GuestSlice::len).sum::<usize>() - skip;
    let Ok(mut offload) = SoftwareOffload::plan(header, from, skip, len) else {
        return room.refuse(burst_trace::DropCause::RxTooBig);
    };
    if offload.count() > SEGMENTS_MAX {
        return room.refuse(burst_trace::DropCause::RxTooBig);
    }
    progress.resume(&mut offload, from, |offload| room.place_offloaded(offload, from))
}

/// Receives as `datapath::tap` does: net header and frame are read into the guest's buffers.
fn by_tap(
    story: &Story,
    sent: &Sent,
    ring: &mut Ring,
    delivery: &mut Delivery,
) -> Result<(), virtqueue::RingError> {
    let header_len = story.guest.negotiated().header_len();
    delivery.is_raw = true;
    delivery.expected = sent.iter().map(|(_, frame)| frame.clone()).collect();
    let mut done = 0;
    for burst in 0..BURSTS_MAX {
        let more = ring.offer(story.offers.get(burst).map_or(&[][..], |it| it));
        let (taken, received) = ring.with_room(|room| {
            let first = done;
            while !room.is_full() {
                let mut was_read = false;
                let placed = room.scatter(|list| {
                    let Some((header, frame)) = sent.get(done) else {
                        return Err(std::io::ErrorKind::WouldBlock.into());
                    };
                    was_read = true;
                    Ok(fill(list, &[&header.to_bytes()[..header_len], frame].concat()))
                });
                done += usize::from(was_read);
                match placed {
                    Ok(Placed::Done) => {}
                    Ok(Placed::NoRoom) | Err(_) => break,
                }
            }
            done - first
        })?;
        delivery.take(ring, &received);
        if !more && taken == 0 && received.packets == 0 && received.drops.is_empty() {
            break;
        }
    }
    delivery.is_all = done == sent.len() && !ring.is_holding();
    if !story.guest.checksum {
        assert!(delivery.came.iter().all(|(header, _)| header.flags == 0));
    }
    Ok(())
}

/// Fills buffers as the kernel does: bytes that do not fit are left out.
fn fill(list: &[GuestSlice<'_>], mut bytes: &[u8]) -> usize {
    let len = bytes.len();
    for slice in list {
        bytes = &bytes[slice.write(0, bytes)..];
    }
    len - bytes.len()
}

/// Sends as a worker's fabric does: frames are checked at the sender, then copied from ring to ring.
fn by_guest(
    story: &Story,
    sent: &Sent,
    cuts: &[u16],
    ring: &mut Ring,
    delivery: &mut Delivery,
) -> Result<(), virtqueue::RingError> {
    let guest = &story.guest;
    let legacy = if guest.is_legacy { 1 << 32 | 1 << 15 } else { 0 };
    let features = Negotiated(guest.negotiated().0 & !legacy);
    let mut sender = Ring::new(features, true, story.position.rotate_left(3));
    let fits = |it: &&(NetHeader, Vec<u8>)| sender.send(&it.0, &it.1, cuts);
    let count = sent.iter().take(BURST_MAX).take_while(fits).count();
    sender.with_sent(|frames| {
        assert_eq!(frames.len(), count);
        let mut headers = Vec::new();
        for (frame, (header, bytes)) in frames.iter().zip(sent) {
            assert_eq!(frame.len(), bytes.len());
            let mut copy = vec![0; bytes.len()];
            assert_eq!((frame.copy_to(&mut copy), &copy), (bytes.len(), bytes));
            let mut header = *header;
            if features.header_len() < HEADER_LEN {
                header.num_buffers = 0;
            }
            assert_eq!(frame.header(), header);
            let is_sound = SoftwareOffload::plan_frame(&header, &frame)
                .is_ok_and(|offload| offload.count() <= SEGMENTS_MAX);
            if is_sound {
                delivery.expected.extend(on_the_wire(&header, bytes).expect("it was planned"));
            }
            let flags = header.flags & NEEDS_CSUM;
            headers.push(is_sound.then(|| NetHeader { flags, ..header }.passed_on()));
        }
        place_sent(story, frames, &headers, ring, delivery)
    })?
}

fn place_sent(
    story: &Story,
    frames: Frames<'_, '_>,
    headers: &[Option<NetHeader>],
    ring: &mut Ring,
    delivery: &mut Delivery,
) -> Result<(), virtqueue::RingError> {
    let (mut done, mut progress) = (0, SegmentProgress::default());
    for burst in 0..BURSTS_MAX {
        let more = ring.offer(story.offers.get(burst).map_or(&[][..], |it| it));
        let (taken, received) = ring.with_room(|room| {
            let first = done;
            while done < headers.len() {
                let plain = |it: &&Option<NetHeader>| it.is_some_and(|it| it.is_plain());
                let count = headers[done..].iter().take_while(plain).count();
                if count > 0 {
                    let (taken, _) = room.forward(frames.skip(done).take(count));
                    done += taken;
                    if taken < count {
                        break;
                    }
                    continue;
                }
                if let Some(header) = &headers[done] {
                    let frame = frames.skip(done).iter().next().expect("a frame");
                    let placed =
                        place_one(header, frame.slices(), frame.header_len(), &mut progress, room);
                    if placed == Placed::NoRoom {
                        break;
                    }
                }
                done += 1;
            }
            done - first
        })?;
        delivery.take(ring, &received);
        if !more && taken == 0 && received.packets == 0 && received.drops.is_empty() {
            break;
        }
    }
    delivery.is_all = done == headers.len();
    Ok(())
}
