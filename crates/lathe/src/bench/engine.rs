//! `lathe bench decode` and `lathe bench prefill`: the engine on random tokens, as fast as it goes.

use std::collections::BTreeMap;
use std::process::ExitCode;
use std::sync::atomic::{AtomicU64, AtomicUsize, Ordering};
use std::sync::{Arc, Mutex};
use std::time::Instant;

use anyhow::{Result, ensure};
use engine::{DefaultDraw, Engine, EngineOptions, Generation, Sampler};
use model::cost::{self, Convention};
use report::{Table, human_bytes, human_count};
use scheduler::{DepthOptions, EventSink, Offer, Request, SchedulerLimits, SequenceEvent};
use serde_json::{Value, json};

use super::arguments::BenchRun;
use super::subject::{Subject, peak_memory, random_ids, subject};
use crate::output;

/// What one round at one setting gave.
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
        .map(|name| subject(name, &options.set, options.formats.weights.as_ref()))
        .collect::<Result<_>>()?;
    let machine = Machine { peak: ops::peak_flops(), bandwidth: ops::read_bandwidth() };
    let mut found = Found::default();
    for &context in &options.context {
        for &batch in &options.batch {
            let setting = Setting { options, batch, context, prefill };
            found.add(&subjects, &setting, &machine)?;
        }
    }
    let mut weights: Vec<String> =
        subjects.iter().map(|subject| subject.weights.to_string()).collect();
    weights.dedup();
    print(options, prefill, &weights.join(" "), found, &machine)
}

/// The most that this machine can do.
struct Machine {
    /// FLOPs a second of a large f32 product.
    peak: f64,
    /// Bytes a second read from memory.
    bandwidth: f64,
}

/// The results so far, for the table and as JSON.
#[derive(Default)]
struct Found {
    rows: Vec<Vec<String>>,
    results: Vec<Value>,
}

impl Found {
    /// Measures all subjects at one setting. They take turns, so that a slow minute of the machine
    /// hits all of them.
    fn add(
        &mut self,
        subjects: &[Subject],
        setting: &Setting<'_>,
        machine: &Machine,
    ) -> Result<()> {
        let mut measured: Vec<Vec<Measured>> = subjects.iter().map(|_| Vec::new()).collect();
        for _ in 0..setting.options.rounds {
            for (subject, rounds) in subjects.iter().zip(&mut measured) {
                rounds.push(setting.measure(subject)?);
            }
        }
        if setting.options.profile {
            output::piece(profile(&subjects[0], setting)?.to_text());
        }
        let mut first = None;
        for (subject, rounds) in subjects.iter().zip(&mut measured) {
            rounds.sort_by(|a, b| a.seconds.total_cmp(&b.seconds));
            let middle = &rounds[rounds.len() / 2];
            let rate = middle.rate();
            let (first_rate, first_flops) = *first.get_or_insert((rate, middle.flops));
            let all: Vec<f64> = rounds.iter().map(Measured::rate).collect();
            let streamed = subject.model.bytes() as f64 * middle.ticks as f64 / middle.seconds;
            let ratio = rate / first_rate;
            let allowed = first_flops / middle.flops;
            self.rows.push(vec![
                subject.name.clone(),
                setting.batch.to_string(),
                setting.context.to_string(),
                format!("{rate:.1}"),
                format!("{:.1}-{:.1}", all[all.len() - 1], all[0]),
                format!("{ratio:.2}"),
                format!("{allowed:.2}"),
                format!("{:.2}", middle.mean_depth),
                format!("{:.0}", 100.0 * streamed / machine.bandwidth),
                human_bytes(middle.kv_bytes as u64),
            ]);
            self.results.push(json!({
                "model": subject.name, "batch": setting.batch, "context": setting.context,
                "tokens_per_second": all, "median": rate, "ratio": ratio, "flop_ratio": allowed,
                "flops_per_row": middle.flops, "mean_depth": middle.mean_depth,
                "ticks": middle.ticks, "weight_bytes": subject.model.bytes(),
                "kv_bytes": middle.kv_bytes,
            }));
        }
        Ok(())
    }
}

impl Measured {
    fn rate(&self) -> f64 {
        self.tokens as f64 / self.seconds
    }

