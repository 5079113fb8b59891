//! Numbers that nobody can guess beforehand: request ids and seeds of requests that bring none.

use std::hash::{BuildHasher, RandomState};
use std::sync::atomic::{AtomicU64, Ordering};

/// A keyed hash of a counter; the key comes from the operating system.
pub(crate) struct RandomIds {
    key: RandomState,
    count: AtomicU64,
}

impl RandomIds {
    pub(crate) fn new() -> Self {
        Self { key: RandomState::new(), count: AtomicU64::new(0) }
    }

    pub(crate) fn next(&self) -> u64 {
        self.key.hash_one(self.count.fetch_add(1, Ordering::Relaxed))
    }

    /// 128 bits as 32 hexadecimal digits, for ids of requests and answers.
    pub(crate) fn name(&self) -> String {
        format!("{:016x}{:016x}", self.next(), self.next())
    }
}
