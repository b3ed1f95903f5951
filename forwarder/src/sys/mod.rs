//! System calls. The only place of the crate with `unsafe`.

pub(crate) mod sock_diag;
