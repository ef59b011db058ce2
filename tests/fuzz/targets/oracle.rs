//! Both ring engines against a model, and the split ring's engine also against another implementation.
#![no_main]

use libfuzzer_sys::fuzz_target;
use ringscope_fuzz::honest::{Story, play};

fuzz_target!(|story: Story| play(&story));
