//! `lathe bench decode` and `lathe bench prefill`: the engine on random tokens, as fast as it goes.

use std::collections::BTreeMap;
use std::path::Path;
use std::process::ExitCode;
use std::sync::atomic::{AtomicU64, AtomicUsize, Ordering};
use std::sync::{Arc, Mutex};
use std::time::Instant;

use anyhow::{Result, ensure};
use data::Tokenizer;
use engine::{DefaultDraw, Engine, EngineOptions, Generation, Sampler, causal_rule};
use model::cost::{self, Convention};
use model::rng::{Purpose, Stream};
use model::{Model, RouterState, Rule};
use report::{Table, human_bytes, human_count};
use scheduler::{DepthOptions, Event, EventSink, Offer, Request, SchedulerLimits};
use serde_json::{Value, json};

use crate::serving_arguments::{BenchRun, Weights};
use crate::{bench_train, open, output, recipe};

/// What runs.
pub(crate) struct Subject {
    pub(crate) name: String,
    pub(crate) model: Arc<Model>,
    pub(crate) rule: Rule,
    pub(crate) state: RouterState,
    pub(crate) weights: Weights,
    /// That of a checkpoint; fresh weights have none.
    pub(crate) tokenizer: Option<Tokenizer>,
}

/// One measured setting.
struct Measured {
    seconds: f64,
    spent: BTreeMap<&'static str, ops::timing::Spent>,
    tokens: usize,
    ticks: u64,
    mean_depth: f64,
    /// Most bytes of keys and values that sequences under way held at a time.
    kv_bytes: usize,
    /// FLOPs of a row at the depths that the rows had, full convention.
    flops: f64,
}

/// Runs `lathe bench decode`.
pub(crate) fn decode(options: &BenchRun) -> Result<ExitCode> {
    run(options, false)
}

/// Runs `lathe bench prefill`.
pub(crate) fn prefill(options: &BenchRun) -> Result<ExitCode> {
    run(options, true)
}

fn run(options: &BenchRun, prefill: bool) -> Result<ExitCode> {
    ensure!(
        options.rounds > 0 && options.tokens > 1,
        "--rounds must be at least 1 and --tokens at least 2"
    );
    let subjects: Vec<Subject> = options
        .model
        .iter()
        .map(|name| subject(name, &options.set, options.numbers.weights))
        .collect::<Result<_>>()?;
    let (peak, bandwidth) = (ops::peak_flops(), ops::read_bandwidth());
    let (mut rows, mut results) = (Vec::new(), Vec::new());
    for &context in &options.context {
        for &batch in &options.batch {
            let mut found: Vec<Vec<Measured>> = subjects.iter().map(|_| Vec::new()).collect();
            // Models take turns, so that a slow minute of the machine hits all of them.
            for _ in 0..options.rounds {
                for (subject, found) in subjects.iter().zip(&mut found) {
                    found.push(measure(subject, options, batch, context, prefill)?);
                }
            }
            if options.profile {
                output::piece(profile(&subjects[0], options, batch, context, prefill)?.to_text());
            }
            let (mut first, mut first_flops) = (None, None);
            for (subject, found) in subjects.iter().zip(&mut found) {
                found.sort_by(|a, b| a.seconds.total_cmp(&b.seconds));
                let all: Vec<f64> = found.iter().map(|m| m.tokens as f64 / m.seconds).collect();
                let middle = &found[found.len() / 2];
                let rate = middle.tokens as f64 / middle.seconds;
                let streamed = subject.model.bytes() as f64 * middle.ticks as f64 / middle.seconds;
                let ratio = rate / *first.get_or_insert(rate);
                let allowed = *first_flops.get_or_insert(middle.flops) / middle.flops;
                rows.push(vec![
                    subject.name.clone(),
                    batch.to_string(),
                    context.to_string(),
                    format!("{rate:.1}"),
                    format!("{:.1}-{:.1}", all[all.len() - 1], all[0]),
                    format!("{ratio:.2}"),
                    format!("{allowed:.2}"),
                    format!("{:.2}", middle.mean_depth),
                    format!("{:.0}", 100.0 * streamed / bandwidth),
                    human_bytes(middle.kv_bytes as u64),
                ]);
                results.push(json!({
                    "model": subject.name, "batch": batch, "context": context, "tokens_per_second": all,
                    "median": rate, "ratio": ratio,
                    "flop_ratio": allowed, "flops_per_row": middle.flops, "mean_depth": middle.mean_depth, "ticks": middle.ticks,
                    "weight_bytes": subject.model.bytes(), "kv_bytes": middle.kv_bytes,
                }));
            }
        }
    }
    let mut weights: Vec<String> =
        subjects.iter().map(|subject| subject.weights.to_string()).collect();
    weights.dedup();
    print(options, prefill, &weights.join(" "), rows, results, (peak, bandwidth))
}

