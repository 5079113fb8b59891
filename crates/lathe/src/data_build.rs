//! `lathe tokenizer train` and `lathe data build`.

use std::collections::BTreeMap;
use std::path::Path;
use std::process::ExitCode;

use anyhow::{Context, Result, anyhow, ensure};
use data::build::{BuildOptions, ChatEncoder, Progress, SplitBy, build as build_shards};
use data::documents::{Documents, FoundFiles, Input, ReadOptions, list_files};
use data::{Manifest, SpecialTokens, Split, Tokenizer, TrainOptions};
use indicatif::ProgressBar;
use report::{Table, human_bytes, human_count};
use server::Conversations;

use crate::arguments::{DataBuild, TokenizerTrain};
use crate::progress::bar;
use crate::{conversation, open, output, render_templates};

/// Runs `lathe tokenizer train`.
pub(crate) fn train_tokenizer(options: &TokenizerTrain) -> Result<ExitCode> {
    let out = options.out.display();
    ensure!(
        !options.out.metadata().is_ok_and(|found| found.is_file()),
        "{out} is there already: choose another --out, or remove it"
    );
    let read = ReadOptions {
        text_field: options.text_field.clone(),
        skip_bad: options.skip_bad,
        max_row: options.max_row,
        ..Default::default()
    };
    let inputs: Vec<Input> = options.input.iter().cloned().map(Input::from).collect();
    let FoundFiles { files, others } = list_files(&inputs, &read)?;
    ensure!(
        !files.is_empty(),
        "--input holds no file that can be read: give text, Markdown, JSONL or Parquet"
    );
    let bar = bar(files.len() as u64, "files");
    let mut documents = Documents::new(files, read);
    let wanted = TrainOptions { max_bytes: options.max_bytes, ..TrainOptions::new(options.vocab) };
    let trained = learn(&mut documents, &wanted, |documents| {
        bar.set_position(documents.files_opened() as u64)
    });
    bar.finish_and_clear();
    let tokenizer = trained?;
    tokenizer.save(&options.out)?;
    output::line(format!(
        "{} tokens, sha256 {}: {}",
        tokenizer.vocab_size(),
        tokenizer.sha256(),
        options.out.display()
    ));
    if tokenizer.vocab_size() < options.vocab {
        output::note(format!(
            "{} tokens instead of the {} of --vocab: no more pairs repeat within the words of this \
             text; give more text, or ask for fewer",
            tokenizer.vocab_size(),
            options.vocab
        ));
    }
    passed_over(&others, documents.blank(), documents.skipped(), documents.skipped_examples());
    Ok(ExitCode::SUCCESS)
}

/// Runs `lathe data build`.
pub(crate) fn build(options: &DataBuild) -> Result<ExitCode> {
    let (tokenizer, special) = open::tokenizer(&options.tokenizer)?;
    let end = end_of_documents(options, &special, &tokenizer)?;
    let begin = special.begin().filter(|_| !options.chat);
    let conversations = match options.chat {
        true => Some(conversations(options, tokenizer.clone(), special)?),
        false => None,
    };
    let mut inputs: Vec<Input> = options.input.iter().cloned().map(Input::from).collect();
    for path in &options.validation {
        inputs.push(Input { path: path.clone(), split: Some(Split::Validation) });
    }
    let usual = if options.chat { "messages" } else { "text" };
    let mut read = ReadOptions {
        text_field: options.text_field.clone().unwrap_or_else(|| usual.to_owned()),
        messages: options.chat,
        skip_bad: options.skip_bad,
        max_row: options.max_row,
        ..Default::default()
    };
    if options.chat {
        // Plain text has no rows.
        read.extensions.clear();
    }
    let bar = bar(0, "files");
    let manifest = build_shards(
        &inputs,
        &tokenizer,
        &options.out,
        &BuildOptions {
            read,
            valid_per_mille: options.valid_per_mille,
            split_by: if options.split_by_file { SplitBy::File } else { SplitBy::Content },
            window: Some(options.sequence_length),
            chat: conversations.as_ref().map(|chat| chat as &dyn ChatEncoder),
            begin,
            end,
            progress: Some(&|progress| advance(&bar, &progress)),
            ..BuildOptions::default()
        },
    );
    bar.finish_and_clear();
    let manifest = manifest?;
    output::table(&summary(&manifest, &options.out));
    output::line(sides(&manifest, options));
    told(&manifest);
    for split in [Split::Train, Split::Validation] {
        if manifest.windows(split, options.sequence_length) == 0 {
            output::note(format!(
                "{split} has {} tokens, expected more than {}, so that there is a window to {}: \
                 give more text, a smaller --sequence-length, or another --valid-per-mille; \
                 `lathe train` takes this folder with shorter windows only",
                manifest.split(split).total.tokens,
                options.sequence_length,
                if split == Split::Train { "learn from" } else { "validate on" }
            ));
        }
    }
    Ok(ExitCode::SUCCESS)
}

/// The token behind each document: the one that is named, or what the model says.
fn end_of_documents(
    options: &DataBuild,
    special: &SpecialTokens,
    tokenizer: &Tokenizer,
) -> Result<Option<u32>> {
    let Some(name) = &options.eos else { return Ok(special.document_end(tokenizer)) };
    let id = tokenizer.token_to_id(name);
    let id = id.with_context(|| format!("--eos is {name}, expected a token of the vocabulary"))?;
    Ok(Some(id))
}

