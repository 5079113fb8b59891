//! FourierFT (Gao et al., 2024, arXiv 2405.03003): the real part of an inverse Fourier transform of
//! a matrix with few numbers in it is added, `W + scaling Re(ifft2(M))`.

use std::f64::consts::TAU;

use kernels::adapted::{AdapterChange, Affine, LeafGradients};

use super::positions::drawn;
use super::{Kind, Site};
use crate::Result;
use crate::peft::leaves::{Leaves, must_be};
use crate::peft::settings::Settings;

const SPECTRUM: &str = "fourierft_spectrum";

pub(super) static FOURIERFT: Kind = Kind {
    name: "FOURIERFT",
    leaves: &[SPECTRUM],
    wide: false,
    shared: &[],
    settings: &["init_weights", "n_frequency", "n_frequency_pattern", "random_loc_seed", "scaling"],
    check: |_| Ok(()),
    build,
};

fn build(
    settings: &Settings,
    leaves: &Leaves<'_>,
    site: &Site<'_>,
) -> Result<Box<dyn AdapterChange>> {
    let &Site { module, out, into, .. } = site;
    let count = settings.frequencies(site.key)?;
    let [found] = leaves.axes::<1>(SPECTRUM)?;
    must_be(&leaves.path(), &format!("tensor {SPECTRUM} of {module}: numbers"), count, found)?;
    Ok(Box::new(Waves {
        numbers: leaves.take(SPECTRUM, &[count])?,
        places: drawn(settings, count, out, into)?,
        scale: settings.number("scaling")? / (out * into) as f64,
    }))
}

#[derive(Debug)]
struct Waves {
    numbers: Vec<f64>,
    places: Vec<(usize, usize)>,
    /// With the `1 / (out in)` of the transform.
    scale: f64,
}

/// Cosine and sine of `TAU frequency i / size` for each i.
fn wave(frequency: usize, size: usize) -> Vec<(f64, f64)> {
    let angle = |i: usize| TAU * ((frequency * i) % size) as f64 / size as f64;
    (0..size).map(|i| (angle(i).cos(), angle(i).sin())).collect()
}

impl AdapterChange for Waves {
    fn merge(&self, base: &mut Affine) {
        for (number, &(u, v)) in self.numbers.iter().zip(&self.places) {
            let across = wave(v, base.into);
            let rows = base.weight.chunks_exact_mut(base.into).zip(wave(u, base.out));
            for (row, (c, s)) in rows {
                for (x, (ca, sa)) in row.iter_mut().zip(&across) {
                    *x += self.scale * number * (c * ca - s * sa);
                }
            }
        }
    }

    fn gradients(&self, base: &Affine, gradient: &Affine) -> LeafGradients {
        let mut found = Vec::new();
        for &(u, v) in &self.places {
            let across = wave(v, base.into);
            let mut sum = 0.0;
            for (row, (c, s)) in gradient.weight.chunks_exact(base.into).zip(wave(u, base.out)) {
                sum +=
                    row.iter().zip(&across).map(|(g, (ca, sa))| g * (c * ca - s * sa)).sum::<f64>();
            }
            found.push(self.scale * sum);
        }
        vec![(SPECTRUM, found)]
    }
}
