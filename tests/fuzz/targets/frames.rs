//! What is done with frames from guests and from the wire.
#![no_main]

use libfuzzer_sys::fuzz_target;
use ringscope_fuzz::frames::{Story, play};

fuzz_target!(|story: Story| play(&story));
