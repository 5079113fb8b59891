//! The page of `lathe quickstart`: what was learned, where the model spends its compute (recursions
//! by token, experts by layer), and what it costs.

use std::path::Path;
use std::time::Instant;

use anyhow::Result;
use data::{Corpus, Split, Tokenizer, Windows};
use engine::Scoring;
use report::{BarSeries, Bars, Grid, Page, Table, human_count, human_duration};
use trace::Recorder;
use trace::measures::{Choices, max_violation};
use train::{Recipe, Stored, Validation, WindowChoice, in_chunks, score_watched};

use crate::{inspect, open, plan, run_page, runs, train_run};

/// Windows of the validation text that experts are counted on.
const COUNTED: u64 = 16;

/// Whether the model has something to show by depth: a router that decides how deep a token goes.
pub(crate) fn chooses_depth(stored: &Stored) -> bool {
    stored.model.config().router.settings().chooses()
}

/// The page of a run that has ended, as HTML.
pub(crate) fn of(
    recipe: &Recipe,
    run_dir: &Path,
    stored: &Stored,
    tokenizer: &Tokenizer,
    validation: &Validation,
    started: Instant,
) -> Result<String> {
    let config = stored.model.config();
    let corpus = Corpus::open(Path::new(&recipe.data.dir), Split::Validation)?;
    let windows = Windows::new(&corpus, recipe.data.sequence_length, 0)?;
    let loads = loads(recipe, stored, &windows)?;
    let mut page = Page::new("A model that spends compute per token", "Lathe quickstart");
    cards(&mut page, stored, validation, &loads, started);
    page.section("Learning");
    page.chart(run_page::loss_chart(&runs::read(run_dir)?));
    if chooses_depth(stored) {
        page.section("Where it thinks longer");
        page.paragraph(
            "Validation text, token by token. The colour is the number of recursions the token \
             took under causal routing; hover for the loss of the next token.",
        );
        let text = validation_text(&windows, tokenizer)?;
        let looked = inspect::look(stored, tokenizer, &text, "validation text")?;
        page.heat(looked.heat);
        page.bars(depth_bars(validation));
        for table in looked.statistics {
            page.table(table);
        }
    }
    if !loads.is_empty() {
        page.section("Which experts it asks");
        page.paragraph(
            "Each layer's router sends a token to some of the layer's experts. An even share of \
             the load is 1; an expert at 0 is never asked.",
        );
        page.grid(load_grid(&loads));
        page.table(load_table(&loads));
    }
    page.section("What it costs");
    page.table(plan::model_table(config, recipe.data.sequence_length)?);
    page.table(train_run::results(validation));
    page.paragraph(
        "The recipe of this run is recipe.toml in the same folder; \
         lathe train continues or repeats it.",
    );
    Ok(page.render())
}

/// The figures ahead of the page: those that this kind of model has.
fn cards(
    page: &mut Page,
    stored: &Stored,
    validation: &Validation,
    loads: &[Load],
    started: Instant,
) {
    let config = stored.model.config();
    let p = model::cost::parameters(config, stored.model.plan());
    let bits = format!("{:.3}", validation.causal.all.bits_per_byte);
    let (routed, experts) = (chooses_depth(stored), loads.iter().map(|l| l.loads.len()).max());
    let rule = match routed {
        true => "bits per byte, causal routing",
        false => "bits per byte",
    };
    let beside = match routed {
        true => {
            format!("{:.3} with training-time routing", validation.training.all.bits_per_byte)
        }
        false => "of validation text".to_owned(),
    };
    let mut cards = vec![(rule, bits, beside)];
    if routed {
        let mean = format!("{:.2}", validation.causal.mean_depth());
        cards.push(("mean recursions", mean, format!("of at most {}", config.recursions)));
    }
    if let Some(experts) = experts {
        let layers = format!("in each of {} layers", loads.len());
        cards.push(("experts", experts.to_string(), layers));
    }
    let used = match p.active < p.unique {
        true => format!("{} met by a token", human_count(p.active as f64)),
        false => format!("used as {}", human_count(p.unrolled as f64)),
    };
    cards.push(("parameters", human_count(p.unique as f64), used));
    let time = format!("{} in all", human_duration(started.elapsed().as_secs_f64()));
    cards.push(("tokens trained on", human_count(stored.tokens as f64), time));
    let cards: Vec<_> = cards.iter().map(|(a, b, c)| (*a, b.as_str(), c.as_str())).collect();
    page.cards(&cards);
}

