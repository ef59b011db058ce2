//! Ring engines, device side.
