//! RMSNorm of whole rows as kernels of a device, forward and backward: `y = x r w` with `r = 1 /
//! sqrt(mean(x^2) + eps)`. Every sum has a fixed order, no unit waits for another's addition, so
//! the same device gives the same bits each time.
#![allow(unreachable_pub, reason = "the launchers that the macro writes")]

use burn_backend::{DType, Shape};
use burn_cubecl::cubecl::{self, prelude::*};
use burn_cubecl::kernel::into_contiguous;
use burn_cubecl::ops::numeric::empty_device_dtype;
use burn_cubecl::tensor::CubeTensor;

use crate::device_seam::{Cube, DeviceOp};

/// Units that work on one row together; a power of two.
const UNITS: u32 = 64;
/// Cubes along the first axis of a launch at most; devices allow 65535.
const CUBES: u32 = 32_768;
/// Rows of which one unit adds up the share in the gradient of a weight.
const ROWS: u32 = 32;

/// The sum of what the units of a cube hold, as a tree whose shape never changes.
#[cube]
fn sum_of_units(mine: f32, #[comptime] units: usize) -> f32 {
    let mut part = Shared::<[f32]>::new_slice(units);
    let me = UNIT_POS_X as usize;
    part[me] = mine;
    sync_cube();
    let mut half = (units / 2).runtime();
    while half > 0 {
        if me < half {
            let other = part[me + half];
            part[me] += other;
        }
        sync_cube();
        half /= 2;
    }
    part[0]
}

/// `y` and the factor `r` of each row, one cube a row.
#[cube(launch)]
fn forward(
    x: &Tensor<f32>,
    w: &Tensor<f32>,
    y: &mut Tensor<f32>,
    r: &mut Tensor<f32>,
    eps: f32,
    #[comptime] units: usize,
) {
    let (rows, width) = (x.shape(0), x.shape(1));
    let row = CUBE_POS;
    if row >= rows {
        terminate!();
    }
    let first = row * width;
    let mut sum = 0.0f32;
    let mut j = UNIT_POS_X as usize;
    while j < width {
        let v = x[first + j];
        sum += v * v;
        j += units;
    }
    let sum = sum_of_units(sum, units);
    let factor = 1.0f32 / f32::sqrt(sum / f32::cast_from(width) + eps);
    if UNIT_POS_X == 0 {
        r[row] = factor;
    }
    let mut j = UNIT_POS_X as usize;
    while j < width {
        y[first + j] = x[first + j] * factor * w[j];
        j += units;
    }
}

/// `dx = r (w g - x r^2 mean(w g x))`, one cube a row.
#[cube(launch)]
fn backward_rows(
    x: &Tensor<f32>,
    w: &Tensor<f32>,
    g: &Tensor<f32>,
    r: &Tensor<f32>,
    dx: &mut Tensor<f32>,
    #[comptime] units: usize,
) {
    let (rows, width) = (x.shape(0), x.shape(1));
    let row = CUBE_POS;
    if row >= rows {
        terminate!();
    }
    let first = row * width;
    let mut sum = 0.0f32;
    let mut j = UNIT_POS_X as usize;
    while j < width {
        sum += w[j] * g[first + j] * x[first + j];
        j += units;
    }
    let factor = r[row];
    let mean = sum_of_units(sum, units) / f32::cast_from(width) * factor * factor;
    let mut j = UNIT_POS_X as usize;
    while j < width {
        dx[first + j] = factor * (w[j] * g[first + j] - x[first + j] * mean);
        j += units;
    }
}

/// `sum_t g[t,j] x[t,j] r[t]` over each stretch of `each` rows in ascending order, one unit a
/// stretch and column.
#[cube(launch)]
fn backward_weight(
    x: &Tensor<f32>,
    g: &Tensor<f32>,
    r: &Tensor<f32>,
    parts: &mut Tensor<f32>,
    #[comptime] each: usize,
) {
    let (rows, width) = (x.shape(0), x.shape(1));
    let place = ABSOLUTE_POS;
    if place >= parts.shape(0) * width {
        terminate!();
    }
    let (stretch, j) = (place / width, place % width);
    let mut sum = 0.0f32;
    let mut row = stretch * each;
    let end = row + each;
    while row < end && row < rows {
        sum += g[row * width + j] * x[row * width + j] * r[row];
        row += 1;
    }
    parts[place] = sum;
}

