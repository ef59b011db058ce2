//! AF_XDP on cards that this machine does not have: in a virtual machine with its files and another kernel
//! (`qemu-scripts/nested`). It is emulated, so nothing here is a measurement.
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
use ringscope_tests::daemon::Daemon;
use ringscope_tests::eventually::{eventually, when};
use ringscope_tests::packets;

/// Set in the virtual machine, where a test runs its other half.
const INSIDE: &str = "RINGSCOPE_NESTED";
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

/// The virtual machine with the cards, which runs this test's other half.
struct Machine(Child);

impl Machine {
    fn start(outside: &mut Outside, test: &str) -> Self {
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
        command.args(["env", &format!("{INSIDE}=1")]);
        if let Ok(directory) = env::var("RINGSCOPE_BIN_DIR") {
            command.arg(format!("RINGSCOPE_BIN_DIR={directory}"));
        }
        command.arg(env::current_exe().unwrap()).args(["--exact", test, "--nocapture"]);
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
fn every_flow_to_a_card_with_queues_arrives_whole() {
    if env::var_os(INSIDE).is_some() {
        return receive_every_flow();
    }
    let mut outside = Outside::new("nested").unwrap();
    let mut machine =
        Machine::start(&mut outside, "every_flow_to_a_card_with_queues_arrives_whole");
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

/// In the machine: every flow reaches the guest, whatever queue the card puts it into, with a complete checksum; also
/// from a queue that comes later.
fn receive_every_flow() {
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

fn run(program: &str, arguments: &[&str]) {
    let status = Command::new(program).args(arguments).status().unwrap();
    assert!(status.success(), "{program} {arguments:?}");
}
