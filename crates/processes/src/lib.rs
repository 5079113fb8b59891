//! Processes that train one model together: who they are, and the ways in which they hand each
//! other values. Nothing here adds anything up: whoever receives does, in an order of its own, so
//! that neither the number of processes nor the library between them changes a bit. Knows no
//! tensor.

mod alone;
mod error;
mod members;
#[cfg(feature = "mpi")]
mod mpi;
mod sum_tree;
mod timed;

pub use alone::Alone;
pub use error::ProcessError;
pub use members::{Member, members};
#[cfg(feature = "mpi")]
pub use mpi::Mpi;
pub use sum_tree::{Subtree, SumTree, forest, share};
pub use timed::Timed;

/// The processes of a run, seen from one of them.
///
/// All of them call the methods that hand something over equally often and in the same order, so
/// whether and how often one is called must follow from what all of them know.
pub trait Processes: Send + Sync {
    /// Which one this is, from 0.
    fn rank(&self) -> usize;

    /// How many there are.
    fn size(&self) -> usize;

    /// Hands `sent[r]` to process `r`, this one included, and returns what each of them handed to
    /// this one, in their order. `expected[r]` is how many values come from process `r`.
    ///
    /// # Errors
    /// A process that does not come, or that sends another number of values.
    fn exchange(
        &self,
        sent: Vec<Vec<f32>>,
        expected: &[usize],
    ) -> Result<Vec<Vec<f32>>, ProcessError>;

    /// Hands `mine` to all, and returns what each of them handed out, in their order. `expected[r]`
    /// is how many values come from process `r`.
    ///
    /// # Errors
    /// As [`Processes::exchange`].
    fn gather(&self, mine: Vec<f32>, expected: &[usize]) -> Result<Vec<Vec<f32>>, ProcessError>;

    /// The same for bytes, of which nobody knows beforehand how many come.
    ///
    /// # Errors
    /// A process that does not come.
    fn tell(&self, mine: Vec<u8>) -> Result<Vec<Vec<u8>>, ProcessError>;
}
