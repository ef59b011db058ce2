//! Tests of verdicts and answers.

use super::super::descriptor;
use super::super::regions::Region;
use super::*;
use rustix::event::{EventfdFlags, epoll, eventfd};
use rustix::fs::{MemfdFlags, memfd_create};
use std::io::{ErrorKind, Read as _};
use std::os::fd::OwnedFd;
use std::os::unix::net::UnixStream;
use std::time::{Duration, Instant};
use vhost::vhost_user::message::VhostUserVirtioFeatures;
use virtio_net::features;

const NEED_REPLY: u32 = 1 << 3;
const LIMITS: Limits = Limits { bytes_max: 1 << 30, peer: None };

const OFFER: Offer = Offer { features: 1 << 34 | 1 << 32 | 1, queue_size: 256, mtu: 1500 };

impl Judge {
    fn hear(&mut self, message: &[u8]) -> Result<(), Held> {
        self.judge(&mut message.to_vec(), &mut Vec::new())
    }

    /// Judges a message that sets a descriptor of ring 1. Returns the kind that is passed on.
    fn hand_over(&mut self, request: FrontendReq, fd: impl Into<OwnedFd>) -> Option<Kind> {
        let mut descriptors = vec![self.custody.take(fd.into())];
        let mut message = message(request, NEED_REPLY, &words(&[1]));
        self.judge(&mut message, &mut descriptors).ok()?;
        Some(descriptor::inspect(&descriptors[0]).unwrap().0)
    }
}

fn message(request: FrontendReq, flags: u32, payload: &[u8]) -> Vec<u8> {
    let len = u32::try_from(payload.len()).unwrap();
    let header = [request as u32, VERSION | flags, len].map(u32::to_ne_bytes).concat();
    [&header[..], payload].concat()
}

/// Of a front end that has sent nothing yet, and whose process is not known.
fn judge(custody: &Arc<Custody>) -> Judge {
    let sharing = Arc::new(Sharing::new(None, None));
    Judge::new(&[], OFFER, LIMITS, &sharing, Transfers::of(None), custody)
}

/// Rings of 64 in regions from 0x10000 to 0x20000 and on to 0x28000 of the front end's memory.
fn after(features: u64) -> Judge {
    let custody = Custody::new(&Arc::default()).unwrap();
    let (sizes, pipes) = (vec![64; 2], Pipes::new(2, None));
    let mut judge = Judge { sizes, pipes, ..judge(&custody) };
    let regions = [2, 0, 0x10000, 0x10000, 0, 0x10000, 0x8000, 0x20000, 0];
    let table = message(FrontendReq::SET_MEM_TABLE, 0, &words(&regions));
    judge.hear(&table).unwrap();
    judge.hear(&message(FrontendReq::SET_FEATURES, 0, &words(&[features]))).unwrap();
    judge
}

fn addresses(index: u64, parts: [u64; 3]) -> Vec<u8> {
    let [table, driver, device] = parts;
    words(&[index, table, device, driver, 0])
}

#[test]
fn a_region_that_is_not_there_is_not_removed_and_one_that_was_left_out_is() {
    let mut judge = after(0);
    let single = |address: u64, len: u64| words(&[0, address, len, address, 0]);
    let refused = Err(Held::Answered(Some(answer(38, NOT_ACCEPTED))));
    let accepted = Err(Held::Answered(Some(answer(38, ACCEPTED))));
    judge.hear(&message(FrontendReq::SET_PROTOCOL_FEATURES, 0, &words(&[1 << 3]))).unwrap();
    let remove = |judge: &mut Judge, address, len| {
        judge.hear(&message(FrontendReq::REM_MEM_REG, NEED_REPLY, &single(address, len)))
    };
    assert_eq!(remove(&mut judge, 0, 0x8000), refused);
    assert_eq!(remove(&mut judge, 0, 0x10000), Ok(()));
    assert_eq!(remove(&mut judge, 0, 0x10000), refused);
    let region = Region { guest_address: 1 << 32, len: 0x1000, user_address: 1 << 32, offset: 0 };
    judge.memory.leave_out(vec![region]);
    let add = message(FrontendReq::ADD_MEM_REG, NEED_REPLY, &single(1 << 32, 0x1000));
    assert_eq!(judge.hear(&add), Err(Held::Answered(Some(answer(37, ACCEPTED)))));
    assert_eq!(remove(&mut judge, 1 << 32, 0x1000), accepted);
    assert_eq!(remove(&mut judge, 1 << 32, 0x1000), refused);
}

