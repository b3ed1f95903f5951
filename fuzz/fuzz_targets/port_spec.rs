//! See `fuzz::port_spec`.
#![no_main]

libfuzzer_sys::fuzz_target!(|data: &[u8]| fuzz::port_spec(data));
