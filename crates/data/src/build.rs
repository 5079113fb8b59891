//! Builds a data folder: tokenizes documents in parallel, splits them and writes shards, with a
//! manifest last.

use crate::documents::{Document, Documents, FoundFiles, Input, ReadOptions, list_files};
use crate::loss_mask::LossMaskWriter;
use crate::manifest::{
    MAX_SOURCES, Manifest, ShardEntry, Split, SplitEntry, TOKEN_BYTES, TOKENIZER, Totals, VERSION,
    VERSION_WITH_MASKS,
};
use crate::shard::ShardWriter;
use crate::text_bytes::TextBytesWriter;
use crate::tokenizer::{Tokenizer, hex};
use crate::{DataError, folder};
use files::FolderLock;
use rayon::prelude::*;
use sha2::{Digest, Sha256};
use std::collections::{BTreeMap, HashMap};
use std::path::{Path, PathBuf};
use std::sync::Arc;

mod encoded;
mod ends;

use encoded::{Around, Encoded};
pub use encoded::{ChatEncoder, LearnedText};
use ends::{Cut, cut, parts};

const BATCH_BYTES: usize = 8 << 20;

/// What decides the split of a document.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum SplitBy {
    /// SHA-256 of its text: equal texts always share a split.
    Content,
    /// SHA-256 of its file's path below the input: a file is never torn apart.
    File,
}

/// How far a build has come.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Progress {
    /// Input files opened so far.
    pub files: usize,
    /// Files in all; 0 where documents do not come from files.
    pub files_total: usize,
    /// Documents, tokens and bytes written.
    pub done: Totals,
}

/// How a data folder is built.
#[derive(Clone)]
pub struct BuildOptions<'a> {
    /// How documents are read.
    pub read: ReadOptions,
    /// Of 1000 documents (or files), how many are for validation.
    pub valid_per_mille: u32,
    /// What decides the split.
    pub split_by: SplitBy,
    /// Where documents that are drawn whole leave less than a window of so many tokens on a side,
    /// and one to predict, validation is taken from the end of each document instead. `None`, and
    /// a split by file, leave documents whole.
    pub window: Option<usize>,
    /// Where rows hold conversations: what makes ids of them. `None` for text.
    pub chat: Option<&'a dyn ChatEncoder>,
    /// The token before each document, where the model is given one before every text. Chats have
    /// it from their template.
    pub begin: Option<u32>,
    /// The token behind each document. `None` for the tokenizer's end of text.
    pub end: Option<u32>,
    /// A shard is closed once it holds this many tokens.
    pub shard_tokens: u64,
    /// Called after each batch.
    pub progress: Option<&'a dyn Fn(Progress)>,
}

impl Default for BuildOptions<'_> {
    fn default() -> Self {
        BuildOptions {
            read: ReadOptions::default(),
            valid_per_mille: 10,
            split_by: SplitBy::Content,
            window: None,
            chat: None,
            begin: None,
            end: None,
            shard_tokens: 64 << 20,
            progress: None,
        }
    }
}

/// The split of something with these bytes: the first 8 bytes of its SHA-256, big-endian, modulo
/// 1000, against the share of validation.
pub fn split_of(bytes: &[u8], valid_per_mille: u32) -> Split {
    let digest = Sha256::digest(bytes);
    let number = digest[..8].iter().fold(0u64, |n, &b| n << 8 | u64::from(b));
    if number % 1000 < u64::from(valid_per_mille) { Split::Validation } else { Split::Train }
}

/// Builds a data folder from files and folders. The same inputs give the same bytes on any number
/// of threads.
///
/// # Errors
/// Unreadable inputs or rows, a tokenizer without an end-of-text token, a folder that holds
/// anything but an unfinished build, another process that builds there.
pub fn build(
    inputs: &[Input],
    tokenizer: &Tokenizer,
    dir: &Path,
    options: &BuildOptions<'_>,
) -> Result<Manifest, DataError> {
    let FoundFiles { files, others } = list_files(inputs, &options.read)?;
    let mut builder = Builder::new(dir, tokenizer, options)?;
    let cut = cut(&files, tokenizer, options)?;
    let mut documents = Documents::new(files, options.read.clone());
    builder.progress.files_total = documents.files().len();
    while let Some(next) = documents.next() {
        let (file, document) = next?;
        let file = &documents.files()[file];
        let by_file = (options.split_by == SplitBy::File)
            .then(|| split_of(file.relative.as_bytes(), options.valid_per_mille));
        let given = file.split.or(by_file);
        let path: Arc<Path> = Arc::from(file.path.as_path());
        builder.progress.files = documents.files_opened();
        for (part, split) in parts(document, given, cut) {
            let origin = Origin { path: path.clone(), row: documents.row() };
            for error in builder.push(part, split, Some(origin))? {
                documents.left_out(error).map_or(Ok(()), Err)?;
            }
        }
    }
    for error in builder.flush()? {
        documents.left_out(error).map_or(Ok(()), Err)?;
    }
    builder.manifest.skipped_rows = documents.skipped();
    builder.manifest.skipped_examples = documents.skipped_examples().to_vec();
    builder.manifest.blank_rows = documents.blank();
    builder.manifest.other_files = others;
    builder.manifest.ends_per_mille = match cut {
        Cut::Whole(_) => None,
        Cut::Ends(per_mille) => Some(per_mille),
    };
    builder.manifest.raised_per_mille = match cut {
        Cut::Whole(drawn) if drawn != options.valid_per_mille => Some(drawn),
        _ => None,
    };
    builder.finish()
}

