//! `lathe bench metrics`: the six metrics of EfficientLLM (arXiv 2505.13840) of models that answer
//! requests one after another. Each model runs in a process of its own, so that memory and
//! processor time are its own; models take turns.

use std::fs;
use std::path::Path;
use std::process::ExitCode;
use std::sync::atomic::{AtomicBool, Ordering};
use std::thread;
use std::time::{Duration, Instant};

use anyhow::{Context, Result, ensure};
use cpu_time::ProcessTime;
use data::{Corpus, Split, Windows};
use engine::{Generation, Sampler, Scoring};
use indicatif::ProgressBar;
use kernels::machine::median;
use report::{Table, human_bytes};
use serde_json::{Value, json};
use train::{WindowChoice, in_chunks, score_rule};

use super::arguments::BenchMetrics;
use super::subject::{Subject, resident_memory, subject};
use crate::{output, own_process};

/// How often memory is looked at.
const EVERY: Duration = Duration::from_millis(5);

/// Runs `lathe bench metrics`: one round of one model in this process, others in turns.
pub(crate) fn run(options: &BenchMetrics) -> Result<ExitCode> {
    // Ahead of minutes with the first ones.
    options.model.iter().try_for_each(|model| must_be_stored(model))?;
    let found = match options.model.as_slice() {
        [model] if options.rounds == 1 => vec![vec![alone(model, options)?]],
        _ => in_turns(options)?,
    };
    let mut results: Vec<Value> = Vec::new();
    for (model, rounds) in options.model.iter().zip(found) {
        let first = results.first().cloned();
        results.push(middle(model, rounds, first.as_ref())?);
    }
    match options.json {
        true => output::json(&json!({
            "bench": "metrics", "machine": ops::machine(),
            "threads": rayon::current_num_threads(), "results": results,
        }))?,
        false => output::table(&table(&results, options)),
    }
    Ok(ExitCode::SUCCESS)
}

/// Every round of every model.
fn in_turns(options: &BenchMetrics) -> Result<Vec<Vec<Value>>> {
    let bar = ProgressBar::new((options.model.len() * options.rounds) as u64);
    let mut found: Vec<Vec<Value>> = vec![Vec::new(); options.model.len()];
    for _ in 0..options.rounds {
        for (model, found) in options.model.iter().zip(&mut found) {
            found.push(in_a_process(model, options)?);
            bar.inc(1);
        }
    }
    bar.finish_and_clear();
    Ok(found)
}

/// One round of the same program on one model.
fn in_a_process(model: &str, options: &BenchMetrics) -> Result<Value> {
    let mut command = own_process::command()?;
    command.args(["bench", "metrics", model, "--rounds", "1", "--json", "--data"]);
    command.arg(&options.data);
    let numbers = [
        ("--windows", options.windows as usize),
        ("--requests", options.requests),
        ("--context", options.context),
        ("--tokens", options.tokens),
        ("--threads", rayon::current_num_threads()),
    ];
    for (flag, number) in numbers {
        command.arg(flag).arg(number.to_string());
    }
    Ok(own_process::json(&mut command)?["results"][0]["rounds"][0].take())
}

/// Refuses presets and recipes, and what is not there.
fn must_be_stored(model: &str) -> Result<()> {
    let path = Path::new(model);
    ensure!(
        path.is_dir() || convert::is_foreign(path),
        "{model} is no folder, expected a checkpoint or a run: fresh weights have no quality that \
         could be compared"
    );
    Ok(())
}

/// What one model takes, in this process.
fn alone(model: &str, options: &BenchMetrics) -> Result<Value> {
    let subject = subject(model, &[], None)?;
    let tokenizer = subject.tokenizer.as_ref().context("checkpoints have a tokenizer")?;
    let corpus = Corpus::open(&options.data, Split::Validation)
        .with_context(|| format!("opening {}", options.data.display()))?;
    ensure!(
        corpus.tokenizer_sha256() == tokenizer.sha256(),
        "{} was tokenized with another tokenizer than that of {model}: build the data with the \
         model's",
        options.data.display()
    );
    let longest = options.context + options.tokens;
    let room = subject.model.config().context;
    ensure!(
        longest <= room,
        "{model}: prompts of {} and {} new tokens do not fit the context {room}: take fewer by \
         --context or --tokens",
        options.context,
        options.tokens
    );
    let windows = Windows::new(&corpus, longest, 0)?;
    let choice = WindowChoice::new(windows.len(), options.windows, 0);
    ensure!(windows.len() > 0, "{} has no window of {longest}", options.data.display());
    let chunks = in_chunks(&windows, &choice.scored)?;
    let prompts: Vec<&[u32]> = chunks.iter().flatten().map(|window| &window.ids[..]).collect();
    let served = serve(&subject, &prompts, options)?;
    let how = Scoring::by(&subject.rule, &subject.state);
    let (score, _) = score_rule(&subject.model, &windows, &chunks, true, &how);
    Ok(json!({
        "weights": subject.weights.to_string(), "weight_bytes": subject.model.bytes(),
        "memory": served.memory, "seconds": served.seconds, "tokens": served.tokens,
        "processor_seconds": served.processor, "joules": served.joules,
        "requests": options.requests, "nll": score.all.nll,
        "bits_per_byte": score.all.bits_per_byte,
    }))
}

