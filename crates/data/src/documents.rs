//! Finds input files and reads their documents one after another, without ever holding a whole file
//! of rows.

mod json_text;
mod jsonl;
mod parquet;
mod text;

use crate::DataError;
use crate::manifest::Split;
use std::collections::BTreeMap;
use std::path::{Path, PathBuf};

/// A text with where it comes from.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Document {
    /// Name of the source: the `source` field of the row, else the file's stem, else (for plain
    /// text files found in a folder) the folder's name.
    pub source: String,
    /// Licence as stated by the row.
    pub license: Option<String>,
    /// The text, not blank.
    pub text: String,
}

/// A file or folder to read.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Input {
    /// Where it lies; a folder is read recursively in the order of names.
    pub path: PathBuf,
    /// Puts all of its documents into one split.
    pub split: Option<Split>,
}

impl<P: Into<PathBuf>> From<P> for Input {
    fn from(path: P) -> Self {
        Input { path: path.into(), split: None }
    }
}

/// How documents are read.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct ReadOptions {
    /// Field or column that holds the text.
    pub text_field: String,
    /// The field holds the messages of a conversation, whose JSON is the document's text; a text
    /// there is taken for that JSON.
    pub messages: bool,
    /// Count rows that cannot be read and go on, instead of stopping.
    pub skip_bad: bool,
    /// Extensions of files that are plain text, without the dot.
    pub extensions: Vec<String>,
    /// Plain text above this length is cut at a line end into several documents.
    pub document_bytes: usize,
    /// A line of JSONL or a cell of Parquet with more bytes is a bad row, and a page of Parquet
    /// with more than four times as many: either is held in memory whole. Behind a line of more
    /// than 16 times as many nothing is looked for.
    pub max_row: usize,
}

/// The default of [`ReadOptions::max_row`].
pub const MAX_ROW: usize = 64 << 20;

impl Default for ReadOptions {
    fn default() -> Self {
        ReadOptions {
            text_field: "text".to_owned(),
            messages: false,
            skip_bad: false,
            extensions: ["txt", "md"].map(str::to_owned).to_vec(),
            document_bytes: 64 << 10,
            max_row: MAX_ROW,
        }
    }
}

/// One file to read.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct InputFile {
    /// Path of the file, as it was found.
    pub path: PathBuf,
    /// Its path below the input it was found in, with `/`; decides the split of a split by file.
    pub relative: String,
    /// Source of its rows where they state none.
    pub source: String,
    /// The split that its [`Input`] asks for, if it does.
    pub split: Option<Split>,
    kind: Kind,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Kind {
    Text,
    Jsonl(Packing),
    Parquet,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Packing {
    Plain,
    Gzip,
    Zstd,
}

const ENDINGS: [(&str, Kind); 7] = [
    (".jsonl", Kind::Jsonl(Packing::Plain)),
    (".ndjson", Kind::Jsonl(Packing::Plain)),
    (".jsonl.gz", Kind::Jsonl(Packing::Gzip)),
    (".ndjson.gz", Kind::Jsonl(Packing::Gzip)),
    (".jsonl.zst", Kind::Jsonl(Packing::Zstd)),
    (".ndjson.zst", Kind::Jsonl(Packing::Zstd)),
    (".parquet", Kind::Parquet),
];

fn kind_and_stem(path: &Path, options: &ReadOptions) -> Option<(Kind, String)> {
    let name = path.file_name()?.to_str()?;
    let lower = name.to_ascii_lowercase();
    let (length, kind) = match ENDINGS.iter().find(|(ending, _)| lower.ends_with(ending)) {
        Some((ending, kind)) => (ending.len(), *kind),
        None => {
            let extension = options.extensions.iter().find(|e| has_extension(&lower, e))?;
            (extension.len() + 1, Kind::Text)
        }
    };
    Some((kind, name[..name.len() - length].to_owned()))
}

/// Whether a name in lower case ends with a dot and `extension`, in whatever case that is given.
fn has_extension(lower: &str, extension: &str) -> bool {
    let ending = format!(".{}", extension.to_ascii_lowercase());
    lower.len() > extension.len() && lower.ends_with(&ending)
}

/// Which files of the inputs are read, and which are not.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct FoundFiles {
    /// The files to read, in order.
    pub files: Vec<InputFile>,
    /// How many files of the folders are passed over, by the ending of their names (`.pdf`), which
    /// is empty for a name without one.
    pub others: BTreeMap<String, u64>,
}

