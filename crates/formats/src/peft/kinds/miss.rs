//! MiSS (Kang and Yin, 2024, arXiv 2409.15371): a block that repeats along the inputs is added,
//! `W'[o, i] = W[o, i] + block[i mod r, o]`. In the form "bat" each block `[r, r]` of W is
//! multiplied by one of its rows of blocks, `W + W B + B`; in the form "mini" the block repeats
//! along the outputs, too.

use kernels::adapted::{AdapterChange, MISS_BLOCK, MultipliedBlocks, RepeatedBlock};
use serde_json::json;

use super::{Kind, Site};
use crate::peft::leaves::Leaves;
use crate::peft::settings::Settings;
use crate::{FormatError, Result};

pub(super) static MISS: Kind = Kind {
    name: "MISS",
    leaves: &[MISS_BLOCK],
    wide: false,
    shared: &[],
    settings: &["init_weights", "mini_r", "miss_dropout", "r"],
    check,
    build,
};

fn check(settings: &Settings) -> Result<()> {
    let known = [json!(true), json!(false), json!("bat"), json!("mini")];
    settings.neutral("init_weights", &known)
}

fn build(
    settings: &Settings,
    leaves: &Leaves<'_>,
    site: &Site<'_>,
) -> Result<Box<dyn AdapterChange>> {
    let &Site { module, out, into, .. } = site;
    let rank = settings.rank(module)?;
    let divides = |what: &str, size: usize, by: usize| match size.is_multiple_of(by) {
        true => Ok(()),
        false => {
            let field = format!("tensors of {module}");
            let expected = format!("a divisor of its {size} {what}");
            Err(FormatError::damaged(&leaves.path(), field, expected, by.to_string()))
        }
    };
    match settings.text("init_weights") {
        Some("bat") => {
            divides("outputs", out, rank)?;
            divides("inputs", into, rank)?;
            let blocks = leaves.take(MISS_BLOCK, &[out / rank, rank, rank])?;
            Ok(Box::new(MultipliedBlocks { blocks, rank }))
        }
        form => {
            let repeated = if form == Some("mini") { settings.count("mini_r")? } else { out };
            divides("outputs", out, repeated)?;
            let block = leaves.take(MISS_BLOCK, &[rank, repeated])?;
            Ok(Box::new(RepeatedBlock { block, rank, out: repeated }))
        }
    }
}
