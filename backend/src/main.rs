//! The ringscope daemon.
fn main() {}
