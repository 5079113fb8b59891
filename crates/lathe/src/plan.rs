//! What a recipe will cost, before it costs anything.

use std::path::Path;
use std::process::ExitCode;

use anyhow::{Result, ensure};
use data::Windows;
use model::ModelConfig;
use model::cost::{
    Convention, forward_flops, kv_bytes_per_token, nominal_capacities, parameters, unrolled_dense,
};
use report::{Table, human_bytes, human_count, human_duration};
use train::{Forecast, Opened, Recipe, Work};

use crate::arguments::Presets;
use crate::{memory, output, recipe};

/// `lathe presets`: the sizes that recipes can name, as a table.
pub(crate) fn presets(options: &Presets) -> Result<ExitCode> {
    let mut rows = Vec::new();
    let part = options.part.as_deref().unwrap_or("");
    for name in model::presets::names().into_iter().filter(|name| name.contains(part)) {
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
    ensure!(
        !rows.is_empty(),
        "no preset has {part:?} in its name; `lathe presets` alone lists them all"
    );
    let columns = ["preset", "unrolled layers", "width", "unique parameters", "unrolled"]
        .map(str::to_owned)
        .to_vec();
    let caption = "parameters without embedding and head".to_owned();
    output::table(&Table { columns, rows, caption, best: None });
    Ok(ExitCode::SUCCESS)
}

/// `lathe train --dry-run`: the complete recipe, and what the model and the run cost.
pub(crate) fn dry_run(given: &Recipe) -> Result<()> {
    let data = Path::new(&given.data.dir);
    let (recipe, windows) = if data.join("manifest.json").symlink_metadata().is_ok() {
        let Opened { recipe, windows, valid } = train::open_data(given)?;
        (recipe, Some([windows, valid]))
    } else {
        let mut recipe = given.clone();
        output::note(format!(
            "data.dir \"{}\" holds no data yet: sizes that depend on it are left out",
            recipe.data.dir
        ));
        if recipe.model.vocab_size == 0 {
            recipe.model.vocab_size = 4096;
            output::note("model.vocab_size is open: counting with 4096");
        }
        recipe.check()?;
        (recipe, None)
    };
    output::line(recipe::show(&recipe)?);
    output::table(&model_table(&recipe.model, recipe.data.sequence_length)?);
    output::table(&run_table(&recipe, windows.as_ref())?);
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

/// Bytes a second at which a checkpoint is hashed and written: a guess, since disks differ.
const SAVED_PER_SECOND: f64 = 3e8;

/// `windows` are those of training and of validation.
fn run_table(recipe: &Recipe, windows: Option<&[Windows; 2]>) -> Result<Table> {
    let teacher = memory::teacher(recipe)?;
    let forecast = Forecast {
        recipe,
        teacher: teacher.as_ref(),
        valid_windows: windows.map(|[_, valid]| valid.len()),
    };
    let (memory, work) = (forecast.memory()?, forecast.work()?);
    let tokens = (recipe.train.batch * recipe.data.sequence_length) as f64;
    let tokens = tokens * recipe.train.steps as f64;
    let mut rows = Vec::new();
    for (name, value) in [
        ("steps", recipe.train.steps.to_string()),
        ("tokens", human_count(tokens)),
        ("training FLOPs, full count", human_count(work.steps)),
        ("of them, layers that run once more", human_count(work.again)),
        ("teacher FLOPs", human_count(work.teacher)),
        ("validation FLOPs", human_count(work.validation)),
        ("validations, checkpoints", format!("{}, {}", work.validations, work.saves)),
        ("weights, gradients, moments", human_bytes(memory.state)),
        ("the teacher's weights", human_bytes(memory.teacher)),
        ("activations of one pass, about", human_bytes(memory.activations)),
        ("logits and their gradient, about", human_bytes(memory.head)),
        ("memory at the peak, about", human_bytes(memory.peak())),
    ] {
        rows.push(vec![name.to_owned(), value]);
    }
    rows.push(time_row(&forecast, &work)?);
    if let Some([train, valid]) = windows {
        let seen = recipe.train.steps as f64 * recipe.train.batch as f64;
        let epochs = seen / train.len().max(1) as f64;
        let both = format!("{}, {}", train.len(), valid.len());
        rows.push(vec!["windows of training, of validation".to_owned(), both]);
        rows.push(vec!["epochs".to_owned(), format!("{epochs:.2}")]);
    }
    let columns = ["run", ""].map(str::to_owned).to_vec();
    Ok(Table { columns, rows, caption: String::new(), best: None })
}

/// How long the run takes here: from steps that are timed now where memory and patience allow,
/// otherwise at half of the measured peak.
fn time_row(forecast: &Forecast<'_>, work: &Work) -> Result<Vec<String>> {
    let (peak, memory) = (ops::peak_flops(), forecast.memory()?);
    let there = memory::free().is_none_or(|bytes| memory.peak() as f64 <= 0.8 * bytes);
    let timed = if there { forecast.time(0.3 * peak)? } else { None };
    let saves = work.saves as f64 * 0.75 * memory.state as f64 / SAVED_PER_SECOND;
    let (name, seconds) = match timed {
        Some(timing) => ("time here, by steps timed now", timing.run(forecast.recipe, work)),
        None => ("time here, at half of the measured peak", work.total() / (0.5 * peak)),
    };
    Ok(vec![name.to_owned(), human_duration(seconds + saves)])
}
