//! End to end: the parts that tests put together.
//!
//! - [`beside`]: honest traffic beside a hostile guest, and how long it takes.
//! - [`browser`]: a headless browser that looks at reports.
//! - [`cable`]: an interface of this host, and a host at the other end of its cable.
//! - [`control`]: a daemon with a control socket, and its clients.
//! - [`daemon`]: the daemon under test.
//! - [`debian`]: programs from packages that are not installed.
//! - [`dirty`]: a guest whose device alone writes, and what must be marked.
//! - [`dpdk`]: DPDK as the peer, as a guest or as a back end.
//! - [`eventually`]: waits for a state, with a deadline and a message.
//! - [`flows`]: frames of TCP and UDP, one after the other.
//! - [`frames`]: frames that a reflecting back end must return.
//! - [`fresh_host`]: a host as after a boot, for commands of the guides.
//! - [`fuse`]: a file whose contents never come.
//! - [`guides`]: the command blocks of the guides.
//! - [`hostile`]: what a hostile guest does to a ring, and what must come of it.
//! - [`hostile_rings`]: what a hostile guest keeps a ring busy with.
//! - [`lan`]: guests in software on one switch.
//! - [`libvirt`]: a host with a libvirtd of its own.
//! - [`migration`]: a second QEMU, to which a guest moves.
//! - [`mirror`]: wires that give every frame back as it was.
//! - [`monitor`]: QEMU's monitor.
//! - [`packets`]: packets that a kernel answers.
//! - [`pcapng`]: reads captures back.
//! - [`perfetto`]: reads traces for Perfetto back.
//! - [`pings`]: pings from a guest in software, and what became of each.
//! - [`planted`]: faults that are planted from outside, and what `ringscope why` names as their cause.
//! - [`processes`]: what `/proc` says of processes.
//! - [`recording`]: `ringscope record` under way.
//! - [`shuttle`]: a guest that moves to and fro between two back ends, under load.
//! - [`slow_wire`]: a wire whose far end takes its time.
//! - [`sniffer`]: when frames passed an interface.
//! - `sys`: the system calls that have no safe form.
//! - [`trace`]: what the daemon recorded, and what must hold of it.
//! - [`qemu`]: a Linux guest in QEMU, the daemon, and the outside host that they are to reach.
//! - [`traffic`]: ping, UDP and TCP between that guest and the outside host.
//! - [`variants`]: the variants of `qemu-scripts/variant`, on a host as after a boot.

pub mod af_xdp;
pub mod beside;
pub mod booted;
pub mod browser;
pub mod cable;
pub mod control;
pub mod daemon;
pub mod debian;
pub mod dirty;
pub mod dpdk;
pub mod eventually;
pub mod flows;
pub mod frames;
pub mod fresh_host;
pub mod fuse;
pub mod guides;
pub mod hostile;
pub mod hostile_rings;
pub mod lan;
pub mod libvirt;
pub mod migration;
pub mod mirror;
pub mod monitor;
pub mod packets;
pub mod pcapng;
pub mod perfetto;
pub mod pings;
pub mod planted;
pub mod processes;
pub mod qemu;
pub mod recording;
pub mod shuttle;
pub mod slow_wire;
pub mod sniffer;
mod sys;
pub mod take_over;
pub use sys::{open_tap, packet_socket};
pub mod trace;
pub mod traffic;
pub mod variants;
