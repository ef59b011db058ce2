//! Tests of the relay.

use super::*;
use std::fs::File;
use std::io::{IoSlice, IoSliceMut, Read as _, Seek as _, Write as _};
use std::mem::MaybeUninit;

use rustix::net::{
    RecvAncillaryBuffer, RecvAncillaryMessage, RecvFlags, SendAncillaryBuffer,
    SendAncillaryMessage, SendFlags, recvmsg, sendmsg,
};

use super::stream::HEADER_LEN;
use super::transfer::Transfers;
use crate::sharing::Sharing;

fn relay() -> (UnixStream, Relay, UnixStream) {
    let (qemu, front) = UnixStream::pair().unwrap();
    let (framework, mut daemon) = UnixStream::pair().unwrap();
    let custody = Custody::new(&Arc::default()).unwrap();
    let limits = regions::Limits { bytes_max: 1 << 30, peer: None };
    let offer = judge::Offer { features: 0, queue_size: 256, mtu: 1500 };
    let sharing = Arc::new(Sharing::new(limits.peer, None));
    let judge = Judge::new(&[], offer, limits, &sharing, Transfers::of(None), &custody);
    let relay = Relay::with_judge(front, framework, judge, &custody).unwrap();
    let mut first = [0; 20];
    daemon.read_exact(&mut first).unwrap();
    assert_eq!(first[..12], [2, 0, 0, 0, 1, 0, 0, 0, 8, 0, 0, 0]);
    assert_eq!(u64::from_ne_bytes(first[12..].try_into().unwrap()), 1 << 30);
    (qemu, relay, daemon)
}

fn message(payload: &[u8]) -> Vec<u8> {
    let len = u32::try_from(payload.len()).unwrap();
    [7_u32, 1, len].iter().flat_map(|word| word.to_ne_bytes()).chain(payload.to_vec()).collect()
}

#[test]
fn a_descriptor_stays_with_its_message() {
    let (qemu, mut relay, daemon) = relay();
    let mut here = tempfile::tempfile().unwrap();
    let there = here.try_clone().unwrap();
    // Without and with a descriptor, one after the other: the kernel would read both at once.
    send(&qemu, &message(b"plain"), &[]).unwrap();
    // `ADD_MEM_REG`: padding, guest address, length, user address, offset.
    here.set_len(0x1000).unwrap();
    let payload = [0, 0, 0x1000, 0, 0].map(u64::to_ne_bytes).concat();
    let header = [37_u32, 1, 40].map(u32::to_ne_bytes).concat();
    let with = [header, payload].concat();
    send(&qemu, &with, &[there.as_fd()]).unwrap();
    drop(there);
    for _ in 0..4 {
        assert_eq!(relay.pass_request().unwrap(), Read::Some);
    }
    for (expected, count) in [(message(b"plain"), 0), (with, 1)] {
        let mut bytes = vec![0; expected.len()];
        let mut space = [MaybeUninit::uninit(); rustix::cmsg_space!(ScmRights(4))];
        let mut ancillary = RecvAncillaryBuffer::new(&mut space);
        let mut list = [IoSliceMut::new(&mut bytes)];
        recvmsg(&daemon, &mut list, &mut ancillary, RecvFlags::empty()).unwrap();
        assert_eq!(bytes, expected);
        let mut descriptors = Vec::new();
        for message in ancillary.drain() {
            if let RecvAncillaryMessage::ScmRights(passed) = message {
                descriptors.extend(passed);
            }
        }
        assert_eq!(descriptors.len(), count);
        for descriptor in descriptors {
            File::from(descriptor).write_all(b"x").unwrap();
        }
    }
    here.rewind().unwrap();
    here.read_exact(&mut [0]).unwrap();
}

#[test]
fn answers_pass_and_a_byte_at_a_time_does_too() {
    let (mut qemu, mut relay, mut daemon) = relay();
    daemon.write_all(&message(b"answer")).unwrap();
    (0..2).for_each(|_| assert_eq!(relay.pass_answer().unwrap(), Read::Some));
    let mut bytes = [0; HEADER_LEN + 6];
    qemu.read_exact(&mut bytes).unwrap();
    assert_eq!(bytes[HEADER_LEN..], *b"answer");
    for byte in message(b"slowly") {
        qemu.write_all(&[byte]).unwrap();
        assert_eq!(relay.pass_request().unwrap(), Read::Some);
    }
    daemon.read_exact(&mut bytes).unwrap();
    assert_eq!(bytes[HEADER_LEN..], *b"slowly");
    drop(qemu);
    assert_eq!(relay.pass_request().unwrap(), Read::Closed);
}

