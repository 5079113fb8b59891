//! LoHa (Hyeon-Woo et al., 2021, arXiv 2108.06098): `W + alpha / r (w1_a w1_b) o (w2_a w2_b)`, an
//! entrywise product of two matrices of low rank.

use kernels::adapted::{AdapterChange, ENTRYWISE, EntrywiseProduct};

use super::{Kind, Site};
use crate::Result;
use crate::peft::leaves::{Leaves, must_be};
use crate::peft::settings::Settings;

const FIRST_B: &str = ENTRYWISE[1];

pub(super) static LOHA: Kind = Kind {
    name: "LOHA",
    leaves: &ENTRYWISE,
    wide: false,
    shared: &[],
    settings: &["alpha", "init_weights", "module_dropout", "r", "rank_dropout"],
    check: |_| Ok(()),
    build,
};

fn build(
    settings: &Settings,
    leaves: &Leaves<'_>,
    site: &Site<'_>,
) -> Result<Box<dyn AdapterChange>> {
    let &Site { module, out, into, .. } = site;
    let rank = settings.rank(module)?;
    let found = leaves.axes::<2>(FIRST_B)?[0];
    must_be(&leaves.path(), &format!("tensor {FIRST_B} of {module}: rank"), rank, found)?;
    let pair =
        |a, b| -> Result<_> { Ok((leaves.take(a, &[out, rank])?, leaves.take(b, &[rank, into])?)) };
    let [first_a, first_b, second_a, second_b] = ENTRYWISE;
    let pairs = [pair(first_a, first_b)?, pair(second_a, second_b)?];
    let scale = settings.alpha(module, "alpha")? / rank as f64;
    Ok(Box::new(EntrywiseProduct { pairs, rank, scale }))
}
