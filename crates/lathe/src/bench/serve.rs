//! `lathe bench serve`: requests at a rate or side by side against a completions server; every
//! answer is checked, then timed.

use std::collections::BTreeMap;
use std::ops::Range;
use std::process::ExitCode;
use std::sync::Arc;
use std::time::{Duration, Instant};

use anyhow::{Context, Result, ensure};
use data::{SpecialTokens, Tokenizer, TrainOptions};
use model::rng::{Purpose, Stream};
use report::Table;
use serde_json::{Value, json};

use super::answer_times::{Goodput, gaps, time_per_token};
use super::arguments::{BenchServe, Lengths};
use super::load_client::{Answer, CompletionServer, LoadRequest, RequestStyle, fault};
use super::subject::subject;
use crate::serve::Ready;
use crate::{conversation, output, serve};

/// What the server says about its model.
struct Known {
    model: String,
    is_lathe: bool,
    vocab: usize,
    context: Option<usize>,
}

/// A request that was sent, when it was due (seconds since the first), and what came back.
struct Sent {
    due: f64,
    answer: Answer,
    fault: Option<String>,
}

/// `lathe bench serve`, against `--url` or a server of its own in this process.
pub(crate) fn run(options: &BenchServe) -> Result<ExitCode> {
    ensure!(
        options.requests > 0 && options.concurrency != Some(0),
        "--requests and --concurrency must be at least 1"
    );
    ensure!(
        options.rate.is_none_or(|rate| rate > 0.0 && rate.is_finite()),
        "--rate must be a number above 0"
    );
    let local = match &options.subject {
        Some(subject) => Some(Local::start(subject, options)?),
        None => None,
    };
    let url = local
        .as_ref()
        .map(|l| l.url.clone())
        .or(options.url.clone())
        .context("neither a model nor --url")?;
    let target =
        CompletionServer::new(&url, options.api_key.clone(), Duration::from_secs(options.timeout))?;
    // One thread: on a small machine the load must not take the server's place.
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build()?;
    let done = runtime.block_on(async {
        let known = known(&target, options).await?;
        let warm_up =
            requests(options, &known, options.requests..options.requests + options.warm_up)?;
        let requests = requests(options, &known, 0..options.requests)?;
        let style = RequestStyle {
            model: known.model.clone(),
            stream: !options.no_stream,
            ignore_eos: options.ignore_eos,
            is_lathe: known.is_lathe,
            max_depth: options.max_depth,
        };
        for request in &warm_up {
            target.complete(&style, request, Instant::now()).await;
        }
        let answers =
            drive(&target, &Arc::new(style), &Arc::new(requests.clone()), options).await?;
        let mut sent = Vec::new();
        for (request, (due, answer)) in requests.iter().zip(answers) {
            let fault = match answer.status {
                200 => fault(request, &answer, options.ignore_eos, known.vocab),
                _ => None,
            };
            sent.push(Sent { due, answer, fault });
        }
        anyhow::Ok((known, sent))
    });
    let stopped = local.map_or(Ok(()), Local::stop);
    let (known, sent) = done?;
    stopped?;
    print(options, &url, &known, &sent)
}

async fn known(target: &CompletionServer, options: &BenchServe) -> Result<Known> {
    let models = target.get("/v1/models").await?;
    let listed = models["data"].as_array().context("/v1/models answers without a list `data`")?;
    let found = match &options.model {
        Some(name) => listed.iter().find(|model| model["id"] == name.as_str()),
        None => listed.first(),
    };
    let found = found.with_context(|| {
        let names: Vec<&str> = listed.iter().filter_map(|model| model["id"].as_str()).collect();
        format!(
            "--model {} is not served, expected one of {}",
            options.model.as_deref().unwrap_or(""),
            names.join(", ")
        )
    })?;
    let vocab = options.vocab.or_else(|| count_in(&found["lathe"]["vocab_size"]));
    let vocab =
        vocab.context("the server does not tell the size of its vocabulary: give --vocab")?;
    ensure!(vocab > 0, "--vocab is 0, expected at least 1");
    Ok(Known {
        model: found["id"].as_str().unwrap_or_default().to_owned(),
        is_lathe: found["lathe"].is_object(),
        vocab,
        context: count_in(&found["max_model_len"]),
    })
}

fn count_in(value: &Value) -> Option<usize> {
    value.as_u64().map(|n| n as usize)
}

