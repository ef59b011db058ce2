//! The daemon on the outside host's wire, with AF_XDP.

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
