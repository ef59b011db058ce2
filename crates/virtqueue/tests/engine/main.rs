//! Both ring formats against their driver's side, a model, a hostile guest and the `virtio-queue` crate: one program, because
//! each would be built from the same generic code again.

mod common;
mod flipping;
mod hostile;
mod hostile_packed;
mod hostile_split;
mod model;
mod oracle;
mod packed;
mod rings;
mod suppression;
mod suppression_packed;
mod suppression_split;
