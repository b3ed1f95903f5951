//! UDP clients by address, with idle timeout and a limit.
