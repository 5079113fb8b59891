//! Activation checkpointing: keep only the input of a piece of the model and run it again in the
//! backward pass (Chen et al., 2016).

use std::sync::Arc;

use burn_tensor::Gradients;

use crate::seam::{FastOp, Raw, apply, make, raw, wrap};
use crate::{Ops, Tensor2, tensor};

/// A piece of the model, from rows to rows of the same count.
type Piece = Arc<dyn Fn(Tensor2) -> Tensor2 + Send + Sync>;

impl Ops {
    /// `piece(x)`; `Fast` remembers only `x` and runs the piece again in the backward pass, `Plain`
    /// keeps everything. `piece` must give the same result each time it is called on the same
    /// input; weights and attached losses inside it count once. Whatever else the piece reports, it
    /// reports in each run: the first does not record, the second does.
    pub fn recompute(self, x: Tensor2, piece: Piece) -> Tensor2 {
        match self {
            Ops::Fast => apply(Recompute { piece }, [x]),
            Ops::Plain(_) => piece(x),
        }
    }
}

#[derive(Clone)]
struct Recompute {
    piece: Piece,
}

impl std::fmt::Debug for Recompute {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str("recompute")
    }
}

impl FastOp<1> for Recompute {
    type Saved = Raw;

    fn forward(&self, [x]: [Raw; 1]) -> (Raw, Raw) {
        (raw(&(self.piece)(wrap(x.clone()))), x)
    }

    fn backward(&self, x: Raw, g: Raw, _: [bool; 1], _: Option<Raw>) -> [Option<Raw>; 1] {
        let leaf = tensor::leaf(&wrap(x));
        // The tape of the piece is its own graph.
        let gradients = from((self.piece)(leaf.clone()), g);
        [leaf.grad(&gradients).map(|dx| raw(&dx))]
    }
}

/// Runs the tape of `y` from its gradient `g`, row after row. Other than [`crate::backward`] it may
/// run inside the backward of another tape.
///
/// # Panics
/// When `g` has another number of values than `y`.
pub fn backward_from(y: Tensor2, g: Vec<f32>) -> Gradients {
    let [rows, columns] = y.dims();
    assert_eq!(g.len(), rows * columns, "a gradient has the shape of its values");
    from(y, make(g, rows, columns))
}

fn from(y: Tensor2, g: Raw) -> Gradients {
    apply(Arrive { g }, [y]).backward()
}

/// Begins a tape whose last gradient is known: a scalar whose gradient is `g`.
#[derive(Clone, Debug)]
struct Arrive {
    g: Raw,
}

impl FastOp<1> for Arrive {
    type Saved = ();

    fn forward(&self, _: [Raw; 1]) -> (Raw, ()) {
        (make(vec![0.0], 1, 1), ())
    }

    fn backward(&self, (): (), _: Raw, _: [bool; 1], _: Option<Raw>) -> [Option<Raw>; 1] {
        [Some(self.g.clone())]
    }
}
