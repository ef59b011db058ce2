//! Frames from guests and from the wire: GSO, GRO, placement and switching.
#![no_main]

use libfuzzer_sys::fuzz_target;
use ringscope_fuzz::frames::{Story, play};

fuzz_target!(|story: Story| play(&story));
