//! `lathe inspect`: what a checkpoint holds and costs, and where it spends its recursions on a
//! text.

use std::path::Path;
use std::process::ExitCode;

use anyhow::{Context, Result, ensure};
use data::Tokenizer;
use engine::{Batch, BatchSequence, RoutingStats, RowScore, Scoring, score};
use model::cost::parameters;
use model::layout::LayerUse;
use model::{Rule, Sharing};
use report::{HeatText, HeatToken, Page, Table};
use serde_json::json;
use train::Stored;

use crate::arguments::Inspect;
use crate::{inspect_trace, open, output, plan};

/// `lathe inspect`, with a page where `--html` asks for one.
pub(crate) fn run(options: &Inspect) -> Result<ExitCode> {
    if let Some(path) = &options.trace {
        return inspect_trace::run(options, path);
    }
    // The parser lets these pass beside a checkpoint, which excludes --trace.
    for (flag, is_given) in [
        ("--against", !options.against.is_empty()),
        ("--form", options.form.is_some()),
        ("--out", options.out.is_some()),
    ] {
        ensure!(
            !is_given,
            "{flag} is about a trace: give --trace FILE in the place of a checkpoint"
        );
    }
    ensure!(
        options.html.is_none() || options.text.is_some(),
        "--html needs something to draw: give --text FILE, or --trace FILE in the place of a \
         checkpoint"
    );
    let checkpoint = options.checkpoint.as_deref().context("the checkpoint to inspect")?;
    let (stored, tokenizer) = open::checkpoint(checkpoint)?;
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
        output::json(&json!({
            "step": stored.step, "tokens": stored.tokens,
            "weights": weights, "weight_bytes": stored.model.bytes(),
            "config": config, "parameters": p, "routing": routing,
            "router_state": stored.state, "sharing": sharing_map(&stored),
            "text": text.as_ref().map(Looked::rows),
        }))?;
    } else {
        show(&stored, &weights);
        output::line("");
        output::table(&costs);
        for table in text.iter().flat_map(|text| &text.statistics) {
            output::line("");
            output::table(table);
        }
    }
    if let (Some(path), Some(text)) = (&options.html, text) {
        let mut page = Page::new("Depth by token", &checkpoint.display().to_string());
        page.table(costs);
        for table in text.statistics {
            page.table(table);
        }
        page.heat(text.heat);
        output::page(path, &page.render())?;
        output::note(format!("wrote {}", path.display()));
    }
    Ok(ExitCode::SUCCESS)
}

/// Says what a checkpoint holds: how long it was trained, its weights, routers, layers and experts.
fn show(stored: &Stored, weights: &str) {
    let config = stored.model.config();
    output::line(format!(
        "step {}, {} predictions trained on",
        stored.step,
        report::human_count(stored.tokens as f64)
    ));
    if stored.rounded.is_some() {
        let bytes = report::human_bytes(stored.model.bytes() as u64);
        output::line(format!("weights rounded to {weights}, {bytes}: a checkpoint for use only"));
    }
    output::line(format!("router {}, layers {}", config.router.kind(), sharing_map(stored)));
    if let Some(told) = experts(stored) {
        output::line(told);
    }
    if let Some(Rule::Causal(decision)) = &stored.rule {
        output::line(format!(
            "causal rule: {}, thresholds {}",
            decision.made_by,
            thresholds(&decision.thresholds)
        ));
    }
}

/// Which MLPs there are in the place of a dense one, and how many experts each stored layer has.
fn experts(stored: &Stored) -> Option<String> {
    let mlp = &stored.model.config().mlp;
    let counts =
        (0..stored.model.plan().stored).map(|layer| mlp.settings().computing_experts(layer));
    let counts: Vec<usize> = counts.collect();
    let any = counts.iter().any(|count| *count > 0);
    let counts: Vec<String> = counts.iter().map(usize::to_string).collect();
    any.then(|| {
        format!("MLPs {}, experts by layer {}", convert::mlp_in_words(mlp), counts.join(" "))
    })
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
    /// Tokens and mean loss by number of recursions; what each depth router let pass, if there is
    /// one.
    pub(crate) statistics: Vec<Table>,
    /// Every token with its depth.
    pub(crate) heat: HeatText,
}

impl Looked {
    /// The rows of all tables, one after another.
    fn rows(&self) -> Vec<&Vec<String>> {
        self.statistics.iter().flat_map(|table| &table.rows).collect()
    }
}

