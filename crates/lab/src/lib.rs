//! The lab: what an experiment is built from, and the comparison of variants, `ringscope lab`.
//!
//! What tests are built from, too:
//!
//! - [`clock_offset`]: how the clocks of two ends on one machine differ; `clock_page`: bounds for a QEMU guest's.
//! - [`guest`]: a guest in QEMU or User Mode Linux, with a shell on its console.
//! - [`outside`]: a network namespace that plays the outside host, joined to guests by a bridge or a wire.
//! - [`process`]: a child process with a log file, killed when its handle is dropped.
//!
//! The comparison. A variant is a way between a talker and a responder:
//!
//! - [`variant`]: builds variants by the commands of `qemu-scripts/variant`, and takes them down; [`end`]: the two ends;
//!   [`case`]: a variant, perhaps with a change.
//! - [`far_host`]: a far host as the talker; [`peer`]: what both clocks follow.
//! - [`cpus`]: which CPU each part has.
//! - [`plan`]: what is measured; [`measure`]: one measurement: probes, a load, and the proof that they went the variant's
//!   way; [`load`]: what runs beside the probes.
//! - [`talker`]: how the talker is scheduled, its program and its packets.
//! - [`experiment`]: all cases under all loads, several times over.
//! - [`capacity`]: the rate at which nothing is lost, CPU time for a million packets, and round trips under that load.
//! - [`nested`]: the same in an emulated machine, for variants that this host's kernel cannot have.
//! - [`kept`]: the directory where everything measured is kept.
//! - [`results`]: figures of what was kept; [`launches`]: what launch times did; [`samples`]: each probe at the talker;
//!   [`one_way`]: each direction by itself; [`joined`]: each probe with the parts of its round trip; [`composition`]: where
//!   the mean round trip went; [`verdict`]: which row is faster; [`difference`]: why; [`others`]: the same way, measured by
//!   programs of others; [`table`], [`page`]: for a person.
//! - [`command`]: programs that are run, and ended when a signal comes.

pub mod capacity;
pub mod case;
pub mod clock_offset;
mod clock_page;
pub mod command;
mod compared;
pub mod composition;
pub mod cpus;
pub mod difference;
pub mod end;
pub mod experiment;
pub mod far_host;
#[cfg(test)]
mod fixture;
pub mod guest;
pub mod joined;
pub mod kept;
pub mod launches;
pub mod load;
pub mod measure;
pub mod nested;
pub mod one_way;
pub mod others;
pub mod outside;
pub mod page;
pub mod peer;
pub mod plan;
pub mod process;
pub mod results;
pub mod samples;
mod signed_rank;
pub mod table;
pub mod talker;
pub mod variant;
pub mod verdict;

pub use rustix::process::Signal;
