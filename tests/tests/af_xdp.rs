//! AF_XDP on a veth, with guests in software.

use std::process::Command;
use std::thread::sleep;
use std::time::Duration;

use burst_trace::{BurstRecord, DropCause, SocketEvent};
use frontend::{Guest, GuestOptions};
use lab::Signal;
use lab::outside::Outside;
use report::{Breakdown, Window, table};
use ringscope_tests::af_xdp::{NEIGHBOUR, start};
use ringscope_tests::cable::{ip, quieten};
use ringscope_tests::daemon::Daemon;
use ringscope_tests::eventually::{eventually, when};
use ringscope_tests::lan;
use ringscope_tests::pings::Pinger;

const SOON: Duration = Duration::from_secs(5);

#[test]
fn frames_of_every_length_go_both_ways_in_every_mode() {
    for keys in ["", ",mode=generic", ",mode=native,zerocopy=off", ",need-wakeup=on", ",umem=guest"]
    {
        for poll in ["never", "adaptive", "always"] {
            let outside = Outside::on_wire("xdp", 1).unwrap();
            let (_directory, daemon) = start(&outside, keys, &["--poll", poll]);
            for packed in [false, true] {
                let options = GuestOptions::default().packed(packed);
                let mut guest = Guest::connect(daemon.socket(), options).unwrap();
                let mut pinger = Pinger::new(guest.pair(0), Pinger::MAC);
                for len in [0, 1, 18, 56, 100, 1000, 1471, 1472] {
                    assert!(pinger.ping(guest.pair(0), len, SOON), "{len}");
                }
                guest.check_canaries().unwrap();
            }
        }
    }
}

#[test]
fn a_queue_pair_may_have_several_queues() {
    for keys in ["", ",umem=guest"] {
        let outside = Outside::on_wire("queues", 3).unwrap();
        let (_directory, daemon) = start(&outside, keys, &[]);
        for packed in [false, true] {
            let options = GuestOptions::default().packed(packed);
            let mut guest = Guest::connect(daemon.socket(), options).unwrap();
            let mut pinger = Pinger::new(guest.pair(0), Pinger::MAC);
            pinger.ping_all(guest.pair(0), 20);
        }
    }
}

#[test]
fn frames_of_9000_bytes_go_over_several_chunks() {
    for keys in ["", ",mode=generic", ",umem=guest"] {
        let outside = Outside::on_wire("jumbo", 1).unwrap();
        ip(&format!("link set {} mtu 9000", outside.wire()));
        outside.exec("ip link set eth0 mtu 9000").unwrap();
        let (_directory, daemon) = start(&outside, keys, &[]);
        let options = GuestOptions { buffer_len: 12_000, ..GuestOptions::default() };
        for options in [options, GuestOptions::default()] {
            let mut guest = Guest::connect(daemon.socket(), options.clone()).unwrap();
            let mut pinger = Pinger::new(guest.pair(0), Pinger::MAC);
            // What the guest's own buffers hold goes out.
            let longest = (options.buffer_len as usize - 100).min(8972);
            for len in [1472, 1900, longest] {
                assert!(pinger.ping(guest.pair(0), len, SOON), "{len}");
            }
            guest.check_canaries().unwrap();
        }
    }
}

#[test]
fn every_queue_of_the_interface_is_served_whatever_the_number_of_pairs() {
    const QUEUES: u16 = 4;
    const FLOWS: usize = 200;
    for pairs in [1, 3, 4] {
        let outside = Outside::on_wire("queues", QUEUES).unwrap();
        let count = pairs.to_string();
        let (_directory, daemon) = start(&outside, "", &["--queue-pairs", &count]);
        let options = GuestOptions::default().queue_pairs(pairs);
        let mut guest = Guest::connect(daemon.socket(), options).unwrap();
        outside.exec(NEIGHBOUR).unwrap();
        let send =
            format!("for p in $(seq {FLOWS}); do echo x >/dev/udp/10.77.0.2/$((5000 + p)); done");
        outside.exec(&format!("bash -c '{send}'")).unwrap();
        let mut ports = Vec::new();
        eventually(SOON, &format!("frames of {FLOWS} flows, {pairs} queue pairs"), || {
            for pair in guest.pairs() {
                while let Some(frame) = pair.receive().unwrap() {
                    // Destination port of UDP over IPv4.
                    if frame.bytes.len() > 42 && frame.bytes[23] == 17 {
                        ports.push(u16::from_be_bytes([frame.bytes[36], frame.bytes[37]]));
                    }
                }
            }
            when(ports.len() >= FLOWS, ports.len())
        });
        ports.sort_unstable();
        assert!(ports.iter().copied().eq(5001..5201), "{pairs} pairs: {} of {FLOWS}", ports.len());
    }
}