/// How often each expert of a layer was chosen.
struct Load {
    layer: u32,
    tokens: usize,
    loads: Vec<u64>,
}

/// The loads of every layer with experts, on validation text by the causal rule; none for a model
/// without experts.
fn loads(recipe: &Recipe, stored: &Stored, windows: &Windows) -> Result<Vec<Load>> {
    let mut recorder = Recorder::of(&stored.model);
    let choice = WindowChoice::new(windows.len(), COUNTED, 0);
    let chunks = in_chunks(windows, &choice.scored)?;
    let rule = open::causal(stored)?;
    let how = Scoring::by(&rule, &stored.state);
    let watch: Option<(&[u64], &mut dyn model::Probe)> = Some((&choice.scored[..], &mut recorder));
    score_watched(&stored.model, windows, &chunks, recipe.data.document_mask, &how, watch);
    let trace = recorder.take();
    let mut all = Vec::new();
    for layer in trace.sites.keys().copied().flatten() {
        let choices = Choices::of(&trace, layer);
        all.push(Load { layer, tokens: choices.rows.len(), loads: choices.loads() });
    }
    Ok(all)
}

fn load_grid(loads: &[Load]) -> Grid {
    let mut rows = Vec::new();
    for of in loads {
        let mean = of.loads.iter().sum::<u64>() as f64 / of.loads.len().max(1) as f64;
        let shares = of.loads.iter().map(|&load| load as f64 / mean.max(1e-9)).collect();
        rows.push((format!("layer {}", of.layer), shares));
    }
    let most = loads.iter().map(|of| of.loads.len()).max().unwrap_or(0);
    let columns = (0..most).map(|expert| expert.to_string()).collect();
    let title = "load of each expert, as a multiple of an even share".to_owned();
    Grid { title, x_label: "expert".into(), columns, rows, full: None }
}

fn load_table(loads: &[Load]) -> Table {
    let rows = loads.iter().map(|of| {
        vec![
            of.layer.to_string(),
            of.tokens.to_string(),
            of.loads.len().to_string(),
            of.loads.iter().filter(|load| **load == 0).count().to_string(),
            format!("{:.3}", max_violation(&of.loads)),
        ]
    });
    let columns = ["layer", "tokens", "experts", "without tokens", "(max - mean) / mean"];
    Table {
        columns: columns.map(str::to_owned).to_vec(),
        rows: rows.collect(),
        caption: "loads of experts on validation text".to_owned(),
        best: None,
    }
}

fn depth_shares(name: &str, score: &train::RuleScore) -> BarSeries {
    let rows = score.depths.iter().sum::<u64>().max(1) as f64;
    BarSeries { name: name.into(), values: score.depths.iter().map(|&n| n as f64 / rows).collect() }
}

fn depth_bars(validation: &Validation) -> Bars {
    Bars {
        title: "Share of tokens by recursions taken".into(),
        x_label: "recursions".into(),
        y_label: "share".into(),
        labels: (0..validation.causal.depths.len()).map(|d| d.to_string()).collect(),
        series: vec![
            depth_shares("training-time routing", &validation.training),
            depth_shares("causal routing", &validation.causal),
        ],
        percent: true,
    }
}

/// The first validation window with some prose in it, as text.
fn validation_text(windows: &Windows, tokenizer: &Tokenizer) -> Result<String> {
    let mut ids = Vec::new();
    for index in 0..windows.len().min(3) {
        ids.extend(windows.unshuffled(index)?.ids);
    }
    Ok(tokenizer.decode(&ids)?)
}
