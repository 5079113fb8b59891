//! What an adapter makes of the matrices that it stands on.

/// A matrix of the base with the bias beside it, or the matrices of all experts, in double
/// precision.
#[derive(Debug, Clone, PartialEq)]
pub struct Affine {
    /// How many matrices there are: 1, or one for each expert.
    pub matrices: usize,
    /// Outputs of each.
    pub out: usize,
    /// Inputs of each.
    pub into: usize,
    /// The numbers of all matrices, `[matrices, out, into]`.
    pub weight: Vec<f64>,
    /// `[out]`, where there is one.
    pub bias: Option<Vec<f64>>,
}

/// Gradients of the tensors of an adapter, by the ends of their names.
pub type LeafGradients = Vec<(&'static str, Vec<f64>)>;

/// An adapter over one module: a formula with its numbers.
pub trait AdapterChange: std::fmt::Debug + Send + Sync {
    /// Whether it adds to the output, so that the layer needs a bias.
    fn needs_bias(&self) -> bool {
        false
    }

    /// The matrix and bias with the adapter in them.
    fn merge(&self, base: &mut Affine);

    /// Gradients of the adapter's tensors from that of the merged matrix and bias.
    fn gradients(&self, base: &Affine, gradient: &Affine) -> LeafGradients;
}
