//! `lathe bench growth`: how time and memory of a training step and of decoding grow with tokens,
//! context, depth and batch. Every point is a process of its own, so that its peak memory is its
//! own; in decoding, memory is weights, keys and values.

use std::process::ExitCode;

use anyhow::{Context, Result, ensure};
use indicatif::ProgressBar;
use report::{Chart, Page, Series, Table, human_bytes};
use serde_json::{Value, json};
use train::Recipe;

use super::arguments::BenchGrowth;
use crate::{output, own_process, recipe};

/// One axis: what grows, what is measured, and the settings of each point.
struct Axis {
    name: &'static str,
    x: &'static str,
    time: &'static str,
    points: Vec<Point>,
}

impl Axis {
    fn of_training(name: &'static str, x: &'static str, points: Vec<Point>) -> Self {
        Self { name, x, time: "seconds a step", points }
    }

    fn of_decoding(name: &'static str, x: &'static str, points: Vec<Point>) -> Self {
        Self { name, x, time: "seconds a token of each", points }
    }
}

struct Point {
    x: f64,
    /// Arguments of `lathe bench` after the model.
    arguments: Vec<String>,
}

impl Point {
    /// Whether it times training steps, not decoding.
    fn is_step(&self) -> bool {
        self.arguments[0] == "train"
    }
}

/// What a point's process reported.
#[derive(Clone, Copy)]
struct Found {
    x: f64,
    seconds: f64,
    memory: f64,
    flops: f64,
}

/// Runs `lathe bench growth`.
pub(crate) fn run(options: &BenchGrowth) -> Result<ExitCode> {
    ensure!(options.steps > 0, "--steps is 0, expected at least 1");
    let mut jobs = Vec::new();
    for model in &options.model {
        for axis in axes(model, options)? {
            jobs.push((model.clone(), axis));
        }
    }
    let bar = ProgressBar::new(jobs.iter().map(|(_, axis)| axis.points.len() as u64).sum());
    let mut curves: Vec<(String, Axis, Vec<Found>)> = Vec::new();
    for (model, axis) in jobs {
        let mut found = Vec::new();
        for point in &axis.points {
            found.push(measure(&model, point, options)?);
            bar.inc(1);
        }
        curves.push((model, axis, found));
    }
    bar.finish_and_clear();
    tell(options, &curves)?;
    Ok(ExitCode::SUCCESS)
}

/// Prints the curves, and writes the page if one is asked for.
fn tell(options: &BenchGrowth, curves: &[(String, Axis, Vec<Found>)]) -> Result<()> {
    if let Some(out) = &options.out {
        output::page(out, &page(curves))?;
    }
    match options.json {
        true => output::json(&record(curves))?,
        false => output::table(&table(curves)),
    }
    Ok(())
}

fn set(pairs: &[(&str, usize)]) -> Vec<String> {
    pairs.iter().flat_map(|(key, value)| ["--set".to_owned(), format!("{key}={value}")]).collect()
}

/// A point that times training steps of `batch` sequences of `length` tokens.
fn train_point(x: usize, batch: usize, length: usize, more: &[(&str, usize)]) -> Point {
    let step =
        [("train.batch", batch), ("train.micro_batch", batch), ("data.sequence_length", length)];
    let arguments = [vec!["train".to_owned()], set(&step), set(more)].concat();
    Point { x: x as f64, arguments }
}

/// A point that times decoding of `batch` sequences after prompts of `context` tokens.
fn decode_point(x: usize, batch: usize, context: usize) -> Point {
    let batch = batch.to_string();
    let context = context.to_string();
    let list = ["decode", "--tokens", "33", "--rounds", "3"];
    let list = [&list[..], &["--batch", &batch, "--context", &context]].concat();
    Point { x: x as f64, arguments: list.into_iter().map(str::to_owned).collect() }
}

/// Sequence lengths from a quarter to four times the recipe's, at the same tokens a step.
fn context_points(own: &Recipe) -> Vec<Point> {
    let length = own.data.sequence_length;
    let tokens_at_once = 4 * length;
    let longest = tokens_at_once.min(own.model.context.max(length));
    [length / 4, length / 2, length, 2 * length, 4 * length]
        .into_iter()
        .filter(|&n| n >= 16 && n <= longest)
        .map(|n| train_point(n, tokens_at_once / n, n, &[]))
        .collect()
}

/// Half as many, as many and twice as many layers in the recursive block, the ends as they are.
fn depth_points(own: &Recipe) -> Result<Vec<Point>> {
    let plan = own.model.check()?;
    let period = own.model.recursions.max(1);
    let recursive: usize = plan.recursions.iter().map(Vec::len).sum();
    let ends = if own.model.recursions > 1 { own.model.layers - recursive } else { 0 };
    let block = (own.model.layers - ends) / period;
    let points = [block.div_ceil(2), block, 2 * block].map(|b| {
        let layers = ends + b * period;
        train_point(layers, 4, own.data.sequence_length, &[("model.layers", layers)])
    });
    Ok(points.into())
}

