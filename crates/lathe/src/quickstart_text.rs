//! The text of `lathe quickstart`: files that were named, or the packages in Cargo.lock, as token
//! shards with something left for validation.

use std::path::{Path, PathBuf};

use anyhow::{Context, Result, ensure};
use data::build::{BuildOptions, build, build_documents};
use data::documents::Input;
use data::{Corpus, Manifest, Split, packages};
use report::{human_bytes, human_count};

use crate::{data_build, output};

/// The text that is asked for.
pub(crate) struct Texts<'a> {
    /// Folder for the shards (`data` in it) and the tokenizer.
    pub(crate) out: &'a Path,
    /// Files or folders of text; empty for the packages in Cargo.lock.
    pub(crate) input: &'a [PathBuf],
    /// Tokens of the vocabulary at most.
    pub(crate) vocab: usize,
}

/// Text to shards; a finished folder from an earlier run with the same arguments is taken as it is.
pub(crate) fn prepare(options: &Texts<'_>, sequence_length: usize) -> Result<PathBuf> {
    let dir = options.out.join("data");
    if dir.join("manifest.json").is_file() {
        let corpus = Corpus::open(&dir, Split::Train)?;
        ensure!(
            corpus.vocab_size() <= options.vocab,
            "{} was made with a vocabulary of {}, --vocab is {}: choose another --out",
            dir.display(),
            corpus.vocab_size(),
            options.vocab
        );
        if corpus.vocab_size() < options.vocab {
            output::note(format!(
                "the vocabulary of {} has {} tokens, --vocab is {}: a new --out learns another",
                dir.display(),
                corpus.vocab_size(),
                options.vocab
            ));
        }
        output::line(format!(
            "text: {} tokens already in {}",
            human_count(corpus.tokens() as f64),
            dir.display()
        ));
        fills_windows(&dir, sequence_length)?;
        return Ok(dir);
    }
    let manifest = if options.input.is_empty() {
        from_packages(options, &dir)?
    } else {
        from_files(options, &dir, sequence_length)?
    };
    output::table(&data_build::summary(&manifest, &dir));
    fills_windows(&dir, sequence_length)?;
    Ok(dir)
}

fn from_packages(options: &Texts<'_>, dir: &Path) -> Result<Manifest> {
    let here = std::env::current_dir().context("finding the current folder")?;
    let found = packages::collect(&here, 24 << 20).map_err(|error| {
        anyhow::anyhow!(
            "there is no text to learn from: give some by `lathe quickstart --input FOLDER` (or \
             `lathe compare --data` with what `lathe data build` made), or go to a checkout of \
             Lathe, whose packages are such text ({error})"
        )
    })?;
    found.save(options.out)?;
    let bytes: u64 = found.files.iter().map(|f| f.bytes).sum();
    output::line(format!(
        "text: {} files, {} of the packages this program was built from",
        found.files.len(),
        human_bytes(bytes)
    ));
    let tokenizer = data_build::tokenizer_from(found.train_texts(), options.vocab)?;
    tokenizer.save(&options.out.join("tokenizer.json"))?;
    Ok(build_documents(found.documents(), &tokenizer, dir, &BuildOptions::default())?)
}

fn from_files(options: &Texts<'_>, dir: &Path, window: usize) -> Result<Manifest> {
    let inputs: Vec<Input> = options.input.iter().cloned().map(Input::from).collect();
    let tokenizer = data_build::tokenizer_from_files(&inputs, options.vocab)?;
    tokenizer.save(&options.out.join("tokenizer.json"))?;
    let split =
        BuildOptions { valid_per_mille: 20, window: Some(window), ..BuildOptions::default() };
    let manifest = build(&inputs, &tokenizer, dir, &split)?;
    data_build::told(&manifest);
    if let Some(per_mille) = manifest.ends_per_mille {
        output::note(data_build::ends(per_mille));
    }
    Ok(manifest)
}

/// Refuses text that does not fill a window of the model on each side.
fn fills_windows(dir: &Path, window: usize) -> Result<()> {
    let manifest = Manifest::load(dir)?;
    for split in [Split::Train, Split::Validation] {
        ensure!(
            manifest.windows(split, window) > 0,
            "the text has {} tokens for {split}, expected more than {window}, one window of the \
             model: give --input more text and choose another --out, or another --preset",
            manifest.split(split).total.tokens,
        );
    }
    Ok(())
}
