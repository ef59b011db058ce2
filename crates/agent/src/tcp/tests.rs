use super::*;

fn server() -> SocketAddr {
    let listener = TcpListener::bind("127.0.0.1:0").unwrap();
    let address = listener.local_addr().unwrap();
    std::thread::spawn(move || accept_all(&listener));
    address
}

fn args(target: SocketAddr, bytes: u64, check: Check) -> TransferArgs {
    let (compare, no_hash) = (check == Check::Compare, check == Check::Nothing);
    TransferArgs { target, bytes, seed: 5, compare, no_hash, timeout: 20, patience: 10 }
}

#[test]
fn both_directions_carry_the_same_bytes() {
    let target = server();
    // Not a multiple of the block, so the last part is short.
    let bytes = 3 * BLOCK_BYTES as u64 + 1001;
    let sent = send(&args(target, bytes, Check::Hash)).unwrap();
    let received = receive(&args(target, bytes, Check::Hash)).unwrap();
    sent.check().unwrap();
    received.check().unwrap();
    assert_eq!(sent.received.bytes, bytes);
    assert_eq!(sent.received.sha256, received.received.sha256);
    assert_eq!(sent.received.sha256.unwrap().len(), 64);
}

#[test]
fn without_hash_there_is_no_digest() {
    let report = send(&args(server(), 1 << 20, Check::Nothing)).unwrap();
    report.check().unwrap();
    assert_eq!((report.sent.sha256, report.received.bytes), (None, 1 << 20));
}

#[test]
fn a_changed_byte_is_told() {
    let mut report = receive(&args(server(), 1000, Check::Hash)).unwrap();
    report.received.sha256 = Some("00".into());
    assert!(matches!(report.check(), Err(Error::Corrupted { .. })));
}

#[test]
fn the_receiver_compares_every_byte() {
    let target = server();
    let bytes = 3 * BLOCK_BYTES as u64 + 1001;
    for transfer in [send, receive] {
        let mut report = transfer(&args(target, bytes, Check::Compare)).unwrap();
        report.check().unwrap();
        assert_eq!(report.received.equal_bytes, Some(bytes));
        assert_eq!((&report.sent.equal_bytes, &report.sent.sha256), (&None, &None));
        report.received.equal_bytes = Some(bytes - 1);
        assert!(matches!(report.check(), Err(Error::Differs { at, .. }) if at == bytes - 1));
    }
}

#[test]
fn orders_survive_the_wire_and_garbage_is_refused() {
    for check in Check::ALL {
        let order = Order { direction: Direction::Receive, bytes: 7, seed: 8, check };
        assert_eq!(Order::parse(&order.line()), Some(order));
    }
    for line in ["", "GET / HTTP/1.1", "ringscope-tcp send x 1 hash", "ringscope-tcp send 1 1"] {
        assert_eq!(Order::parse(line), None, "{line}");
    }
}

/// The limit and its flag of a transfer that is given up.
fn given_up(result: Result<TcpReport, Error>) -> (Duration, &'static str) {
    match result {
        Err(Error::Timeout { limit, flag, .. }) => (limit, flag),
        other => panic!("{other:?}"),
    }
}

#[test]
fn a_peer_that_says_nothing_is_given_up_for_the_reason_that_is_said() {
    let listener = TcpListener::bind("127.0.0.1:0").unwrap();
    let (target, second) = (listener.local_addr().unwrap(), Duration::from_secs(1));
    let limited = TransferArgs { timeout: 1, ..args(target, 10, Check::Hash) };
    assert_eq!(given_up(receive(&limited)), (second, "--timeout"));
    let impatient = TransferArgs { patience: 1, ..args(target, 10, Check::Hash) };
    assert_eq!(given_up(receive(&impatient)), (second, "--patience"));
    // It sends until the buffers are full.
    let sending = TransferArgs { timeout: 1, ..args(target, 1 << 30, Check::Nothing) };
    assert_eq!(given_up(send(&sending)), (second, "--timeout"));
}

/// TEST-NET-1 (RFC 5737): nobody answers there; a sandbox may refuse at once instead.
#[test]
fn a_host_that_does_not_answer_is_reported_with_the_time_it_had() {
    let target = "192.0.2.1:7008".parse().unwrap();
    let args = TransferArgs { timeout: 120, patience: 1, ..args(target, 10, Check::Hash) };
    match send(&args) {
        Err(Error::NoConnection { seconds, .. }) => assert!((0.9..10.0).contains(&seconds)),
        Err(Error::Peer { doing: "connect to", .. }) => {}
        other => panic!("{other:?}"),
    }
}
