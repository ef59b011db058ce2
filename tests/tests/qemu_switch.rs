//! Two Linux guests in QEMU on one switch: ping, and TCP both ways, each byte compared.

use std::path::Path;
use std::time::Duration;

use agent::TcpReport;
use burst_trace::DropCause;
use lab::guest::{Attachment, Guest, GuestOptions};
use ringscope_tests::daemon::Daemon;
use ringscope_tests::lan::guest_table;
use ringscope_tests::qemu::{Failure, image};
use ringscope_tests::trace::Trace;
use ringscope_tests::traffic::report_in;

const MIB: u64 = 1 << 20;
const BULK: Duration = Duration::from_secs(180);

/// Guest `n` as it attaches to its socket.
fn options(directory: &Path, n: usize) -> Result<GuestOptions, Failure> {
    let attachment = Attachment::Socket(directory.join(format!("vm{n}.sock")));
    let mut options = GuestOptions::new(attachment, directory.join(format!("guest{n}")));
    options.address = format!("{}/24", address(n));
    options.mac = Some(format!("52:54:00:77:00:{:02x}", 2 + n));
    options.image = Some(image()?.clone());
    Ok(options)
}

fn address(n: usize) -> String {
    format!("10.77.0.{}", 2 + n)
}

/// Both guests reach each other, and move so many MiB each way.
fn carry(
    keys: &str,
    one: fn(&mut GuestOptions),
    other: fn(&mut GuestOptions),
    mib: u64,
) -> Result<(), Failure> {
    let directory = tempfile::Builder::new().prefix("ringscope-test-").tempdir()?;
    let directory = directory.path();
    let table = |n| guest_table(directory, n, &format!("datapath = 'switch:lan'\n{keys}"));
    let config: String = (0..2).map(table).collect();
    let mut daemon = Daemon::start_with_config(directory, "vm0", &config)?;
    let [mut first, mut second] = [options(directory, 0)?, options(directory, 1)?];
    one(&mut first);
    other(&mut second);
    let (mut first, second) = (Guest::launch(first)?, Guest::launch(second)?);
    for size in [56, 1472, 8000, 65000] {
        first.check(&format!("ping -q -c 3 -i 0.01 -W 5 -s {size} {}", address(1)))?;
    }
    for order in ["tcp-send", "tcp-receive"] {
        let bytes = mib * MIB;
        let line = format!("ringscope agent {order} {}:7008 --compare --bytes {bytes}", address(1));
        let report: TcpReport = report_in(&first.check_for(&line, BULK)?)?;
        report.check()?;
        assert_eq!((report.received.bytes, report.received.equal_bytes), (bytes, Some(bytes)));
        eprintln!("{order} of {mib} MiB: {:.2} Gbit/s", report.bits_per_second / 1e9);
    }
    drop((first, second));
    let [first, second] = [0, 1].map(|n| Trace::open(directory, &format!("vm{n}")));
    for trace in [&first, &second] {
        let dropped = trace.drops(0, DropCause::RxSwitchFull);
        eprintln!("{} packets received, {dropped} lost for want of buffers", trace.packets(0));
        // A guest without offloads that its host lets wait loses whole segments: each is more frames than its ring has room for.
        assert!(dropped * 20 < trace.packets(0), "{dropped} frames found no buffers");
    }
    let status = daemon.terminate(Duration::from_secs(2))?;
    assert!(status.success(), "{}", daemon.log());
    Ok(())
}

#[test]
fn segments_cross_whole_between_guests_with_offloads() -> Result<(), Failure> {
    carry("", |_| {}, |guest| guest.packed = true, 1024)
}

#[test]
fn segments_are_cut_for_a_guest_without_offloads() -> Result<(), Failure> {
    let without = |guest: &mut GuestOptions| (guest.offloads, guest.mrg_rxbuf) = (false, false);
    carry("poll = 'never'", |guest| guest.packed = true, without, 64)
}