#[test]
fn a_message_that_is_refused_is_answered_and_goes_no_further() {
    let (mut qemu, mut relay, mut daemon) = relay();
    let send = |qemu: &mut UnixStream, request: u32, payload: &[u8; 8]| {
        let header = [request, 1 | 1 << 3, 8].map(u32::to_ne_bytes).concat();
        qemu.write_all(&[&header[..], payload].concat()).unwrap();
    };
    send(&mut qemu, 16, &(1_u64 << 3).to_ne_bytes());
    // There is no ring at all.
    send(&mut qemu, 8, &[0; 8]);
    send(&mut qemu, 7, b"the next");
    (0..6).for_each(|_| assert_eq!(relay.pass_request().unwrap(), Read::Some));
    let mut passed = [0; 40];
    daemon.read_exact(&mut passed).unwrap();
    assert_eq!((passed[0], passed[20], &passed[32..]), (16, 7, &b"the next"[..]));
    let mut answer = [0; 20];
    qemu.read_exact(&mut answer).unwrap();
    let words = answer.chunks(4).map(|word| u32::from_ne_bytes(word.try_into().unwrap()));
    assert_eq!(words.collect::<Vec<_>>(), [8, 1 | 1 << 2, 8, 1, 0]);
}

#[test]
fn a_message_that_is_too_long_is_refused_by_its_header() {
    let (mut qemu, mut relay, _daemon) = relay();
    let header = [7_u32, 1, 5000].map(u32::to_ne_bytes).concat();
    qemu.write_all(&header).unwrap();
    assert!(relay.pass_request().is_err());
}

/// The framework takes 32 and would read on in the payload of a message with more.
#[test]
fn the_framework_gets_no_more_descriptors_than_it_takes() {
    for count in [32, 33, 64] {
        let (qemu, mut relay, daemon) = relay();
        let file = tempfile::tempfile().unwrap();
        file.set_len(4096 * count as u64).unwrap();
        // `SET_MEM_TABLE` of that many pages: guest address, length, user address and offset of each.
        let pages = (0..count as u64).map(|n| 4096 * n).flat_map(|at| [at, 4096, at, at]);
        let table: Vec<_> = [count as u64].into_iter().chain(pages).collect();
        let payload = table.iter().flat_map(|word| word.to_ne_bytes()).collect::<Vec<_>>();
        let header = [5, 1, u32::try_from(payload.len()).unwrap()].map(u32::to_ne_bytes).concat();
        let message = [header, payload].concat();
        let mut space = [MaybeUninit::uninit(); rustix::cmsg_space!(ScmRights(64))];
        let mut ancillary = SendAncillaryBuffer::new(&mut space);
        let descriptors = vec![file.as_fd(); count];
        ancillary.push(SendAncillaryMessage::ScmRights(&descriptors));
        let list = [IoSlice::new(&message)];
        sendmsg(&qemu, &list, &mut ancillary, SendFlags::empty()).unwrap();
        let passed = relay.pass_request().and_then(|_| relay.pass_request());
        assert_eq!(passed.is_ok(), count == 32, "{passed:?}");
        daemon.set_nonblocking(true).unwrap();
        let mut read = [0; HEADER_LEN];
        assert_eq!((&daemon).read(&mut read).is_ok(), count == 32);
    }
}

#[test]
fn a_message_that_is_not_whole_is_due() {
    let (mut qemu, mut relay, _daemon) = relay();
    assert!(!relay.heard() && relay.due().is_none());
    qemu.write_all(&message(b"")[..5]).unwrap();
    relay.pass_request().unwrap();
    let due = relay.due().expect("it is coming");
    qemu.write_all(&message(b"")[5..6]).unwrap();
    relay.pass_request().unwrap();
    assert!(!relay.heard() && relay.due() == Some(due), "a byte more does not put it off");
    qemu.write_all(&message(b"")[6..]).unwrap();
    relay.pass_request().unwrap();
    assert!(relay.heard() && relay.due().is_none());
}
