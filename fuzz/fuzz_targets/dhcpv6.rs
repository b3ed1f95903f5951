//! See `fuzz::dhcpv6`.
#![no_main]

libfuzzer_sys::fuzz_target!(|data: &[u8]| fuzz::dhcpv6(data));