/// The axes of one model: powers of two around its own size.
fn axes(model: &str, options: &BenchGrowth) -> Result<Vec<Axis>> {
    let own = recipe::named(model, &options.set)?;
    let length = own.data.sequence_length;
    let tokens = [1, 2, 4, 8].map(|batch| train_point(batch * length, batch, length, &[]));
    let batches = [1, 2, 4, 8, 16, 32].map(|batch| decode_point(batch, batch, 32));
    let most = own.model.context.saturating_sub(34);
    let prompts = [32, 128, 512, 2048].into_iter().filter(|&n| n <= most);
    let prompts = prompts.map(|n| decode_point(n, 8, n)).collect();
    Ok(vec![
        Axis::of_training("tokens of a step", "tokens", tokens.into()),
        Axis::of_training("context, same tokens", "tokens of a sequence", context_points(&own)),
        Axis::of_training("depth", "unrolled layers", depth_points(&own)?),
        Axis::of_decoding("batch in decoding", "sequences", batches.into()),
        Axis::of_decoding("context in decoding", "prompt tokens of 8 sequences", prompts),
    ])
}

/// What `lathe` is asked for at a point.
fn words(model: &str, point: &Point, options: &BenchGrowth) -> Vec<String> {
    let mut words = ["bench", &point.arguments[0], model, "--json"].map(str::to_owned).to_vec();
    // The later of two settings of a field counts: the point's.
    words.extend(options.set.iter().flat_map(|pair| ["--set".to_owned(), pair.clone()]));
    words.extend_from_slice(&point.arguments[1..]);
    if point.is_step() {
        words.extend(["--steps".to_owned(), options.steps.to_string()]);
    }
    words
}

/// Runs a point in a process of its own.
fn measure(model: &str, point: &Point, options: &BenchGrowth) -> Result<Found> {
    let answer = own_process::json(own_process::command()?.args(words(model, point, options)))?;
    let result = &answer["results"][0];
    if point.is_step() {
        return Ok(Found {
            x: point.x,
            seconds: number(result, "median")?,
            memory: number(&answer, "peak_memory")?,
            flops: number(result, "flops")?,
        });
    }
    let batch = number(result, "batch")?;
    let rate = number(result, "median")?;
    let flops = batch * number(result, "flops_per_token")?;
    // The peak of the process would be that of measuring the memory's speed.
    let memory = number(result, "weight_bytes")? + number(result, "kv_bytes")?;
    Ok(Found { x: point.x, seconds: batch / rate, memory, flops })
}

fn number(value: &Value, name: &str) -> Result<f64> {
    value[name].as_f64().with_context(|| format!("no {name} in {value}"))
}

/// Slope of `log y` over `log x` by least squares: 1 is growth in proportion, 0 none.
fn exponent(points: &[Found], y: impl Fn(&Found) -> f64) -> f64 {
    let logs: Vec<(f64, f64)> = points.iter().map(|p| (p.x.ln(), y(p).ln())).collect();
    let n = logs.len() as f64;
    let mx = logs.iter().map(|p| p.0).sum::<f64>() / n;
    let my = logs.iter().map(|p| p.1).sum::<f64>() / n;
    let xy: f64 = logs.iter().map(|(x, y)| (x - mx) * (y - my)).sum();
    let xx: f64 = logs.iter().map(|(x, _)| (x - mx).powi(2)).sum();
    if xx > 0.0 { xy / xx } else { f64::NAN }
}

fn table(curves: &[(String, Axis, Vec<Found>)]) -> Table {
    let rows = curves.iter().flat_map(|(model, axis, found)| {
        let slopes = [
            exponent(found, |p| p.seconds),
            exponent(found, |p| p.flops),
            exponent(found, |p| p.memory),
        ];
        found.iter().enumerate().map(move |(at, p)| {
            let start = if at == 0 {
                [model.clone(), axis.name.to_owned()]
            } else {
                [String::new(), String::new()]
            };
            let numbers =
                [format!("{:.0}", p.x), format!("{:.4}", p.seconds), human_bytes(p.memory as u64)];
            let slopes = slopes.map(|s| if at == 0 { format!("{s:.2}") } else { String::new() });
            [&start[..], &numbers, &slopes].concat()
        })
    });
    let columns =
        ["model", "what grows", "x", "seconds", "memory", "time ~ x^", "FLOPs ~ x^", "memory ~ x^"];
    let caption = format!(
        "{}; seconds of a step, or of one token of every sequence; \
         memory: peak of the process, or weights, keys and values",
        ops::machine()
    );
    Table {
        rows: rows.collect(),
        columns: columns.map(str::to_owned).to_vec(),
        caption,
        best: None,
    }
}

