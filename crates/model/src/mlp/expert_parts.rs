//! The matrices and biases of a layer with experts, by name.

use crate::params::Part;

/// `[E 2 f, d]`: gate, then up, of one expert after another.
pub const EXPERTS_GATE_UP: Part = Part::new("experts_gate_up");
/// `[E d, f]`: what each expert writes to the stream.
pub const EXPERTS_DOWN: Part = Part::new("experts_down");
/// `[E, 2 f]`: what is added to gate and up of each expert.
pub const EXPERTS_GATE_UP_BIAS: Part = Part::new("experts_gate_up_bias");
/// `[E, d]`: what is added to the result of each expert, and weighted with it.
pub const EXPERTS_DOWN_BIAS: Part = Part::new("experts_down_bias");
/// `[m, d]`: what all experts of a layer read in place of the row.
pub const EXPERTS_LATENT: Part = Part::new("experts_latent");
/// `[2 f, d]`: gate, then up, of the shared expert.
pub const SHARED_GATE_UP: Part = Part::new("shared_gate_up");
/// `[d, f]`: what the shared expert writes to the stream.
pub const SHARED_DOWN: Part = Part::new("shared_down");
/// `[1, 2 f]`: added to gate, then to up, of the shared expert.
pub const SHARED_GATE_UP_BIAS: Part = Part::new("shared_gate_up_bias");
/// `[1, d]`: added to what the shared expert writes.
pub const SHARED_DOWN_BIAS: Part = Part::new("shared_down_bias");

/// Those of them that hold something of every expert, in the order of the parameter table.
pub const BANKS: [Part; 4] =
    [EXPERTS_GATE_UP, EXPERTS_DOWN, EXPERTS_GATE_UP_BIAS, EXPERTS_DOWN_BIAS];
