//! What a recipe will cost, before it costs anything.

use std::path::Path;
use std::process::ExitCode;

use anyhow::{Result, ensure};
use data::{Corpus, Split, Windows};
use model::ModelConfig;
use model::cost::{
    Convention, forward_flops, kv_bytes_per_token, nominal_capacities, parameters, unrolled_dense,
};
use report::{Table, human_bytes, human_count, human_duration};
use train::Recipe;

use crate::{output, recipe};

/// `lathe presets`: the sizes that recipes can name, as a table.
pub(crate) fn presets() -> Result<ExitCode> {
    let mut rows = Vec::new();
    for name in model::presets::names() {
        let Some(config) = model::presets::preset(&name) else { continue };
        let config = ModelConfig { vocab_size: 4096, ..config };
        let p = parameters(&config, &config.check()?);
        rows.push(vec![
            name,
            config.layers.to_string(),
            config.width.to_string(),
            human_count(p.unique as f64),
            human_count(p.unrolled as f64),
        ]);
    }
    let columns = ["preset", "unrolled layers", "width", "unique parameters", "unrolled"]
        .map(str::to_owned)
        .to_vec();
    let caption = "parameters without embedding and head".to_owned();
    output::piece(Table { columns, rows, caption, best: None }.to_text());
    Ok(ExitCode::SUCCESS)
}

/// `lathe train --dry-run`: the complete recipe, and what the model and the run cost.
pub(crate) fn dry_run(given: &Recipe) -> Result<()> {
    let mut recipe = given.clone();
    let corpus = Path::new(&recipe.data.dir);
    let windows = if recipe.data.dir.is_empty() || !corpus.join("manifest.json").is_file() {
        output::note(format!(
            "data.dir \"{}\" holds no data yet: sizes that depend on it are left out",
            recipe.data.dir
        ));
        if recipe.model.vocab_size == 0 {
            recipe.model.vocab_size = 4096;
            output::note("model.vocab_size is open: counting with 4096");
        }
        None
    } else {
        let corpus = Corpus::open(corpus, Split::Train)?;
        if recipe.model.vocab_size == 0 {
            recipe.model.vocab_size = corpus.vocab_size();
        }
        Some(Windows::new(&corpus, recipe.data.sequence_length, recipe.train.seed)?)
    };
    recipe.check()?;
    output::line(recipe::show(&recipe)?);
    output::piece(model_table(&recipe.model, recipe.data.sequence_length)?.to_text());
    output::piece(run_table(&recipe, windows.as_ref())?.to_text());
    Ok(())
}

/// The model beside the dense one of the same unrolled depth.
pub(crate) fn model_table(config: &ModelConfig, n: usize) -> Result<Table> {
    let dense = unrolled_dense(config);
    let (plan, dense_plan) = (config.check()?, dense.check()?);
    let (p, q) = (parameters(config, &plan), parameters(&dense, &dense_plan));
    let capacities = [nominal_capacities(config), nominal_capacities(&dense)];
    let [paper, full] = [Convention::Paper, Convention::Full].map(|convention| {
        [
            forward_flops(config, &plan, n, &capacities[0], convention),
            forward_flops(&dense, &dense_plan, n, &capacities[1], convention),
        ]
    });
    let kv = [
        kv_bytes_per_token(config, &plan, &capacities[0], 4),
        kv_bytes_per_token(&dense, &dense_plan, &capacities[1], 4),
    ];
    let unique = [p.unique as f64, q.unique as f64];
    let active = [p.active as f64, q.active as f64];
    let unrolled = [p.unrolled as f64, q.unrolled as f64];
    let embedding = [p.embedding as f64, q.embedding as f64];
    let bytes = [p.unique + p.embedding, q.unique + q.embedding].map(|count| 4.0 * count as f64);
    let rows = vec![
        compare("unique parameters (no embedding)", unique, human_count),
        compare("of them, met by a token", active, human_count),
        compare("unrolled parameters", unrolled, human_count),
        compare("embedding and head", embedding, human_count),
        compare("forward FLOPs/token, paper's count", paper, human_count),
        compare("forward FLOPs/token, full count", full, human_count),
        compare("KV bytes/token, f32", kv, |x| human_bytes(x as u64)),
        compare("weight bytes, f32", bytes, |x| human_bytes(x as u64)),
    ];
    let columns = ["model", "this one", "dense, same depth", "ratio"].map(str::to_owned).to_vec();
    let caption = format!("at sequence length {n} and nominal capacities");
    Ok(Table { columns, rows, caption, best: None })
}