/// The readable files of `inputs`, in the order of inputs and, inside a folder, of relative paths.
///
/// Links to folders are not followed. Files of other kinds inside a folder are passed over and
/// counted.
///
/// # Errors
/// An input that does not exist, a file of an unknown kind named directly, a folder without a
/// readable file.
pub fn list_files(inputs: &[Input], options: &ReadOptions) -> Result<FoundFiles, DataError> {
    if options.document_bytes < 16 {
        return Err(DataError::argument("document_bytes", "at least 16", options.document_bytes));
    }
    if options.max_row == 0 {
        return Err(DataError::argument("max_row", "at least 1", 0));
    }
    let (mut files, mut others) = (Vec::new(), BTreeMap::new());
    for input in inputs {
        let meta = std::fs::metadata(&input.path).map_err(DataError::io("read", &input.path))?;
        if !meta.is_dir() {
            let (kind, stem) =
                kind_and_stem(&input.path, options).ok_or_else(|| unknown(&input.path, options))?;
            let relative =
                input.path.file_name().unwrap_or_default().to_string_lossy().into_owned();
            files.push(InputFile {
                path: input.path.clone(),
                relative,
                source: stem,
                split: input.split,
                kind,
            });
            continue;
        }
        let before = files.len();
        let folder =
            std::fs::canonicalize(&input.path).map_err(DataError::io("read", &input.path))?;
        let name = folder
            .file_name()
            .map_or_else(|| "root".to_owned(), |n| n.to_string_lossy().into_owned());
        for path in walk(&input.path)? {
            let Some((kind, stem)) = kind_and_stem(&path, options) else {
                *others.entry(ending(&path)).or_default() += 1;
                continue;
            };
            let relative = relative(&path, &input.path);
            let source = if kind == Kind::Text { name.clone() } else { stem };
            files.push(InputFile { path, relative, source, split: input.split, kind });
        }
        if files.len() == before {
            return Err(unknown(&input.path, options));
        }
    }
    on_one_side(&files)?;
    Ok(FoundFiles { files, others })
}

/// Refuses a file that two inputs put on different sides: its texts would be learned, and then
/// taken for unknown ones.
fn on_one_side(files: &[InputFile]) -> Result<(), DataError> {
    if files.iter().all(|file| file.split == files[0].split) {
        return Ok(());
    }
    let mut sides = BTreeMap::new();
    for file in files {
        let place = std::fs::canonicalize(&file.path).map_err(DataError::io("read", &file.path))?;
        if *sides.entry(place).or_insert(file.split) != file.split {
            return Err(DataError::format(
                &file.path,
                "inputs",
                "each file in one of --input and --validation",
                "it in both",
                "take it out of one of them; a folder gives all files in it, so that one for \
                 validation needs a place of its own",
            ));
        }
    }
    Ok(())
}

/// The ending of a file's name in lower case, with its dot.
fn ending(path: &Path) -> String {
    path.extension().map_or_else(String::new, |ending| {
        format!(".{}", ending.to_string_lossy().to_ascii_lowercase())
    })
}

fn unknown(path: &Path, options: &ReadOptions) -> DataError {
    let known: Vec<String> = options
        .extensions
        .iter()
        .map(|e| format!(".{e}"))
        .chain(ENDINGS.iter().map(|(e, _)| (*e).to_owned()))
        .collect();
    let expected = format!("one of {}", known.join(" "));
    DataError::format(
        path,
        "file name ending",
        expected,
        "none of these",
        "name other files, or give this one such an ending",
    )
}

/// All files below `dir`, by relative path.
pub(crate) fn walk(dir: &Path) -> Result<Vec<PathBuf>, DataError> {
    let mut files = Vec::new();
    let mut folders = vec![dir.to_path_buf()];
    while let Some(folder) = folders.pop() {
        for entry in std::fs::read_dir(&folder).map_err(DataError::io("read", &folder))? {
            let entry = entry.map_err(DataError::io("read", &folder))?;
            let kind = entry.file_type().map_err(DataError::io("read", &entry.path()))?;
            if kind.is_dir() {
                folders.push(entry.path());
            } else if kind.is_file() || entry.path().is_file() {
                files.push(entry.path());
            }
        }
    }
    files.sort_by_cached_key(|path| relative(path, dir));
    Ok(files)
}

/// `path` below `root` with `/` between its parts.
pub(crate) fn relative(path: &Path, root: &Path) -> String {
    let parts = path.strip_prefix(root).unwrap_or(path).components();
    parts.map(|c| c.as_os_str().to_string_lossy().into_owned()).collect::<Vec<_>>().join("/")
}

/// A row that is no document.
struct Bad {
    row: u64,
    field: String,
    expected: String,
    found: String,
    /// How much of the file cannot be read because of it.
    lost: Lost,
}

/// What is behind a bad row.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Lost {
    /// More rows, which can be read.
    Nothing,
    /// So many rows, which cannot be read.
    Rows(u64),
    /// Nobody knows how much is there.
    Unknown,
}

impl Bad {
    fn new(row: u64, field: &str, expected: &str, found: impl Into<String>) -> Self {
        Bad {
            row,
            field: field.to_owned(),
            expected: expected.to_owned(),
            found: found.into(),
            lost: Lost::Nothing,
        }
    }

    /// Nothing can be read after it.
    fn fatal(self) -> Self {
        Bad { lost: Lost::Unknown, ..self }
    }
}

