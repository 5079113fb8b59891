//! `lathe convert`: a dense checkpoint into a recursive or Mixture-of-Recursions one.

use std::process::ExitCode;

use anyhow::{Context, Result};
use convert::{ConversionReport, ConversionTarget, Start};
use model::{KvMode, Sharing};
use report::{Table, human_bytes, human_count};
use serde::Serialize;
use serde::de::DeserializeOwned;
use serde_json::{Value, json};

use crate::arguments::Convert;
use crate::output;

/// Runs the command.
#[allow(clippy::result_large_err, reason = "an error of one call")]
pub(crate) fn run(options: &Convert) -> Result<ExitCode> {
    let stored = train::load_model(&options.checkpoint)
        .with_context(|| format!("opening the checkpoint {}", options.checkpoint.display()))?;
    let layers = stored.model.config().layers;
    let sharing: Sharing = word("--sharing", &options.sharing)?;
    let target = ConversionTarget {
        sharing,
        recursions: options.recursions.unwrap_or(if sharing == Sharing::None { 1 } else { 3 }),
        start: word::<Start>("--init", &options.init)?,
        router: table("--router", &options.router)?,
        kv: word::<KvMode>("--kv-sharing", &options.kv_sharing)?,
        share_norms: !options.own_norms,
        keep: options
            .keep
            .as_deref()
            .map(|text| convert::parse_layers(text, layers))
            .transpose()?,
        relax: table("--relax", &options.relax)?,
        fit_adapters: !options.fresh_adapters,
        seed: options.seed,
    };
    let (_, report) = convert::convert(&stored, &target, &options.out)
        .with_context(|| format!("converting {}", options.checkpoint.display()))?;
    if options.json {
        output::line(serde_json::to_string_pretty(
            &json!({ "path": options.out, "report": report }),
        )?);
    } else {
        show(&report);
        output::line(format!("wrote {}", options.out.display()));
    }
    Ok(ExitCode::SUCCESS)
}

/// A value by its name in recipes.
fn word<T: DeserializeOwned>(option: &str, text: &str) -> Result<T> {
    serde_json::from_value(Value::String(text.to_owned()))
        .map_err(|error| anyhow::anyhow!("{option}: {error}"))
}

/// A member of a list by its name, or as the table of a recipe: `{ kind = "expert_choice", network
/// = "mlp" }`.
fn table<T: DeserializeOwned + Serialize>(option: &str, text: &str) -> Result<T> {
    let value: Value = if text.trim_start().starts_with('{') {
        let table: Value =
            toml::from_str(&format!("x = {text}")).map_err(|e| anyhow::anyhow!("{option}: {e}"))?;
        table["x"].clone()
    } else {
        json!({ "kind": text })
    };
    let member: T = serde_json::from_value(value.clone())
        .map_err(|error| anyhow::anyhow!("{option}: {error}"))?;
    let known = serde_json::to_value(&member)?;
    let unknown = value
        .as_object()
        .into_iter()
        .flatten()
        .map(|(key, _)| key)
        .find(|key| known.get(key).is_none());
    if let Some(key) = unknown {
        anyhow::bail!("{option}: unknown key `{key}` for {}", known["kind"]);
    }
    Ok(member)
}

fn show(report: &ConversionReport) {
    let list = |layers: &[usize]| layers.iter().map(usize::to_string).collect::<Vec<_>>().join(" ");
    let rows = report.layers.iter().map(|layer| {
        let apart =
            |list: &[f64]| list.iter().map(|d| format!("{d:.3}")).collect::<Vec<_>>().join(" ");
        let from = if layer.from.len() > 1 {
            format!("mean of {}", list(&layer.from))
        } else {
            list(&layer.from)
        };
        vec![
            layer.stored.to_string(),
            from,
            list(&layer.instead_of),
            apart(&layer.difference),
            apart(&layer.remaining),
        ]
    });
    let columns = ["stored layer", "from", "instead of", "difference", "with adapters"]
        .map(str::to_owned)
        .to_vec();
    let caption =
        "layers of the source; difference: |W - shared| / |W| for each layer that it replaces"
            .to_owned();
    output::piece(Table { columns, rows: rows.collect(), caption, best: None }.to_text());
    if !report.dropped.is_empty() {
        output::line(format!("left out: layers {}", list(&report.dropped)));
    }
    if !report.fresh.is_empty() {
        output::line(format!("fresh: {}", report.fresh.join(" ")));
    }
    output::line("");
    output::piece(costs(report).to_text());
}

fn costs(report: &ConversionReport) -> Table {
    let (a, b) = (&report.before, &report.after);
    let row = |what: &str, before: f64, after: f64, show: &dyn Fn(f64) -> String| {
        vec![what.to_owned(), show(before), show(after), format!("{:.3}", after / before)]
    };
    let count = |x: f64| human_count(x);
    let whole = |x: f64| format!("{x:.0}");
    let bytes = |x: f64| human_bytes(x as u64);
    let rows = vec![
        row("unrolled layers", a.layers as f64, b.layers as f64, &whole),
        row("stored layers", a.stored_layers as f64, b.stored_layers as f64, &whole),
        row(
            "unique parameters (no embedding)",
            a.unique_parameters as f64,
            b.unique_parameters as f64,
            &count,
        ),
        row(
            "unrolled parameters",
            a.unrolled_parameters as f64,
            b.unrolled_parameters as f64,
            &count,
        ),
        row("weight bytes, f32", a.weight_bytes as f64, b.weight_bytes as f64, &bytes),
        row(
            "forward FLOPs/token, paper's count",
            a.forward_flops_paper,
            b.forward_flops_paper,
            &count,
        ),
        row("forward FLOPs/token, full count", a.forward_flops_full, b.forward_flops_full, &count),
        row("KV bytes/token, f32", a.kv_bytes, b.kv_bytes, &bytes),
    ];
    let columns = ["model", "before", "after", "ratio"].map(str::to_owned).to_vec();
    let caption = format!("at sequence length {}", b.sequence_length);
    Table { columns, rows, caption, best: None }
}