/// Builds a data folder from documents that carry their split.
///
/// # Errors
/// As [`build`].
pub fn build_documents(
    documents: impl IntoIterator<Item = (Document, Split)>,
    tokenizer: &Tokenizer,
    dir: &Path,
    options: &BuildOptions<'_>,
) -> Result<Manifest, DataError> {
    let mut builder = Builder::new(dir, tokenizer, options)?;
    for (document, split) in documents {
        only_bad(builder.push(document, split, None)?)?;
    }
    only_bad(builder.flush()?)?;
    builder.finish()
}

/// Refuses options that mean nothing.
fn check(options: &BuildOptions<'_>) -> Result<(), DataError> {
    if options.valid_per_mille > 1000 {
        return Err(DataError::argument("valid_per_mille", "0 to 1000", options.valid_per_mille));
    }
    if options.shard_tokens == 0 {
        return Err(DataError::argument("shard_tokens", "at least 1", 0));
    }
    Ok(())
}

/// The first of the documents that cannot be encoded, where none may be left out.
fn only_bad(errors: Vec<DataError>) -> Result<(), DataError> {
    errors.into_iter().next().map_or(Ok(()), Err)
}

/// Where a document comes from, for errors about it.
struct Origin {
    path: Arc<Path>,
    row: u64,
}

/// A shard that is being written.
struct OpenShard {
    /// Its name in the folder.
    file: String,
    ids: ShardWriter,
    /// Bytes of text of each token, where the tokenizer's ids do not say them.
    bytes: Option<TextBytesWriter>,
    /// Which tokens are learned, where not all are.
    mask: Option<LossMaskWriter>,
}

impl OpenShard {
    fn create(
        dir: &Path,
        file: String,
        tokenizer: &Tokenizer,
        masked: bool,
    ) -> Result<Self, DataError> {
        let path = dir.join(&file);
        let ids = ShardWriter::create(&path, tokenizer.vocab_size())?;
        let counts = !tokenizer.spells_its_text();
        let bytes = counts.then(|| TextBytesWriter::create(&path)).transpose()?;
        let mask = masked.then(|| LossMaskWriter::create(&path)).transpose()?;
        Ok(Self { file, ids, bytes, mask })
    }
}

struct Builder<'a> {
    tokenizer: &'a Tokenizer,
    dir: PathBuf,
    options: &'a BuildOptions<'a>,
    around: Around,
    source_numbers: HashMap<String, usize>,
    manifest: Manifest,
    /// The open shards of train and validation.
    open: [Option<OpenShard>; 2],
    batch: Vec<(Document, Split, Option<Origin>)>,
    batch_bytes: usize,
    progress: Progress,
    _lock: FolderLock,
}

impl<'a> Builder<'a> {
    fn new(
        dir: &Path,
        tokenizer: &'a Tokenizer,
        options: &'a BuildOptions<'a>,
    ) -> Result<Self, DataError> {
        check(options)?;
        let around = Around::of(tokenizer, options)?;
        let lock = folder::begin(dir)?;
        let token_bytes: Vec<u8> =
            tokenizer.token_bytes().into_iter().flat_map(u32::to_le_bytes).collect();
        let path = dir.join(TOKEN_BYTES);
        files::write_whole(&path, &token_bytes).map_err(DataError::io("write", &path))?;
        tokenizer.save(&dir.join(TOKENIZER))?;
        Ok(Builder {
            tokenizer,
            dir: dir.to_path_buf(),
            options,
            around,
            source_numbers: HashMap::new(),
            manifest: Manifest {
                version: if options.chat.is_some() { VERSION_WITH_MASKS } else { VERSION },
                tokenizer_sha256: tokenizer.sha256().to_owned(),
                vocab_size: tokenizer.vocab_size() as u64,
                eos_id: around.end,
                given_end: tokenizer.eos_id() != Some(around.end),
                token_bytes_sha256: hex(&Sha256::digest(&token_bytes)),
                sources: Vec::new(),
                licenses: BTreeMap::new(),
                skipped_rows: 0,
                skipped_examples: Vec::new(),
                blank_rows: 0,
                other_files: BTreeMap::new(),
                ends_per_mille: None,
                raised_per_mille: None,
                train: SplitEntry::default(),
                validation: SplitEntry::default(),
            },
            open: [None, None],
            batch: Vec::new(),
            batch_bytes: 0,
            progress: Progress::default(),
            _lock: lock,
        })
    }

