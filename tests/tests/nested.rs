//! AF_XDP with drivers that this machine may not have: in a virtual machine with its files and another kernel
//! (`qemu-scripts/nested`), where the tests that are ignored here run. It is emulated, so nothing here is a measurement.
//!
//! ```text
//! this machine                     the virtual machine
//!   namespace  eth0 === bridge - taps === eth0 (virtio_net), eth1 (igb) - ringscoped - guest in software
//! ```

use std::collections::BTreeSet;
use std::env;
use std::path::PathBuf;
use std::process::{Child, Command, ExitStatus, Stdio};
use std::time::Duration;

use frontend::{Frame, Guest, GuestOptions};
use lab::outside::Outside;
use ringscope_tests::daemon::{Daemon, program};
use ringscope_tests::eventually::{eventually, when};
use ringscope_tests::packets;
use ringscope_tests::pings::Pinger;

/// UDP flows to each card.
const FLOWS: u16 = 64;
const FIRST_PORT: u16 = 5000;
/// Receive queues of each card.
const QUEUES: u16 = 4;
/// An emulated machine is slow.
const PATIENCE: Duration = Duration::from_secs(60);

/// The cards: QEMU's model with its options, and the driver in the machine.
const CARDS: [(&str, &str); 2] =
    [("virtio-net-pci,mq=on,vectors=10,romfile=", "virtio_net"), ("igb,romfile=", "igb")];

fn address(card: usize) -> String {
    format!("10.77.0.{}", card + 2)
}

fn mac(card: usize) -> String {
    format!("52:54:00:00:00:{:02x}", card + 2)
}

/// The port that a UDP frame is sent to, if it is one.
fn port(frame: &Frame) -> Option<u16> {
    let is_udp = frame.bytes.len() > 42 && frame.bytes[12..14] == [8, 0] && frame.bytes[23] == 17;
    is_udp.then(|| u16::from_be_bytes([frame.bytes[36], frame.bytes[37]]))
}

/// Whether the checksum of a UDP frame over IPv4 is complete.
fn is_summed(frame: &Frame) -> bool {
    let len = usize::from(u16::from_be_bytes([frame.bytes[38], frame.bytes[39]]));
    let udp = &frame.bytes[34..34 + len];
    let pseudo = [&frame.bytes[26..34], &[0, 17], &frame.bytes[38..40]].concat();
    packets::checksum(&[&pseudo, udp].concat()) == [0, 0]
}

/// The virtual machine with the cards, which runs the other tests of this file.
struct Machine(Child);

impl Machine {
    fn start(outside: &mut Outside) -> Self {
        let script = PathBuf::from(env!("CARGO_MANIFEST_DIR")).join("../qemu-scripts/nested");
        let mut devices = String::new();
        for (n, (model, _)) in CARDS.iter().enumerate() {
            let (tap, mac) = (outside.add_tap(QUEUES).unwrap(), mac(n));
            devices += &format!(
                "-netdev tap,id=n{n},ifname={tap},script=no,downscript=no,queues={QUEUES} \
                 -device {model},netdev=n{n},mac={mac} "
            );
        }
        let mut command = Command::new(script);
        command.args(["--timeout", "240", "--append", "net.ifnames=0", "--qemu", &devices]);
        command.arg("env");
        if let Ok(directory) = env::var("RINGSCOPE_BIN_DIR") {
            command.arg(format!("RINGSCOPE_BIN_DIR={directory}"));
        }
        command.arg(env::current_exe().unwrap()).args(["--ignored", "--test-threads=1"]);
        Self(command.stdin(Stdio::null()).spawn().unwrap())
    }

    fn end(&mut self) -> Option<ExitStatus> {
        self.0.try_wait().unwrap()
    }
}

impl Drop for Machine {
    fn drop(&mut self) {
        // The script ends QEMU when it is asked to end.
        let pid = rustix::process::Pid::from_child(&self.0);
        let _ = rustix::process::kill_process(pid, rustix::process::Signal::TERM);
        let _ = self.0.wait();
    }
}

#[test]
fn under_another_kernel_frames_arrive_as_they_were_sent() {
    let mut outside = Outside::new("nested").unwrap();
    let mut machine = Machine::start(&mut outside);
    for card in 0..CARDS.len() {
        let (address, mac) = (address(card), mac(card));
        outside.exec(&format!("ip neigh replace {address} lladdr {mac} dev eth0")).unwrap();
    }
    let addresses: Vec<_> = (0..CARDS.len()).map(address).collect();
    let last = FIRST_PORT + FLOWS - 1;
    let flows = format!(
        "for a in {}; do for p in $(seq {FIRST_PORT} {last}); do echo x >/dev/udp/$a/$p; done; done",
        addresses.join(" ")
    );
    let status = eventually(Duration::from_secs(300), "the machine's end", || {
        outside.exec(&format!("bash -c '{flows}'")).unwrap();
        machine.end().ok_or("it runs")
    });
    assert!(status.success(), "{status}");
}

