//! The event loop that owns listeners, connections and pipes.
