//! Stages, clock, burst records and the flight recorder.
