//! Adapters that a run of ours trained, as a folder that PEFT loads.

use std::collections::BTreeMap;
use std::path::Path;

use checkpoint::Disk;
use formats::TensorRole;
use formats::hf::AllTensors;
use formats::peft::{WrittenPair, write_lora};
use model::adapters::{Relaxation, lora};
use model::params::{ParamPlace, ParamSpec, Part};
use model::{Sharing, pattern};
use train::Stored;

use crate::ConvertError;
use crate::error::refused;
use crate::peft::{architecture_of, tensors_of};
use crate::roles::{roles, settings_of};

/// The tensors of an adapter of ours by their names.
type Factors<'a> = BTreeMap<String, &'a std::sync::Arc<ops::Weight>>;

/// Writes the `lora` or `dora` adapters of a checkpoint as the folder `out`, for the base that the
/// run froze.
///
/// # Errors
/// Adapters of another kind or none, layers that are used more than once, a base that the run
/// trained, too, a matrix of ours that is part of one of theirs, or what the disk refuses.
pub fn export_adapters(stored: &Stored, out: &Path, disk: &dyn Disk) -> Result<(), ConvertError> {
    let config = stored.model.config();
    let settings = lora_of(&config.relax)?;
    if config.sharing != Sharing::None {
        let expected = "a model whose layers are used once, as other programs know it";
        let next = "unroll it by `lathe convert --sharing none`, which merges its adapters";
        return refused("the checkpoint: model.sharing", expected, "shared layers", next);
    }
    base_must_be_frozen(stored)?;
    let origin = stored.origin.as_ref().and_then(|origin| origin["architecture"].as_str());
    let mut plain = config.clone();
    plain.relax = Relaxation::NONE;
    let architecture = architecture_of(&plain, origin, out)?;
    let tensors = tensors_of(architecture, &plain, out)?;
    let mut found: BTreeMap<(usize, Part), Factors<'_>> = BTreeMap::new();
    for (spec, weight) in stored.model.weights() {
        if let ParamPlace::Adapter { stored: layer, part, factor, .. } = &spec.place {
            found.entry((*layer, *part)).or_default().insert(factor.to_string(), weight);
        }
    }
    let mut pairs = Vec::new();
    for ((layer, part), factors) in &found {
        let place = ParamPlace::Layer { stored: *layer, part: *part };
        let all = stored.model.weights().iter();
        let Some((spec, base)) = all.into_iter().find(|(spec, _)| spec.place == place) else {
            continue;
        };
        let of = roles(spec, &settings_of(&plain)).unwrap_or_default();
        pairs.extend(pairs_of(spec, &base.values(), &of, factors, &tensors)?);
    }
    Ok(write_lora(out, settings.rank, settings.alpha, &pairs, disk)?)
}

fn lora_of(relax: &Relaxation) -> Result<&lora::Config, ConvertError> {
    match relax {
        Relaxation::Lora(config) => Ok(config),
        Relaxation::Dora(config) => Ok(&config.0),
        other => {
            let expected = "adapters that are lora or dora";
            let next = "train some: `[model.relax]` of a recipe";
            refused("the checkpoint: model.relax", expected, other.kind(), next)
        }
    }
}

/// Refuses adapters over a base that is not the one they began with.
fn base_must_be_frozen(stored: &Stored) -> Result<(), ConvertError> {
    let patterns = stored.recipe.as_ref().map_or(&[][..], |recipe| &recipe.train.freeze);
    let moves = |spec: &&ParamSpec| {
        let frozen = patterns.iter().any(|pattern| pattern::fits(pattern, &spec.name));
        !spec.place.is_relaxation() && !frozen
    };
    let mut specs = stored.model.weights().iter().map(|(spec, _)| spec);
    match specs.find(moves) {
        None => Ok(()),
        Some(spec) => {
            let expected =
                "a base that stays as it is, so that the adapters are all that was learned";
            let next = "train with train.freeze = [\"embed\", \"norm\", \"head\", \"layers.*\"]";
            refused(
                "the checkpoint: train.freeze",
                expected,
                format!("{} trained", spec.name),
                next,
            )
        }
    }
}

/// The adapters of the modules that stand below each other in one matrix of ours: they share A.
fn pairs_of(
    spec: &ParamSpec,
    base: &[f32],
    of: &[TensorRole],
    factors: &Factors<'_>,
    tensors: &AllTensors,
) -> Result<Vec<WrittenPair>, ConvertError> {
    let (Some(down), Some(up)) = (factors.get("down"), factors.get("up")) else {
        return refused(&spec.name, "the two matrices of a pair", "one alone", "train it again");
    };
    let (a, b, rank) = (down.read(), up.read(), down.shape().0);
    let lengths = factors.get("length").map(|weight| weight.read());
    let (mut pairs, mut row): (Vec<WrittenPair>, usize) = (Vec::new(), 0);
    for role in of {
        let name = tensors.names().find(|name| tensors.roles(name).contains(role));
        let name = name.unwrap_or_default();
        let whole = tensors.roles(name).iter().all(|role| of.contains(role));
        let module = name.strip_suffix(".weight").filter(|_| whole && !tensors.is_turned());
        let Some(module) = module else {
            let expected = "a matrix that is one or several whole modules of theirs";
            let next = "merge the adapters: `lathe convert --sharing none`";
            return refused(&spec.name, expected, format!("a part of {name}"), next);
        };
        let rows = row..row + tensors.rows(name, *role);
        row = rows.end;
        let magnitude = lengths.as_ref().map(|lengths| {
            let columns = spec.shape.1;
            let row = |row: usize| {
                let own = &base[row * columns..(row + 1) * columns];
                let square: f64 = own.iter().map(|x| f64::from(*x).powi(2)).sum();
                (f64::from(lengths[row]) * square.sqrt()) as f32
            };
            rows.clone().map(row).collect::<Vec<f32>>()
        });
        let b = &b[rows.start * rank..rows.end * rank];
        match pairs.last_mut().filter(|last| last.module == module) {
            Some(last) => {
                last.b.extend_from_slice(b);
                if let (Some(last), Some(more)) = (&mut last.magnitude, magnitude) {
                    last.extend(more);
                }
            }
            None => pairs.push(WrittenPair {
                module: module.to_owned(),
                a: a.clone(),
                b: b.to_vec(),
                magnitude,
            }),
        }
    }
    Ok(pairs)
}
