//! The text of `lathe quickstart`: files that were named, or the packages in Cargo.lock, as token
//! shards with something left for validation.

use std::path::{Path, PathBuf};

use anyhow::{Context, Result, ensure};
use data::build::{BuildOptions, build, build_documents, split_of};
use data::documents::{Document, Documents, Input, list_files};
use data::{Corpus, Split, Tokenizer, packages};
use report::{human_bytes, human_count};

use crate::arguments::Quickstart;
use crate::{data_build, output};

/// Text to shards; a finished folder from an earlier run with the same arguments is taken as it is.
pub(crate) fn prepare(options: &Quickstart, sequence_length: usize) -> Result<PathBuf> {
    let dir = options.out.join("data");
    if dir.join("manifest.json").is_file() {
        let corpus = Corpus::open(&dir, Split::Train)?;
        ensure!(
            corpus.vocab_size() == options.vocab,
            "{} was made with a vocabulary of {}, --vocab is {}: choose another --out",
            dir.display(),
            corpus.vocab_size(),
            options.vocab
        );
        output::line(format!(
            "text: {} tokens already in {}",
            human_count(corpus.tokens() as f64),
            dir.display()
        ));
        return Ok(dir);
    }
    let manifest = if options.input.is_empty() {
        from_packages(options, &dir)?
    } else {
        from_files(options, &dir, sequence_length)?
    };
    output::table(&data_build::summary(&manifest, &dir));
    Ok(dir)
}

fn from_packages(options: &Quickstart, dir: &Path) -> Result<data::Manifest> {
    let here = std::env::current_dir().context("finding the current folder")?;
    let found = packages::collect(&here, 24 << 20).context(
        "collecting the text of the packages in Cargo.lock; \
         outside a checkout of Lathe, give --input FOLDER with text",
    )?;
    found.save(&options.out)?;
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

fn from_files(options: &Quickstart, dir: &Path, window: usize) -> Result<data::Manifest> {
    let inputs: Vec<Input> = options.input.iter().cloned().map(Input::from).collect();
    let tokenizer = data_build::tokenizer_from_files(&inputs, options.vocab)?;
    tokenizer.save(&options.out.join("tokenizer.json"))?;
    let split = BuildOptions { valid_per_mille: 20, ..BuildOptions::default() };
    if fills_a_window(&inputs, &tokenizer, &split, window)? {
        return Ok(build(&inputs, &tokenizer, dir, &split)?);
    }
    output::note(
        "too few documents to set whole ones apart: validation takes the last tenth of each",
    );
    let documents = Documents::new(list_files(&inputs, &split.read)?, split.read.clone());
    let documents: Vec<Document> =
        documents.map(|next| Ok(next?.1)).collect::<Result<_, data::DataError>>()?;
    let parts: Vec<_> = documents.into_iter().flat_map(ends_apart).collect();
    let mut tokens = 0;
    for (part, _) in parts.iter().filter(|(_, split)| *split == Split::Validation) {
        tokens += tokenizer.encode(&part.text)?.len();
    }
    ensure!(
        tokens > window,
        "the last tenth of the text has {tokens} tokens, expected more than {window}, one window \
         of the model: give --input more text, or another --preset",
    );
    Ok(build_documents(parts, &tokenizer, dir, &split)?)
}

/// Whether the documents that `split` sets apart for validation have more than `window` tokens,
/// so that there is something to predict in each place of a window.
fn fills_a_window(
    inputs: &[Input],
    tokenizer: &Tokenizer,
    split: &BuildOptions<'_>,
    window: usize,
) -> Result<bool> {
    let mut tokens = 0;
    for next in Documents::new(list_files(inputs, &split.read)?, split.read.clone()) {
        let (_, document) = next?;
        if split_of(document.text.as_bytes(), split.valid_per_mille) == Split::Validation {
            tokens += tokenizer.encode(&document.text)?.len();
        }
        if tokens > window {
            return Ok(true);
        }
    }
    Ok(false)
}

/// A document as one for training and, from its last tenth, one for validation. The cut is at the
/// end of a line where one is near. A part that would be blank is left out.
fn ends_apart(document: Document) -> impl Iterator<Item = (Document, Split)> {
    let text = &document.text;
    let wanted = text.len() - text.len() / 10;
    let cut = text.floor_char_boundary(wanted);
    // Not further back than the tenth before.
    let near = text.floor_char_boundary(cut - cut / 10);
    let cut = text[near..cut].rfind('\n').map_or(cut, |at| near + at + 1);
    let (head, tail) = text.split_at(cut);
    let parts = [(head.to_owned(), Split::Train), (tail.to_owned(), Split::Validation)];
    parts
        .into_iter()
        .filter(|(text, _)| !text.trim().is_empty())
        .map(move |(text, split)| (Document { text, ..document.clone() }, split))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn parts(text: &str) -> Vec<(String, Split)> {
        let document = Document { source: "s".to_owned(), license: None, text: text.to_owned() };
        ends_apart(document).map(|(document, split)| (document.text, split)).collect()
    }

    #[test]
    fn the_last_tenth_goes_to_validation() {
        let lines = "a line of text\n".repeat(40);
        let found = parts(&lines);
        assert_eq!(
            found.iter().map(|(_, split)| *split).collect::<Vec<_>>(),
            [Split::Train, Split::Validation]
        );
        assert_eq!(found[0].0.clone() + &found[1].0, lines);
        assert!(found[0].0.ends_with('\n') && found[1].0.len() >= lines.len() / 10);
        assert!(found[1].0.len() < lines.len() / 4, "{}", found[1].0.len());
    }

    #[test]
    fn characters_stay_whole_and_blank_parts_go() {
        let text = "\u{4e2d}".repeat(31);
        assert_eq!(parts(&text).into_iter().map(|(part, _)| part).collect::<String>(), text);
        assert_eq!(parts("abc"), [("abc".to_owned(), Split::Train)]);
    }
}
