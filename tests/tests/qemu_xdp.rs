//! An XDP program in a guest: its driver switches its receive offloads off, and QEMU does not pass that on to a vhost-user
//! back end. What the guide says of it is so, and helps.

use std::path::{Path, PathBuf};
use std::process::Command;

use ringscope_tests::af_xdp::passing_program;
use ringscope_tests::daemon::program;
use ringscope_tests::qemu::{Failure, GUEST, Place, image, said};
use ringscope_tests::traffic::{self, Check};

/// Adds the host's `ip`, with the libraries that it loads, and a program to the guest's image. Arguments: the image, the
/// program, the new image.
const ADD: &str = r#"
cd "$3"
mkdir -p root/xdp
cp "$2" root/xdp/pass.o
cp "$(command -v ip)" root/xdp/ip
for library in $(ldd root/xdp/ip | grep -o '/[^ ]*\.so[^ ]*'); do install -D "$library" "root$library"; done
(cd root && find . | cpio --quiet -o -H newc -R 0:0) >extra
cat "$1/initramfs" extra >initramfs
cp "$1/kernel" kernel
"#;
const LOAD: &str = "/xdp/ip link set eth0 xdp object /xdp/pass.o section xdp";
const MIB: u64 = 1 << 20;

fn image_with_program(directory: &Path) -> Result<PathBuf, Failure> {
    let object = passing_program(directory, 0);
    let image = image()?.canonicalize()?;
    let mut add = Command::new("bash");
    add.args(["-euc", ADD, "bash"]).arg(image).arg(object).arg(directory);
    said(&mut add)?;
    Ok(directory.to_owned())
}

/// A guest whose interface has the program.
fn place(directory: &Path, arguments: &[&str]) -> Result<Place, Failure> {
    let mut place = Place::new(1)?;
    place.spawn(arguments)?;
    let mut options = place.options()?;
    options.image = Some(image_with_program(directory)?);
    place.attach(options)?;
    place.guest().check(LOAD)?;
    place.outside.exec("ping -q -c 3 -i 0.01 -W 5 10.77.0.2")?;
    Ok(place)
}

#[test]
fn without_guest_csum_tcp_passes_a_guests_xdp_program() -> Result<(), Failure> {
    let directory = tempfile::tempdir()?;
    let place = place(directory.path(), &["--features=-guest_csum"])?;
    traffic::tcp_both_ways(&place, 16 * MIB, Check::Compare)?;
    Ok(())
}

/// When this fails, QEMU passes the change on: the guide's section about it needs another word.
#[test]
fn with_guest_csum_qemu_does_not_tell_that_the_offloads_are_off() -> Result<(), Failure> {
    let directory = tempfile::tempdir()?;
    let mut place = place(directory.path(), &[])?;
    place.daemon().expect_log("guest_csum");
    let agent = program("ringscope")?;
    let line = format!("{} agent tcp-send {GUEST}:7008 --bytes 1 --patience 3", agent.display());
    let found = place.outside.exec(&line).expect_err("no connection").to_string();
    assert!(found.contains("found no answer in 3"), "{found}");
    let lost = place.guest().check("cat /sys/class/net/eth0/statistics/rx_dropped")?;
    assert_ne!(lost.trim(), "0", "frames that the guest dropped");
    Ok(())
}