/// The requests of a run: the same for the same seed, whatever the server.
fn requests(
    options: &BenchServe,
    known: &Known,
    numbers: Range<usize>,
) -> Result<Vec<LoadRequest>> {
    ensure!(
        options.max_depth.is_none() || known.is_lathe,
        "--max-depth is understood by lathe alone"
    );
    let mut requests = Vec::new();
    for i in numbers {
        let mut dice = Stream::at(options.seed, Purpose::Shuffle, 1, i as u64);
        let (length, max_tokens) =
            (draw(options.prompt_tokens, &mut dice), draw(options.output_tokens, &mut dice));
        if let Some(context) = known.context.filter(|&context| length + max_tokens > context) {
            anyhow::bail!(
                "request {i} has {length} prompt tokens and {max_tokens} new ones, \
                 the model's context is {context}: \
                 choose smaller --prompt-tokens or --output-tokens"
            );
        }
        let prompt = (0..length).map(|_| (dice.next_u64() % known.vocab as u64) as u32).collect();
        requests.push(LoadRequest { prompt, max_tokens });
    }
    Ok(requests)
}

fn draw(lengths: Lengths, dice: &mut Stream) -> usize {
    match lengths {
        Lengths::Is(length) => length,
        Lengths::Between(low, high) => low + (dice.next_u64() % (high - low + 1) as u64) as usize,
        Lengths::Normal(mean, deviation) => {
            (mean + deviation * dice.normal()).round().max(1.0) as usize
        }
    }
}

/// Seconds at which requests are due: a Poisson process.
fn due_times(options: &BenchServe, rate: f64) -> Vec<f64> {
    let mut now = 0.0;
    let mut times = Vec::new();
    for i in 0..options.requests {
        if i > 0 {
            let dice = Stream::at(options.seed, Purpose::Shuffle, 2, i as u64).uniform();
            now += -(1.0 - dice).ln() / rate;
        }
        times.push(now);
    }
    times
}

/// Sends every request; answers in the order of `requests`, each with the time it was due.
async fn drive(
    target: &CompletionServer,
    style: &Arc<RequestStyle>,
    requests: &Arc<Vec<LoadRequest>>,
    options: &BenchServe,
) -> Result<Vec<(f64, Answer)>> {
    let start = Instant::now();
    let mut tasks = Vec::new();
    if let Some(rate) = options.rate {
        // Open loop: latencies count from when a request was due, however late it left.
        for (i, seconds) in due_times(options, rate).into_iter().enumerate() {
            let (target, style) = (target.clone(), style.clone());
            let requests = requests.clone();
            tasks.push(tokio::spawn(async move {
                let due = start + Duration::from_secs_f64(seconds);
                tokio::time::sleep_until(due.into()).await;
                vec![(i, seconds, target.complete(&style, &requests[i], due).await)]
            }));
        }
    } else {
        let next = Arc::new(std::sync::atomic::AtomicUsize::new(0));
        for _ in 0..options.concurrency.unwrap_or(8).min(requests.len()) {
            let (target, style) = (target.clone(), style.clone());
            let (requests, next) = (requests.clone(), next.clone());
            tasks.push(tokio::spawn(async move {
                let mut answers = Vec::new();
                loop {
                    let i = next.fetch_add(1, std::sync::atomic::Ordering::Relaxed);
                    let Some(request) = requests.get(i) else { return answers };
                    let due = Instant::now();
                    let answer = target.complete(&style, request, due).await;
                    answers.push((i, due.duration_since(start).as_secs_f64(), answer));
                }
            }));
        }
    }
    let mut all: BTreeMap<usize, (f64, Answer)> = BTreeMap::new();
    for task in tasks {
        all.extend(task.await?.into_iter().map(|(i, due, answer)| (i, (due, answer))));
    }
    Ok(all.into_values().collect())
}

/// Milliseconds of one kind.
struct Spread(Vec<f64>);

impl Spread {
    fn of(seconds: impl Iterator<Item = f64>) -> Self {
        let mut all: Vec<f64> = seconds.map(|s| s * 1e3).collect();
        all.sort_by(f64::total_cmp);
        Self(all)
    }

    fn mean(&self) -> f64 {
        self.0.iter().sum::<f64>() / self.0.len() as f64
    }

    /// The smallest value that `percent` of all do not exceed.
    fn percentile(&self, percent: f64) -> f64 {
        let rank = (percent / 100.0 * self.0.len() as f64).ceil() as usize;
        self.0.get(rank.max(1) - 1).copied().unwrap_or(f64::NAN)
    }

    fn json(&self) -> Value {
        if self.0.is_empty() {
            return Value::Null;
        }
        json!({
            "mean": self.mean(), "p50": self.percentile(50.0), "p90": self.percentile(90.0),
            "p99": self.percentile(99.0), "max": self.percentile(100.0), "count": self.0.len(),
        })
    }

