//! The queues of a tap or macvtap that another daemon serves, and that this one goes on with. Nothing is opened, and nothing
//! of the interface changes, because the other daemon still serves it.

use std::sync::Arc;

use libc::TUNGETIFF;

use super::error::TapError;
use super::finder::Finder;
use super::handed::SharedQueue;
use super::interface::{QueueFacts, TapOptions, mtu_of, waiting_max};
use super::queue::TapQueue;
use crate::claim::Claim;
use crate::sys::{self, InterfaceRequest};

/// Goes on with the queues of a tap. `options`: as they were opened, unless they were handed over.
///
/// # Errors
/// When they are not of this tap.
pub fn go_on(
    queues: Vec<SharedQueue>,
    options: Option<&TapOptions>,
) -> Result<Vec<TapQueue>, TapError> {
    let finder = options.map(|_| Arc::new(Finder::start()));
    let take = |queue| {
        let (name, has_several) = interface_of(&queue)?;
        let facts = |claim| match options.zip(finder.clone()) {
            Some((options, finder)) => QueueFacts::of(options, has_several, claim, finder),
            None => QueueFacts {
                kind: "tap",
                mtu: mtu_of(&name),
                waiting_max: waiting_max(&name),
                name: name.clone(),
                lets_go: has_several,
                again: None,
                claim,
            },
        };
        if let Some(options) = options
            && options.name != name
        {
            let found = format!("tap '{name}', not '{}'", options.name);
            return Err(TapError::Shared { found });
        }
        Ok(queue_of(queue, facts))
    };
    queues.into_iter().map(take).collect()
}

/// The name of the interface that a queue is attached to, and whether it was made for several queues.
///
/// # Errors
/// When it is attached to none.
pub(crate) fn interface_of(queue: &SharedQueue) -> Result<(String, bool), TapError> {
    let mut request = InterfaceRequest::new("", 0);
    sys::ioctl_interface(&queue.file, TUNGETIFF, &mut request)
        .map_err(|error| TapError::Shared { found: format!("not attached to it ({error})") })?;
    let has_several = i32::from(request.flags()) & libc::IFF_MULTI_QUEUE != 0;
    Ok((request.name(), has_several))
}

/// The queue, with the facts about its interface.
pub(crate) fn queue_of(
    queue: SharedQueue,
    facts: impl FnOnce(Option<Arc<Claim>>) -> QueueFacts,
) -> TapQueue {
    let SharedQueue { file, claim, offloads, active } = queue;
    let claim = claim.map(|held| Arc::new(Claim::handed(held)));
    TapQueue::going_on(file, facts(claim), offloads, active)
}
