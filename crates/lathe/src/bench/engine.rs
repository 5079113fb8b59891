//! `lathe bench decode` and `lathe bench prefill`: the engine on random tokens, as fast as it goes.

use std::collections::BTreeMap;
use std::process::ExitCode;
use std::sync::Arc;
use std::time::Instant;

use anyhow::{Result, bail, ensure};
use engine::{CompletedRows, DefaultDraw, Engine, EngineOptions, Generation, Sampler};
use kernels::machine::median;
use report::{Table, human_bytes, human_count};
use scheduler::{DepthOptions, Request, SchedulerLimits};
use serde_json::{Value, json};

use super::arguments::BenchRun;
use super::machine_rates::{Machine, Rates};
use super::row_work::{RowWork, WorkSums};
use super::subject::{Subject, peak_memory, random_ids, subject};
use super::tally::Tally;
use crate::{memory, output};

/// What one round at one setting gave, from the start of its clock on.
struct Measured {
    seconds: f64,
    spent: BTreeMap<&'static str, ops::timing::Spent>,
    /// New tokens, or in prefill prompt tokens.
    tokens: usize,
    /// What the rows took that were completed.
    work: WorkSums,
    ticks: u64,
    mean_depth: f64,
    /// Most bytes of keys and values that sequences under way held at a time.
    kv_bytes: usize,
    /// FLOPs for each of the tokens, full convention.
    flops: f64,
    /// Bytes of the matrices that rows met: of layers, of experts that had rows, and of the head.
    matrix_bytes: f64,
    /// Times that a sequence lost its pages.
    preemptions: u64,
    /// What the machine did just before and after.
    machine: Option<Rates>,
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
        options.rounds > 0 && options.tokens.is_none_or(|tokens| tokens > 1),
        "--rounds must be at least 1 and --tokens at least 2"
    );
    if let Some(tokens) = options.tokens.filter(|_| prefill) {
        bail!(
            "--tokens is {tokens}, but prefill draws one token of each prompt: leave it out, or \
             use `lathe bench decode`"
        );
    }
    let subjects: Vec<Subject> = options
        .model
        .iter()
        .map(|name| subject(name, &options.set, options.formats.weights.as_ref()))
        .collect::<Result<_>>()?;
    let machine = Machine::new();
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

/// The results so far, for the table and as JSON.
#[derive(Default)]
struct Found {
    rows: Vec<Vec<String>>,
    results: Vec<Value>,
    /// What the machine did around each round.
    bandwidths: Vec<f64>,
    peaks: Vec<f64>,
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
        let mut before = machine.measure();
        for round in 0..=setting.options.rounds {
            for (subject, rounds) in subjects.iter().zip(&mut measured) {
                let mut one = setting.measure(subject)?;
                let after = machine.measure();
                one.machine = Some(before.mean(&after));
                before = after;
                // The first round fills buffers and caches.
                if round > 0 {
                    rounds.push(one);
                }
            }
        }
        if setting.options.profile {
            output::table(&profile(&subjects[0], setting)?);
        }
        let mut first = None;
        for (subject, rounds) in subjects.iter().zip(&measured) {
            let rate = middle(rounds, Measured::rate);
            let flops = middle(rounds, |one| one.flops);
            let (first_rate, first_flops) = *first.get_or_insert((rate, flops));
            self.row(subject, setting, rounds, rate / first_rate, first_flops / flops);
        }
        Ok(())
    }

    /// Notes what the rounds of a subject gave: `ratio` is its rate over the first subject's,
    /// `allowed` the first one's FLOPs over its.
    fn row(
        &mut self,
        subject: &Subject,
        setting: &Setting<'_>,
        rounds: &[Measured],
        ratio: f64,
        allowed: f64,
    ) {
        let (rate, one) = (middle(rounds, Measured::rate), &rounds[0]);
        let mut all: Vec<f64> = rounds.iter().map(Measured::rate).collect();
        all.sort_by(|a, b| b.total_cmp(a));
        let share = middle(rounds, Measured::share_of_bandwidth);
        self.bandwidths.extend(rounds.iter().filter_map(|one| Some(one.machine?.bandwidth)));
        self.peaks.extend(rounds.iter().filter_map(|one| Some(one.machine?.flops)));
        self.rows.push(vec![
            subject.name.clone(),
            setting.batch.to_string(),
            setting.context.to_string(),
            format!("{rate:.1}"),
            format!("{:.1}-{:.1}", all[all.len() - 1], all[0]),
            format!("{ratio:.2}"),
            format!("{allowed:.2}"),
            format!("{:.2}", one.mean_depth),
            format!("{:.0}", 100.0 * share),
            human_bytes(one.kv_bytes as u64),
        ]);
        self.results.push(json!({
            "model": subject.name, "batch": setting.batch, "context": setting.context,
            "tokens_per_second": all, "median": rate, "ratio": ratio, "flop_ratio": allowed,
            "flops_per_token": middle(rounds, |one| one.flops), "mean_depth": one.mean_depth,
            "ticks": one.ticks, "tokens": one.tokens, "rows": one.work.rows,
            "weight_bytes": subject.model.bytes(), "kv_bytes": one.kv_bytes,
            "share_of_bandwidth": share, "preemptions": one.preemptions,
        }));
    }
}

/// The median of a number of each round.
fn middle(rounds: &[Measured], of: impl Fn(&Measured) -> f64) -> f64 {
    median(&rounds.iter().map(of).collect::<Vec<_>>())
}

impl Measured {
    fn rate(&self) -> f64 {
        self.tokens as f64 / self.seconds
    }

