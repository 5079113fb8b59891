//! The text of `lathe shrink` as rows: those that passes look at, and others to measure on.

use std::path::Path;

use anyhow::{Context, Result, ensure};
use data::{Corpus, Split, Tokenizer, Window, Windows};
use shrink::{Calibration, HeldOut};
use train::{Stored, pack};

use crate::{open, output};

/// Rows of a pass of the model at most, unless one window is longer.
const ROWS_OF_A_PASS: usize = 4096;

/// How much of a text is looked at and measured on.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Amounts {
    /// Tokens that passes look at, at most.
    pub(crate) rows: usize,
    /// Windows that results are measured on, at most a quarter of a file's.
    pub(crate) windows: u64,
    /// Tokens of a window; `None` for those of the run, or 256, or the model's context.
    pub(crate) sequence_length: Option<usize>,
    /// What the caller calls `rows`, `sequence_length` and the text.
    pub(crate) names: [&'static str; 3],
}

/// What `--text` gives: windows at equal distances over all of it.
pub(crate) fn calibration(path: &Path, amounts: Amounts, stored: &Stored) -> Result<Calibration> {
    let config = stored.model.config();
    let trained = stored.recipe.as_ref().map(|recipe| recipe.data.sequence_length);
    let usual = trained.unwrap_or(256).min(config.context);
    let length = amounts.sequence_length.unwrap_or(usual);
    let [rows_name, length_name, text_name] = amounts.names;
    ensure!(
        length >= 1 && length <= config.context,
        "{length_name} is {length}, expected between 1 and the model's context {}",
        config.context
    );
    ensure!(
        amounts.rows >= length,
        "{rows_name} is {}, expected at least {length}, the tokens of one window",
        amounts.rows
    );
    let json = stored.tokenizer.as_deref().with_context(|| {
        format!(
            "the checkpoint has no tokenizer.json, which {text_name} needs: use one that has it"
        )
    })?;
    let tokenizer = Tokenizer::from_json(std::str::from_utf8(json).context("tokenizer.json")?)
        .context("tokenizer.json of the checkpoint")?;
    let (seen, held) = if path.is_dir() {
        of_folder(path, amounts, length, &tokenizer)?
    } else {
        of_file(path, amounts, length, &tokenizer)?
    };
    if held.is_empty() && amounts.windows > 0 {
        output::note(format!(
            "{} is too short to measure on: bits per byte are left out",
            path.display()
        ));
    }
    let each = (ROWS_OF_A_PASS / length).max(1);
    let mask = stored.recipe.as_ref().is_none_or(|recipe| recipe.data.document_mask);
    let held = held.chunks(each).map(|windows| HeldOut {
        batch: pack(windows, mask),
        bytes: windows.iter().flat_map(|window| window.bytes.iter().copied()).collect(),
    });
    let batches = seen.chunks(each).map(|windows| pack(windows, mask)).collect();
    Ok(Calibration { batches, held: held.collect() })
}

/// `count` of `all` at equal distances.
fn spread(all: &[u64], count: u64) -> Vec<u64> {
    let (n, count) = (all.len() as u64, count.min(all.len() as u64));
    (0..count).map(|i| all[(i * n / count) as usize]).collect()
}

/// Windows of the training text to look at, and of the validation text to measure on.
fn of_folder(
    path: &Path,
    amounts: Amounts,
    length: usize,
    tokenizer: &Tokenizer,
) -> Result<(Vec<Window>, Vec<Window>)> {
    let seen = windows(path, (Split::Train, (amounts.rows / length) as u64), length, tokenizer)?;
    let held = windows(path, (Split::Validation, amounts.windows), length, tokenizer)?;
    Ok((seen, held))
}

/// So many windows of one split of a data folder, at equal distances.
fn windows(
    path: &Path,
    (split, count): (Split, u64),
    length: usize,
    tokenizer: &Tokenizer,
) -> Result<Vec<Window>> {
    let corpus =
        Corpus::open(path, split).with_context(|| format!("opening {}", path.display()))?;
    ensure!(
        corpus.tokenizer_sha256() == tokenizer.sha256(),
        "{} was tokenized with another tokenizer (sha256 {}) than the checkpoint's ({}): \
         build the data with the checkpoint's, or give a text file",
        path.display(),
        corpus.tokenizer_sha256(),
        tokenizer.sha256()
    );
    if split == Split::Validation && corpus.tokens() <= length as u64 {
        return Ok(Vec::new());
    }
    let all = Windows::new(&corpus, length, 0)?;
    let numbers: Vec<u64> = (0..all.len()).collect();
    let chosen = spread(&numbers, count);
    Ok(chosen.into_iter().map(|i| all.unshuffled(i)).collect::<Result<_, _>>()?)
}

/// Windows of a text file: a quarter at most is measured on, and never looked at.
fn of_file(
    path: &Path,
    amounts: Amounts,
    length: usize,
    tokenizer: &Tokenizer,
) -> Result<(Vec<Window>, Vec<Window>)> {
    let (ids, bytes) = tokenizer.encode_counting(&open::text_file(path)?)?;
    let count = (ids.len().saturating_sub(1) / length) as u64;
    ensure!(
        count > 0,
        "{} has {} tokens, too few for a window of {length}: give more text, or a smaller \
         --sequence-length",
        path.display(),
        ids.len()
    );
    let window = |index: u64| {
        let first = index as usize * length;
        Window {
            ids: ids[first..first + length].to_vec(),
            targets: ids[first + 1..=first + length].to_vec(),
            document: vec![0; length],
            target_same_document: vec![true; length],
            learned: vec![true; length],
            source: vec![0; length],
            bytes: bytes[first + 1..=first + length].to_vec(),
            index,
            epoch: 0,
        }
    };
    let all: Vec<u64> = (0..count).collect();
    let held = spread(&all, amounts.windows.min(count / 4));
    let rest: Vec<u64> = all.into_iter().filter(|i| !held.contains(i)).collect();
    let seen = spread(&rest, (amounts.rows / length) as u64);
    Ok((seen.into_iter().map(window).collect(), held.into_iter().map(window).collect()))
}
