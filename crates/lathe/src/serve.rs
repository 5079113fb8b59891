//! `lathe serve`: the engine behind the HTTP contract.

use std::net::ToSocketAddrs;
use std::path::{Path, PathBuf};
use std::process::ExitCode;
use std::sync::Arc;
use std::time::{Duration, SystemTime};

use anyhow::{Context, Result, bail, ensure};
use engine::{DefaultDraw, Engine, EngineOptions, EngineThread};
use model::{Model, ModelConfig, RouterState, Rule, Sharing};
use ops::{KvStore, Weight};
use scheduler::{Brownout, SchedulerLimits};
use server::{AdapterInfo, ModelInfo, ModelText, ServerLimits, ServerSettings};
use train::Stored;

use crate::adapter_root::AdapterRoot;
use crate::serving_arguments::{EngineLimits, HttpLimits, NumberFormats, Serve};
use crate::traces::GrowingTrace;
use crate::{conversation, memory, open, output, render_templates, signals, threads, traces};

/// A model that is ready to be served.
pub(crate) struct Ready {
    info: ModelInfo,
    text: ModelText,
    live: EngineThread,
}

impl Ready {
    /// Starts the engine's thread.
    pub(crate) fn start(engine: Engine, info: ModelInfo, text: ModelText) -> Result<Self> {
        let pool = Arc::new(threads::pool()?);
        let live = EngineThread::start(engine, pool).context("starting the engine's thread")?;
        Ok(Self { info, text, live })
    }

    /// Answers requests until `stop` is ready and what runs has ended.
    pub(crate) async fn serve(
        self,
        listener: tokio::net::TcpListener,
        settings: ServerSettings,
        stop: impl Future<Output = ()> + Send,
    ) -> Result<()> {
        Ok(server::serve(listener, settings, self.info, self.text, Arc::new(self.live), stop)
            .await?)
    }
}

/// `lathe serve`: opens the checkpoint, listens, and answers until a signal.
pub(crate) fn run(options: &Serve) -> Result<ExitCode> {
    let (stored, tokenizer) = open::checkpoint(&options.checkpoint)?;
    let (adapters, adapted) = adapters(&stored, options)?;
    open::prepare(&stored.model, stored.rounded.as_ref(), options.formats.weights.as_ref())?;
    for model in &adapted {
        open::prepare_beside(model, &stored, options.formats.weights.as_ref())?;
    }
    let name = options.name.clone().unwrap_or_else(|| name_of(&options.checkpoint));
    let mut info = info(&stored.model, name);
    info.aliases = options.alias.clone();
    info.created = created(&options.checkpoint);
    let taken = |name: &&String| **name == info.id || info.aliases.contains(name);
    if let Some(name) = adapters.iter().find(taken) {
        bail!("--adapter {name}=...: expected a name of its own, found that of the model itself");
    }
    info.adapters = adapter_infos(adapters, &adapted, &stored.model);
    info.context = options.limits.context.unwrap_or(info.context);
    let special = open::special(&stored, &tokenizer);
    let text = conversation::text(special, tokenizer, options.chat_template.as_deref())?;
    let mut settings = ServerSettings {
        api_keys: keys(options)?,
        strict: options.strict,
        allow_hosts: options.allow_host.clone(),
        cors_origins: options.cors_origin.clone(),
        ..settings(&options.http)
    };
    let model_bytes = bytes_of(&stored.model, &adapted);
    ops::give_back_freed_pages();
    let begin = |path: &PathBuf| GrowingTrace::begin(&stored.model, path);
    let trace = options.trace.as_ref().map(begin).transpose()?;
    let rounds = options.formats.weights.as_ref().is_some_and(|formats| !formats.is_f32());
    ensure!(
        options.adapters.adapter_root.is_none() || !rounds || stored.rounded.is_some(),
        "--adapter-root beside --weights: expected one of the two, as adapters that come later \
         would stand on matrices that were rounded before"
    );
    let base = base_of(&stored);
    let mut engine =
        engine_of(stored, &options.formats, &options.limits)?.with_adapters(adapted)?;
    settings.adapter_source = AdapterRoot::open(&options.adapters, base, engine.handle())?;
    if let Some(trace) = &trace {
        engine.watch(trace.clone());
    }
    let ready = Ready::start(engine, info, text)?;
    let asked = signals::Asked::listen()?;
    let runtime =
        tokio::runtime::Builder::new_multi_thread().worker_threads(2).enable_all().build()?;
    runtime.block_on(async {
        let address = (options.host.as_str(), options.port)
            .to_socket_addrs()
            .with_context(|| format!("the address {}:{}", options.host, options.port))?
            .next()
            .with_context(|| format!("{} is no address of this machine", options.host))?;
        if !address.ip().is_loopback() && settings.api_keys.is_empty() {
            tracing::warn!("{address} can be reached from other machines and no --api-key is set");
        }
        let listener = tokio::net::TcpListener::bind(address).await.with_context(|| {
            format!("listening at {address}: choose another --port, or stop what listens there")
        })?;
        let at = listener.local_addr()?;
        output::line(format!(
            "serving {} ({} of weights) at http://{at}/ (API under /v1, metrics at /metrics); \
             Ctrl-C drains and stops, twice at once",
            ready.info.id,
            report::human_bytes(model_bytes as u64)
        ));
        tokio::select! {
            served = ready.serve(listener, settings, asked_to_stop(asked, &options.http)) => served,
            () = give_back() => Ok(()),
        }
    })?;
    if let (Some(trace), Some(path)) = (&trace, &options.trace) {
        traces::finish(trace, path)?;
    }
    Ok(ExitCode::SUCCESS)
}

