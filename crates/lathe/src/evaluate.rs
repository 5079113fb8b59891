//! `lathe eval`: a checkpoint on held-out text, with both routings, by source, and by depth cap.

use std::collections::{BTreeSet, HashMap};
use std::process::ExitCode;

use anyhow::{Context, Result, ensure};
use data::{Corpus, Split, Tokenizer, Windows};
use engine::{RowScore, Scoring, disagreement};
use model::{Probe, Rule};
use ops::Ops;
use report::Table;
use serde_json::json;
use trace::{Recorder, TokenFacts, Trace};
use train::{RuleScore, Stored, WindowChoice, in_chunks, pack, score_rule, score_watched};

use crate::arguments::Eval;
use crate::train_run::score_row;
use crate::{device, evaluate_tasks, open, output, traces};

/// `lathe eval --data`, and `lathe eval --tasks` where no data is given.
pub(crate) fn run(options: &Eval) -> Result<ExitCode> {
    let device = options.on.open()?;
    let (stored, tokenizer) =
        open::adapted(&options.checkpoint, options.adapted.adapter.as_deref())?;
    device::takes(device, &[stored.rounded.as_ref(), options.weights.as_ref()])?;
    let weights = open::round(&stored.model, stored.rounded.as_ref(), options.weights.as_ref())?;
    let Some(data) = &options.data else {
        return device.guard(|| {
            evaluate_tasks::run(options, weights, Ops::on(device), &stored, &tokenizer)
        })?;
    };
    let split = if options.split == "train" { Split::Train } else { Split::Validation };
    let corpus =
        Corpus::open(data, split).with_context(|| format!("opening {}", data.display()))?;
    ensure!(
        corpus.tokenizer_sha256() == tokenizer.sha256(),
        "{} was tokenized with another tokenizer (sha256 {}) than the checkpoint's ({}): \
         build the data with the checkpoint's",
        data.display(),
        corpus.tokenizer_sha256(),
        tokenizer.sha256()
    );
    let trained = stored.recipe.as_ref().map(|r| r.data.clone());
    let length = options
        .sequence_length
        .or(trained.as_ref().map(|d| d.sequence_length))
        .unwrap_or(256.min(stored.model.config().context));
    ensure!(
        length >= 1 && length <= stored.model.config().context,
        "--sequence-length is {length}, expected between 1 and the model's context {}",
        stored.model.config().context
    );
    if !tokenizer.spells_its_text() && !corpus.counts_text_bytes() {
        output::note(format!(
            "{} does not say how many bytes of text its tokens stand for, and this tokenizer \
             changes text: bits per byte count the tokens' spelling; build the data again for \
             those of the text",
            data.display()
        ));
    }
    let mask = !options.no_document_mask && trained.is_none_or(|d| d.document_mask);
    let windows = Windows::new(&corpus, length, 0)?;
    ensure!(
        windows.len() > 0,
        "{} has {} tokens, too few for a window of {length}",
        data.display(),
        corpus.tokens()
    );
    let held = set_aside(options, &stored, length, split)?;
    let choice = WindowChoice::new(windows.len(), options.windows, held);
    options.trace.as_deref().map(traces::must_be_free).transpose()?;
    let traced = options.trace.as_ref().map(|_| traces::recorder(&stored.model));
    let mut recorder = traced.transpose()?;
    let (scores, rows) = device.guard(|| {
        score_all(Ops::on(device), &stored, &windows, &choice, mask, recorder.as_mut())
    })??;
    show(options, &stored, (&scores, &choice), (length, mask), (split, &weights.to_string()))?;
    // Behind the numbers, which a disk that is full must not take away.
    if let (Some(path), Some(recorder)) = (&options.trace, &mut recorder) {
        let mut trace = recorder.take();
        describe(&mut trace, (&windows, &choice, mask), &rows, &tokenizer)?;
        traces::keep(&trace, path)?;
    }
    Ok(ExitCode::SUCCESS)
}

/// Notes in a trace what its tokens and the text after them are: what each prediction cost, where
/// the text comes from, and how tokens are spelled.
fn describe(
    trace: &mut Trace,
    (windows, choice, mask): (&Windows, &WindowChoice, bool),
    rows: &[RowScore],
    tokenizer: &Tokenizer,
) -> Result<()> {
    let mut facts: HashMap<u64, Vec<TokenFacts>> = HashMap::new();
    let mut rows = rows.iter();
    for (number, window) in
        choice.scored.iter().zip(in_chunks(windows, &choice.scored)?.into_iter().flatten())
    {
        let counts = pack(std::slice::from_ref(&window), mask).counts;
        let of_window = counts.iter().zip(&window.source).zip(&mut rows);
        let of_window = of_window.map(|((&counts, &source), row)| TokenFacts {
            loss: (counts && row.nll.is_finite()).then_some(row.nll.max(0.0)),
            source: Some(source.into()),
        });
        facts.insert(*number, of_window.collect());
    }
    trace.sources = windows.corpus().sources().to_vec();
    let named = trace.sources.len() as u32;
    trace.tell(|decision| {
        let of_window = facts.get(&decision.sequence);
        let known = of_window.and_then(|facts| facts.get(decision.position as usize));
        let known = known.copied().unwrap_or_default();
        TokenFacts { source: known.source.filter(|source| *source < named), ..known }
    });
    let tokens: BTreeSet<u32> = trace.iter().map(|decision| decision.token).collect();
    trace.texts = tokens
        .into_iter()
        .map(|id| (id, String::from_utf8_lossy(&tokenizer.bytes_of(id)).into_owned()))
        .collect();
    Ok(())
}

