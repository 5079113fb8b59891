//! A built data folder as a stream of tokens, and the windows a model trains on.

use crate::DataError;
use crate::loss_mask::LossMask;
use crate::manifest::{MANIFEST, Manifest, Split, TOKEN_BYTES, TOKENIZER};
use crate::permutation::permute;
use crate::shard::Shard;
use crate::text_bytes::TextBytes;
use crate::tokenizer::hex;
use sha2::{Digest, Sha256};
use std::fmt::Display;
use std::path::{Path, PathBuf};
use std::sync::Arc;

const NEXT: &str = "build the data folder again";

/// One split of a data folder: its documents in a row. Cheap to clone (shared).
#[derive(Clone)]
pub struct Corpus {
    shared: Arc<Shared>,
}

struct Shared {
    dir: PathBuf,
    split: Split,
    manifest: Manifest,
    shards: Vec<Shard>,
    /// Bytes of text of each shard's tokens, for shards that have a file of them.
    text_bytes: Vec<Option<TextBytes>>,
    /// Which of each shard's tokens are learned, where not all are.
    loss_masks: Vec<Option<LossMask>>,
    /// First token of each shard in the stream.
    starts: Vec<u64>,
    token_bytes: Vec<u32>,
    fingerprint: String,
}

impl Corpus {
    /// Opens a split and checks manifest, tokenizer copy, byte table and shards against each other,
    /// every checksum and every id (about a second per gigabyte).
    ///
    /// # Errors
    /// A missing file or any contradiction, with file and field.
    pub fn open(dir: &Path, split: Split) -> Result<Self, DataError> {
        Self::open_with(dir, split, true)
    }

    /// Like [`Corpus::open`]; without `verify`, payloads are trusted and only headers, sizes and
    /// tables are checked.
    ///
    /// # Errors
    /// As [`Corpus::open`].
    pub fn open_with(dir: &Path, split: Split, verify: bool) -> Result<Self, DataError> {
        let manifest = Manifest::load(dir)?;
        let token_bytes = read_token_bytes(dir, &manifest)?;
        check_tokenizer(dir, &manifest)?;
        let (mut shards, mut text_bytes, mut loss_masks) = (Vec::new(), Vec::new(), Vec::new());
        let mut starts = Vec::new();
        let mut tokens = 0;
        for i in 0..manifest.split(split).shards.len() {
            let shard = open_shard(dir, &manifest, split, i, verify)?;
            starts.push(tokens);
            tokens += shard.tokens() as u64;
            text_bytes.push(open_text_bytes(dir, &manifest, split, i, verify)?);
            loss_masks.push(open_loss_mask(dir, &manifest, split, i, verify)?);
            shards.push(shard);
        }
        let fingerprint = fingerprint(&manifest, split);
        let dir = dir.to_path_buf();
        Ok(Corpus {
            shared: Arc::new(Shared {
                dir,
                split,
                manifest,
                shards,
                text_bytes,
                loss_masks,
                starts,
                token_bytes,
                fingerprint,
            }),
        })
    }

    /// Number of tokens in the split.
    pub fn tokens(&self) -> u64 {
        self.manifest().split(self.shared.split).total.tokens
    }

    /// Number of documents in the split.
    pub fn documents(&self) -> u64 {
        self.manifest().split(self.shared.split).total.documents
    }

    /// Names of the sources; [`Window::source`] counts them.
    pub fn sources(&self) -> &[String] {
        &self.manifest().sources
    }

    /// Ids are below this.
    pub fn vocab_size(&self) -> usize {
        self.manifest().vocab_size as usize
    }

    /// The token that ends each document.
    pub fn eos_id(&self) -> u32 {
        self.manifest().eos_id
    }

    /// The same, where it is another than the tokenizer's end of text.
    pub fn given_end(&self) -> Option<u32> {
        self.manifest().given_end.then(|| self.eos_id())
    }

    /// Bytes of text each id stands for, `vocab_size` entries. [`Window::bytes`] counts what stands
    /// in the text, which is another number where the tokenizer changes it.
    pub fn token_bytes(&self) -> &[u32] {
        &self.shared.token_bytes
    }