/// The adapters that are asked for: their names, and the model with each of them.
fn adapters(stored: &Stored, options: &Serve) -> Result<(Vec<String>, Vec<Arc<Model>>)> {
    let (mut names, mut models): (Vec<String>, Vec<Arc<Model>>) = (Vec::new(), Vec::new());
    for text in &options.adapter {
        let Some((name, folder)) = text.split_once('=').filter(|(name, _)| !name.is_empty()) else {
            bail!("--adapter is {text}, expected NAME=DIR: a name for requests, and a folder");
        };
        ensure!(
            !names.iter().any(|known| known == name),
            "--adapter {text}: expected another name, found {name} twice"
        );
        models.push(open::with_adapter(stored, Path::new(folder))?);
        names.push(name.to_owned());
    }
    Ok((names, models))
}

/// What clients may know of the adapters that are there from the start.
fn adapter_infos(names: Vec<String>, adapted: &[Arc<Model>], base: &Model) -> Vec<AdapterInfo> {
    let mut infos = Vec::new();
    let hash = if adapted.is_empty() { 0 } else { fingerprint(base) };
    for ((name, model), number) in names.into_iter().zip(adapted).zip(1..) {
        let fingerprint = adapted_fingerprint((base, hash), model);
        infos.push(AdapterInfo { name, number, fingerprint });
    }
    infos
}

/// What adapters are put on: the model, and how it was made.
fn base_of(stored: &Stored) -> Stored {
    let (origin, rounded) = (stored.origin.clone(), stored.rounded.clone());
    Stored { origin, rounded, ..Stored::of(stored.model.clone()) }
}

/// Bytes of a model's weights, and of what its adapters have beside them.
fn bytes_of(base: &Model, adapted: &[Arc<Model>]) -> usize {
    let beside = adapted.iter().map(|model| model.weights_beside(base).map(|(_, w)| w.bytes()));
    base.bytes() + beside.map(|bytes| bytes.sum::<usize>()).sum::<usize>()
}

/// Gives memory back after peaks, also where nobody asks for anything any more. Never ends.
async fn give_back() {
    let mut ticks = tokio::time::interval(Duration::from_secs(3));
    loop {
        ticks.tick().await;
        ops::collect_freed_pages();
    }
}

/// Ready after the first signal, which says what comes; the second one ends the process by itself.
async fn asked_to_stop(asked: signals::Asked, http: &HttpLimits) {
    while !asked.stop() {
        tokio::time::sleep(Duration::from_millis(20)).await;
    }
    let first = match http.lame_duck {
        0 => "no more requests are taken".to_owned(),
        seconds => format!("requests are welcome for {seconds} s more (--lame-duck)"),
    };
    output::note(format!(
        "stopping: {first}, then those that run have {} s (--drain); a second signal ends at once",
        http.drain
    ));
}

