//! Conversations: the loss counts what the assistant says and nothing else, in training and in
//! scores.

mod common;

use std::path::Path;

use common::{recipe, weights};
use data::build::{BuildOptions, ChatEncoder, LearnedText, build_documents};
use data::documents::Document;
use data::{Corpus, Split, Window, Windows};
use engine::{Batch, Scoring, score};
use model::{KvMode, NoProbe, RouterConfig, Rule};
use train::{Recipe, Trainer, pack, validate};

/// A conversation is a text of words; those in capitals are the assistant's.
struct Capitals;

fn ids_of(word: &str) -> Vec<u32> {
    word.bytes().map(|byte| 1 + u32::from(byte) % 28).collect()
}

impl ChatEncoder for Capitals {
    fn learn(&self, messages: &str) -> Result<LearnedText, String> {
        let mut found = LearnedText { text_bytes: messages.len() as u64, ..LearnedText::default() };
        for word in messages.split(' ') {
            for id in ids_of(word) {
                found.ids.push(id);
                found.bytes.push(1);
                found.learned.push(word.chars().all(|c| c.is_ascii_uppercase()));
            }
        }
        Ok(found)
    }
}

/// Conversations of up to five windows.
fn conversation(i: usize) -> String {
    let turn = |k: usize| match (i * 7 + k * 3) % 4 {
        0 => ["ask", "please", "a"][(i + k) % 3].to_owned(),
        1 => "hello".to_owned(),
        2 => ["YES", "INDEED", "O"][(i * k) % 3].to_owned(),
        _ => "ANSWER".to_owned(),
    };
    (0..2 + i % 13).map(turn).chain(["END".to_owned()]).collect::<Vec<_>>().join(" ")
}

fn corpus(dir: &Path, split: Split) -> Corpus {
    let tokenizer =
        data::Tokenizer::train(std::iter::once("a".to_owned()), &data::TrainOptions::new(300))
            .expect("learns");
    let documents = (0..60).map(|i| {
        let document = Document { text: conversation(i), source: "s".into(), license: None };
        (document, split)
    });
    let options = BuildOptions { chat: Some(&Capitals), ..BuildOptions::default() };
    build_documents(documents, &tokenizer, dir, &options).expect("builds");
    Corpus::open(dir, split).expect("opens")
}

/// Ids below 300, which the folder's tokenizer has.
fn small() -> Recipe {
    let mut recipe = recipe(RouterConfig::FIXED, KvMode::RecursionWise);
    recipe.model.vocab_size = 300;
    recipe
}

/// What each row of the stream must be, from the texts alone: its id, its document, and whether it
/// is learned.
fn stream(eos: u32) -> Vec<(u32, usize, bool)> {
    let mut rows = Vec::new();
    for i in 0..60 {
        for word in conversation(i).split(' ') {
            let answer = word == word.to_uppercase();
            rows.extend(ids_of(word).into_iter().map(|id| (id, i, answer)));
        }
        rows.push((eos, i, false));
    }
    rows
}

#[test]
fn windows_say_what_is_learned() {
    let dir = tempfile::tempdir().expect("a folder");
    let corpus = corpus(dir.path(), Split::Train);
    let expected = stream(corpus.eos_id());
    assert_eq!(corpus.tokens() as usize, expected.len());
    let longest = (0..60).map(|i| expected.iter().filter(|row| row.1 == i).count()).max();
    assert!(longest > Some(48), "{longest:?}: longer than four windows");
    let learned = expected.iter().filter(|row| row.2).count() as u64;
    assert_eq!(corpus.manifest().learned(Split::Train), learned);
    assert_eq!(corpus.manifest().version, 2);
    let windows = Windows::new(&corpus, 12, 3).expect("fits");
    for i in 0..windows.len() {
        let window = windows.unshuffled(i).expect("there");
        let rows = &expected[i as usize * 12..];
        let batch = pack(std::slice::from_ref(&window), true);
        let apart = pack(std::slice::from_ref(&window), false);
        for row in 0..12 {
            let (next, same) = (rows[row + 1], rows[row].1 == rows[row + 1].1);
            assert_eq!((window.targets[row], window.learned[row]), (next.0, next.2));
            assert_eq!(batch.counts[row], next.2 && same);
            assert_eq!(apart.counts[row], next.2);
        }
    }
}

