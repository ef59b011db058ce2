//! The ringscope tool.
fn main() {}
