//! A Linux guest in QEMU behind each peer: what people use in place of ringscoped carries the traffic that the lab sends,
//! past each place of the way, and leaves nothing on the host.

use ringscope_tests::qemu::Failure;
use ringscope_tests::variants::Bench;

const PROBES: u64 = 200;
/// What passt says if it is too old to have vhost-user.
const OLD_PASST: &str = "expected passt 2024_12_11 or newer";

/// Sends probes, each of which has to come back and to pass each place, then TCP both ways, each byte compared.
fn carries_traffic(bench: &mut Bench, name: &str) -> Result<(), Failure> {
    bench.ping(10)?;
    let before = bench.counters()?;
    // The guest may be emulated on a busy machine, so there is time between the probes.
    let probes = format!(
        "ringscope agent udp-ping 10.77.0.2:7007 --count {PROBES} --warmup 0 --interval-us 10000"
    );
    let printed = bench.at_talker(&probes)?;
    assert!(printed.contains(&format!("\"received\":{PROBES},\"lost\":0")), "{name}: {printed}");
    let after = bench.counters()?;
    assert!(before.len() >= 4, "{name}: two places, each with both directions; found {before:?}");
    for (place, before) in before {
        let passed = after[&place] - before;
        assert!(passed >= PROBES, "{name}: {passed} of {PROBES} probes passed {place}");
    }
    for direction in ["send", "receive"] {
        let line = format!("ringscope agent tcp-{direction} 10.77.0.2:7008 --bytes 4000000");
        bench.at_talker(&line)?;
    }
    Ok(())
}

/// Builds a variant with a guest in QEMU, uses it, and takes it down.
fn serves(name: &str) -> Result<(), Failure> {
    let mut bench = Bench::new()?;
    let up = bench.up(name, "--guest qemu")?;
    if name == "passt" && up.text.contains(OLD_PASST) {
        assert!(!up.status.success());
    } else {
        assert!(up.status.success(), "{name}: {}", up.text);
        carries_traffic(&mut bench, name)?;
    }
    bench.down()?;
    bench.expect_nothing_left(name);
    Ok(())
}

#[test]
fn open_vswitch_with_af_xdp_carries_traffic() -> Result<(), Failure> {
    serves("ovs-afxdp")
}

#[test]
fn open_vswitch_with_dpdk_carries_traffic() -> Result<(), Failure> {
    serves("ovs-dpdk")
}

#[test]
fn dpdk_s_vhost_library_carries_traffic() -> Result<(), Failure> {
    serves("dpdk-vhost")
}

#[test]
fn qemu_s_own_tap_carries_traffic() -> Result<(), Failure> {
    serves("qemu-tap")
}

#[test]
fn passt_carries_traffic_or_says_that_it_is_too_old() -> Result<(), Failure> {
    serves("passt")
}

#[test]
fn a_second_open_vswitch_is_refused() -> Result<(), Failure> {
    let mut bench = Bench::new()?;
    bench.run("ip tuntap add dev ovs-netdev mode tap")?;
    let up = bench.up("tap-ovs", "")?;
    assert!(!up.status.success());
    assert!(up.text.contains("found its interface ovs-netdev"), "{}", up.text);
    bench.down()?;
    // It belongs to somebody else.
    bench.run("ip link delete ovs-netdev")?;
    bench.expect_nothing_left("a refused Open vSwitch");
    Ok(())
}