#[test]
fn a_link_that_goes_down_costs_frames_with_a_cause_and_comes_back() {
    for poll in ["never", "always"] {
        let outside = Outside::on_wire("down", 1).unwrap();
        let (_directory, daemon) = start(&outside, "", &["--poll", poll]);
        let mut guest = Guest::connect(daemon.socket(), GuestOptions::default()).unwrap();
        let mut pinger = Pinger::new(guest.pair(0), Pinger::MAC);
        assert!(pinger.ping(guest.pair(0), 100, SOON));
        ip(&format!("link set {} down", outside.wire()));
        for n in 0..20 {
            assert!(guest.pair(0).send(&ringscope_tests::frames::frame(n, 100)).unwrap());
            sleep(Duration::from_millis(5));
        }
        let dropped = daemon.reader().unwrap().drops(1, DropCause::TxLinkDown);
        // The first burst is in the ring when the kernel says that nobody empties it.
        assert!((15..=20).contains(&dropped), "--poll {poll}: {dropped} dropped");
        ip(&format!("link set {} up", outside.wire()));
        let is_up = "[ $(cat /sys/class/net/eth0/operstate) = up ]";
        outside.exec(&format!("until {is_up}; do sleep 0.1; done")).unwrap();
        // It forgot its neighbours, and this guest answers nobody who asks for them.
        outside.exec(NEIGHBOUR).unwrap();
        for _ in 0..10 {
            assert!(pinger.ping(guest.pair(0), 100, SOON));
        }
    }
}

#[test]
fn an_interface_that_is_removed_costs_frames_with_a_cause_and_no_cpu() {
    for poll in ["never", "adaptive"] {
        let outside = Outside::on_wire("gone", 1).unwrap();
        let (_directory, mut daemon) = start(&outside, "", &["--poll", poll]);
        let mut guest = Guest::connect(daemon.socket(), GuestOptions::default()).unwrap();
        Pinger::new(guest.pair(0), Pinger::MAC).ping_all(guest.pair(0), 1);
        ip(&format!("link del {}", outside.wire()));
        for n in 0..20 {
            assert!(guest.pair(0).send(&ringscope_tests::frames::frame(n, 100)).unwrap());
            sleep(Duration::from_millis(5));
        }
        let before = daemon.cpu_time();
        sleep(Duration::from_secs(1));
        assert!(daemon.cpu_time() - before <= Duration::from_millis(20), "--poll {poll}: it spins");
        let dropped = daemon.reader().unwrap().drops(1, DropCause::TxLinkDown);
        assert!(dropped >= 15, "--poll {poll}: {dropped} dropped");
        guest.stop_ring(0).unwrap();
        daemon.signal(Signal::TERM).unwrap();
        let ended = daemon.wait(Duration::from_secs(1)).unwrap();
        assert!(ended.success(), "{}", daemon.log());
    }
}

#[test]
fn frames_that_a_slow_guest_loses_are_counted() {
    const FRAMES: u64 = 6000;
    for poll in ["never", "always"] {
        let outside = Outside::on_wire("slow", 1).unwrap();
        let (_directory, daemon) = start(&outside, "", &["--poll", poll]);
        let mut guest = Guest::connect(daemon.socket(), GuestOptions::default()).unwrap();
        Pinger::new(guest.pair(0), Pinger::MAC).ping_all(guest.pair(0), 1);
        outside.exec(NEIGHBOUR).unwrap();
        let carried = daemon.reader().unwrap().totals(0).packets;
        // The guest takes none: its buffers and the receive ring fill up.
        let line =
            format!("bash -c 'for n in $(seq {FRAMES}); do echo x; done >/dev/udp/10.77.0.2/9'");
        outside.exec(&line).unwrap();
        let mut came = 0;
        let lost = |daemon: &Daemon| daemon.reader().unwrap().drops(0, DropCause::RxRingFull);
        eventually(SOON, &format!("{FRAMES} frames, --poll {poll}"), || {
            while guest.pair(0).receive().unwrap().is_some() {
                came += 1;
            }
            let lost = lost(&daemon);
            when(came + lost >= FRAMES, format!("{came} came, {lost} lost"))
        });
        let (lost, reader) = (lost(&daemon), daemon.reader().unwrap());
        assert!(lost > 0 && came > 2048, "--poll {poll}: {came} came, {lost} lost");
        assert_eq!(came + lost, FRAMES, "--poll {poll}");
        assert_eq!(reader.totals(0).packets, carried + came, "--poll {poll}");
        assert_eq!(reader.drops(0, DropCause::RxNoChunk), 0, "--poll {poll}");
    }
}