    /// Takes a document; gives the errors of those that could not be encoded and are left out.
    fn push(
        &mut self,
        document: Document,
        split: Split,
        origin: Option<Origin>,
    ) -> Result<Vec<DataError>, DataError> {
        self.batch_bytes += document.text.len();
        self.batch.push((document, split, origin));
        if self.batch_bytes >= BATCH_BYTES { self.flush() } else { Ok(Vec::new()) }
    }

    /// Tokenizes the batch in parallel and writes it in order; gives the errors of documents that
    /// are left out.
    fn flush(&mut self) -> Result<Vec<DataError>, DataError> {
        let batch = std::mem::take(&mut self.batch);
        self.batch_bytes = 0;
        let (tokenizer, chat, around) = (self.tokenizer, self.options.chat, self.around);
        let encoded: Vec<Result<Encoded, DataError>> = batch
            .par_iter()
            .map(|(document, ..)| Encoded::new(tokenizer, chat, &document.text, around))
            .collect();
        let mut errors = Vec::new();
        for ((document, split, origin), encoded) in batch.iter().zip(encoded) {
            match encoded {
                Ok(encoded) => self.write(document, *split, &encoded)?,
                Err(error) => errors.push(of_row(error, origin.as_ref())),
            }
        }
        if let Some(progress) = self.options.progress {
            progress(self.progress);
        }
        Ok(errors)
    }

    fn write(
        &mut self,
        document: &Document,
        split: Split,
        encoded: &Encoded,
    ) -> Result<(), DataError> {
        let Encoded { ids, bytes, learned, text_bytes } = encoded;
        let masked = self.options.chat.is_some();
        let source = self.source_number(&document.source)?;
        let totals = Totals { documents: 1, tokens: ids.len() as u64, bytes: *text_bytes };
        self.progress.done.add(totals);
        let license = document.license.clone().unwrap_or_default();
        *self
            .manifest
            .licenses
            .entry(document.source.clone())
            .or_default()
            .entry(license)
            .or_default() += 1;
        let entry = entry_of(&mut self.manifest, split);
        entry.total.add(totals);
        entry.by_source[source].add(totals);
        let number = entry.shards.len();
        let open = &mut self.open[split as usize];
        if open.is_none() {
            let file = format!("{split}-{number:05}.shard");
            *open = Some(OpenShard::create(&self.dir, file, self.tokenizer, masked)?);
        }
        if let Some(open) = open {
            open.ids.push(ids, source as u32)?;
            if let Some(writer) = &mut open.bytes {
                writer.push(bytes)?;
            }
            if let Some(writer) = &mut open.mask {
                writer.push(learned)?;
            }
            if open.ids.tokens() >= self.options.shard_tokens {
                self.close(split)?;
            }
        }
        Ok(())
    }

    fn source_number(&mut self, source: &str) -> Result<usize, DataError> {
        if let Some(&number) = self.source_numbers.get(source) {
            return Ok(number);
        }
        let number = self.manifest.sources.len();
        if number == MAX_SOURCES {
            let expected = format!("at most {MAX_SOURCES} different names");
            return Err(DataError::argument("source", expected, format!("one more, {source:?}")));
        }
        self.source_numbers.insert(source.to_owned(), number);
        self.manifest.sources.push(source.to_owned());
        self.manifest.train.by_source.push(Totals::default());
        self.manifest.validation.by_source.push(Totals::default());
        Ok(number)
    }

    fn close(&mut self, split: Split) -> Result<(), DataError> {
        if let Some(OpenShard { file, ids, bytes, mask }) = self.open[split as usize].take() {
            let done = ids.finish()?;
            let text_bytes = bytes.map(TextBytesWriter::finish).transpose()?;
            let loss_mask = mask.map(LossMaskWriter::finish).transpose()?;
            entry_of(&mut self.manifest, split).shards.push(ShardEntry {
                file,
                tokens: done.tokens,
                documents: done.documents,
                crc32c: done.crc32c,
                sha256: done.sha256,
                text_bytes,
                loss_mask,
            });
        }
        Ok(())
    }

    fn finish(mut self) -> Result<Manifest, DataError> {
        self.close(Split::Train)?;
        self.close(Split::Validation)?;
        if self.progress.done.documents == 0 {
            return Err(DataError::argument(
                "inputs",
                "at least one document that is not blank",
                "none",
            ));
        }
        self.manifest.save(&self.dir)?;
        folder::finish(&self.dir)?;
        Ok(self.manifest)
    }
}

/// An error about a text, with the row that the text was.
fn of_row(error: DataError, origin: Option<&Origin>) -> DataError {
    match (error, origin) {
        (DataError::Argument { name, expected, found }, Some(Origin { path, row })) => {
            DataError::row(path, *row, name, expected, found)
        }
        (error, _) => error,
    }
}

fn entry_of(manifest: &mut Manifest, split: Split) -> &mut SplitEntry {
    match split {
        Split::Train => &mut manifest.train,
        Split::Validation => &mut manifest.validation,
    }
}
