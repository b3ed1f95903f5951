//! See `fuzz::slirp_api`.
#![no_main]

libfuzzer_sys::fuzz_target!(|data: &[u8]| fuzz::slirp_api(data));
