//! Each variant that can have a User Mode Linux guest is built, counts the frames that pass, and leaves nothing, also if its
//! start was killed.

use ringscope_tests::qemu::Failure;
use ringscope_tests::variants::{Bench, Moment};

const PINGS: u64 = 20;
/// Pings of which times are compared, 20 ms apart.
const MEASURED: u64 = 50;
/// Least time that a message takes which a process reads, nanoseconds; measured: 28,000.
const MESSAGE_NS: u64 = 10_000;
/// Number of times that a comparison is made, because the host may be busy.
const RUNS: usize = 3;
/// What a variant says that cannot have such a guest.
const REFUSED: &str = "expected --guest qemu";
/// What a variant says that this host's kernel cannot have.
const MISSING: &str = "expected the kernel module";

/// Builds a variant, sends pings, and takes it down. Returns whether it can have such a guest on this host.
fn carries_pings(bench: &mut Bench, name: &str, options: &str) -> Result<bool, Failure> {
    let up = bench.up(name, options)?;
    let is_refused =
        !up.status.success() && (up.text.contains(REFUSED) || up.text.contains(MISSING));
    assert!(up.status.success() || is_refused, "{name}: {}", up.text);
    if !is_refused {
        let before = bench.counters()?;
        bench.ping(PINGS)?;
        let after = bench.counters()?;
        assert!(before.len() >= 2, "{name}: a place for each direction; found {before:?}");
        for (place, before) in before {
            let passed = after[&place] - before;
            assert!(passed >= PINGS, "{name}: {passed} of {PINGS} frames passed {place}");
        }
    }
    bench.down()?;
    bench.expect_nothing_left(&format!("{name} {options}"));
    Ok(!is_refused)
}

#[test]
fn each_variant_carries_pings_past_each_place_and_leaves_nothing() -> Result<(), Failure> {
    let mut bench = Bench::new()?;
    let mut carried = Vec::new();
    for name in bench.names()? {
        if carries_pings(&mut bench, &name, "")? {
            carried.push(name);
        }
    }
    for name in ["host-host", "af-xdp", "macvtap", "tap-bridge", "tap-ovs", "tap-xdp", "switch"] {
        assert!(carried.iter().any(|it| it == name), "{name} is not among {carried:?}");
    }
    Ok(())
}

/// Has the kernel's trace buffer take messages, or not.
fn switch_messages(bench: &mut Bench, on: u8) -> Result<(), Failure> {
    let file = "/sys/kernel/tracing/tracing_on";
    bench.run(&format!(
        "unshare --mount sh -c 'mount -t tracefs tracefs /sys/kernel/tracing && echo {on} >{file}'"
    ))
}

/// The message is written within the daemon's call that sends the frame.
#[test]
fn a_debug_message_in_the_xdp_program_shows_in_egress() -> Result<(), Failure> {
    let mut bench = Bench::new()?;
    let mut egress_ns = |printk: &str| -> Result<u64, Failure> {
        let up = bench.up("tap-xdp", &format!("--option printk={printk}"))?;
        assert!(up.status.success(), "{}", up.text);
        bench.ping(MEASURED)?;
        let median = bench.egress_ns()?;
        bench.down()?;
        bench.expect_nothing_left(&format!("tap-xdp with printk={printk}"));
        Ok(median)
    };
    let mut found = Vec::new();
    for _ in 0..RUNS {
        let (silent, read) = (egress_ns("off")?, egress_ns("read")?);
        found.push((silent, read));
        if read > silent + MESSAGE_NS {
            break;
        }
    }
    assert!(found.iter().any(|(silent, read)| *read > silent + MESSAGE_NS), "{found:?}");
    let wrong = bench.up("tap-xdp", "--option printk=maybe")?;
    assert!(!wrong.status.success());
    assert!(wrong.text.contains("expected off, on or read, found maybe"), "{}", wrong.text);
    bench.down()?;
    switch_messages(&mut bench, 0)?;
    let off = bench.up("tap-xdp", "--option printk=on");
    switch_messages(&mut bench, 1)?;
    let off = off?;
    assert!(!off.status.success() && off.text.contains("found tracing_on=0"), "{}", off.text);
    bench.down()?;
    bench.expect_nothing_left("a wrong option");
    Ok(())
}

#[test]
fn a_start_that_was_killed_at_any_command_leaves_nothing() -> Result<(), Failure> {
    let mut bench = Bench::new()?;
    for (name, step) in [("tap-xdp", 3), ("tap-ovs", 6)] {
        let mut killed = 0;
        for commands in (1..).step_by(step) {
            let moment = bench.up_killed(name, commands)?;
            bench.expect_nothing_left(&format!("{name}, killed at command {commands}"));
            if moment == Moment::Built {
                break;
            }
            killed += 1;
        }
        assert!(killed >= 3, "{name} was killed at {killed} commands");
    }
    Ok(())
}

#[test]
fn hosts_that_see_each_others_processes_end_only_their_own() -> Result<(), Failure> {
    // Directories of both have the same path.
    let (mut one, mut other) = (Bench::new()?, Bench::new()?);
    for bench in [&mut one, &mut other] {
        assert!(bench.up("host-host", "")?.status.success());
    }
    one.down()?;
    one.expect_nothing_left("host-host");
    other.ping(PINGS)?;
    other.at_talker("ringscope agent udp-ping 10.77.0.2:7007 --count 5 --warmup 0")?;
    other.down()?;
    other.expect_nothing_left("host-host");
    Ok(())
}

#[test]
fn a_directory_has_one_variant_at_a_time() -> Result<(), Failure> {
    let mut bench = Bench::new()?;
    assert!(bench.up("host-host", "")?.status.success());
    let second = bench.up("host-host", "")?;
    assert!(!second.status.success());
    assert!(second.text.contains("has a variant: take it down with"), "{}", second.text);
    // The first one is as it was.
    bench.ping(PINGS)?;
    bench.down()?;
    bench.expect_nothing_left("host-host");
    // A second time there is nothing to do.
    bench.down()?;
    // Its files are run as commands: in a directory of everybody's, anybody could write them.
    bench.run("rm -rf $DIR && mkdir -m 777 $DIR")?;
    let refused = bench.up("host-host", "")?;
    assert!(refused.text.contains("that nobody else can write to"), "{}", refused.text);
    assert!(bench.down().is_err(), "what is in it is not run");
    bench.run("rm -rf $DIR")
}
