//! Held-out text: which windows calibrate and which are scored, and every number of a score against
//! a plain count.

use std::collections::{BTreeMap, BTreeSet};
use std::path::Path;

use data::build::{BuildOptions, build_documents};
use data::documents::Document;
use data::{Corpus, Split, Tokenizer, TrainOptions, Windows};
use engine::{Scoring, log_probabilities};
use model::routers::expert_choice::Config as Expert;
use model::{KvMode, Model, ModelConfig, RouterConfig, RouterState, Rule, Sharing};
use train::{WindowChoice, in_chunks, pack, score_rule, validate};

/// A sentence of one of two languages that have no word in common.
fn sentence(language: usize, i: usize) -> String {
    let words =
        [["alpha", "bravo", "delta", "echo", "golf"], ["uno", "dos", "tres", "six", "zwei"]];
    let pick = |k: usize| words[language][(i * 7 + k * k + k * i) % 5];
    (0..8 + i % 5).map(pick).collect::<Vec<_>>().join(if language == 0 { " " } else { "_" })
}

/// Validation text of two sources, one after the other, the second a quarter of all.
fn corpus(dir: &Path) -> (Corpus, Tokenizer) {
    let texts: Vec<(usize, String)> =
        (0..240).map(|i| (usize::from(i >= 180), sentence(usize::from(i >= 180), i))).collect();
    let options = TrainOptions::new(300);
    let tokenizer = Tokenizer::train(texts.iter().map(|t| t.1.clone()), &options).expect("learns");
    let documents = texts.iter().map(|(language, text)| {
        let source = ["letters", "numbers"][*language].to_owned();
        (Document { text: text.clone(), source, license: None }, Split::Validation)
    });
    build_documents(documents, &tokenizer, dir, &BuildOptions::default()).expect("builds");
    (Corpus::open(dir, Split::Validation).expect("opens"), tokenizer)
}

/// A fresh model whose router tells tokens apart.
fn routed(vocab_size: usize, seed: u64) -> Model {
    let config = ModelConfig {
        vocab_size,
        width: 32,
        layers: 5,
        heads: 2,
        kv_heads: 1,
        head_dim: 16,
        ffn: 48,
        context: 32,
        sharing: Sharing::MiddleCycle,
        recursions: 3,
        router: RouterConfig::ExpertChoice(Expert::default()),
        kv: KvMode::RecursionWise,
        init_std: 0.2,
        ..ModelConfig::default()
    };
    Model::fresh(&config, seed).expect("legal")
}

#[test]
fn windows_that_calibrate_come_from_everywhere_and_are_not_scored() {
    for (windows, score, calibrate) in
        [(1, 5, 3), (2, 5, 3), (3, 1, 1), (10, 100, 4), (97, 20, 30), (1000, 64, 32), (40, 0, 7)]
    {
        let choice = WindowChoice::new(windows, score, calibrate);
        let case = format!("{windows} windows, {score} scored, {calibrate} calibrate: {choice:?}");
        let (held, scored): (BTreeSet<u64>, BTreeSet<u64>) =
            (choice.calibrated.iter().copied().collect(), choice.scored.iter().copied().collect());
        let most = calibrate.min((windows / 2).max(1));
        assert_eq!(held.len() as u64, most, "{case}");
        assert_eq!(held.len(), choice.calibrated.len(), "{case}");
        assert!(held.iter().chain(&scored).all(|&i| i < windows), "{case}");
        if windows > 1 {
            assert!(held.is_disjoint(&scored), "{case}");
            assert_eq!(scored.len() as u64, score.clamp(1, windows - most), "{case}");
        }
        // One in each of as many equal stretches.
        let stretch = windows as f64 / most as f64;
        for (i, &at) in choice.calibrated.iter().enumerate() {
            let place = at as f64 / stretch;
            assert!(i as f64 <= place + 1e-9 && place < (i + 1) as f64, "{case}");
        }
    }
    let none = WindowChoice::new(50, 10, 0);
    assert!(none.calibrated.is_empty());
    assert_eq!(none.scored, (0..10).map(|i| i * 5).collect::<Vec<u64>>());
}

