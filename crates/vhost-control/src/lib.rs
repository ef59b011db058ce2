//! The conversation with the front end.