/// What requests took, one after another.
struct Served {
    /// Mean of the resident bytes; nothing where the system does not say.
    memory: Option<f64>,
    seconds: f64,
    tokens: usize,
    /// Seconds of all threads together.
    processor: f64,
    /// Energy of the processors' packages, where the machine counts it and lets us read it.
    joules: Option<f64>,
}

fn serve(subject: &Subject, prompts: &[&[u32]], options: &BenchMetrics) -> Result<Served> {
    // The first one packs weights and fills buffers.
    answer(subject, prompts[0], options)?;
    let done = AtomicBool::new(false);
    thread::scope(|scope| {
        let memory = scope.spawn(|| mean_memory(&done));
        let (energy, processor, start) = (energy(), ProcessTime::now(), Instant::now());
        let mut tokens = 0;
        let mut failed = None;
        for prompt in prompts.iter().cycle().take(options.requests) {
            match answer(subject, prompt, options) {
                Ok(count) => tokens += count,
                Err(error) => failed = Some(error),
            }
        }
        let seconds = start.elapsed().as_secs_f64();
        let processor = processor.elapsed().as_secs_f64();
        let joules = energy.zip(self::energy()).map(|(before, after)| after - before);
        done.store(true, Ordering::Relaxed);
        let memory = memory.join().unwrap_or_default();
        match failed {
            Some(error) => Err(error),
            // A counter that began anew in between says nothing.
            None => Ok(Served {
                memory,
                seconds,
                tokens,
                processor,
                joules: joules.filter(|j| *j > 0.0),
            }),
        }
    })
}

/// The number of tokens that the model writes behind the beginning of `text`.
fn answer(subject: &Subject, text: &[u32], options: &BenchMetrics) -> Result<usize> {
    let what = Generation {
        prompt: &text[..options.context],
        max_tokens: options.tokens,
        stop: &[],
        sampler: &Sampler::greedy(),
        rule: &subject.rule,
        state: &subject.state,
        max_depth: None,
        choice: 0,
        constraint: None,
    };
    Ok(engine::generate(&subject.model, &what, &mut |_| true)?.tokens.len())
}

/// The mean of this process's resident bytes until `done`.
fn mean_memory(done: &AtomicBool) -> Option<f64> {
    let (mut sum, mut count) = (0.0, 0.0);
    loop {
        sum += resident_memory()? as f64;
        count += 1.0;
        if done.load(Ordering::Relaxed) {
            return Some(sum / count);
        }
        thread::sleep(EVERY);
    }
}

/// Joules that the packages of the processors have taken since some moment, by the counters of
/// Linux's power capping; nothing if there are none, or they may not be read.
fn energy() -> Option<f64> {
    let mut sum = None;
    for entry in fs::read_dir(Path::new("/sys/class/powercap")).ok()?.flatten() {
        // Packages are `intel-rapl:N`; what they consist of has another number behind that.
        if entry.file_name().to_string_lossy().matches(':').count() == 1 {
            let text = fs::read_to_string(entry.path().join("energy_uj")).ok()?;
            *sum.get_or_insert(0.0) += text.trim().parse::<f64>().ok()? * 1e-6;
        }
    }
    sum
}

/// The median of a number that every round has.
fn middle_of(rounds: &[Value], name: &str) -> Option<f64> {
    let all: Option<Vec<f64>> = rounds.iter().map(|round| round[name].as_f64()).collect();
    all.map(|all| median(&all))
}

/// The medians of a model's rounds, and the metrics that they make, beside the `first` model.
fn middle(model: &str, rounds: Vec<Value>, first: Option<&Value>) -> Result<Value> {
    let needed =
        |name: &str| middle_of(&rounds, name).with_context(|| format!("{model} said no {name}"));
    let (seconds, tokens) = (needed("seconds")?, needed("tokens")?);
    let (bytes, nll) = (needed("weight_bytes")?, needed("nll")?);
    let threads = rayon::current_num_threads() as f64;
    let compression = match first {
        None => 1.0,
        Some(first) => {
            let [first_bytes, first_nll] =
                ["weight_bytes", "nll"].map(|name| first[name].as_f64().unwrap_or(f64::NAN));
            // Probability of a token in the geometric mean: the inverse of the perplexity.
            first_bytes / bytes * (first_nll - nll).exp()
        }
    };
    Ok(json!({
        "model": model, "weights": rounds[0]["weights"], "weight_bytes": bytes,
        "mean_memory": middle_of(&rounds, "memory"),
        "processor_use": needed("processor_seconds")? / (seconds * threads),
        "latency_seconds": seconds / needed("requests")?,
        "tokens_per_second": tokens / seconds,
        "watts": middle_of(&rounds, "joules").map(|joules| joules / seconds),
        "processor_seconds_per_token": needed("processor_seconds")? / tokens,
        "nll": nll, "perplexity": nll.exp(), "bits_per_byte": needed("bits_per_byte")?,
        "model_compression_rate": compression, "rounds": rounds,
    }))
}

