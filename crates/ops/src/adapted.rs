//! Projection by a matrix that a formula makes of a stored one and of the numbers of an adapter:
//! `y[t,n] = sum_d x[t,d] f(W, a)[n,d]`, optionally added to a residual `[t,n]`.

use std::sync::Arc;

use kernels::adapted::{Affine, LeafGradients, LearnedChange};
use kernels::matmul::{Mat, MatMut, Start, Threads, matmul};

use crate::linear::Linear;
use crate::seam::{FastOp, Raw, apply, buffer, dims, make, values, values_mut};
use crate::weight::Sink;
use crate::{Ops, Tensor2, Weight, tensor};

/// A stored matrix with what an adapter makes of it. It holds while none of the two changes.
#[derive(Debug)]
pub struct AdaptedWeight {
    change: Box<dyn LearnedChange>,
    merged: Weight,
}

/// One tensor of an adapter by the name that its formula has for it.
#[derive(Clone, Debug)]
pub struct AdapterLeaf {
    /// What the formula calls it.
    pub name: &'static str,
    /// Its numbers, with their gradient.
    pub weight: Arc<Weight>,
}

impl AdaptedWeight {
    /// Merges `change` into `base`, in double precision.
    pub fn new(change: Box<dyn LearnedChange>, base: &Weight) -> Self {
        let (rows, columns) = base.shape();
        let mut affine = affine(rows, columns, &base.values());
        change.merge(&mut affine);
        let merged = affine.weight.into_iter().map(|x| x as f32).collect();
        let merged = Weight::new(merged, rows, columns);
        if base.packed().is_some() {
            merged.pack();
        }
        Self { change, merged }
    }
}

fn affine(out: usize, into: usize, weight: &[f32]) -> Affine {
    let weight = weight.iter().map(|&x| f64::from(x)).collect();
    Affine { matrices: 1, out, into, weight, bias: None }
}

impl Ops {
    /// `residual_tn + x_td M^T -> [t, n]` with the matrix M that `adapted` has made of `w_nd` and
    /// of the `leaves` of its formula.
    pub fn adapted(
        self,
        x_td: Tensor2,
        residual_tn: Option<Tensor2>,
        w_nd: &Weight,
        adapted: &Arc<AdaptedWeight>,
        leaves: &[AdapterLeaf],
    ) -> Tensor2 {
        let formula = Formula::new(adapted, w_nd, leaves);
        match (self, residual_tn) {
            (Ops::Fast, None) => apply(AdaptedLinear(formula), [x_td]),
            (Ops::Fast, Some(residual_tn)) => {
                apply(AdaptedLinearAdd(AdaptedLinear(formula)), [x_td, residual_tn])
            }
            (Ops::Plain(_), residual_tn) => {
                let flat = |w: &Weight| {
                    let (rows, columns) = w.shape();
                    w.plain(&x_td).reshape([1, rows * columns])
                };
                let all = std::iter::once(w_nd).chain(leaves.iter().map(|leaf| &*leaf.weight));
                let flat = Tensor2::cat(all.map(flat).collect(), 1);
                let merged = self.merged(Merge(formula), flat, &x_td);
                let y_tn = x_td.matmul(merged.transpose());
                residual_tn.map_or(y_tn.clone(), |residual_tn| tensor::add(residual_tn, y_tn))
            }
        }
    }

    /// What `merge` has made of `flat`, where `like` is; the formula itself runs on the processors.
    #[cfg_attr(not(any(feature = "gpu", feature = "cuda")), allow(unused_variables))]
    fn merged(self, merge: Merge, flat: Tensor2, like: &Tensor2) -> Tensor2 {
        #[cfg(any(feature = "gpu", feature = "cuda"))]
        if self.device() != crate::Device::CPU {
            use crate::device_seam::{Cube, apply};
            let merged = merge.0.adapted.merged.plain(like);
            return apply::<Cube, _, 2>(merge, [flat, merged]);
        }
        let (rows, columns) = merge.0.adapted.merged.shape();
        apply(merge, [flat]).reshape([rows, columns])
    }
}

/// A formula with what its gradients need.
#[derive(Clone, Debug)]
struct Formula {
    adapted: Arc<AdaptedWeight>,
    /// Where the gradient of the stored matrix goes, if it learns.
    base: Option<Sink>,
    /// The numbers of the stored matrix, where gradients hang on them.
    base_nd: Option<Raw>,
    /// By name, how many numbers there are, and where their gradient goes.
    leaves: Vec<(&'static str, usize, Option<Sink>)>,
}

impl Formula {
    fn new(adapted: &Arc<AdaptedWeight>, w_nd: &Weight, leaves: &[AdapterLeaf]) -> Self {
        let of = |leaf: &AdapterLeaf| {
            let (rows, columns) = leaf.weight.shape();
            (leaf.name, rows * columns, leaf.weight.sink())
        };
        let leaves: Vec<_> = leaves.iter().map(of).collect();
        let learns = leaves.iter().any(|(_, _, sink)| sink.is_some());
        let base_nd = (learns && !adapted.change.is_sum()).then(|| match w_nd.format() {
            None => w_nd.raw(),
            Some(_) => make(w_nd.read(), w_nd.shape().0, w_nd.shape().1),
        });
        Self { adapted: adapted.clone(), base: w_nd.sink(), base_nd, leaves }
    }

    fn learns(&self) -> bool {
        self.base.is_some() || self.leaves.iter().any(|(_, _, sink)| sink.is_some())
    }

