//! LoRA (Hu et al., 2021, arXiv 2106.09685), `W + s B A` with `s = alpha / r`; rank-stabilised
//! with `alpha / sqrt(r)` (Kalajdzievski, 2023, arXiv 2312.03732); with magnitudes of its rows
//! (DoRA, Liu et al., 2024, arXiv 2402.09353), `m D / |D|` row by row with `D = W + s B A`, whose
//! lengths count as constants in gradients.
//!
//! Of experts A is `[E r, in]` with the expert slow, and B `[out, r E]` with the expert fast.

use kernels::adapted::{
    AdapterChange, Affine, LeafGradients, add, dot, product, product_of_columns, product_of_rows,
    transposed,
};
use serde_json::json;

use super::{Kind, Site};
use crate::Result;
use crate::peft::leaves::{Leaves, must_be};
use crate::peft::settings::Settings;

const A: &str = "lora_A.weight";
const B: &str = "lora_B.weight";
const BIAS: &str = "lora_B.bias";
const MAGNITUDE: &str = "lora_magnitude_vector";
const EMBEDDING_A: &str = "lora_embedding_A";
const EMBEDDING_B: &str = "lora_embedding_B";

pub(super) static LORA: Kind = Kind {
    name: "LORA",
    leaves: &[A, B, BIAS, MAGNITUDE, EMBEDDING_A, EMBEDDING_B],
    wide: true,
    shared: &[],
    settings: &[
        "eva_config",
        "init_lora_weights",
        "lora_alpha",
        "lora_bias",
        "lora_dropout",
        "megatron_core",
        "qalora_group_size",
        "r",
        "use_dora",
        "use_rslora",
    ],
    check,
    build,
};

/// Ways to start that change the base are refused: what is added then belongs to another base.
fn check(settings: &Settings) -> Result<()> {
    let starts = [json!(true), json!(false), json!("gaussian"), json!("eva"), json!("orthogonal")];
    settings.neutral("init_lora_weights", &starts)
}

fn build(
    settings: &Settings,
    leaves: &Leaves<'_>,
    site: &Site<'_>,
) -> Result<Box<dyn AdapterChange>> {
    let &Site { module, key, matrices, out, into, embedding } = site;
    let rank = settings.rank(key)?;
    let alpha = settings.alpha(key, "lora_alpha")?;
    let root = if settings.flag("use_rslora")? { (rank as f64).sqrt() } else { rank as f64 };
    let scale = alpha / root;
    let has_rank = |leaf: &str, found| {
        must_be(&leaves.path(), &format!("tensor {leaf} of {module}: rank"), rank, found)
    };
    if embedding {
        leaves.only(&[EMBEDDING_A, EMBEDDING_B], "for an embedding")?;
        has_rank(EMBEDDING_A, leaves.axes::<2>(EMBEDDING_A)?[0])?;
        let a = leaves.take(EMBEDDING_A, &[rank, out])?;
        let b = leaves.take(EMBEDDING_B, &[into, rank])?;
        // E + s (B A)^T = E + s A^T B^T.
        let (a, b) = (transposed(&b, rank), transposed(&a, out));
        let low = LowRank { rank, scale, a, b, embedding, magnitude: None, bias: None };
        return Ok(Box::new(low));
    }
    leaves.only(&[A, B, BIAS, MAGNITUDE], "for a matrix")?;
    has_rank(A, leaves.axes::<2>(A)?[0] / matrices)?;
    let a = leaves.take(A, &[matrices * rank, into])?;
    let b = leaves.take(B, &[out, rank * matrices])?;
    let magnitude = match settings.flag("use_dora")? {
        true if matrices > 1 => {
            return Err(settings.wrong("use_dora", "false for experts in one tensor"));
        }
        true => Some(leaves.take(MAGNITUDE, &[out])?),
        false => {
            leaves.only(&[A, B, BIAS], "where use_dora is false")?;
            None
        }
    };
    let bias = match settings.flag("lora_bias")? {
        true if matrices > 1 => {
            return Err(settings.wrong("lora_bias", "false for experts in one tensor"));
        }
        true if magnitude.is_some() => {
            return Err(settings.wrong("lora_bias", "false beside use_dora"));
        }
        true => Some(leaves.take(BIAS, &[out])?),
        false => {
            leaves.only(&[A, B, MAGNITUDE], "where lora_bias is false")?;
            None
        }
    };
    Ok(Box::new(LowRank { rank, scale, a, b, embedding, magnitude, bias }))
}

