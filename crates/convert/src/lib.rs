//! Checkpoints in, out, and from one family into another.
