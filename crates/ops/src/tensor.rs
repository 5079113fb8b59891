//! The few things the rooms above do with a tensor besides the operations: make one, read one, add
//! scalars, go backward.

use burn_tensor::{Device as BurnDevice, Gradients, Tensor, TensorData};
use rayon::prelude::*;

use crate::device::Device;
use crate::{Ops, seam};

/// A matrix of f32: rows by columns.
pub type Tensor2 = Tensor<2>;

pub(crate) fn anchor(device: Device, record: bool) -> Tensor2 {
    let device = if record { device.burn().autodiff() } else { device.burn() };
    let zero = Tensor::<2>::from_data(TensorData::new(vec![0.0f32], [1, 1]), &device);
    if record { zero.require_grad() } else { zero }
}

impl Ops {
    /// A constant matrix of `rows` x `columns` values, row after row, where these operations
    /// compute. Panics if the count is wrong.
    pub fn from_rows(self, values: Vec<f32>, rows: usize, columns: usize) -> Tensor2 {
        if self.device() == Device::CPU {
            return from_rows(values, rows, columns);
        }
        constant(values, rows, columns, &self.device().burn())
    }

    /// A constant column vector where these operations compute.
    pub fn column(self, values: Vec<f32>) -> Tensor2 {
        let rows = values.len();
        self.from_rows(values, rows, 1)
    }
}

/// A constant matrix on the processors, of `rows` x `columns` values, row after row. Panics if the
/// count is wrong.
pub fn from_rows(values: Vec<f32>, rows: usize, columns: usize) -> Tensor2 {
    assert_eq!(values.len(), rows * columns, "a {rows} x {columns} matrix needs that many values");
    crate::seam::wrap(crate::seam::make(values, rows, columns))
}

/// A constant matrix on the device of the plain operations around it.
pub(crate) fn constant(
    values: Vec<f32>,
    rows: usize,
    columns: usize,
    device: &BurnDevice,
) -> Tensor2 {
    Tensor::from_data(TensorData::new(values, [rows, columns]), device)
}

/// Zeros in the shape of `x`, on its device; nothing is recorded for them.
pub fn zeros_like(x: &Tensor2) -> Tensor2 {
    let [rows, columns] = x.dims();
    constant(vec![0.0; rows * columns], rows, columns, &x.device())
}

/// A constant turned into a tracked leaf, whose gradient [`gradient`] reads after [`backward`].
pub fn leaf(values: &Tensor2) -> Tensor2 {
    Tensor::from_inner(values.clone()).require_grad()
}

/// The same values with no path back to where they came from, yet still recording if they were:
/// what is computed from them trains its own weights only.
pub fn cut(x: &Tensor2) -> Tensor2 {
    if x.device().is_autodiff() { leaf(&x.clone().inner()) } else { x.clone() }
}

/// All values, row after row.
pub fn read_rows(x: &Tensor2) -> Vec<f32> {
    match crate::seam::raw_on_cpu(x) {
        Some(raw) => crate::seam::values(&raw).to_vec(),
        None => {
            // What went wrong on a device since the last read is told here; `Device::guard` makes
            // it an error.
            let data = x.clone().try_into_data().unwrap_or_else(|error| panic!("{error}"));
            data.try_into_vec::<f32>().expect("every tensor of this crate is f32")
        }
    }
}

/// `x`, which is not tracked, where `like` is.
pub(crate) fn beside(x: Tensor2, like: &Tensor2) -> Tensor2 {
    let (here, [rows, columns]) = (like.device().without_autodiff(), x.dims());
    if x.device() == here { x } else { constant(read_rows(&x), rows, columns, &here) }
}

/// The value of a 1 x 1 tensor.
pub fn scalar(x: &Tensor2) -> f32 {
    read_rows(x)[0]
}

/// Runs the tape from a 1 x 1 loss. Gradients of weights arrive in their own buffers; those of
/// leaves are in the result.
pub fn backward(loss: &Tensor2) -> Gradients {
    seam::forget_arrived();
    loss.clone().backward()
}

/// Gradient of a leaf, if anything reached it.
pub fn gradient(leaf: &Tensor2, gradients: &Gradients) -> Option<Tensor2> {
    leaf.grad(gradients)
}

/// Values of rows that one task takes.
const TASK_VALUES: usize = 1 << 12;

/// What `of` makes of each row of `width` values, one after another, on all threads.
pub fn for_rows<T: Send>(
    values: &[f32],
    width: usize,
    of: impl Fn(&[f32]) -> Vec<T> + Sync,
) -> Vec<T> {
    let width = width.max(1);
    let task = (TASK_VALUES / width).max(1) * width;
    let tasks = values.par_chunks(task);
    tasks.flat_map_iter(|rows| rows.chunks_exact(width).flat_map(&of)).collect()
}

/// `x * factor` for a 1 x 1 loss term.
pub fn scale(x: Tensor2, factor: f32) -> Tensor2 {
    x.mul_scalar(factor)
}

/// `x + y`, element by element.
pub fn add(x: Tensor2, y: Tensor2) -> Tensor2 {
    x + y
}

/// `x * y`, element by element.
pub fn multiply(x: Tensor2, y: Tensor2) -> Tensor2 {
    x * y
}

/// `x + offset`, element by element.
pub fn shift(x: Tensor2, offset: f32) -> Tensor2 {
    x.add_scalar(offset)
}

/// `x` within `-limit` and `limit`, element by element; no gradient reaches what was cut.
pub fn clamp(x: Tensor2, limit: f32) -> Tensor2 {
    x.clamp(-limit, limit)
}

/// Sum of 1 x 1 loss terms. Panics on an empty list.
pub fn add_scalars(terms: Vec<Tensor2>) -> Tensor2 {
    terms.into_iter().reduce(|a, b| a + b).expect("a loss has at least one term")
}

/// Writes `rows` into `store`, which goes to where they are, starting at row `first`; in place when
/// nobody else holds the store, and both are on the processors.
pub fn write_rows(store: Tensor2, first: usize, rows: &Tensor2) -> Tensor2 {
    if seam::raw_on_cpu(rows).is_some() {
        return seam::write_rows(store, first, rows);
    }
    let [count, columns] = rows.dims();
    beside(store, rows).slice_assign([first..first + count, 0..columns], rows.clone())
}

/// Rows `range` of a matrix.
pub fn rows_of(x: &Tensor2, range: std::ops::Range<usize>) -> Tensor2 {
    if range.len() == x.dims()[0] {
        x.clone()
    } else {
        x.clone().narrow(0, range.start, range.len())
    }
}

/// Matrices of equal width one below the other. Panics on an empty list.
pub fn stack(parts: Vec<Tensor2>) -> Tensor2 {
    Tensor::cat(parts, 0)
}
