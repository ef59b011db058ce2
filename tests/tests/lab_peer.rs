//! `ringscope lab --peer`: the talker is a far host, reached by ssh. Here that is a namespace with an ssh server and the other
//! end of a wire. Nothing is left on either side, whatever ends the run.

use std::fs;
use std::path::Path;
use std::process::{Command, Stdio};
use std::time::Duration;

use ringscope_tests::eventually::{eventually, when};
use ringscope_tests::qemu::{Failure, SOON};
use ringscope_tests::variants::Bench;
use serde_json::Value;

/// The far host: a wire from eth0 to its wire0, and another one to its ssh server. ssh's configuration knows it as `far`; as
/// `stranger`, with a key that it does not accept; as `other`, where another user logs in; `nobody` is where no host is.
const FAR: &str = r#"
set -e
. qemu-scripts/common.sh
sshd=$(find_sshd) || die "expected sshd, found none: run qemu-scripts/setup --tests"
ip netns add far
ip -n far link set lo up
ip link set far0 netns far name wire0
ip link set far1 netns far name manage0
ip address add 10.99.0.1/24 dev eth1
ip -n far address add 10.99.0.2/24 dev manage0
ip -n far link set manage0 up
mkdir -p /tmp/ssh /run/sshd
cd /tmp/ssh
for key in host user wrong; do ssh-keygen -q -t ed25519 -N '' -f $key; done
cp user.pub authorized
echo "10.99.0.2 $(cut -d' ' -f1,2 host.pub)" >known
cat >server <<END
ListenAddress 10.99.0.2
HostKey /tmp/ssh/host
AuthorizedKeysFile /tmp/ssh/authorized
PidFile none
StrictModes no
UsePAM no
PasswordAuthentication no
KbdInteractiveAuthentication no
PermitRootLogin yes
END
libexec=${sshd%/sbin/sshd}/lib/openssh
[ ! -x "$libexec/sshd-session" ] ||
    printf '%s\n' "SshdSessionPath $libexec/sshd-session" "SshdAuthPath $libexec/sshd-auth" >>server
cat >config <<END
Host far stranger other
    HostName 10.99.0.2
Host nobody
    HostName 10.99.0.3
Host stranger
    IdentityFile /tmp/ssh/wrong
Host other
    User nobody
Host far other
    IdentityFile /tmp/ssh/user
Host *
    IdentitiesOnly yes
    IdentityAgent none
    UserKnownHostsFile /tmp/ssh/known
    GlobalKnownHostsFile /dev/null
END
mount --bind config /etc/ssh/ssh_config
# The user that a part of the server runs as, and a shell for the other user.
sed 's|^\(nobody:.*:\)[^:]*$|\1/bin/sh|' /etc/passwd >passwd
grep -q ^sshd: passwd || echo 'sshd:x:65533:65534::/run/sshd:/usr/sbin/nologin' >>passwd
mount --bind passwd /etc/passwd
chmod 755 /tmp/ssh
"#;
const SERVER: &str =
    "exec ip netns exec far \"$(. qemu-scripts/common.sh; find_sshd)\" -D -e -f /tmp/ssh/server";
/// Everything that a run may leave on the far host, and on this host's end of the wire. A far process is seen with those of
/// this host.
const LEFT: &str = "ls -d /tmp/ringscope.* 2>/dev/null
    ip -n far -o address show to 10.77.0.0/16; ip -n far -o link show dev wire0 | grep -w UP
    ip -o link show dev eth0 | grep -w -e PROMISC -e master -e xdp; ip -o link show dev eth0 | grep -v -w UP; true";
/// Short, and with guests that boot in seconds.
const SHORT: &str = "ringscope lab --quick --guest uml --count 200 --loads none";
/// Still measures when it is ended from outside, on however slow a machine.
const LONG: &str = "ringscope lab --quick --guest uml --count 20000 --loads none";
const PEER: &str = "--peer ssh:far --iface eth0 --peer-iface wire0";

fn bench() -> Result<Bench, Failure> {
    let mut bench = Bench::new()?;
    bench.run(FAR)?;
    bench.start(SERVER, "Server listening")?;
    bench.begin_here()?;
    Ok(bench)
}

/// Runs a command that has to end with this status, and returns what it prints.
fn said(bench: &mut Bench, status: i32, command: &str) -> Result<String, Failure> {
    // No wait may be endless.
    let setting =
        "await() { timeout 60 sh -c \"until grep -q '$1' /tmp/said; do sleep 0.02; done\"; }";
    let ended = bench.ended(&format!("{setting}\n{command}"))?;
    assert_eq!(ended.status.code(), Some(status), "{command}: {}", ended.text);
    Ok(ended.text)
}

