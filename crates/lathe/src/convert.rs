//! `lathe convert`: a dense checkpoint into a recursive or Mixture-of-Recursions one.

use std::process::ExitCode;

use anyhow::{Context, Result, ensure};
use convert::{ConversionReport, ConversionTarget, ExpertStart, Start, Upcycling};
use model::adapters::Relaxation;
use model::{KvMode, MlpConfig, ModelConfig, RouterConfig, Sharing};
use report::{Table, human_bytes, human_count};
use serde::Serialize;
use serde::de::DeserializeOwned;
use serde_json::{Value, json};

use crate::arguments::Convert;
use crate::{branches, open, output};

/// `lathe convert`: writes the converted model, then tells what came from where.
#[allow(clippy::result_large_err, reason = "an error of one call")]
pub(crate) fn run(options: &Convert) -> Result<ExitCode> {
    if convert::is_branch_plan(&options.checkpoint) {
        return branches::run(options);
    }
    let stored = open::source(&options.checkpoint)?;
    let source = stored.model.config();
    let layers = source.layers;
    let layout = layout(options, source)?;
    let target = ConversionTarget {
        sharing: layout.sharing,
        recursions: layout.recursions,
        start: match &options.init {
            Some(init) => word::<Start>("--init", init)?,
            None => Start::Stepwise,
        },
        router: table("--router", &options.router)?,
        kv: word::<KvMode>("--kv-sharing", &options.kv_sharing)?,
        share_norms: layout.share_norms && !options.own_norms,
        keep: options
            .keep
            .as_deref()
            .map(|text| convert::parse_layers(text, layers))
            .transpose()?,
        relax: table("--relax", &options.relax)?,
        fit_adapters: !options.fresh_adapters,
        experts: upcycling(options)?,
        seed: options.seed.unwrap_or(1),
    };
    nothing_idle(options, &target, layout.is_kept)?;
    let (_, report) = convert::convert(&stored, &target, &options.out, open::disk()?.as_ref())
        .with_context(|| format!("converting {}", options.checkpoint.display()))?;
    if options.json {
        output::json(&json!({ "path": options.out, "report": report }))?;
    } else {
        show(&report);
        output::line(format!("wrote {}", options.out.display()));
    }
    Ok(ExitCode::SUCCESS)
}

/// How layers of the result share.
struct Layout {
    sharing: Sharing,
    recursions: usize,
    share_norms: bool,
    /// Whether it is that of the source.
    is_kept: bool,
}

/// The layout that is asked for. Who only wants other MLPs and names none keeps that of the source.
fn layout(options: &Convert, source: &ModelConfig) -> Result<Layout> {
    let sharing = match options.sharing.as_deref() {
        Some(name) => word("--sharing", name)?,
        None if options.mlp.is_some() && options.recursions.is_none() => {
            ensure!(
                source.sharing == Sharing::None || source.relax == Relaxation::NONE,
                "--mlp without --sharing keeps the layout of the source, expected one without \
                 adapters on layers that are shared, found \"{}\": give --sharing none, which \
                 merges them, or another layout",
                source.relax.kind()
            );
            let ModelConfig { sharing, recursions, share_norms, .. } = *source;
            return Ok(Layout { sharing, recursions, share_norms, is_kept: true });
        }
        None => Sharing::MiddleCycle,
    };
    let usual = if sharing == Sharing::None { 1 } else { 3 };
    let recursions = options.recursions.unwrap_or(usual);
    Ok(Layout { sharing, recursions, share_norms: true, is_kept: false })
}

/// Refuses options that were given and change nothing.
fn nothing_idle(options: &Convert, target: &ConversionTarget, is_kept: bool) -> Result<()> {
    let shares = target.sharing != Sharing::None;
    let layout = match is_kept {
        true => "--mlp without --sharing keeps the layers of the source as they are",
        false => "with --sharing none no layer is shared",
    };
    if let Some(init) = &options.init {
        // A layer that is shared already is the mean of its own uses.
        let is_idle = !shares || (is_kept && matches!(target.start, Start::Average));
        ensure!(!is_idle, "--init is {init}, and changes nothing: {layout}; leave it out");
    }
    ensure!(
        shares || !options.own_norms,
        "--own-norms is given, and changes nothing: {layout}; leave it out"
    );
    ensure!(
        matches!(target.relax, Relaxation::Lora(_) | Relaxation::Dora(_))
            || !options.fresh_adapters,
        "--fresh-adapters is given, and changes nothing: only adapters of --relax lora and dora \
         are fitted, found \"{}\"; leave it out, or give such a --relax",
        target.relax.kind()
    );
    if let Some(seed) = options.seed {
        let plain = target.router == RouterConfig::FIXED && target.relax == Relaxation::NONE;
        let draws = !plain || target.experts.is_some() || (shares && target.start == Start::Random);
        ensure!(
            draws,
            "--seed is {seed}, and changes nothing: without --mlp, --router, --relax and --init \
             random nothing is drawn; leave it out"
        );
    }
    Ok(())
}

