//! The checkpoint architectures that are known here, as one list. A new one is a file beside this
//! one and its line in [`ALL`]; the rooms `hf` and `gguf` know the forms of files and ask the
//! member for everything else.

mod architecture;
mod deepseek;
mod dense;
mod dots1;
mod ernie4_5_moe;
mod experts;
mod flex_olmo;
mod gemma;
mod gemma2;
mod gemma3;
mod ggufs;
mod glm4_moe;
mod gpt_oss;
mod granite;
mod granite_moe;
mod hunyuan_v1_moe;
mod latent;
mod llama;
mod longcat_flash;
mod minimax_m2;
mod mistral;
mod mixtral;
mod olmo2;
mod olmoe;
mod phi3;
mod phimoe;
mod qwen2;
mod qwen2_moe;
mod qwen3;
mod qwen3_moe;
mod refused;
#[cfg(test)]
mod renamed;
mod smollm3;
#[cfg(test)]
mod tests;

pub use architecture::Architecture;
pub(crate) use architecture::{GgufForm, HuggingFaceForm};

use serde_json::Value;

use crate::error::{list_quoted, quote};
use crate::gguf::metadata::Metadata;
use crate::json::JsonObject;
use crate::{ArchConfig, FormatError, Result};

/// Every architecture, in the order in which an export looks for one that holds its model.
pub static ALL: &[&Architecture] = &[
    &llama::LLAMA,
    &mistral::MISTRAL,
    &qwen2::QWEN2,
    &qwen3::QWEN3,
    &smollm3::SMOLLM3,
    &granite::GRANITE,
    &olmo2::OLMO2,
    &phi3::PHI3,
    &gemma::GEMMA,
    &gemma2::GEMMA2,
    &gemma3::GEMMA3,
    &mixtral::MIXTRAL,
    &olmoe::OLMOE,
    &flex_olmo::FLEX_OLMO,
    &qwen3_moe::QWEN3_MOE,
    &qwen2_moe::QWEN2_MOE,
    &dots1::DOTS1,
    &glm4_moe::GLM4_MOE,
    &granite_moe::GRANITE_MOE,
    &granite_moe::GRANITE_MOE_SHARED,
    &ernie4_5_moe::ERNIE4_5_MOE,
    &hunyuan_v1_moe::HUNYUAN_V1_MOE,
    &minimax_m2::MINIMAX_M2,
    &gpt_oss::GPT_OSS,
    &phimoe::PHIMOE,
    &deepseek::DEEPSEEK_V2,
    &deepseek::DEEPSEEK_V3,
    &longcat_flash::LONGCAT_FLASH,
    #[cfg(test)]
    &renamed::RENAMED,
];

impl Architecture {
    /// The first architecture of the list that a model of these numbers can be written as, in a
    /// Hugging Face folder, or in a GGUF file; that of the name `preferred` if it is one.
    pub fn that_holds(
        config: &ArchConfig,
        gguf: bool,
        preferred: Option<&str>,
    ) -> Option<&'static Architecture> {
        let holds = |member: &Architecture| match gguf {
            true => member.gguf.as_ref().is_some_and(|form| (form.holds)(config)),
            false => member.hugging_face.is_some() && (member.holds)(config),
        };
        let hold = || ALL.iter().copied().filter(|member| holds(member));
        hold().find(|member| Some(member.name) == preferred).or_else(|| hold().next())
    }
}

/// The architecture that a config.json names in `model_type` and, where it is there,
/// `architectures`.
pub(crate) fn of_config(
    config: &JsonObject<'_>,
) -> Result<(&'static Architecture, &'static HuggingFaceForm)> {
    let found = config.string("model_type")?;
    let forms = || ALL.iter().filter_map(|&member| Some((member, member.hugging_face.as_ref()?)));
    let Some((member, form)) = forms().find(|(_, form)| Some(form.model_type) == found) else {
        if let Some((_, why)) = refused::REFUSED.iter().find(|(kind, _)| Some(*kind) == found) {
            return Err(config.unsupported("model_type", format!("a class without {why}")));
        }
        let known = list_quoted(forms().map(|(_, form)| form.model_type));
        return Err(config.unsupported("model_type", known));
    };
    match config.array("architectures")?.map(Vec::as_slice) {
        None => Ok((member, form)),
        // Published folders of Phi-3.5-MoE have capitals elsewhere than the library.
        Some([Value::String(only)]) if only.eq_ignore_ascii_case(form.class) => Ok((member, form)),
        Some(_) => Err(config.unsupported("architectures", format!("[{:?}]", form.class))),
    }
}

/// The architecture that a GGUF file names in `general.architecture`.
pub(crate) fn of_gguf(
    metadata: &Metadata<'_>,
) -> Result<(&'static Architecture, &'static GgufForm)> {
    const KEY: &str = "general.architecture";
    let Some(found) = metadata.string(KEY)? else {
        return Err(FormatError::damaged(metadata.path(), KEY, "a value", "no such setting"));
    };
    let forms = || ALL.iter().filter_map(|&member| Some((member, member.gguf.as_ref()?)));
    forms().find(|(_, form)| form.architecture == found).ok_or_else(|| {
        let known = list_quoted(forms().map(|(_, form)| form.architecture));
        FormatError::unsupported(metadata.path(), KEY, known, quote(found))
    })
}