/// An engine over a stored model, with as many pages as the memory allows.
pub(crate) fn engine_of(
    stored: Stored,
    formats: &NumberFormats,
    bounds: &EngineLimits,
) -> Result<Engine> {
    let rule = open::causal(&stored)?;
    engine(stored.model, rule, stored.state, formats, bounds)
}

/// The same from its parts.
pub(crate) fn engine(
    model: Arc<Model>,
    rule: Rule,
    state: RouterState,
    formats: &NumberFormats,
    bounds: &EngineLimits,
) -> Result<Engine> {
    let limits = limits(model.config(), formats, bounds)?;
    Ok(Engine::new(
        model,
        rule,
        state,
        EngineOptions { limits, kv: formats.kv_format, draw: Arc::new(DefaultDraw) },
    )?)
}

/// The engine's bounds for a model.
pub(crate) fn limits(
    config: &ModelConfig,
    formats: &NumberFormats,
    bounds: &EngineLimits,
) -> Result<SchedulerLimits> {
    let context = bounds.context.unwrap_or(config.context);
    ensure!(
        context >= 1 && context <= config.context,
        "--context is {context}, expected between 1 and the {} that the model was made for",
        config.context
    );
    let page = KvStore::page_bytes(formats.kv_format, config.heads());
    memory::has_memory("--kv-memory", bounds.kv_memory as f64 * 1048576.0)?;
    let pages = (bounds.kv_memory << 20) / page;
    let brownout = bounds.brownout.map(|floor| Brownout { floor, ..Brownout::default() });
    Ok(SchedulerLimits {
        queue_requests: bounds.queue,
        queue_tokens: bounds.queue_tokens.unwrap_or(4 * context),
        max_seqs: bounds.max_seqs,
        max_batch_tokens: bounds.max_batch_tokens,
        prefill_chunk: bounds.prefill_chunk,
        pages,
        coda_batch: bounds.coda_batch,
        coda_wait: bounds.coda_wait,
        context,
        brownout,
        ..SchedulerLimits::default()
    })
}

/// The name of a folder, or of a GGUF file.
fn name_of(path: &Path) -> String {
    let path = std::fs::canonicalize(path).unwrap_or_else(|_| path.to_path_buf());
    let name = if path.is_dir() { path.file_name() } else { path.file_stem() };
    name.map_or_else(|| "lathe".into(), |name| name.to_string_lossy().into_owned())
}

/// Which family of models a config belongs to.
pub(crate) fn family(config: &ModelConfig) -> &'static str {
    match (config.sharing, config.router.settings().chooses()) {
        (Sharing::None, _) => "dense",
        (_, false) => "recursive",
        (_, true) => "mor",
    }
}

/// What clients may know about a model.
pub(crate) fn info(model: &Model, id: String) -> ModelInfo {
    let config = model.config();
    let kv = serde_json::to_value(config.kv).ok().and_then(|kv| kv.as_str().map(str::to_owned));
    ModelInfo {
        id,
        aliases: Vec::new(),
        adapters: Vec::new(),
        family: family(config).into(),
        recursions: config.recursions as u32,
        routing: config.router.kind().into(),
        kv_mode: kv.unwrap_or_default(),
        layers: model.plan().unrolled().count(),
        parameters: model.weights().iter().map(|(spec, _)| spec.count() as u64).sum(),
        context: config.context,
        vocab: config.vocab_size,
        created: 0,
        fingerprint: named_fingerprint(fingerprint(model)),
    }
}

fn named_fingerprint(hash: u64) -> String {
    format!("lathe-{}-{hash:016x}", env!("CARGO_PKG_VERSION"))
}

