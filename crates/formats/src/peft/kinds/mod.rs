//! The kinds of adapters that are read, as one list. A new one is a file beside this one and its
//! line in [`ALL`].

mod fourierft;
mod hira;
mod ia3;
mod loha;
mod lokr;
mod lora;
mod miss;
mod oft;
mod positions;
mod vera;
mod waveft;

use kernels::adapted::AdapterChange;

use super::leaves::Leaves;
use super::settings::Settings;
use crate::Result;

/// A kind of adapter in PEFT's files.
pub(super) struct Kind {
    /// Its name in PEFT: `peft_type` in adapter_config.json, in capitals.
    pub(super) name: &'static str,
    /// The ends of the names of its tensors behind the path of a module.
    pub(super) leaves: &'static [&'static str],
    /// Whether it stands on embeddings and on the experts of one tensor, too.
    pub(super) wide: bool,
    /// The names of tensors that all modules share, behind `base_model.`.
    pub(super) shared: &'static [&'static str],
    /// Its settings beside those of every kind.
    pub(super) settings: &'static [&'static str],
    /// Refuses settings that change its formula.
    pub(super) check: fn(&Settings) -> Result<()>,
    /// The adapter of one module.
    pub(super) build: fn(&Settings, &Leaves<'_>, &Site<'_>) -> Result<Box<dyn AdapterChange>>,
}

/// What an adapter stands on.
pub(super) struct Site<'a> {
    /// The path of the module in the base.
    pub(super) module: &'a str,
    /// What patterns of the config are held against: the path, with the name of a parameter behind
    /// it where the config names parameters.
    pub(super) key: &'a str,
    /// How many matrices it has: 1, or one for each expert.
    pub(super) matrices: usize,
    /// Outputs of each; of an embedding the size of the vocabulary.
    pub(super) out: usize,
    /// Inputs of each; of an embedding its width.
    pub(super) into: usize,
    /// Whether rows are looked up.
    pub(super) embedding: bool,
}

/// Every kind, in the order of messages.
pub(super) static ALL: &[&Kind] = &[
    &lora::LORA,
    &vera::VERA,
    &loha::LOHA,
    &lokr::LOKR,
    &ia3::IA3,
    &miss::MISS,
    &hira::HIRA,
    &oft::OFT,
    &fourierft::FOURIERFT,
    &waveft::WAVEFT,
];

/// What PEFT calls the kinds that are read.
pub fn kinds() -> impl Iterator<Item = &'static str> {
    ALL.iter().map(|kind| kind.name)
}

/// Kinds that are known and not read, and why.
pub(super) const REFUSED: [(&str, &str); 16] = [
    ("XLORA", "it weighs several adapters anew for each token, so that no single model holds them"),
    ("ADALORA", "its ranks are those of a training that goes on"),
    ("PROMPT_TUNING", PROMPT),
    ("P_TUNING", PROMPT),
    ("PREFIX_TUNING", PROMPT),
    ("MULTITASK_PROMPT_TUNING", PROMPT),
    ("CPT", PROMPT),
    ("ADAPTION_PROMPT", PROMPT),
    ("POLY", "it weighs several adapters by the task of a request"),
    ("LN_TUNING", "it trains norms alone, which a checkpoint says better"),
    ("BOFT", "its butterfly products are not computed here"),
    ("VBLORA", "its banks of vectors are not computed here"),
    ("RANDLORA", RANDOM),
    ("C3A", "its circulant products are not computed here"),
    ("SHIRA", RANDOM),
    ("TRAINABLE_TOKENS", "its rows of the embedding are not read here"),
];

const PROMPT: &str = "it puts rows before a text, which is no change of a model's matrices";
const RANDOM: &str = "it rests on numbers that torch's generator drew and the file does not hold";
