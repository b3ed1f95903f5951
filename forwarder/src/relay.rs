//! Half-close, back-pressure and reset of two joined TCP sockets, as a table.
