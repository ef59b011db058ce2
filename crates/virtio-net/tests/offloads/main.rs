//! What is left to do to frames, found and done, against a slow and simple way of doing it.

mod arrival;
mod datagrams;
mod gro;
mod hostile;
mod logged;
mod packets;
mod place;
mod runs;
mod sent;
mod software;
mod turns;