/// A row of two quantities and the first over the second.
fn compare(what: &str, [here, there]: [f64; 2], show: fn(f64) -> String) -> Vec<String> {
    vec![what.to_owned(), show(here), show(there), format!("{:.3}", here / there)]
}

fn run_table(recipe: &Recipe, windows: Option<&Windows>) -> Result<Table> {
    let plan = recipe.model.check()?;
    let n = recipe.data.sequence_length;
    let rows_per_step = (recipe.train.batch * n) as f64;
    let tokens = rows_per_step * recipe.train.steps as f64;
    let shares = nominal_capacities(&recipe.model);
    let flops = 3.0 * tokens * forward_flops(&recipe.model, &plan, n, &shares, Convention::Full);
    let rate = 0.5 * ops::peak_flops();
    let state = recipe.state_bytes()?;
    let mut rows = vec![
        ["steps".to_owned(), recipe.train.steps.to_string()].to_vec(),
        ["tokens".to_owned(), human_count(tokens)].to_vec(),
        ["training FLOPs, full count".to_owned(), human_count(flops)].to_vec(),
        ["weights, gradients, moments".to_owned(), human_bytes(state)].to_vec(),
        ["activations of one pass, about".to_owned(), human_bytes(activation_bytes(recipe) as u64)]
            .to_vec(),
        ["time here at half of the measured peak".to_owned(), human_duration(flops / rate)]
            .to_vec(),
    ];
    if let Some(windows) = windows {
        let epochs =
            recipe.train.steps as f64 * recipe.train.batch as f64 / windows.len().max(1) as f64;
        rows.push(["epochs".to_owned(), format!("{epochs:.2}")].to_vec());
    }
    let columns = ["run", ""].map(str::to_owned).to_vec();
    Ok(Table { columns, rows, caption: String::new(), best: None })
}

/// Refuses a run that this machine's memory cannot hold: the system would end it without a word.
pub(crate) fn fits(recipe: &Recipe) -> Result<()> {
    let Some(memory) = memory_bytes() else { return Ok(()) };
    let mut filled = recipe.clone();
    filled.model.vocab_size = recipe.model.vocab_size.max(1);
    let (state, activations) = (filled.state_bytes()?, activation_bytes(&filled));
    ensure!(
        state as f64 + activations <= memory,
        "recipe: weights, gradients and moments take {}, activations of one pass about {}, \
         expected at most this machine's memory of {}: choose a smaller model, \
         train.micro_batch or data.sequence_length, or train.recompute",
        human_bytes(state),
        human_bytes(activations as u64),
        human_bytes(memory as u64)
    );
    Ok(())
}

/// Physical memory, where the system tells.
fn memory_bytes() -> Option<f64> {
    let text = std::fs::read_to_string("/proc/meminfo").ok()?;
    let line = text.lines().find_map(|line| line.strip_prefix("MemTotal:"))?;
    Some(1024.0 * line.trim().strip_suffix("kB")?.trim().parse::<f64>().ok()?)
}

/// What the backward pass keeps: per active row and layer the inputs of each operation, or only the
/// layer's input.
fn activation_bytes(recipe: &Recipe) -> f64 {
    let c = &recipe.model;
    let heads = c.heads * c.head_dim;
    let attention = (4 * c.width + 2 * heads + c.kv_width() + c.heads) as f64;
    let shares = nominal_capacities(c);
    let mut layers = 0.0;
    if let Ok(plan) = c.check() {
        for u in plan.unrolled() {
            let share = if plan.recursions.is_empty() { 1.0 } else { shares[u.recursion] };
            layers += share
                * match recipe.train.recompute {
                    true => c.width as f64,
                    false => attention + mlp_values(c, u.stored),
                };
        }
    }
    let rows = (recipe.train.micro_batch * recipe.data.sequence_length) as f64;
    4.0 * (rows * (layers + 2.0 * c.width as f64) + 256.0 * c.vocab_size as f64)
}

/// Values that the MLP of stored layer `stored` keeps for a row. Each of its matrices has the
/// stream on one side; the other side is kept, as far as the row meets it: `2 f + f` for SwiGLU.
fn mlp_values(config: &ModelConfig, stored: usize) -> f64 {
    let table = config.mlp.settings().specs(&config.sizes(), stored);
    table.iter().map(|spec| spec.active * spec.count() as f64 / config.width as f64).sum()
}
