//! The one place where our operations meet Burn's tape: an operation is a forward and a backward on
//! CPU tensors, and [`apply`] records it if any input is tracked. Burn is pinned; nothing else in
//! the workspace touches these types.

use std::cell::RefCell;
use std::collections::HashSet;
use std::fmt::Debug;
use std::marker::PhantomData;

use burn_autodiff::{
    Autodiff, NodeId,
    checkpoint::{base::Checkpointer, strategy::NoCheckpointing},
    grads::Gradients,
    ops::{Backward, Ops, OpsKind},
};
use burn_backend::tensor::FloatTensor;
use burn_dispatch::{DispatchAutodiffContext, DispatchKindConversion, DispatchTensor};
use burn_flex::{Flex, FlexTensor, Layout};
use burn_tensor::{Bytes, DType, Shape, Tensor};

use crate::{Tensor2, timing};

type Recording = Autodiff<Flex, NoCheckpointing>;

/// A CPU tensor inside an operation.
pub(crate) type Raw = FlexTensor;

/// An operation with `N` tensor inputs. Weights, indices and sizes live in the operation itself.
pub(crate) trait FastOp<const N: usize>: Clone + Send + Debug + 'static {
    /// What the backward needs; only this is kept alive.
    type Saved: Clone + Send + Debug + 'static;

    /// Computes the output. Inputs come by value, so that a sole owner may be overwritten.
    fn forward(&self, inputs: [Raw; N]) -> (Raw, Self::Saved);

    /// Gradients of the inputs that are `wanted`, given the output's gradient. `earlier` is the
    /// gradient that input [`FastOp::continues`] has received so far; the returned one must include
    /// it.
    fn backward(
        &self,
        saved: Self::Saved,
        g: Raw,
        wanted: [bool; N],
        earlier: Option<Raw>,
    ) -> [Option<Raw>; N];

    /// The input that another operation, downstream of this one's output, also reads: its gradient
    /// has then already arrived when this backward runs, and can be added to in place (the residual
    /// stream). Where none of ours has, as when that operation reads rows gathered from it, there
    /// is none earlier.
    fn continues(&self) -> Option<usize> {
        None
    }
}

#[derive(Debug)]
struct Step<O, const N: usize>(PhantomData<O>);

impl<const N: usize, O: FastOp<N>> Backward<Flex, N> for Step<O, N> {
    type State = (O, O::Saved);

    fn backward(self, step: Ops<Self::State, N>, gradients: &mut Gradients, _: &mut Checkpointer) {
        let g = contiguous(gradients.consume::<Flex>(&step.node));
        leaves(step.node.id);
        let (op, saved) = step.state;
        // A leaf's gradient stays in the container when read, so only inner nodes can be continued
        // in place.
        let earlier = op
            .continues()
            .and_then(|i| step.parents[i].clone())
            .filter(|parent| !parent.parents.is_empty() && has_arrived(parent.id))
            .map(|parent| {
                leaves(parent.id);
                contiguous(gradients.consume::<Flex>(&parent))
            });
        let wanted = step.parents.each_ref().map(Option::is_some);
        let found = timing::of::<O, _>(false, || op.backward(saved, g, wanted, earlier));
        for (parent, gradient) in step.parents.into_iter().zip(found) {
            let (Some(parent), Some(gradient)) = (parent, gradient) else { continue };
            // What the tape would do in a new buffer, with the backend's addition, which is slow.
            let sum = if parent.parents.is_empty() || arrives(parent.id) {
                gradient
            } else {
                let mut sum = contiguous(gradients.consume::<Flex>(&parent));
                kernels::rows::add_into(values_mut(&mut sum), values(&contiguous(gradient)));
                sum
            };
            gradients.register::<Flex>(parent.id, sum);
        }
    }
}

thread_local! {
    /// Inner nodes with a gradient from one of our operations that waits for its own backward.
    static ARRIVED: RefCell<HashSet<NodeId>> = RefCell::default();
}

/// Whether `node` now has a gradient for the first time.
fn arrives(node: NodeId) -> bool {
    ARRIVED.with_borrow_mut(|arrived| arrived.insert(node))
}

/// Whether a gradient of one of our operations waits at `node`.
fn has_arrived(node: NodeId) -> bool {
    ARRIVED.with_borrow(|arrived| arrived.contains(&node))
}

/// To be called for each gradient that is read.
fn leaves(node: NodeId) {
    ARRIVED.with_borrow_mut(|arrived| arrived.remove(&node));
}

/// Forgets gradients that nothing read: they belong to a tape that ended.
pub(crate) fn forget_arrived() {
    ARRIVED.with_borrow_mut(HashSet::clear);
}

