//! Frames of one flow in one `writev`: the kernel gets them as one packet that is to be segmented, and segments it only where
//! a receiver or a network card cannot take it as it is.

use std::fs::File;
use std::io;

use burst_trace::DropCause;
use virtio_net::{Frames, GroBurst, GroStep, TransmitGro};

use super::engine::Engine;
use crate::{Refusal, Transmitted, sys};

/// Writes frames: those of one flow together and in order, the others by `engine`. `mtu`: the interface's.
pub fn transmit<E: Engine>(
    gro: &TransmitGro,
    mtu: u16,
    file: &File,
    engine: &mut E,
    frames: Frames<'_, '_>,
) -> Transmitted {
    let mut done = Transmitted::default();
    // An engine that makes one call for many frames takes them in their order.
    let mut burst = gro.burst(frames, mtu, E::IS_BY_FRAME);
    while let Some(step) = burst.next_step() {
        let (GroStep::Alone(count) | GroStep::Together(count) | GroStep::Sorted(count)) = step;
        let before = done.taken;
        let frames = frames.skip(before).take(count);
        match step {
            GroStep::Together(_) => match write(file, &burst, count) {
                Ok(written) => done.add(&written),
                Err(error) if Refusal::of(&error) == Refusal::Later => break,
                // Whatever the reason is, each frame has its own.
                Err(_) => done.add(&engine.transmit(file, frames)),
            },
            GroStep::Sorted(_) => done.add(&sorted(&mut burst, file, engine, frames)),
            GroStep::Alone(_) => done.add(&engine.transmit(file, frames)),
        }
        if done.taken < before + count {
            break;
        }
    }
    done
}

/// Writes the packet of the burst's last step, of `count` frames.
fn write(file: &File, burst: &GroBurst<'_>, count: usize) -> io::Result<Transmitted> {
    sys::writev(file, burst.packet())?;
    #[expect(clippy::cast_possible_truncation, reason = "at most BURST_MAX frames")]
    Ok(Transmitted {
        taken: count,
        bytes: burst.bytes() as u32,
        gro_frames: 1,
        gro_segments: count as u32,
        ..Transmitted::default()
    })
}

/// Writes the frames of a group, flow by flow.
fn sorted<E: Engine>(
    burst: &mut GroBurst<'_>,
    file: &File,
    engine: &mut E,
    frames: Frames<'_, '_>,
) -> Transmitted {
    let (mut done, mut are_done) = (Transmitted::default(), 0_u64);
    'group: loop {
        let places = burst.next_of_group();
        if places.len() > 1 {
            match write(file, burst, places.len()) {
                Ok(written) => {
                    done.add(&written);
                    are_done |= places.iter().fold(0, |all, at| all | 1 << at);
                    continue;
                }
                Err(error) if Refusal::of(&error) == Refusal::Later => break,
                Err(_) => {}
            }
        }
        for &at in &places {
            let one = engine.transmit(file, frames.skip(at.into()).take(1));
            if one.taken == 0 {
                break 'group;
            }
            done.add(&one);
            are_done |= 1 << at;
        }
        if places.is_empty() {
            break;
        }
    }
    // The kernel has no room for more. What is before a frame that it took cannot be offered again without that one.
    done.taken = (u64::BITS - are_done.leading_zeros()) as usize;
    let lost = done.taken - are_done.count_ones() as usize;
    if lost > 0 {
        done.drops.add_all(&Transmitted::refused(lost, DropCause::TxNoMemory).drops);
    }
    done
}

#[cfg(test)]
mod tests {
    use std::os::fd::OwnedFd;
    use std::os::unix::net::UnixDatagram;
    use std::sync::Arc;

    use guest_memory::GuestMemory;
    use guest_memory::memory::Mapping;
    use virtio_net::features::BASE;
    use virtio_net::{Negotiated, Offloads, TransmitBurst};
    use virtqueue::driver::{Buffer, Driver, RingOptions};
    use virtqueue::{Chains, Queue};
    use vm_memory::GuestAddress;

