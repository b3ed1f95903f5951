//! vnet_hdr.
