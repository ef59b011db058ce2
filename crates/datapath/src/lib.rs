//! One file a wire.
