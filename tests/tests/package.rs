//! The Debian package in a fresh system with systemd: installed, started, restarted, reloaded, upgraded, removed, purged.

use std::path::{Path, PathBuf};
use std::process::Command;
use std::time::Duration;

use frontend::{Guest, GuestOptions};
use ringscope_tests::booted::Booted;
use ringscope_tests::eventually::eventually;
use ringscope_tests::frames;

const SOON: Duration = Duration::from_secs(20);
const SOCKET: &str = "/run/ringscope/vm0.sock";
const CONFIG: &str = r#"[[guest]]
name = "vm0"
socket-path = "/run/ringscope/vm0.sock"
datapath = "tap:ifname=tap0"
"#;
/// Most of its exposure, in tenths, as systemd rates it.
const EXPOSURE_MAX: u32 = 20;

/// The package, built.
fn package() -> PathBuf {
    let script = Path::new(env!("CARGO_MANIFEST_DIR")).join("../backend/packaging/deb");
    let output = Command::new(script).output().unwrap();
    let printed = String::from_utf8_lossy(&output.stdout).into_owned();
    assert!(output.status.success(), "{printed}{}", String::from_utf8_lossy(&output.stderr));
    printed.lines().last().expect("the package's path").into()
}

fn main_process(system: &Booted) -> String {
    system.must("systemctl show -p MainPID --value ringscoped@vm0").unwrap()
}

fn send_one(system: &Booted) {
    let mut guest = eventually(SOON, "the guest's socket", || {
        Guest::connect(system.path(SOCKET), GuestOptions::default())
            .map_err(|error| error.to_string())
    });
    guest.pair(0).send(&frames::frame(1, 100)).unwrap();
    eventually(SOON, "the frame at the tap", || {
        let sent = system.must("cat /sys/class/net/tap0/statistics/rx_packets").unwrap();
        if sent.trim() == "0" { Err(sent) } else { Ok(()) }
    });
}

#[test]
#[ignore = "takes minutes: tests/long package"]
fn the_package_is_installed_started_upgraded_removed_and_purged() {
    let package = package();
    let system = Booted::new().unwrap();
    std::fs::copy(&package, system.path("/root/ringscope.deb")).unwrap();
    system.must("dpkg -i /root/ringscope.deb").unwrap();
    for page in ["ringscoped", "ringscope", "ringscope-report"] {
        system.must(&format!("man -P cat {page} | grep -q NAME")).unwrap();
    }
    assert_eq!(system.must("stat -c '%a %G' /etc/ringscope").unwrap().trim(), "750 ringscope");
    std::fs::write(system.path("/etc/ringscope/vm0.toml"), CONFIG).unwrap();
    system
        .must("chgrp ringscope /etc/ringscope/vm0.toml && chmod 640 /etc/ringscope/vm0.toml")
        .unwrap();
    system.must("ip tuntap add tap0 mode tap vnet_hdr && ip link set tap0 up").unwrap();

    // Started: it serves a guest, as another user than root, and little is exposed.
    system.must("systemctl enable --now ringscoped@vm0.socket ringscoped@vm0.service").unwrap();
    send_one(&system);
    let process = main_process(&system);
    let user = system.must(&format!("ps -o user= -p {process}")).unwrap();
    assert_eq!(user.trim(), "ringscope");
    let exposed =
        format!("systemd-analyze security --threshold={EXPOSURE_MAX} ringscoped@vm0.service");
    system.must(&exposed).unwrap();
    // The group may connect, whether systemd or the daemon made the socket.
    let mode = "stat -c '%a %G' /run/ringscope/vm0.sock";
    assert_eq!(system.must(mode).unwrap().trim(), "660 ringscope");
    system.must("systemctl stop ringscoped@vm0.socket ringscoped@vm0.service").unwrap();
    system.must("systemctl start ringscoped@vm0.service").unwrap();
    assert_eq!(system.must(mode).unwrap().trim(), "770 ringscope");
    system.must("systemctl stop ringscoped@vm0.service").unwrap();
    system.must("systemctl start ringscoped@vm0.socket ringscoped@vm0.service").unwrap();
    send_one(&system);
    let process = main_process(&system);
    // A member of the group can read the recorder; another user cannot.
    system.must("useradd -G ringscope member && useradd stranger").unwrap();
    system
        .must("setpriv --reuid=member --regid=member --init-groups ringscope stats --name vm0")
        .unwrap();
    let stranger =
        "! setpriv --reuid=stranger --regid=stranger --init-groups ringscope stats --name vm0";
    system.must(stranger).unwrap();

    // Killed: systemd starts it again, and its socket is there all the time.
    system.must(&format!("kill -KILL {process}")).unwrap();
    eventually(SOON, "another daemon", || {
        let now = main_process(&system);
        let state = system.run("systemctl is-active ringscoped@vm0").unwrap();
        if now != process && state.trim() == "active" { Ok(()) } else { Err(state) }
    });
    send_one(&system);

    // Its file is read again while it runs.
    let process = main_process(&system);
    std::fs::write(system.path("/etc/ringscope/vm0.toml"), format!("{CONFIG}limit-tx = '50MB'\n"))
        .unwrap();
    system.must("systemctl reload ringscoped@vm0").unwrap();
    eventually(SOON, "the limit", || {
        let said = system.must("journalctl -u ringscoped@vm0 -o cat").unwrap();
        if said.contains("vm0: limit-tx is 50MB,burst=10 now") { Ok(()) } else { Err(said) }
    });
    send_one(&system);

    // Upgraded: the daemon that runs goes on.
    let said = system.must("dpkg -i /root/ringscope.deb").unwrap();
    assert!(said.contains("ringscoped@vm0.service"), "{said}");
    assert_eq!(main_process(&system), process);
    system.must("systemctl restart ringscoped@vm0").unwrap();
    send_one(&system);

    system.must("dpkg -r ringscope").unwrap();
    assert_eq!(system.run("systemctl is-active ringscoped@vm0").unwrap().trim(), "inactive");
    system.must("test -e /etc/ringscope/vm0.toml").unwrap();
    system.must("dpkg -P ringscope").unwrap();
    for left in ["/etc/ringscope", "/run/ringscope", "/usr/bin/ringscope", "/usr/bin/ringscoped"] {
        system.must(&format!("! test -e {left}")).unwrap();
    }
}
