//! A macvtap: by its name, made and removed by the daemon, and handed in.

use std::fs;
use std::io;
use std::path::Path;
use std::process::Command;
use std::thread::sleep;
use std::time::Duration;

use burst_trace::DropCause;
use frontend::{Guest, GuestOptions};
use lab::Signal;
use ringscope_tests::cable::{Cable, address, ip};
use ringscope_tests::daemon::Daemon;
use ringscope_tests::eventually::{eventually, when};
use ringscope_tests::frames;
use ringscope_tests::pings::{self, Pinger};
use ringscope_tests::trace::Trace;

const SOON: Duration = Duration::from_secs(1);

#[test]
fn frames_go_both_ways_whatever_the_rings_are_like() {
    let directory = tempfile::tempdir().unwrap();
    let cable = Cable::new();
    let (name, mac) = cable.add_macvtap();
    let datapath = format!("macvtap:ifname={name}");
    for (options, poll) in frames::formats(&GuestOptions::default())
        .into_iter()
        .zip(["never", "adaptive", "always", "adaptive"])
    {
        let arguments = ["--datapath", &datapath, "--poll", poll];
        let mut daemon = Daemon::start(directory.path(), "mv", &arguments).unwrap();
        let mut guest = Guest::connect(daemon.socket(), options).unwrap();
        pings::exchange(&mut guest, mac, directory.path(), "mv");
        assert!(daemon.terminate(SOON).unwrap().success(), "{}", daemon.log());
        let text = mac.map(|byte| format!("{byte:02x}")).join(":");
        assert!(
            daemon.log().contains(&format!("accepts only frames to {text}")),
            "{}",
            daemon.log()
        );
    }
    assert_eq!(address(&name), Some(mac), "one that was there stays there");
}

#[test]
fn one_that_the_daemon_makes_has_the_guests_address_and_goes_with_it() {
    let directory = tempfile::tempdir().unwrap();
    let cable = Cable::new();
    let name = cable.free_name();
    for (mode, pairs) in [("bridge", "1"), ("private", "2"), ("vepa", "1"), ("passthru", "1")] {
        let datapath = format!("macvtap:ifname={name},over={},mode={mode}", cable.interface());
        // In mode passthru the address is that of the interface below.
        let below = address(cable.interface()).unwrap();
        let mac = if mode == "passthru" { below } else { [0x52, 0x54, 0, 0, 0, 9] };
        let arguments =
            ["--datapath", &datapath, "--queue-pairs", pairs, "--mac", "52:54:00:00:00:09"];
        let mut daemon = Daemon::start(directory.path(), "mv", &arguments).unwrap();
        assert_eq!(address(&name), Some(mac), "{mode}");
        // With one of its own the host would send reports and solicitations with the guest's address.
        let of_the_host = Command::new("ip").args(["-6", "address", "show", "dev", &name]).output();
        assert_eq!(String::from_utf8(of_the_host.unwrap().stdout).unwrap(), "", "{mode}");
        let mut guest = Guest::connect(daemon.socket(), GuestOptions::default()).unwrap();
        pings::exchange(&mut guest, mac, directory.path(), "mv");
        assert!(daemon.terminate(SOON).unwrap().success(), "{}", daemon.log());
        assert_eq!(address(&name), None, "{mode}: it is removed");
    }
    let left: Vec<_> = fs::read_dir("/dev").unwrap().map(|it| it.unwrap().file_name()).collect();
    assert!(!left.iter().any(|name| name.to_string_lossy().starts_with(".ringscoped")));
}