/// What is told of the weights of `base`, whose own number is `hash`, with an adapter: it differs
/// when one of them does.
pub(crate) fn adapted_fingerprint((base, hash): (&Model, u64), adapted: &Model) -> String {
    let mut all = hash;
    for (spec, weight) in adapted.weights_beside(base) {
        let name = spec.name.bytes().fold(0, |hash, byte| mix(hash, u64::from(byte)));
        all = mix(mix(all, name), hash_of(weight));
    }
    named_fingerprint(all)
}

/// When a checkpoint was made, in seconds since 1970.
fn created(path: &Path) -> u64 {
    let made =
        std::fs::metadata(path).and_then(|meta| meta.modified()).unwrap_or(SystemTime::UNIX_EPOCH);
    made.duration_since(SystemTime::UNIX_EPOCH).map_or(0, |d| d.as_secs())
}

/// A number that differs when a weight does.
pub(crate) fn fingerprint(model: &Model) -> u64 {
    let mut all = 0;
    for (_, weight) in model.weights() {
        all = mix(all, hash_of(weight));
    }
    all
}

fn hash_of(weight: &Weight) -> u64 {
    weight.values().iter().fold(0, |hash, value| mix(hash, u64::from(value.to_bits())))
}

/// One step of a hash: the multiplier is 2^64 over the golden ratio.
fn mix(hash: u64, value: u64) -> u64 {
    (hash ^ value).wrapping_mul(0x9e37_79b9_7f4a_7c15).rotate_left(29)
}

fn keys(options: &Serve) -> Result<Vec<String>> {
    let mut keys = options.api_key.clone();
    if let Some(path) = &options.api_key_file {
        let file = open::text_file(path)?;
        keys.extend(file.lines().map(str::trim).filter(|line| !line.is_empty()).map(str::to_owned));
        ensure!(!keys.is_empty(), "{} holds no key, expected one a line", path.display());
    }
    Ok(keys)
}

fn settings(http: &HttpLimits) -> ServerSettings {
    let seconds = Duration::from_secs;
    let limits = ServerLimits {
        body_bytes: http.max_body,
        prompts: http.max_prompts,
        n: http.max_n,
        sequences: http.max_sequences,
        stops: http.max_stops,
        tokenize_bytes: http.max_tokenize,
        template_time: seconds(http.template_seconds),
        logprobs: http.max_logprobs,
        logit_bias: http.max_logit_bias,
        ..ServerLimits::default()
    };
    ServerSettings {
        limits,
        deadline: seconds(http.deadline),
        header_read: seconds(http.header_seconds),
        body_read: seconds(http.body_seconds),
        keep_alive: seconds(http.keep_alive),
        connections: http.max_connections,
        slow_reader: seconds(http.slow_reader),
        lame_duck: seconds(http.lame_duck),
        drain: seconds(http.drain),
        template_program: render_templates::program(),
        ..ServerSettings::default()
    }
}

#[cfg(test)]
mod tests {
    use clap::{CommandFactory, Parser};
    use model::RouterConfig;
    use ops::KvFormat;

    use super::*;
    use crate::arguments::{Arguments, Command};

    fn config() -> ModelConfig {
        ModelConfig {
            vocab_size: 20,
            width: 16,
            layers: 2,
            heads: 2,
            kv_heads: 1,
            head_dim: 8,
            ffn: 16,
            context: 64,
            sharing: Sharing::None,
            recursions: 1,
            router: RouterConfig::FIXED,
            ..ModelConfig::default()
        }
    }

    /// What the command line of `lathe serve` holds with `more`.
    fn asked(more: &[&str]) -> Serve {
        let words = [&["lathe", "serve", "run"], more].concat();
        match Arguments::try_parse_from(&words).map(|arguments| arguments.command) {
            Ok(Command::Serve(options)) => options,
            other => panic!("{words:?}: {other:?}"),
        }
    }

    /// The flags of `lathe serve` under `heading`.
    fn flags(heading: &str) -> Vec<String> {
        let command = Arguments::command();
        let serve = command.find_subcommand("serve").expect("a verb");
        let under = serve.get_arguments().filter(|flag| flag.get_help_heading() == Some(heading));
        under.filter_map(|flag| Some(format!("--{}", flag.get_long()?))).collect()
    }