#[test]
fn each_part_of_a_ring_lies_in_one_region_and_is_aligned() {
    // A split ring of 64 has 1024, 134 and 518 bytes, a packed one 1024, 4 and 4.
    let ends = |features| {
        let mut judge = after(features);
        let mut may = |parts| {
            let parts = addresses(1, parts);
            judge.hear(&message(FrontendReq::SET_VRING_ADDR, NEED_REPLY, &parts)).is_ok()
        };
        assert!(may([0x10000, 0x11000, 0x12000]));
        assert!(!may([0x10008, 0x11000, 0x12000]));
        assert!(!may([0x10000, 0x11001, 0x12000]));
        assert!(!may([0x10000, 0x11000, 0x12002]));
        assert!(may([0x20000 - 1024, 0x11000, 0x12000]));
        assert!(!may([0x20000 - 1008, 0x11000, 0x12000]));
        assert!(!may([0x28000, 0x11000, 0x12000]));
        assert!(!may([u64::MAX - 15, 0x11000, 0x12000]));
        [134_u64, 518].map(|len| {
            let address = 0x20000 - len.next_multiple_of(4) + 4;
            may([0x10000, address, 0x12000]) && may([0x10000, 0x11000, address])
        })
    };
    assert_eq!(ends(0), [false, false]);
    assert_eq!(ends(1 << 34), [true, true]);
}

#[test]
fn a_refused_message_is_answered_if_reply_ack_was_negotiated_and_an_answer_is_needed() {
    let mut judge = after(0);
    let wrong = addresses(2, [0x10000, 0x11000, 0x12000]);
    let mut verdict =
        |flags, payload: &[u8]| judge.hear(&message(FrontendReq::SET_VRING_ADDR, flags, payload));
    assert_eq!(verdict(NEED_REPLY, &wrong), Err(Held::Answered(None)));
    // A message that is too short ends the connection.
    assert!(matches!(verdict(NEED_REPLY, &wrong[..39]), Err(Held::Connection(_))));
    judge.hear(&message(FrontendReq::SET_PROTOCOL_FEATURES, 0, &words(&[1 << 3]))).unwrap();
    let mut verdict = |flags| judge.hear(&message(FrontendReq::SET_VRING_ADDR, flags, &wrong));
    assert_eq!(verdict(0), Err(Held::Answered(None)));
    assert_eq!(verdict(NEED_REPLY), Err(Held::Answered(Some(answer(9, NOT_ACCEPTED)))));
}

#[test]
fn the_position_of_a_packed_ring_is_in_the_answer_twice() {
    for (features, expected) in [(0, 0x8005_u32), (1 << 34, 0x8005_8005)] {
        let base = [1, 0x8005_u32].map(u32::to_ne_bytes).concat();
        let mut answer = message(FrontendReq::GET_VRING_BASE, 1 << 2, &base);
        after(features).complete(&mut answer);
        assert_eq!(answer[16..], expected.to_ne_bytes());
    }
}

#[test]
fn a_ring_cannot_lie_in_a_removed_region() {
    let mut judge = after(0);
    let parts = addresses(0, [0x20000, 0x21000, 0x22000]);
    let verdict = |judge: &mut Judge| judge.hear(&message(FrontendReq::SET_VRING_ADDR, 0, &parts));
    assert!(verdict(&mut judge).is_ok());
    let region = words(&[0, 0x10000, 0x8000, 0x20000, 0]);
    judge.hear(&message(FrontendReq::REM_MEM_REG, 0, &region)).unwrap();
    assert!(verdict(&mut judge).is_err());
    judge.hear(&message(FrontendReq::ADD_MEM_REG, 0, &region)).unwrap();
    assert!(verdict(&mut judge).is_ok());
}

