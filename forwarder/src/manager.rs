//! Which forwards there are, and what has to be listened on because of them.