    /// Gradients of the leaves and of the stored matrix from that of the merged one.
    fn gradients(&self, of_merged: &[f32]) -> (LeafGradients, Vec<f64>) {
        let (out, into) = self.adapted.merged.shape();
        let stored = self.base_nd.as_ref().map_or(&[][..], values);
        let mut gradient = affine(out, into, of_merged);
        let found = self.adapted.change.gradients(&affine(out, into, stored), &gradient);
        self.adapted.change.base_gradient(&mut gradient);
        (found, gradient.weight)
    }

    /// Hands the gradients on to where they are collected.
    fn hand_on(&self, of_merged: &[f32]) {
        let (found, of_base) = self.gradients(of_merged);
        let narrow = |x: &[f64]| -> Vec<f32> { x.iter().map(|&x| x as f32).collect() };
        if let Some(sink) = &self.base {
            sink.add(&narrow(&of_base));
        }
        for (name, _, sink) in &self.leaves {
            let of = found.iter().find(|(found, _)| found == name);
            if let (Some(sink), Some((_, values))) = (sink, of) {
                sink.add(&narrow(values));
            }
        }
    }
}

#[derive(Clone, Debug)]
struct AdaptedLinear(Formula);

impl AdaptedLinear {
    fn product(&self) -> Linear {
        Linear::new(&self.0.adapted.merged)
    }

    fn gradients(&self, x_td: &Raw, g_tn: &Raw, wants_x: bool) -> Option<Raw> {
        if self.0.learns() {
            let ((t, d), (_, n)) = (dims(x_td), dims(g_tn));
            let mut of_merged = buffer(n * d);
            let g = Mat::rows_major(values(g_tn), t, n);
            let x = Mat::rows_major(values(x_td), t, d);
            let to = MatMut::rows_major(&mut of_merged, n, d);
            matmul(to, g.t(), x, Start::Zero, Threads::All);
            self.0.hand_on(&of_merged);
        }
        self.product().gradients(x_td, g_tn, wants_x)
    }
}

impl FastOp<1> for AdaptedLinear {
    type Saved = Raw;

    fn forward(&self, [x_td]: [Raw; 1]) -> (Raw, Raw) {
        self.product().forward([x_td])
    }

    fn backward(
        &self,
        x_td: Raw,
        g_tn: Raw,
        [wants_x]: [bool; 1],
        _: Option<Raw>,
    ) -> [Option<Raw>; 1] {
        [self.gradients(&x_td, &g_tn, wants_x)]
    }
}

#[derive(Clone, Debug)]
struct AdaptedLinearAdd(AdaptedLinear);

impl FastOp<2> for AdaptedLinearAdd {
    type Saved = Raw;

    fn forward(&self, [x_td, mut residual_tn]: [Raw; 2]) -> (Raw, Raw) {
        self.0.product().product(&x_td, values_mut(&mut residual_tn), Start::FromC);
        (residual_tn, x_td)
    }

    fn backward(
        &self,
        x_td: Raw,
        g_tn: Raw,
        [wants_x, wants_residual]: [bool; 2],
        _: Option<Raw>,
    ) -> [Option<Raw>; 2] {
        let dx = self.0.gradients(&x_td, &g_tn, wants_x);
        [dx, wants_residual.then_some(g_tn)]
    }
}

/// The formula alone, for plain products around it: the stored matrix and the leaves, one behind
/// the other in one row, to the merged matrix in one row.
#[derive(Clone, Debug)]
struct Merge(Formula);

impl FastOp<1> for Merge {
    type Saved = ();

    fn forward(&self, _: [Raw; 1]) -> (Raw, ()) {
        let merged = self.0.adapted.merged.read();
        let count = merged.len();
        (make(merged, 1, count), ())
    }

    fn backward(&self, (): (), g: Raw, _: [bool; 1], _: Option<Raw>) -> [Option<Raw>; 1] {
        let (found, of_base) = self.0.gradients(values(&g));
        let mut flat: Vec<f32> = of_base.into_iter().map(|x| x as f32).collect();
        for (name, count, _) in &self.0.leaves {
            match found.iter().find(|(found, _)| found == name) {
                Some((_, values)) => flat.extend(values.iter().map(|&x| x as f32)),
                None => flat.resize(flat.len() + count, 0.0),
            }
        }
        let count = flat.len();
        [Some(make(flat, 1, count))]
    }
}

#[cfg(any(feature = "gpu", feature = "cuda"))]
mod device {
    use burn_backend::tensor::FloatTensor;
    use burn_backend::{Backend, TensorMetadata};

    use super::Merge;
    use crate::device_seam::{DeviceOp, put, read};
    use crate::seam::FastOp;

    /// The second input is the merged matrix, which has a copy on the device: forward neither reads
    /// anything back nor copies anything there.
    impl<B: Backend> DeviceOp<B, 2> for Merge {
        type Saved = ();

        fn forward(&self, [_, merged]: [FloatTensor<B>; 2]) -> (FloatTensor<B>, ()) {
            (merged, ())
        }

        fn backward(&self, (): (), g: FloatTensor<B>, _: [bool; 2]) -> [Option<FloatTensor<B>>; 2] {
            let device = g.device();
            let [flat] = FastOp::backward(self, (), read::<B>(g), [true], None);
            [flat.map(|flat| put::<B>(&flat, &device)), None]
        }
    }
}
