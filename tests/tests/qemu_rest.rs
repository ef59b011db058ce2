//! A guest that says nothing costs nothing: no wake-up, no time, and little memory.

use std::fs;
use std::path::Path;
use std::thread::sleep;
use std::time::Duration;

use lab::outside::Outside;
use ringscope_tests::qemu::{Failure, GUEST, Place};

const MIB: u64 = 1 << 20;

/// What a process has used of the CPUs so far.
#[derive(Debug, PartialEq, Eq)]
struct Used {
    /// User and system time, in clock ticks.
    ticks: u64,
    /// Context switches of all its threads: each wake-up is one.
    switches: u64,
}

impl Used {
    fn of(pid: u32) -> Result<Self, Failure> {
        let proc = Path::new("/proc").join(pid.to_string());
        // Behind the program's name: state is field 3, utime and stime are 14 and 15 (proc_pid_stat(5)).
        let stat = fs::read_to_string(proc.join("stat"))?;
        let fields = stat.rsplit_once(") ").ok_or("no program name in stat")?.1;
        let times = fields.split(' ').skip(11).take(2).map(str::parse::<u64>);
        let ticks = times.sum::<Result<u64, std::num::ParseIntError>>()?;
        let mut switches = 0;
        for thread in fs::read_dir(proc.join("task"))? {
            let status = fs::read_to_string(thread?.path().join("status"))?;
            for line in status.lines().filter(|line| line.contains("ctxt_switches")) {
                switches += line.split_whitespace().last().unwrap_or("").parse::<u64>()?;
            }
        }
        Ok(Self { ticks, switches })
    }
}

/// Resident bytes that exist because this process runs: what it has written to, and the recorder. Not the guest's
/// memory (a memory file of QEMU's), and not unchanged pages of programs and libraries: those are shared between all
/// daemons, the kernel can drop them, and how many it maps beside each that is used depends on its page cache.
fn own_memory(pid: u32) -> Result<u64, Failure> {
    let smaps = fs::read_to_string(format!("/proc/{pid}/smaps"))?;
    let (mut own, mut guests, mut mapping) = (0, 0, Mapping::Private);
    for line in smaps.lines() {
        let mut words = line.split_whitespace();
        match (words.next().unwrap_or(""), mapping) {
            ("Rss:", Mapping::Guest) => guests += kib(words.next())?,
            ("Rss:", Mapping::Shared) | ("Anonymous:", Mapping::Private) => {
                own += kib(words.next())?
            }
            // A mapping's first line: addresses, permissions (s: shared, p: private), offset, device, inode, path.
            (word, _) if !word.ends_with(':') => {
                mapping = match words.next() {
                    _ if line.contains("/memfd:") => Mapping::Guest,
                    Some(permissions) if permissions.ends_with('s') => Mapping::Shared,
                    _ => Mapping::Private,
                };
            }
            _ => {}
        }
    }
    if guests == 0 { Err(format!("no guest memory in {smaps}").into()) } else { Ok(own * 1024) }
}

#[derive(Clone, Copy)]
enum Mapping {
    Guest,
    Shared,
    Private,
}

fn kib(word: Option<&str>) -> Result<u64, Failure> {
    Ok(word.ok_or("expected a number of KiB, found nothing")?.parse()?)
}

/// Floods the guest until every place in the recorder was written to.
fn fill_recorder(place: &Place) -> Result<(), Failure> {
    let reader = place.reader()?;
    let bursts = || (0..2).map(|ring| reader.totals(ring).bursts).sum::<u64>();
    for _ in 0..20 {
        if bursts() > reader.capacity() as u64 {
            return Ok(());
        }
        place.outside.exec(&format!("ping -q -f -c 10000 {GUEST}"))?;
    }
    Err(format!("expected a full recorder, found {} bursts", bursts()).into())
}

/// Neither end asks for the other's Ethernet address again.
fn fix_neighbours(place: &mut Place) -> Result<(), Failure> {
    let link = place.outside.exec("cat /sys/class/net/eth0/address")?;
    let guest = place.guest().check("cat /sys/class/net/eth0/address")?;
    place.outside.exec(&format!("ip neigh replace {GUEST} lladdr {} dev eth0", guest.trim()))?;
    place.guest().check(&format!("arp -s {} {}", Outside::ADDRESS, link.trim()))?;
    Ok(())
}

fn rest(poll: &str) -> Result<(), Failure> {
    let mut place = Place::new(1)?;
    place.spawn(&["--poll", poll])?;
    place.attach(place.options()?)?;
    fill_recorder(&place)?;
    fix_neighbours(&mut place)?;

    let pid = place.daemon().pid();
    // Three seconds in which the guest or the outside host had something to say are not a rest.
    let (before, after) = loop_until_quiet(&place, pid)?;
    assert_eq!(before, after);

    let own = own_memory(pid)?;
    eprintln!("{poll}: {} KiB of its own", own / 1024);
    assert!(own < 6 * MIB, "{own} bytes");
    Ok(())
}

fn loop_until_quiet(place: &Place, pid: u32) -> Result<(Used, Used), Failure> {
    for _ in 0..5 {
        sleep(Duration::from_millis(500));
        let packets = place.packets()?;
        let before = Used::of(pid)?;
        sleep(Duration::from_secs(3));
        let after = Used::of(pid)?;
        if place.packets()? == packets {
            return Ok((before, after));
        }
    }
    Err("expected 3 seconds without packets, found none".into())
}

#[test]
fn a_daemon_that_never_polls_is_at_rest() -> Result<(), Failure> {
    rest("never")
}

#[test]
fn a_daemon_that_polls_adaptively_is_at_rest() -> Result<(), Failure> {
    rest("adaptive")
}
