//! What the tests of the operations share: random matrices, and running one case with one body.

// Every test file uses a part of this.
#![allow(dead_code)]

use ops::{Ops, Tensor2, Weight, backward, from_rows, gradient, leaf, read_rows};

/// Random numbers of the tests (SplitMix64).
pub(crate) struct Dice(pub(crate) u64);

impl Dice {
    pub(crate) fn next(&mut self) -> u64 {
        self.0 = self.0.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let mut z = self.0;
        z = (z ^ (z >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        z = (z ^ (z >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
        z ^ (z >> 31)
    }

    /// Uniform in [-1, 1).
    pub(crate) fn number(&mut self) -> f32 {
        (self.next() >> 40) as f32 / (1u64 << 23) as f32 - 1.0
    }

    pub(crate) fn numbers(&mut self, count: usize) -> Vec<f32> {
        (0..count).map(|_| self.number()).collect()
    }

    pub(crate) fn below(&mut self, limit: u32) -> u32 {
        (self.next() % u64::from(limit)) as u32
    }

    pub(crate) fn matrix(&mut self, rows: usize, columns: usize) -> Matrix {
        Matrix { values: self.numbers(rows * columns), rows, columns }
    }
}

/// Every way to run an operation: the fast body, the plain one, and the plain one on the device
/// that `LATHE_DEVICE` names (`gpu` without it), where the build has devices.
pub(crate) fn bodies() -> Vec<Ops> {
    [Ops::Fast, Ops::PLAIN].into_iter().chain(on_device()).collect()
}

#[cfg(not(feature = "gpu"))]
pub(crate) fn on_device() -> Option<Ops> {
    None
}

#[cfg(feature = "gpu")]
pub(crate) fn on_device() -> Option<Ops> {
    let name = std::env::var("LATHE_DEVICE").unwrap_or_else(|_| "gpu".into());
    let device = ops::Device::open(name.parse().expect("a name"));
    Some(Ops::on(device.expect("a device: lavapipe is one of software")))
}

/// Values with their shape.
#[derive(Clone)]
pub(crate) struct Matrix {
    pub(crate) values: Vec<f32>,
    pub(crate) rows: usize,
    pub(crate) columns: usize,
}

impl Matrix {
    pub(crate) fn tensor(&self) -> Tensor2 {
        // An element that an operation forgets to write shows up as NaN.
        ops::poison_buffers();
        from_rows(self.values.clone(), self.rows, self.columns)
    }

    /// The same where `ops` compute.
    pub(crate) fn tensor_of(&self, ops: Ops) -> Tensor2 {
        ops::poison_buffers();
        ops.from_rows(self.values.clone(), self.rows, self.columns)
    }

    pub(crate) fn weight(&self) -> Weight {
        let weight = Weight::new(self.values.clone(), self.rows, self.columns);
        weight.collect_gradient(true);
        weight
    }
}

type Body = Box<dyn Fn(Ops, &[Tensor2], &[Weight]) -> Tensor2>;

/// One operation on given inputs and weights.
pub(crate) struct Case {
    pub(crate) name: String,
    pub(crate) inputs: Vec<Matrix>,
    pub(crate) weights: Vec<Matrix>,
    pub(crate) body: Body,
}

/// Output and gradients of a random linear functional of it.
pub(crate) struct Ran {
    pub(crate) values: Vec<f32>,
    pub(crate) inputs: Vec<Option<Vec<f32>>>,
    pub(crate) weights: Vec<Option<Vec<f32>>>,
}

/// The functional's coefficients for `count` outputs.
pub(crate) fn coefficients(count: usize) -> Vec<f32> {
    Dice(77).numbers(count)
}

impl Case {
    pub(crate) fn run(&self, ops: Ops) -> Ran {
        let inputs: Vec<Tensor2> = self.inputs.iter().map(|m| leaf(&m.tensor_of(ops))).collect();
        let weights: Vec<Weight> = self.weights.iter().map(Matrix::weight).collect();
        let y = (self.body)(ops, &inputs, &weights);
        let values = read_rows(&y);
        let loss = ops.weighted_sum(y, coefficients(values.len()));
        let gradients = backward(&loss);
        if ops != Ops::Fast {
            weights.iter().for_each(|w| w.take_plain_gradient(&gradients));
        }
        Ran {
            values,
            inputs: inputs.iter().map(|x| gradient(x, &gradients).map(|g| read_rows(&g))).collect(),
            weights: weights.iter().map(Weight::read_gradient).collect(),
        }
    }

    /// The functional without recording, in f64 over the f32 output.
    pub(crate) fn functional(&self, ops: Ops, inputs: &[Matrix], weights: &[Matrix]) -> f64 {
        let inputs: Vec<Tensor2> = inputs.iter().map(Matrix::tensor).collect();
        let weights: Vec<Weight> =
            weights.iter().map(|m| Weight::new(m.values.clone(), m.rows, m.columns)).collect();
        let y = read_rows(&(self.body)(ops, &inputs, &weights));
        y.iter().zip(coefficients(y.len())).map(|(&y, c)| f64::from(y) * f64::from(c)).sum()
    }
}