/// A row that would have to be held in memory whole, and is too long for it.
fn too_long(row: u64, field: &str, most: usize) -> Bad {
    let expected = format!("at most {most} bytes (max_row, --max-row)");
    Bad::new(row, field, &expected, "more")
}

/// What a reader of one file gives: a document, with the source only where the row states it.
struct Row {
    number: u64,
    source: Option<String>,
    license: Option<String>,
    text: String,
}

type Rows = Box<dyn Iterator<Item = Result<Row, Bad>> + Send>;

/// The documents of many files, one after another; gives the file's place in the list with each.
///
/// Blank texts are passed over and counted. A row that cannot be read is an error with file and
/// row, or, with `skip_bad`, counted.
pub struct Documents {
    files: Vec<InputFile>,
    options: ReadOptions,
    next_file: usize,
    rows: Option<Rows>,
    /// Number of the row given last, from 1.
    row: u64,
    skipped: u64,
    blank: u64,
    examples: Vec<String>,
    /// How many of `examples` tell of the rest of a file.
    rests: usize,
}

/// Bad rows that are told in words, and rests of files.
const MAX_EXAMPLES: usize = 20;

impl Documents {
    /// Reads `files` in order.
    pub fn new(files: Vec<InputFile>, options: ReadOptions) -> Self {
        Documents {
            files,
            options,
            next_file: 0,
            rows: None,
            row: 0,
            skipped: 0,
            blank: 0,
            examples: Vec::new(),
            rests: 0,
        }
    }

    /// The files, in order.
    pub fn files(&self) -> &[InputFile] {
        &self.files
    }

    /// How many files were opened so far.
    pub fn files_opened(&self) -> usize {
        self.next_file
    }

    /// Line (JSONL), row (Parquet) or piece (text) of its file that the last document was, from 1.
    pub fn row(&self) -> u64 {
        self.row
    }

    /// Rows left out so far. Where the rest of a file cannot be read, its rows count as far as the
    /// file says how many there are.
    pub fn skipped(&self) -> u64 {
        self.skipped
    }

    /// Rows so far that hold nothing but blanks.
    pub fn blank(&self) -> u64 {
        self.blank
    }

    /// The first rows left out, each with file, row and reason, and the first rests of files.
    pub fn skipped_examples(&self) -> &[String] {
        &self.examples
    }

    fn open_next(&mut self) -> Option<Result<(), DataError>> {
        let file = self.files.get(self.next_file)?;
        self.next_file += 1;
        let rows = match file.kind {
            Kind::Text => text::open(&file.path, self.options.document_bytes),
            Kind::Jsonl(packing) => jsonl::open(&file.path, packing, &self.options),
            Kind::Parquet => parquet::open(&file.path, &self.options),
        };
        Some(rows.map(|rows| self.rows = Some(rows)))
    }

    /// The error for a bad row, or nothing where it is skipped.
    fn refuse(&mut self, bad: Bad) -> Option<DataError> {
        let path = &self.files[self.next_file - 1].path;
        let error = DataError::row(path, bad.row, bad.field, bad.expected, bad.found);
        if bad.lost == Lost::Nothing || !self.options.skip_bad {
            return self.left_out(error);
        }
        self.rows = None;
        self.skipped += 1;
        let rest = match bad.lost {
            Lost::Rows(rows) => {
                self.skipped = self.skipped.saturating_add(rows);
                format!("the {rows} rows behind it")
            }
            _ => "what is behind it in the file".to_owned(),
        };
        if self.rests < MAX_EXAMPLES {
            self.rests += 1;
            self.examples.push(format!("{error}; {rest} could not be read either"));
        }
        None
    }

    /// Counts the row of `error` as skipped, or gives the error back where none may be.
    pub(crate) fn left_out(&mut self, error: DataError) -> Option<DataError> {
        if !self.options.skip_bad {
            return Some(error);
        }
        self.skipped += 1;
        if self.examples.len() - self.rests < MAX_EXAMPLES {
            self.examples.push(error.to_string());
        }
        None
    }
}

impl Iterator for Documents {
    type Item = Result<(usize, Document), DataError>;

    fn next(&mut self) -> Option<Self::Item> {
        loop {
            let Some(rows) = &mut self.rows else {
                match self.open_next()? {
                    Ok(()) => continue,
                    Err(error) => return Some(Err(error)),
                }
            };
            match rows.next() {
                None => self.rows = None,
                Some(Ok(row)) if row.text.trim().is_empty() => self.blank += 1,
                Some(Ok(row)) => {
                    self.row = row.number;
                    let file = self.next_file - 1;
                    let source = row.source.unwrap_or_else(|| self.files[file].source.clone());
                    return Some(Ok((
                        file,
                        Document { source, license: row.license, text: row.text },
                    )));
                }
                Some(Err(bad)) => {
                    if let Some(error) = self.refuse(bad) {
                        return Some(Err(error));
                    }
                }
            }
        }
    }
}
