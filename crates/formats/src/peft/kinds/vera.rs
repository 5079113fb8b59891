//! VeRA (Kopiczko et al., 2023, arXiv 2310.11454): `W + diag(b) B diag(d) A` with A and B that all
//! modules share, of which each takes its first rows and columns.

use kernels::adapted::{AdapterChange, SharedProjection, VERA_INNER, VERA_OUTER};

use super::{Kind, Site};
use crate::peft::leaves::{Leaves, must_be};
use crate::peft::settings::Settings;
use crate::{FormatError, Result};

const SHARED_A: &str = "vera_A";
const SHARED_B: &str = "vera_B";

pub(super) static VERA: Kind = Kind {
    name: "VERA",
    leaves: &[VERA_OUTER, VERA_INNER],
    wide: false,
    shared: &[SHARED_A, SHARED_B],
    settings: &[
        "d_initial",
        "init_weights",
        "projection_prng_key",
        "r",
        "save_projection",
        "vera_dropout",
    ],
    check: |_| Ok(()),
    build,
};

fn build(
    settings: &Settings,
    leaves: &Leaves<'_>,
    site: &Site<'_>,
) -> Result<Box<dyn AdapterChange>> {
    if !leaves.has(SHARED_A) || !leaves.has(SHARED_B) {
        let expected = "true: without it the file lacks the matrices that all modules share, which \
                        torch's generator drew and nothing else draws again";
        return Err(settings.object().unsupported("save_projection", expected));
    }
    let rank = settings.count("r")?;
    let &Site { module, out, into, .. } = site;
    let [rows, most_in] = leaves.axes::<2>(SHARED_A)?;
    let [most_out, columns] = leaves.axes::<2>(SHARED_B)?;
    must_be(&leaves.path(), "tensor vera_A: rank", rank, rows)?;
    must_be(&leaves.path(), "tensor vera_B: rank", rank, columns)?;
    if most_in < into || most_out < out {
        let expected = format!("vera_A and vera_B of at least {into} inputs and {out} outputs");
        let found = format!("{most_in} and {most_out}");
        return Err(FormatError::damaged(&leaves.path(), module, expected, found));
    }
    let a = leaves.take(SHARED_A, &[rank, most_in])?;
    let b = leaves.take(SHARED_B, &[most_out, rank])?;
    Ok(Box::new(SharedProjection {
        a: a.chunks_exact(most_in).flat_map(|row| &row[..into]).copied().collect(),
        b: b[..out * rank].to_vec(),
        inner: leaves.take(VERA_INNER, &[rank])?,
        outer: leaves.take(VERA_OUTER, &[out])?,
    }))
}
