//! Kernel stages that the operator begins and ends. The client loads the programs and hands them over with its request.

use std::os::fd::OwnedFd;

use kernel_stages::KernelStages;
use serde_json::Value;

use super::request::Request;
use super::subject::Subject;

/// Begins or ends the measurement. Returns how it stands then.
///
/// # Errors
/// Why not, for the client.
pub fn set(request: &Request, subject: &Subject, files: Vec<OwnedFd>) -> Result<Value, String> {
    let Some(kernel) = &subject.way.kernel else {
        return Err("expected a guest without --kernel-stages, found that they are measured from the start on, and as long as \
                    the daemon runs"
            .into());
    };
    match (request.value.as_deref().unwrap_or_default(), &request.programs) {
        ("off", _) => kernel.end().map(|()| "off".into()),
        ("on", Some(programs)) => {
            if !subject.standings()?.iter().all(|standing| standing.trace) {
                return Err("kernel stages add to the records of bursts, expected trace on, found off".into());
            }
            let (stages, attached) =
                KernelStages::take(programs.clone(), files).map_err(|why| why.to_string())?;
            kernel.begin(stages, &attached)
        }
        ("on", None) => Err("expected \"programs\" that are loaded, and their descriptors, with the request (SCM_RIGHTS), found \
                             none; ringscope ctl NAME kernel-stages on loads them"
            .into()),
        (other, _) => {
            Err(format!("expected kernel-stages on or kernel-stages off, found '{other}'"))
        }
    }
}
