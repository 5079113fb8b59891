//! `lathe bench growth`: how time and memory of a training step and of decoding grow with tokens,
//! context, depth and batch. Every point is a process of its own, so that its peak memory is its
//! own; in decoding, memory is weights, keys and values.

use std::process::{Command, ExitCode};

use anyhow::{Context, Result, bail, ensure};
use indicatif::ProgressBar;
use report::{Chart, Page, Series, Table, human_bytes};
use serde_json::{Value, json};

use crate::arguments::BenchGrowth;
use crate::{output, recipe};

/// One axis: what grows, what is measured, and the settings of each point.
struct Axis {
    name: &'static str,
    x: &'static str,
    time: &'static str,
    points: Vec<Point>,
}

struct Point {
    x: f64,
    /// Arguments of `lathe bench` after the model.
    arguments: Vec<String>,
}

/// What a point's process reported.
#[derive(Clone, Copy)]
struct Found {
    x: f64,
    seconds: f64,
    memory: f64,
    flops: f64,
}

/// Runs the command.
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
    if let Some(out) = &options.out {
        std::fs::write(out, page(&curves)).with_context(|| format!("writing {}", out.display()))?;
    }
    match options.json {
        true => output::line(serde_json::to_string_pretty(&record(&curves))?),
        false => output::piece(table(&curves).to_text()),
    }
    Ok(ExitCode::SUCCESS)
}

fn set(pairs: &[(&str, usize)]) -> Vec<String> {
    pairs.iter().flat_map(|(key, value)| ["--set".to_owned(), format!("{key}={value}")]).collect()
}

/// The axes of one model: powers of two around its own size.
fn axes(model: &str, options: &BenchGrowth) -> Result<Vec<Axis>> {
    let own = match model.ends_with(".toml") {
        true => recipe::load(std::path::Path::new(model), &options.set)?,
        false => recipe::parse(
            &format!("[model]\npreset = \"{model}\"\nvocab_size = 4096\n"),
            &options.set,
        )?,
    };
    let plan = own.model.check()?;
    let length = own.data.sequence_length;
    let train = |x: usize, pairs: &[(&str, usize)]| Point {
        x: x as f64,
        arguments: [vec!["train".to_owned()], set(pairs)].concat(),
    };
    let step = |batch: usize, length: usize| -> Vec<(&'static str, usize)> {
        vec![("train.batch", batch), ("train.micro_batch", batch), ("data.sequence_length", length)]
    };
    let tokens = [1, 2, 4, 8].map(|batch| train(batch * length, &step(batch, length)));
    let tokens_at_once = 4 * length;
    let lengths = [length / 4, length / 2, length, 2 * length, 4 * length];
    let context = lengths
        .into_iter()
        .filter(|&n| n >= 16 && n <= own.model.context.max(length) && n <= tokens_at_once);
    let context = context.map(|n| train(n, &step(tokens_at_once / n, n)));
    let (period, ends) = (
        own.model.recursions.max(1),
        own.model.layers - plan.recursions.iter().map(Vec::len).sum::<usize>(),
    );
    let ends = if own.model.recursions > 1 { ends } else { 0 };
    let block = (own.model.layers - ends) / period;
    let blocks = [block.div_ceil(2), block, 2 * block];
    let depth = blocks.map(|b| {
        let layers = ends + b * period;
        train(layers, &[step(4, length), vec![("model.layers", layers)]].concat())
    });
    let decode = |batch: usize, context: usize| {
        let list = [
            "decode",
            "--tokens",
            "33",
            "--rounds",
            "3",
            "--batch",
            &batch.to_string(),
            "--context",
            &context.to_string(),
        ];
        list.map(str::to_owned).to_vec()
    };
    let batches =
        [1, 2, 4, 8, 16, 32].map(|batch| Point { x: batch as f64, arguments: decode(batch, 32) });
    let most = own.model.context.saturating_sub(34);
    let prompts = [32, 128, 512, 2048].into_iter().filter(|&n| n <= most);
    let prompts = prompts.map(|n| Point { x: n as f64, arguments: decode(8, n) });
    Ok(vec![
        Axis {
            name: "tokens of a step",
            x: "tokens",
            time: "seconds a step",
            points: tokens.into(),
        },
        Axis {
            name: "context, same tokens",
            x: "tokens of a sequence",
            time: "seconds a step",
            points: context.collect(),
        },
        Axis { name: "depth", x: "unrolled layers", time: "seconds a step", points: depth.into() },
        Axis {
            name: "batch in decoding",
            x: "sequences",
            time: "seconds a token of each",
            points: batches.into(),
        },
        Axis {
            name: "context in decoding",
            x: "prompt tokens of 8 sequences",
            time: "seconds a token of each",
            points: prompts.collect(),
        },
    ])
}

