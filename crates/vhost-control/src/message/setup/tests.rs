//! Tests of what counts of a front end's messages.

use std::fs::File;
use std::os::fd::AsRawFd as _;
use std::sync::Arc;

use worker::Custody;

use super::*;

fn message(request: FrontendReq, payload: &[u8], files: &[&File]) -> Message {
    let custody = Custody::new(&Arc::default()).unwrap();
    let mut bytes = header(request, payload.len());
    // `NEED_REPLY`.
    bytes[4] |= 8;
    bytes.extend_from_slice(payload);
    let take = |file: &&File| custody.take(file.try_clone().unwrap().into());
    Message { bytes, descriptors: files.iter().map(take).collect() }
}

fn state(ring: u32, value: u32) -> Vec<u8> {
    [ring, value].map(u32::to_ne_bytes).concat()
}

fn region(at: u64) -> Vec<u8> {
    [at, 0x1000, at, 0].map(u64::to_ne_bytes).concat()
}

/// The requests in their order, each with its ring or features, and number of descriptors.
fn shared(setup: &Setup) -> Vec<(u32, u32, usize)> {
    let all = setup.share(None).unwrap();
    let number = |bytes: &[u8], at: usize| {
        bytes.get(at..at + 4).map_or(0, |word| u32::from_ne_bytes(word.try_into().unwrap()))
    };
    for message in &all {
        assert_eq!(number(&message.bytes, 4), 1, "without the wish for an answer");
    }
    let all = all.iter().map(|SetupMessage { bytes, descriptors }| {
        (number(bytes, 0), number(bytes, HEADER_LEN), descriptors.len())
    });
    all.collect()
}

#[test]
fn the_last_message_of_each_kind_counts_and_kicks_come_last() {
    let file = tempfile::tempfile().unwrap();
    let mut setup = Setup::default();
    let mut note = |request, payload: &[u8], files: &[&File]| {
        setup.note(message(request, payload, files), false);
    };
    note(FrontendReq::SET_VRING_KICK, &1_u64.to_ne_bytes(), &[&file]);
    note(FrontendReq::SET_VRING_KICK, &0_u64.to_ne_bytes(), &[&file]);
    for size in [128, 256] {
        note(FrontendReq::SET_VRING_NUM, &state(1, size), &[]);
    }
    note(FrontendReq::SET_VRING_CALL, &0x100_u64.to_ne_bytes(), &[]);
    note(FrontendReq::SET_FEATURES, &(1_u64 << 30).to_ne_bytes(), &[]);
    note(FrontendReq::SET_VRING_ENABLE, &state(1, 1), &[]);
    note(FrontendReq::SET_OWNER, &[], &[]);
    note(FrontendReq::GET_FEATURES, &[], &[]);
    let kick = FrontendReq::SET_VRING_KICK as u32;
    let expected = [
        (FrontendReq::SET_OWNER as u32, 0, 0),
        (FrontendReq::SET_FEATURES as u32, 1 << 30, 0),
        (FrontendReq::SET_VRING_CALL as u32, 0x100, 0),
        (FrontendReq::SET_VRING_NUM as u32, 1, 0),
        (FrontendReq::SET_VRING_ENABLE as u32, 1, 0),
        (kick, 0, 1),
        (kick, 1, 1),
    ];
    assert_eq!(shared(&setup), expected);
    let size = &setup.parts[&(1, Part::Size)].bytes;
    assert_eq!(size[HEADER_LEN + 4..], 256_u32.to_ne_bytes());
    // Features without that of the protocol enable all rings.
    setup.note(message(FrontendReq::SET_FEATURES, &1_u64.to_ne_bytes(), &[]), false);
    setup.note(message(FrontendReq::GET_VRING_BASE, &state(0, 0), &[]), false);
    let left: Vec<_> = shared(&setup).into_iter().map(|(request, ..)| request).collect();
    assert_eq!(left, [3, 2, 8, 12], "owner, features, size, the other ring's kick");
}

#[test]
fn regions_come_and_go_with_their_files() {
    let files: Vec<_> = (0..40).map(|_| tempfile::tempfile().unwrap()).collect();
    let mut setup = Setup::default();
    let table = [&2_u64.to_ne_bytes()[..], &region(0), &region(0x1000)].concat();
    let two = [&files[0], &files[1]];
    setup.note(message(FrontendReq::SET_MEM_TABLE, &table, &two), false);
    let one = |at: u64| [&[0; 8][..], &region(at)].concat();
    setup.note(message(FrontendReq::REM_MEM_REG, &one(0), &[]), false);
    for (n, file) in (2..).zip(&files[2..]) {
        setup.note(message(FrontendReq::ADD_MEM_REG, &one(n * 0x1000), &[file]), false);
    }
    // A table takes so many, and the rest are added.
    let (table, add) = (FrontendReq::SET_MEM_TABLE as u32, FrontendReq::ADD_MEM_REG as u32);
    let expected = std::iter::once((table, 32, 32)).chain((0..7).map(|_| (add, 0, 1)));
    assert_eq!(shared(&setup), expected.collect::<Vec<_>>());
    let again = setup.share(None).unwrap();
    let mut copy = Setup::default();
    let custody = Custody::new(&Arc::default()).unwrap();
    for SetupMessage { bytes, descriptors } in again {
        let descriptors = descriptors.into_iter().map(|fd| custody.take(fd)).collect();
        copy.note(Message { bytes, descriptors }, false);
    }
    let regions = |setup: &Setup| setup.regions.iter().map(|(it, _)| *it).collect::<Vec<_>>();
    assert_eq!(regions(&copy), regions(&setup));
    assert!(copy.regions.iter().all(|(_, file)| file.as_raw_fd() > 0));
    let other = [&1_u64.to_ne_bytes()[..], &region(7)].concat();
    setup.note(message(FrontendReq::SET_MEM_TABLE, &other, &[&files[0]]), false);
    assert_eq!(shared(&setup), [(table, 1, 1)]);
}

#[test]
fn a_pipe_cannot_be_shared_until_it_is_replaced() {
    let mut setup = Setup::default();
    let call = |ring: u64| message(FrontendReq::SET_VRING_CALL, &ring.to_ne_bytes(), &[]);
    setup.note(call(1), true);
    assert!(setup.share(None).unwrap_err().contains("queue 1 is a pipe"));
    setup.note(call(1), false);
    assert_eq!(shared(&setup).len(), 1);
    setup.note(message(FrontendReq::RESET_DEVICE, &[], &[]), false);
    assert_eq!(shared(&setup), []);
}