/// The sum of the rows of `parts` in ascending order, one unit a column.
#[cube(launch)]
fn sum_rows(parts: &Tensor<f32>, sums: &mut Tensor<f32>) {
    let (rows, width) = (parts.shape(0), parts.shape(1));
    let j = ABSOLUTE_POS;
    if j >= width {
        terminate!();
    }
    let mut sum = 0.0f32;
    for row in 0..rows {
        sum += parts[row * width + j];
    }
    sums[j] = sum;
}

fn empty(like: &CubeTensor, rows: usize, columns: usize) -> CubeTensor {
    let shape = Shape::from([rows, columns]);
    empty_device_dtype(like.client.clone(), like.device.clone(), shape, DType::F32)
}

fn dims(x: &CubeTensor) -> (usize, usize) {
    (x.meta.shape()[0], x.meta.shape()[1])
}

/// Cubes for `count` pieces of work.
fn cubes(count: usize) -> CubeCount {
    let count = u32::try_from(count).unwrap_or(u32::MAX);
    CubeCount::Static(count.min(CUBES), count.div_ceil(CUBES), 1)
}

/// The norm of rows `[t, d]` with the weight `[1, d]`.
#[derive(Clone, Debug)]
pub(crate) struct Norm {
    pub(crate) eps: f32,
}

impl DeviceOp<Cube, 2> for Norm {
    /// Rows, weight and the factor of each row.
    type Saved = [CubeTensor; 3];

    fn forward(&self, inputs: [CubeTensor; 2]) -> (CubeTensor, Self::Saved) {
        let [x, w] = inputs.map(into_contiguous);
        let (t, d) = dims(&x);
        let (y, r) = (empty(&x, t, d), empty(&x, t, 1));
        if t > 0 {
            forward::launch(
                &x.client.clone(),
                cubes(t),
                CubeDim::new_1d(UNITS),
                x.clone().into_tensor_arg(),
                w.clone().into_tensor_arg(),
                y.clone().into_tensor_arg(),
                r.clone().into_tensor_arg(),
                self.eps,
                UNITS as usize,
            );
        }
        (y, [x, w, r])
    }

    fn backward(
        &self,
        [x, w, r]: Self::Saved,
        g: CubeTensor,
        wanted: [bool; 2],
    ) -> [Option<CubeTensor>; 2] {
        let (g, (t, d), client) = (into_contiguous(g), dims(&x), x.client.clone());
        if t == 0 {
            return [Some(g), None];
        }
        let dx = wanted[0].then(|| {
            let dx = empty(&x, t, d);
            backward_rows::launch(
                &client,
                cubes(t),
                CubeDim::new_1d(UNITS),
                x.clone().into_tensor_arg(),
                w.clone().into_tensor_arg(),
                g.clone().into_tensor_arg(),
                r.clone().into_tensor_arg(),
                dx.clone().into_tensor_arg(),
                UNITS as usize,
            );
            dx
        });
        let dw = wanted[1].then(|| {
            let stretches = t.div_ceil(ROWS as usize);
            let (parts, dw) = (empty(&x, stretches, d), empty(&x, 1, d));
            backward_weight::launch(
                &client,
                cubes((stretches * d).div_ceil(UNITS as usize)),
                CubeDim::new_1d(UNITS),
                x.into_tensor_arg(),
                g.into_tensor_arg(),
                r.into_tensor_arg(),
                parts.clone().into_tensor_arg(),
                ROWS as usize,
            );
            sum_rows::launch(
                &client,
                cubes(d.div_ceil(UNITS as usize)),
                CubeDim::new_1d(UNITS),
                parts.into_tensor_arg(),
                dw.clone().into_tensor_arg(),
            );
            dw
        });
        [dx, dw]
    }
}