fn expect_nothing_left(bench: &mut Bench, after: &str) -> Result<(), Failure> {
    bench.expect_nothing_left(after);
    assert_eq!(said(bench, 0, LEFT)?, "", "left after {after}");
    Ok(())
}

/// Measures these variants, and checks each row of the table.
fn expect_rows(bench: &mut Bench, variants: [&str; 2]) -> Result<(), Failure> {
    let names = variants.join(",");
    let command = format!(
        "rm -rf /tmp/kept; {SHORT} {PEER} --variants {names} --out /tmp/kept --json 2>/tmp/said || cat /tmp/said"
    );
    let printed = said(bench, 0, &command)?;
    expect_nothing_left(bench, &names)?;
    let results: Value =
        serde_json::from_str(&printed).map_err(|error| format!("{error}: {printed}"))?;
    let rows = results["rows"].as_array().expect("rows");
    let found: Vec<_> = rows.iter().filter_map(|row| row["variant"].as_str()).collect();
    assert_eq!(found, variants, "{printed}");
    for row in rows {
        assert_eq!(row["lost"], 0, "{row}");
        // Each host has a clock of its own, as far as the lab knows.
        assert!(row["to_responder"].is_null() && row["to_talker"].is_null(), "{row}");
        let composition = &row["composition"];
        let mean = composition["round_trip_ns"].as_f64().expect("a mean");
        let shares = composition["shares"].as_array().expect("shares").iter();
        let sum: f64 = shares.clone().filter_map(|share| share["mean_ns"].as_f64()).sum();
        assert!((sum - mean).abs() < 1.0, "{sum} ns is not the mean, {mean} ns: {row}");
        let is_recorded = shares.clone().any(|share| share["tier"] == "D");
        assert_eq!(is_recorded, row["variant"] != "host-host", "{row}");
    }
    assert_eq!(results["peer"]["host"], "ssh:far", "{printed}");
    Ok(())
}

#[test]
fn the_talker_is_a_far_host_in_variants_with_a_wire() -> Result<(), Failure> {
    let mut bench = bench()?;
    expect_rows(&mut bench, ["host-host", "tap-bridge"])?;
    expect_rows(&mut bench, ["af-xdp", "tap-xdp"])?;
    let table = said(&mut bench, 0, "ringscope lab report /tmp/kept")?;
    for part in
        ["The talker is ssh:far, on its wire0; this host is on eth0", "No relation is known"]
    {
        assert!(table.contains(part), "{part} is not in {table}");
    }
    Ok(())
}

#[test]
fn a_signal_ends_it_on_both_hosts() -> Result<(), Failure> {
    let mut bench = bench()?;
    let text = said(
        &mut bench,
        0,
        &format!(
            "set -m
             {LONG} {PEER} --variants host-host >/tmp/table 2>/tmp/said &
             await measuring
             sleep 0.5; ip -n far -o address show to 10.77.0.1; ls -d /tmp/ringscope.*
             kill -INT %1; wait %1; echo \"status $?\"; cat /tmp/table /tmp/said"
        ),
    )?;
    assert!(text.contains("10.77.0.1/24") && text.contains("/tmp/ringscope."), "{text}");
    assert!(text.contains("status 130") && text.contains("everything is taken down"), "{text}");
    expect_nothing_left(&mut bench, "a signal")
}

/// Nothing asks the far host to clean up: it sees only that the connection has ended.
#[test]
fn the_far_host_cleans_up_when_the_connection_ends() -> Result<(), Failure> {
    let mut bench = bench()?;
    let text = said(
        &mut bench,
        0,
        &format!(
            "{LONG} {PEER} --variants host-host >/dev/null 2>/tmp/said &
             await measuring
             sleep 0.5; kill -KILL $!; wait $! 2>/dev/null
             kill -KILL $(awk '$1 == \"end\" {{ print $2; exit }}' /run/ringscope/lab/host-host/undo)
             timeout 60 sh -c 'while ls -d /tmp/ringscope.* || ip -n far -o address show to 10.77.0.1 | grep .
                 do sleep 0.1; done' >/dev/null 2>&1
             ls -d /tmp/ringscope.* 2>&1
             ip netns pids far | xargs -r ps -o args= -p
             {SHORT} {PEER} --variants host-host 2>&1"
        ),
    )?;
    assert!(text.contains("cannot access") && !text.contains("udp-ping"), "{text}");
    assert!(text.contains("taken down what an earlier lab has left: host-host"), "{text}");
    expect_nothing_left(&mut bench, "a kill and the next start")
}

