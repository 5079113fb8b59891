//! The lock.
