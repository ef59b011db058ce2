//! The daemon on the outside host's wire, with AF_XDP, and an XDP program for guests and far ends.

use std::path::Path;
use std::process::Command;

use lab::outside::Outside;
use tempfile::TempDir;

use crate::daemon::Daemon;

/// Tells the outside host where the guest is.
pub const NEIGHBOUR: &str = "ip neigh replace 10.77.0.2 lladdr 52:54:00:00:00:02 dev eth0";

/// Starts the daemon, with `keys` after the interface's name.
///
/// # Panics
/// If it does not start.
#[must_use]
pub fn start(outside: &Outside, keys: &str, arguments: &[&str]) -> (TempDir, Daemon) {
    let directory = tempfile::tempdir().unwrap();
    let datapath = format!("af-xdp:ifname={}{keys}", outside.wire());
    let all = [&["--datapath", &datapath], arguments].concat();
    let daemon = Daemon::start(directory.path(), "xdp", &all).unwrap();
    (directory, daemon)
}

/// Builds an XDP program that passes every frame and writes this number of debug messages for each. Returns the path of
/// its object file. The program is in the section `xdp`.
///
/// # Panics
/// If it cannot be built.
#[must_use]
pub fn passing_program(directory: &Path, messages: u32) -> String {
    let object = directory.join(format!("printk{messages}.o"));
    compile(
        concat!(env!("CARGO_MANIFEST_DIR"), "/bpf/printk.bpf.c"),
        &object,
        &[&format!("-DMESSAGES={messages}")],
    )
}

/// Compiles an XDP program that works for some tens of microseconds on each packet, and lets it pass. Returns its object file.
///
/// # Panics
/// If it does not compile.
#[must_use]
pub fn burning_program(directory: &Path) -> String {
    compile(concat!(env!("CARGO_MANIFEST_DIR"), "/bpf/burn.bpf.c"), &directory.join("burn.o"), &[])
}

fn compile(source: &str, object: &Path, flags: &[&str]) -> String {
    let object = object.display().to_string();
    let headers = format!("-I/usr/include/{}-linux-gnu", std::env::consts::ARCH);
    let output = Command::new("clang")
        .args(["-O2", "-g", "-target", "bpf", "-c", source, "-o", &object, &headers])
        .args(flags)
        .output()
        .expect("clang (qemu-scripts/setup)");
    assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
    object
}