/// One round, operation by operation; what is left is the engine's own work: plans, pages, draws,
/// moving rows.
fn profile(
    subject: &Subject,
    options: &BenchRun,
    batch: usize,
    context: usize,
    prefill: bool,
) -> Result<Table> {
    ops::timing::measure(true);
    let measured = measure(subject, options, batch, context, prefill)?;
    ops::timing::measure(false);
    let spent = &measured.spent;
    let row = |name: &str, calls: u64, seconds: f64| {
        let share = 100.0 * seconds / measured.seconds;
        vec![name.to_owned(), calls.to_string(), format!("{seconds:.4}"), format!("{share:.1}")]
    };
    let mut rows: Vec<_> = spent.iter().map(|(name, s)| row(name, s.calls, s.forward)).collect();
    let inside: f64 = spent.values().map(|s| s.forward).sum();
    rows.push(row("outside of operations", measured.ticks, measured.seconds - inside));
    let caption = format!(
        "{}, batch {batch}, {} ticks in {:.3} s",
        subject.name, measured.ticks, measured.seconds
    );
    let columns = ["operation", "calls", "seconds", "% of time"].map(str::to_owned).to_vec();
    Ok(Table { columns, rows, caption, best: None })
}

fn print(
    options: &BenchRun,
    prefill: bool,
    weights: &str,
    rows: Vec<Vec<String>>,
    results: Vec<Value>,
    peak: (f64, f64),
) -> Result<ExitCode> {
    if options.json {
        let kv = options.numbers.kv.to_string();
        output::line(serde_json::to_string_pretty(&json!({
            "bench": if prefill { "prefill" } else { "decode" }, "machine": ops::machine(), "peak_flops": peak.0,
            "read_bandwidth": peak.1, "peak_memory": bench_train::peak_memory(), "weights": weights, "kv": kv, "results": results,
        }))?);
        return Ok(ExitCode::SUCCESS);
    }
    let columns = [
        "model",
        "batch",
        "context",
        "tokens/s",
        "range",
        "ratio",
        "by FLOPs",
        "mean depth",
        "% of bandwidth",
        "KV held",
    ];
    let caption = format!(
        "{}, weights {}, keys and values {}; {} of arithmetic, {}/s of memory; ratio and by FLOPs: to the first model, measured and as the FLOPs of the rows allow; % of bandwidth: all weights once a tick",
        ops::machine(),
        weights,
        options.numbers.kv,
        human_count(peak.0) + "FLOP/s",
        human_bytes(peak.1 as u64)
    );
    output::piece(
        Table { columns: columns.map(str::to_owned).to_vec(), rows, caption, best: None }.to_text(),
    );
    Ok(ExitCode::SUCCESS)
}

