//! A paged store of keys and values, and attention over it, for decoding many sequences whose
//! lengths change all the time (Kwon et al. 2023).

mod attend;
mod format;
mod kernel;
mod lanes;
mod pool;
#[cfg(test)]
mod tests;

pub use attend::{Tables, attend_pages};
pub use format::{KvFormat, UnknownKvFormat};
pub use pool::KvPool;

/// Tokens in a page.
pub const PAGE: usize = 16;