/// What makes text of conversations: the template that was named, or the checkpoint's.
fn conversations(
    options: &DataBuild,
    tokenizer: Tokenizer,
    special: SpecialTokens,
) -> Result<Conversations> {
    let template = options.chat_template.as_deref();
    let text = conversation::chat_text(&options.tokenizer, special, tokenizer, template)?;
    Conversations::to_learn(text, &render_templates::program()).map_err(|error| anyhow!(error))
}

/// How much each side got, and how the documents came there.
fn sides(manifest: &Manifest, options: &DataBuild) -> String {
    let side = |split| {
        let (total, length) = (manifest.split(split).total, options.sequence_length);
        let windows = manifest.windows(split, length);
        let learned = match options.chat {
            true => format!(" ({} learned)", human_count(manifest.learned(split) as f64)),
            false => String::new(),
        };
        let tokens = human_count(total.tokens as f64);
        format!("{split} {tokens} tokens{learned}, {windows} windows of {length}")
    };
    let how = match (manifest.ends_per_mille, manifest.raised_per_mille) {
        (Some(per_mille), _) => ends(per_mille),
        (None, Some(per_mille)) => format!(
            "whole conversations, {} % for validation, since fewer would not fill a window",
            f64::from(per_mille) / 10.0
        ),
        _ if options.split_by_file => "whole files, by their names".to_owned(),
        _ if options.chat => "whole conversations, by their text".to_owned(),
        _ => "whole documents, by their text".to_owned(),
    };
    format!("{}; {}; split: {how}", side(Split::Train), side(Split::Validation))
}

/// That documents were cut, and why.
pub(crate) fn ends(per_mille: u32) -> String {
    format!(
        "too few documents to set whole ones apart: validation takes the last {} % of each",
        f64::from(per_mille) / 10.0
    )
}

/// What was left out of a folder, aloud.
pub(crate) fn told(manifest: &Manifest) {
    let (rows, examples) = (manifest.skipped_rows, &manifest.skipped_examples);
    passed_over(&manifest.other_files, manifest.blank_rows, rows, examples);
}

/// Documents, tokens and bytes by split and source.
pub(crate) fn summary(manifest: &Manifest, dir: &Path) -> Table {
    let mut rows = Vec::new();
    for split in [Split::Train, Split::Validation] {
        for (source, totals) in manifest.sources.iter().zip(&manifest.split(split).by_source) {
            rows.push(vec![
                split.to_string(),
                source.clone(),
                totals.documents.to_string(),
                human_count(totals.tokens as f64),
                human_bytes(totals.bytes),
            ]);
        }
    }
    let columns = ["split", "source", "documents", "tokens", "text"].map(str::to_owned).to_vec();
    Table { columns, rows, caption: dir.display().to_string(), best: None }
}

fn advance(bar: &ProgressBar, progress: &Progress) {
    bar.set_length(progress.files_total as u64);
    bar.set_position(progress.files as u64);
    bar.set_message(format!("{} tokens", human_count(progress.done.tokens as f64)));
}

fn passed_over(files: &BTreeMap<String, u64>, blank: u64, rows: u64, examples: &[String]) {
    if !files.is_empty() {
        let kinds = files.iter().map(|(ending, count)| match ending.as_str() {
            "" => format!("{count} without an ending"),
            ending => format!("{count} {ending}"),
        });
        let kinds = kinds.collect::<Vec<_>>().join(", ");
        let count: u64 = files.values().sum();
        output::note(format!("passed over {count} files of kinds that are not read: {kinds}"));
    }
    if blank > 0 {
        output::note(format!("passed over {blank} blank documents"));
    }
    if rows > 0 {
        output::note(format!("passed over {rows} bad rows, such as: {}", examples.join("; ")));
    }
}

/// Trains a tokenizer on all `documents`; `seen` is told after each.
fn learn(
    documents: &mut Documents,
    options: &TrainOptions,
    seen: impl Fn(&Documents),
) -> Result<Tokenizer> {
    let (mut failure, mut count) = (None, 0_u64);
    let texts = std::iter::from_fn(|| match documents.next()? {
        Ok((_, document)) => {
            count += 1;
            seen(documents);
            Some(document.text)
        }
        Err(error) => {
            failure = Some(error);
            None
        }
    });
    let trained = Tokenizer::train(texts, options);
    if let Some(error) = failure {
        return Err(error.into());
    }
    let tokenizer = trained.context("training the tokenizer")?;
    ensure!(
        count > 0,
        "--input holds no text: {} blank documents and {} bad rows, expected at least one document \
         that is not blank",
        documents.blank(),
        documents.skipped()
    );
    Ok(tokenizer)
}

/// The quickstart's tokenizer: sixteen megabytes are enough to learn from.
fn quick(vocab: usize) -> TrainOptions {
    TrainOptions { max_bytes: Some(16 << 20), ..TrainOptions::new(vocab) }
}

/// The quickstart's tokenizer from texts at hand.
pub(crate) fn tokenizer_from(
    texts: impl Iterator<Item = String>,
    vocab: usize,
) -> Result<Tokenizer> {
    Tokenizer::train(texts, &quick(vocab)).context("training the tokenizer")
}

/// The quickstart's tokenizer from files.
pub(crate) fn tokenizer_from_files(inputs: &[Input], vocab: usize) -> Result<Tokenizer> {
    let read = ReadOptions::default();
    learn(&mut Documents::new(list_files(inputs, &read)?.files, read), &quick(vocab), |_| {})
}
