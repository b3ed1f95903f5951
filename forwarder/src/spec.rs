//! What to forward: the text and serialised forms of a published port.