/// Runs a point in a process of its own.
fn measure(model: &str, point: &Point, options: &BenchGrowth) -> Result<Found> {
    let mut command = Command::new(std::env::current_exe()?);
    command.arg("bench").arg(&point.arguments[0]).arg(model).arg("--json");
    // The later of two settings of a field counts: the point's.
    options.set.iter().for_each(|pair| {
        command.args(["--set", pair]);
    });
    command.args(&point.arguments[1..]);
    let is_step = point.arguments[0] == "train";
    if is_step {
        command.args(["--steps", &options.steps.to_string()]);
    }
    let output = command.output().context("starting a process for a point")?;
    if !output.status.success() {
        bail!(
            "`lathe bench {} {model}` failed:\n{}",
            point.arguments.join(" "),
            String::from_utf8_lossy(&output.stderr)
        );
    }
    let answer: Value = serde_json::from_slice(&output.stdout)?;
    let result = &answer["results"][0];
    let number = |value: &Value, name: &str| {
        value.as_f64().with_context(|| format!("no {name} in {answer}"))
    };
    if is_step {
        let memory = number(&answer["peak_memory"], "peak_memory")?;
        let seconds = number(&result["median"], "median")?;
        return Ok(Found {
            x: point.x,
            seconds,
            memory,
            flops: number(&result["flops"], "flops")?,
        });
    }
    let (batch, rate) = (number(&result["batch"], "batch")?, number(&result["median"], "median")?);
    let flops = batch * number(&result["flops_per_row"], "flops_per_row")?;
    // The peak of the process would be that of measuring the memory's speed.
    let memory =
        number(&result["weight_bytes"], "weight_bytes")? + number(&result["kv_bytes"], "kv_bytes")?;
    Ok(Found { x: point.x, seconds: batch / rate, memory, flops })
}

/// Slope of `log y` over `log x` by least squares: 1 is growth in proportion, 0 none.
fn exponent(points: &[Found], y: impl Fn(&Found) -> f64) -> f64 {
    let logs: Vec<(f64, f64)> = points.iter().map(|p| (p.x.ln(), y(p).ln())).collect();
    let n = logs.len() as f64;
    let (mx, my) =
        (logs.iter().map(|p| p.0).sum::<f64>() / n, logs.iter().map(|p| p.1).sum::<f64>() / n);
    let (xy, xx) = logs
        .iter()
        .fold((0.0, 0.0), |(xy, xx), (x, y)| (xy + (x - mx) * (y - my), xx + (x - mx).powi(2)));
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
            let slope = |s: f64| if at == 0 { format!("{s:.2}") } else { String::new() };
            let numbers = [
                format!("{:.0}", p.x),
                format!("{:.4}", p.seconds),
                human_bytes(p.memory as u64),
                slope(slopes[0]),
                slope(slopes[1]),
                slope(slopes[2]),
            ];
            [start.to_vec(), numbers.to_vec()].concat()
        })
    });
    let columns =
        ["model", "what grows", "x", "seconds", "memory", "time ~ x^", "FLOPs ~ x^", "memory ~ x^"];
    let caption = format!(
        "{}; seconds of a step, or of one token of every sequence; memory: peak of the process, or weights, keys and values",
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
    let curve = |(model, axis, found): &(String, Axis, Vec<Found>)| {
        let points: Vec<Value> = found
            .iter()
            .map(
                |p| json!({ "x": p.x, "seconds": p.seconds, "memory": p.memory, "flops": p.flops }),
            )
            .collect();
        json!({
            "model": model, "axis": axis.name, "x": axis.x, "points": points,
            "time_exponent": exponent(found, |p| p.seconds), "flops_exponent": exponent(found, |p| p.flops),
            "memory_exponent": exponent(found, |p| p.memory),
        })
    };
    json!({ "bench": "growth", "machine": ops::machine(), "curves": curves.iter().map(curve).collect::<Vec<_>>() })
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
}