#[test]
fn kick_and_error_are_eventfds_and_call_may_be_a_pipe() {
    crate::message::pipe::tests::prepare();
    use FrontendReq::{SET_VRING_CALL, SET_VRING_ERR, SET_VRING_KICK};
    let mut judge = after(0);
    for request in [SET_VRING_KICK, SET_VRING_CALL, SET_VRING_ERR] {
        let new = || eventfd(0, EventfdFlags::empty()).unwrap();
        assert_eq!(judge.hand_over(request, new()), Some(Kind::Eventfd));
        let (socket, _other) = UnixStream::pair().unwrap();
        assert_eq!(judge.hand_over(request, socket), None);
        let epoll = epoll::create(epoll::CreateFlags::CLOEXEC).unwrap();
        assert_eq!(judge.hand_over(request, epoll), None);
        let memory = memfd_create("anon_inode:[eventfd]", MemfdFlags::CLOEXEC).unwrap();
        assert_eq!(judge.hand_over(request, memory), None);
    }
    let (_reader, writer) = std::io::pipe().unwrap();
    let writer = OwnedFd::from(writer);
    assert_eq!(judge.hand_over(SET_VRING_KICK, writer.try_clone().unwrap()), None);
    // Our eventfd replaces it.
    assert_eq!(judge.hand_over(SET_VRING_CALL, writer), Some(Kind::Eventfd));
}

#[test]
fn memory_is_a_file_and_no_other_message_has_descriptors() {
    let mut judge = after(0);
    let (socket, _other) = UnixStream::pair().unwrap();
    let mut descriptors = vec![judge.custody.take(socket.into())];
    let mut region =
        message(FrontendReq::ADD_MEM_REG, 0, &words(&[0, 0x30000, 0x1000, 0x30000, 0]));
    assert_eq!(judge.judge(&mut region, &mut descriptors), Err(Held::Answered(None)));
    assert_eq!(judge.memory.regions(), 2);
    let mut owner = message(FrontendReq::SET_OWNER, 0, &[]);
    assert!(matches!(judge.judge(&mut owner, &mut descriptors), Err(Held::Connection(_))));
    let mut removal =
        message(FrontendReq::REM_MEM_REG, 0, &words(&[0, 0x10000, 0x8000, 0x20000, 0]));
    assert_eq!(judge.judge(&mut removal, &mut descriptors), Ok(()));
    assert!(descriptors.is_empty());
}

#[test]
fn the_channel_for_requests_is_kept_until_the_next_one_and_goes_no_further() {
    let mut judge = after(0);
    judge.hear(&message(FrontendReq::SET_PROTOCOL_FEATURES, 0, &words(&[1 << 3]))).unwrap();
    let mut hand_over = |writers: Vec<OwnedFd>| {
        let mut descriptors: Vec<_> =
            writers.into_iter().map(|fd| judge.custody.take(fd)).collect();
        let mut message = message(FrontendReq::SET_BACKEND_REQ_FD, NEED_REPLY, &[]);
        judge.judge(&mut message, &mut descriptors)
    };
    let answered = |value| Err(Held::Answered(Some(answer(21, value))));
    let (mut reader, writer) = std::io::pipe().unwrap();
    let (_other, second) = std::io::pipe().unwrap();
    let (_one, more) = UnixStream::pair().unwrap();
    rustix::io::ioctl_fionbio(&reader, true).unwrap();
    let mut read = || reader.read(&mut [0]).map_err(|error| error.kind());
    assert_eq!(hand_over(vec![writer.into()]), answered(ACCEPTED));
    assert_eq!(read(), Err(ErrorKind::WouldBlock), "it is open");
    assert_eq!(hand_over(vec![]), answered(NOT_ACCEPTED));
    let two = vec![second.try_clone().unwrap().into(), more.into()];
    assert_eq!(hand_over(two), answered(NOT_ACCEPTED));
    assert_eq!(read(), Err(ErrorKind::WouldBlock), "it is still open");
    assert_eq!(hand_over(vec![second.into()]), answered(ACCEPTED));
    let until = Instant::now() + Duration::from_secs(10);
    while read() == Err(ErrorKind::WouldBlock) {
        assert!(Instant::now() < until, "it is not closed");
        std::thread::yield_now();
    }
    assert_eq!(read(), Ok(0));
}

