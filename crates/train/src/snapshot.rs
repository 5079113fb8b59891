//! A trainer as a checkpoint.

use std::collections::BTreeMap;

use checkpoint::{NamedTensor, Pieces, Snapshot, TensorData};
use model::Rule;
use model::params::ParamSpec;
use ops::{Moments, Values};

use crate::experts::Gathering;
use crate::given_config::json;
use crate::rounded::{self, Rounded};
use crate::stored::State;
use crate::{TrainError, Trainer, freeze};

/// A checkpoint of `trainer`, over these `moments` and the `values` of its weights in the order of
/// the parameter table: nothing of either is copied. Weights without values are rounded; those that
/// are being gathered come by `next` in the place of both.
pub(crate) fn snapshot<'a>(
    trainer: &'a Trainer,
    (moments, values): (&'a [Option<Moments>], &'a [Option<Values>]),
    data: &str,
    rule: Option<&Rule>,
    tokenizer: &[u8],
    gathering: Option<(&Gathering<'_>, Next<'a>)>,
) -> Result<Snapshot<'a>, TrainError> {
    let (mut weights, mut optimizer) = (Vec::new(), Vec::new());
    let table = trainer.model.weights().iter().map(|(spec, _)| spec).enumerate();
    for (((number, spec), values), moments) in table.zip(values).zip(moments) {
        let next = gathering.filter(|(gathering, _)| gathering.has(number)).map(|(_, next)| next);
        if let Some(values) = values {
            weights.push(matrix(spec.name.clone(), spec.shape, values, next));
        }
        let Some(Moments { first, second }) = moments else { continue };
        optimizer.push(matrix(format!("first.{}", spec.name), spec.shape, first, next));
        optimizer.push(matrix(format!("second.{}", spec.name), spec.shape, second, next));
    }
    let state = State::of(trainer, data);
    let mut documents = BTreeMap::from([
        ("config".to_owned(), json(trainer.model.config())),
        ("recipe".to_owned(), json(&trainer.recipe)),
        ("state".to_owned(), json(&state)),
    ]);
    if let Some(Rule::Causal(decision)) = rule {
        documents.insert("routing".to_owned(), json(decision));
    }
    if let Some(text) = &trainer.text {
        documents.insert("text".to_owned(), json(text));
    }
    let table: Vec<ParamSpec> =
        trainer.model.weights().iter().map(|(spec, _)| spec.clone()).collect();
    if let Some(formats) = freeze::formats(&trainer.recipe, &table)? {
        weights.extend(rounded::parts(&trainer.model));
        let made = Rounded { weights: formats.to_string(), step: state.step, tokens: state.tokens };
        documents.insert(rounded::DOCUMENT.to_owned(), json(&made));
    }
    Ok(Snapshot {
        tensors: BTreeMap::from([
            ("weights".to_owned(), weights),
            ("optimizer".to_owned(), optimizer),
        ]),
        json: documents,
        files: BTreeMap::from([("tokenizer.json".to_owned(), tokenizer.to_vec())]),
    })
}

/// What gives the values of tensors that nobody has whole.
pub(crate) type Next<'a> = &'a dyn Fn() -> std::io::Result<Vec<f32>>;

/// A tensor of these values, or of those that `next` gives.
fn matrix<'a>(
    name: String,
    (rows, columns): (usize, usize),
    data: &'a [f32],
    next: Option<Next<'a>>,
) -> NamedTensor<'a> {
    let data = match next {
        Some(next) => TensorData::Pieces(Pieces { values: rows * columns, next }),
        None => data.into(),
    };
    NamedTensor { name, shape: vec![rows, columns], data }
}
