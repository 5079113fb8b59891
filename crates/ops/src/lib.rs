//! Differentiable operations on Burn tensors. Every operation has one contract and two bodies: a
//! plain one built from Burn's own operations, which runs on every backend and is the reference,
//! and a fast one for the CPU with an explicit backward. No room above this one names a backend.
//!
//! | letter | axis | letter | axis |
//! |---|---|---|---|
//! | `t` | rows (tokens in flight) | `h` | query heads |
//! | `a` | active rows of `t`, or entries of experts | `g` | key/value heads |
//! | `d` | model width | `k` | head width |
//! | `f` | feed-forward width | `v` | vocabulary |
//! | `r` | recursions | `n` | outputs of a projection |
//! | `e` | experts | | |

mod adamw;
mod adapted;
mod attach_loss;
mod attend;
mod chosen;
mod clamped_swiglu;
mod columns;
mod consistency;
mod device;
#[cfg(any(feature = "gpu", feature = "cuda"))]
mod device_norm;
#[cfg(any(feature = "gpu", feature = "cuda"))]
mod device_seam;
mod distill;
mod elsewhere;
mod embed;
mod gate;
mod gated;
mod gelu;
mod grouped;
mod gru;
mod head;
mod kept;
mod latent;
mod layer_norm;
mod linear;
mod norm;
mod output_head;
mod pages;
mod pointwise;
mod pooled_balance;
mod recompute;
mod rotary;
mod rows;
mod seam;
mod sinks;
mod swiglu;
mod tensor;
pub mod timing;
mod weight;

pub use adamw::{AdamW, Moments};
pub use adapted::{AdaptedWeight, AdapterLeaf};
pub use attend::{Heads, Spans};
pub use chosen::ChosenWeights;
pub use columns::length_ratios;
pub use device::{Device, DeviceError, DeviceName};
pub use distill::distill_rows;
pub use elsewhere::Elsewhere;
pub use gate::{Activation, entropy_term};
pub use gated::GateFunction;
pub use head::{head_rows, log_softmax_rows};
pub use kernels::adapted as formulas;
pub use norm::RmsNorm;
pub use output_head::Head;
pub use pages::{KvFormat, KvStore, PAGE, PageView};
pub use pooled_balance::{BalancePool, PoolShare};
pub use recompute::backward_from;
pub use rotary::{Rotary, rates};
pub use rows::Combine;
pub use tensor::{
    Tensor2, add, add_scalars, backward, clamp, cut, for_rows, from_rows, gradient, leaf, multiply,
    read_rows, rows_of, scalar, scale, shift, stack, write_rows, zeros_like,
};
pub use weight::{
    Element, Format, QuantError, Quantized, SQUARES_CHUNK, StoredPart, Values, Weight,
};

/// Which body of each operation runs. The model never asks; the caller of a pass decides once.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Ops {
    /// The explicit forward and backward on CPU slices.
    Fast,
    /// Burn's operations and Burn's tape, on this device: any backend, and the reference for
    /// `Fast`.
    Plain(Device),
}

impl Ops {
    /// The plain operations on the processors.
    pub const PLAIN: Self = Self::Plain(Device::CPU);

    /// The fastest operations that run on `device`.
    pub fn on(device: Device) -> Self {
        if device == Device::CPU { Self::Fast } else { Self::Plain(device) }
    }

    /// Where these operations compute.
    pub fn device(self) -> Device {
        match self {
            Self::Fast => Device::CPU,
            Self::Plain(device) => device,
        }
    }

    /// The start of every pass: a value that records (training) or does not (inference). Everything
    /// computed from it inherits the choice and the device, so no layer has a training flag.
    pub fn anchor(self, record: bool) -> Tensor2 {
        tensor::anchor(self.device(), record)
    }
}

/// The machine's multiply-add rate in f32, measured now on all threads (about 0.1 s), in FLOP/s.
pub fn peak_flops() -> f64 {
    kernels::machine::peak_flops(rayon::current_num_threads())
}

/// One measurement of the same rate over `time`, for comparing with work done just before or after
/// it on a machine whose speed varies.
pub fn flops_for(time: std::time::Duration) -> f64 {
    kernels::machine::flops_for(rayon::current_num_threads(), time)
}

/// Bytes a second that all threads read from memory, measured now.
pub fn read_bandwidth() -> f64 {
    kernels::machine::read_bandwidth(rayon::current_num_threads())
}

/// From now on operations get their result buffers filled with NaN, so that tests see an element
/// that was not written.
pub fn poison_buffers() {
    kernels::memory::poison();
}

/// `sum += values`, element by element. Panics when the lengths differ.
pub fn add_into(sum: &mut [f32], values: &[f32]) {
    kernels::rows::add_into(sum, values);
}

/// The sum of squares of every [`SQUARES_CHUNK`] values: what norms of gradients are made of.
pub fn chunks_of_squares(values: &[f32]) -> Vec<f64> {
    kernels::rows::chunks_of_squares(values)
}

/// Tells the allocator to keep freed pages for the next step; for a process that trains.
pub fn keep_freed_pages() {
    kernels::memory::keep_freed_pages();
}

/// Tells the allocator to give back what is not needed for a while; for a process that serves.
pub fn give_back_freed_pages() {
    kernels::memory::give_back_freed_pages();
}

/// Gives back now what this thread and those that have ended freed.
pub fn collect_freed_pages() {
    kernels::memory::collect();
}

/// Bounds the memory of this process; for one that runs what somebody else wrote.
///
/// # Errors
/// What the operating system refuses.
pub fn bound_address_space(bytes: u64) -> std::io::Result<()> {
    kernels::memory::bound_address_space(bytes)
}

/// The number formats and instruction set in use, for reports.
pub fn machine() -> String {
    format!("f32, {}, {} threads", kernels::machine::simd(), rayon::current_num_threads())
}