#[test]
fn the_number_of_queues_is_one_of_pairs_for_a_front_end_that_asks_before_set_owner() {
    let answer = |judge: &mut Judge| {
        judge.hear(&message(FrontendReq::GET_QUEUE_NUM, 0, &[])).unwrap();
        let mut answer = message(FrontendReq::GET_QUEUE_NUM, 1 << 2, &words(&[4]));
        judge.complete(&mut answer);
        answer[12..].to_vec()
    };
    let custody = Custody::new(&Arc::default()).unwrap();
    let mut judge = judge(&custody);
    assert!(!judge.wants_other_pairs());
    assert_eq!(answer(&mut judge), words(&[2]));
    assert!(judge.wants_other_pairs());
    judge.hear(&message(FrontendReq::SET_OWNER, 0, &[])).unwrap();
    judge.hear(&message(FrontendReq::SET_FEATURES, 0, &words(&[0]))).unwrap();
    assert!(!judge.wants_other_pairs());
    assert_eq!(answer(&mut judge), words(&[4]));
}

/// Only QEMU asks before `SET_OWNER`.
#[test]
fn qemu_is_not_offered_what_it_has_itself() {
    let (config, all) = (VhostUserProtocolFeatures::CONFIG.bits(), u64::MAX);
    for (first, features, protocol) in
        [(true, !features::NOT_FOR_QEMU, !config), (false, !features::ACCESS_PLATFORM, all)]
    {
        let mut judge = after(0);
        if !first {
            judge.hear(&message(FrontendReq::SET_OWNER, 0, &[])).unwrap();
        }
        let mut offered = |request| {
            judge.hear(&message(request, 0, &[])).unwrap();
            let mut answer = message(request, 1 << 2, &words(&[all]));
            judge.complete(&mut answer);
            u64::from_ne_bytes(answer[HEADER_LEN..].try_into().unwrap())
        };
        assert_eq!(offered(FrontendReq::GET_FEATURES), features);
        assert_eq!(offered(FrontendReq::GET_PROTOCOL_FEATURES), protocol);
    }
}

#[test]
fn a_part_of_the_configuration_space_that_cannot_be_is_answered_without_bytes() {
    let mut judge = after(0);
    let mut ask = |offset: u32, size: u32, flags: u32| {
        let part = [offset, size, flags].map(u32::to_ne_bytes).concat();
        let asked = [&part[..], &vec![0; size.min(0x2000) as usize]].concat();
        judge.hear(&message(FrontendReq::GET_CONFIG, 0, &asked))
    };
    assert_eq!(ask(0, 24, 0), Ok(()));
    assert_eq!(ask(0, 0x1000, 1), Ok(()));
    for (offset, size, flags) in [(0, 0, 0), (0, 0x1001, 0), (u32::MAX, 1, 0), (0, 6, 1 << 9)] {
        let none = [offset, 0, flags].map(u32::to_ne_bytes).concat();
        let none = message(FrontendReq::GET_CONFIG, 1 << 2, &none);
        assert_eq!(ask(offset, size, flags), Err(Held::Answered(Some(none))));
    }
    assert!(matches!(ask(0, u32::MAX, 0), Err(Held::Connection(_))), "too few bytes");
}

#[test]
fn features_that_are_not_offered_end_the_connection_and_are_named() {
    let mut judge = after(1 << 34);
    let set = |features| message(FrontendReq::SET_FEATURES, 0, &words(&[features]));
    let protocol = VhostUserVirtioFeatures::PROTOCOL_FEATURES.bits();
    assert_eq!(judge.hear(&set(OFFER.features | protocol)), Ok(()));
    let Err(Held::Connection(why)) = judge.hear(&set(1 << 34 | 1 << 11 | 1 << 49)) else {
        panic!("features that are not offered were accepted");
    };
    assert!(why.contains("features that are not offered: host_tso4 bit_49; "), "{why}");
    // QEMU sends it with a virtual IOMMU only.
    let Err(Held::Connection(why)) = judge.hear(&set(1 << 34 | features::ACCESS_PLATFORM)) else {
        panic!("I/O addresses were accepted");
    };
    assert!(why.contains("a virtual IOMMU translates"), "{why}");
}

#[test]
fn an_mtu_is_accepted_and_not_passed_on() {
    let mut judge = after(0);
    let mut set = |mtu| judge.hear(&message(FrontendReq::NET_SET_MTU, NEED_REPLY, &words(&[mtu])));
    for (mtu, accepted) in [(0, false), (67, false), (68, true), (65_535, true), (65_536, false)] {
        // Without `REPLY_ACK` nothing is answered.
        assert_eq!(set(mtu), Err(Held::Answered(None)), "{mtu}");
        assert_eq!(OFFER.expect_mtu(mtu, None).is_ok(), accepted, "{mtu}");
    }
}
