//! Frames of a guest that are joined on their way to the wire.
#![no_main]

use libfuzzer_sys::fuzz_target;
use ringscope_fuzz::frames::join::{Story, play};

fuzz_target!(|story: Story| play(&story));