/// Programs of the agent's directory are started without a pause while everything is undone there.
#[test]
fn nothing_that_starts_meanwhile_outlives_the_far_hosts_cleaning() {
    let root = Path::new(env!("CARGO_MANIFEST_DIR")).join("..");
    for _ in 0..5 {
        let directory = tempfile::tempdir().unwrap();
        let at = |name: &str| directory.path().join(name);
        fs::copy(root.join("qemu-scripts/variants/far.sh"), at("far.sh")).unwrap();
        fs::copy("/bin/sleep", at("agent")).unwrap();
        let line = "n=0; while [ -e \"$1\" ] && [ $n -lt 2000 ]; do \"$1\" 60 & n=$((n + 1)); done 2>/dev/null";
        let mut starter = Command::new("/bin/sh");
        starter.args(["-c", line, "sh"]).arg(at("agent")).stderr(Stdio::null());
        let mut starter = starter.spawn().unwrap();
        std::thread::sleep(Duration::from_millis(30));
        let cleaned = Command::new("/bin/sh").arg(at("far.sh")).arg("clean").status().unwrap();
        assert!(cleaned.success());
        let _ = starter.kill();
        starter.wait().unwrap();
        let left = || {
            let exe = |entry: fs::DirEntry| fs::read_link(entry.path().join("exe")).ok();
            let all = fs::read_dir("/proc").unwrap().flatten().filter_map(exe);
            all.filter(|exe| exe.starts_with(directory.path())).count()
        };
        eventually(SOON, "the end of what was started", || {
            let left = left();
            when(left == 0, format!("{left} go on"))
        });
    }
}

/// The flags are refused with a sentence, before anything is built.
fn expect_refusal(
    bench: &mut Bench,
    before: &str,
    flags: &str,
    sentence: &str,
) -> Result<(), Failure> {
    let text = said(bench, 1, &format!("{before}\n{SHORT} --variants host-host {flags} 2>&1"))?;
    assert!(text.contains(sentence), "{flags}: {sentence} is not in {text}");
    assert!(!text.contains("building"), "{flags}: nothing is built: {text}");
    expect_nothing_left(bench, flags)
}

#[test]
fn a_far_host_that_cannot_be_used_is_refused() -> Result<(), Failure> {
    let mut bench = bench()?;
    for (host, sentence) in [
        (
            "nobody",
            "expected ssh to log in at nobody without a question, found: ssh: connect to host",
        ),
        ("stranger", "Permission denied"),
        (
            "other",
            "expected ssh to log in as root, who may give an interface an address, found user nobody",
        ),
        ("no-such-name.invalid", "Could not resolve hostname"),
        ("a b", "--peer: expected ssh:[USER@]HOST[:PORT], found ssh:a b"),
        ("-oProxyCommand=true", "--peer: expected ssh:[USER@]HOST[:PORT]"),
    ] {
        let flags = format!("--peer 'ssh:{host}' --iface eth0 --peer-iface wire0");
        expect_refusal(&mut bench, "", &flags, sentence)?;
    }
    let text = said(&mut bench, 2, &format!("{SHORT} --peer ssh:far 2>&1"))?;
    assert!(text.contains("--iface <NIC>") && text.contains("--peer-iface <NIC>"), "{text}");
    Ok(())
}

#[test]
fn an_interface_in_use_is_refused() -> Result<(), Failure> {
    let mut bench = bench()?;
    let flags = |iface: &str, peer_iface: &str| {
        format!("--peer ssh:far --iface {iface} --peer-iface {peer_iface}")
    };
    for (flags, sentence) in [
        (flags("eth1", "wire0"), "without addresses, found 10.99.0.1/24 on eth1"),
        (flags("eth9", "wire0"), "expected an interface of this host, found eth9"),
        (flags("lo", "wire0"), "expected an Ethernet interface, found lo"),
        (flags("eth0", "eth9"), "expected an interface of the far host, found eth9"),
    ] {
        expect_refusal(&mut bench, "", &flags, sentence)?;
    }
    for (before, after, sentence) in [
        (
            "ip route add 192.0.2.0/24 dev eth0",
            "ip route delete 192.0.2.0/24",
            "without routes, found routes to 192.0.2.0/24 by eth0",
        ),
        (
            "ip link add upper link eth0 type macvlan",
            "ip link delete upper",
            "another one is built on eth0 (upper_upper",
        ),
        (
            "ip -n far address add 10.77.0.9/24 dev manage0",
            "ip -n far address delete 10.77.0.9/24 dev manage0",
            "expected no address of 10.77.0.0/24, which the lab uses, found",
        ),
    ] {
        let before = format!("{before}; trap '{after}' EXIT");
        expect_refusal(&mut bench, &before, &flags("eth0", "wire0"), sentence)?;
    }
    // What has no wire is named, and the others go on.
    let text = said(&mut bench, 1, &format!("{SHORT} {PEER} --variants switch,host-host 2>&1"))?;
    assert!(text.contains("expected a variant with a wire, for --peer, found switch"), "{text}");
    assert!(text.contains("host-host  none"), "{text}");
    expect_nothing_left(&mut bench, "a variant without a wire")
}
