//! See `fuzz::stack_ops`.
#![no_main]

libfuzzer_sys::fuzz_target!(|data: &[u8]| fuzz::stack_ops(data));
