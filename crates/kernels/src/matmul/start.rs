//! What a caller chooses about a product beside its matrices.

/// Where each element's chain of multiply-adds begins.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Start {
    /// At zero: `C = A B`; the old values are not read.
    Zero,
    /// At the old value: `C += A B`, as a continued chain.
    FromC,
}

/// Which threads share a product.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Threads {
    /// The calling thread alone, for use inside a loop that is already parallel.
    One,
    /// All threads of the current rayon pool.
    All,
}