#[derive(Debug)]
struct LowRank {
    rank: usize,
    scale: f64,
    /// `A` of every expert, `[E, r, in]`; one where the tensor is a matrix.
    a: Vec<f64>,
    /// `B` of all of them, `[out, r, E]`: the expert is the innermost index.
    b: Vec<f64>,
    embedding: bool,
    magnitude: Option<Vec<f64>>,
    bias: Option<Vec<f64>>,
}

impl LowRank {
    fn a_of(&self, expert: usize, into: usize) -> &[f64] {
        &self.a[expert * self.rank * into..(expert + 1) * self.rank * into]
    }

    /// `B` of one expert, `[out, r]`.
    fn b_of(&self, expert: usize, matrices: usize) -> Vec<f64> {
        self.b.iter().skip(expert).step_by(matrices).copied().collect()
    }

    /// `W + s B A` of all matrices.
    fn sum(&self, base: &Affine) -> Vec<f64> {
        let mut sum = base.weight.clone();
        let Affine { matrices, into, .. } = *base;
        for (expert, sum) in sum.chunks_exact_mut(base.out * into).enumerate() {
            let b = self.b_of(expert, matrices);
            add(sum, self.scale, &product(&b, self.a_of(expert, into), self.rank, into));
        }
        sum
    }
}

/// The length of each row.
fn lengths(matrix: &[f64], columns: usize) -> Vec<f64> {
    let rows = matrix.chunks_exact(columns.max(1));
    rows.map(|row| dot(row, row).sqrt().max(f64::MIN_POSITIVE)).collect()
}

impl AdapterChange for LowRank {
    fn needs_bias(&self) -> bool {
        self.bias.is_some()
    }

    fn merge(&self, base: &mut Affine) {
        let mut merged = self.sum(base);
        if let Some(magnitude) = &self.magnitude {
            let lengths = lengths(&merged, base.into);
            let rows = merged.chunks_exact_mut(base.into.max(1));
            for ((row, m), length) in rows.zip(magnitude).zip(lengths) {
                row.iter_mut().for_each(|x| *x *= m / length);
            }
        }
        base.weight = merged;
        if let (Some(bias), Some(added)) = (&mut base.bias, &self.bias) {
            add(bias, self.scale, added);
        }
    }

    fn gradients(&self, base: &Affine, gradient: &Affine) -> LeafGradients {
        let Affine { matrices, out, into, .. } = *base;
        let mut found = LeafGradients::new();
        let mut of_sum = gradient.weight.clone();
        if let Some(magnitude) = &self.magnitude {
            let sum = self.sum(base);
            let lengths = lengths(&sum, into);
            let mut of_magnitude = Vec::new();
            let rows = of_sum.chunks_exact_mut(into).zip(sum.chunks_exact(into));
            for ((row, sum), (m, length)) in rows.zip(magnitude.iter().zip(lengths)) {
                of_magnitude.push(dot(row, sum) / length);
                row.iter_mut().for_each(|x| *x *= m / length);
            }
            found.push((MAGNITUDE, of_magnitude));
        }
        let (mut of_a, mut of_b) = (Vec::new(), vec![0.0; self.b.len()]);
        for (expert, of_sum) in of_sum.chunks_exact(out * into).enumerate() {
            let b = self.b_of(expert, matrices);
            let a = product_of_columns(&b, of_sum, self.rank, into);
            of_a.extend(a.into_iter().map(|x| self.scale * x));
            let b = product_of_rows(of_sum, self.a_of(expert, into), into);
            for (i, x) in b.into_iter().enumerate() {
                of_b[i * matrices + expert] = self.scale * x;
            }
        }
        if self.embedding {
            found.push((EMBEDDING_A, transposed(&of_b, self.rank)));
            found.push((EMBEDDING_B, transposed(&of_a, into)));
            return found;
        }
        found.extend([(A, of_a), (B, of_b)]);
        if let (Some(_), Some(of_bias)) = (&self.bias, &gradient.bias) {
            found.push((BIAS, of_bias.iter().map(|x| self.scale * x).collect()));
        }
        found
    }
}
