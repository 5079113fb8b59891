//! Rates and FLOPs of decoding against plain counts.

use clap::Parser;
use model::Model;
use model::params::ParamPlace;

use super::*;
use crate::arguments::{Arguments, Command};
use crate::bench::arguments::BenchCommand;

fn options(more: &[&str]) -> BenchRun {
    let all = [&["lathe", "bench", "decode", "cpu-1m-dense"], more].concat();
    match Arguments::try_parse_from(all).unwrap().command {
        Command::Bench(BenchCommand::Decode(options)) => options,
        other => panic!("{other:?}"),
    }
}

fn measured(name: &str, more: &[&str], batch: usize, context: usize) -> (Subject, Measured) {
    let options = options(more);
    let set = ["model.context=700".to_owned(), "data.sequence_length=700".to_owned()];
    let subject = subject(name, &set, None).unwrap();
    let setting = Setting { options: &options, batch, context, prefill: false };
    let found = setting.measure(&subject).unwrap();
    (subject, found)
}

/// FLOPs of the rows from `first` to before `end` of a sequence, each of the same depth, by
/// hand: two for each number of a matrix that a row meets, four for each key and each number of
/// a head, two for each number of the head for the row's logits.
fn flops_by_hand(model: &Model, depth: usize, rows: std::ops::Range<usize>) -> f64 {
    let (config, plan) = (model.config(), model.plan());
    let mut uses: Vec<usize> = plan.before.iter().chain(&plan.after).map(|at| at.stored).collect();
    plan.recursions.iter().take(depth).flatten().for_each(|at| uses.push(at.stored));
    let (mut products, mut head) = (0.0, 0.0);
    for (spec, _) in model.weights() {
        let numbers = (spec.shape.0 * spec.shape.1) as f64;
        match &spec.place {
            ParamPlace::Layer { stored, .. } => {
                products += 2.0 * numbers * uses.iter().filter(|s| *s == stored).count() as f64;
            }
            ParamPlace::Router { recursion, .. } => {
                // Asked before each recursion that is taken, and before the one that is not.
                let asked = recursion.is_none_or(|r| r <= depth);
                products += if asked { 2.0 * numbers } else { 0.0 };
            }
            ParamPlace::Embed => head = 2.0 * numbers,
            _ => {}
        }
    }
    assert!(config.tie_embeddings);
    let width = (config.heads * config.head_dim) as f64;
    let mut total = 0.0;
    for position in rows {
        let keys = (position + 1) as f64;
        total += products + head + 4.0 * keys * width * uses.len() as f64;
    }
    total
}

#[test]
fn decoding_is_measured_apart_from_prompts() {
    // Three prompts of 400 rows take more than one tick of 512, so that the first ones could
    // decode while others are read.
    for (name, depth) in [("cpu-1m-dense", 0), ("cpu-1m-rec3", 3), ("cpu-1m-mor3", 1)] {
        let most = if name == "cpu-1m-mor3" { "1" } else { "9" };
        let more = ["--tokens", "6", "--max-depth", most];
        let (subject, found) = measured(name, &more, 3, 400);
        // Five tokens of each, each from the row of the token before it.
        assert_eq!((found.tokens, found.work.rows), (15, 15), "{name}");
        assert_eq!(found.ticks, 5 * depth.max(1) as u64, "{name}: in step, and nothing else");
        let by_hand = 3.0 * flops_by_hand(&subject.model, depth, 400..405) / 15.0;
        assert!((found.flops / by_hand - 1.0).abs() < 1e-9, "{name}: {} {by_hand}", found.flops);
        assert_eq!(found.mean_depth, depth.max(1) as f64, "{name}");
    }
}

#[test]
fn attention_of_a_recursion_counts_the_keys_that_it_has() {
    let (subject, found) = measured("cpu-1m-mor3", &["--tokens", "20"], 2, 40);
    let shallow = flops_by_hand(&subject.model, 1, 40..59) / 19.0;
    let deep = flops_by_hand(&subject.model, 3, 40..59) / 19.0;
    assert!(shallow < found.flops && found.flops < deep, "{}", found.flops);
    let mut work = RowWork::new(&subject.model);
    // Of three rows two are deep: the third sees two keys in the second recursion.
    work.add(&CompletedRows { request: 1, first: 0, depths: vec![2, 1] });
    work.sums = WorkSums::default();
    work.add(&CompletedRows { request: 1, first: 2, depths: vec![2] });
    let (config, plan) = (subject.model.config(), subject.model.plan());
    let ends = plan.before.len() + plan.after.len();
    let block = plan.recursions[0].len();
    let keys = 3 * ends + 3 * block + 2 * block;
    let attention = (4 * keys * config.heads * config.head_dim) as f64;
    let products = flops_by_hand(&subject.model, 2, 0..1)
        - work.head_flops()
        - (4 * (ends + 2 * block) * config.heads * config.head_dim) as f64;
    assert!((work.sums.flops - products - attention).abs() < 1e-6);
    // Rows that run again are work again, and replace what was known.
    let once = work.sums.flops;
    work.add(&CompletedRows { request: 1, first: 2, depths: vec![2] });
    assert_eq!((work.sums.rows, work.sums.recursions), (2, 4));
    assert!((work.sums.flops - 2.0 * once).abs() < 1e-6);
}

