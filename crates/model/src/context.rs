//! What a layer is given besides the rows it works on.

use crate::carry::Carry;
use crate::layout::DepthRuns;
use crate::pass::Pass;
use crate::rows::Rows;

/// Everything that attention and an MLP may need: one value, so that a member that needs another
/// part of it changes no signature.
pub struct LayerContext<'a, 'p> {
    /// Operations, cache, rule, buffers, probe and random address of the pass.
    pub pass: &'a mut Pass<'p>,
    /// Who the rows are, token ids included.
    pub rows: &'a Rows,
    /// Which use of the layer's weights this is to each row.
    pub at: &'a DepthRuns,
    /// What the rows keep from layer to layer and from recursion to recursion.
    pub carry: &'a mut Carry,
}
