//! Frame observers and pcap.
