//! Which process holds which experts.

use std::path::PathBuf;

use model::mlp::experts::EXPERTS_GATE_UP;
use model::params::ParamPlace;
use model::{ModelConfig, table};
use processes::share;
use serde::{Deserialize, Serialize};

use crate::TrainError;
use crate::config::refuse;

/// What travels between processes that share out the experts of a model. Changes no bit.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub enum Moved {
    /// Rows go to the process that holds their expert, and come back.
    Rows,
    /// Weights of all experts go to where rows are, in every step, and their gradients come back
    /// (FSSDP: Hecate, 2025, arXiv 2502.02581).
    Weights,
    /// For each expert and process that which took fewer bytes in the steps before: rows, or
    /// weights and gradients (as Tutel switches between the two: 2022, arXiv 2206.03382).
    Fewest,
}

/// How processes share out the experts of a model.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct ExpertSharing {
    /// What travels between them.
    pub moved: Moved,
    /// A JSON file that says who holds which experts, in the form in which EPLB (DeepSeek, 2025)
    /// gives it; without one each process holds equally many consecutive ones.
    ///
    /// `{"physical_to_logical_map": [[0, 1, 2, 3, 0, 1], ...]}` has a list for each layer with
    /// experts, the first of the model first: the expert of each slot. Processes have equally many
    /// consecutive slots. The first slot of an expert is its owner's; others are replicas.
    pub placement: Option<PathBuf>,
}

/// The processes that hold each expert of a layer: the owner first, then those that have a replica.
pub(crate) type Holders = Vec<Vec<usize>>;

/// The most bytes of a placement.
const LONGEST: u64 = 1 << 26;

#[derive(Deserialize)]
struct File {
    physical_to_logical_map: Vec<Vec<usize>>,
}

/// How many experts each layer has whose experts processes can share out.
fn counts(config: &ModelConfig) -> Result<Vec<usize>, TrainError> {
    let mut counts = Vec::new();
    for spec in table::specs(config, &config.check()?) {
        if let ParamPlace::Layer { stored, part: EXPERTS_GATE_UP } = spec.place {
            counts.push(config.mlp.settings().computing_experts(stored));
        }
    }
    counts.retain(|&count| is_shared(count));
    if counts.is_empty() {
        return refuse(
            "model.mlp",
            "one without experts to share out among processes".into(),
            "a layer with two or more that have weights of their own; set model.mlp.kind = \
             \"experts\", or leave out --share-experts"
                .into(),
        );
    }
    Ok(counts)
}

/// Whether processes share out the experts of a layer that has so many. A single one is as a dense
/// MLP.
pub(super) fn is_shared(count: usize) -> bool {
    count > 1
}

impl ExpertSharing {
    /// Who holds the experts of each layer that processes share out, of a model among `size` of
    /// them.
    ///
    /// # Errors
    /// A model without such experts; a file that is none, or that is not for this model and as many
    /// processes.
    pub(crate) fn holders(
        &self,
        config: &ModelConfig,
        size: usize,
    ) -> Result<Vec<Holders>, TrainError> {
        let counts = counts(config)?;
        let Some(path) = &self.placement else {
            return Ok(counts.iter().map(|&count| evenly(count, size)).collect());
        };
        let read = files::read(path, LONGEST).map_err(|source| TrainError::Folder {
            action: "reading",
            path: path.clone(),
            source,
        })?;
        of_file(&read, &counts, size).map_err(|(field, found, expected)| TrainError::Placement {
            path: path.clone(),
            field,
            found,
            expected,
        })
    }
}

fn evenly(experts: usize, size: usize) -> Holders {
    let mut holders = Vec::with_capacity(experts);
    for rank in 0..size {
        holders.extend(share(experts, rank, size).map(|_| vec![rank]));
    }
    holders
}

/// What is wrong with a file: the field, what was found there, and what was expected.
type Wrong = (String, String, String);

fn of_file(text: &[u8], counts: &[usize], size: usize) -> Result<Vec<Holders>, Wrong> {
    const FIELD: &str = "physical_to_logical_map";
    let file: File = serde_json::from_slice(text).map_err(|error| {
        let expected = format!("a JSON object with \"{FIELD}\", a list of experts for each layer");
        ("the file".to_owned(), error.to_string(), expected)
    })?;
    let layers = file.physical_to_logical_map;
    if layers.len() != counts.len() {
        let expected = format!("one for each of the model's {} layers of experts", counts.len());
        return Err((FIELD.into(), format!("of {} lists", layers.len()), expected));
    }
    let mut all = Vec::with_capacity(layers.len());
    for (i, (slots, &experts)) in layers.iter().zip(counts).enumerate() {
        let field = format!("{FIELD}[{i}]");
        if slots.is_empty() || !slots.len().is_multiple_of(size) {
            let expected = format!("a multiple of the {size} processes, above 0");
            return Err((field, format!("of {} slots", slots.len()), expected));
        }
        let mut holders: Holders = vec![Vec::new(); experts];
        for (slot, &expert) in slots.iter().enumerate() {
            let rank = slot / (slots.len() / size);
            let Some(holders) = holders.get_mut(expert) else {
                let expected = format!("experts below {experts}");
                return Err((format!("{field}[{slot}]"), expert.to_string(), expected));
            };
            if !holders.contains(&rank) {
                holders.push(rank);
            }
        }
        if let Some(missing) = holders.iter().position(Vec::is_empty) {
            let expected = format!("a slot for each of {experts} experts");
            return Err((field, format!("without expert {missing}"), expected));
        }
        all.push(holders);
    }
    Ok(all)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn without_a_file_each_process_holds_equally_many() {
        assert_eq!(evenly(5, 2), [[0], [0], [1], [1], [1]]);
        assert_eq!(evenly(2, 3), [[1], [2]]);
    }

    #[test]
    fn a_file_says_owners_and_replicas() {
        let text = br#"{"physical_to_logical_map": [[2, 1, 0, 2], [0, 1, 1, 0]], "more": 1}"#;
        let found = of_file(text, &[3, 2], 2).expect("fits");
        assert_eq!(found, [vec![vec![1], vec![0], vec![0, 1]], vec![vec![0, 1], vec![0, 1]]]);
        // A second slot at the same process is no other replica.
        let found = of_file(br#"{"physical_to_logical_map": [[0, 0, 1, 1]]}"#, &[2], 2);
        assert_eq!(found.expect("fits"), [vec![vec![0], vec![1]]]);
    }

    #[test]
    fn a_file_for_something_else_is_refused_by_name() {
        let cases: [(&str, &str); 7] = [
            ("[]", "the file"),
            ("{}", "the file"),
            (r#"{"physical_to_logical_map": [[0, 1], [0, 1]]}"#, "of 2 lists"),
            (r#"{"physical_to_logical_map": [[0, 1, 2]]}"#, "of 3 slots"),
            (r#"{"physical_to_logical_map": [[]]}"#, "of 0 slots"),
            (r#"{"physical_to_logical_map": [[0, 1, 2, 3]]}"#, "experts below 3"),
            (r#"{"physical_to_logical_map": [[0, 1, 1, 0]]}"#, "without expert 2"),
        ];
        for (text, said) in cases {
            let (field, found, expected) = of_file(text.as_bytes(), &[3], 2).expect_err(text);
            let all = format!("{field} {found} {expected}");
            assert!(all.contains(said), "{text}: {all}");
        }
    }
}
