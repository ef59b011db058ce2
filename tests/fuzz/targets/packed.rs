//! The packed ring's engine against a driver that does anything.
#![no_main]

use libfuzzer_sys::fuzz_target;
use ringscope_fuzz::hostile::{Story, play};

fuzz_target!(|story: Story| play(&story, true));
