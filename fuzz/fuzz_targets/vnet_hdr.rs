//! See `fuzz::vnet_hdr`.
#![no_main]

libfuzzer_sys::fuzz_target!(|data: &[u8]| fuzz::vnet_hdr(data));