    /// Matrices read in a second, over what the machine reads from memory around the round.
    fn share_of_bandwidth(&self) -> f64 {
        let bandwidth = self.machine.map_or(f64::NAN, |rates| rates.bandwidth);
        self.matrix_bytes / self.seconds / bandwidth
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
        output::json(&json!({
            "bench": if prefill { "prefill" } else { "decode" }, "machine": ops::machine(),
            "threads": machine.threads(),
            "peak_flops": median(&found.peaks), "read_bandwidth": median(&found.bandwidths),
            "peak_memory": peak_memory(), "weights": weights, "kv": kv, "results": found.results,
        }))?;
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
        "{}, weights {weights}, KV cache {kv}; {} threads did {}FLOP/s of arithmetic and {}/s of \
         memory around the rounds; ratio and by FLOPs: to the first model, measured and as the \
         FLOPs of the rows allow; % of bandwidth: the matrices that rows met, each once a \
         pass, of what was read just before and after",
        ops::machine(),
        machine.threads(),
        human_count(median(&found.peaks)),
        human_bytes(median(&found.bandwidths) as u64)
    );
    let columns = columns.map(str::to_owned).to_vec();
    output::table(&Table { columns, rows: found.rows, caption, best: None });
    Ok(ExitCode::SUCCESS)
}

/// What is measured: so many sequences at a time with prompts of one length.
#[derive(Clone, Copy)]
struct Setting<'o> {
    options: &'o BenchRun,
    batch: usize,
    context: usize,
    prefill: bool,
}

/// What was counted when the clock started.
struct Clock {
    start: Instant,
    ticks: u64,
    matrix_bytes: f64,
    /// Entries of the list of completed rows.
    rows: usize,
}

impl Setting<'_> {
    /// New tokens of each sequence.
    fn new_tokens(&self) -> usize {
        if self.prefill { 1 } else { self.options.tokens.unwrap_or(64) }
    }

    /// Whether decoding is measured apart from prompts, from the moment when all of them are done.
    fn is_apart(&self) -> bool {
        !self.prefill && self.options.requests.is_none()
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
        let wanted = options.kv_memory.map_or((enough * page) as f64, |mib| mib * 1048576.0);
        memory::has_memory("the cache of keys and values", wanted)?;
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
            let sink = tally.sink(i == 0);
            let request = request(i as u64, prompt, self.new_tokens(), self.options.max_depth);
            engine.handle().submit(request, Box::new(sink), 0)?;
        }
        Ok(random_ids(100, self.context, vocab))
    }

    fn measure(&self, subject: &Subject) -> Result<Measured> {
        let mut engine = self.engine(subject)?;
        let tally = Tally::new(self.is_apart());
        let prompt = self.submit(subject, &engine, &tally)?;
        let mut now = 0;
        let mut rows: Vec<CompletedRows> = Vec::new();
        let mut waits = self.is_apart();
        let mut clock = Clock { start: Instant::now(), ticks: 0, matrix_bytes: 0.0, rows: 0 };
        while tally.ended() < self.requests() {
            if waits && tally.begun() == self.requests() {
                waits = false;
                tally.open();
                if self.options.profile {
                    ops::timing::measure(true);
                }
                let matrix_bytes = matrix_bytes(&engine);
                clock = Clock { start: Instant::now(), ticks: now, matrix_bytes, rows: rows.len() };
            }
            engine.tick(now);
            rows.extend_from_slice(engine.completed_rows());
            now += 1;
        }
        let seconds = clock.start.elapsed().as_secs_f64();
        let spent = ops::timing::spent();
        check(subject, self.options, &prompt, &tally.kept(), self.new_tokens())?;
        let mut work = RowWork::new(&subject.model);
        for (i, rows) in rows.iter().enumerate() {
            if i == clock.rows {
                work.sums = WorkSums::default();
            }
            work.add(rows);
        }
        let gauges = engine.handle().gauges();
        let (drawn, depth) = tally.counted();
        let tokens = if self.prefill { self.requests() * self.context } else { drawn };
        let mean_depth = match self.prefill {
            true => work.sums.recursions as f64 / work.sums.rows as f64,
            false => depth as f64 / drawn as f64,
        };
        Ok(Measured {
            seconds,
            spent,
            tokens,
            ticks: now - clock.ticks,
            mean_depth,
            kv_bytes: gauges.page_bytes * gauges.pages_held_most,
            // A token is drawn from each row whose logits somebody wants.
            flops: (work.sums.flops + drawn as f64 * work.head_flops()) / tokens as f64,
            work: work.sums,
            matrix_bytes: matrix_bytes(&engine) - clock.matrix_bytes,
            preemptions: gauges.preemptions,
            machine: None,
        })
    }
}

/// Bytes of matrices that an engine's passes read so far, with those of its head.
fn matrix_bytes(engine: &Engine) -> f64 {
    let head = engine.model().head().e_vd.bytes() as u64;
    (engine.matrix_bytes() + engine.part_runs().head * head) as f64
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
        embedding: None,
        routed_experts: false,
        adapter: 0,
        priority: 0,
        deadline: None,
    }
}

/// The first sequence must be what generation alone gives (exactly so with caches in f32).
fn check(
    subject: &Subject,
    options: &BenchRun,
    prompt: &[u32],
    found: &[u32],
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
        constraint: None,
    };
    let alone: Vec<u32> = engine::generate(&subject.model, &what, &mut |_| true)?
        .tokens
        .iter()
        .map(|t| t.id)
        .collect();
    ensure!(
        found[..max_tokens] == alone[..],
        "{}: the batch gave {found:?}, alone {alone:?}",
        subject.name
    );
    Ok(())
}

#[cfg(test)]
mod tests;
