//! The control plane: front ends are accepted, and their vhost-user messages are served.
//!
//! The crate `vhost-user-backend`, "the framework" in all comments here, handles messages, replies, memory mapping and
//! address translation. These parts are ours:
//!
//! - The framework's event loop would take the kicks of all rings. Each kick must go to the worker that serves the ring. So
//!   the framework runs no event loop (`queues_per_thread` is empty), and rings keep kick and call for themselves.
//! - The framework reports the end of a ring only for `GET_VRING_BASE`. A ring's state here follows every setter.
//! - A daemon of the framework serves one connection. Datapath, workers and recorder outlive connections, so each
//!   connection has a daemon of its own.
//! - The framework ends the connection over a mistake in one ring, over QEMU's own order of messages, and it takes any file
//!   and any descriptor. So each message passes through `message` first, where its whole way is described.
//!
//! Modules:
//!
//! - `server`: connections, one after the other; `conversation`: one connection.
//! - `message`: a message comes in, is judged, is acted on, is answered.
//! - `control`: the control queue of a front end that leaves it to us.
//! - `handover`, `parting`: a guest that another daemon goes on with.
//! - `ring`: the state of a ring; `device`: the device that front ends are offered.
//! - `announcer`: what the network learns of a guest that migrated here.
//! - `sharing`: whether the guest's memory is shared; `socket`: the socket is made, found and removed.
//! - `limits`: of file descriptors and regions; `error`; `sys`: the process at the other end of a socket.

mod announcer;
mod control;
mod conversation;
mod device;
mod error;
pub mod handover;
mod limits;
mod message;
mod parting;
mod ring;
mod server;
mod sharing;
mod socket;

pub use device::{Device, DeviceState, Witness};
pub use error::ServeError;
pub use handover::{Handover, Heir, Succession};
pub use limits::{descriptors_of, raise_descriptor_limit};
pub use server::{serve, serve_on};
pub use sharing::PrivateMemory;
pub use socket::{Endpoint, Server, SocketError};