#[test]
fn a_macvtap_that_cannot_be_made_or_opened_says_why_and_leaves_nothing() {
    let directory = tempfile::tempdir().unwrap();
    let cable = Cable::new();
    let (veth, free) = (cable.interface(), cable.free_name());
    let refused = |datapath: &str| {
        let started = Daemon::start(directory.path(), "mv", &["--datapath", datapath]);
        started.map(drop).unwrap_err().to_string()
    };
    for (datapath, said) in [
        (format!("macvtap:ifname={free}"), format!("no network interface '{free}'; make it first")),
        (format!("macvtap:ifname={veth}"), "is a network interface but no macvtap".into()),
        (
            format!("macvtap:ifname={free},over=rcnone"),
            "no network interface 'rcnone' to put".into(),
        ),
        (format!("macvtap:ifname={veth},over=lo"), format!("'{veth}' is there already; remove it")),
    ] {
        let text = refused(&datapath);
        assert!(text.contains(&said), "{datapath}: {text}");
    }
    // Passthru must be alone.
    let (other, _) = cable.add_macvtap();
    let second = format!("rcs{}", std::process::id());
    let text = refused(&format!("macvtap:ifname={second},over={veth},mode=passthru"));
    assert!(text.contains("cannot be put over") && text.contains("passthru"), "{text}");
    assert_eq!(address(&second), None);
    assert!(address(&other).is_some());
}

#[test]
fn a_macvtap_left_by_a_killed_daemon_is_named() {
    let directory = tempfile::tempdir().unwrap();
    let cable = Cable::new();
    let name = cable.free_name();
    let datapath = format!("macvtap:ifname={name},over={}", cable.interface());
    let mut daemon = Daemon::start(directory.path(), "mv", &["--datapath", &datapath]).unwrap();
    daemon.signal(Signal::KILL).unwrap();
    daemon.wait(SOON).unwrap();
    let again = Daemon::start(directory.path(), "mv", &["--datapath", &datapath]);
    let text = again.map(drop).unwrap_err().to_string();
    assert!(text.contains(&format!("remove it: ip link del {name}")), "{text}");
    // As it is, it serves.
    let datapath = format!("macvtap:ifname={name}");
    let daemon = Daemon::start(directory.path(), "mv", &["--datapath", &datapath]).unwrap();
    let mut guest = Guest::connect(daemon.socket(), GuestOptions::default()).unwrap();
    pings::exchange(&mut guest, address(&name).unwrap(), directory.path(), "mv");
}

/// Opens a macvtap as management software does, making the node where nobody did.
fn open(name: &str, directory: &Path) -> io::Result<fs::File> {
    use rustix::fs::{CWD, FileType, Mode, makedev, mknodat};
    let index = fs::read_to_string(format!("/sys/class/net/{name}/ifindex"))?;
    let device = fs::read_to_string(format!("/sys/class/macvtap/tap{}/dev", index.trim()))?;
    let numbers: Vec<u32> = device.trim().split(':').map(|it| it.parse().unwrap()).collect();
    let node = directory.join("node");
    let device = makedev(numbers[0], numbers[1]);
    mknodat(CWD, &node, FileType::CharacterDevice, Mode::RUSR | Mode::WUSR, device)?;
    let file = fs::OpenOptions::new().read(true).write(true).open(&node);
    fs::remove_file(&node)?;
    file
}

#[test]
fn one_that_somebody_else_opened_is_used_as_it_is() {
    // Where nodes of devices can be opened.
    let directory = tempfile::tempdir_in("/dev/shm").unwrap();
    let cable = Cable::new();
    let (name, mac) = cable.add_macvtap();
    let Ok(file) = open(&name, directory.path()).or_else(|_| open(&name, Path::new("/dev"))) else {
        panic!("no place for a device node");
    };
    let arguments = ["--datapath", "macvtap:fd=9"];
    let mut daemon = Daemon::start_with(directory.path(), "mv", &arguments, file.into()).unwrap();
    let mut guest = Guest::connect(daemon.socket(), GuestOptions::default()).unwrap();
    pings::exchange(&mut guest, mac, directory.path(), "mv");
    assert!(daemon.terminate(SOON).unwrap().success(), "{}", daemon.log());
    assert!(address(&name).is_some());
}

#[test]
fn a_wrong_address_is_warned_of() {
    let directory = tempfile::tempdir().unwrap();
    let cable = Cable::new();
    let (name, _) = cable.add_macvtap();
    let datapath = format!("macvtap:ifname={name}");
    let arguments = ["--datapath", &datapath, "--mac", "52:54:00:00:00:09"];
    let daemon = Daemon::start(directory.path(), "mv", &arguments).unwrap();
    let log = daemon.log();
    assert!(log.contains("WARN") && log.contains("--mac is another one"), "{log}");
}