fn read_text(stored: &Stored, tokenizer: &Tokenizer, path: &Path) -> Result<Looked> {
    let text = open::text_file(path)?;
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
    for start in (0..ids.len()).step_by(config.context) {
        let end = (start + config.context).min(ids.len());
        // The last token predicts nothing, but takes its recursions.
        let targets: Vec<u32> = (start + 1..=end).map(|i| ids.get(i).map_or(0, |&id| id)).collect();
        let sequence = BatchSequence {
            ids: &ids[start..end],
            targets: &targets,
            document: &vec![0; end - start],
            same_document: &vec![true; end - start],
        };
        let batch = Batch::pack(&[sequence], true);
        scores.extend(score(&stored.model, &batch, &Scoring::by(&rule, &stored.state), &mut stats));
    }
    let heat = HeatText {
        title: title.to_owned(),
        max_depth: config.recursions,
        tokens: heat_tokens(tokenizer, &ids, &scores)?,
    };
    let mut rows = Vec::new();
    for depth in 0..=config.recursions {
        rows.push(depth_row(depth, &scores));
    }
    let columns = ["", "tokens", "%", "nats of the next token"].map(str::to_owned).to_vec();
    let caption = format!("causal routing on {title}");
    let mut statistics = vec![Table { columns, rows, caption, best: None }];
    let mut rows = Vec::new();
    for (r, seen) in stats.recursions.iter().enumerate() {
        let share = 100.0 * seen.kept as f64 / seen.candidates.max(1) as f64;
        let mean = seen.logit_sum / seen.candidates.max(1) as f64;
        let name = format!("router {}", r + 1);
        rows.push(vec![name, seen.kept.to_string(), format!("{share:.1}"), format!("{mean:.3}")]);
    }
    if !rows.is_empty() {
        let columns = ["", "tokens that pass", "% of those before it", "mean logit"];
        let columns = columns.map(str::to_owned).to_vec();
        statistics.push(Table { columns, rows, caption: String::new(), best: None });
    }
    Ok(Looked { statistics, heat })
}

/// Every token with the number of recursions that its row took.
fn heat_tokens(tokenizer: &Tokenizer, ids: &[u32], scores: &[RowScore]) -> Result<Vec<HeatToken>> {
    let mut stream = tokenizer.decode_stream();
    let mut tokens = Vec::new();
    for (i, (&id, score)) in ids.iter().zip(scores).enumerate() {
        let text = stream.push(id)?.unwrap_or_default();
        let note = (i + 1 < ids.len()).then(|| format!("next token: {:.2} nats", score.nll));
        tokens.push(HeatToken { text, depth: score.depth as f32, note });
    }
    if let (Some(last), Some(rest)) = (tokens.last_mut(), stream.finish()) {
        last.text.push_str(&rest);
    }
    Ok(tokens)
}

/// Name, tokens, share of all tokens and mean nats of the next token, of the rows that took `depth`
/// recursions. The last row has no next token.
fn depth_row(depth: usize, scores: &[RowScore]) -> Vec<String> {
    let (mut tokens, mut predicted) = (0, 0);
    let mut nats = 0.0;
    for (i, score) in scores.iter().enumerate().filter(|(_, s)| s.depth as usize == depth) {
        tokens += 1;
        if i + 1 < scores.len() {
            predicted += 1;
            nats += f64::from(score.nll);
        }
    }
    let share = 100.0 * f64::from(tokens) / scores.len().max(1) as f64;
    // A mean of nothing is no number, and 0 nats would be the best there is.
    let mean = match predicted {
        0 => "-".to_owned(),
        _ => format!("{:.3}", nats / f64::from(predicted)),
    };
    vec![output::recursions(depth), tokens.to_string(), format!("{share:.1}"), mean]
}

/// The thresholds of each recursion, in words where every row passes.
fn thresholds(all: &[Option<f32>]) -> String {
    let one = |threshold: &Option<f32>| threshold.map_or("none".into(), |t| format!("{t:.4}"));
    all.iter().map(one).collect::<Vec<_>>().join(", ")
}

#[cfg(test)]
mod tests {
    use super::*;
    use data::TrainOptions;
    use engine::{Generation, Sampler, oracle};
    use model::{CausalThresholds, Model, ModelConfig, RouterConfig};

    const TEXT: &str = "the model reads a token, and a token reads the model; na\u{ef}ve \u{4e2d}";