    use super::*;
    use crate::tap::queue::Readv;

    /// A net header, and a UDP datagram of this flow.
    fn frame(flow: u8) -> Vec<u8> {
        let mut frame = vec![0; 12 + 42 + 100];
        let ip = &mut frame[26..];
        ip[..12].copy_from_slice(&[0x45, 0, 0, 128, 0, 0, 0x40, 0, 64, 17, 0, 0]);
        ip[12..20].copy_from_slice(&[10, 0, 0, 1, 10, 0, 0, flow]);
        ip[20..26].copy_from_slice(&[1, 2, 3, 4, 0, 108]);
        let sum = |bytes: &[u8], more: u32| {
            let words = bytes.chunks(2).map(|it| u32::from(u16::from_be_bytes([it[0], it[1]])));
            let sum = words.sum::<u32>() + more;
            (!((sum & 0xffff) + (sum >> 16)) as u16).to_be_bytes()
        };
        let of_header = sum(&ip[..20], 0);
        // Of the pseudo header: protocol and length.
        let of_datagram = sum(&ip[12..128], 17 + 108);
        ip[10..12].copy_from_slice(&of_header);
        ip[26..28].copy_from_slice(&of_datagram);
        frame[24..26].copy_from_slice(&[0x08, 0x00]);
        frame
    }

    /// What becomes of frames of three flows in turn, if the kernel takes this many packets.
    fn sent_into(room: usize) -> (Transmitted, usize) {
        let (to, from) = UnixDatagram::pair().unwrap();
        to.set_nonblocking(true).unwrap();
        from.set_nonblocking(true).unwrap();
        // As long as the packets: room is counted in datagrams and in bytes.
        while to.send(&[0; 12 + 42 + 300]).is_ok() {}
        (0..room).for_each(|_| _ = from.recv(&mut [0]).unwrap());
        let file = File::from(OwnedFd::from(to));
        let map = Mapping::from_ranges(&[(GuestAddress(0), 0x10_0000)]).unwrap();
        let memory = Arc::new(GuestMemory::new(Arc::new(map)));
        let mut driver = Driver::new(&memory, 0x1000, RingOptions::of(64), 0);
        let mut queue = Queue::new(&driver.setup(), &memory).unwrap();
        for n in 0..9_u8 {
            let (address, frame) = (0x8000 + u64::from(n) * 0x1000, frame(n % 3));
            memory.write(address, &frame).unwrap();
            driver.add(&[Buffer { address, len: 154, writable: false }]).unwrap();
        }
        driver.publish();
        queue.available_descriptors().unwrap();
        let mut chains = Chains::new();
        let split = Negotiated(BASE & !(1 << 34));
        let burst = TransmitBurst::gather(&mut queue, &memory, split, &mut chains).unwrap();
        let gro = TransmitGro::new(Offloads::ALL);
        let done = transmit(&gro, 1500, &file, &mut Readv, burst.frames());
        // A packet has a net header that is not empty.
        let came = std::iter::from_fn(|| {
            let mut first = [0];
            from.recv(&mut first).ok().map(|_| first != [0])
        });
        (done, came.filter(|is_packet| *is_packet).count())
    }

    #[test]
    fn what_a_flow_has_passed_when_there_is_no_room_is_lost_and_counted() {
        for (room, taken, lost) in [(0, 0, 0), (1, 7, 4), (2, 8, 2), (3, 9, 0)] {
            let (done, came) = sent_into(room);
            assert_eq!(
                (done.taken, usize::from(done.drops.total())),
                (taken, lost),
                "room for {room}"
            );
            assert_eq!((done.gro_frames as usize, done.gro_segments as usize), (room, 3 * room));
            assert_eq!((done.bytes as usize, came), (3 * room * 142, room));
        }
    }
}