/// A checkpoint, or a fresh model with a causal rule calibrated on random tokens.
pub(crate) fn subject(name: &str, set: &[String], wanted: Option<Weights>) -> Result<Subject> {
    let path = Path::new(name);
    let (model, rule, state, rounded, tokenizer) = if path.is_dir() {
        let (stored, tokenizer) = open::checkpoint(path)?;
        let rule = open::causal(&stored)?;
        (stored.model, rule, stored.state, stored.rounded, Some(tokenizer))
    } else {
        let recipe = match name.ends_with(".toml") {
            true => recipe::load(path, set)?,
            false => {
                recipe::parse(&format!("[model]\npreset = \"{name}\"\nvocab_size = 4096\n"), set)?
            }
        };
        let model = Arc::new(Model::fresh(&recipe.model, 1)?);
        let ids = random_ids(9, 512, recipe.model.vocab_size);
        let (document, same) = (vec![0; 511], vec![true; 511]);
        let sequence = engine::BatchSequence {
            ids: &ids[..511],
            targets: &ids[1..],
            document: &document,
            same_document: &same,
        };
        let state = RouterState::default();
        let rule = causal_rule(&model, &state, &[engine::Batch::pack(&[sequence], true)]);
        (model, rule, state, None, None)
    };
    let weights = open::prepare(&model, rounded, wanted)?;
    Ok(Subject { name: name.to_owned(), model, rule, state, weights, tokenizer })
}

fn random_ids(seed: u64, count: usize, vocab: usize) -> Vec<u32> {
    let mut stream = Stream::at(seed, Purpose::Shuffle, 0, 0);
    (0..count).map(|_| (stream.next_u64() % vocab as u64) as u32).collect()
}

/// Counts what arrives.
#[derive(Clone, Default)]
struct Tally {
    tokens: Arc<AtomicUsize>,
    depth: Arc<AtomicU64>,
    ended: Arc<AtomicUsize>,
    first: Arc<Mutex<Vec<u32>>>,
    keeps: bool,
}

impl EventSink for Tally {
    fn offer(&mut self, event: &Event) -> Offer {
        match event {
            Event::Token(token) => {
                self.tokens.fetch_add(1, Ordering::Relaxed);
                self.depth.fetch_add(u64::from(token.depth), Ordering::Relaxed);
                if self.keeps {
                    self.first
                        .lock()
                        .unwrap_or_else(std::sync::PoisonError::into_inner)
                        .push(token.scored.id);
                }
            }
            Event::Done(_) => drop(self.ended.fetch_add(1, Ordering::Relaxed)),
            Event::Prompt(_) => {}
        }
        Offer::Taken
    }
}