#[test]
fn with_requests_all_tokens_count() {
    for requests in ["3", "5"] {
        let more = ["--tokens", "6", "--requests", requests];
        let (subject, found) = measured("cpu-1m-dense", &more, 3, 30);
        let sequences: usize = requests.parse().unwrap();
        assert_eq!(found.tokens, 6 * sequences);
        // Prompts, and five rows of new tokens.
        assert_eq!(found.work.rows as usize, sequences * 35);
        // Six of the 35 rows of a sequence go through the head.
        let config = subject.model.config();
        let head = (2 * config.vocab_size * config.width) as f64;
        let by_hand = (flops_by_hand(&subject.model, 0, 0..35) - 29.0 * head) / 6.0;
        assert!((found.flops / by_hand - 1.0).abs() < 1e-9, "{} {by_hand}", found.flops);
    }
}

#[test]
fn the_first_round_does_not_count_and_the_median_is_in_the_middle() {
    let options = options(&["--tokens", "3", "--rounds", "2"]);
    let setting = Setting { options: &options, batch: 1, context: 4, prefill: false };
    let subjects = [subject("cpu-1m-dense", &[], None).unwrap()];
    let mut found = Found::default();
    found.add(&subjects, &setting, &Machine::new()).unwrap();
    let rates = found.results[0]["tokens_per_second"].as_array().unwrap();
    let rates: Vec<f64> = rates.iter().map(|rate| rate.as_f64().unwrap()).collect();
    assert_eq!((rates.len(), found.bandwidths.len()), (2, 2));
    let mean = (rates[0] + rates[1]) / 2.0;
    assert!((found.results[0]["median"].as_f64().unwrap() / mean - 1.0).abs() < 1e-12);
}

/// Matrices of the layers at each of their uses and the head, once a tick; of experts those that
/// rows met. By hand from the shapes of the weights.
#[test]
fn bytes_are_those_of_the_matrices_that_rows_met() {
    for name in ["cpu-1m-dense", "cpu-1m-rec3", "cpu-1m-moe"] {
        let (subject, found) = measured(name, &["--tokens", "6"], 1, 40);
        let model = &subject.model;
        // Two of eight experts are chosen.
        let mlp = model.config().mlp.settings();
        let plan = model.plan();
        let mut uses: Vec<usize> =
            plan.before.iter().chain(&plan.after).map(|at| at.stored).collect();
        plan.recursions.iter().flatten().for_each(|at| uses.push(at.stored));
        let mut bytes = model.head().e_vd.bytes();
        let mut experts = 0;
        for (spec, weight) in model.weights() {
            let ParamPlace::Layer { stored, part } = &spec.place else { continue };
            let uses = uses.iter().filter(|s| *s == stored).count();
            let all = mlp.computing_experts(*stored);
            let is_bank = all > 0 && part.name().starts_with("experts_");
            let share = if is_bank { 2.0 / all as f64 } else { 1.0 };
            experts += usize::from(is_bank);
            bytes += (uses as f64 * share * weight.bytes() as f64) as usize;
        }
        assert_eq!(experts > 0, name == "cpu-1m-moe");
        // Five rows of new tokens, one after another.
        assert_eq!(found.matrix_bytes, 5.0 * bytes as f64, "{name}");
    }
}

/// `--kv-memory` and `--kv-format` bound and shape the pages, `--coda-batch` fills the coda.
#[test]
fn pages_and_waits_are_those_that_were_asked_for() {
    let plain = measured("cpu-1m-mor3", &["--tokens", "24"], 6, 40).1;
    let with =
        |more: &[&str]| measured("cpu-1m-mor3", &[&["--tokens", "24"], more].concat(), 6, 40).1;
    let rounded = with(&["--kv-format", "bf16"]);
    assert_eq!(2 * rounded.kv_bytes, plain.kv_bytes);
    // A third of what all six need at once.
    let tight = plain.kv_bytes as f64 / f64::from(1 << 20) / 3.0;
    let tight = with(&["--kv-memory", &tight.to_string()]);
    assert!(plain.preemptions == 0 && tight.preemptions > 0, "{}", tight.preemptions);
    assert!(tight.kv_bytes < plain.kv_bytes / 2);
    // Fewer runs of the last layers, for the same rows.
    let waiting = with(&["--coda-batch", "6"]);
    assert_eq!(waiting.tokens, plain.tokens);
    assert!(waiting.matrix_bytes < plain.matrix_bytes, "{}", waiting.matrix_bytes);
}

/// In prefill the tokens are those of the prompts of all `--requests`.
#[test]
fn prefill_counts_the_prompts_and_their_depth() {
    let subject = subject("cpu-1m-mor3", &[], None).unwrap();
    let with = |more: &[&str]| {
        let options = options(more);
        let setting = Setting { options: &options, batch: 2, context: 30, prefill: true };
        setting.measure(&subject).unwrap()
    };
    let (plain, more) = (with(&[]), with(&["--requests", "5"]));
    assert_eq!((plain.tokens, more.tokens), (60, 150));
    let shallow = with(&["--max-depth", "1"]);
    assert_eq!(shallow.mean_depth, 1.0);
    assert!(plain.mean_depth > 1.2, "{}", plain.mean_depth);
}

#[test]
fn prefill_tells_what_its_prompts_held() {
    // Pages are given back in the tick that ends a prompt, before anybody can count them.
    let options = options(&[]);
    let subject = subject("cpu-1m-dense", &[], None).unwrap();
    let setting = Setting { options: &options, batch: 1, context: 40, prefill: true };
    let found = setting.measure(&subject).unwrap();
    assert_eq!(found.ticks, 1);
    let layers = subject.model.plan().unrolled().count();
    let page = ops::KvStore::page_bytes(ops::KvFormat::F32, subject.model.config().heads());
    // 40 tokens take three pages of 16 in each layer.
    assert_eq!(found.kv_bytes, 3 * layers * page);
}