/// Prints what was found.
fn show(
    options: &Eval,
    stored: &Stored,
    (scores, choice): (&Scores, &WindowChoice),
    (length, mask): (usize, bool),
    (split, weights): (Split, &str),
) -> Result<()> {
    if options.json {
        let caps: Vec<_> =
            scores.caps.iter().map(|(cap, s)| json!({ "max_depth": cap, "score": s })).collect();
        output::json(&json!({
            "checkpoint": options.checkpoint, "adapter": options.adapted.adapter,
            "weights": weights, "step": stored.step,
            "sequence_length": length, "document_mask": mask,
            "windows_set_aside": choice.calibrated.len(),
            "training_time_routing": scores.training, "causal_routing": scores.causal,
            "disagreement": scores.disagreement, "by_depth_cap": caps,
        }))?;
        return Ok(());
    }
    let caption = format!(
        "{split}, {} windows of {length}{}, weights {weights}; depths differ on {:.1} % of rows",
        scores.rows / length,
        match choice.calibrated.len() {
            0 => String::new(),
            held => format!(" without the {held} set aside for a causal rule"),
        },
        100.0 * scores.disagreement
    );
    output::table(&rule_table(scores, caption));
    output::line("");
    output::table(&source_table(scores));
    Ok(())
}

/// Windows that are not scored: what a rule was calibrated on is not scored with it, nor by the
/// models beside it, such as a dense one of the same recipe.
fn set_aside(options: &Eval, stored: &Stored, length: usize, split: Split) -> Result<u64> {
    if let Some(asked) = options.set_aside {
        ensure!(
            split == Split::Validation,
            "--set-aside is {asked} with --split train, of which no window calibrates: leave it \
             out, or score the validation text"
        );
        return Ok(asked);
    }
    let recipe = stored.recipe.as_ref().filter(|_| split == Split::Validation);
    let recipe = recipe.filter(|recipe| recipe.data.sequence_length == length);
    Ok(recipe.map_or(0, |recipe| recipe.log.calibrate_windows.max(1)))
}

/// What the same windows cost under each rule.
struct Scores {
    training: RuleScore,
    causal: RuleScore,
    /// The causal rule with at most so many recursions, from 1 to all of them; none for a model
    /// without recursions.
    caps: Vec<(usize, RuleScore)>,
    /// Share of rows that the two rules give another depth.
    disagreement: f64,
    rows: usize,
}

/// Scores the windows chosen by `ops` with both rules and with every cap; beside the scores what
/// each row got by the causal rule.
fn score_all(
    ops: Ops,
    stored: &Stored,
    windows: &Windows,
    choice: &WindowChoice,
    mask: bool,
    recorder: Option<&mut Recorder>,
) -> Result<(Scores, Vec<RowScore>)> {
    let chunks = in_chunks(windows, &choice.scored)?;
    let rule = open::causal(stored)?;
    let whole = Scoring { ops, ..Scoring::by(&Rule::NonCausal, &stored.state) };
    let (training, a) = score_rule(&stored.model, windows, &chunks, mask, &whole);
    let whole = Scoring { ops, ..Scoring::by(&rule, &stored.state) };
    let watch = recorder.map(|recorder| (&choice.scored[..], recorder as &mut dyn Probe));
    let (causal, b) = score_watched(&stored.model, windows, &chunks, mask, &whole, watch);
    let mut caps: Vec<(usize, RuleScore)> = Vec::new();
    if !stored.model.plan().recursions.is_empty() {
        let most = stored.model.config().recursions;
        for cap in 1..most {
            let capped = Scoring { max_depth: Some(cap), ..whole };
            caps.push((cap, score_rule(&stored.model, windows, &chunks, mask, &capped).0));
        }
        caps.push((most, causal.clone()));
    }
    let (disagreement, rows) = (disagreement(&a, &b), a.len());
    Ok((Scores { training, causal, caps, disagreement, rows }, b))
}

/// One row for each rule and each cap.
fn rule_table(scores: &Scores, caption: String) -> Table {
    let mut rows = vec![
        score_row("training-time routing", &scores.training),
        score_row("causal routing", &scores.causal),
    ];
    for (cap, score) in &scores.caps {
        rows.push(score_row(&format!("causal, at most {}", output::recursions(*cap)), score));
    }
    let columns =
        ["", "nats/token", "perplexity", "bits/byte", "mean depth"].map(str::to_owned).to_vec();
    Table { columns, rows, caption, best: None }
}

/// One row for each source of the data.
fn source_table(scores: &Scores) -> Table {
    let rows = scores.training.sources.iter().map(|(name, score)| {
        let causal = scores.causal.sources.get(name).map_or(f64::NAN, |s| s.bits_per_byte);
        vec![
            name.clone(),
            score.predictions.to_string(),
            format!("{:.4}", score.bits_per_byte),
            format!("{causal:.4}"),
        ]
    });
    let columns = ["source", "predictions", "bits/byte, training-time", "bits/byte, causal"]
        .map(str::to_owned)
        .to_vec();
    Table { columns, rows: rows.collect(), caption: String::new(), best: None }
}
