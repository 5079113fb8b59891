//! `lathe convert` of a file of `mergekit-moe`: several dense models become one with experts.

use std::process::ExitCode;

use anyhow::{Context, Result, ensure};
use convert::{BranchPlan, BranchReport, GateMode, join_branches};
use report::{Table, human_bytes, human_count};
use serde_json::json;

use crate::arguments::Convert;
use crate::{open, output};

/// Above this cosine, rows of two experts are all but one.
const ALIKE: f64 = 0.95;

/// Writes the model that the file asks for, and tells what became of what.
#[allow(clippy::result_large_err, reason = "an error of one call")]
pub(crate) fn run(options: &Convert) -> Result<ExitCode> {
    let plan = BranchPlan::load(&options.checkpoint)?;
    nothing_idle(options, &plan)?;
    let seed = options.seed.unwrap_or(1);
    let (_, report) =
        join_branches(&plan, open::source, seed, &options.out, open::disk()?.as_ref())
            .with_context(|| format!("converting by {}", options.checkpoint.display()))?;
    if options.json {
        output::json(&json!({ "path": options.out, "report": report }))?;
    } else {
        show(&report);
        output::line(format!("wrote {}", options.out.display()));
    }
    Ok(ExitCode::SUCCESS)
}

/// Refuses options that were given and change nothing beside such a file.
fn nothing_idle(options: &Convert, plan: &BranchPlan) -> Result<()> {
    for (option, is_given) in [
        ("--sharing", options.sharing.is_some()),
        ("--recursions", options.recursions.is_some()),
        ("--init", options.init.is_some()),
        ("--router", options.router != "fixed"),
        ("--kv-sharing", options.kv_sharing != "recursion_wise"),
        ("--own-norms", options.own_norms),
        ("--relax", options.relax != "none"),
        ("--fresh-adapters", options.fresh_adapters),
        ("--keep", options.keep.is_some()),
        ("--mlp", options.mlp.is_some()),
    ] {
        ensure!(
            !is_given,
            "{option} is given with {}, expected none beside a file that joins models: leave it \
             out, and convert the result in a second step",
            options.checkpoint.display()
        );
    }
    ensure!(
        options.seed.is_none() || plan.gates == GateMode::Random,
        "--seed is given, and changes nothing: gate_mode in {} is not \"random\", so nothing is \
         drawn; leave it out",
        options.checkpoint.display()
    );
    Ok(())
}

fn show(report: &BranchReport) {
    let mut rows = Vec::new();
    let mut add = |what: &str, source: &std::path::Path| {
        rows.push(vec![what.to_owned(), source.display().to_string()]);
    };
    add("attention, norms, embedding, head", &report.base);
    for (i, source) in report.experts.iter().enumerate() {
        add(&format!("expert {i} of each layer"), source);
    }
    report.shared.iter().for_each(|source| add("shared expert of each layer", source));
    let columns = ["part", "from"].map(str::to_owned).to_vec();
    output::table(&Table { columns, rows, caption: String::new(), best: None });
    for line in told_of_gates(report) {
        output::line(line);
    }
    let (a, b) = (&report.before, &report.after);
    let compare = |what: &str, before: f64, after: f64, show: fn(f64) -> String| {
        vec![what.to_owned(), show(before), show(after), format!("{:.3}", after / before)]
    };
    let rows = vec![
        compare(
            "unique parameters (no embedding)",
            a.unique_parameters as f64,
            b.unique_parameters as f64,
            human_count,
        ),
        compare("weight bytes, f32", a.weight_bytes as f64, b.weight_bytes as f64, |n| {
            human_bytes(n as u64)
        }),
        compare(
            "forward FLOPs/token, full count",
            a.forward_flops_full,
            b.forward_flops_full,
            human_count,
        ),
    ];
    let columns = ["model", "before", "after", "ratio"].map(str::to_owned).to_vec();
    let caption = format!("at sequence length {}", b.sequence_length);
    output::table(&Table { columns, rows, caption, best: None });
}

/// What rows of routers are made of, and in which layers they hardly tell experts apart.
fn told_of_gates(report: &BranchReport) -> Vec<String> {
    let made = match report.gates {
        GateMode::Hidden => "rows of routers: the stream behind each prompt",
        GateMode::CheapEmbed => "rows of routers: embeddings of the prompts, alike in all layers",
        GateMode::Random => "rows of routers: fresh; train the model before you use it",
    };
    let alike = |likeness: &f64| *likeness > ALIKE;
    let count = report.likeness.iter().filter(|likeness| alike(likeness)).count();
    let mut told = vec![made.to_owned()];
    if count > 0 {
        let layers = report.likeness.len();
        told.push(format!(
            "in {count} of {layers} layers two experts have rows of a cosine above {ALIKE}, and \
             are chosen together: give prompts that differ more"
        ));
    }
    told
}