    fn row(&self, name: &str) -> Vec<String> {
        let numbers = match self.0.is_empty() {
            true => vec!["-".to_owned(); 4],
            false => {
                [self.mean(), self.percentile(50.0), self.percentile(90.0), self.percentile(99.0)]
                    .map(|ms| format!("{ms:.2}"))
                    .to_vec()
            }
        };
        [vec![name.to_owned()], numbers].concat()
    }
}

fn print(options: &BenchServe, url: &str, known: &Known, sent: &[Sent]) -> Result<ExitCode> {
    let good: Vec<&Sent> =
        sent.iter().filter(|s| s.answer.status == 200 && s.fault.is_none()).collect();
    let mut statuses: BTreeMap<String, usize> = BTreeMap::new();
    for one in sent {
        *statuses.entry(one.answer.status.to_string()).or_default() += 1;
    }
    let shed = statuses.get("429").copied().unwrap_or(0);
    let wrong: Vec<String> = sent
        .iter()
        .enumerate()
        .filter(|(_, s)| ![200, 429].contains(&s.answer.status) || s.fault.is_some())
        .map(|(i, s)| {
            let why = s.fault.clone().or(s.answer.error.clone()).unwrap_or_default();
            format!("request {i}, status {}: {why}", s.answer.status)
        })
        .collect();
    let seconds = sent.iter().map(|s| s.due + s.answer.end).fold(0.0, f64::max);
    let new = sum(&good, |a| a.new_tokens.or(a.ids.as_ref().map(Vec::len)).unwrap_or(0));
    let prompts = sum(&good, |a| a.prompt_tokens.unwrap_or(0));
    let depths =
        good.iter().fold((0, 0), |all, s| (all.0 + s.answer.depths.0, all.1 + s.answer.depths.1));
    let mean_depth = (depths.1 > 0).then(|| depths.0 as f64 / depths.1 as f64);
    let ttft = Spread::of(good.iter().filter_map(|s| s.answer.arrivals.first().copied()));
    let tpot = Spread::of(good.iter().filter_map(|s| time_per_token(&s.answer)));
    let itl = Spread::of(good.iter().flat_map(|s| gaps(&s.answer)));
    let whole = Spread::of(good.iter().map(|s| s.answer.end));
    let goodput = Goodput::of(options, good.iter().map(|sent| &sent.answer));
    let summary = json!({
        "bench": "serve", "url": url, "model": known.model, "machine": ops::machine(),
        "seed": options.seed,
        "load": match options.rate {
            Some(rate) => json!({ "rate": rate }),
            None => json!({ "concurrency": options.concurrency.unwrap_or(8) }),
        },
        "prompt_tokens": options.prompt_tokens.to_string(),
        "output_tokens": options.output_tokens.to_string(),
        "requests": sent.len(), "good": good.len(), "shed": shed,
        "wrong": wrong, "statuses": statuses,
        "seconds": seconds, "requests_per_second": good.len() as f64 / seconds,
        "output_tokens_per_second": new / seconds, "prompt_tokens_per_second": prompts / seconds,
        "cached_prompt_tokens": sum(&good, |a| a.cached_tokens), "mean_depth": mean_depth,
        "ttft_ms": ttft.json(), "tpot_ms": tpot.json(), "itl_ms": itl.json(),
        "end_to_end_ms": whole.json(),
        "goodput": goodput.as_ref().map(|goodput| goodput.json(options, sent.len(), seconds)),
    });
    if options.json {
        output::json(&summary)?;
    } else {
        let rows = vec![
            ttft.row("time to first token"),
            tpot.row("time per further token"),
            itl.row("between tokens"),
            whole.row("end to end"),
        ];
        let columns = ["milliseconds", "mean", "p50", "p90", "p99"].map(str::to_owned).to_vec();
        let mut caption = caption(&summary, new / seconds, prompts / seconds);
        if let Some(goodput) = &goodput {
            caption.push_str(&goodput.words(seconds));
        }
        output::table(&Table { columns, rows, caption, best: None });
    }
    for line in wrong.iter().take(10) {
        output::note(format!("wrong: {line}"));
    }
    Ok(if wrong.is_empty() { ExitCode::SUCCESS } else { ExitCode::FAILURE })
}

fn sum(good: &[&Sent], of: fn(&Answer) -> usize) -> f64 {
    good.iter().map(|sent| of(&sent.answer)).sum::<usize>() as f64
}