/// Whatever queue the card puts a flow into, it reaches the guest with a complete checksum; also from a queue that comes
/// later.
#[test]
#[ignore = "runs in the virtual machine"]
fn every_flow_to_a_card_with_queues_arrives_whole() {
    for (card, (_, driver)) in CARDS.iter().enumerate() {
        let name = format!("eth{card}");
        run("modprobe", &[driver]);
        eventually(PATIENCE, &name, || {
            let is_there = PathBuf::from(format!("/sys/class/net/{name}")).exists();
            when(is_there, "not there")
        });
        run("ip", &["link", "set", &name, "promisc", "on", "up"]);
        for mode in ["native", "generic"] {
            println!("{driver}, {mode}");
            // virtio_net keeps its queues as they are as long as a native program is attached.
            let keeps_queues = *driver == "virtio_net" && mode == "native";
            if !keeps_queues {
                run("ethtool", &["-L", &name, "combined", "1"]);
            }
            let directory = tempfile::tempdir().unwrap();
            let datapath = format!("af-xdp:ifname={name},mode={mode}");
            let daemon =
                Daemon::start(directory.path(), "nested", &["--datapath", &datapath]).unwrap();
            let mut guest = Guest::connect(daemon.socket(), GuestOptions::default()).unwrap();
            if !keeps_queues {
                run("ethtool", &["-L", &name, "combined", "2"]);
                daemon.expect_log("2 receive queues now");
            }
            let mut came = BTreeSet::new();
            eventually(PATIENCE, &format!("{FLOWS} flows on {driver}, {mode}"), || {
                while let Some(frame) = guest.pair(0).receive().unwrap() {
                    if let Some(port) = port(&frame) {
                        assert!(is_summed(&frame), "{driver}, {mode}, port {port}");
                        came.insert(port);
                    }
                }
                when(came.len() == usize::from(FLOWS), format!("{came:?}\n{}", daemon.log()))
            });
        }
    }
}

/// An SCTP server that gives back what it gets, and a client that sends and compares.
const SCTP_SERVER: &str = "
import socket
s = socket.socket(socket.AF_INET, socket.SOCK_STREAM, 132)
s.bind(('0.0.0.0', 7009)); s.listen(1)
while True:
    c, _ = s.accept()
    while d := c.recv(65536): c.sendall(d)
";
const SCTP_CLIENT: &str = "
import socket
s = socket.socket(socket.AF_INET, socket.SOCK_STREAM, 132)
s.settimeout(30)
s.connect(('10.77.0.2', 7009))
for n in range(8):
    d = bytes([n]) * (n * 170 + 1); s.sendall(d)
    back = b''
    while len(back) < len(d): back += s.recv(65536)
    assert back == d, n
";

/// Two network stacks, one behind a veth with AF_XDP, the other behind a tap. Two guests in software carry the frames from
/// one to the other. What a kernel leaves unfinished for a device must be whole where the other kernel checks it.
///
/// ```text
/// namespace far: eth0 === wire - ringscoped - guest ~ guest - ringscoped - tap0: the root namespace
/// ```
#[test]
#[ignore = "runs in the virtual machine"]
fn a_vxlan_and_an_sctp_association_pass() {
    for module in ["vxlan", "sctp", "veth", "tun"] {
        run("modprobe", &[module]);
    }
    let links = "ip netns add far
        ip link add wire type veth peer name eth0 netns far
        ip link set wire up
        ip tuntap add dev tap0 mode tap vnet_hdr
        join() {
            ip -n $1 link set $2 up
            ip -n $1 address add 10.77.0.$3/24 dev $2
            ip -n $1 link add vx type vxlan id 5 remote 10.77.0.$((3 - $3)) dstport 4789 dev $2
            ip -n $1 address add 10.9.0.$3/24 dev vx
            ip -n $1 link set vx up
        }
        touch /run/netns/root
        mount --bind /proc/self/ns/net /run/netns/root
        join far eth0 1
        join root tap0 2";
    run("sh", &["-ec", links]);
    let ringscope = program("ringscope").unwrap();
    let _servers = [
        Server::start(Command::new(&ringscope).args(["agent", "udp-echo"])),
        Server::start(Command::new(&ringscope).args(["agent", "tcp-serve"])),
        Server::start(Command::new("python3").args(["-c", SCTP_SERVER])),
    ];
    let directory = tempfile::tempdir().unwrap();
    let near = Daemon::start(directory.path(), "tap", &["--datapath", "tap:ifname=tap0"]).unwrap();
    for mode in ["native", "generic"] {
        let datapath = format!("af-xdp:ifname=wire,mode={mode}");
        let far = Daemon::start(directory.path(), "xdp", &["--datapath", &datapath]).unwrap();
        let options = GuestOptions::default().offloads();
        for options in [GuestOptions::default(), options] {
            let mut near = Guest::connect(near.socket(), options.clone()).unwrap();
            let mut far = Guest::connect(far.socket(), options).unwrap();
            let agent = [ringscope.to_str().unwrap(), "agent"];
            // The first question for an address may come before the rings have started; the kernel asks again a second
            // later.
            let answered = format!(
                "until {} agent udp-ping 10.9.0.2:7007 --count 1 --warmup 0 --wait-ms 200 2>&1; do :; done",
                agent[0]
            );
            for client in [
                vec!["sh", "-c", &answered],
                vec![agent[0], agent[1], "udp-ping", "10.9.0.2:7007", "--count", "50"],
                vec![agent[0], agent[1], "tcp-send", "10.9.0.2:7008", "--bytes", "300000"],
                vec![agent[0], agent[1], "tcp-receive", "10.9.0.2:7008", "--bytes", "300000"],
                vec!["python3", "-c", SCTP_CLIENT],
            ] {
                let mut command = Command::new("ip");
                command.args(["netns", "exec", "far"]).args(&client);
                let mut running = command.stdout(Stdio::null()).spawn().unwrap();
                let status = eventually(PATIENCE, &format!("{client:?}, {mode}"), || {
                    carry(&mut near, &mut far);
                    carry(&mut far, &mut near);
                    running.try_wait().unwrap().ok_or("it runs")
                });
                assert!(status.success(), "{client:?}, {mode}");
            }
        }
    }
}

