//! `lathe import` and `lathe export`: checkpoints of others in, ours out.

use std::path::Path;
use std::process::ExitCode;

use anyhow::{Context, Result, ensure};
use convert::{Card, GgufWeightType, HfWeightType};
use data::SpecialTokens;
use report::{Record, human_bytes, human_count};
use serde_json::{Value, json};
use train::Stored;

use crate::arguments::{Export, Import};
use crate::{foreign, open, output, runs};

/// `lathe import`: a Hugging Face folder or a GGUF file into a checkpoint.
pub(crate) fn import(options: &Import) -> Result<ExitCode> {
    let disk = open::disk()?;
    let foreign = foreign::opened(&options.source)?;
    // What ends a text where the files say nothing of it, as those of runs that began here.
    let tokenizer = foreign::tokenizer(foreign.text())?;
    let ends = SpecialTokens::of(Some(&foreign.text().special), &tokenizer).eos;
    let made = foreign
        .write(&options.out, disk.as_ref())
        .with_context(|| format!("importing {}", options.source.display()))?;
    if options.json {
        let value = json!({
            "path": options.out, "config": made.config, "text": made.text, "costs": made.costs,
        });
        output::json(&value)?;
        return Ok(ExitCode::SUCCESS);
    }
    let (config, costs) = (&made.config, &made.costs);
    output::line(format!(
        "{} layers of width {}, {} query and {} key-value heads of {}, feed-forward {}, context {}",
        config.layers,
        config.width,
        config.heads,
        config.kv_heads,
        config.head_dim,
        config.ffn,
        config.context
    ));
    output::line(format!(
        "{} parameters and {} of embedding{}, {} as f32",
        human_count(costs.unique_parameters as f64),
        human_count(costs.embedding_parameters as f64),
        if config.tie_embeddings { " (tied)" } else { "" },
        human_bytes(costs.weight_bytes)
    ));
    let template =
        if made.text.chat_template.is_some() { "a chat template" } else { "no chat template" };
    let begin = made.text.bos.map_or_else(|| "none".to_owned(), |id| id.to_string());
    let ends = match ends.is_empty() {
        true => "none".to_owned(),
        false => ends.iter().map(u32::to_string).collect::<Vec<_>>().join(" or "),
    };
    output::line(format!("{} tokens, begin {begin}, end {ends}, {template}", config.vocab_size));
    output::line(format!("wrote {}", options.out.display()));
    Ok(ExitCode::SUCCESS)
}

/// `lathe export`: a checkpoint into the format that others read.
pub(crate) fn export(options: &Export) -> Result<ExitCode> {
    let stored = match options.format.as_deref() {
        Some("peft") => open::learned(&options.checkpoint)?,
        _ => open::also_rounded(&options.checkpoint)?,
    };
    let dense = stored.model.config().sharing == model::Sharing::None;
    let format = match options.format.as_deref() {
        Some(format) => format,
        None if options.out.extension().is_some_and(|e| e == "gguf") => "gguf",
        None if !dense => "lathe",
        None => "hf",
    };
    let dtype = options.dtype.as_str();
    if stored.rounded.is_some() && format != "peft" {
        if format != "hf" || !convert::has_class(&stored) {
            // Refuses it, and says what to do instead.
            open::source(&options.checkpoint)?;
        }
        ensure!(dtype == "f32", "--dtype is {dtype}, expected none for weights that are rounded");
    }
    let disk = open::disk()?;
    match format {
        "hf" => {
            let dtype = match dtype {
                "f32" => HfWeightType::F32,
                "bf16" => HfWeightType::Bf16,
                other => anyhow::bail!(
                    "--dtype is {other}, expected f32 or bf16 for a Hugging Face folder"
                ),
            };
            if convert::has_class(&stored) {
                convert::export_hugging_face(&stored, &options.out, dtype, disk.as_ref())?;
            } else {
                ensure!(
                    dtype == HfWeightType::F32,
                    "--dtype is bf16, expected f32 for a model that is of no class of transformers"
                );
                let card = card(&stored, &options.out);
                convert::export_with_code(&stored, &options.out, &card, disk.as_ref())?;
            }
        }
        "gguf" => {
            let weights = match dtype {
                "f32" => GgufWeightType::F32,
                "f16" => GgufWeightType::F16,
                "q8_0" => GgufWeightType::Q8_0,
                "q4_0" => GgufWeightType::Q4_0,
                other => anyhow::bail!(
                    "--dtype is {other}, expected f32, f16, q8_0 or q4_0 for a GGUF file"
                ),
            };
            let name = options.out.file_stem().and_then(|name| name.to_str()).unwrap_or("lathe");
            convert::export_gguf(&stored, &options.out, weights, name)?;
        }
        "peft" => {
            ensure!(dtype == "f32", "--dtype is {dtype}, expected f32 for adapters");
            convert::export_adapters(&stored, &options.out, disk.as_ref())?;
        }
        _ => {
            ensure!(
                dtype == "f32",
                "--dtype is {dtype}, expected f32 for a model that is not dense"
            );
            let card = card(&stored, &options.out);
            convert::export_own(&stored, &options.out, &card, disk.as_ref())?;
        }
    }
    output::line(format!("wrote {} ({format}, {dtype})", options.out.display()));
    Ok(ExitCode::SUCCESS)
}

/// The name of the folder, and the run's last validation up to the step of these weights.
fn card(stored: &Stored, out: &Path) -> Card {
    let name = out.file_name().map_or_else(String::new, |name| name.to_string_lossy().into_owned());
    let mut card = Card { name, results: Vec::new() };
    let Some(run) = stored.folder.parent().and_then(Path::parent) else { return card };
    // A checkpoint that was copied out of its run has no log beside it.
    let Ok(records) = runs::read(run) else { return card };
    let up_to = |record: &&Record| {
        let step = record.get("step").and_then(Value::as_u64);
        record.contains_key("validation") && step.is_some_and(|step| step <= stored.step)
    };
    let Some(last) = records.iter().rfind(up_to) else { return card };
    for (rule, of_rule) in [("training", "training-time routing"), ("causal", "causal routing")] {
        let all = &last["validation"][rule]["all"];
        for (field, what) in [("nll", "nats per token"), ("bits_per_byte", "bits per byte")] {
            if let Some(value) = all[field].as_f64() {
                card.results.push((format!("{what}, {of_rule}"), value));
            }
        }
    }
    card
}
