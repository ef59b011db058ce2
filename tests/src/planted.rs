//! Faults that are planted from outside the daemon, and the cause that `ringscope why` names first.
//!
//! Nothing in the daemon helps: the faults are signals, scheduling, control groups, queueing disciplines and BPF programs of
//! the host. Each fault lies in a recording of its own. There are as many recordings without a fault.
//!
//! - `kind`: the kinds of fault, and the one table of the answers that name them.
//! - `answer`: what `ringscope why` says.
//! - `score`: how many answers are right.
//! - `faults`: the faults themselves; `quota`, `hog`, `storm`, `messages`, `eviction`, `starving`: those that need more; `groups`:
//!   control groups; `standby`: threads that wait until a fault is to be planted.
//! - [`freezer`]: a fault of no kind, for a test of its own.
//! - `undo`: each fault ends when its value is dropped.
//! - `witness`, `others`: whether the hypervisor or another program disturbed a recording. Then it is made again.
//! - `scene`: daemon, guest and traffic.
//! - `run`: one recording after the other.

mod answer;
mod eviction;
mod faults;
pub mod freezer;
mod groups;
mod hog;
mod kind;
mod messages;
mod others;
mod quota;
mod run;
mod scene;
mod score;
mod standby;
mod starving;
mod storm;
mod undo;
mod witness;

pub use answer::Answer;
pub use groups::Hierarchy;
pub use kind::{Accepted, Kind, Setting};
pub use run::{Plan, run};
pub use scene::{GuestKind, Scene};
pub use score::{Outcome, Score};
pub use undo::Undo;