fn batch_of(windows: &Windows, change: impl Fn(&mut Window)) -> Vec<Batch> {
    let pair = |at: u64| {
        let mut pair: Vec<Window> = (at..at + 2).map(|i| windows.at(i).expect("reads")).collect();
        pair.iter_mut().for_each(&change);
        pack(&pair, true)
    };
    vec![pair(0), pair(2)]
}

#[test]
fn the_loss_is_the_mean_over_what_is_learned() {
    let dir = tempfile::tempdir().expect("a folder");
    let corpus = corpus(dir.path(), Split::Train);
    let windows = Windows::new(&corpus, 12, 3).expect("fits");
    let batches = batch_of(&windows, |_| ());
    let mut trainer = Trainer::new(&small()).expect("legal");
    let (mut sum, mut count) = (0.0, 0);
    for batch in &batches {
        let how = Scoring::by(&Rule::NonCausal, &trainer.router);
        for (row, counts) in
            score(&trainer.model, batch, &how, &mut NoProbe).iter().zip(&batch.counts)
        {
            sum += if *counts { f64::from(row.nll) } else { 0.0 };
            count += u64::from(*counts);
        }
    }
    let report = trainer.step_on(&batches).expect("finite");
    assert!(count > 5 && count < 40, "{count} of 48 rows");
    assert_eq!(report.tokens, count);
    let expected = sum / count as f64;
    assert!((report.loss - expected).abs() < 1e-5 * expected, "{} not {expected}", report.loss);
}

/// Whatever stands where nothing is learned, the step is the same, bit for bit.
#[test]
fn what_is_not_learned_has_no_gradient() {
    let dir = tempfile::tempdir().expect("a folder");
    let corpus = corpus(dir.path(), Split::Train);
    let windows = Windows::new(&corpus, 12, 3).expect("fits");
    let step = |batches: &[Batch]| {
        let mut trainer = Trainer::new(&small()).expect("legal");
        let report = trainer.step_on(batches).expect("finite");
        (report.loss, report.gradient_norm, weights(&trainer))
    };
    let plain = step(&batch_of(&windows, |_| ()));
    let other = |w: &mut Window| {
        for (target, learned) in w.targets.iter_mut().zip(&w.learned) {
            *target = if *learned { *target } else { 299 };
        }
    };
    assert_eq!(step(&batch_of(&windows, other)), plain);
    let learned = |w: &mut Window| {
        for (target, learned) in w.targets.iter_mut().zip(&w.learned) {
            *target = if *learned { 299 } else { *target };
        }
    };
    assert_ne!(step(&batch_of(&windows, learned)), plain);
    // A step in which nothing is learned moves nothing but by decay, and is finite.
    let nothing = batch_of(&windows, |w| w.learned.fill(false));
    let found = step(&nothing);
    assert_eq!((found.0, found.1), (0.0, 0.0));
}

#[test]
fn scores_count_what_is_learned() {
    let dir = tempfile::tempdir().expect("a folder");
    let corpus = corpus(dir.path(), Split::Validation);
    let windows = Windows::new(&corpus, 12, 3).expect("fits");
    let trainer = Trainer::new(&small()).expect("legal");
    let found = validate(&trainer.model, &trainer.router, &windows, 1000, 1, true).expect("reads");
    let choice = train::WindowChoice::new(windows.len(), 1000, 1);
    let rows = stream(corpus.eos_id());
    let counted = choice.scored.iter().flat_map(|i| *i as usize * 12..*i as usize * 12 + 12);
    let counted = counted.filter(|&at| rows[at + 1].2 && rows[at].1 == rows[at + 1].1).count();
    assert_eq!(found.training.all.predictions, counted as u64);
    assert_eq!(found.causal.all.bytes, counted as u64, "a byte a token");
}