fn measure(
    subject: &Subject,
    options: &BenchRun,
    batch: usize,
    context: usize,
    prefill: bool,
) -> Result<Measured> {
    let config = subject.model.config();
    let new = if prefill { 1 } else { options.tokens };
    ensure!(
        context >= 1 && context + new <= config.context,
        "{}: prompts of {context} and {new} new tokens do not fit the context {}",
        subject.name,
        config.context
    );
    let layers = subject.model.plan().unrolled().count();
    let requests = options.requests.unwrap_or(batch).max(batch);
    let continuous = requests > batch;
    let page = ops::KvStore::page_bytes(options.numbers.kv, config.heads());
    let enough = layers * batch * (context + new).div_ceil(16) + layers;
    let limits = SchedulerLimits {
        queue_requests: requests,
        queue_tokens: usize::MAX,
        max_seqs: batch,
        max_batch_tokens: 512.max(batch),
        prefill_chunk: 512,
        pages: options.kv_memory.map_or(enough, |mib| (mib * (1 << 20) as f64) as usize / page),
        coda_batch: options.coda_batch,
        coda_wait: config.recursions as u64,
        context: config.context,
        ..SchedulerLimits::default()
    };
    let setup = EngineOptions { limits, kv: options.numbers.kv, draw: Arc::new(DefaultDraw) };
    let mut engine =
        Engine::new(subject.model.clone(), subject.rule.clone(), subject.state.clone(), setup)?;
    let tally = Tally::default();
    let mut prompts = Vec::new();
    for i in 0..requests {
        let prompt = random_ids(100 + i as u64, context, config.vocab_size);
        let sink = Tally { keeps: i == 0, ..tally.clone() };
        engine.handle().submit(
            request(i as u64, prompt.clone(), new, options.max_depth),
            Box::new(sink),
            0,
        )?;
        prompts.push(prompt);
    }
    let mut clock = Instant::now();
    let (mut started, mut ticks, mut now) = (prefill || continuous, 0, 0);
    let (mut before, mut depth_before, mut held) = (0, 0, 0);
    while tally.ended.load(Ordering::Relaxed) < requests {
        engine.tick(now);
        let gauges = engine.handle().gauges();
        held = held.max(gauges.pages_used.iter().sum::<usize>() - gauges.pages_cached);
        (now, ticks) = (now + 1, ticks + 1);
        // Decoding counts from the moment when every prompt is done.
        if !started && tally.tokens.load(Ordering::Relaxed) >= batch {
            before = tally.tokens.load(Ordering::Relaxed);
            depth_before = tally.depth.load(Ordering::Relaxed);
            (clock, started, ticks) = (Instant::now(), true, 0);
            if options.profile {
                ops::timing::measure(true);
            }
        }
    }
    let seconds = clock.elapsed().as_secs_f64();
    let spent = ops::timing::spent();
    check(subject, options, &prompts[0], &tally, new)?;
    let drawn = tally.tokens.load(Ordering::Relaxed) - before;
    let depth = tally.depth.load(Ordering::Relaxed) - depth_before;
    let gauges = engine.handle().gauges();
    Ok(Measured {
        seconds,
        spent,
        tokens: if prefill { requests * context } else { drawn },
        ticks,
        mean_depth: if prefill {
            gauges.recursion_steps.0 as f64 / gauges.depths.iter().sum::<u64>().max(1) as f64
        } else {
            depth as f64 / drawn.max(1) as f64
        },
        kv_bytes: gauges.page_bytes * held,
        flops: {
            let plan = subject.model.plan();
            let shares = cost::shares_of(&gauges.depths, plan.recursions.len());
            cost::forward_flops(config, plan, context + new, &shares, Convention::Full)
        },
    })
}

fn request(id: u64, prompt: Vec<u32>, max_tokens: usize, max_depth: Option<u32>) -> Request {
    Request {
        id,
        prompt,
        max_tokens,
        min_tokens: 0,
        stop_ids: Vec::new(),
        sampling: scheduler::SamplingParams { temperature: 0.0, ..Default::default() },
        depth_options: DepthOptions { max_depth, ..DepthOptions::default() },
        top: None,
        prompt_scores: None,
        priority: 0,
        deadline: None,
    }
}

/// The first sequence must be what generation alone gives (exactly so with caches in f32).
fn check(
    subject: &Subject,
    options: &BenchRun,
    prompt: &[u32],
    tally: &Tally,
    new: usize,
) -> Result<()> {
    if options.numbers.kv != ops::KvFormat::F32 {
        return Ok(());
    }
    let max_tokens = new.min(8);
    let what = Generation {
        prompt,
        max_tokens,
        stop: &[],
        sampler: &Sampler::greedy(),
        rule: &subject.rule,
        state: &subject.state,
        max_depth: options.max_depth.map(|d| d as usize),
        choice: 0,
    };
    let alone: Vec<u32> = engine::generate(&subject.model, &what, &mut |_| true)?
        .tokens
        .iter()
        .map(|t| t.id)
        .collect();
    let found = tally.first.lock().unwrap_or_else(std::sync::PoisonError::into_inner);
    ensure!(
        found[..max_tokens] == alone[..],
        "{}: the batch gave {found:?}, alone {alone:?}",
        subject.name
    );
    Ok(())
}
