//! What the daemon gives up, from the plan.

use std::fs::DirBuilder;
use std::os::unix::fs::DirBuilderExt as _;
use std::path::{Path, PathBuf};

use confine::{Places, Policy, Wire, directory_of};
use datapath::af_xdp::UmemOwner;
use foreign_files::Program;
use metrics::Address;
use rustix::fs::Mode;
use rustix::process::umask;

use crate::args::Sandbox;
use crate::error::Error;
use crate::plan::{EndpointPlan, Plan};
use crate::spec::{DatapathSpec, Engine};

/// The second argument of a helper process that is to be confined.
pub const CONFINED: &str = "confined";

/// Starts the process that starts helpers, and becomes the user of the plan. From then on threads are confined. Must be called
/// before any thread is started. Returns the owner of sockets, if it is another user.
///
/// # Errors
/// See [`Error`].
pub fn begin(plan: &Plan) -> Result<Option<u32>, Error> {
    let own = own_directories(plan);
    let config = plan.config.as_deref().map(directory_of);
    let (guests, plan) = (&plan.guests, &plan.confinement);
    let is_on = plan.sandbox == Sandbox::On;
    let program = Program::this(if is_on { &[CONFINED] } else { &[] });
    // As root, if this is root: it shows how a front end of any user maps its memory.
    foreign_files::register(&program).map_err(Error::Helpers)?;
    let in_group = |source| Error::Group { group: plan.group.clone().unwrap_or_default(), source };
    let group = plan.group.as_deref().map(confine::group).transpose().map_err(in_group)?;
    let of_socket = |name: &String| {
        confine::user(name).map_err(|source| Error::SocketUser { user: name.clone(), source })
    };
    let socket_owner = plan.socket_user.as_ref().map(of_socket).transpose()?;
    if let Some(user) = &plan.user {
        user.become_it(group).map_err(|source| Error::User { user: user.to_string(), source })?;
        log::info!("running as user {user}");
    } else if let Some(group) = group {
        confine::take_group(group).map_err(in_group)?;
    }
    if let Some(mode) = plan.mode {
        let run_dir = guests.first().and_then(|guest| guest.recorder.parent());
        share(run_dir, group.is_some(), mode)?;
    }
    if is_on {
        let policy = Policy { seccomp: plan.seccomp, places: Places { own, config } };
        confine::start(policy).map_err(Error::Confine)?;
    } else {
        log::warn!(
            "NOT CONFINED, by --sandbox none: if a guest takes this process over, it may do whatever user {} may",
            rustix::process::geteuid().as_raw()
        );
    }
    Ok(socket_owner)
}

/// Makes the run directory for the daemon's group, if there is none, and lets sockets have this mode. The kernel gives a socket all
/// permissions but those of the umask, at once: there is no moment in which others could connect. Other files have modes of their own,
/// from which the umask only takes.
fn share(run_dir: Option<&Path>, for_group: bool, mode: u32) -> Result<(), Error> {
    if let Some(path) = run_dir.filter(|_| for_group) {
        let refused = |source| Error::RunDir { path: path.into(), source };
        DirBuilder::new().recursive(true).mode(0o750).create(path).map_err(refused)?;
    }
    umask(Mode::from_raw_mode(0o777 & !mode));
    Ok(())
}

/// Where the daemon's own names are: recorders and what is beside them, sockets.
fn own_directories(plan: &Plan) -> Vec<PathBuf> {
    let guests = plan.guests.iter().flat_map(|guest| {
        let socket = match &guest.endpoint {
            EndpointPlan::Listen(path) => Some(path.as_path()),
            EndpointPlan::Connect(_) | EndpointPlan::Descriptor(_) => None,
        };
        [Some(guest.recorder.as_path()), socket]
    });
    let metrics = match &plan.metrics {
        Some(Address::Unix(path)) => Some(path.as_path()),
        Some(Address::Loopback(_)) | None => None,
    };
    let files = guests.chain([metrics, plan.control.as_deref()]).flatten();
    let mut own: Vec<_> = files.map(directory_of).collect();
    own.sort_unstable();
    own.dedup();
    own
}

/// What a worker of this datapath may do.
pub const fn wire_of(datapath: &DatapathSpec) -> Wire {
    match datapath {
        DatapathSpec::Tap { engine: Engine::Uring, .. } => Wire::Uring,
        DatapathSpec::Tap { engine: Engine::Readv, .. } | DatapathSpec::Macvtap { .. } => Wire::Tap,
        DatapathSpec::AfXdp { options, .. } => match options.umem {
            UmemOwner::Guest => Wire::AfXdpInPlace,
            UmemOwner::Host => Wire::AfXdp,
        },
        DatapathSpec::Switch { .. } | DatapathSpec::Reflect | DatapathSpec::Null { .. } => {
            Wire::Nothing
        }
    }
}
