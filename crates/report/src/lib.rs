//! From recordings to tables.
