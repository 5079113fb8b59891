//! LoKr (Yeh et al., 2023, arXiv 2309.14859): `W + alpha / r kron(w1, w2)`, each factor whole or a
//! product of low rank. The scale stands even where neither is such a product.

use kernels::adapted::{AdapterChange, KRONECKER, KroneckerFactor, KroneckerProduct};

use super::{Kind, Site};
use crate::peft::leaves::{Leaves, must_be};
use crate::peft::settings::Settings;
use crate::{FormatError, Result};

pub(super) static LOKR: Kind = Kind {
    name: "LOKR",
    leaves: &["lokr_w1", "lokr_w1_a", "lokr_w1_b", "lokr_w2", "lokr_w2_a", "lokr_w2_b"],
    wide: false,
    shared: &[],
    settings: &[
        "alpha",
        "decompose_both",
        "decompose_factor",
        "init_weights",
        "module_dropout",
        "r",
        "rank_dropout",
        "rank_dropout_scale",
    ],
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
    let [first, second] = [0, 1].map(|side| read(leaves, side, rank, site));
    let (first, second) = (first?, second?);
    let (one, two) = (first.shape(), second.shape());
    let found = (one.0 * two.0, one.1 * two.1);
    if found != (out, into) {
        let field = format!("tensors of {module}");
        let expected = format!("factors whose Kronecker product is [{out}, {into}]");
        let found = format!("one of [{}, {}]", found.0, found.1);
        return Err(FormatError::damaged(&leaves.path(), field, expected, found));
    }
    let scale = settings.alpha(module, "alpha")? / rank as f64;
    Ok(Box::new(KroneckerProduct { sides: [first, second], scale }))
}

/// One factor of the product.
fn read(leaves: &Leaves<'_>, side: usize, rank: usize, site: &Site<'_>) -> Result<KroneckerFactor> {
    let &Site { module, out, into, .. } = site;
    let [whole, a, b] = KRONECKER[side];
    if leaves.has(whole) {
        if leaves.has(a) || leaves.has(b) {
            let field = format!("tensors of {module}");
            let expected = format!("{whole} or its factors {a} and {b}");
            return Err(FormatError::damaged(&leaves.path(), field, expected, "both"));
        }
        let [rows, columns] = leaves.axes::<2>(whole)?;
        let whole = leaves.take(whole, &[rows, columns])?;
        return Ok(KroneckerFactor::whole(rows, columns, whole));
    }
    let [rows, found] = leaves.axes::<2>(a)?;
    must_be(&leaves.path(), &format!("tensor {a} of {module}: rank"), rank, found)?;
    let [_, columns] = leaves.axes::<2>(b)?;
    // Before anything of its size is made: low rank is a short file.
    if rows > out || columns > into {
        let field = format!("tensors {a} and {b} of {module}: product");
        let expected = format!("at most [{out}, {into}], the module's shape");
        let found = format!("[{rows}, {columns}]");
        return Err(FormatError::damaged(&leaves.path(), field, expected, found));
    }
    let (a, b) = (leaves.take(a, &[rows, rank])?, leaves.take(b, &[rank, columns])?);
    Ok(KroneckerFactor::of_rank(rank, a, b))
}
