//! What a frame means.
