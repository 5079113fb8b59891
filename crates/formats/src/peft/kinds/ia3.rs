//! IA3 (Liu et al., 2022, arXiv 2205.05638): outputs times a vector, with the bias; of modules that
//! the config calls feedforward inputs times a vector, without it.

use super::{Kind, Site};
use crate::Result;
use crate::peft::change::{AdapterChange, Affine, LeafGradients};
use crate::peft::leaves::Leaves;
use crate::peft::settings::Settings;

const VECTOR: &str = "ia3_l";

pub(super) static IA3: Kind = Kind {
    name: "IA3",
    leaves: &[VECTOR],
    wide: false,
    shared: &[],
    settings: &["feedforward_modules", "init_ia3_weights"],
    check: |_| Ok(()),
    build,
};

fn build(
    settings: &Settings,
    leaves: &Leaves<'_>,
    site: &Site<'_>,
) -> Result<Box<dyn AdapterChange>> {
    let &Site { module, out, into, .. } = site;
    let inputs = settings.is_named("feedforward_modules", module)?;
    let shape = if inputs { [1, into] } else { [out, 1] };
    let vector = leaves.take(VECTOR, &shape)?;
    Ok(Box::new(Factors { vector, inputs }))
}

#[derive(Debug)]
struct Factors {
    vector: Vec<f64>,
    /// Whether inputs are multiplied, and not outputs.
    inputs: bool,
}

impl Factors {
    fn at(&self, place: usize, into: usize) -> usize {
        if self.inputs { place % into } else { place / into }
    }
}

impl AdapterChange for Factors {
    fn merge(&self, base: &mut Affine) {
        let into = base.into;
        for (place, x) in base.weight.iter_mut().enumerate() {
            *x *= self.vector[self.at(place, into)];
        }
        if let (Some(bias), false) = (&mut base.bias, self.inputs) {
            bias.iter_mut().zip(&self.vector).for_each(|(b, l)| *b *= l);
        }
    }

    fn gradients(&self, base: &Affine, gradient: &Affine) -> LeafGradients {
        let mut found = vec![0.0; self.vector.len()];
        for (place, (w, g)) in base.weight.iter().zip(&gradient.weight).enumerate() {
            found[self.at(place, base.into)] += w * g;
        }
        if let (Some(bias), Some(of_bias), false) = (&base.bias, &gradient.bias, self.inputs) {
            for (found, (b, g)) in found.iter_mut().zip(bias.iter().zip(of_bias)) {
                *found += b * g;
            }
        }
        vec![(VECTOR, found)]
    }
}
