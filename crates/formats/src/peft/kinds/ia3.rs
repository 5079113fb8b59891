//! IA3 (Liu et al., 2022, arXiv 2205.05638): outputs times a vector, with the bias; of modules that
//! the config calls feedforward inputs times a vector, without it.

use kernels::adapted::{AdapterChange, IA3_VECTOR, VectorFactors};

use super::{Kind, Site};
use crate::Result;
use crate::peft::leaves::Leaves;
use crate::peft::settings::Settings;

pub(super) static IA3: Kind = Kind {
    name: "IA3",
    leaves: &[IA3_VECTOR],
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
    let vector = leaves.take(IA3_VECTOR, &shape)?;
    Ok(Box::new(VectorFactors { vector, inputs }))
}