    /// Whether the folder knows the bytes of text of each token apart from its id.
    pub fn counts_text_bytes(&self) -> bool {
        self.shared.text_bytes.iter().any(Option::is_some)
    }

    /// SHA-256 of the tokenizer.json that made the ids.
    pub fn tokenizer_sha256(&self) -> &str {
        &self.manifest().tokenizer_sha256
    }

    /// The folder's copy of that file.
    pub fn tokenizer_path(&self) -> PathBuf {
        self.shared.dir.join(TOKENIZER)
    }

    /// SHA-256 in hexadecimal that names the split's content: vocabulary, sources, shards and their
    /// order.
    pub fn fingerprint(&self) -> &str {
        &self.shared.fingerprint
    }

    /// Which split this is.
    pub fn split(&self) -> Split {
        self.shared.split
    }

    /// What the folder says of itself: splits, shards, tokenizer.
    pub fn manifest(&self) -> &Manifest {
        &self.shared.manifest
    }

    /// Tokens `start .. start + count` of the stream with, for each, its document's number in the
    /// split and source.
    fn read(&self, start: u64, count: usize) -> Result<Stream, DataError> {
        let mut stream = Stream::default();
        let mut at = start;
        while stream.ids.len() < count {
            let number = self.shared.starts.partition_point(|&s| s <= at) - 1;
            let shard = &self.shared.shards[number];
            let first = (at - self.shared.starts[number]) as usize;
            let end = shard.tokens().min(first + count - stream.ids.len());
            stream.append(number, shard, first, end)?;
            match &self.shared.text_bytes[number] {
                Some(bytes) => bytes.read(first..end, &mut stream.bytes)?,
                None => {
                    let fresh = stream.ids.len() - (end - first);
                    let ids = stream.ids[fresh..].iter();
                    stream.bytes.extend(ids.map(|&id| self.shared.token_bytes[id as usize]));
                }
            }
            match &self.shared.loss_masks[number] {
                Some(mask) => mask.read(first..end, &mut stream.learned)?,
                None => stream.learned.resize(stream.ids.len(), true),
            }
            at += (end - first) as u64;
        }
        Ok(stream)
    }
}

/// A piece of the stream: ids with the document (shard and number) and the source each belongs to.
#[derive(Default)]
struct Stream {
    ids: Vec<u32>,
    documents: Vec<(usize, usize)>,
    sources: Vec<u16>,
    /// Bytes of text of each id.
    bytes: Vec<u32>,
    /// Whether each id is to be learned.
    learned: Vec<bool>,
}

impl Stream {
    fn append(
        &mut self,
        number: usize,
        shard: &Shard,
        first: usize,
        end: usize,
    ) -> Result<(), DataError> {
        shard.read(first..end, &mut self.ids)?;
        let documents = shard.documents_in(first..end)?;
        for (i, document) in documents.iter().enumerate() {
            let next = documents.get(i + 1).map_or(end, |next| next.start);
            let rows = next - document.start.max(first);
            self.documents.extend(std::iter::repeat_n((number, document.number), rows));
            self.sources.extend(std::iter::repeat_n(document.source, rows));
        }
        Ok(())
    }
}

fn open_shard(
    dir: &Path,
    manifest: &Manifest,
    split: Split,
    i: usize,
    verify: bool,
) -> Result<Shard, DataError> {
    let entry = &manifest.split(split).shards[i];
    let path = dir.join(&entry.file);
    let shard = Shard::open(&path, manifest.sources.len(), verify)?;
    if shard.tokens() as u64 != entry.tokens {
        return Err(contradiction(&path, "token count", entry.tokens, shard.tokens()));
    }
    if shard.documents() as u64 != entry.documents {
        return Err(contradiction(&path, "document count", entry.documents, shard.documents()));
    }
    if shard.vocab_size() as u64 != manifest.vocab_size {
        let expected = manifest.vocab_size;
        return Err(contradiction(&path, "vocabulary size", expected, shard.vocab_size()));
    }
    if shard.crc32c() != entry.crc32c {
        let expected = format!("{:08x}", entry.crc32c);
        let found = format!("{:08x}", shard.crc32c());
        return Err(contradiction(&path, "payload checksum", expected, found));
    }
    if verify {
        let found = shard.payload_sha256()?;
        if found != entry.sha256 {
            return Err(contradiction(&path, "payload SHA-256", &entry.sha256, found));
        }
    }
    Ok(shard)
}

