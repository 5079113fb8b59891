//! WaveFT (Bilican et al., 2025, arXiv 2505.12532): a matrix with few numbers in it is added, or
//! what one inverse step of a Haar transform makes of it, `(a +- h +- v +- d) / 2` of its
//! quadrants.

use kernels::adapted::{AdapterChange, Affine, LeafGradients};
use serde_json::json;

use super::positions::drawn;
use super::{Kind, Site};
use crate::Result;
use crate::peft::leaves::{Leaves, must_be};
use crate::peft::settings::Settings;

const SPECTRUM: &str = "waveft_spectrum";

pub(super) static WAVEFT: Kind = Kind {
    name: "WAVEFT",
    leaves: &[SPECTRUM],
    wide: false,
    shared: &[],
    settings: &[
        "init_weights",
        "n_frequency",
        "n_frequency_pattern",
        "proportional_parameters",
        "random_loc_seed",
        "scaling",
        "use_idwt",
        "wavelet_family",
    ],
    check,
    build,
};

/// Other wavelets than Haar's reach beyond their quadrants.
fn check(settings: &Settings) -> Result<()> {
    settings.neutral("proportional_parameters", &[json!(false)])?;
    if settings.transforms()? {
        settings.neutral("wavelet_family", &[json!("db1")])?;
    }
    Ok(())
}

fn build(
    settings: &Settings,
    leaves: &Leaves<'_>,
    site: &Site<'_>,
) -> Result<Box<dyn AdapterChange>> {
    let &Site { module, out, into, .. } = site;
    let count = settings.frequencies(site.key)?;
    let [found] = leaves.axes::<1>(SPECTRUM)?;
    must_be(&leaves.path(), &format!("tensor {SPECTRUM} of {module}: numbers"), count, found)?;
    let transform = settings.transforms()?;
    Ok(Box::new(Wavelets {
        numbers: leaves.take(SPECTRUM, &[count])?,
        places: drawn(settings, count, out, into)?,
        scale: settings.number("scaling")?,
        transform,
    }))
}

#[derive(Debug)]
struct Wavelets {
    numbers: Vec<f64>,
    places: Vec<(usize, usize)>,
    scale: f64,
    transform: bool,
}

impl Wavelets {
    /// Where number at `(row, column)` is added in a matrix `[out, into]`, with its factors.
    fn spread(&self, (row, column): (usize, usize), out: usize, into: usize) -> Vec<(usize, f64)> {
        if !self.transform {
            return vec![(row * into + column, self.scale)];
        }
        let (half_out, half_in) = (out.div_ceil(2), into.div_ceil(2));
        // Quadrants: sums at the top left; at the top right (cH) the sign changes with the row, at
        // the bottom left (cV) with the column, at the bottom right with both.
        let (by_column, by_row) = (row / half_out == 1, column / half_in == 1);
        let mut found = Vec::with_capacity(4);
        for (p, q) in [(0, 0), (0, 1), (1, 0), (1, 1)] {
            let negative = (by_row && p == 1) != (by_column && q == 1);
            let (row, column) = (2 * (row % half_out) + p, 2 * (column % half_in) + q);
            // Odd sides are made even and cut again.
            if row < out && column < into {
                found.push((row * into + column, self.scale * if negative { -0.5 } else { 0.5 }));
            }
        }
        found
    }
}

impl AdapterChange for Wavelets {
    fn merge(&self, base: &mut Affine) {
        for (number, place) in self.numbers.iter().zip(&self.places) {
            for (at, factor) in self.spread(*place, base.out, base.into) {
                base.weight[at] += number * factor;
            }
        }
    }

    fn gradients(&self, base: &Affine, gradient: &Affine) -> LeafGradients {
        let of = |place: &(usize, usize)| {
            let spread = self.spread(*place, base.out, base.into);
            spread.into_iter().map(|(at, factor)| factor * gradient.weight[at]).sum()
        };
        vec![(SPECTRUM, self.places.iter().map(of).collect())]
    }
}