/// A number as `shown`, or a dash where there is none.
fn show(value: &Value, shown: &dyn Fn(f64) -> String) -> String {
    value.as_f64().map_or_else(|| "-".to_owned(), shown)
}

fn table(results: &[Value], options: &BenchMetrics) -> Table {
    let mut rows = Vec::new();
    for result in results {
        let [model, weights] = ["model", "weights"].map(|name| result[name].as_str());
        rows.push(vec![
            model.unwrap_or_default().to_owned(),
            weights.unwrap_or_default().to_owned(),
            show(&result["weight_bytes"], &|x| human_bytes(x as u64)),
            show(&result["mean_memory"], &|x| human_bytes(x as u64)),
            show(&result["processor_use"], &|x| format!("{:.0}", 100.0 * x)),
            show(&result["latency_seconds"], &|x| format!("{x:.3}")),
            show(&result["tokens_per_second"], &|x| format!("{x:.1}")),
            show(&result["watts"], &|x| format!("{x:.1}")),
            show(&result["processor_seconds_per_token"], &|x| format!("{:.2}", 1e3 * x)),
            show(&result["perplexity"], &|x| format!("{x:.3}")),
            show(&result["model_compression_rate"], &|x| format!("{x:.3}")),
        ]);
    }
    let columns = [
        "model",
        "weights",
        "weight bytes",
        "memory (AMU)",
        "% of processors (PCU)",
        "s a request (AL)",
        "tokens/s (IT)",
        "watts (AEC)",
        "processor ms a token",
        "perplexity",
        "compression (MCR)",
    ];
    let caption = format!(
        "{}; {} requests of {} and {} new tokens, one after another, medians of {} \
         rounds in turns; watts: of the processors' packages, - where no counter can be read, for \
         which processor time is a stand-in and no energy; MCR: bytes of the first model over \
         these, times its perplexity over this",
        ops::machine(),
        options.requests,
        options.context,
        options.tokens,
        options.rounds
    );
    Table { columns: columns.map(str::to_owned).to_vec(), rows, caption, best: None }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn round(seconds: f64, bytes: f64, nll: f64, joules: Option<f64>) -> Value {
        json!({
            "weights": "f32", "weight_bytes": bytes, "memory": 100.0, "seconds": seconds,
            "tokens": 60, "processor_seconds": 3.0, "joules": joules, "requests": 4, "nll": nll,
            "bits_per_byte": 1.0,
        })
    }

    /// By hand: half of the bytes at 1.25 times the perplexity is a compression of 1.6.
    #[test]
    fn metrics_are_their_formulas_over_medians() {
        let first = [round(2.0, 400.0, 1.0, Some(8.0)), round(6.0, 400.0, 1.0, Some(8.0))];
        let first = [&first[..], &[round(3.0, 400.0, 1.0, Some(8.0))]].concat();
        let first = middle("a", first, None).expect("numbers");
        let threads = rayon::current_num_threads() as f64;
        for (name, expected) in [
            ("latency_seconds", 0.75),
            ("tokens_per_second", 20.0),
            ("processor_use", 1.0 / threads),
            ("processor_seconds_per_token", 0.05),
            ("model_compression_rate", 1.0),
            ("mean_memory", 100.0),
            ("watts", 8.0 / 3.0),
        ] {
            let found = first[name].as_f64().expect(name);
            assert!((found - expected).abs() < 1e-12, "{name}: {found}");
        }
        let rounds = vec![round(3.0, 200.0, 1.0 + 1.25_f64.ln(), None)];
        let second = middle("b", rounds, Some(&first)).expect("numbers");
        let rate = second["model_compression_rate"].as_f64().expect("a rate");
        assert!((rate - 1.6).abs() < 1e-12, "{rate}");
        // Energy that nobody counted is no number.
        assert!(second["watts"].is_null());
        assert!(middle("c", vec![json!({})], None).is_err());
    }

    /// All models are looked at ahead of the first one's minutes.
    #[test]
    fn what_is_no_checkpoint_is_refused() {
        assert!(must_be_stored(env!("CARGO_MANIFEST_DIR")).is_ok());
        for name in ["cpu-1m-moe", "nowhere/at-all"] {
            let error = must_be_stored(name).expect_err(name).to_string();
            assert!(error.contains(name) && error.contains("expected a checkpoint"), "{error}");
        }
    }

    #[test]
    fn memory_is_watched_until_the_end() {
        let done = AtomicBool::new(true);
        let now = resident_memory();
        let mean = mean_memory(&done);
        if let (Some(now), Some(mean)) = (now, mean) {
            assert!(mean > 1e6 && mean < 4.0 * now as f64, "{mean} {now}");
        }
    }
}