fn record(curves: &[(String, Axis, Vec<Found>)]) -> Value {
    let curves: Vec<Value> =
        curves.iter().map(|(model, axis, found)| curve(model, axis, found)).collect();
    json!({ "bench": "growth", "machine": ops::machine(), "curves": curves })
}

fn curve(model: &str, axis: &Axis, found: &[Found]) -> Value {
    let points: Vec<Value> = found
        .iter()
        .map(|p| json!({ "x": p.x, "seconds": p.seconds, "memory": p.memory, "flops": p.flops }))
        .collect();
    json!({
        "model": model, "axis": axis.name, "x": axis.x, "points": points,
        "time_exponent": exponent(found, |p| p.seconds),
        "flops_exponent": exponent(found, |p| p.flops),
        "memory_exponent": exponent(found, |p| p.memory),
    })
}

fn page(curves: &[(String, Axis, Vec<Found>)]) -> String {
    let mut page = Page::new("Growth", &format!("time and memory; {}", ops::machine()));
    let mut names: Vec<&str> = Vec::new();
    for (_, axis, _) in curves {
        if !names.contains(&axis.name) {
            names.push(axis.name);
        }
    }
    for name in names {
        let of_axis: Vec<_> = curves.iter().filter(|(_, axis, _)| axis.name == name).collect();
        let axis = &of_axis[0].1;
        page.section(name);
        type Height = fn(&Found) -> f64;
        let kinds: [(&str, Height); 2] =
            [(axis.time, |p| p.seconds), ("memory, MiB", |p| p.memory / f64::from(1 << 20))];
        for (y_label, y) in kinds {
            let series = of_axis
                .iter()
                .map(|(model, _, found)| Series {
                    name: model.clone(),
                    points: found.iter().map(|p| (p.x, y(p))).collect(),
                    dashed: false,
                })
                .collect();
            let title = format!("{y_label} by {}", axis.x);
            page.chart(Chart {
                title,
                x_label: axis.x.to_owned(),
                y_label: y_label.to_owned(),
                log_x: true,
                shares: false,
                series,
            });
        }
    }
    page.section("Numbers").table(table(curves));
    page.render()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn exponents_of_powers() {
        let points: Vec<Found> = [1.0, 2.0, 8.0]
            .iter()
            .map(|&x: &f64| Found { x, seconds: 3.0 * x.powf(1.5), memory: 7.0, flops: x })
            .collect();
        assert!((exponent(&points, |p| p.seconds) - 1.5).abs() < 1e-12);
        assert!(exponent(&points, |p| p.memory).abs() < 1e-12);
        assert!((exponent(&points, |p| p.flops) - 1.0).abs() < 1e-12);
    }

    #[test]
    fn points_are_asked_for_with_the_steps_and_settings_of_the_command_line() {
        let set = vec!["model.layers=8".to_owned()];
        let model = vec!["a.toml".to_owned()];
        let options = BenchGrowth { model, set, steps: 7, out: None, json: true };
        let asked = |point: &Point| words("a.toml", point, &options).join(" ");
        assert_eq!(
            asked(&train_point(64, 2, 32, &[])),
            "bench train a.toml --json --set model.layers=8 --set train.batch=2 \
             --set train.micro_batch=2 --set data.sequence_length=32 --steps 7"
        );
        assert_eq!(
            asked(&decode_point(4, 4, 32)),
            "bench decode a.toml --json --set model.layers=8 --tokens 33 --rounds 3 --batch 4 \
             --context 32"
        );
    }

    /// `--out` is a page with the curves; `--json` has each of their points.
    #[test]
    fn curves_go_to_the_page_and_the_terminal() {
        let dir = tempfile::tempdir().expect("a folder");
        let out = dir.path().join("growth.html");
        let found = [1.0, 2.0].map(|x| Found { x, seconds: x, memory: 7.0, flops: x }).to_vec();
        let axis = Axis::of_training("depth", "unrolled layers", Vec::new());
        let curves = [("a.toml".to_owned(), axis, found)];
        let asked = |out| {
            let (model, set) = (vec!["a.toml".to_owned()], Vec::new());
            tell(&BenchGrowth { model, set, steps: 1, out, json: true }, &curves).expect("writes");
        };
        asked(None);
        assert!(!out.exists());
        asked(Some(out.clone()));
        let page = std::fs::read_to_string(&out).expect("--out writes the page");
        assert!(page.contains("seconds a step by unrolled layers") && page.contains("a.toml"));
        let printed = record(&curves);
        assert_eq!(printed["curves"][0]["axis"], "depth");
        assert_eq!(printed["curves"][0]["points"][1]["seconds"], 2.0);
    }
}