/// What `--mlp`, `--experts` and `--drop` make of dense MLPs.
fn upcycling(options: &Convert) -> Result<Option<Upcycling>> {
    let Some(text) = options.mlp.as_deref() else { return Ok(None) };
    let experts = match table::<MlpConfig>("--mlp", text)? {
        MlpConfig::Experts(experts) => experts,
        MlpConfig::Dense(_) => anyhow::bail!(
            "--mlp is {text}, expected a table of kind \"experts\": dense MLPs stay as they are \
             without it"
        ),
    };
    let start = match (options.experts.as_str(), options.drop) {
        ("drop", share) => ExpertStart::Drop { share: share.unwrap_or(0.5) },
        (other, Some(_)) => {
            anyhow::bail!("--drop is set with --experts {other}, expected it with drop alone")
        }
        ("split", None) => ExpertStart::Split,
        (_, None) => ExpertStart::Copies,
    };
    Ok(Some(Upcycling { experts, start }))
}

/// A value by its name in recipes.
fn word<T: DeserializeOwned>(option: &str, text: &str) -> Result<T> {
    serde_json::from_value(Value::String(text.to_owned()))
        .map_err(|error| anyhow::anyhow!("{option}: {error}"))
}

/// A member of a list by its name, or as the table of a recipe: `{ kind = "expert_choice", network
/// = "mlp" }`.
pub(crate) fn table<T: DeserializeOwned + Serialize>(option: &str, text: &str) -> Result<T> {
    let value: Value = if text.trim_start().starts_with('{') {
        let mut whole: serde_json::Map<String, Value> =
            toml::from_str(&format!("x = {text}")).map_err(|e| anyhow::anyhow!("{option}: {e}"))?;
        let table = whole.remove("x").unwrap_or_default();
        if let Some(key) = whole.keys().next() {
            anyhow::bail!("{option}: expected one table, found `{key}` behind it: leave it out");
        }
        table
    } else {
        json!({ "kind": text })
    };
    member(option, value)
}

/// A member of a list from its table, whose keys are all known.
pub(crate) fn member<T: DeserializeOwned + Serialize>(option: &str, value: Value) -> Result<T> {
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
    let rows = report.layers.iter().map(|layer| {
        let mean = if layer.from.len() > 1 { "mean of " } else { "" };
        vec![
            layer.stored.to_string(),
            format!("{mean}{}", numbers(&layer.from)),
            numbers(&layer.instead_of),
            distances(&layer.difference),
            distances(&layer.remaining),
        ]
    });
    let columns = ["stored layer", "from", "instead of", "difference", "with adapters"]
        .map(str::to_owned)
        .to_vec();
    let caption =
        "layers of the source; difference: |W - shared| / |W| for each layer that it replaces"
            .to_owned();
    output::table(&Table { columns, rows: rows.collect(), caption, best: None });
    if let Some(start) = &report.experts {
        let told = match start {
            ExpertStart::Copies => "copies of the MLP".to_owned(),
            ExpertStart::Drop { share } => {
                format!(
                    "copies of the MLP, each with {:.0} % of its neurons drawn anew",
                    100.0 * share
                )
            }
            ExpertStart::Split => "the neurons of the MLP, shared out".to_owned(),
        };
        output::line(format!("experts: {told}"));
    }
    if !report.dropped.is_empty() {
        output::line(format!("left out: layers {}", numbers(&report.dropped)));
    }
    if !report.fresh.is_empty() {
        output::line(format!("fresh: {}", report.fresh.join(" ")));
    }
    output::line("");
    output::table(&costs(report));
}

fn numbers(layers: &[usize]) -> String {
    layers.iter().map(usize::to_string).collect::<Vec<_>>().join(" ")
}

fn distances(list: &[f64]) -> String {
    list.iter().map(|d| format!("{d:.3}")).collect::<Vec<_>>().join(" ")
}

fn costs(report: &ConversionReport) -> Table {
    let (a, b) = (&report.before, &report.after);
    let layers = [a.layers, b.layers].map(|n| n as f64);
    let stored = [a.stored_layers, b.stored_layers].map(|n| n as f64);
    let unique = [a.unique_parameters, b.unique_parameters].map(|n| n as f64);
    let unrolled = [a.unrolled_parameters, b.unrolled_parameters].map(|n| n as f64);
    let bytes = [a.weight_bytes, b.weight_bytes].map(|n| n as f64);
    let paper = [a.forward_flops_paper, b.forward_flops_paper];
    let full = [a.forward_flops_full, b.forward_flops_full];
    let kv = [a.kv_bytes, b.kv_bytes];
    let rows = vec![
        compare("unrolled layers", layers, |n| format!("{n:.0}")),
        compare("stored layers", stored, |n| format!("{n:.0}")),
        compare("unique parameters (no embedding)", unique, human_count),
        compare("unrolled parameters", unrolled, human_count),
        compare("weight bytes, f32", bytes, |n| human_bytes(n as u64)),
        compare("forward FLOPs/token, paper's count", paper, human_count),
        compare("forward FLOPs/token, full count", full, human_count),
        compare("KV bytes/token, f32", kv, |n| human_bytes(n as u64)),
    ];
    let columns = ["model", "before", "after", "ratio"].map(str::to_owned).to_vec();
    let caption = format!("at sequence length {}", b.sequence_length);
    Table { columns, rows, caption, best: None }
}

/// A row of two quantities and the second over the first.
fn compare(what: &str, [before, after]: [f64; 2], show: fn(f64) -> String) -> Vec<String> {
    vec![what.to_owned(), show(before), show(after), format!("{:.3}", after / before)]
}