#[test]
fn when_frames_came_is_known_and_what_polling_finds_is_exact() {
    let outside = Outside::on_wire("stamps", 1).unwrap();
    for (poll, is_asleep) in [("never", true), ("always", false)] {
        let (_directory, daemon) = start(&outside, "", &["--poll", poll]);
        let mut guest = Guest::connect(daemon.socket(), GuestOptions::default()).unwrap();
        let mut pinger = Pinger::new(guest.pair(0), Pinger::MAC);
        for _ in 0..50 {
            pinger.ping_all(guest.pair(0), 1);
            sleep(Duration::from_millis(2));
        }
        let reader = daemon.reader().unwrap();
        let mut records: Vec<BurstRecord> = Vec::new();
        reader.read(&mut reader.oldest(0), |record| {
            records.extend(record.as_burst().filter(|burst| burst.ring == 0));
        });
        assert!(records.len() >= 50);
        let limit = reader.ticks_per_second() / 2;
        for record in &records {
            let wakeup = record.wakeup.expect("the kernel's stamp");
            assert!(u64::from(wakeup) < limit && record.total() < limit, "{record:?}");
            assert!(!record.is_polled, "what is stamped is no bound");
        }
        // A worker that sleeps takes some microseconds to come back; one that polls, nothing.
        let woken = records.iter().filter(|record| record.wakeup > Some(1000)).count();
        let expected =
            if is_asleep { records.len() * 9 / 10..=records.len() } else { 0..=records.len() / 10 };
        assert!(expected.contains(&woken), "--poll {poll}: {woken} of {}", records.len());
    }
}

#[test]
fn frames_that_are_too_short_or_too_long_for_a_link_are_counted() {
    let outside = Outside::on_wire("short", 1).unwrap();
    for keys in ["", ",umem=guest"] {
        let (_directory, daemon) = start(&outside, keys, &[]);
        let mut guest = Guest::connect(daemon.socket(), GuestOptions::default()).unwrap();
        let mut pinger = Pinger::new(guest.pair(0), Pinger::MAC);
        let piece = vec![0; 1000];
        for len in [1, 13] {
            assert!(guest.pair(0).send(&piece[..len]).unwrap());
        }
        assert!(guest.pair(0).send_chain(&[0; 12], &[&piece, &piece]).unwrap());
        pinger.ping_all(guest.pair(0), 3);
        let drops = |cause| daemon.reader().unwrap().drops(1, cause);
        assert_eq!((drops(DropCause::TxTooShort), drops(DropCause::TxTooLong)), (2, 1), "{keys}");
    }
}

#[test]
fn busy_polling_changes_the_interface_and_changes_it_back() {
    let outside = Outside::on_wire("busy", 1).unwrap();
    let setting = |file: &str| {
        let path = format!("/sys/class/net/{}/{file}", outside.wire());
        std::fs::read_to_string(path).unwrap().trim().to_owned()
    };
    let settings = || (setting("napi_defer_hard_irqs"), setting("gro_flush_timeout"));
    let before = settings();
    for poll in ["never", "always"] {
        let (_directory, mut daemon) = start(&outside, ",busy-poll=on", &["--poll", poll]);
        assert_eq!(settings(), ("2".into(), "200000".into()));
        let mut guest = Guest::connect(daemon.socket(), GuestOptions::default()).unwrap();
        Pinger::new(guest.pair(0), Pinger::MAC).ping_all(guest.pair(0), 50);
        daemon.signal(Signal::TERM).unwrap();
        daemon.wait(SOON).unwrap();
        assert_eq!(settings(), before);
    }
}

#[test]
fn the_program_and_the_queues_are_free_as_soon_as_the_daemon_is_killed() {
    let outside = Outside::on_wire("killed", 1).unwrap();
    let has_program = || {
        let output = Command::new("ip").args(["link", "show", outside.wire()]).output().unwrap();
        String::from_utf8_lossy(&output.stdout).contains("xdp")
    };
    for _ in 0..3 {
        let (_directory, mut daemon) = start(&outside, "", &[]);
        let mut guest = Guest::connect(daemon.socket(), GuestOptions::default()).unwrap();
        Pinger::new(guest.pair(0), Pinger::MAC).ping_all(guest.pair(0), 1);
        assert!(has_program());
        daemon.signal(Signal::KILL).unwrap();
        daemon.wait(SOON).unwrap();
        eventually(SOON, "no program on the interface", || when(!has_program(), "one"));
    }
}

