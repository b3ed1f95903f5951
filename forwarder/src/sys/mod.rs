//! System calls. The only place of the crate with `unsafe`.