fn open_text_bytes(
    dir: &Path,
    manifest: &Manifest,
    split: Split,
    i: usize,
    verify: bool,
) -> Result<Option<TextBytes>, DataError> {
    let shard = &manifest.split(split).shards[i];
    let entry = shard.text_bytes.as_ref();
    let path = dir.join(&shard.file);
    entry.map(|entry| TextBytes::open(&path, entry, shard.tokens as usize, verify)).transpose()
}

fn open_loss_mask(
    dir: &Path,
    manifest: &Manifest,
    split: Split,
    i: usize,
    verify: bool,
) -> Result<Option<LossMask>, DataError> {
    let shard = &manifest.split(split).shards[i];
    let entry = shard.loss_mask.as_ref();
    let path = dir.join(&shard.file);
    entry.map(|entry| LossMask::open(&path, entry, shard.tokens as usize, verify)).transpose()
}

/// A shard that says something else than the manifest.
fn contradiction(
    path: &Path,
    field: &str,
    expected: impl Display,
    found: impl Display,
) -> DataError {
    let expected = format!("{expected} as in {MANIFEST}");
    DataError::format(path, field, expected, found.to_string(), NEXT)
}

fn read_token_bytes(dir: &Path, manifest: &Manifest) -> Result<Vec<u32>, DataError> {
    let path = dir.join(TOKEN_BYTES);
    let file = files::open(&path).map_err(DataError::io("read", &path))?;
    let length = file.metadata().map_err(DataError::io("read", &path))?.len();
    if length != 4 * manifest.vocab_size {
        let expected = format!("{} bytes, four per id", 4 * manifest.vocab_size);
        return Err(DataError::format(&path, "file size", expected, length.to_string(), NEXT));
    }
    let bytes = files::read_open(file, length).map_err(DataError::io("read", &path))?;
    let found = hex(&Sha256::digest(&bytes));
    if found != manifest.token_bytes_sha256 {
        return Err(DataError::format(
            &path,
            "SHA-256",
            manifest.token_bytes_sha256.clone(),
            found,
            NEXT,
        ));
    }
    Ok(bytes.chunks_exact(4).map(|b| u32::from_le_bytes([b[0], b[1], b[2], b[3]])).collect())
}

fn check_tokenizer(dir: &Path, manifest: &Manifest) -> Result<(), DataError> {
    let path = dir.join(TOKENIZER);
    let file = files::open(&path).map_err(DataError::io("read", &path))?;
    let length = file.metadata().map_err(DataError::io("read", &path))?.len();
    if length > 1 << 30 {
        return Err(DataError::format(
            &path,
            "file size",
            "at most 1 GiB",
            length.to_string(),
            NEXT,
        ));
    }
    let bytes = files::read_open(file, 1 << 30).map_err(DataError::io("read", &path))?;
    let found = hex(&Sha256::digest(bytes));
    if found != manifest.tokenizer_sha256 {
        return Err(DataError::format(
            &path,
            "SHA-256",
            manifest.tokenizer_sha256.clone(),
            found,
            NEXT,
        ));
    }
    Ok(())
}

fn fingerprint(manifest: &Manifest, split: Split) -> String {
    let mut sha = Sha256::new();
    sha.update(format!("{split}\n{}\n{}\n", manifest.tokenizer_sha256, manifest.vocab_size));
    for source in &manifest.sources {
        sha.update(format!("source {source:?}\n"));
    }
    for shard in &manifest.split(split).shards {
        sha.update(format!("shard {} {}\n", shard.tokens, shard.sha256));
        if let Some(mask) = &shard.loss_mask {
            sha.update(format!("learned {}\n", mask.sha256));
        }
    }
    hex(&sha.finalize())
}

/// The windows of a corpus in an order that depends only on the seed and the position.
///
/// Window `i` covers tokens `i T` to `i T + T` of the stream, both included: `T` inputs and the `T`
/// tokens that follow them, so neighbouring windows share one token and every token but the first
/// is a target once. What is left at the end, fewer than `T + 1` tokens past the last window's
/// start, is dropped ([`Windows::dropped_tokens`]).
///
/// The reader's whole state is the position: window `position mod len` of epoch `position / len` is
/// the image under a keyed bijection of the indices. Holds a clone of the corpus.
#[derive(Clone)]
pub struct Windows {
    corpus: Corpus,
    seq_len: usize,
    seed: u64,
    len: u64,
}