#[test]
fn errors_say_what_the_interface_cannot_do_and_what_to_do() {
    let outside = Outside::on_wire("cannot", 1).unwrap();
    let (_directory, daemon) = start(&outside, "", &[]);
    let holder = format!("by process {} (ringscoped)", daemon.pid());
    let other = Outside::on_wire("cannot", 1).unwrap();
    for (wire, keys, arguments, expected) in [
        (outside.wire(), "", &[][..], "is in use"),
        (outside.wire(), "", &[][..], &holder),
        (other.wire(), ",zerocopy=on", &[][..], "has no zero copy for AF_XDP"),
        (other.wire(), "", &["--queue-pairs", "2"][..], "ethtool -L"),
        ("ringscope-none", "", &[][..], "no network interface"),
    ] {
        let directory = tempfile::tempdir().unwrap();
        let datapath = format!("af-xdp:ifname={wire}{keys}");
        let all = [&["--datapath", &datapath], arguments].concat();
        let error = Daemon::start(directory.path(), "xdp", &all).unwrap_err().to_string();
        assert!(error.contains(expected), "{keys} {arguments:?}: {error}");
    }
}

/// An interface that is removed with its peer.
struct Wire(String);

impl Drop for Wire {
    fn drop(&mut self) {
        let _ = Command::new("ip").args(["link", "delete", &self.0]).status();
    }
}

#[test]
fn a_far_end_that_is_frozen_shows_as_its_losses_and_holds_up_nobody() {
    const FRAMES: u64 = 20_000;
    let names = ["a", "b"].map(|end| format!("rvf{}{end}", std::process::id()));
    ip(&format!("link add {} type veth peer name {}", names[0], names[1]));
    let _wire = Wire(names[0].clone());
    for name in &names {
        quieten(name);
        ip(&format!("link set {name} up"));
    }
    let [(_near_dir, near), (_far_dir, far)] = names.map(|name| {
        let directory = tempfile::tempdir().unwrap();
        let datapath = format!("af-xdp:ifname={name}");
        let daemon = Daemon::start(directory.path(), "xdp", &["--datapath", &datapath]).unwrap();
        (directory, daemon)
    });
    let connect =
        |daemon: &Daemon| Guest::connect(daemon.socket(), GuestOptions::default()).unwrap();
    let (mut sender, mut receiver) = (connect(&near), connect(&far));
    let frame = lan::frame(lan::station(2), lan::station(1), 0, 60);

    far.hold().unwrap();
    let mut sent = 0;
    eventually(SOON, &format!("{FRAMES} frames to be taken"), || {
        while sent < FRAMES && sender.pair(0).send(&frame).unwrap() {
            sent += 1;
        }
        sender.pair(0).reap().unwrap();
        when(sent == FRAMES, sent)
    });
    far.signal(Signal::CONT).unwrap();

    let trace = far.reader().unwrap();
    let mut came = 0;
    let lost = || DropCause::ALL.iter().map(|cause| trace.drops(0, *cause)).sum::<u64>();
    eventually(SOON, &format!("{FRAMES} frames"), || {
        while let Some(received) = receiver.pair(0).receive().unwrap() {
            came += u64::from(received.bytes == frame);
        }
        when(came + lost() >= FRAMES, format!("{came} came, {} were lost", lost()))
    });
    assert_eq!(came + lost(), FRAMES);
    let ring_full = trace.drops(0, DropCause::RxRingFull) + trace.drops(0, DropCause::RxNoChunk);
    assert!(ring_full > FRAMES / 2, "{ring_full} were lost because nobody took them");
    let none: u64 = DropCause::ALL.iter().map(|it| near.reader().unwrap().drops(1, *it)).sum();
    assert_eq!(none, 0, "the sender's side carried all");
    // Each call sends until the ring is empty, which is no loss: it is counted, and not shown beside what may be one.
    let emptied = near.reader().unwrap().events(1, SocketEvent::TxRingEmpty);
    assert!(emptied > 0);
    let stats = Breakdown::read(&near.reader().unwrap().into(), "xdp", Window::Held);
    assert!(!table::to_table(&stats, None).contains("tx_ring_empty_descs"));
}
