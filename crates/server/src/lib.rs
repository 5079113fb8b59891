//! The HTTP contract over any engine.