    /// A row of the profile: calls, seconds, and their share of the round.
    fn row(&self, name: &str, calls: u64, seconds: f64) -> Vec<String> {
        let share = 100.0 * seconds / self.seconds;
        vec![name.to_owned(), calls.to_string(), format!("{seconds:.4}"), format!("{share:.1}")]
    }
}

/// One round, operation by operation; what is left is the engine's own work: plans, pages, draws,
/// moving rows.
fn profile(subject: &Subject, setting: &Setting<'_>) -> Result<Table> {
    ops::timing::measure(true);
    let measured = setting.measure(subject)?;
    ops::timing::measure(false);
    let spent = &measured.spent;
    let mut rows: Vec<_> =
        spent.iter().map(|(name, s)| measured.row(name, s.calls, s.forward)).collect();
    let inside: f64 = spent.values().map(|s| s.forward).sum();
    rows.push(measured.row("outside of operations", measured.ticks, measured.seconds - inside));
    let caption = format!(
        "{}, batch {}, {} ticks in {:.3} s",
        subject.name, setting.batch, measured.ticks, measured.seconds
    );
    let columns = ["operation", "calls", "seconds", "% of time"].map(str::to_owned).to_vec();
    Ok(Table { columns, rows, caption, best: None })
}

fn print(
    options: &BenchRun,
    prefill: bool,
    weights: &str,
    found: Found,
    machine: &Machine,
) -> Result<ExitCode> {
    let kv = options.formats.kv_format.to_string();
    if options.json {
        output::line(serde_json::to_string_pretty(&json!({
            "bench": if prefill { "prefill" } else { "decode" }, "machine": ops::machine(),
            "peak_flops": machine.peak, "read_bandwidth": machine.bandwidth,
            "peak_memory": peak_memory(), "weights": weights, "kv": kv, "results": found.results,
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
        "{}, weights {weights}, KV cache {kv}; {}FLOP/s of arithmetic, {}/s of memory; ratio and \
         by FLOPs: to the first model, measured and as the FLOPs of the rows allow; % of \
         bandwidth: all weights once a tick",
        ops::machine(),
        human_count(machine.peak),
        human_bytes(machine.bandwidth as u64)
    );
    let columns = columns.map(str::to_owned).to_vec();
    output::piece(Table { columns, rows: found.rows, caption, best: None }.to_text());
    Ok(ExitCode::SUCCESS)
}

/// The sink of every sequence: counts tokens, depths and ends.
#[derive(Clone, Default)]
struct Tally {
    tokens: Arc<AtomicUsize>,
    depth: Arc<AtomicU64>,
    ended: Arc<AtomicUsize>,
    first: Arc<Mutex<Vec<u32>>>,
    keeps: bool,
}

impl EventSink for Tally {
    fn offer(&mut self, event: &SequenceEvent) -> Offer {
        match event {
            SequenceEvent::Token(token) => {
                self.tokens.fetch_add(1, Ordering::Relaxed);
                self.depth.fetch_add(u64::from(token.depth), Ordering::Relaxed);
                if self.keeps {
                    self.first
                        .lock()
                        .unwrap_or_else(std::sync::PoisonError::into_inner)
                        .push(token.scored.id);
                }
            }
            SequenceEvent::Done(_) => drop(self.ended.fetch_add(1, Ordering::Relaxed)),
            SequenceEvent::Prompt(_) => {}
        }
        Offer::Taken
    }
}

/// What is measured: so many sequences at a time with prompts of one length.
#[derive(Clone, Copy)]
struct Setting<'o> {
    options: &'o BenchRun,
    batch: usize,
    context: usize,
    prefill: bool,
}

/// Between two ticks of the engine: what was counted when the clock started.
struct Clock {
    start: Instant,
    running: bool,
    ticks: u64,
    tokens: usize,
    depth: u64,
}

impl Clock {
    fn start(running: bool, tally: &Tally) -> Self {
        Self {
            start: Instant::now(),
            running,
            ticks: 0,
            tokens: tally.tokens.load(Ordering::Relaxed),
            depth: tally.depth.load(Ordering::Relaxed),
        }
    }
}

impl Setting<'_> {
    /// New tokens of each sequence.
    fn new_tokens(&self) -> usize {
        if self.prefill { 1 } else { self.options.tokens }
    }

    /// Sequences of the whole bench, at least one batch.
    fn requests(&self) -> usize {
        self.options.requests.unwrap_or(self.batch).max(self.batch)
    }

    fn engine(&self, subject: &Subject) -> Result<Engine> {
        let options = self.options;
        let config = subject.model.config();
        let longest = self.context + self.new_tokens();
        ensure!(
            self.context >= 1 && longest <= config.context,
            "{}: prompts of {} and {} new tokens do not fit the context {}",
            subject.name,
            self.context,
            self.new_tokens(),
            config.context
        );
        let layers = subject.model.plan().unrolled().count();
        let page = ops::KvStore::page_bytes(options.formats.kv_format, config.heads());
        let enough = layers * self.batch * longest.div_ceil(16) + layers;
        let limits = SchedulerLimits {
            queue_requests: self.requests(),
            queue_tokens: usize::MAX,
            max_seqs: self.batch,
            max_batch_tokens: 512.max(self.batch),
            prefill_chunk: 512,
            pages: options.kv_memory.map_or(enough, |mib| (mib * (1 << 20) as f64) as usize / page),
            coda_batch: options.coda_batch,
            coda_wait: config.recursions as u64,
            context: config.context,
            ..SchedulerLimits::default()
        };
        let setup =
            EngineOptions { limits, kv: options.formats.kv_format, draw: Arc::new(DefaultDraw) };
        let (model, rule) = (subject.model.clone(), subject.rule.clone());
        Ok(Engine::new(model, rule, subject.state.clone(), setup)?)
    }

    /// Hands all requests to the engine; the prompt of the first one comes back.
    fn submit(&self, subject: &Subject, engine: &Engine, tally: &Tally) -> Result<Vec<u32>> {
        let vocab = subject.model.config().vocab_size;
        for i in 0..self.requests() {
            let prompt = random_ids(100 + i as u64, self.context, vocab);
            let sink = Tally { keeps: i == 0, ..tally.clone() };
            let request = request(i as u64, prompt, self.new_tokens(), self.options.max_depth);
            engine.handle().submit(request, Box::new(sink), 0)?;
        }
        Ok(random_ids(100, self.context, vocab))
    }

    fn measure(&self, subject: &Subject) -> Result<Measured> {
        let mut engine = self.engine(subject)?;
        let tally = Tally::default();
        let first = self.submit(subject, &engine, &tally)?;
        let requests = self.requests();
        let is_continuous = requests > self.batch;
        let mut clock = Clock::start(self.prefill || is_continuous, &tally);
        let mut held = 0;
        let mut now = 0;
        while tally.ended.load(Ordering::Relaxed) < requests {
            engine.tick(now);
            let gauges = engine.handle().gauges();
            held = held.max(gauges.pages_used.iter().sum::<usize>() - gauges.pages_cached);
            now += 1;
            clock.ticks += 1;
            // Decoding counts from the moment when every prompt is done.
            if !clock.running && tally.tokens.load(Ordering::Relaxed) >= self.batch {
                clock = Clock::start(true, &tally);
                if self.options.profile {
                    ops::timing::measure(true);
                }
            }
        }
        let seconds = clock.start.elapsed().as_secs_f64();
        let spent = ops::timing::spent();
        check(subject, self.options, &first, &tally, self.new_tokens())?;
        let drawn = tally.tokens.load(Ordering::Relaxed) - clock.tokens;
        let depth = tally.depth.load(Ordering::Relaxed) - clock.depth;
        let gauges = engine.handle().gauges();
        let plan = subject.model.plan();
        let shares = cost::shares_of(&gauges.depths, plan.recursions.len());
        let longest = self.context + self.new_tokens();
        Ok(Measured {
            seconds,
            spent,
            tokens: if self.prefill { requests * self.context } else { drawn },
            ticks: clock.ticks,
            mean_depth: if self.prefill {
                gauges.recursion_steps.0 as f64 / gauges.depths.iter().sum::<u64>().max(1) as f64
            } else {
                depth as f64 / drawn.max(1) as f64
            },
            kv_bytes: gauges.page_bytes * held,
            flops: cost::forward_flops(
                subject.model.config(),
                plan,
                longest,
                &shares,
                Convention::Full,
            ),
        })
    }
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
    if options.formats.kv_format != ops::KvFormat::F32 {
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