    #[test]
    fn every_bound_of_the_engine_is_the_one_that_was_asked_for() {
        let of =
            |options: &Serve| limits(&config(), &options.formats, &options.limits).expect("fit");
        let plain = of(&asked(&[]));
        type Change = fn(&mut SchedulerLimits);
        let table: [(&str, Change); 10] = [
            // Keys and values of 16 tokens with one head of 8 numbers.
            ("--kv-memory", |l| l.pages = (3 << 20) / (16 * 2 * 8 * 4)),
            ("--max-seqs", |l| l.max_seqs = 3),
            ("--max-batch-tokens", |l| l.max_batch_tokens = 3),
            ("--prefill-chunk", |l| l.prefill_chunk = 3),
            ("--coda-batch", |l| l.coda_batch = 3),
            ("--coda-wait", |l| l.coda_wait = 3),
            ("--queue", |l| l.queue_requests = 3),
            ("--queue-tokens", |l| l.queue_tokens = 3),
            ("--context", |l| (l.context, l.queue_tokens) = (3, 12)),
            ("--brownout", |l| l.brownout = Some(Brownout { floor: 3, ..Brownout::default() })),
        ];
        assert_eq!(flags("Engine"), table.map(|(flag, _)| flag));
        for (flag, change) in table {
            let mut expected = plain.clone();
            change(&mut expected);
            assert_eq!(of(&asked(&[flag, "3"])), expected, "{flag}");
            assert_ne!(expected, plain, "{flag}");
        }
    }

    #[test]
    fn every_limit_of_requests_is_the_one_that_was_asked_for() {
        let of = |options: &Serve| settings(&options.http);
        let plain = of(&asked(&[]));
        const THREE: Duration = Duration::from_secs(3);
        type Change = fn(&mut ServerSettings);
        let table: [(&str, Change); 17] = [
            ("--max-body", |s| s.limits.body_bytes = 3),
            ("--max-prompts", |s| s.limits.prompts = 3),
            ("--max-n", |s| s.limits.n = 3),
            ("--max-sequences", |s| s.limits.sequences = 3),
            ("--max-stops", |s| s.limits.stops = 3),
            ("--max-tokenize", |s| s.limits.tokenize_bytes = 3),
            ("--max-logprobs", |s| s.limits.logprobs = 3),
            ("--max-logit-bias", |s| s.limits.logit_bias = 3),
            ("--template-seconds", |s| s.limits.template_time = THREE),
            ("--max-connections", |s| s.connections = 3),
            ("--deadline", |s| s.deadline = THREE),
            ("--header-seconds", |s| s.header_read = THREE),
            ("--body-seconds", |s| s.body_read = THREE),
            ("--keep-alive", |s| s.keep_alive = THREE),
            ("--slow-reader", |s| s.slow_reader = THREE),
            ("--lame-duck", |s| s.lame_duck = THREE),
            ("--drain", |s| s.drain = THREE),
        ];
        assert_eq!(flags("Request and connection limits"), table.map(|(flag, _)| flag));
        let shown = |settings: &ServerSettings| format!("{settings:?}");
        for (flag, change) in table {
            let mut expected = plain.clone();
            change(&mut expected);
            assert_eq!(shown(&of(&asked(&[flag, "3"]))), shown(&expected), "{flag}");
            assert_ne!(shown(&expected), shown(&plain), "{flag}");
        }
    }

    /// `--kv-format` is that of the engine's pages.
    #[test]
    fn keys_and_values_are_kept_in_the_format_that_was_asked_for() {
        let page = |format: &str| {
            let options = asked(&["--kv-format", format]);
            let model = Arc::new(Model::fresh(&config(), 1).expect("legal"));
            let stored = Stored::of(model);
            let engine = engine_of(stored, &options.formats, &options.limits).expect("fits");
            engine.handle().gauges().page_bytes
        };
        let bytes = |format| KvStore::page_bytes(format, config().heads());
        assert_eq!(page("f32"), bytes(KvFormat::F32));
        assert_eq!(page("bf16"), bytes(KvFormat::Bf16));
        assert_eq!(page("int8"), bytes(KvFormat::Int8));
        assert_eq!(page("f32"), 2 * page("bf16"));
    }
}