    fn tokenizer() -> Tokenizer {
        let texts = (0..40).map(|i| format!("{TEXT} {i}"));
        Tokenizer::train(texts, &TrainOptions::new(280)).expect("learns")
    }

    /// A fresh model of two recursions under `sharing`, whose rule lets rows by their logits.
    fn stored(vocab_size: usize, sharing: Sharing, context: usize) -> Stored {
        let routed = sharing != Sharing::Sequence;
        let config = ModelConfig {
            vocab_size,
            width: 16,
            layers: 6,
            heads: 2,
            kv_heads: 1,
            head_dim: 8,
            ffn: 24,
            context,
            recursions: 2,
            init_std: 0.3,
            sharing,
            router: if routed { RouterConfig::default() } else { RouterConfig::FIXED },
            ..ModelConfig::default()
        };
        let thresholds = vec![Some(0.0), Some(0.1)];
        let rule = CausalThresholds { thresholds, ..CausalThresholds::open("hand", 2) };
        let model = Model::fresh(&config, 3).expect("legal");
        Stored { rule: Some(Rule::Causal(rule)), ..Stored::of(model.into()) }
    }

    /// How many recursions each row of the text takes in the plain loop, in stretches of 12.
    fn depths(stored: &Stored, ids: &[u32]) -> Vec<u32> {
        let (sampler, rule) = (Sampler::greedy(), stored.rule.as_ref().expect("made above"));
        let mut depths = Vec::new();
        for prompt in ids.chunks(12) {
            let what = Generation {
                prompt,
                max_tokens: 1,
                stop: &[],
                sampler: &sampler,
                rule,
                state: &stored.state,
                max_depth: None,
                choice: 0,
                constraint: None,
            };
            let seen = oracle::generate(&stored.model, &what, &mut |_| true).expect("runs");
            depths.extend(seen.prompt_depths);
        }
        depths
    }

    #[test]
    fn nats_are_means_over_rows_with_a_next_token() {
        let scores = [(1.0, 1), (2.5, 2), (4.0, 1), (9.0, 2), (9.0, 0)];
        let scores = scores.map(|(nll, depth)| RowScore { nll, depth });
        assert_eq!(depth_row(1, &scores)[1..], ["2", "40.0", "2.500"]);
        assert_eq!(depth_row(2, &scores)[1..], ["2", "40.0", "5.750"]);
        // Its only row is the last, which predicts nothing.
        assert_eq!(depth_row(0, &scores)[1..], ["1", "20.0", "-"]);
        assert_eq!(depth_row(3, &scores)[1..], ["0", "0.0", "-"]);
    }

    #[test]
    fn every_token_has_the_recursions_that_its_row_took() {
        let tokenizer = tokenizer();
        let ids = tokenizer.encode_ordinary(TEXT).expect("spells it");
        assert!(ids.len() > 20 && ids.len() % 12 != 1, "{} tokens", ids.len());
        let mut met = [0; 3];
        for sharing in [Sharing::MiddleCycle, Sharing::Cycle, Sharing::Sequence] {
            let looked = look(&stored(tokenizer.vocab_size(), sharing, 12), &tokenizer, TEXT, "t");
            let Looked { statistics, heat } = looked.expect("a legal text");
            let expected = depths(&stored(tokenizer.vocab_size(), sharing, 16), &ids);
            let found: Vec<u32> = heat.tokens.iter().map(|token| token.depth as u32).collect();
            assert_eq!(found, expected, "{sharing:?}");
            let text: String = heat.tokens.iter().map(|token| token.text.as_str()).collect();
            assert_eq!(text, TEXT);
            let last = heat.tokens.last().expect("tokens");
            assert!(last.note.is_none() && heat.tokens[0].note.is_some());
            for depth in 0..3 {
                let tokens = expected.iter().filter(|&&d| d == depth).count();
                met[depth as usize] += tokens;
                let row = &statistics[0].rows[depth as usize];
                assert_eq!(row[0], output::recursions(depth as usize));
                assert_eq!(row[1], tokens.to_string(), "{sharing:?} at depth {depth}");
                let share = format!("{:.1}", 100.0 * tokens as f64 / ids.len() as f64);
                assert_eq!(row[2], share);
            }
            if sharing == Sharing::Sequence {
                assert!(found.iter().all(|&depth| depth == 2), "each layer is used twice");
            }
        }
        assert!(met.iter().all(|&tokens| tokens > 0), "{met:?}");
    }
}