#[test]
fn one_with_another_name_is_served_on_and_what_to_do_is_said_once_when_it_is_moved() {
    let directory = tempfile::tempdir().unwrap();
    let cable = Cable::new();
    let (name, mac) = cable.add_macvtap();
    let arguments = ["--datapath", &format!("macvtap:ifname={name}")];
    let mut daemon = Daemon::start(directory.path(), "mv", &arguments).unwrap();
    let mut guest = Guest::connect(daemon.socket(), GuestOptions::default()).unwrap();
    Pinger::new(guest.pair(0), mac).ping_all(guest.pair(0), 20);
    let other = format!("{name}b");
    ip(&format!("link set {name} name {other}"));
    Pinger::new(guest.pair(0), mac).ping_all(guest.pair(0), 20);
    guest.disconnect();
    let mut guest = Guest::connect(daemon.socket(), GuestOptions::default()).unwrap();
    Pinger::new(guest.pair(0), mac).ping_all(guest.pair(0), 20);
    ip(&format!("link set {other} netns {}", cable.namespace()));
    let said = "is gone: frames from the guest are lost; restart ringscoped when it is there again";
    daemon.expect_log(said);
    for n in 0..10 {
        assert!(guest.pair(0).send(&frames::frame(n, 100)).unwrap());
        guest.pair(0).reap().unwrap();
    }
    assert_eq!(daemon.log().matches("is gone: ").count(), 1, "{}", daemon.log());
    assert!(daemon.is_alive(), "{}", daemon.log());
}

/// The kernel takes frames for a macvtap that is down or gone, and says nothing.
#[test]
fn down_or_gone_it_costs_frames_with_a_cause_and_no_cpu() {
    const LOST: u64 = 20;
    let directory = tempfile::tempdir().unwrap();
    for poll in ["never", "adaptive"] {
        let cable = Cable::new();
        let (name, mac) = cable.add_macvtap();
        let datapath = format!("macvtap:ifname={name}");
        let arguments = ["--datapath", &datapath, "--poll", poll];
        let mut daemon = Daemon::start(directory.path(), "mv", &arguments).unwrap();
        let mut guest = Guest::connect(daemon.socket(), GuestOptions::default()).unwrap();
        Pinger::new(guest.pair(0), mac).ping_all(guest.pair(0), 20);
        let trace = Trace::open(directory.path(), "mv");
        let mut lost = 0;
        let mut lose = |guest: &mut Guest| {
            for n in 0..LOST {
                let n = usize::try_from(n).unwrap();
                assert!(guest.pair(0).send(&frames::frame(n, 100)).unwrap());
            }
            lost += LOST;
            eventually(2 * SOON, &format!("{lost} frames lost, --poll {poll}"), || {
                let found = trace.drops(1, DropCause::TxLinkDown);
                when(found >= lost, found)
            });
            assert_eq!(trace.drops(1, DropCause::TxLinkDown), lost, "--poll {poll}");
        };
        for link in [name.as_str(), cable.interface()] {
            ip(&format!("link set {link} down"));
            sleep(Duration::from_millis(50));
            lose(&mut guest);
            ip(&format!("link set {link} up"));
            sleep(Duration::from_millis(50));
            // The other end has forgotten the guest's address.
            Pinger::new(guest.pair(0), mac).ping_all(guest.pair(0), 20);
        }
        ip(&format!("link del {name}"));
        sleep(Duration::from_millis(50));
        lose(&mut guest);
        let before = daemon.cpu_time();
        sleep(Duration::from_secs(1));
        assert!(daemon.cpu_time() - before <= Duration::from_millis(20), "--poll {poll}: it spins");
        let log = daemon.log();
        for said in ["is down", "carries frames again", "is gone"] {
            assert!(log.contains(said), "{log}");
        }
        assert!(daemon.is_alive(), "{log}");
        guest.stop_ring(0).unwrap();
        assert!(daemon.terminate(SOON).unwrap().success(), "{}", daemon.log());
    }
}
