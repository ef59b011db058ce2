//! What the daemon gives up, from the plan.

use std::path::PathBuf;

use confine::{Policy, Wire, directory_of};
use datapath::af_xdp::UmemOwner;
use foreign_files::Program;
use metrics::Address;

use crate::args::Sandbox;
use crate::error::Error;
use crate::plan::{EndpointPlan, Plan};
use crate::spec::{DatapathSpec, Engine};

/// The second argument of a helper process that is to be confined.
pub const CONFINED: &str = "confined";

/// Starts the process that starts helpers, and becomes the user of the plan. From then on threads are confined. Must be called
/// before any thread is started.
///
/// # Errors
/// See [`Error`].
pub fn begin(plan: &Plan) -> Result<(), Error> {
    let own = own_directories(plan);
    let plan = &plan.confinement;
    let is_on = plan.sandbox == Sandbox::On;
    let program = Program::this(if is_on { &[CONFINED] } else { &[] });
    // As root, if this is root: it shows how a front end of any user maps its memory.
    foreign_files::register(&program).map_err(Error::Helpers)?;
    if let Some(user) = &plan.user {
        user.become_it().map_err(|source| Error::User { user: user.to_string(), source })?;
        log::info!("running as user {user}");
    }
    if is_on {
        confine::start(Policy { seccomp: plan.seccomp, own }).map_err(Error::Confine)?;
    } else {
        log::warn!(
            "NOT CONFINED, by --sandbox none: if a guest takes this process over, it may do whatever user {} may",
            rustix::process::geteuid().as_raw()
        );
    }
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
