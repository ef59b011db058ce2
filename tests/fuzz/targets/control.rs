//! The daemon's control plane and workers, against a front end and a guest that do anything.
#![no_main]

use libfuzzer_sys::fuzz_target;
use ringscope_fuzz::control::{Story, play};

fuzz_target!(|story: Story| play(&story));
