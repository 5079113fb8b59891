//! Operations of our own beside the processors: a forward and a backward on the tensors of a
//! backend `B`, which [`apply`] records if any input is tracked. What `seam.rs` is to the fast
//! operations, for every backend; gradients are added by the tape.

use std::fmt::Debug;
use std::marker::PhantomData;

use burn_autodiff::{
    Autodiff,
    checkpoint::{base::Checkpointer, strategy::NoCheckpointing},
    grads::Gradients,
    ops::{Backward, Ops, OpsKind},
};
use burn_backend::tensor::FloatTensor;
use burn_backend::{Backend, TensorData, TensorMetadata, read_sync};
use burn_dispatch::{DispatchAutodiffContext, DispatchKindConversion, DispatchTensor};
use burn_tensor::Tensor;

use crate::Tensor2;
use crate::seam::{FastOp, Raw, dims, make, values};

/// CubeCL's backend, whichever device it runs on.
pub(crate) type Cube = burn_cubecl::CubeBackend;

/// An operation with `N` tensor inputs.
pub(crate) trait DeviceOp<B: Backend, const N: usize>:
    Clone + Send + Debug + 'static
{
    /// What the backward needs; only this is kept alive.
    type Saved: Clone + Send + Debug + 'static;

    /// Computes the output and what to keep.
    fn forward(&self, inputs: [FloatTensor<B>; N]) -> (FloatTensor<B>, Self::Saved);

    /// Gradients of the inputs that are `wanted`, given the output's.
    fn backward(
        &self,
        saved: Self::Saved,
        g: FloatTensor<B>,
        wanted: [bool; N],
    ) -> [Option<FloatTensor<B>>; N];
}

#[derive(Debug)]
struct Step<B, O, const N: usize>(PhantomData<(B, O)>);

impl<B: Backend, O: DeviceOp<B, N>, const N: usize> Backward<B, N> for Step<B, O, N> {
    type State = (O, O::Saved);

    fn backward(self, step: Ops<Self::State, N>, gradients: &mut Gradients, _: &mut Checkpointer) {
        let g = gradients.consume::<B>(&step.node);
        let (op, saved) = step.state;
        let wanted = step.parents.each_ref().map(Option::is_some);
        for (parent, gradient) in step.parents.into_iter().zip(op.backward(saved, g, wanted)) {
            if let (Some(parent), Some(gradient)) = (parent, gradient) {
                gradients.register::<B>(parent.id, gradient);
            }
        }
    }
}

type Recording<B> = Autodiff<B, NoCheckpointing>;

/// Runs `op` on inputs of backend `B`; if one is tracked, the backward joins the tape.
pub(crate) fn apply<B, O, const N: usize>(op: O, inputs: [Tensor2; N]) -> Tensor2
where
    B: Backend,
    O: DeviceOp<B, N>,
    DispatchTensor: DispatchKindConversion<B> + DispatchKindConversion<Recording<B>>,
{
    let inputs = inputs.map(Tensor::into_dispatch);
    if inputs.iter().all(|x| x.autodiff == DispatchAutodiffContext::Disabled) {
        return Tensor::from_primitive::<B>(op.forward(inputs.map(untracked::<B>)).0);
    }
    let mut nodes = Vec::with_capacity(N);
    let raws = inputs.map(|x| {
        let tensor: FloatTensor<Recording<B>> = match x.autodiff {
            DispatchAutodiffContext::Disabled => {
                FloatTensor::<Recording<B>>::new(untracked::<B>(x))
            }
            _ => {
                let tensor =
                    <DispatchTensor as DispatchKindConversion<Recording<B>>>::try_into_backend(x);
                tensor.expect("the inputs of an operation are on one device").float()
            }
        };
        let (raw, node) = tensor.into_parts();
        nodes.push(node);
        raw
    });
    let nodes: [_; N] = nodes.try_into().unwrap_or_else(|_| unreachable!("one node per input"));
    let output = match Step::<B, O, N>(PhantomData)
        .prepare::<NoCheckpointing>(nodes)
        .compute_bound()
        .stateful()
    {
        OpsKind::Tracked(step) => {
            let (output, saved) = op.forward(raws);
            step.finish((op, saved), output)
        }
        OpsKind::UnTracked(step) => step.finish(op.forward(raws).0),
    };
    Tensor::from_primitive::<Recording<B>>(output)
}

fn untracked<B: Backend>(x: DispatchTensor) -> FloatTensor<B>
where
    DispatchTensor: DispatchKindConversion<B>,
{
    let tensor = <DispatchTensor as DispatchKindConversion<B>>::try_into_backend(x);
    tensor.expect("the inputs of an operation are on one device").float()
}

/// A fast operation whose inputs come from a device and whose results go there: for what is small
/// and asks the processors anyway.
#[derive(Clone, Debug)]
pub(crate) struct OnHost<O>(pub(crate) O);

/// The values of `x` in the memory of the processors.
pub(crate) fn read<B: Backend>(x: FloatTensor<B>) -> Raw {
    let data = read_sync(B::float_into_data(x)).unwrap_or_else(|error| panic!("{error}"));
    let (rows, columns) = (data.shape()[0], data.shape()[1]);
    make(data.try_into_vec::<f32>().expect("every tensor of this crate is f32"), rows, columns)
}

/// A copy of `x` on `device`.
pub(crate) fn put<B: Backend>(x: &Raw, device: &B::Device) -> FloatTensor<B> {
    let (rows, columns) = dims(x);
    B::float_from_data(TensorData::new(values(x).to_vec(), [rows, columns]), device)
}

impl<B: Backend, O: FastOp<N>, const N: usize> DeviceOp<B, N> for OnHost<O> {
    type Saved = O::Saved;

    fn forward(&self, inputs: [FloatTensor<B>; N]) -> (FloatTensor<B>, O::Saved) {
        let device = inputs[0].device();
        let (output, saved) = self.0.forward(inputs.map(read::<B>));
        (put::<B>(&output, &device), saved)
    }

    fn backward(
        &self,
        saved: O::Saved,
        g: FloatTensor<B>,
        wanted: [bool; N],
    ) -> [Option<FloatTensor<B>>; N] {
        let device = g.device();
        let found = self.0.backward(saved, read::<B>(g), wanted, None);
        found.map(|gradient| gradient.map(|gradient| put::<B>(&gradient, &device)))
    }
}