/// `T` inputs with their targets.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Window {
    /// Input token ids, `T`.
    pub ids: Vec<u32>,
    /// The token after each input, `T`.
    pub targets: Vec<u32>,
    /// Running number, from 0, of the document inside the window, per input row.
    pub document: Vec<u32>,
    /// Whether the target belongs to its input's document.
    pub target_same_document: Vec<bool>,
    /// Whether the target is to be learned; in text that is no conversation all are.
    pub learned: Vec<bool>,
    /// Source of the target token, per row.
    pub source: Vec<u16>,
    /// Bytes of the original text that are complete with each target and were not before it.
    pub bytes: Vec<u32>,
    /// The window's place in the stream.
    pub index: u64,
    /// How many times all windows were seen before.
    pub epoch: u64,
}

impl Windows {
    /// Windows of `seq_len` inputs.
    ///
    /// # Errors
    /// A length of 0, or a corpus with fewer than `seq_len + 1` tokens.
    pub fn new(corpus: &Corpus, seq_len: usize, seed: u64) -> Result<Self, DataError> {
        let tokens = corpus.tokens();
        if seq_len == 0 || seq_len as u64 >= tokens {
            let at_most = tokens.saturating_sub(1);
            let expected = format!(
                "1 to {at_most}, one less than the {tokens} tokens of split {} \
                 (give more data, a shorter length, or a larger share of validation)",
                corpus.split()
            );
            return Err(DataError::argument("sequence length", expected, seq_len));
        }
        let len = (tokens - 1) / seq_len as u64;
        Ok(Windows { corpus: corpus.clone(), seq_len, seed, len })
    }

    /// Windows per epoch; never 0.
    #[allow(clippy::len_without_is_empty)]
    pub fn len(&self) -> u64 {
        self.len
    }

    /// Input tokens of a window; it holds one more, the last target.
    pub fn seq_len(&self) -> usize {
        self.seq_len
    }

    /// Tokens at the end of the stream that no window covers.
    pub fn dropped_tokens(&self) -> u64 {
        self.corpus.tokens() - 1 - self.len * self.seq_len as u64
    }

    /// The corpus the windows are cut from.
    pub fn corpus(&self) -> &Corpus {
        &self.corpus
    }

    /// The window at `position`, counted in windows since the start of training.
    ///
    /// # Errors
    /// A file of the data folder that was changed since it was opened, or cannot be read.
    pub fn at(&self, position: u64) -> Result<Window, DataError> {
        let epoch = position / self.len;
        let index = permute(position % self.len, self.len, self.seed, epoch);
        self.window(index, epoch)
    }

    /// Window `index` in stream order, for evaluation; its epoch is 0.
    ///
    /// # Errors
    /// An index that is not below [`Windows::len`], and as [`Windows::at`].
    pub fn unshuffled(&self, index: u64) -> Result<Window, DataError> {
        if index >= self.len {
            return Err(DataError::argument("window index", format!("below {}", self.len), index));
        }
        self.window(index, 0)
    }

    fn window(&self, index: u64, epoch: u64) -> Result<Window, DataError> {
        let seq_len = self.seq_len;
        let stream = self.corpus.read(index * seq_len as u64, seq_len + 1)?;
        let same: Vec<bool> = stream.documents.windows(2).map(|d| d[0] == d[1]).collect();
        let mut document = vec![0; seq_len];
        for row in 1..seq_len {
            document[row] = document[row - 1] + u32::from(!same[row - 1]);
        }
        let targets = stream.ids[1..].to_vec();
        let source = stream.sources[1..].to_vec();
        let bytes = stream.bytes[1..].to_vec();
        let learned = stream.learned[1..].to_vec();
        let mut ids = stream.ids;
        ids.truncate(seq_len);
        let target_same_document = same;
        Ok(Window {
            ids,
            targets,
            document,
            target_same_document,
            learned,
            source,
            bytes,
            index,
            epoch,
        })
    }
}