/// As many windows as have 4096 rows together, and at least one.
#[test]
fn passes_of_a_validation_have_a_bound() {
    let dir = tempfile::tempdir().expect("a folder");
    let (corpus, _) = corpus(dir.path());
    for (length, count, expected) in [
        (30, 300, vec![136, 136, 28]),
        (1024, 5, vec![4, 1]),
        (2048, 3, vec![2, 1]),
        (2049, 3, vec![1, 1, 1]),
    ] {
        let windows = Windows::new(&corpus, length, 0).expect("long enough");
        let chunks = in_chunks(&windows, &vec![0; count]).expect("readable windows");
        assert_eq!(chunks.iter().map(Vec::len).collect::<Vec<_>>(), expected, "{length} rows");
        let beyond = in_chunks(&windows, &[windows.len()]).expect_err("none").to_string();
        assert!(beyond.contains("window index"), "{beyond}");
    }
}

#[test]
fn a_calibrated_rule_keeps_the_capacity_on_other_text() {
    let dir = tempfile::tempdir().expect("a folder");
    let (corpus, tokenizer) = corpus(dir.path());
    let windows = Windows::new(&corpus, 32, 0).expect("long enough");
    for seed in 0..4 {
        let model = routed(tokenizer.vocab_size(), seed);
        let found = validate(&model, &RouterState::default(), &windows, 60, 12, true)
            .expect("readable windows");
        let found_depth = found.causal.mean_depth();
        // Capacities 1, 2/3 and 1/3.
        assert!((found_depth - 2.0).abs() < 0.1, "seed {seed}: mean depth {found_depth}");
        assert_eq!(found.causal.depths.iter().sum::<u64>(), 32 * found.windows);
        // It is scored by the rule that a checkpoint keeps, which is not the rule of training.
        let (rule, state) = (found.rule.as_ref().expect("calibrated"), RouterState::default());
        let choice = WindowChoice::new(windows.len(), 60, 12);
        let chunks = in_chunks(&windows, &choice.scored).expect("readable windows");
        let how = Scoring::by(rule, &state);
        let (alone, _) = score_rule(&model, &windows, &chunks, true, &how);
        assert_eq!(alone, found.causal, "seed {seed}");
        assert!(found.disagreement > 0.0 && found.causal != found.training, "seed {seed}");
    }
}

/// Sums of one source, counted one prediction at a time.
#[derive(Default)]
struct Count {
    predictions: u64,
    bytes: u64,
    nll: f64,
}

#[test]
fn scores_are_what_a_plain_count_gives() {
    let dir = tempfile::tempdir().expect("a folder");
    let (corpus, tokenizer) = corpus(dir.path());
    let windows = Windows::new(&corpus, 30, 0).expect("long enough");
    let (model, state) = (routed(tokenizer.vocab_size(), 9), RouterState::default());
    let choice = WindowChoice::new(windows.len(), 25, 8);
    let chunks = in_chunks(&windows, &choice.scored).expect("readable windows");
    let how = Scoring::by(&Rule::NonCausal, &state);
    for mask in [true, false] {
        let (found, rows) = score_rule(&model, &windows, &chunks, mask, &how);
        let (mut all, mut sources) = (Count::default(), BTreeMap::<&str, Count>::new());
        let eos = corpus.eos_id();
        for window in chunks.iter().flatten() {
            let batch = pack(std::slice::from_ref(window), mask);
            let log = log_probabilities(&model, &batch, &how);
            for t in 0..30 {
                let (input, target) = (window.ids[t], window.targets[t]);
                if mask && input == eos {
                    continue;
                }
                let text = if target == eos {
                    String::new()
                } else {
                    tokenizer.decode(&[target]).expect("a token")
                };
                let name = corpus.sources()[usize::from(window.source[t])].as_str();
                for count in [&mut all, sources.entry(name).or_default()] {
                    count.predictions += 1;
                    count.bytes += text.len() as u64;
                    count.nll -= f64::from(log[t * tokenizer.vocab_size() + target as usize]);
                }
            }
        }
        assert_eq!(rows.len(), 30 * choice.scored.len());
        assert_eq!(
            found.sources.keys().map(String::as_str).collect::<Vec<_>>(),
            ["letters", "numbers"]
        );
        let named = sources.iter().map(|(name, count)| (count, &found.sources[*name]));
        for (count, score) in named.chain([(&all, &found.all)]) {
            assert_eq!((score.predictions, score.bytes), (count.predictions, count.bytes));
            let mean = count.nll / count.predictions as f64;
            assert!((score.nll - mean).abs() < 1e-5 * mean, "{} for {mean}", score.nll);
            let bits = count.nll / 2f64.ln() / count.bytes as f64;
            assert!((score.bits_per_byte - bits).abs() < 1e-5 * bits, "{bits}");
            assert!((score.perplexity() - mean.exp()).abs() < 1e-4 * mean.exp());
        }
        assert!(all.bytes > 1000);
    }
}
