//! `lathe inspect`: what a checkpoint holds and costs, and where it spends its recursions on a
//! text.

use std::path::Path;
use std::process::ExitCode;

use anyhow::{Context, Result, ensure};
use data::Tokenizer;
use engine::{Batch, BatchSequence, RoutingStats, Scoring, score};
use model::cost::parameters;
use model::layout::LayerUse;
use model::{Rule, Sharing};
use report::{HeatText, HeatToken, Page, Table};
use serde_json::json;
use train::Stored;

use crate::arguments::Inspect;
use crate::{open, output, plan};

/// `lathe inspect`, with a page where `--html` asks for one.
pub(crate) fn run(options: &Inspect) -> Result<ExitCode> {
    let (stored, tokenizer) = open::checkpoint(&options.checkpoint)?;
    let config = stored.model.config();
    let length = stored.recipe.as_ref().map_or(config.context, |r| r.data.sequence_length);
    let costs = plan::model_table(config, length)?;
    let text =
        options.text.as_deref().map(|path| read_text(&stored, &tokenizer, path)).transpose()?;
    let weights =
        stored.rounded.as_ref().map_or_else(|| "f32".to_owned(), |format| format.to_string());
    if options.json {
        let p = parameters(config, stored.model.plan());
        let routing = match &stored.rule {
            Some(Rule::Causal(decision)) => serde_json::to_value(decision)?,
            _ => serde_json::Value::Null,
        };
        output::line(serde_json::to_string_pretty(&json!({
            "step": stored.step, "tokens": stored.tokens,
            "weights": weights, "weight_bytes": stored.model.bytes(),
            "config": config, "parameters": p, "routing": routing,
            "router_state": stored.state, "sharing": sharing_map(&stored),
            "text": text.as_ref().map(|t| t.statistics.rows.clone()),
        }))?);
    } else {
        output::line(format!(
            "step {}, {} predictions trained on",
            stored.step,
            report::human_count(stored.tokens as f64)
        ));
        if stored.rounded.is_some() {
            let bytes = report::human_bytes(stored.model.bytes() as u64);
            output::line(format!(
                "weights rounded to {weights}, {bytes}: a checkpoint for use only"
            ));
        }
        output::line(format!("router {}, layers {}", config.router.kind(), sharing_map(&stored)));
        if let Some(Rule::Causal(decision)) = &stored.rule {
            output::line(format!(
                "causal rule: {}, thresholds {}",
                output::harmless(&decision.made_by),
                thresholds(&decision.thresholds)
            ));
        }
        output::line("");
        output::piece(costs.to_text());
        if let Some(text) = &text {
            output::line("");
            output::piece(text.statistics.to_text());
        }
    }
    if let (Some(path), Some(text)) = (&options.html, text) {
        let mut page = Page::new("Depth by token", &options.checkpoint.display().to_string());
        page.table(costs).table(text.statistics).heat(text.heat);
        std::fs::write(path, page.render())
            .with_context(|| format!("writing {}", path.display()))?;
        output::note(format!("wrote {}", path.display()));
    }
    Ok(ExitCode::SUCCESS)
}

/// `0 | 1 2 | 1 2 | 1 2 | 3`: which stored layer each unrolled layer uses.
fn sharing_map(stored: &Stored) -> String {
    let plan = stored.model.plan();
    let mut parts = vec![stored_numbers(&plan.before)];
    parts.extend(plan.recursions.iter().map(|block| stored_numbers(block)));
    parts.push(stored_numbers(&plan.after));
    parts.retain(|part| !part.is_empty());
    let separator = if stored.model.config().sharing == Sharing::None { " " } else { " | " };
    parts.join(separator)
}

fn stored_numbers(uses: &[LayerUse]) -> String {
    uses.iter().map(|u| u.stored.to_string()).collect::<Vec<_>>().join(" ")
}

/// A text seen through a model.
pub(crate) struct Looked {
    /// Tokens and mean loss by number of recursions, and what each router let pass.
    pub(crate) statistics: Table,
    /// Every token with its depth.
    pub(crate) heat: HeatText,
}

fn read_text(stored: &Stored, tokenizer: &Tokenizer, path: &Path) -> Result<Looked> {
    let text =
        std::fs::read_to_string(path).with_context(|| format!("reading {}", path.display()))?;
    look(stored, tokenizer, &text, &path.display().to_string())
}

/// Scores `text` with causal routing, in stretches of the model's context.
pub(crate) fn look(
    stored: &Stored,
    tokenizer: &Tokenizer,
    text: &str,
    title: &str,
) -> Result<Looked> {
    let ids = tokenizer.encode_ordinary(text)?;
    ensure!(ids.len() >= 2, "the text has {} tokens, expected at least 2", ids.len());
    let rule = open::causal(stored)?;
    let config = stored.model.config();
    let mut stats = RoutingStats::default();
    let mut scores = Vec::new();
    for start in (0..ids.len() - 1).step_by(config.context) {
        let end = (start + config.context).min(ids.len() - 1);
        let documents = vec![0; end - start];
        let same = vec![true; end - start];
        let sequence = BatchSequence {
            ids: &ids[start..end],
            targets: &ids[start + 1..end + 1],
            document: &documents,
            same_document: &same,
        };
        let batch = Batch::pack(&[sequence], true);
        scores.extend(score(&stored.model, &batch, &Scoring::by(&rule, &stored.state), &mut stats));
    }
    let mut stream = tokenizer.decode_stream();
    let mut tokens = Vec::new();
    for (i, score) in scores.iter().enumerate() {
        let text = stream.push(ids[i])?.unwrap_or_default();
        let note = format!("next token: {:.2} nats", score.nll);
        tokens.push(HeatToken { text, depth: score.depth as f32, note: Some(note) });
    }
    let mut rows = Vec::new();
    for (depth, name) in (1..=config.recursions).map(|d| (d as u32, output::recursions(d))) {
        let some: Vec<f32> = scores.iter().filter(|s| s.depth == depth).map(|s| s.nll).collect();
        let mean = some.iter().map(|&n| f64::from(n)).sum::<f64>() / some.len().max(1) as f64;
        let share = 100.0 * some.len() as f64 / scores.len() as f64;
        rows.push(vec![name, some.len().to_string(), format!("{share:.1}"), format!("{mean:.3}")]);
    }
    for (r, seen) in stats.recursions.iter().enumerate() {
        let share = 100.0 * seen.kept as f64 / seen.candidates.max(1) as f64;
        let mean = seen.logit_sum / seen.candidates.max(1) as f64;
        let name = format!("router {}: pass, % pass, mean logit", r + 1);
        rows.push(vec![name, seen.kept.to_string(), format!("{share:.1}"), format!("{mean:.3}")]);
    }
    let columns = ["", "tokens", "%", "nats of the next token"].map(str::to_owned).to_vec();
    let statistics =
        Table { columns, rows, caption: format!("causal routing on {title}"), best: None };
    Ok(Looked {
        statistics,
        heat: HeatText { title: title.to_owned(), max_depth: config.recursions, tokens },
    })
}

/// The thresholds of each recursion, in words where every row passes.
fn thresholds(all: &[Option<f32>]) -> String {
    let one = |threshold: &Option<f32>| threshold.map_or("none".into(), |t| format!("{t:.4}"));
    all.iter().map(one).collect::<Vec<_>>().join(", ")
}