/// The load and what came of it; `new` and `prompts` are tokens a second.
fn caption(summary: &Value, new: f64, prompts: f64) -> String {
    let mut text = format!(
        "{}, {} at {}: {} of {} answers good, {} shed (429), {:.2} s, {:.2} requests/s, \
         {new:.1} new and {prompts:.1} prompt tokens/s",
        summary["model"].as_str().unwrap_or_default(),
        summary["load"].to_string().trim_matches(['{', '}']).replace(['"'], ""),
        summary["url"].as_str().unwrap_or_default(),
        summary["good"],
        summary["requests"],
        summary["shed"],
        summary["seconds"].as_f64().unwrap_or(f64::NAN),
        summary["requests_per_second"].as_f64().unwrap_or(f64::NAN),
    );
    if let Some(depth) = summary["mean_depth"].as_f64() {
        text.push_str(&format!(", mean depth {depth:.2}"));
    }
    text
}

/// A server in this process.
struct Local {
    url: String,
    stop: tokio::sync::oneshot::Sender<()>,
    thread: std::thread::JoinHandle<Result<()>>,
}

impl Local {
    fn start(name: &str, options: &BenchServe) -> Result<Self> {
        let subject = subject(name, &options.set, options.formats.weights.as_ref())?;
        let engine = serve::engine(
            subject.model.clone(),
            subject.rule,
            subject.state,
            &options.formats,
            &options.limits,
        )?;
        // Fresh weights know no text, but the server wants a tokenizer: the bytes.
        let tokenizer = match subject.tokenizer {
            Some(tokenizer) => tokenizer,
            None => Tokenizer::train(std::iter::empty(), &TrainOptions::new(259))?,
        };
        let mut info = serve::info(&subject.model, subject.name);
        info.context = options.limits.context.unwrap_or(info.context);
        let special = SpecialTokens::of(None, &tokenizer);
        let ready = Ready::start(engine, info, conversation::text(special, tokenizer, None)?)?;
        let listener = std::net::TcpListener::bind("127.0.0.1:0")?;
        listener.set_nonblocking(true)?;
        let url = format!("http://{}", listener.local_addr()?);
        let (stop, stopped) = tokio::sync::oneshot::channel();
        let settings = server::ServerSettings {
            api_keys: options.api_key.clone().into_iter().collect(),
            ..server::ServerSettings::default()
        };
        let thread = std::thread::spawn(move || {
            let runtime = tokio::runtime::Builder::new_multi_thread()
                .worker_threads(2)
                .enable_all()
                .build()?;
            runtime.block_on(async {
                let listener = tokio::net::TcpListener::from_std(listener)?;
                let stop = async {
                    // A sender that was dropped requests to stop as well.
                    let _ = stopped.await;
                };
                ready.serve(listener, settings, stop).await
            })
        });
        Ok(Self { url, stop, thread })
    }

    fn stop(self) -> Result<()> {
        drop(self.stop);
        self.thread.join().map_err(|_| anyhow::anyhow!("the server's thread panicked"))?
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn percentiles_by_rank() {
        let spread = Spread::of((1..=100).rev().map(|ms| f64::from(ms) / 1e3));
        let found = [50.0, 90.0, 99.0, 100.0].map(|p| spread.percentile(p).round());
        assert_eq!(found, [50.0, 90.0, 99.0, 100.0]);
        assert!((spread.mean() - 50.5).abs() < 1e-9);
        assert!(Spread::of(std::iter::empty()).json().is_null());
        assert_eq!(Spread::of([0.003].into_iter()).percentile(50.0), 3.0);
    }

    #[test]
    fn lengths_follow_their_distribution() {
        let of = |text: &str| {
            let lengths: Lengths = text.parse().unwrap();
            let mut dice = Stream::at(1, Purpose::Shuffle, 1, 0);
            (0..4000).map(|_| draw(lengths, &mut dice)).collect::<Vec<_>>()
        };
        assert!(of("7").iter().all(|&n| n == 7));
        let range = of("3-5");
        assert_eq!((range.iter().min(), range.iter().max()), (Some(&3), Some(&5)));
        let normal = of("64:16");
        let mean = normal.iter().sum::<usize>() as f64 / 4000.0;
        let variance = normal.iter().map(|&n| (n as f64 - mean).powi(2)).sum::<f64>() / 4000.0;
        assert!(
            (mean - 64.0).abs() < 1.0 && (variance.sqrt() - 16.0).abs() < 1.0,
            "{mean} {variance}"
        );
        for wrong in ["0", "", "5-3", "0-3", "64:", "64:-1", "nan:1", "x"] {
            assert!(wrong.parse::<Lengths>().is_err(), "{wrong}");
        }
    }
}