/// Interfaces over another one, with a guest that has their address. A socket on a bond gets the frames of its members in
/// generic mode, which runs the program again for the bond (`__netif_receive_skb_core` of `net/core/dev.c`), and none in
/// native mode.
///
/// ```text
/// namespace: eth0 === w - over - ringscoped - guest
/// ```
#[test]
#[ignore = "runs in the virtual machine"]
fn interfaces_over_another_one_are_served_or_refused() {
    for module in ["veth", "bonding", "bridge", "macvlan", "8021q"] {
        run("modprobe", &[module]);
    }
    for (kind, make) in [
        (
            "bond",
            "ip link add over numrxqueues 1 type bond mode active-backup; ip link set w down master over",
        ),
        ("bridge", "ip link add over type bridge; ip link set w master over"),
        ("macvlan", "ip link add link w name over type macvlan mode bridge"),
        (
            "vlan",
            "ip link add link w name over type vlan id 5; ip -n side address flush dev eth0
            ip -n side link add link eth0 name five type vlan id 5
            ip -n side address add 10.77.0.1/24 dev five; ip -n side link set five up",
        ),
    ] {
        println!("{kind}");
        let links = format!(
            "ip netns add side; ip link add w type veth peer name eth0 netns side
            ip -n side address add 10.77.0.1/24 dev eth0; ip -n side link set eth0 up
            ip link set w up; {make}; ip link set w up; ip link set over up"
        );
        run("sh", &["-ec", &links]);
        let directory = tempfile::tempdir().unwrap();
        if kind == "bond" {
            let native = ["--datapath", "af-xdp:ifname=over"];
            let refused = Daemon::start(directory.path(), "bond", &native).map(drop).unwrap_err();
            assert!(refused.to_string().contains("take one of its members (w)"), "{refused}");
        }
        let generic = ["--datapath", "af-xdp:ifname=over,mode=generic"];
        let daemon = Daemon::start(directory.path(), kind, &generic).unwrap();
        let mut guest = Guest::connect(daemon.socket(), GuestOptions::default()).unwrap();
        let address = std::fs::read_to_string("/sys/class/net/over/address").unwrap();
        let byte = |text| u8::from_str_radix(text, 16).unwrap();
        let mac: Vec<_> = address.trim().split(':').map(byte).collect();
        Pinger::new(guest.pair(0), mac.try_into().unwrap()).ping_all(guest.pair(0), 20);
        drop(daemon);
        run("sh", &["-ec", "ip link delete over; ip link delete w; ip netns delete side"]);
    }
}

/// Gives one guest's frames, as they are, to the other one.
fn carry(from: &mut Guest, to: &mut Guest) {
    while let Some(frame) = from.pair(0).receive().unwrap() {
        to.pair(0).reap().unwrap();
        assert!(to.pair(0).send_chain(&frame.header, &[&frame.bytes]).unwrap());
    }
}

/// A program that runs until this is dropped.
struct Server(Child);

impl Server {
    fn start(command: &mut Command) -> Self {
        Self(command.stdout(Stdio::null()).spawn().unwrap())
    }
}

impl Drop for Server {
    fn drop(&mut self) {
        let _ = self.0.kill();
        let _ = self.0.wait();
    }
}

fn run(program: &str, arguments: &[&str]) {
    let status = Command::new(program).args(arguments).status().unwrap();
    assert!(status.success(), "{program} {arguments:?}");
}
