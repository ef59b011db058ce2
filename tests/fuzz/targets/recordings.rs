//! Recorders, recordings and stamps with arbitrary contents.
#![no_main]

use libfuzzer_sys::fuzz_target;
use ringscope_fuzz::recordings::{Story, play};

fuzz_target!(|story: Story| play(&story));
