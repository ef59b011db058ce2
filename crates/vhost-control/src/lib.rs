//! The conversation with the front end, on `vhost-user-backend`.
//!
//! What the framework does for us: the messages, their checks and replies, memory mapping, address
//! translation. What it does not, and how that is solved here:
//!
//! - Its event loop takes the kicks of every ring. Ours must go to the worker that serves the ring, so
//!   `vring::Vring` keeps kick and call for itself and the framework runs no event loop at all
//!   (`queues_per_thread` is empty).
//! - It has no hook for the end of a ring but `GET_VRING_BASE`. [`ring::RingControl`] is told of every
//!   setter, starts and stops the ring at its worker, and returns when the worker has done so.
//! - A daemon of it serves one connection. `conversation` makes one for each connection; datapath, workers
//!   and recorder outlive them.
//! - It refuses QEMU's virtio-net: see `relay`.
//! - It ends the connection over what is wrong with a single ring: see `gate`.
//! - It maps any file, and it takes any descriptor: see `regions`, `files` and `descriptor`. `gate` refuses what
//!   does not fit its message, [`worker::Custody`] closes all descriptors, and `pipe` forwards signals to a call
//!   descriptor that is a pipe.
//! - It serves only connections that it accepts itself: see `framework`.
//!
//! - [`device`]: what is offered to front ends; [`ring`]: the life of a ring; [`sharing`]: whether the
//!   guest's memory is really shared; [`socket`]: making, finding and cleaning up the socket;
//!   [`server`]: connections one after the other, `conversation`: one of them; [`limits`]: of file descriptors.

mod conversation;
mod descriptor;
pub mod device;
mod files;
mod framework;
mod gate;
pub mod limits;
mod pipe;
mod regions;
mod relay;
pub mod ring;
pub mod server;
pub mod sharing;
pub mod socket;
mod sys;
mod vring;

pub use device::{Device, Witness};
pub use server::{ServeError, serve};
pub use socket::{Endpoint, SocketError};
