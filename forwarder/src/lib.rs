//! Forwarding between host and child namespace. Empty until published ports land; see LIMITS.md.