/// Runs `op`; if an input is tracked, the backward joins the tape.
pub(crate) fn apply<const N: usize, O: FastOp<N>>(op: O, inputs: [Tensor2; N]) -> Tensor2 {
    let inputs = inputs.map(Tensor::into_dispatch);
    if inputs.iter().all(|x| x.autodiff == DispatchAutodiffContext::Disabled) {
        let inputs = inputs.map(untracked);
        return Tensor::from_primitive::<Flex>(timing::of::<O, _>(true, || op.forward(inputs)).0);
    }
    let mut nodes = Vec::with_capacity(N);
    let raws = inputs.map(|x| {
        let tracked: FloatTensor<Recording> = if x.autodiff == DispatchAutodiffContext::Disabled {
            FloatTensor::<Recording>::new(untracked(x))
        } else {
            let tensor = <DispatchTensor as DispatchKindConversion<Recording>>::try_into_backend(x);
            tensor.expect("recording tensors live on the CPU backend").float()
        };
        let (raw, node) = tracked.into_parts();
        nodes.push(node);
        contiguous(raw)
    });
    let nodes: [_; N] = nodes.try_into().unwrap_or_else(|_| unreachable!("one node per input"));
    let output = match Step::<O, N>(PhantomData)
        .prepare::<NoCheckpointing>(nodes)
        .compute_bound()
        .stateful()
    {
        OpsKind::Tracked(step) => {
            let (output, saved) = timing::of::<O, _>(true, || op.forward(raws));
            step.finish((op, saved), output)
        }
        OpsKind::UnTracked(step) => step.finish(timing::of::<O, _>(true, || op.forward(raws)).0),
    };
    Tensor::from_primitive::<Recording>(output)
}

fn untracked(x: DispatchTensor) -> Raw {
    let tensor = <DispatchTensor as DispatchKindConversion<Flex>>::try_into_backend(x);
    contiguous(tensor.expect("fast operations need tensors of the CPU backend").float())
}

/// The values of any tensor, tracked or not, without a copy if they lie row after row.
pub(crate) fn raw(x: &Tensor2) -> Raw {
    raw_on_cpu(x).expect("fast operations need tensors of the CPU backend")
}

/// Like [`raw`]; nothing for a tensor of another backend.
pub(crate) fn raw_on_cpu(x: &Tensor2) -> Option<Raw> {
    let x = x.clone().into_dispatch();
    let raw = if x.autodiff == DispatchAutodiffContext::Disabled {
        <DispatchTensor as DispatchKindConversion<Flex>>::try_into_backend(x).ok()?.float()
    } else {
        let tracked = <DispatchTensor as DispatchKindConversion<Recording>>::try_into_backend(x);
        tracked.ok()?.float().into_primitive()
    };
    Some(contiguous(raw))
}

/// The values of any tensor, copied where they are not on the processors.
pub(crate) fn host(x: &Tensor2) -> Raw {
    let [rows, columns] = x.dims();
    raw_on_cpu(x).unwrap_or_else(|| make(crate::read_rows(x), rows, columns))
}

/// Like [`raw`], giving up the tensor, so that a sole owner stays a sole owner.
pub(crate) fn into_raw(x: Tensor2) -> Raw {
    untracked(x.into_dispatch())
}

/// An untracked tensor over `raw`.
pub(crate) fn wrap(raw: Raw) -> Tensor2 {
    Tensor::from_primitive::<Flex>(raw)
}

fn contiguous(x: Raw) -> Raw {
    if is_row_after_row(&x) { x } else { x.to_contiguous() }
}

/// Whether the values of a matrix lie row after row from the start of its storage; the step along
/// an axis of one entry, or of none, may be any. Asked of every input of every operation, so it
/// does without the general answer, which walks all dimensions.
fn is_row_after_row(x: &Raw) -> bool {
    let layout = x.layout();
    let (&[rows, columns], &[down, along]) = (layout.shape().as_slice(), layout.strides()) else {
        return false;
    };
    let follows = (rows <= 1 || down == columns as isize) && (columns <= 1 || along == 1);
    (follows || rows * columns == 0) && layout.start_offset() == 0
}

/// A CPU tensor that takes over `values`.
pub(crate) fn make(values: Vec<f32>, rows: usize, columns: usize) -> Raw {
    debug_assert_eq!(values.len(), rows * columns);
    let layout = Layout::new(Shape::from([rows, columns]), vec![columns as isize, 1], 0);
    FlexTensor::new(Bytes::from_elems(values), layout, DType::F32)
}

/// The values of a contiguous f32 tensor.
pub(crate) fn values(x: &Raw) -> &[f32] {
    assert!(is_row_after_row(x), "operations hold matrices that lie row after row");
    let (rows, columns) = dims(x);
    &x.storage::<f32>()[..rows * columns]
}

/// The values for writing; copies first if somebody else holds them too.
pub(crate) fn values_mut(x: &mut Raw) -> &mut [f32] {
    x.storage_mut::<f32>()
}

/// Rows, then columns, of a matrix.
pub(crate) fn dims(x: &Raw) -> (usize, usize) {
    let shape = x.layout().shape().as_slice();
    (shape[0], shape[1])
}

pub(crate) fn write_rows(store: Tensor2, first: usize, rows: &Tensor2) -> Tensor2 {
    let mut store = into_raw(store);
    let rows = raw(rows);
    let ((capacity, width), (count, columns)) = (dims(&store), dims(&rows));
    assert!(
        columns == width && first + count <= capacity,
        "rows {first}..{} of {capacity} x {width}",
        first + count
    );
    values_mut(&mut store)[first * width..(first + count) * width].copy_from_slice(values(&rows));
    wrap(store)
}

/// A buffer for an operation's result.
#[allow(unsafe_code)]
pub(crate) fn buffer(len: usize) -> Vec<f32> {
    // SAFETY: operations hand their buffers to kernels that write all of them before anything reads
    // them; the tests of this room run every operation over buffers that start as NaN.
    unsafe { kernels::memory::buffer(len) }
}
