//! A guest in software.
